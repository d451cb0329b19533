"""transformers' ProcessorTesterMixin and ImageProcessingTestMixin, against our processor and image processor. See
../run_common_tests.py."""

import tempfile
import unittest
from pathlib import Path

from PIL import Image
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin

from hybridgen import HybridGenImageProcessor, HybridGenProcessor
from hybridgen.processing_hybridgen import build_tokenizer
from tests import test_processing_common

# the mixin's own pictures lie on the hub
FOLDER = tempfile.TemporaryDirectory()
PICTURES = [Path(FOLDER.name) / f"{color}.png" for color in ("red", "blue")]
for file in PICTURES:
    Image.new("RGB", (30, 20), file.stem).save(file)
test_processing_common.MODALITY_INPUT_DATA["images"] = [str(file) for file in PICTURES]
test_processing_common.url_to_local_path = lambda url: str(PICTURES[0])

TEXTS = ["a red circle on a blue ground", "what is it? yes, no", "lower newer", "How long is this? Describe it."]


class Processor(ProcessorTesterMixin, unittest.TestCase):
    processor_class = HybridGenProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer(TEXTS, 400)

    @classmethod
    def _setup_image_processor(cls):
        return HybridGenImageProcessor(image_size=16)

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 4, "diffusion_token_size": 4, "vq_token_size": 8, "default_size": [16, 16]}


class OurImages(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("image_size", 18)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": HybridGenImageProcessor}

    def expected_output_image_shape(self, images):
        return self.num_channels, self.image_size, self.image_size


class Images(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = OurImages
