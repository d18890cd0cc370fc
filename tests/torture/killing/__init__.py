"""Processes on one file that are killed and stopped, a witness of what they do, and who judges what it saw."""
