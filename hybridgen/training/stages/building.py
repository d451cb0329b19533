"""The parts of a model stage, from its config: sources, tokenizer, codecs, model, processor.

The cheapest comes first: sources are opened and checked before a weight is made. Only the model's initial weights are
random; `seed` decides them. No weight is in memory twice: a pretrained part takes the place of random weights that are
gone by then, and of several processes that share a model (FSDP2) one makes the weights, the others only shapes. The
tokenizer of a model from scratch is trained once per run and saved in its folder, so a run that goes on does not depend
on its sources being the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import psutil
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hybridgen.bridges.backbones import check_text, decoder_of
from hybridgen.bridges.chat_templates import add_role_tokens, load_template
from hybridgen.bridges.pretrained_parts import image_settings
from hybridgen.checkpoints.loading import require_weights
from hybridgen.codecs.frozen import VAECodec, VQCodec, load_vq
from hybridgen.configuration_hybridgen import HybridGenConfig, check_memory
from hybridgen.core.messages import DEFAULT_CHAT_TEMPLATE, parts
from hybridgen.core.names import CHAT_TEMPLATES, WRITING_PATHS
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.sources import open_source
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.paths.modality_experts import EXPERT, copy_into_experts
from hybridgen.paths.moe import router_weight
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, add_image_tokens, build_tokenizer, image_token_ids
from hybridgen.sampling.schedules import scheduler_named
from hybridgen.tokenization_hybridgen import has_role_tokens
from hybridgen.training.config.parts import codec_factors, hybrid_config, tower_folder
from hybridgen.training.config.schema import FROM_SCRATCH, ModelConfig, SamplingConfig, TrainConfig
from hybridgen.training.config.sections import said_of
from hybridgen.training.distributed.fsdp import drop_weights
from hybridgen.training.stages.growing import (
    empty_model,
    grown_tokenizer,
    saved_config,
    take_checkpoint,
)
from hybridgen.training.state.checkpointing import saved_steps

LOOK = 100  # records of a source that are looked at for a conversation, where there is no chat template


@dataclass
class Parts:
    """The components of the pipeline that will be saved, and the data."""

    pipeline: HybridGenPipeline
    sources: list[DocumentSource]
    validation: list[DocumentSource]


def open_sources(config: TrainConfig) -> tuple[list[DocumentSource], list[DocumentSource]]:
    """The sources of training and of validation. Where the samples of their tars stand is kept beside the caches, which
    several runs may share, or in the run's folder."""
    index = Path(config.data.cache or config.output_dir) / "index"
    training, held_out = config.data.sources, config.validation.sources
    return tuple([open_source(source, config.seed, index) for source in each] for each in (training, held_out))


def build_parts(config: TrainConfig, weights: bool = True) -> Parts:
    """
    1. Open the sources.
    2. Load or train the tokenizer, find the chat template, load the codecs.
    3. Make the model, from scratch or out of a checkpoint, and the processor that fits it.

    Args:
        weights: of the model; without them it is on the meta device, to be filled by another process.

    Raises:
        ValueError: a file is missing or of another kind; in one sentence.
    """
    sources, validation = open_sources(config)
    tokenizer = None if config.model.from_pretrained else build_or_load_tokenizer(config, sources)
    template = find_template(config, tokenizer)
    require_template(template, config, [*sources, *validation])
    vq = None if config.codec.vq is None else load_vq(config.codec.vq)
    vae = None if config.codec.vae is None else load_vae(config.codec.vae)
    start = _start(config.model, weights)
    if start is not None:
        vq, vae = start.vq_model if vq is None else vq, start.vae if vae is None else vae
    if config.model.from_pretrained is not None:
        model, processor = start.model.float(), start.processor  # half precision loses an optimizer's small steps
        processor.chat_template = template
        processor.fit = config.model.fit or processor.fit
        processor.unconditional = config.model.unconditional or processor.unconditional
    else:
        model = build_model(config.model, tokenizer, config.seed, weights)
        if config.model.codes_from_codebook and weights:
            start_from_codebook(model, VQCodec(vq).codebook, config.seed)
        vae_factor = 1 if vae is None else VAECodec(vae).downsample_factor
        vq_factor = None if vq is None else VQCodec(vq).downsample_factor
        processor = _processor(config.model, model.config, tokenizer, template, vae_factor, vq_factor)
    defaults = _sampling_defaults(config.sampling, model.config, _drawn_before(start, model.config))
    scheduler = _scheduler(config.sampling, model.config, None if start is None else start.scheduler)
    return Parts(HybridGenPipeline(model, processor, scheduler, vae, vq, defaults), sources, validation)


