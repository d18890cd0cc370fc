"""Help for tests that need real processes."""
