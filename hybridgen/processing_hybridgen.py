"""The processor: chat messages and pictures -> documents (layout and pixels), for training and for generation alike.

It joins `chat` (template -> pieces), the tokenizer, `image_processing_hybridgen` (pictures -> pixels) and `layout`
(pieces -> vectors); packing is `data`'s, VAE and VQ are `codecs`'. The fact a newcomer gets wrong: every piece is
tokenised on its own, cut where the assistant begins and ends and at each picture. So the tokens of a training document
up to an answer are exactly the tokens of the prompt, which tokenising the whole text at once does not give.
"""

from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin

from hybridgen.configuration_hybridgen import HybridGenConfig, require_path
from hybridgen.core.documents import Document, DocumentImage, left_pad
from hybridgen.core.hub import part_of
from hybridgen.core.layout import PATHS
from hybridgen.core.messages import DEFAULT_CHAT_TEMPLATE
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.paths.understanding import tokens_per_image
from hybridgen.processing_documents import LOSS_ON, DocumentBuilding, known_unconditional
from hybridgen.tokenization_hybridgen import (
    BEGIN_IMAGE,
    END_IMAGE,
    PLACEHOLDERS,
    PieceTokenizer,
    add_image_tokens,
    build_tokenizer,
    check_token_ids,
    image_token_ids,
    special_tokens,
)

__all__ = [
    "LOSS_ON",
    "Document",
    "DocumentImage",
    "HybridGenImageProcessor",
    "HybridGenProcessor",
    "add_image_tokens",
    "build_tokenizer",
    "image_token_ids",
    "left_pad",
]


