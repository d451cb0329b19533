"""hybridgen: one transformer backbone for text and images, read and written by the path you choose."""

import sys

if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m") == __name__:
    # `python -m hybridgen ARGUMENTS`: what is wrong with them is told now, before seconds of imports
    from hybridgen.cli.arguments.parser import refuse_mistakes

    refuse_mistakes()

from hybridgen.compatibility import mend_torchvision  # noqa: E402

mend_torchvision()

from transformers import (  # noqa: E402
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto import modeling_auto  # noqa: E402

from hybridgen.chat.session import Chat  # noqa: E402
from hybridgen.codecs import patch_vq  # noqa: E402
from hybridgen.codecs.chameleon_vq import ChameleonVQConfig  # noqa: E402
from hybridgen.configuration_hybridgen import (  # noqa: E402
    HybridGenConfig,
    HybridGenDiffusionConfig,
    HybridGenVQConfig,
)
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor  # noqa: E402
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration, HybridGenModel  # noqa: E402
from hybridgen.multimodal_hybridgen import HybridGenForMultimodalLM  # noqa: E402
from hybridgen.paths.chameleon_decoder import (  # noqa: E402
    ChameleonDecoder,
    ChameleonDecoderConfig,
    ChameleonDecoderForCausalLM,
)
from hybridgen.pipeline_hybridgen import HybridGenPipeline  # noqa: E402
from hybridgen.processing_hybridgen import HybridGenProcessor  # noqa: E402
from hybridgen.version import __version__  # noqa: E402

__all__ = [
    "Chat",
    "HybridGenConfig",
    "HybridGenDiffusionConfig",
    "HybridGenForConditionalGeneration",
    "HybridGenForMultimodalLM",
    "HybridGenImageProcessor",
    "HybridGenModel",
    "HybridGenPipeline",
    "HybridGenProcessor",
    "HybridGenVQConfig",
    "__version__",
]

# transformers finds the parts of a saved checkpoint by what is registered here
AutoConfig.register("hybridgen", HybridGenConfig)
AutoConfig.register("hybridgen_diffusion", HybridGenDiffusionConfig)
AutoConfig.register("hybridgen_vq", HybridGenVQConfig)
AutoImageProcessor.register(
    HybridGenConfig, image_processor_classes=dict.fromkeys(("torchvision", "pil"), HybridGenImageProcessor)
)
AutoProcessor.register(HybridGenConfig, HybridGenProcessor)
AutoModel.register(HybridGenConfig, HybridGenModel)
AutoModelForImageTextToText.register(HybridGenConfig, HybridGenForConditionalGeneration)
AutoModelForMultimodalLM.register(HybridGenConfig, HybridGenForMultimodalLM)

# Chameleon's parts, which transformers has only as a whole (`paths.chameleon_decoder`, `codecs.chameleon_vq`)
AutoConfig.register(ChameleonVQConfig.model_type, ChameleonVQConfig)
AutoConfig.register(ChameleonDecoderConfig.model_type, ChameleonDecoderConfig)
AutoModel.register(ChameleonDecoderConfig, ChameleonDecoder)
AutoModelForCausalLM.register(ChameleonDecoderConfig, ChameleonDecoderForCausalLM)

# a saved pipeline names the modules of its parts: where those of older checkpoints stand today
sys.modules["hybridgen.patch_vq"] = patch_vq

# what `pipeline(...)` looks up to know whether a class fits a task, which `register` does not write into
_NAMES = (HybridGenForConditionalGeneration.__name__, HybridGenForMultimodalLM.__name__)
modeling_auto.MODEL_MAPPING_NAMES["hybridgen"] = HybridGenModel.__name__
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["hybridgen"] = _NAMES
modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["hybridgen"] = _NAMES
