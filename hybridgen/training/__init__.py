"""Training: one accelerate loop for every stage, set up by a strict YAML config."""

from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.run import train

__all__ = ["TrainConfig", "load_config", "train"]
