"""Every stage against recorded outputs of the reference."""
