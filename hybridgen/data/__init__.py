"""Records, sources, packing and loading: everything between files on disk and the tensors of a training step."""
