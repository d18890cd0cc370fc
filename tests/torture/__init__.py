"""What a sceptic would try: many thousand random trials of each promise. ``python -m tests.torture --help``."""