def _start(model: ModelConfig, weights: bool) -> HybridGenPipeline | None:
    """The checkpoint that training begins with; empty where its weights are another process', or a larger model's."""
    if model.start is None:
        return None
    is_whole = weights and model.grow_from is None
    return load_pipeline(model.start, None if is_whole else empty_model(saved_config(model.start)))


def _drawn_before(start: HybridGenPipeline | None, model: HybridGenConfig) -> dict[str, dict]:
    """How each path draws unless the config says otherwise: as in the checkpoint, and one that it lacks as from
    scratch."""
    if start is None:
        return FROM_SCRATCH
    known = start.model.config.paths
    new = {path: FROM_SCRATCH[path] for path in WRITING_PATHS if path in model.paths and path not in known}
    return new | (start.sampling_defaults or {})


def _processor(
    model: ModelConfig,
    hybrid: HybridGenConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: str | dict | None,
    vae_factor: int,
    vq_factor: int | None,
) -> HybridGenProcessor:
    """A processor for a model from scratch, or for one that grew: then with the settings that the checkpoint's had."""
    start = None if model.grow_from is None else HybridGenProcessor.from_pretrained(model.grow_from)
    return HybridGenProcessor.for_config(
        hybrid,
        tokenizer,
        _tower_images(model, hybrid) if start is None else start.image_processor,
        vae_factor,
        vq_factor,
        None if start is None else start.default_size,
        chat_template=template,
        fit=model.fit or ("crop" if start is None else start.fit),
        unconditional=model.unconditional or ("empty" if start is None else start.unconditional),
    )


def _sampling_defaults(sampling: SamplingConfig, model: HybridGenConfig, before: dict[str, dict]) -> dict | None:
    """How the checkpoint draws: as the config says, else as `before`; None where neither says anything."""
    defaults = {name: settings for name, settings in before.items() if name in model.paths or name == "chat"}
    for path in WRITING_PATHS:
        if path in model.paths and (settings := {**defaults.get(path, {}), **sampling.given(path)}):
            defaults[path] = settings
    return (defaults if sampling.reread is None else {**defaults, "chat": {"reread": sampling.reread}}) or None


def _scheduler(sampling: SamplingConfig, model: HybridGenConfig, before=None):
    """The scheduler that the config names, else `before`; None = the noise process' own."""
    return before if sampling.scheduler is None else scheduler_named(sampling.scheduler, model.diffusion_config)


def check_fits(config: TrainConfig) -> None:
    """Raises ValueError for folders without weights, and for a model or a batch that no memory of this machine holds,
    before anything is opened."""
    for key, folder in (
        ("codec.vq", config.codec.vq),
        ("codec.vae", config.codec.vae),
        ("model.language_model", config.model.language_model),
        ("model.vision_model", config.model.vision_model),
    ):
        if folder is not None:
            with said_of(key):
                require_weights(tower_folder(folder) if key == "model.vision_model" else Path(folder))
    hybrid = hybrid_config(config.model)
    router_weight(hybrid.text_config, config.objective.router_weight)
    if config.model.from_pretrained is None:  # else its weights are there already
        check_memory(hybrid, "model", bytes_per_weight=4)
    rows, length, width = config.data.per_device_batch_size, config.data.sequence_length, hybrid.text_config.hidden_size
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    memory += sum(torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count()))
    if (needed := rows * length * width * 4) > memory:
        raise ValueError(
            f"data.per_device_batch_size {rows} rows of data.sequence_length {length} tokens need at least "
            f"{needed / 1e9:,.0f} GB for each layer's output alone, but this machine has {memory / 1e9:,.0f} GB; make "
            "one of them smaller"
        )


