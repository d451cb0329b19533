"""TODO training/stages."""
