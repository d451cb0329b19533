"""What every bridge asks of a checkpoint's folder: its JSON files, its chat template, what kind of model it holds; and
a folder of ours as a pipeline would save it, from tensors on disk.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from hybridgen.bridges.weights import StoredTensor, save_weights
from hybridgen.checkpoints.loading import INDEX, PIPELINE, quiet
from hybridgen.core.files import read_json
from hybridgen.core.messages import default_template, named_templates
from hybridgen.core.recognition import check_files, check_json, require_folder
from hybridgen.core.utf8 import read_text
from hybridgen.core.values import one_line
from hybridgen.pipeline_hybridgen import HybridGenPipeline

# keys of generation_config.json that each layout has in its own way, or that have no effect
LIBRARY_KEYS = ("transformers_version", "_from_model_config")
VERSION_KEYS = ("transformers_version",)


def read_if_there(file: Path) -> dict:
    """A JSON file's content; empty where there is none."""
    return read_json(file) if file.is_file() else {}


def template_of(folder: Path) -> str | None:
    """The chat template in a folder of a processor or tokenizer, in any of the files where versions have put it."""
    if (file := folder / "chat_template.jinja").is_file():
        return read_text(file, "chat template")
    files = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
    templates = [read_if_there(folder / name).get("chat_template") for name in files]
    return next((default_template(named_templates(each)) for each in templates if each is not None), None)


def picture_settings(folder: Path) -> dict:
    """The settings of a checkpoint's image processor, in transformers' layout; empty where there are none."""
    settings = read_if_there(folder / "preprocessor_config.json")
    return settings or read_if_there(folder / "processor_config.json").get("image_processor", {})


