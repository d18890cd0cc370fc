"""Public calls with a fault of the system beneath them: what the trials of I/O errors and of memory share."""