def build_processor(config: TrainConfig, sources: list[DocumentSource]) -> HybridGenProcessor:
    """The processor of a run without its model: a tokenizer from scratch is trained, and not saved.

    Raises:
        ValueError: a file is missing or of another kind; in one sentence.
    """
    if config.model.from_pretrained is not None:
        processor = HybridGenProcessor.from_pretrained(config.model.from_pretrained)
        processor.chat_template = find_template(config)
        processor.fit = config.model.fit or processor.fit
        processor.unconditional = config.model.unconditional or processor.unconditional
        return processor
    tokenizer = build_or_load_tokenizer(config, sources, save=False)
    hybrid = hybrid_config(config.model, vocab_size=len(tokenizer), **image_token_ids(tokenizer))
    factors = codec_factors(hybrid, config.codec, config.model.start)
    template = find_template(config, tokenizer)
    return _processor(config.model, hybrid, tokenizer, template, factors.get("diffusion", 1), factors.get("vq"))


def _tower_images(config: ModelConfig, hybrid: HybridGenConfig) -> HybridGenImageProcessor | None:
    """How a pretrained tower's pixels are normalised, as its folder says; None = as for one from scratch."""
    if config.vision_model is None:
        return None
    with said_of("model.vision_model"):
        return image_settings(config.vision_model, hybrid.tower_size)


def find_template(config: TrainConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> str | dict | None:
    """The chat template that the config names, else that of the checkpoint it starts from, else the tokenizer's (None =
    that of the checkpoint)."""
    named, own = config.model.chat_template, None
    if config.model.start is not None:
        processor = HybridGenProcessor.from_pretrained(config.model.start)
        own, tokenizer = processor.chat_template, processor.tokenizer if tokenizer is None else tokenizer
    if named is not None:
        with said_of("model.chat_template"):
            return load_template(named, tokenizer)
    return own or tokenizer.chat_template or (DEFAULT_CHAT_TEMPLATE if has_role_tokens(tokenizer) else None)


def require_template(template: str | dict | None, config: TrainConfig, sources: list[DocumentSource]) -> None:
    """Raises ValueError if there is no chat template, and conversations are to be trained on, or sampled."""
    if template is not None:
        return
    folder = config.model.start or config.model.tokenizer.path or config.model.language_model
    needing = next((where for source in sources if (where := first_conversation(source)) is not None), None)
    if needing is None and not config.sampling.every:
        return
    what = f"{needing}: a conversation" if needing else f"sampling.every is {config.sampling.every}: a prompt"
    raise ValueError(
        f"{what} needs a chat template, and the tokenizer of {folder} has none; give model.chat_template (a file of "
        f"Jinja, or {', '.join(CHAT_TEMPLATES)}), or train on texts without one (form: text)"
    )


def first_conversation(source: DocumentSource) -> str | None:
    """What to call the first record of a source that needs a chat template; `LOOK` records are looked at."""
    for cursor in range(LOOK if source.records is None else min(LOOK, source.records)):
        try:
            if not source.record(cursor).get("plain", False):
                return source.where(cursor)
        except ValueError:  # broken: the mixture lists it
            continue
    return None


def build_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int, weights: bool = True
) -> HybridGenForConditionalGeneration:
    """Random weights of this seed, and pretrained ones of the parts or the checkpoint that the config names; or no
    `weights`, only their shapes."""
    hybrid = hybrid_config(config, vocab_size=len(tokenizer), **image_token_ids(tokenizer))
    if config.grow_from is None:  # a checkpoint has them, and may have several that end a text
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(hybrid.text_config, name, getattr(tokenizer, name))
    if not weights:
        return empty_model(hybrid)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HybridGenForConditionalGeneration(hybrid)
        if config.embedding_std is not None:
            embeddings = model.model.language_model.embed_tokens.weight
            embeddings.data *= config.embedding_std / embeddings.std()
        if config.language_model is not None:
            take_language_model(model, config.language_model)
    if config.vision_model is not None:
        take_vision_model(model, config.vision_model)
    if config.grow_from is not None:
        take_checkpoint(model, config.grow_from, tokenizer)
    return model


