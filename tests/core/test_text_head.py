"""Decoders that scale or cap their logits: ours are transformers' own, and so are the losses that never hold them."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.core import cross_entropy
from hybridgen.core.text_head import TextHead
from tests.models import text_config, tiny_config

DECODERS = {
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None, "head_dim": 8, "num_key_value_heads": 2},
    "gemma3_text": {"final_logit_softcapping": 2.0, "head_dim": 8, "num_key_value_heads": 2},
    "llama": {},
}


def both(model_type: str):
    """A decoder of transformers, and ours with its weights."""
    content = {k: v for k, v in text_config().items() if k not in ("num_key_value_heads", "head_dim")}
    content |= {"model_type": model_type, **DECODERS[model_type]}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content), attn_implementation="eager").eval()
    torch.nn.init.normal_(theirs.get_input_embeddings().weight, std=0.5)
    config = tiny_config(text_config=content, vision_config=None, diffusion_config=None, vq_config=None)
    ours = HybridGenForConditionalGeneration(config).eval()
    ours.model.language_model.load_state_dict(theirs.model.state_dict())
    ours.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return theirs, ours


@pytest.mark.parametrize("model_type", DECODERS)
def test_logits_and_losses_are_the_decoders_own(model_type, monkeypatch):
    """Measured: logits 2e-6, losses in tiles 1e-6."""
    theirs, ours = both(model_type)
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    assert isinstance(ours.lm_head, TextHead) == bool(DECODERS[model_type])
    with torch.no_grad():
        expected = theirs(ids).logits
        monkeypatch.setattr(cross_entropy, "WHOLE", 0)
        monkeypatch.setattr(cross_entropy, "TILE", 300)
        found = ours(ids, text_labels=ids, with_log_z=True, logits_to_keep=0)
    assert (found.logits - expected).abs().max() < 1e-5
    losses = F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    assert (found.text_losses - losses).abs().max() < 1e-5
    assert (found.text_log_z - expected[:, :-1].logsumexp(-1).flatten()).abs().max() < 1e-5


def test_a_resized_head_is_scaled_as_before():
    _, ours = both("cohere")
    ids = torch.randint(3, 90, (1, 6), generator=torch.Generator().manual_seed(1))
    before = ours(ids).logits
    ours.resize_token_embeddings(120, mean_resizing=False)
    assert isinstance(ours.lm_head, TextHead)
    assert torch.equal(ours(ids).logits[..., :100], before)
