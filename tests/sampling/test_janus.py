"""The vq path against transformers' Janus on the same weights: same logits, same codes, same pixels.

Names follow transformers' Janus, so its weights fit ours as they are, but for the tokenizer, which is a codec of ours.
"""

import pytest
import torch
import transformers
from transformers import JanusConfig, JanusForConditionalGeneration

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.codecs import VQCodec
from hybridgen.layout import PADDING_DOCUMENT
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.prefix import prefill
from hybridgen.sampling.seeds import image_generators
from tests.sampling.prompts import worst

PAD, BOS, IMAGE, VQ, BOI, EOI = 0, 1, 90, 91, 92, 93
TEXT = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "pad_token_id": PAD,
    "bos_token_id": BOS, "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
VISION = {
    "model_type": "janus_vision_model", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8, "num_image_tokens": 16, "projection_dim": 32, "mlp_ratio": 2.0,
}  # fmt: skip
TOKENIZER = {
    "embed_dim": 8, "num_embeddings": 40, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1],
    "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32,
}  # fmt: skip
PROMPTS = [[BOS, 5, 6, 7, BOI], [BOS, 8, BOI], [BOS, 9, 10, 11, 12, 13, BOI]]


@pytest.fixture(scope="module")
def janus() -> JanusForConditionalGeneration:
    torch.manual_seed(0)
    config = JanusConfig(
        text_config=TEXT, vision_config=VISION, vq_config=TOKENIZER, image_token_id=IMAGE, tie_word_embeddings=False
    )
    model = JanusForConditionalGeneration(config).eval()
    for parameter in (*model.model.generation_head.parameters(), *model.model.generation_aligner.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)  # far enough apart that codes are no matter of rounding
    torch.nn.init.normal_(model.model.generation_embeddings.weight)
    torch.nn.init.normal_(model.model.vqmodel.quantize.embedding.weight)
    return model


@pytest.fixture(scope="module")
def ours(janus) -> HybridGenForConditionalGeneration:
    config = HybridGenConfig(
        text_config=TEXT, vision_config=VISION,
        vq_config={"num_embeddings": 40, "embed_dim": 8, "projection_dim": 32, "sample_size": 4},
        image_token_id=IMAGE, vq_token_id=VQ, begin_image_token_id=BOI, end_image_token_id=EOI,
    )  # fmt: skip
    model = HybridGenForConditionalGeneration(config).eval()
    weights = {name: value for name, value in janus.state_dict().items() if ".vqmodel." not in name}
    model.load_state_dict(weights)  # strict: nothing is missing, nothing is left
    return model


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@torch.no_grad()
def test_understanding_logits_are_janus(janus, ours):
    ids = torch.tensor([[BOS, 5, BOI, *[IMAGE] * 16, EOI, 6, 7], [BOS, 5, BOI, *[IMAGE] * 16, EOI, 8, 9]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 32, 32)}
    assert worst(ours(**given).logits, janus(**given).logits) < 1e-4  # measured 0
    answers = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.generate(**given, **answers), janus.generate(**given, **answers))


@torch.no_grad()
def test_teacher_forced_code_logits_are_janus(janus, ours):
    codes = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(0))
    text = torch.tensor([[BOS, 5, 6, BOI]] * 2)
    embeds = janus.get_input_embeddings()(text)
    embeds = torch.cat([embeds, janus.prepare_embeddings_for_image_generation(codes)], dim=1)
    states = janus.model.language_model(inputs_embeds=embeds).last_hidden_state
    expected = janus.model.generation_head(states[:, 3:-1])
    ids = torch.cat([text, torch.full_like(codes, VQ)], dim=1)
    keep = (ids == VQ).roll(-1, dims=1)
    made = ours(ids, codes=codes.flatten(), codes_to_keep=keep).code_logits.view(2, 16, 40)
    assert worst(made, expected) < 1e-4  # measured 0


@pytest.mark.parametrize("guidance", [5.0, 1.5])
def test_greedy_guided_codes_are_janus(janus, ours, guidance):
    """Prompts of unequal length. The unconditional prompt as transformers arranges it: everything but BOS and BOI is a
    pad that is attended to; the padding on the left stays hidden."""
    ids, mask = padded(PROMPTS)
    generation = janus.generation_config
    generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = PAD, BOS, 2
    generation.generation_kwargs = {"boi_token_id": BOI}
    settings = {"do_sample": False, "guidance_scale": guidance, "max_length": 64}
    try:
        expected = janus.generate(ids, attention_mask=mask, generation_mode="image", **settings)
    except TypeError as error:  # 5.17 calls a helper of its own with too few arguments
        pytest.skip(f"transformers {transformers.__version__} cannot draw with its own Janus: {error}")

    silent = torch.where((ids == BOS) | (ids == BOI), ids, PAD)
    mask = mask.repeat(2, 1)
    prefix = prefill(
        ours,
        input_ids=torch.cat([ids, silent]),
        document_ids=torch.where(mask.bool(), 0, PADDING_DOCUMENT),
        block_ids=torch.arange(ids.shape[1]).expand_as(mask),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
    )
    codes = write_codes(ours, prefix, 16, image_generators(3, 0), CodeSampling(temperature=0), guidance)
    assert torch.equal(codes, expected)
    assert len(codes.unique()) > 8


@torch.no_grad()
def test_pixels_are_janus(janus):
    codes = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = janus.decode_image_tokens(codes).permute(0, 3, 1, 2)
    assert worst(VQCodec(janus.model.vqmodel).decode(codes.view(2, 4, 4)), expected) < 1e-5  # measured 0