def open_tokenizer(
    folder: Path, needed: Callable[[PreTrainedTokenizerBase], list[str]], kind: str
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, without a chat template, which a bridge keeps apart.

    Args:
        needed: the tokens that stand for pictures, by the tokenizer.
        kind: whose tokenizer it is, such as "Chameleon".

    Raises:
        ValueError: it is missing, cannot be read, or lacks a needed token or the end of a text.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no tokenizer.json, so the tokens that stand for images are unknown")
    check_json(file)
    try:
        Tokenizer.from_file(str(file))
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the libraries raise ten kinds of error; the folder's tokenizer is the cause of all
        raise ValueError(f"the tokenizer in {folder} cannot be loaded ({one_line(error)}); copy its files") from error
    tokenizer.chat_template = None
    for name in ("chat_template", "is_local", "local_files_only"):  # which loading adds, and saving would write
        tokenizer.init_kwargs.pop(name, None)
    known = tokenizer.get_vocab()
    if missing := [name for name in needed(tokenizer) if name not in known]:
        raise ValueError(
            f"the tokenizer in {folder} has no {', '.join(missing)}, which every {kind} needs; take the one that "
            "belongs to the checkpoint"
        )
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer in {folder} names no eos_token; say it in tokenizer_config.json")
    return tokenizer


def begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer by default begins a text with the begin-of-text token."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def other_tokens(tokenizer: PreTrainedTokenizerBase, image_token: str) -> Iterator[str]:
    """Where transformers, which tokenises a whole prompt at once, makes other tokens of it than we do, one per line: a
    text is cut here at pictures and where the assistant's turns begin and end (`processing_hybridgen`)."""

    def apart(*parts: str) -> list[int]:
        return sum((tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts), [])

    begin = tokenizer.bos_token if begins_texts(tokenizer) else ""
    if tokenizer(f"a b{image_token}\nb c")["input_ids"] != apart(f"{begin}a b", image_token, "\nb c"):
        yield "words that open a text or stand behind a picture: of this tokenizer, transformers gets other tokens"
    if apart("a:b c") != apart("a:", "b c"):
        yield "words behind an answer: before each turn, this tokenizer puts a space more here than in transformers"


def config_of(folder: Path) -> dict | None:
    """config.json of a model in another library's layout; None = the folder is a checkpoint of hybridgen.

    Raises:
        ValueError: it is neither.
    """
    require_folder("checkpoint", folder, "give the folder of a checkpoint")
    check_files(folder)
    if (folder / INDEX).is_file():
        kind = read_json(folder / INDEX).get("_class_name")
        if kind != PIPELINE:
            raise ValueError(f"{folder} holds a {kind}, which is neither a model of a bridge nor one of hybridgen")
        return None
    return read_json(folder / "config.json")


def kind_of(config: dict) -> str:
    """What a model is, as its config.json calls it."""
    return ", ".join(config.get("architectures") or []) or config.get("model_type") or "model of an unknown kind"


def generation_settings(folder: Path) -> dict:
    """generation_config.json; empty if there is none."""
    return read_if_there(folder / "generation_config.json")


def generation_of(folder: Path, without: tuple[str, ...] = LIBRARY_KEYS) -> GenerationConfig:
    """The settings of generation_config.json; none where transformers would refuse to save them again (a temperature
    without sampling).

    Args:
        without: keys that are left out.
    """
    kept = {name: value for name, value in generation_settings(folder).items() if name not in without}
    try:
        config = GenerationConfig(**kept)
        config.validate(strict=True)
    except (ValueError, TypeError):
        config = GenerationConfig()
    return config


def only_in_hybridgen(folder: Path, defaults: dict[str, dict]) -> Iterator[str]:
    """What of a checkpoint of ours other layouts have no place for: folders beside the model, and how it draws.

    Args:
        defaults: settings of drawing by path that are the model's own, and so not lost.
    """
    index = read_json(folder / INDEX)
    for part in ("vae", "scheduler"):
        if isinstance(index.get(part), list) and index[part][0] is not None:
            yield f"{part}/, which belongs to the diffusion path"
    for path, settings in (index.get("sampling_defaults") or {}).items():
        for name, value in settings.items():
            if defaults.get(path, {}).get(name) != value:
                yield f"model_index.json: {name} {value} as the default of the {path} path"


@contextmanager
def friendly_config_errors(file: Path, kind: str) -> Iterator[None]:
    """Errors of config classes about values become a ValueError of one sentence that names the file.

    Args:
        kind: what the file should describe, such as "Janus".
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise ValueError(f"{file} does not describe a {kind}: {one_line(error)}") from error


def said_dtype(folder: Path, said: str | torch.dtype | None, otherwise: torch.dtype) -> torch.dtype:
    """The dtype that a config says. Raises ValueError where it is none."""
    dtype = otherwise if said is None else getattr(torch, said, None) if isinstance(said, str) else said
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{folder}: config.json says dtype {said!r}, which is none; say bfloat16 or another")
    return dtype


def settle_tied_head(config, tensors: dict[str, StoredTensor], dropped: dict[str, str], head: str, table: str) -> None:
    """Decide by the weights whether the head is the embeddings, and drop it if it is.

    Args:
        config: of the whole model; its `tie_word_embeddings` may say what is not so.
        head, table: the names of the two tensors.
    """
    if head not in tensors or not config.tie_word_embeddings:
        return  # no head: tied if the config says so, and missing if not
    if table in tensors and torch.equal(tensors[head].read(), tensors[table].read()):
        dropped[head] = "the embeddings once more"
        tensors.pop(head)
    else:
        config.tie_word_embeddings = False


def write_hybridgen(
    pipeline: HybridGenPipeline,
    folder: Path,
    weights: dict[str, dict[str, StoredTensor]],
    dtypes: dict[str, torch.dtype],
    max_shard_size: int | str,
) -> None:
    """A folder as `HybridGenPipeline.save_pretrained` writes it, from tensors on disk.

    Args:
        pipeline: its modules may be on the meta device, without weights.
        weights: of `model`, and of `vq_model` where there is one, by the names of their state dicts.
        dtypes: that their configs say.
    """
    pipeline.save_config(folder)
    pipeline.processor.save_pretrained(folder / "processor")
    for name, tensors in weights.items():
        part = getattr(pipeline, name)
        (folder / name).mkdir()
        part.config.dtype, part.config.architectures = dtypes[name], [type(part).__name__]
        part.config.save_pretrained(folder / name)
        part.generation_config.save_pretrained(folder / name) if part.can_generate() else None
        save_weights(folder / name, {n: tensors[n] for n in part.state_dict() if n in tensors}, max_shard_size)
    pipeline.save_index_files(folder)
