"""What can be trained: a model, or a codec (VQ or VAE), with the parts and losses of each."""
