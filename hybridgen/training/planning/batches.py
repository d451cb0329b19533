"""What a plan is made of: the model's config, its codecs and a batch; read where they are, assumed where not yet.

The batch is the first one of the run itself, if its data can be opened. Otherwise it is made of the config alone: each
source has its share of the tokens, a picture its size, a caption `CAPTION` tokens, and words fill the rest. All that is
assumed is said (`PlannedData.notes`).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MethodType, SimpleNamespace

import diffusers
import torch
from torch import nn

from hybridgen.codecs.frozen import PixelCodec, VAECodec, VQCodec, build_vq, vq_downsample_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.documents import Document, DocumentImage
from hybridgen.core.files import read_json
from hybridgen.core.layout import ImageSegment, SpecialTokens, TextSegment, lay_out
from hybridgen.core.names import PATHS
from hybridgen.core.recognition import user_path
from hybridgen.data.loading import RowLoader, collate
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import files_named, open_source
from hybridgen.image_processing_hybridgen import to_range
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.tokenization_hybridgen import image_token_ids
from hybridgen.training.config import strict
from hybridgen.training.config.checks import check
from hybridgen.training.config.parts import codec_folders, hybrid_config
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.stages.building import build_or_load_tokenizer, build_processor
from hybridgen.training.stages.model import draw_batch_noise

CAPTION = 32  # tokens of a caption, where no data say
VAE_FACTOR, VQ_FACTOR = 8, 16  # pixels along one side of a latent and of a code, where no codec says
CONTROL_TOKENS = ("image", "diffusion", "vq", "begin_image", "end_image")  # last in an assumed vocabulary


@dataclass
class PlannedData:
    """
    Args:
        codecs: folders of `vae` and `vq`, None where there is none.
        names: of the sources.
        notes: what was assumed, in sentences.
    """

    model_config: HybridGenConfig
    batch: dict
    codecs: dict[str, Path | None]
    names: list[str]
    image_processor: object
    notes: list[str] = field(default_factory=list)

    def shares(self) -> dict[str, float]:
        """As a loader's: of no document yet."""
        return dict.fromkeys(self.names, 0.0)

    def pipeline(self, model: nn.Module) -> SimpleNamespace:
        """What a stage asks of a pipeline; its codecs are made of their configs."""
        vae, vq = (self.codecs[name] for name in ("vae", "vq"))
        latent_codec = PixelCodec()
        if model.config.diffusion_config is not None and model.config.diffusion_config.in_channels != 3:
            latent_codec = _NoVAE(model.config.diffusion_config.in_channels) if vae is None else VAECodec(_vae(vae))
        vq_codec = None
        if model.config.vq_config is not None:
            vq_codec = _NoVQ() if vq is None else VQCodec(build_vq(read_json(vq / "config.json")))
        processor = SimpleNamespace(image_processor=self.image_processor)
        processor.pixel_values = MethodType(HybridGenProcessor.pixel_values, processor)
        return SimpleNamespace(model=model, latent_codec=latent_codec, vq_codec=vq_codec, processor=processor)


