"""The processor: chat messages and pictures -> documents (layout and pixels), for training and for generation alike.

It joins `chat` (template -> pieces), the tokenizer, `image_processing_hybridgen` (pictures -> pixels) and `layout`
(pieces -> vectors); packing is `data`'s, VAE and VQ are `codecs`'. The fact a newcomer gets wrong: every piece is
tokenised on its own, cut where the assistant begins and ends and at each picture. So the tokens of a training document
up to an answer are exactly the tokens of the prompt, which tokenising the whole text at once does not give.
"""

from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from hybridgen.chat import DEFAULT_CHAT_TEMPLATE, ChatTemplate, Piece, check_messages
from hybridgen.configuration_hybridgen import HybridGenConfig, require_path
from hybridgen.documents import Document, DocumentImage, left_pad
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.layout import PATHS, ImageSegment, SpecialTokens, TextSegment, lay_out
from hybridgen.paths.patches import check_size
from hybridgen.paths.understanding import tokens_per_image
from hybridgen.tokenization_hybridgen import (
    BEGIN_IMAGE,
    END_IMAGE,
    PLACEHOLDERS,
    add_image_tokens,
    build_tokenizer,
)

__all__ = [
    "Document",
    "DocumentImage",
    "HybridGenImageProcessor",
    "HybridGenProcessor",
    "add_image_tokens",
    "build_tokenizer",
    "left_pad",
]

LOSS_ON = ("assistant", "all")
_CACHED_TEXTS = 50_000


class HybridGenProcessor(ProcessorMixin):
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
    ):
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
        self._check_tokens()
        self._chat: ChatTemplate | None = None
        self._cached_ids: dict[str, list[int]] = {}

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
            image_processor = HybridGenImageProcessor() if vision is None else HybridGenImageProcessor(vision.image_size)
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
        processor._check_ids(config)
        return processor

    # ------------------------------------------------------------------------------------------------- what it has

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths it has, in the order of `layout.PATHS`."""
        return tuple(path for path in PATHS if self._token_sizes[path] is not None)

    @property
    def _token_sizes(self) -> dict[str, int | None]:
        return {"understanding": self.num_image_tokens, "diffusion": self.diffusion_token_size, "vq": self.vq_token_size}

    @property
    def special_tokens(self) -> SpecialTokens:
        """The ids that frame, fill and pad; a path it does not have has none."""
        ids = dict(zip(PATHS, (self.image_token, self.diffusion_token, self.vq_token), strict=True))
        pad = self.tokenizer.pad_token_id
        return SpecialTokens(
            begin_image=self._id(self.begin_image_token),
            end_image=self._id(self.end_image_token),
            pad=self.tokenizer.eos_token_id if pad is None else pad,
            **{path: self._id(ids[path]) for path in self.paths},
        )

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

