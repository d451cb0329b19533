"""The layouts that a checkpoint can have, and the styles of Janus' prompts: names alone, no imports."""

LAYOUTS = ("hybridgen", "janus-hf", "janus-official", "chameleon-hf", "llava-hf")
STYLES = ("janus", "janus-pro")  # of Janus-1.3B, of Janus-Pro
SHARD_SIZE = "50GB"  # transformers' default, so that what it wrote as one file stays one file
