"""A hybrid from pretrained parts: a Llama or Qwen learns to see and draw, a Janus gains a diffusion path.

`assemble` opens the parts (`collect`), puts their weights into one model, adds the image tokens to the tokenizer, and
initialises the new weights. It trains nothing and changes no pretrained weight:
- New heads are zero, so their losses send no gradient into the backbone in the first step.
- New rows of the vocabulary are the mean of the old ones, so no new token outscores every old one.
- Text logits and the paths that were there stay the same. To the bit where the old vocabulary is a multiple of 16, as
  nearly all are: a matrix product may sum in another order at another width.

Shapes: V rows of the vocabulary, H width of the backbone.
"""

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hybridgen.bridges.backbones import check_text
from hybridgen.bridges.chat_templates import add_role_tokens, load_template
from hybridgen.bridges.collect import PartFolders, PretrainedParts, check_request, collect
from hybridgen.bridges.weight_names import EMBEDDINGS, HEAD, PARTS_OF_PATH
from hybridgen.checkpoints.loading import quiet
from hybridgen.codecs.frozen import VAECodec, VQCodec
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.names import CHAT_TEMPLATES
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, add_image_tokens, image_token_ids
from hybridgen.tokenization_hybridgen import ROLE_TOKENS

VOCAB_MULTIPLE = 64  # where rows are added, the vocabulary grows to a multiple of it: matrix products are faster


@dataclass
class AssemblyOptions:
    """How the new paths are built; None = as the pretrained parts have it.

    Args:
        image_size: side in pixels of the pictures that are written; None = the Janus', else the vision tower's.
        patch_size: of the diffusion path, in latents; by default 2, and 8 pixels where there is no VAE.
        unet_channels: of a U-Net around the backbone, as in `HybridGenDiffusionConfig`; None = linear patches.
        prediction_type: of the diffusion path: `velocity`, `epsilon`, or `sample`, which suits raw pixels.
        understanding_bidirectional: the tokens of a picture that is read attend to each other both ways.
        chat_template: instead of the tokenizer's: one of `chat_templates.NAMES`, a file, or the template itself;
            None = the tokenizer's, or that of the Janus.
        seed: of everything that is initialised at random.
    """

    image_size: int | None = None
    patch_size: int | None = None
    unet_channels: list[int] | None = None
    prediction_type: str = "velocity"
    understanding_bidirectional: bool = False
    chat_template: str | None = None
    seed: int = 0


def assemble(
    paths: list[str] | tuple[str, ...],
    *,
    backbone: str | Path | None = None,
    gguf_file: str | None = None,
    vision: str | Path | None = None,
    vae: str | Path | None = None,
    vq: str | Path | None = None,
    from_janus: str | Path | None = None,
    options: AssemblyOptions | None = None,
) -> HybridGenPipeline:
    """A pipeline with exactly these paths.

    1. Open the parts. A Janus gives every part that no other argument names.
    2. Make the config: those of the parts, and those of the new paths.
    3. Give the tokenizer the image tokens that it lacks, and the vocabulary rows for them.
    4. Build the model from the parts' weights; initialise what no part has.
    5. Build the processor, and try both: text logits as before, and a template that renders pictures.

    Args:
        backbone: folder of a decoder of transformers with its tokenizer; `gguf_file` = a file in it.
        vision: folder of a SigLIP tower, or a `.json` file with the config of a new one.
        vae: folder of an AutoencoderKL; None = the diffusion path works on pixels.
        vq: folder of a VQ tokenizer.
        from_janus: folder of a Janus in any layout.

    Raises:
        ValueError: a part is missing, of another kind or size, or not needed; in one sentence.
    """
    options = options or AssemblyOptions()
    folders = PartFolders(backbone, gguf_file, vision, vae, vq, from_janus)
    paths = check_request(paths, folders)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(options.seed)
        parts = collect(paths, folders)
        config = _configure(paths, parts, options)
        _extend_vocabulary(parts, config, options.chat_template)
        model = _build_model(config, parts)
    processor = _processor(config, parts, options)
    if parts.reference is not None:
        check_text(model, parts.reference)
    _check_template(processor)
    return HybridGenPipeline(model, processor, vae=parts.vae, vq_model=parts.vq)


