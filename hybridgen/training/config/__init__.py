"""TODO training/config."""
