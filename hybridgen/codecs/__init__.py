"""Codecs: pixels <-> the latents and codes that the backbone reads and writes."""
