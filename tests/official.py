"""DeepSeek's layout and rules, written down from its code without ours: names and shapes, the code loop, the nearest
code, pictures. What `bridges` is compared with. Not a test itself."""

import itertools

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration

TOWER = {"width": 1024, "layers": 24, "mlp": 4096, "patch": 16, "side": 384}
VQ_16 = {"base": 128, "multipliers": (1, 1, 2, 2, 4), "blocks": 2, "z": 256, "width": 8, "codes": 16384}
SIZES = {  # width, layers, FFN
    "Janus-1.3B": {"hidden": 2048, "layers": 24, "heads": 16, "ffn": 5632, "vocabulary": 102400},
    "Janus-Pro-1B": {"hidden": 2048, "layers": 24, "heads": 16, "ffn": 5632, "vocabulary": 102400},
    "Janus-Pro-7B": {"hidden": 4096, "layers": 30, "heads": 32, "ffn": 11008, "vocabulary": 102400},
}
Shapes = dict[str, tuple[int, ...]]


def official_shapes(hidden: int, layers: int, heads: int, ffn: int, vocabulary: int) -> Shapes:
    """Every tensor of a Janus with SigLIP-L-16-384 and VQ-16, by DeepSeek's names."""
    return {
        **_tower(**TOWER),
        **_vq(**VQ_16),
        **_linear("aligner.layers.0", hidden, TOWER["width"]),
        **_linear("aligner.layers.2", hidden, hidden),
        **_linear("gen_aligner.layers.0", hidden, 8),
        **_linear("gen_aligner.layers.2", hidden, hidden),
        **_linear("gen_head.output_mlp_projector", hidden, hidden),
        **_linear("gen_head.vision_head", 16384, hidden),
        "gen_embed.weight": (16384, 8),
        **_llama(hidden, layers, ffn, vocabulary),
    }


def official_config(hidden: int, layers: int, heads: int, ffn: int, vocabulary: int) -> dict:
    """The config.json that belongs to it."""
    aligner = {"depth": 2, "projector_type": "mlp_gelu", "n_embed": hidden}
    return {
        "architectures": ["MultiModalityCausalLM"], "model_type": "multi_modality", "torch_dtype": "bfloat16",
        "vision_config": {
            "cls": "CLIPVisionTower", "model_type": "vision",
            "params": {
                "image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {"cls": "MlpProjector", "params": {**aligner, "input_dim": 1024}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": {**aligner, "input_dim": 8}},
        "gen_head_config": {
            "cls": "vision_head",
            "params": {"image_token_embed": hidden, "image_token_size": 16384, "n_embed": hidden},
        },
        "language_config": {
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 16384,
            "vocab_size": vocabulary, "torch_dtype": "bfloat16",
        },
    }  # fmt: skip


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, rows: int, columns: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (rows, columns, kernel, kernel), f"{name}.bias": (rows,)}


