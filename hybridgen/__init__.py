"""hybridgen: one transformer backbone for text and images, read and written by the path you choose."""

from hybridgen.compatibility import mend_torchvision

mend_torchvision()

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor  # noqa: E402

from hybridgen.configuration_hybridgen import (  # noqa: E402
    HybridGenConfig,
    HybridGenDiffusionConfig,
    HybridGenVQConfig,
)
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor  # noqa: E402
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration, HybridGenModel  # noqa: E402
from hybridgen.processing_hybridgen import HybridGenProcessor  # noqa: E402
from hybridgen.version import __version__  # noqa: E402

__all__ = [
    "HybridGenConfig",
    "HybridGenDiffusionConfig",
    "HybridGenForConditionalGeneration",
    "HybridGenImageProcessor",
    "HybridGenModel",
    "HybridGenProcessor",
    "HybridGenVQConfig",
    "__version__",
]

# transformers finds the parts of a saved processor by the names registered here
AutoConfig.register("hybridgen", HybridGenConfig)
AutoImageProcessor.register(
    HybridGenConfig, image_processor_classes=dict.fromkeys(("torchvision", "pil"), HybridGenImageProcessor)
)
AutoProcessor.register(HybridGenConfig, HybridGenProcessor)
