"""Checkpoints on disk: loading them with every weight accounted for, their hashes, model card and manifests."""