# ------------------------------------------------------------------------------------------------------- the config


def _configure(paths: tuple[str, ...], parts: PretrainedParts, options: AssemblyOptions) -> HybridGenConfig:
    """The parts' configs, and those of the paths that no part describes; the vocabulary is still the old one."""
    configs, factors = dict(parts.configs), _downsample_factors(parts)
    side = _image_size(paths, parts, options)
    for path in ("diffusion", "vq"):
        if path in paths and side % factors[path]:
            raise ValueError(
                f"image_size {side} is not divisible by {factors[path]}, the pixels along one side of a "
                f"{'code' if path == 'vq' else 'latent'}; choose a multiple of it"
            )
    if "diffusion" in paths:
        configs["diffusion_config"] = {
            "in_channels": 3 if parts.vae is None else parts.vae.config.latent_channels,
            "patch_size": options.patch_size or (8 if parts.vae is None else 2),
            "sample_size": side // factors["diffusion"],
            "unet_channels": options.unet_channels,
            "prediction_type": options.prediction_type,
        }
    if "vq" in paths:
        codes, width = VQCodec(parts.vq).codebook.shape
        configs.setdefault("vq_config", {"num_embeddings": codes, "embed_dim": width})
        if isinstance(configs["vq_config"], dict):
            configs["vq_config"]["sample_size"] = side // factors["vq"]
        else:
            configs["vq_config"].sample_size = side // factors["vq"]
    configs.setdefault("understanding_bidirectional", options.understanding_bidirectional)
    return HybridGenConfig(**configs)


def _downsample_factors(parts: PretrainedParts) -> dict[str, int | None]:
    """Pixels along one side of a latent and of a code."""
    vae, vq = parts.vae, parts.vq
    return {
        "diffusion": 1 if vae is None else VAECodec(vae).downsample_factor,
        "vq": None if vq is None else VQCodec(vq).downsample_factor,
    }


def _image_size(paths: tuple[str, ...], parts: PretrainedParts, options: AssemblyOptions) -> int:
    """Side in pixels of the pictures that are written: as asked, or the Janus', or the tower's."""
    if options.image_size is not None:
        return options.image_size
    if parts.janus is not None and parts.janus.processor.default_size is not None:
        return parts.janus.processor.default_size[0]
    if parts.images is not None:
        return parts.images.image_size
    if set(paths) & {"diffusion", "vq"}:
        raise ValueError(
            "image_size is needed: no pretrained part says how large the pictures are that are to be drawn"
        )
    return 0


# ----------------------------------------------------------------------------------------------------- the weights


def _extend_vocabulary(parts: PretrainedParts, config: HybridGenConfig, template: str | None) -> None:
    """Give the tokenizer the image tokens that it lacks, the tables rows for them, and the config both.

    Rows that are added are the mean of the old ones. If the table has unused rows for the new tokens, only those of the
    begin and end of an image, and of roles, are set to the mean: placeholders are never looked up.
    """
    tokenizer, tied = parts.tokenizer, config.tie_word_embeddings
    known = set(tokenizer.get_vocab())
    add_image_tokens(tokenizer)
    roles = ROLE_TOKENS if template == "hybridgen" and add_role_tokens(tokenizer) else ()
    ids = image_token_ids(tokenizer)
    for name, value in ids.items():
        setattr(config, name, value)
    looked_up = (ids["begin_image_token_id"], ids["end_image_token_id"], *tokenizer.convert_tokens_to_ids(list(roles)))
    new_ids = [token_id for token_id in looked_up if tokenizer.convert_ids_to_tokens(token_id) not in known]
    rows, needed = config.text_config.vocab_size, max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        rows = -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    for name in (EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD):
        if name not in parts.weights:
            raise ValueError(f"the backbone is a {config.text_config.model_type!r}, which has no {name}; give another")
        parts.weights[name] = grow(parts.weights[name], rows, new_ids)
    config.text_config.vocab_size = rows


