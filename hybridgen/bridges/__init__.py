"""Bridges: other people's checkpoints <-> ours, tensor by tensor. `janus` has the functions to call."""
