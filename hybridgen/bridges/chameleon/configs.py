"""Configurations of Chameleon: `ChameleonConfig` -> ours, and back; and which token each code of its pictures is.

No weights are read here. The vocabulary map of a Chameleon's config.json names every token; those of codes are called
IMGIMG, the code's digits as letters (A = 0), Z. So code 10 is the token IMGIMGBAZ, wherever in the vocabulary that is.
"""

import re

from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

from hybridgen.bridges.chameleon.tensor_names import DECODER, HEAD, VQ_PREFIX, is_dropped, turned
from hybridgen.bridges.comparison import shapes_on_meta
from hybridgen.codecs.chameleon_vq import ChameleonVQ, ChameleonVQConfig
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.paths.chameleon_decoder import ChameleonDecoderConfig

_NOTED = (  # what saving writes of its own, or a class computes
    "dtype", "torch_dtype", "transformers_version", "architectures", "_name_or_path", "model_type", "image_token_id",
    "vq_config",
)  # fmt: skip


def code_tokens(config: ChameleonConfig) -> list[int]:
    """The token id of each code.

    Raises:
        ValueError: the vocabulary map names no token for a code, or two.
    """
    if not config.vocabulary_map:
        raise ValueError("config.json has no vocabulary_map, so nothing says which tokens are the codes of pictures")
    ids: dict[int, int] = {}
    for name, token in config.vocabulary_map.items():
        if not name.startswith("IMGIMG"):
            continue
        if (letters := re.fullmatch("IMGIMG([A-J]+)Z", name)) is None:
            raise ValueError(
                f"vocabulary_map has {name!r}, which names no code; it must be letters from A to J and a Z"
            )
        code = int("".join(str(ord(letter) - ord("A")) for letter in letters[1]))
        if code in ids:
            raise ValueError(f"vocabulary_map names two tokens for code {code}, {ids[code]} and {token}; keep one")
        ids[code] = token
    codes = config.vq_config.num_embeddings
    if (missing := [code for code in range(codes) if code not in ids]) or len(ids) != codes:
        lacks = f"none for code {missing[0]}" if missing else f"one for code {max(ids)}"
        raise ValueError(
            f"vocabulary_map names {len(ids)} tokens of codes, {lacks}, but vq_config.num_embeddings is {codes}; they "
            "must be one for each"
        )
    return [ids[code] for code in range(codes)]


def check_config(config: ChameleonConfig) -> None:
    """Raises ValueError for what no weights are needed to see: codes without tokens, latents that no codebook fits."""
    code_tokens(config)
    if config.vq_config.double_latent:
        raise ValueError("vq_config.double_latent is true, whose latents no codebook fits; a Chameleon has it false")


def vq_config(config: ChameleonConfig, has_decoder: bool) -> ChameleonVQConfig:
    """The settings of the VQ tokenizer as ours."""
    settings = {name: value for name, value in config.vq_config.to_dict().items() if name not in _NOTED}
    return ChameleonVQConfig(**{**settings, "has_decoder": has_decoder})


def hybrid_config(config: ChameleonConfig, token_ids: dict[str, int], side: int) -> HybridGenConfig:
    """Our config of the same model.

    Args:
        token_ids: `vq_token_id` and those of the tokens that frame a picture.
        side: of a picture, in pixels.

    Raises:
        ValueError: its sizes do not fit one another.
    """
    factor, ids = vq_downsample_factor(config.vq_config.to_dict()), code_tokens(config)
    if side % factor:
        raise ValueError(f"pictures have {side} pixels a side, which is not divisible by {factor}, those of a code")
    settings = {name: value for name, value in config.to_dict().items() if name not in _NOTED}
    in_a_row = ids == list(range(ids[0], ids[0] + len(ids)))
    return HybridGenConfig(
        text_config=ChameleonDecoderConfig(**settings),
        vq_config={
            "num_embeddings": len(ids),
            "first_token_id": ids[0] if in_a_row else None,
            "token_ids": None if in_a_row else ids,
            "sample_size": side // factor,
        },
        tie_word_embeddings=config.tie_word_embeddings,
        **token_ids,
    )


def chameleon_config(hybrid: HybridGenConfig, vq: ChameleonVQConfig | None) -> ChameleonConfig:
    """transformers' config of one of our models, with that of its VQ tokenizer.

    Raises:
        ValueError: it is no Chameleon: a part is missing, or of another kind.
    """
    if (kind := hybrid.text_config.model_type) != ChameleonDecoderConfig.model_type:
        raise ValueError(
            f"a Chameleon's backbone is a {ChameleonDecoderConfig.model_type}, but this model's is a {kind}"
        )
    if hybrid.vq_config is None or hybrid.vq_config.code_tokens is None:
        raise ValueError("a Chameleon's codes are tokens of its vocabulary, but this model's are not")
    if vq is None:
        raise ValueError("a Chameleon has Chameleon's VQ tokenizer, but the vq_model of this checkpoint is another")
    settings = {name: value for name, value in hybrid.text_config.to_dict().items() if name not in _NOTED}
    settings["tie_word_embeddings"] = hybrid.tie_word_embeddings
    kept = _NOTED if vq.has_decoder else (*_NOTED, "out_channels")
    of_vq = {name: value for name, value in vq.to_dict().items() if name not in (*kept, "has_decoder")}
    config = ChameleonConfig(**settings, vq_config=ChameleonVQVAEConfig(**of_vq))
    if code_tokens(config) != list(hybrid.vq_config.code_tokens):
        raise ValueError("the vocabulary_map of text_config says other tokens of codes than vq_config; make them equal")
    return config


def expected_shapes(config: ChameleonConfig, has_decoder: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors as transformers saves them, and those of the VQ tokenizer's decoder; no
    memory is used for weights.

    Raises:
        ValueError: no model can be built of these sizes.
    """
    made = shapes_on_meta(lambda: ChameleonForConditionalGeneration(config), "Chameleon")
    shapes = {name: shape for name, shape in made.items() if not is_dropped(name)}
    if config.tie_word_embeddings:
        shapes.pop(HEAD)
    if has_decoder:
        levels = len(config.vq_config.channel_multiplier)
        of_vq = shapes_on_meta(lambda: ChameleonVQ(vq_config(config, True)), "Chameleon")
        named = {VQ_PREFIX + turned(name, levels): shape for name, shape in of_vq.items()}
        shapes |= {name: shape for name, shape in named.items() if name.startswith(DECODER)}
    return shapes