def grow(table: Tensor, rows: int, new_ids: list[int]) -> Tensor:
    """(V, H) -> (rows, H): added rows, and the rows `new_ids`, are the mean of the old rows."""
    mean = table.mean(0)
    table = torch.cat([table, mean.expand(rows - len(table), -1)])
    table[new_ids] = mean
    return table


def _build_model(config: HybridGenConfig, parts: PretrainedParts) -> HybridGenForConditionalGeneration:
    """The model with the parts' weights; only weights of paths may be missing, and are initialised."""
    model, report = HybridGenForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=parts.weights, dtype=torch.float32, output_loading_info=True
    )
    new = {name for name in report["missing_keys"] if name.startswith(sum(PARTS_OF_PATH.values(), ()))}
    if wrong := sorted((set(report["missing_keys"]) - new) | set(report["unexpected_keys"])):
        raise ValueError(
            f"the backbone is a {config.text_config.model_type!r}, whose weights do not fit: {wrong[0]} and "
            f"{len(wrong) - 1} more; give a decoder of Llama's or Qwen's form"
        )
    if parts.reference is not None:
        model.generation_config = copy.deepcopy(parts.reference.generation_config)
    _initialise(model, new, parts)
    return model.eval()


@torch.no_grad()
def _initialise(model: HybridGenForConditionalGeneration, new: set[str], parts: PretrainedParts) -> None:
    """Initialise what is new.

    1. The head over codes is zero (that of the diffusion path always starts so): it sends no gradient into the backbone
       before it has learned something itself.
    2. Embeddings of codes are the codebook, so that codes which look alike start alike.
    3. Outputs of aligners have about the same size as the backbone's text embeddings.
    """
    modules = model.model
    if "model.generation_head.vision_head.weight" in new:
        for parameter in modules.generation_head.vision_head.parameters():
            parameter.zero_()
    if "model.generation_embeddings.weight" in new:
        codebook = VQCodec(parts.vq).codebook.float()
        modules.generation_embeddings.weight.copy_((codebook - codebook.mean(0)) / codebook.std())
    embedding_size = modules.get_input_embeddings().weight.square().mean().sqrt()
    for name in ("aligner", "generation_aligner"):
        if f"model.{name}.fc1.weight" in new:
            aligner = getattr(modules, name)
            [aligner.fc1, *aligner.hidden_layers][-1].weight.mul_(embedding_size)


# --------------------------------------------------------------------------------------- the processor, and a trial


def _processor(config: HybridGenConfig, parts: PretrainedParts, options: AssemblyOptions) -> HybridGenProcessor:
    factors = _downsample_factors(parts)
    processor = HybridGenProcessor.for_config(
        config,
        parts.tokenizer,
        parts.images,
        vae_factor=factors["diffusion"],
        vq_factor=factors["vq"],
        chat_template=None if options.chat_template is None else load_template(options.chat_template, parts.tokenizer),
    )
    if parts.janus is None and processor.chat_template is None:
        raise ValueError(
            "the backbone's tokenizer has no chat template, and prompts need one; say chat_template (--chat-template): "
            f"a file of Jinja, or one of {', '.join(CHAT_TEMPLATES)}"
        )
    if parts.janus is None:
        return processor
    # these come from the processor made for the new config; every other setting is taken over from the Janus
    built = {"num_image_tokens", "diffusion_token_size", "vq_token_size", "bidirectional_paths", "default_size"}
    built |= {"diffusion_time_token", "native_sizes"}
    built |= {"image_processor", "tokenizer"} | ({"chat_template"} if options.chat_template else set())
    names = inspect.signature(HybridGenProcessor).parameters
    return HybridGenProcessor(
        **{name: getattr(processor if name in built else parts.janus.processor, name) for name in names}
    )


def _check_template(processor: HybridGenProcessor) -> None:
    """Raises ValueError if the chat template cannot write what training and sampling need."""
    picture = {"type": "image", "image": Image.new("RGB", (8, 8))}
    text = {"type": "text", "text": "probe"}
    for path in processor.paths:
        prompt, answer = ([picture, text], [text]) if path == "understanding" else ([text], [picture])
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        write = None if path == "understanding" else path
        processor.document([*turns, *turns], read="understanding" if write is None else write, write=write)
