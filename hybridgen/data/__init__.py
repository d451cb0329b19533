"""Records, sources, packing and loading: everything between files on disk and the tensors that a training step reads."""
