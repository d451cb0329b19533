"""Training: one accelerate loop for every stage, told by a strict YAML config what to do."""

from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.run import train

__all__ = ["TrainConfig", "load_config", "train"]
