"""The processor: chat messages and pictures -> documents (layout and pixels), for training and for generation alike.

It joins `chat` (template -> pieces), the tokenizer, `image_processing_hybridgen` (pictures -> pixels) and `layout`
(pieces -> vectors); packing is `data`'s, VAE and VQ are `codecs`'. The fact a newcomer gets wrong: every piece is
tokenised on its own, cut where the assistant begins and ends and at each picture. So the tokens of a training document
up to an answer are exactly the tokens of the prompt, which tokenising the whole text at once does not give.
"""

from dataclasses import replace

from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from hybridgen.chat import DEFAULT_CHAT_TEMPLATE, ChatTemplate, Piece, check_messages
from hybridgen.configuration_hybridgen import HybridGenConfig, require_path
from hybridgen.documents import Document, DocumentImage, left_pad
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.layout import PATHS, ImageSegment, TextSegment, lay_out
from hybridgen.paths.patches import check_size
from hybridgen.paths.understanding import tokens_per_image
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
    "Document",
    "DocumentImage",
    "HybridGenImageProcessor",
    "HybridGenProcessor",
    "add_image_tokens",
    "build_tokenizer",
    "image_token_ids",
    "left_pad",
]

LOSS_ON = ("assistant", "all")
UNCONDITIONAL = ("empty", "janus-official", "janus-hf")


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
        self.unconditional = _known(unconditional)
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

    # -------------------------------------------------------------------------------------------------- documents

    def document(
        self,
        messages: list[dict],
        *,
        read: str = "understanding",
        write: str | None = None,
        loss_on: str = "assistant",
        prompt_dropout: bool = False,
        twin: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> Document:
        """A training document.

        Args:
            messages: chat messages (`chat.check_messages`) whose image parts hold pictures.
            read: path by which images are read.
            write: path by which images in turns that are taught are written; None = they are read as well.
            loss_on: whose turns are taught: the `assistant`'s (its text and its end of turn; its images if `write`
                says so), or `all` (every token and every image: Transfusion's recipe).
            prompt_dropout: leave out what the user says, as in the unconditional prompt of guidance.
            twin: later tokens read a clean copy of each written image instead of the noised one (diffusion only).
            height, width: of images on the diffusion and vq paths; None = `default_size`.

        Raises:
            ValueError: in one sentence, what is wrong with the messages or the settings.
        """
        self.check_settings(read, write, loss_on, twin, height, width)
        padded = prompt_dropout and self.unconditional != "empty"
        pieces = self._pieces(messages, prompt_dropout=prompt_dropout and not padded)
        if loss_on == "assistant" and not any(piece.assistant for piece in pieces):
            raise ValueError("no message of the assistant, so nothing to learn; add one, or set loss_on='all'")
        return self._assemble(pieces, read, write, loss_on, twin, height, width, padded)

    def prompt(
        self,
        messages: list[dict],
        *,
        read: str = "understanding",
        height: int | None = None,
        width: int | None = None,
        unconditional: bool = False,
    ) -> Document:
        """What the model is given before it answers: every image is read, nothing is taught, the assistant's turn is
        open. To draw, the sampler goes on with the token that begins an image.

        Args:
            unconditional: what guidance leads away from, in place of what the user says (see the class).

        Raises:
            ValueError: in one sentence, what is wrong with the messages or the path.
        """
        self.check_settings(read, height=height, width=width)
        padded = unconditional and self.unconditional != "empty"
        pieces = self._pieces(messages, generation_prompt=True, prompt_dropout=unconditional and not padded)
        return self._assemble(pieces, read, None, None, False, height, width, padded)

    def check_settings(
        self,
        read: str,
        write: str | None = None,
        loss_on: str = "assistant",
        twin: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Raises ValueError if `document` could not be called so, whatever the messages; needs no picture.

        `read` may name a path that is not there as long as no image is read: text-to-image models have none to read.
        """
        if read not in PATHS:
            raise ValueError(f"no path {read!r} to read images by; the paths are {', '.join(PATHS)}")
        if write is not None:
            require_path(self.paths, write)
            if write == "understanding":
                raise ValueError("the understanding path only reads; write images by 'diffusion' or 'vq'")
            self.count_tokens(write, height, width)
        if loss_on not in LOSS_ON:
            raise ValueError(f"loss_on is {loss_on!r}; it must be one of {', '.join(map(repr, LOSS_ON))}")
        if twin and write != "diffusion":
            raise ValueError(f"twin belongs to images written by 'diffusion', not by {write!r}; set it to false")

    def count_tokens(self, path: str, height: int | None = None, width: int | None = None) -> int:
        """How many tokens an image takes on a path, its frame not counted.

        Raises:
            ValueError: the path is not there, or the size is not a whole number of tokens.
        """
        require_path(self.paths, path)
        if path == "understanding":
            return self.num_image_tokens
        side = self._token_sizes[path]
        height, width = self._size(height, width)
        check_size(height, width, side)
        return (height // side) * (width // side)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        if height is None and width is None and self.default_size is not None:
            return tuple(self.default_size)
        if height is None or width is None:
            raise ValueError(
                f"the size of an image is {height}x{width}; give height and width, or a default_size to the processor"
            )
        return height, width

    def _pieces(
        self, messages: list[dict], generation_prompt: bool = False, prompt_dropout: bool = False
    ) -> list[Piece]:
        if self._chat.template != self.chat_template:  # set by the user since
            self._chat = self._compile()
        return self._chat.pieces(check_messages(messages), generation_prompt, prompt_dropout)

    def _compile(self) -> ChatTemplate:
        reserved = (self.begin_image_token, self.end_image_token, self.diffusion_token, self.vq_token)
        return ChatTemplate(self.chat_template, self.tokenizer.special_tokens_map, self.image_token, reserved)

    def _assemble(
        self, pieces: list[Piece], read: str, write: str | None, loss_on: str | None, twin: bool, height, width,
        padded: bool = False,
    ) -> Document:  # fmt: skip
        """Pieces -> segments and pixels -> a laid-out document."""
        segments: list[TextSegment | ImageSegment] = []
        images: list[DocumentImage] = []
        for piece in pieces:
            taught = loss_on == "all" or (loss_on == "assistant" and piece.assistant)
            if piece.text is not None:
                ids = self._encode(piece.text)
                if padded and not piece.assistant:
                    ids = self._pads(ids, first=not segments)
                segments.append(TextSegment(ids, loss=taught))
                continue
            written = taught and write is not None
            path = write if written else read
            length = self.count_tokens(path, height, width)
            bidirectional = path in self.bidirectional_paths
            segments.append(ImageSegment(path, length, bidirectional, write=written, twin=twin and written))
            images.append(DocumentImage(path, self._pixels(piece, path, height, width), written, piece.image_first))
            if twin and written:
                images.append(replace(images[-1], write=False))
        return Document(lay_out(segments, self.special_tokens), images)

    def _pads(self, ids: list[int], first: bool) -> list[int]:
        """What `unconditional` leaves of the tokens of a text; `first`: it opens the document."""
        if _known(self.unconditional) == "janus-official":
            kept = [first and place == 0 for place in range(len(ids))]
        else:
            kept = [token in (self.tokenizer.bos_token_id, self.special_tokens.begin_image) for token in ids]
        return [token if keep else self.special_tokens.pad for token, keep in zip(ids, kept, strict=True)]

    def _pixels(self, piece: Piece, path: str, height: int | None, width: int | None) -> Tensor:
        if path == "understanding":
            return self.image_processor.understanding([piece.picture])[0]
        return self.image_processor.generation(piece.picture, *self._size(height, width))

    # ----------------------------------------------------------------------------------------- as transformers calls

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Texts in which `<image_placeholder>` stands for an image, and those images -> `input_ids`, `attention_mask`
        and `pixel_values` of the understanding path. Other arguments go to the tokenizer.

        Raises:
            ValueError: as many images as placeholders are needed, and a path to read them.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = _flatten(images)
        places = sum(each.count(self.image_token) for each in texts)
        if texts and places != len(pictures):
            raise ValueError(
                f"{places} times {self.image_token!r} stands in the text, but {len(pictures)} images are given; "
                "each image needs exactly one"
            )
        data = {}
        if texts:
            tokens = self.image_token * (self.num_image_tokens or 0)
            expanded = f"{self.begin_image_token}{tokens}{self.end_image_token}"
            texts = [each.replace(self.image_token, expanded) for each in texts]
            encoded = self.tokenizer(texts, padding=padding, padding_side=padding_side, **kwargs)
            data = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if pictures:
            require_path(self.paths, "understanding")
            data["pixel_values"] = self.image_processor.understanding(pictures)
        return BatchFeature(data, tensor_type=return_tensors)

    def save_pretrained(self, save_directory, **kwargs):
        """See `ProcessorMixin`. What loading noted in the tokenizer about where it came from is not saved with it."""
        for note in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(note, None)
        return super().save_pretrained(save_directory, **kwargs)

    def postprocess(self, pixels):
        """Pixels (I, 3, H, W) in [-1, 1] -> PIL images."""
        return self.image_processor.postprocess(pixels)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _known(unconditional: str) -> str:
    if unconditional not in UNCONDITIONAL:
        raise ValueError(f"unconditional is {unconditional!r}; it must be one of {', '.join(UNCONDITIONAL)}")
    return unconditional


def _default_size(sides: dict[str, int | None]) -> tuple[int, int] | None:
    given = {path: side for path, side in sides.items() if side is not None}
    if len(set(given.values())) > 1:
        shown = ", ".join(f"{path} {side}" for path, side in given.items())
        raise ValueError(
            f"the paths write images of different sides ({shown} pixels); say default_size=(height, width)"
        )
    return next(((side, side) for side in given.values()), None)


def _flatten(images) -> list:
    """One picture, a list of them or a list a text -> a list of pictures."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in _flatten(item)]
    return [images]
