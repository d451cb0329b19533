"""TODO training/distributed."""