def take_language_model(model: HybridGenForConditionalGeneration, folder: str) -> None:
    """Let a pretrained decoder be the backbone, in place of the random one, which goes before the other is read."""
    backbone = model.model.language_model
    drop_weights(backbone)
    pretrained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pretrained.resize_token_embeddings(model.config.vocab_size)
    weights = copy_into_experts(backbone, decoder_of(pretrained).state_dict())
    backbone.load_state_dict({k: v.clone() if EXPERT in k else v for k, v in weights.items()}, assign=True)
    model.lm_head.load_state_dict(pretrained.get_output_embeddings().state_dict())
    model.tie_weights()
    check_text(model, pretrained)


def take_vision_model(model: HybridGenForConditionalGeneration, folder: str) -> None:
    """Let a pretrained tower, also that of a SigLIP with a text tower or of a whole checkpoint, be the model's own."""
    ours = model.model.vision_model
    drop_weights(ours)
    tower = AutoModel.from_pretrained(tower_folder(folder), dtype=torch.float32)
    weights = getattr(tower, "vision_model", tower).state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict() if name in weights}, assign=True)


@torch.no_grad()
def start_from_codebook(model: HybridGenForConditionalGeneration, codebook: Tensor, seed: int) -> None:
    """Let similar codes start with similar weights: their embeddings, and their rows of the generation head, become
    random projections of the codebook (V, D). Otherwise what is learnt of one code is not learnt of similar ones (code
    loss after 320 steps of an early demo: 3.1 without, 1.5 with this)."""
    vectors = (codebook - codebook.mean(0)).float()
    generator = torch.Generator().manual_seed(seed)
    embeddings, rows = model.model.generation_embeddings.weight, model.model.generation_head.vision_head.weight
    for weight, std in ((embeddings, 1.0), (rows, model.config.initializer_range)):
        projected = vectors @ torch.randn(vectors.shape[1], weight.shape[1], generator=generator)  # V, width
        weight.copy_(projected / projected.std() * std)


def build_or_load_tokenizer(
    config: TrainConfig, sources: list[DocumentSource], save: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint that grows, of a pretrained part, of a folder, of this run when it goes on, or one
    trained now."""
    settings, saved = config.model.tokenizer, Path(config.output_dir) / "tokenizer"
    if config.model.grow_from is not None:
        return grown_tokenizer(config.model.grow_from, roles=config.model.chat_template == "hybridgen")
    folder = settings.path or config.model.language_model
    if folder is None and config.resume != "never" and saved_steps(saved.parent / "state") and saved.is_dir():
        folder = str(saved)
    if folder is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        add_image_tokens(tokenizer)
        if config.model.chat_template == "hybridgen":
            add_role_tokens(tokenizer)
        return tokenizer
    tokenizer = build_tokenizer(texts(sources, settings.samples), settings.vocab_size)
    if save:
        tokenizer.save_pretrained(saved)
    return tokenizer


def texts(sources: list[DocumentSource], samples: int) -> Iterator[str]:
    """The texts of about `samples` records, the same number from each source."""
    per_source = -(-samples // len(sources))
    for source in sources:
        for cursor in range(per_source if source.records is None else min(source.records, per_source)):
            try:
                messages = source.record(cursor)["messages"]
            except ValueError:
                continue  # broken: the mixture lists it
            for message in messages:
                yield from (part["text"] for part in parts(message) if part["type"] == "text")


def load_vae(folder: str) -> nn.Module:
    """An autoencoder of diffusers, of the class that its config names; frozen."""
    return diffusers.AutoModel.from_pretrained(folder).eval().requires_grad_(False)
