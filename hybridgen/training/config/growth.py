"""The config of a model that outgrows a checkpoint: that of the checkpoint, with the paths and layers it lacks.

What contradicts the checkpoint is refused, first what the section alone tells. The weights follow in `stages.growing`.
"""

from dataclasses import asdict, fields

from hybridgen.bridges.backbones import check_config
from hybridgen.bridges.block_expansion import check_expansion, expanded_config
from hybridgen.checkpoints.loading import check_checkpoint, model_settings
from hybridgen.configuration_hybridgen import HybridGenConfig, check_sizes
from hybridgen.core.recognition import checkpoint_path
from hybridgen.core.values import shown
from hybridgen.training.config.schema import ModelConfig
from hybridgen.training.config.sections import PATH_CONFIGS, said_of, sub_config

# what a section may say beside `grow_from`: what is added, and how
ADDS = ("text_config", *PATH_CONFIGS)
BESIDE = ("chat_template", "fit", "unconditional", "codes_from_codebook", "initializer_range")


def grown_config(model: ModelConfig, vocab_size: int, token_ids: dict[str, int]) -> HybridGenConfig:
    """The config of the checkpoint, with the paths and layers that the section adds. A tokenizer that has more tokens
    than it had adds rows, and ids that were not known."""
    check_growth(model)
    with said_of("model.grow_from"):
        check_checkpoint(model.grow_from)
        settings = model_settings(checkpoint_path(model.grow_from) / "model")
        before = HybridGenConfig.from_dict(settings)
        check_config(before.text_config, "the backbone")
    changes: dict = {"dtype": None}  # weights are trained in fp32
    for part, kind in PATH_CONFIGS.items():
        if (content := getattr(model, part)) is None:
            continue
        if getattr(before, part) is not None:
            raise ValueError(
                f"model.{part} is {shown(content)}, but the checkpoint {model.grow_from}, which model.grow_from names, "
                "has that path already; leave it out"
            )
        changes[part] = sub_config(content, kind, f"model.{part}")
    text, factor = before.text_config, _depth_factor(model, before)
    if factor > 1:
        text = expanded_config(before.text_config, factor)
        with said_of("model.text_config.num_hidden_layers"):
            check_expansion(before.text_config, text)
        if before.diffusion_config is not None and before.diffusion_config.alignment_layer is not None:
            before.diffusion_config.alignment_layer *= factor  # the same states come out behind the copies
            changes["diffusion_config"] = before.diffusion_config
    elif len(changes) == 1:
        raise ValueError(
            f"model.grow_from is {model.grow_from!r}, but nothing is added to it; give diffusion_config, vq_config or "
            "text_config: {num_hidden_layers: N}, or name it as model.from_pretrained"
        )
    if model.initializer_range is not None:
        changes["initializer_range"] = model.initializer_range
    text.vocab_size = max(text.vocab_size, vocab_size)
    changes |= {name: token for name, token in token_ids.items() if settings.get(name) is None}
    return HybridGenConfig.from_dict(settings | changes | {"text_config": text})


def check_growth(model: ModelConfig) -> None:
    """Raises ValueError for what contradicts `grow_from` whatever the checkpoint is."""
    if model.from_pretrained is not None:
        raise ValueError(
            f"model.from_pretrained is {model.from_pretrained!r} and model.grow_from {model.grow_from!r}; keep one: "
            "the first takes a checkpoint as it is, the second adds to one"
        )
    given = {f"model.{field.name}": (getattr(model, field.name), field.default) for field in fields(model)}
    given |= {f"model.tokenizer.{key}": (value, None) for key, value in _changed(model.tokenizer).items()}
    for key in ("tokenizer", "from_pretrained", "grow_from", *ADDS, *BESIDE):
        del given[f"model.{key}"]
    for key, (value, default) in given.items():
        if value != default:
            raise ValueError(
                f"{key} is {shown(value)}, but that comes with the checkpoint that model.grow_from names; leave it out"
            )
    for key, value in (model.text_config or {}).items():
        if key != "num_hidden_layers":
            raise ValueError(
                f"model.text_config.{key} is {shown(value)}, but the backbone comes with the checkpoint that "
                "model.grow_from names, and nothing but num_hidden_layers can grow; leave it out"
            )
    if "first_token_id" in (model.vq_config or {}):
        raise ValueError(
            f"model.vq_config.first_token_id is {shown(model.vq_config['first_token_id'])}, but the tokens of the "
            "checkpoint that model.grow_from names are words already; leave it out"
        )
    if model.initializer_range is not None and all(getattr(model, part) is None for part in PATH_CONFIGS):
        raise ValueError(
            f"model.initializer_range is {model.initializer_range}, but no path is added to the checkpoint that "
            "model.grow_from names, so nothing starts at random; leave it out"
        )


def _changed(section) -> dict:
    """The settings of a section that are not its defaults."""
    return {key: value for key, value in asdict(section).items() if value != getattr(type(section)(), key)}


def _depth_factor(model: ModelConfig, before: HybridGenConfig) -> int:
    """How many layers there are for each of the checkpoint's."""
    asked = (model.text_config or {}).get("num_hidden_layers")
    if asked is None:
        return 1
    key, layers = "model.text_config.num_hidden_layers", before.text_config.num_hidden_layers
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise ValueError(f"{key} is {shown(asked)}; it must be an integer")
    check_sizes(model.text_config, "model.text_config")
    if asked % layers:
        possible = ", ".join(str(times * layers) for times in (2, 3, 4))
        raise ValueError(
            f"{key} is {asked}, but the checkpoint {model.grow_from} has {layers} layers, each of which is copied as "
            f"often as the others; give a multiple: {possible} ..."
        )
    return asked // layers