class _NoVAE:
    """Latents of the right size, by no codec."""

    downsample_factor = VAE_FACTOR

    def __init__(self, channels: int):
        self._channels = channels

    def encode(self, images):
        if not isinstance(images, torch.Tensor):
            return [self.encode(image[None])[0] for image in images]
        height, width = (side // VAE_FACTOR for side in images.shape[-2:])
        return torch.zeros(len(images), self._channels, height, width)


class _NoVQ:
    downsample_factor = VQ_FACTOR

    def encode(self, images):
        sides = [image.shape[-2] // VQ_FACTOR * (image.shape[-1] // VQ_FACTOR) for image in images]
        return torch.zeros(sum(sides), dtype=torch.long)


def _vae(folder: Path) -> nn.Module:
    content = read_json(folder / "config.json")
    kind = getattr(diffusers, content["_class_name"])
    return kind.from_config(content).eval().requires_grad_(False)


def plan_config(path: str | Path, overrides: list[str]) -> tuple[TrainConfig, list[str]]:
    """A config as a run would check it. Where files are not there yet, checks may end at them; that is said.

    Raises:
        ValueError: what a run would refuse, or there is nothing to plan.
    """
    content = strict.read(path)
    for word in overrides:
        strict.override(content, word)
    config = strict.build(TrainConfig, content)
    if config.stage != "model":
        raise ValueError(f"stage is {config.stage!r}; only runs of the stage 'model' can be planned")
    for key in ("from_pretrained", "grow_from", "language_model", "vision_model"):
        folder = getattr(config.model, key)
        if folder is not None and not is_there(folder):
            raise ValueError(
                f"model.{key} {str(folder)!r} is not there, so the size of the model is not known; give a folder "
                "(its config.json is enough, weights are not read)"
            )
    try:
        check(config)
    except ValueError as error:
        if not _missing(config):
            raise
        return config, [f"checked only up to what is not there yet ({error})"]
    return config, []


def planned_data(config: TrainConfig, processes: int) -> PlannedData:
    """
    Raises:
        ValueError: the model's shape is nowhere to be read, or the data are there and cannot be used.
    """
    if missing := _missing(config):
        return _assumed(config, missing)
    loader, hybrid, processor = planned_loader(config, processes)
    codecs = codec_folders(config.codec, config.model.start)
    batch = _with_noise(next(loader), config, hybrid, codecs)
    loader.close()
    return PlannedData(hybrid, batch, codecs, list(loader.shares()), processor.image_processor)


def planned_loader(config: TrainConfig, processes: int = 1) -> tuple[RowLoader, HybridGenConfig, HybridGenProcessor]:
    """The batches of the run itself, which has not begun, with the model's config and the processor. Nothing is saved.

    Raises:
        ValueError: the data or codecs are not there, or cannot be used.
    """
    sources = [open_source(source, config.seed) for source in config.data.sources]
    processor = build_processor(config, sources)
    hybrid = _model_config(config, len(processor.tokenizer), image_token_ids(processor.tokenizer))
    data, longest = config.data, getattr(hybrid.text_config, "max_position_embeddings", None)
    mixture = Mixture(sources, None, data.temperature, data.max_broken, max_positions=longest)
    loader = RowLoader(mixture, processor, data.per_device_batch_size, data.sequence_length, 0, processes, prefetch=0)
    return loader, hybrid, processor


def _with_noise(batch: dict, config: TrainConfig, hybrid: HybridGenConfig, codecs: dict[str, Path | None]) -> dict:
    factor = _factors(hybrid, codecs)["diffusion"]
    return draw_batch_noise(batch, hybrid.diffusion_config, factor, config)


def _missing(config: TrainConfig) -> list[str]:
    """What the config names that is not there, as `key value`, and codecs that it needs and does not name."""
    named = {"model.tokenizer.path": config.model.tokenizer.path}
    named |= {"codec.vae": config.codec.vae, "codec.vq": config.codec.vq}
    for number, source in enumerate(config.data.sources):
        if source.kind not in ("synthetic", "dataset"):
            named[f"data.sources.{number}.source"] = source.source
    missing = [f"{key} {str(value)!r}" for key, value in named.items() if value is not None and not is_there(value)]
    if config.model.from_pretrained is None:
        folders = codec_folders(config.codec, config.model.start)
        needs_vae = (config.model.diffusion_config or {}).get("in_channels", 3) != 3
        for key, folder, needed in (
            ("codec.vae", folders["vae"], needs_vae),
            ("codec.vq", folders["vq"], config.model.vq_config is not None),
        ):
            missing += [f"{key} (names none)"] if needed and folder is None else []
    return missing


def is_there(named: str | Path) -> bool:
    """Whether a file or folder, or the files of a pattern, are there."""
    if user_path(named).exists():
        return True
    try:
        return bool(files_named(str(named)))
    except ValueError:
        return False


def _assumed(config: TrainConfig, missing: list[str]) -> PlannedData:
    folders = codec_folders(config.codec, config.model.start)
    codecs = {name: folder if folder is not None and is_there(folder) else None for name, folder in folders.items()}
    if config.model.grow_from is not None:
        tokenizer = build_or_load_tokenizer(config, [])  # the checkpoint's, which is there
        vocabulary, ids = len(tokenizer), image_token_ids(tokenizer)
    else:
        vocabulary = config.model.tokenizer.vocab_size
        first = vocabulary - len(CONTROL_TOKENS)
        ids = {f"{name}_token_id": first + number for number, name in enumerate(CONTROL_TOKENS)}
    hybrid = _model_config(config, vocabulary, ids)
    tokens = SpecialTokens(
        hybrid.begin_image_token_id, hybrid.end_image_token_id, 0,
        **{path: hybrid.placeholder(path) for path in PATHS if path in hybrid.paths},
    )  # fmt: skip
    rows = _assumed_rows(config, hybrid, tokens, codecs)
    batch = collate(rows, config.data.sequence_length, 0, list(range(len(rows))))
    batch = _with_noise(batch, config, hybrid, codecs)
    names = [source.name for source in config.data.sources]
    side = 384 if hybrid.vision_config is None else hybrid.tower_size
    images = SimpleNamespace(image_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images.normalize = images.generation_values = to_range
    notes = [
        f"not there yet: {', '.join(missing)}; so a batch is assumed: each source has its share of the tokens, a "
        f"caption {CAPTION} tokens"
    ]
    if codecs["vae"] is None and hybrid.diffusion_config is not None and hybrid.diffusion_config.in_channels != 3:
        notes.append(
            f"no codec.vae is there: latents of {VAE_FACTOR} pixels are assumed, and its memory is not counted"
        )
    if codecs["vq"] is None and hybrid.vq_config is not None:
        notes.append(f"no codec.vq is there: codes of {VQ_FACTOR} pixels are assumed, its memory is not counted")
    return PlannedData(hybrid, batch, codecs, names, images, notes)


def _model_config(config: TrainConfig, vocabulary: int, ids: dict[str, int]) -> HybridGenConfig:
    """The model's config: that of a pretrained pipeline, or made for a vocabulary of this size."""
    if config.model.from_pretrained is not None:
        return hybrid_config(config.model)
    return hybrid_config(config.model, vocab_size=vocabulary, **ids)


def _assumed_rows(
    config: TrainConfig, hybrid: HybridGenConfig, tokens: SpecialTokens, codecs: dict[str, Path | None]
) -> list[list[Document]]:
    """Rows filled from the sources by their shares of the tokens; words fill what no picture fits into."""
    length, sources = config.data.sequence_length, config.data.sources
    weights = [weight if isinstance(weight := source.weight, int | float) else weight[0] for source in sources]
    factors = _factors(hybrid, codecs)
    have, rows = [0.0] * len(sources), []
    for _ in range(config.data.per_device_batch_size):
        row, room = [], length
        while room > 0:
            behind = [got / weight if weight else float("inf") for got, weight in zip(have, weights, strict=True)]
            number = behind.index(min(behind))
            document = _assumed_document(sources[number], hybrid, tokens, factors, room)
            row.append(document)
            room -= len(document)
            have[number] += len(document)
        rows.append(row)
    return rows


def _factors(hybrid: HybridGenConfig, codecs: dict[str, Path | None]) -> dict[str, int]:
    """Pixels along one side of a latent and of a code."""
    pixels = hybrid.diffusion_config is None or hybrid.diffusion_config.in_channels == 3
    vae, vq = codecs["vae"], codecs["vq"]
    return {
        "diffusion": VAE_FACTOR if vae is None and not pixels else 1 if vae is None else vae_factor(vae),
        "vq": VQ_FACTOR if vq is None else vq_downsample_factor(read_json(vq / "config.json")),
    }


def vae_factor(folder: Path) -> int:
    return 2 ** (len(read_json(folder / "config.json").get("block_out_channels", [0])) - 1)


def _assumed_document(
    source: SourceConfig, hybrid: HybridGenConfig, tokens: SpecialTokens, factors: dict[str, int], room: int
) -> Document:
    """A caption with its picture, or words, in at most `room` tokens."""
    segments: list = [TextSegment([1] * min(CAPTION, room))]
    images, read = [], [source.read] if isinstance(source.read, str) else list(source.read)
    reads = any(path in hybrid.paths for path in read)
    holds_pictures = source.form != "text" and (source.write is not None or (reads and source.loss_on != "all"))
    if holds_pictures:
        paths = [source.write] if source.write else read
        if source.write and source.clean_copy:
            paths += [path for path in read if path != source.write]
        for path in paths:
            segment, pixels = _assumed_image(path, source, hybrid, factors)
            segments.append(segment)
            written = DocumentImage(path, pixels, write=segment.write, span=(0, 0))  # nothing is cut here
            images += [written, replace(written, write=False)][: 1 + segment.clean_copy]
    document = Document(lay_out(segments, tokens), images)
    if not holds_pictures or len(document) > room:
        return Document(lay_out([TextSegment([1] * room)], tokens))
    return document


def _assumed_image(
    path: str, source: SourceConfig, hybrid: HybridGenConfig, factors: dict[str, int]
) -> tuple[ImageSegment, torch.Tensor]:
    write = path == source.write
    if path == "understanding":
        segment = ImageSegment(path, hybrid.connector.tokens(hybrid.feature_grid), hybrid.is_bidirectional(path))
        return segment, torch.zeros(3, hybrid.tower_size, hybrid.tower_size)
    part = hybrid.diffusion_config if path == "diffusion" else hybrid.vq_config
    side = factors[path] * (part.patch_size if path == "diffusion" else 1)  # pixels along one side of a token
    size = part.sample_size * factors[path]
    height, width = source.height or size, source.width or size
    if source.image_tokens is not None:
        height = width = int(source.image_tokens**0.5) * side
    count = height // side * (width // side) + (path == "diffusion" and part.time_token)
    segment = ImageSegment(path, count, hybrid.is_bidirectional(path), write, write and source.clean_copy)
    return segment, torch.zeros(3, height, width)
