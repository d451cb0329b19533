"""transformers' ModelTesterMixin, GenerationTesterMixin, ConfigTester and TrainingTesterMixin, against tiny models of
two kinds: as Janus is (Llama, causal images) and as Transfusion is (Qwen3, images whose tokens see each other, here
read on the understanding path too). See ../run_common_tests.py, which runs this file with transformers' own `tests`
package on the path."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration, HybridGenForMultimodalLM, HybridGenModel

IMAGE, DIFFUSION, VQ, BEGIN, END = 3, 4, 5, 6, 7  # low, so that they stay when the vocabulary shrinks


class Tester:
    """What the mixins ask about a tiny model: its sizes, a config, and inputs of one image and some text a row."""

    batch_size, seq_length, num_hidden_layers, num_attention_heads = 3, 12, 2, 4
    hidden_size, vocab_size, encoder_seq_length, is_training = 32, 99, 12, True

    def __init__(self, parent, backbone: str, bidirectional: bool):
        self.parent, self.backbone, self.bidirectional = parent, backbone, bidirectional

    def get_config(self) -> HybridGenConfig:
        text = {
            "model_type": self.backbone, "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "intermediate_size": 64, "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        vision = {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False,
        }  # fmt: skip
        return HybridGenConfig(
            text_config=text,
            vision_config=vision,
            diffusion_config={"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32},
            vq_config={"num_embeddings": 50, "embed_dim": 8, "sample_size": 4},
            image_token_id=IMAGE,
            diffusion_token_id=DIFFUSION,
            vq_token_id=VQ,
            begin_image_token_id=BEGIN,
            end_image_token_id=END,
            understanding_bidirectional=self.bidirectional,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        config.use_cache = True  # a test looks for it here, though it is the backbone's
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 12) + 10
        input_ids[:, 1:7] = torch.tensor([BEGIN, IMAGE, IMAGE, IMAGE, IMAGE, END])
        attention_mask = torch.ones_like(input_ids)
        input_ids[0, 0] = attention_mask[0, 0] = 0  # padded on the left
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": floats_tensor([self.batch_size, 3, 16, 16]),
        }
        return config, inputs


class TextTester(Tester):
    """Texts alone: the placeholders lie behind the vocabulary, as these tests draw ids at random, and a placeholder
    without its image is refused."""

    causal_lm_class = HybridGenForConditionalGeneration

    def get_config(self) -> HybridGenConfig:
        config = super().get_config()
        for number, name in enumerate(("image", "diffusion", "vq", "begin_image", "end_image")):
            setattr(config, f"{name}_token_id", self.vocab_size + number)
        return config

    def prepare_config_and_inputs_for_common(self):
        _, inputs = super().prepare_config_and_inputs_for_common()
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 12) + 10
        return self.get_config(), {"input_ids": ids, "attention_mask": inputs["attention_mask"]}


TEXT_ALONE = ("test_eager_matches_sdpa_inference", "test_model_rope_scaling")


class Common(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (HybridGenModel, HybridGenForConditionalGeneration, HybridGenForMultimodalLM)
    _is_composite = True
    backbone, bidirectional = "llama", False

    def setUp(self):
        tester = TextTester if self._testMethodName.startswith(TEXT_ALONE) else Tester
        self.model_tester = tester(self, self.backbone, self.bidirectional)
        self.config_tester = ConfigTester(self, config_class=HybridGenConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class JanusLike(Common, unittest.TestCase):
    pass


class TransfusionLike(Common, unittest.TestCase):
    backbone, bidirectional = "qwen3", True


class JanusLikeLearns(TrainingTesterMixin, unittest.TestCase):
    backbone, bidirectional = "llama", False
    all_model_classes = (HybridGenForConditionalGeneration,)

    @property
    def model_tester(self) -> Tester:
        return TextTester(self, self.backbone, self.bidirectional)


class TransfusionLikeLearns(JanusLikeLearns):
    backbone, bidirectional = "qwen3", True