def _tower(width: int, layers: int, mlp: int, patch: int, side: int) -> Shapes:
    top = "vision_model.vision_tower"
    shapes = {f"{top}.pos_embed": (1, (side // patch) ** 2, width), **_norm(f"{top}.norm", width)}
    shapes |= _conv(f"{top}.patch_embed.proj", width, 3, patch)
    for n in range(layers):
        block = f"{top}.blocks.{n}"
        shapes |= {**_norm(f"{block}.norm1", width), **_norm(f"{block}.norm2", width)}
        shapes |= {**_linear(f"{block}.attn.qkv", 3 * width, width), **_linear(f"{block}.attn.proj", width, width)}
        shapes |= {**_linear(f"{block}.mlp.fc1", mlp, width), **_linear(f"{block}.mlp.fc2", width, mlp)}
    pool = f"{top}.attn_pool"
    shapes |= {f"{pool}.latent": (1, 1, width), **_linear(f"{pool}.q", width, width), **_norm(f"{pool}.norm", width)}
    shapes |= {**_linear(f"{pool}.kv", 2 * width, width), **_linear(f"{pool}.proj", width, width)}
    return {**shapes, **_linear(f"{pool}.mlp.fc1", mlp, width), **_linear(f"{pool}.mlp.fc2", width, mlp)}


def _vq(base: int, multipliers: tuple[int, ...], blocks: int, z: int, width: int, codes: int) -> Shapes:
    top, last = "gen_vision_model", base * multipliers[-1]
    shapes = {**_conv(f"{top}.quant_conv", width, z, 1), **_conv(f"{top}.post_quant_conv", z, width, 1)}
    shapes |= {f"{top}.quantize.embedding.weight": (codes, width), f"{top}.quantize.codebook_used": (65536,)}
    for side in ("encoder", "decoder"):
        here, down = f"{top}.{side}", side == "encoder"
        shapes |= _conv(f"{here}.conv_in", base if down else last, 3 if down else z, 3)
        shapes |= _conv(f"{here}.conv_out", z if down else 3, last if down else base, 3)
        shapes |= _norm(f"{here}.norm_out", last if down else base)
        shapes |= {**_res(f"{here}.mid.0", last, last), **_attn(f"{here}.mid.1", last)}
        shapes |= _res(f"{here}.mid.2", last, last)
        channels = base if down else last
        for n, multiplier in enumerate(multipliers if down else reversed(multipliers)):
            level, out = f"{here}.conv_blocks.{n}", base * multiplier
            deepest = n == (len(multipliers) - 1 if down else 0)
            for k in range(blocks if down else blocks + 1):
                shapes |= _res(f"{level}.res.{k}", channels, out)
                channels = out
                if deepest:
                    shapes |= _attn(f"{level}.attn.{k}", out)
            if n < len(multipliers) - 1:
                shapes |= _conv(f"{level}.{'down' if down else 'up'}sample.conv", out, out, 3)
    return shapes


def _res(name: str, channels: int, out: int) -> Shapes:
    shapes = {**_norm(f"{name}.norm1", channels), **_conv(f"{name}.conv1", out, channels, 3)}
    shapes |= {**_norm(f"{name}.norm2", out), **_conv(f"{name}.conv2", out, out, 3)}
    return shapes if channels == out else {**shapes, **_conv(f"{name}.nin_shortcut", out, channels, 1)}


def _attn(name: str, channels: int) -> Shapes:
    convs = [_conv(f"{name}.{part}", channels, channels, 1) for part in ("q", "k", "v", "proj_out")]
    return {**_norm(f"{name}.norm", channels), **dict(itertools.chain.from_iterable(conv.items() for conv in convs))}


def _llama(hidden: int, layers: int, ffn: int, vocabulary: int) -> Shapes:
    top = "language_model.model"
    shapes = {f"{top}.embed_tokens.weight": (vocabulary, hidden), f"{top}.norm.weight": (hidden,)}
    for n in range(layers):
        layer = f"{top}.layers.{n}"
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (ffn, hidden) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, ffn)}
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return {**shapes, "language_model.lm_head.weight": (vocabulary, hidden)}


# -------------------------------------------------------------------------------------------------------- rules


def official_prompt(user: str, roles: tuple[str, str], system: str = "") -> str:
    """One question, and the assistant's turn open."""
    return (f"{system}\n\n" if system else "") + f"{roles[0]}: {user}\n\n{roles[1]}:"


@torch.no_grad()
def official_codes(janus: JanusForConditionalGeneration, ids: list[int], pad: int, count: int, weight: float) -> Tensor:
    """The likeliest codes for one prompt that ends with the begin-of-image token, as generation_inference.py draws
    them: the even rows hold prompts, the odd ones pads between the first token and the last, and no mask hides them."""
    tokens = torch.tensor([ids, ids])
    tokens[1::2, 1:-1] = pad
    embeds, cache, codes = janus.get_input_embeddings()(tokens), None, []
    for _ in range(count):
        out = janus.model.language_model(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        cache = out.past_key_values
        logits = janus.model.generation_head(out.last_hidden_state[:, -1])
        given, silent = logits[0::2], logits[1::2]
        codes.append((silent + weight * (given - silent)).argmax(-1))
        embeds = janus.prepare_embeddings_for_image_generation(codes[-1].repeat_interleave(2)[:, None])
    return torch.stack(codes, dim=1)


@torch.no_grad()
def official_encode(vqmodel, images: Tensor) -> Tensor:
    """Codes (T,): directions of latents against directions of the codebook."""
    z = vqmodel.quant_conv(vqmodel.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)
    z, book = F.normalize(z, dim=-1), F.normalize(vqmodel.quantize.embedding.weight, dim=-1)
    return torch.cdist(z.double(), book.double()).argmin(-1)


def official_pixels(image: Image.Image, side: int) -> Tensor:
    """A picture as the tower takes it: short side cut off by int(), beside it gray 127."""
    longest = max(image.size)
    width, height = (max(int(length / longest * side), 14) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (127, 127, 127))
    square.paste(image, ((longest - width) // 2, (longest - height) // 2))
    return torch.from_numpy((np.asarray(square) / 255.0 - 0.5) / 0.5).permute(2, 0, 1).float()


def official_picture(pixels: Tensor) -> np.ndarray:
    """(3, H, W) in about [-1, 1] -> levels, cut off."""
    return np.clip((pixels.permute(1, 2, 0).numpy() + 1) / 2 * 255, 0, 255).astype(np.uint8)