class HybridGenProcessor(ProcessorMixin, DocumentBuilding):
    """
    Args:
        image_processor, tokenizer: its parts.
        chat_template: None = the tokenizer's own, and hybridgen's default where it has none.
        num_image_tokens: tokens of an image on the understanding path; None = no such path.
        diffusion_token_size: pixels along one side of a token on the diffusion path (patch size times the VAE's
            factor); None = no such path.
        vq_token_size: pixels along one side of a code; None = no such path.
        bidirectional_paths: paths on which the tokens of one image see each other.
        default_size: height and width of images that are written, or read by the paths that write.
        begin_image_token, end_image_token, image_token, diffusion_token, vq_token: as the tokenizer has them.
        unconditional: what stands in place of the prompt where guidance (or prompt dropout) wants none: `empty`, the
            same template with nothing said; or pads that are attended to, one for each token of the prompt but the
            first (`janus-official`), or but those that begin a text or an image (`janus-hf`).

    Raises:
        ValueError: the tokenizer lacks one of the tokens.
    """

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | None = None,
        num_image_tokens: int | None = None,
        diffusion_token_size: int | None = None,
        vq_token_size: int | None = None,
        bidirectional_paths: list[str] | None = None,
        default_size: tuple[int, int] | None = None,
        begin_image_token: str = BEGIN_IMAGE,
        end_image_token: str = END_IMAGE,
        image_token: str = PLACEHOLDERS["understanding"],
        diffusion_token: str = PLACEHOLDERS["diffusion"],
        vq_token: str = PLACEHOLDERS["vq"],
        unconditional: str = "empty",
    ):
        self.unconditional = known_unconditional(unconditional)
        self.num_image_tokens = num_image_tokens
        self.diffusion_token_size = diffusion_token_size
        self.vq_token_size = vq_token_size
        self.bidirectional_paths = list(bidirectional_paths or [])
        self.default_size = None if default_size is None else list(default_size)
        self.begin_image_token, self.end_image_token = begin_image_token, end_image_token
        self.image_token, self.diffusion_token, self.vq_token = image_token, diffusion_token, vq_token
        if chat_template is None:
            chat_template = tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE.replace(
                PLACEHOLDERS["understanding"], image_token
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        placeholders = dict(zip(PATHS, (image_token, diffusion_token, vq_token), strict=True))
        placeholders = {path: placeholders[path] for path in self.paths}
        self.special_tokens = special_tokens(tokenizer, begin_image_token, end_image_token, placeholders)
        self._chat = self._compile()
        self._encode = PieceTokenizer(tokenizer)

    @classmethod
    def for_config(
        cls,
        config: HybridGenConfig,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: HybridGenImageProcessor | None = None,
        vae_factor: int = 1,
        vq_factor: int | None = None,
        default_size: tuple[int, int] | None = None,
        chat_template: str | None = None,
    ) -> "HybridGenProcessor":
        """The processor that fits a model.

        Args:
            image_processor: None = one of the vision tower's size.
            vae_factor: pixels along one side of a latent; 1 where there is no VAE.
            vq_factor: pixels along one side of a code; needed where the model has the vq path.
            default_size: None = the `sample_size` of the paths that write.

        Raises:
            ValueError: the config's token ids are not the tokenizer's, `vq_factor` is missing, or the writing paths
                have different default sizes and none is given.
        """
        vision, diffusion, vq = config.vision_config, config.diffusion_config, config.vq_config
        if vq is not None and vq_factor is None:
            raise ValueError("the model has the vq path; give vq_factor, the pixels along one side of a code")
        if image_processor is None:
            image_processor = HybridGenImageProcessor(**({} if vision is None else {"image_size": vision.image_size}))
        sides = {
            "diffusion": None if diffusion is None else diffusion.sample_size * vae_factor,
            "vq": None if vq is None else vq.sample_size * vq_factor,
        }
        processor = cls(
            image_processor,
            tokenizer,
            chat_template=chat_template,
            num_image_tokens=None if vision is None else tokens_per_image(vision),
            diffusion_token_size=None if diffusion is None else diffusion.patch_size * vae_factor,
            vq_token_size=None if vq is None else vq_factor,
            bidirectional_paths=[path for path in config.paths if config.is_bidirectional(path)],
            default_size=_default_size(sides) if default_size is None else default_size,
        )
        check_token_ids(config, processor.special_tokens)
        return processor

    # ------------------------------------------------------------------------------------------------- what it has

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths it has, in the order of `layout.PATHS`."""
        return tuple(path for path in PATHS if self._token_sizes[path] is not None)

    @property
    def _token_sizes(self) -> dict[str, int | None]:
        sizes = (self.num_image_tokens, self.diffusion_token_size, self.vq_token_size)
        return dict(zip(PATHS, sizes, strict=True))

    # ----------------------------------------------------------------------------------------- as transformers calls

    def __call__(self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs) -> BatchFeature:
        """Texts in which `<image_placeholder>` stands for an image, and those images -> `input_ids`, `attention_mask`
        and `pixel_values` of the understanding path, padded on the left. Other arguments as everywhere in transformers.

        Raises:
            ValueError: as many images as placeholders are needed, and a path to read them.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = _flatten(images)
        places, given = [each.count(self.image_token) for each in texts], _a_text(images)
        places, given = (places, given) if len(given) == len(places) else (sum(places), len(pictures))
        if texts and places != given:
            raise ValueError(
                f"the number of {self.image_token!r} tokens in the prompts should be the same as the number of images, "
                f"but there are {places}, and {given} images"
            )
        if pictures:
            require_path(self.paths, "understanding")
        given = kwargs.get("text_kwargs", {})
        if "padding" not in given and "padding" not in self.tokenizer.init_kwargs:
            kwargs.setdefault("padding", True)
        if "padding_side" not in given:
            kwargs.setdefault("padding_side", "left")  # whatever the tokenizer says: it may have been made for training
        return super().__call__(images=pictures or None, text=texts or None, **kwargs)

    def replace_image_token(self, *args, **kwargs) -> str:
        """What a placeholder in the text becomes: the frame, and a placeholder for each token of the image."""
        return f"{self.begin_image_token}{self.image_token * self.num_image_tokens}{self.end_image_token}"

    @property
    def image_token_id(self) -> int | None:
        return self.special_tokens.understanding

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As everywhere in transformers; of a whole checkpoint, its processor."""
        return super().from_pretrained(part_of(pretrained_model_name_or_path, "processor", **kwargs), **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """See `ProcessorMixin`. What loading noted in the tokenizer about where it came from is not saved with it."""
        for note in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(note, None)
        return super().save_pretrained(save_directory, **kwargs)

    def postprocess(self, pixels):
        """Pixels (I, 3, H, W) in [-1, 1] -> PIL images."""
        return self.image_processor.postprocess(pixels)

    def post_process_multimodal_output(
        self, generated_outputs, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs
    ):
        """What `pipeline("any-to-any")` returns: token ids (B, N) -> texts; pixels (I, 3, H, W) -> PIL images."""
        if generation_mode == "image":
            return self.postprocess(generated_outputs)
        return super().post_process_multimodal_output(generated_outputs, skip_special_tokens, generation_mode, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _default_size(sides: dict[str, int | None]) -> tuple[int, int] | None:
    given = {path: side for path, side in sides.items() if side is not None}
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{path} {side}" for path, side in given.items())
        raise ValueError(
            f"the paths write images of different sides ({shown} pixels); say default_size=(height, width)"
        )
    return next(((side, side) for side in given.values()), None)


def _a_text(images) -> list[int]:
    """How many images each text has, where they are given as a list a text."""
    nested = isinstance(images, list | tuple) and all(isinstance(each, list | tuple) for each in images)
    return [len(each) for each in images] if nested else []


def _flatten(images) -> list:
    """One picture, a list of them or a list a text -> a list of pictures."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in _flatten(item)]
    return [images]
