"""The trial of corrupted files: what is corrupted, how, and what is asked then."""
