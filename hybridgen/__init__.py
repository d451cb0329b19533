"""hybridgen: one transformer backbone for text and images, read and written by the path you choose."""

from hybridgen.compatibility import mend_torchvision

mend_torchvision()

from hybridgen.configuration_hybridgen import (  # noqa: E402
    HybridGenConfig,
    HybridGenDiffusionConfig,
    HybridGenVQConfig,
)
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration, HybridGenModel  # noqa: E402
from hybridgen.version import __version__  # noqa: E402

__all__ = [
    "HybridGenConfig",
    "HybridGenDiffusionConfig",
    "HybridGenForConditionalGeneration",
    "HybridGenModel",
    "HybridGenVQConfig",
    "__version__",
]
