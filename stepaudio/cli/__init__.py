"""The command `stepaudio`."""
