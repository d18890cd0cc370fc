"""idemreg inside other people's programs. Nothing here is imported by the core."""
