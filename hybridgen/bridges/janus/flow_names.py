"""JanusFlow-1.3B's published tensors as ours: names, and what else differs between the two.

Names and shapes follow deepseek-ai/Janus' `janus/janusflow/models`. Beside names:

- its time runs the other way: 0 is noise, 1,000 the picture, and the velocity leads to the picture. A sinusoid of
  1,000 - t is a rotation of that of t, so the first layer of the timestep's MLP takes it up; the last one's sign turns.
- in front of a picture that is read stands a learnt vector in place of the embedding of `<begin_of_image>`, which
  becomes that token's row here. When it draws, its code puts the timestep in that token's place; here the token stays,
  as in the paper, so a drawing with these weights has one token more in front of it than DeepSeek's.

This is a table and its arithmetic. The tokenizer and the prompt are the processor's.
"""

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from hybridgen.bridges.janus.tensor_names import renamer, under_new_names
from hybridgen.bridges.weight_names import EMBEDDINGS
from hybridgen.bridges.weights import StoredTensor
from hybridgen.configuration_hybridgen import HybridGenConfig

BEGIN = "beg_of_und_embed"
_TOWER, _OURS = "vision_und_enc_model.vision_tower", "model.vision_model"
_LAYER = f"{_OURS}.encoder.layers.#"
_ENCODER, _DECODER = "vision_gen_enc_model", "vision_gen_dec_model"
_TABLE = [  # DeepSeek's, ours. `#` is a number, `*` the rest; the first line that matches decides
    (f"{_TOWER}.pos_embed", f"{_OURS}.embeddings.position_embedding.weight"),
    (f"{_TOWER}.patch_embed.proj.*", f"{_OURS}.embeddings.patch_embedding.*"),
    (f"{_TOWER}.blocks.#.norm1.*", f"{_LAYER}.layer_norm1.*"),
    (f"{_TOWER}.blocks.#.norm2.*", f"{_LAYER}.layer_norm2.*"),
    (f"{_TOWER}.blocks.#.attn.proj.*", f"{_LAYER}.self_attn.out_proj.*"),
    (f"{_TOWER}.blocks.#.attn.*", f"{_LAYER}.self_attn.*"),
    (f"{_TOWER}.blocks.#.mlp.*", f"{_LAYER}.mlp.*"),
    (f"{_TOWER}.norm.*", f"{_OURS}.post_layernorm.*"),
    ("vision_und_enc_aligner.*", "model.aligner.fc1.*"),
    (f"{_ENCODER}.time_embed.*", "model.timestep_embedder.mlp.*"),
    (f"{_ENCODER}.in_conv.*", "model.patch_embed.in_conv.*"),
    *(
        (f"{theirs}.mid_block.res_blocks.#.{part}", f"{ours}.blocks.#.{renamed}")
        for theirs, ours in ((_ENCODER, "model.patch_embed"), (_DECODER, "model.final_layer"))
        for part, renamed in (
            ("channelwise_norm.weight", "channelwise_norm.gamma"),
            ("channelwise_norm.bias", "channelwise_norm.beta"),
            ("*", "*"),
        )
    ),
    ("vision_gen_enc_aligner.*", "model.patch_embed.proj.*"),
    ("vision_gen_dec_aligner_norm.*", "model.final_layer.norm.*"),
    ("vision_gen_dec_aligner.*", "model.final_layer.proj.*"),
    (f"{_DECODER}.input_norm.*", "model.final_layer.in_norm.*"),
    (f"{_DECODER}.out_convs.0.norm.*", "model.final_layer.out_norm.*"),
    (f"{_DECODER}.out_convs.0.unpatch_conv.*", "model.final_layer.out_conv.*"),
    ("language_model.lm_head.weight", "lm_head.weight"),
    ("language_model.model.*", "model.language_model.*"),
]
_rename = renamer(_TABLE)
_POOL = f"{_TOWER}.attn_pool."  # which nothing reads


def janusflow_config(**token_ids: int) -> HybridGenConfig:
    """The model of the 1.3B's weights; ids are the tokenizer's."""
    text = {
        "model_type": "llama", "vocab_size": 102_400, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 4096,
    }  # fmt: skip
    tower = {
        "model_type": "siglip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 16, "vision_use_head": False,
    }  # fmt: skip
    diffusion = {
        "in_channels": 4, "sample_size": 48, "patch_size": 2, "prediction_type": "velocity", "noise_schedule": "flow",
        "bidirectional": False, "frequency_embedding_size": 768, "convnext_channels": 768, "convnext_depth": 2,
        "time_token": True,
    }  # fmt: skip
    return HybridGenConfig(
        text_config=text, vision_config=tower, diffusion_config=diffusion, aligner_depth=1, **token_ids
    )


def from_janusflow(tensors: dict[str, StoredTensor], begin_image: int) -> dict[str, StoredTensor]:
    """DeepSeek's tensors as ours; unknown names are kept, the tower's pooling head is left out.

    Args:
        begin_image: id of `<begin_of_image>`.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_POOL)}
    begin = tensors.pop(BEGIN, None)
    ours = under_new_names(tensors, _rename)
    changes = {
        "model.timestep_embedder.mlp.linear_1.weight": _time_reversed,
        "model.final_layer.out_conv.weight": torch.neg,
        "model.final_layer.out_conv.bias": torch.neg,
    }
    if begin is not None:
        changes[EMBEDDINGS] = lambda table: table.index_copy(0, torch.tensor([begin_image]), begin.read())
    return ours | {name: _changed(ours[name], change) for name, change in changes.items() if name in ours}


def _changed(tensor: StoredTensor, change) -> StoredTensor:
    return StoredTensor(tensor.shape, tensor.dtype, lambda: change(tensor.read()))


def _time_reversed(weight: Tensor) -> Tensor:
    """(H, F) weights on the sinusoid of 1,000 - t -> on that of t: cosines first, then sines.

    cos(1000 f - t f) = c cos(t f) + s sin(t f) and sin(1000 f - t f) = s cos(t f) - c sin(t f), with c and s of 1000 f.
    """
    at_end = get_timestep_embedding(torch.tensor([1000.0]), weight.shape[1], True, 0)[0].to(weight.dtype)
    (cosine, sine), (on_cosine, on_sine) = at_end.chunk(2), weight.chunk(2, dim=1)
    return torch.cat([on_cosine * cosine + on_sine * sine, on_cosine * sine - on_sine * cosine], dim=1)
