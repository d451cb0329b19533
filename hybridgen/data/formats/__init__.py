"""TODO data/formats."""
