"""idemreg at home in other people's programs. Nothing else of idemreg imports a room of this folder."""
