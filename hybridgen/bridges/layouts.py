"""The layouts that a Janus checkpoint can have, and the styles of its prompts: names alone, no imports."""

LAYOUTS = ("hybridgen", "janus-hf", "janus-official")
STYLES = ("janus", "janus-pro")  # of Janus-1.3B, of Janus-Pro
SHARD_SIZE = "50GB"  # transformers' default, so that what it wrote as one file stays one file
