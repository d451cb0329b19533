"""TODO training/optim."""
