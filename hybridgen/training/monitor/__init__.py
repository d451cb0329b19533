"""TODO training/monitor."""
