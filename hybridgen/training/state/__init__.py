"""TODO training/state."""
