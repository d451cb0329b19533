"""The processor: chat messages and pictures -> documents (layout and pixels), for training and for generation alike.

It joins `core.messages` (template -> pieces), the tokenizer, `image_processing_hybridgen` (pictures -> pixels) and
`core.layout` (segments -> vectors). Packing is in `data`, VAE and VQ are in `codecs`.

Every piece is tokenised on its own, cut where the assistant begins and ends and at each picture. So the tokens of a
training document up to an answer are exactly the tokens of the prompt, which tokenising the whole text at once would
not give. `read` and `write` are paths: the same messages make another document by another path, and where `read` is a
list, an image stands there once per path, in that order (BAGEL, arXiv 2505.14683, reads clean latents and then the
vision tower's features).
"""

from contextvars import ContextVar
from dataclasses import asdict, replace
from threading import Lock

from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType

from hybridgen.configuration_hybridgen import HybridGenConfig, require_path
from hybridgen.configuration_understanding import NativeSizes
from hybridgen.core.control_tokens import ControlTokens, RenderedText, Spans
from hybridgen.core.documents import Document, DocumentImage, left_pad
from hybridgen.core.hub import part_of
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.core.messages import (
    DEFAULT_CHAT_TEMPLATE,
    ChatTemplate,
    Piece,
    check_conversation,
    check_messages,
    default_template,
    named_templates,
    plain_pieces,
)
from hybridgen.core.names import PATHS
from hybridgen.core.pictures import read_picture
from hybridgen.core.utf8 import check_text
from hybridgen.core.values import choice, flag, listed, shown, whole_number
from hybridgen.image_processing_hybridgen import FITS, HybridGenImageProcessor, fit_size
from hybridgen.paths.patches import aspect_buckets, check_size
from hybridgen.tokenization_hybridgen import (
    BEGIN_IMAGE,
    END_IMAGE,
    PLACEHOLDERS,
    PieceTokenizer,
    add_image_tokens,
    build_tokenizer,
    check_token_ids,
    control_names,
    has_role_tokens,
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

_TOKENIZING = Lock()  # a fast tokenizer keeps padding and truncation as its state: one call of a processor at a time
LOSS_ON = ("assistant", "all", "everything")
# what `__call__` passes on to `tokenizer.pad`, and what only the tokenizer itself could make
_PADDING = ("padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors", "return_attention_mask")
_MASKS = ("return_offsets_mapping", "return_special_tokens_mask", "return_overflowing_tokens", "return_length")
# the processor whose `apply_chat_template` is at work in this thread, and the mark in its texts (`core.control_tokens`)
_RENDERED_WITH: ContextVar[tuple | None] = ContextVar("rendered_with", default=None)
NO_TEMPLATE = (
    "the tokenizer has no chat template, and a conversation needs one; give one (model.chat_template in a config, "
    "chat_template=... in Python), or train on texts without, as form: text"
)
UNCONDITIONAL = ("empty", "janus-official", "janus-hf")


class HybridGenProcessor(ProcessorMixin):
    """Chat messages and pictures -> what the model takes; and pixels, codes and tokens back.

    Args:
        image_processor, tokenizer: its parts.
        chat_template: None = the tokenizer's own, else hybridgen's default where the tokenizer has its tokens of roles,
            else none: texts without a template can then be trained on, conversations are refused. Of several by name,
            the one called `default` is used; the others are kept, for `apply_chat_template(..., chat_template="name")`.
        num_image_tokens: tokens of an image on the understanding path (at most, with `native_sizes`); None = no such
            path.
        native_sizes: of pictures that this path reads in their own shape, as `NativeSizes`; None = squares.
        diffusion_token_size: pixels along one side of a token on the diffusion path (patch size times the VAE's
            factor); None = no such path.
        diffusion_time_token: an image on that path begins with a token of its timestep.
        vq_token_size: pixels along one side of a code; None = no such path.
        bidirectional_paths: paths on which the tokens of one image see each other.
        default_size: height and width of images that are written, or read by the paths that write.
        begin_image_token, end_image_token, image_token, diffusion_token, vq_token: as the tokenizer has them. The first
            two may be None where images are read only: then nothing frames them (LLaVA).
        unconditional: what stands in place of the prompt where guidance (or prompt dropout) wants none: `empty`, the
            template with empty user turns; or pads that are attended to, in place of all tokens of the prompt but the
            first (`janus-official`), or but those that begin a text or an image (`janus-hf`).
        fit: how a picture that a path that draws only reads gets into its frame: `crop` = it fills the frame, and its
            sides are cut off; `pad` = the whole picture, on gray (as on the understanding path). Pictures that are
            drawn fill their frame.

    Raises:
        ValueError: the tokenizer lacks one of the tokens.
    """

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | dict[str, str] | None = None,
        num_image_tokens: int | None = None,
        diffusion_token_size: int | None = None,
        vq_token_size: int | None = None,
        bidirectional_paths: list[str] | None = None,
        default_size: tuple[int, int] | None = None,
        begin_image_token: str | None = BEGIN_IMAGE,
        end_image_token: str | None = END_IMAGE,
        image_token: str = PLACEHOLDERS["understanding"],
        diffusion_token: str = PLACEHOLDERS["diffusion"],
        vq_token: str = PLACEHOLDERS["vq"],
        unconditional: str = "empty",
        diffusion_time_token: bool = False,
        fit: str = "crop",
        native_sizes: dict | None = None,
    ):
        self.native_sizes = native_sizes
        self.fit = choice("fit", fit, FITS)
        self.unconditional = check_unconditional(unconditional)
        self.num_image_tokens = num_image_tokens
        self.diffusion_token_size = diffusion_token_size
        self.diffusion_time_token = diffusion_time_token
        self.vq_token_size = vq_token_size
        self.bidirectional_paths = list(bidirectional_paths or [])
        self.default_size = None if default_size is None else list(default_size)
        self.begin_image_token, self.end_image_token = begin_image_token, end_image_token
        self.image_token, self.diffusion_token, self.vq_token = image_token, diffusion_token, vq_token
        if chat_template is None:
            chat_template = tokenizer.chat_template
        if chat_template is None and has_role_tokens(tokenizer):
            chat_template = DEFAULT_CHAT_TEMPLATE.replace(PLACEHOLDERS["understanding"], image_token)
        super().__init__(image_processor, tokenizer, chat_template=named_templates(chat_template))
        placeholders = dict(zip(PATHS, (image_token, diffusion_token, vq_token), strict=True))
        placeholders = {path: placeholders[path] for path in self.paths}
        if None in (begin_image_token, end_image_token) and (begin_image_token != end_image_token or self.writes):
            raise ValueError(
                f"begin_image_token is {begin_image_token!r} and end_image_token {end_image_token!r}; name both, or "
                "neither where no path draws"
            )
        self.special_tokens = special_tokens(tokenizer, begin_image_token, end_image_token, placeholders)
        self._template: ChatTemplate | None = None
        self._encode: PieceTokenizer | None = None
        self._set_template()

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
        fit: str = "crop",
        unconditional: str = "empty",
    ) -> "HybridGenProcessor":
        """The processor that fits a model.

        Args:
            image_processor: None = one of the vision tower's size.
            vae_factor: pixels along one side of a latent; 1 where there is no VAE.
            vq_factor: pixels along one side of a code; needed where the model has the vq path.
            default_size: None = the `sample_size` of the paths that write.
            chat_template, fit, unconditional: see the processor.

        Raises:
            ValueError: the config's token ids are not the tokenizer's, `vq_factor` is missing, or the writing paths
                have different default sizes and no `default_size` is given.
        """
        vision, diffusion, vq = config.vision_config, config.diffusion_config, config.vq_config
        if vq is not None and vq_factor is None:
            raise ValueError("the model has the vq path; give vq_factor, the pixels along one side of a code")
        if image_processor is None:
            image_processor = HybridGenImageProcessor(**({} if vision is None else {"image_size": config.tower_size}))
        sides = {
            "diffusion": None if diffusion is None else diffusion.sample_size * vae_factor,
            "vq": None if vq is None else vq.sample_size * vq_factor,
        }
        processor = cls(
            image_processor,
            tokenizer,
            chat_template=chat_template,
            num_image_tokens=config.image_tokens,
            diffusion_token_size=None if diffusion is None else diffusion.patch_size * vae_factor,
            vq_token_size=None if vq is None else vq_factor,
            bidirectional_paths=[path for path in config.paths if config.is_bidirectional(path)],
            default_size=_default_size(sides) if default_size is None else default_size,
            diffusion_time_token=diffusion is not None and diffusion.time_token,
            fit=fit,
            unconditional=unconditional,
            native_sizes=None if config.native_sizes is None else asdict(config.native_sizes),
        )
        check_token_ids(config, processor.special_tokens)
        return processor

    # ------------------------------------------------------------------------------------------------------- paths

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths by which this processor passes images, in the order of `core.names.PATHS`."""
        reads = () if self.num_image_tokens is None else ("understanding",)
        return tuple(path for path in PATHS if path in (*reads, *self._pixels_per_token))

    @property
    def writes(self) -> bool:
        """Whether there is a path that draws."""
        return bool(self._pixels_per_token)

    @property
    def _pixels_per_token(self) -> dict[str, int]:
        """Along one side of a token, for each path that draws (on the understanding path their number is fixed)."""
        sides = {"diffusion": self.diffusion_token_size, "vq": self.vq_token_size}
        return {path: side for path, side in sides.items() if side is not None}

    # ------------------------------------------------------------------------------------------------------ documents

    def document(
        self,
        messages: list[dict],
        *,
        read: str | list[str] = "understanding",
        write: str | None = None,
        loss_on: str = "assistant",
        prompt_dropout: bool = False,
        clean_copy: bool = False,
        height: int | None = None,
        width: int | None = None,
        image_tokens: int | None = None,
        plain: bool = False,
        decode: bool = True,
    ) -> Document:
        """A training document.

        Args:
            messages: chat messages (`messages.check_messages`) whose image parts hold pictures, or what holds one
                (`core.pictures`).
            read: path by which images are read, or several.
            write: path by which images in turns with a loss are written; None = they are read as well.
            loss_on: which turns have a loss: the `assistant`'s (its text and its end of turn; its images if `write` is
                given), `all` (the words of the others as well, and every image: Transfusion's recipe), or `everything`
                (also what the template writes of its own around the others' words, such as their roles).
            prompt_dropout: leave out the user's texts, as in the unconditional prompt of guidance.
            clean_copy: later tokens read a clean copy of each written image instead of the noised one (diffusion only),
                and after it the image by the other paths of `read`, where that is a list.
            height, width: of images on the diffusion and vq paths; None = `default_size`.
            image_tokens: those images keep their aspect ratio instead, and have at most so many tokens.
            plain: no chat template: the tokenizer's begin of text, if it has one, the parts of the messages in order,
                and its end of text, which is learnt.
            decode: false = its pictures stay as they are until `read_pixels`; at most their sizes are asked for.

        Raises:
            ValueError: in one sentence, what is wrong with the messages or the settings.
        """
        self.check_settings(read, write, loss_on, clean_copy, height, width)
        pads = prompt_dropout and self.unconditional != "empty"
        if plain:
            pieces = plain_pieces(check_messages(messages), prompt_dropout=prompt_dropout and not pads)
        else:
            pieces = self._pieces(
                messages, prompt_dropout=prompt_dropout and not pads, find_words=loss_on == "all" and not pads
            )
        if loss_on == "assistant" and not any(piece.assistant and piece.learnt for piece in pieces):
            raise ValueError(
                "no message of the assistant, so nothing to learn (one of weight 0 is only read); add one, or set "
                "loss_on='all'"
            )
        how = (read, write, loss_on, clean_copy, height, width, pads, image_tokens, plain, decode)
        return self._assemble(pieces, *how)

    def read_pixels(self, document: Document) -> None:
        """Decode the pictures of a document that was made without (`decode=False`), each once. Its images get the
        levels of their pixels, 8 bits, which `pixel_values` makes values of.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        pictures: dict[int, Image.Image] = {}
        levels: dict[tuple, Tensor] = {}
        for image in document.images:
            key = id(image.picture)
            if key not in pictures:
                pictures[key] = read_picture(image.picture)
            if (key, image.path, image.frame) not in levels:
                levels[key, image.path, image.frame] = self._levels(pictures[key], image.path, *image.frame)
            image.pixels = levels[key, image.path, image.frame]

    def pixel_values(self, levels: Tensor | list[Tensor], path: str) -> Tensor | list[Tensor]:
        """Levels of pixels of one path -> what `document` makes of the same pictures, bit by bit, on their device."""
        if isinstance(levels, list):
            return [self.pixel_values(each, path) for each in levels]
        if levels.is_floating_point():
            return levels
        images = self.image_processor
        return images.normalize(levels) if path == "understanding" else images.generation_values(levels)

    def prompt(
        self,
        messages: list[dict],
        *,
        read: str | list[str] = "understanding",
        height: int | None = None,
        width: int | None = None,
        unconditional: bool = False,
    ) -> Document:
        """What the model reads before it answers: every image is read, nothing has a loss, the assistant's turn is
        open. To draw, the sampler goes on with the token that begins an image.

        Args:
            unconditional: the prompt that guidance leads away from (see the processor's `unconditional`).

        Raises:
            ValueError: in one sentence, what is wrong with the messages or the path.
        """
        self.check_settings(read, height=height, width=width)
        flag("unconditional", unconditional)
        pads = unconditional and self.unconditional != "empty"
        pieces = self._pieces(messages, generation_prompt=True, prompt_dropout=unconditional and not pads)
        return self._assemble(pieces, read, None, None, False, height, width, pads)

    def prompt_ids(self, messages: list[dict], unconditional: bool = False) -> list[list[int] | None]:
        """The token ids of a `prompt`, text by text in reading order, and None for each picture (without the tokens
        that frame it): for a chat, which has read the pictures already.

        Raises:
            ValueError: in one sentence, what is wrong with the messages.
        """
        pads = unconditional and self.unconditional != "empty"
        runs: list[list[int] | None] = []
        for piece in self._pieces(messages, generation_prompt=True, prompt_dropout=unconditional and not pads):
            ids = None if piece.text is None else self._encode(piece.text, piece.controls)
            if ids is not None and pads and not piece.assistant:
                ids = self._replace_by_pads(ids, first=not runs)
            runs.append(ids)
        return runs

    def _pieces(self, messages: list[dict], **how: bool) -> list[Piece]:
        return self._required_template().pieces(check_messages(messages), **how)

    def _set_template(self) -> None:
        """The template, and what tokenises its pieces: which tokens are control tokens, a template decides with. Done
        anew where the user has set another."""
        templates = named_templates(self.chat_template)
        text = None if templates is None else default_template(templates)
        if self._encode is not None and text == (None if self._template is None else self._template.template):
            return
        frame = () if self.begin_image_token is None else (self.begin_image_token, self.end_image_token)
        reserved = (*frame, self.diffusion_token, self.vq_token)
        names, tokens = control_names(self.tokenizer), self.tokenizer.special_tokens_map
        if text is None:
            self._template, self._controls = None, ControlTokens((self.image_token, *reserved, *names[0]))
        else:
            self._template = ChatTemplate(text, tokens, self.image_token, reserved, *names)
            self._controls = self._template.controls
        self._encode = PieceTokenizer(self.tokenizer, self._controls)

    def _required_template(self) -> ChatTemplate:
        self._set_template()
        if self._template is None:
            raise ValueError(NO_TEMPLATE)
        return self._template

    def _assemble(
        self, pieces: list[Piece], read: str | list[str], write: str | None, loss_on: str | None, clean_copy: bool,
        height: int | None, width: int | None, pads: bool = False, image_tokens: int | None = None, plain: bool = False,
        decode: bool = True,
    ) -> Document:  # fmt: skip
        """Pieces -> segments and pixels -> a laid-out document.

        1. A text becomes a segment of token ids; `pads` takes the place of all texts but the assistant's. If it is
           plain, the tokenizer's begin and end of text stand around all.
        2. An image becomes a segment and its pixels for each path by which it passes (`_passes`); the tokens of all of
           them are the span that is never cut.
        3. An image with a clean copy has its pixels twice: once written and once read.
        """
        segments: list[TextSegment | ImageSegment] = self._begin_of_text() if plain else []
        images: list[DocumentImage] = []
        tokens = sum(segment.size for segment in segments)
        for piece in pieces:
            has_loss = piece.learnt and loss_on is not None and (piece.assistant or loss_on != "assistant")
            if piece.text is not None:
                segments.append(self._text_segment(piece, loss_on if has_loss else None, pads, first=not segments))
                tokens += segments[-1].size
                continue
            picture = read_picture(piece.picture) if decode else piece.picture  # once, for all paths
            path_written = write if has_loss else None
            passes: list[tuple[ImageSegment, tuple[int | None, int | None]]] = []
            for path in _passes(read, path_written, clean_copy):
                size = self._native_size(picture) if path == "understanding" else (height, width)
                if image_tokens is not None and path in self._pixels_per_token:
                    size = fit_size(picture, image_tokens, self._pixels_per_token[path])
                writes, bidirectional = path == path_written, path in self.bidirectional_paths
                length, with_copy = self._tokens_at(path, *size), clean_copy and writes
                framed = self.begin_image_token is not None
                passes.append((ImageSegment(path, length, bidirectional, writes, with_copy, framed), size))
            span = tokens, tokens + sum(segment.size for segment, _ in passes)
            for segment, size in passes:
                fit = "crop" if segment.write else self.fit
                pixels = self.pixels(picture, segment.path, *size, fit=fit) if decode else None
                images.append(DocumentImage(segment.path, pixels, span, segment.write, piece.image_first))
                if not decode:
                    images[-1].picture, images[-1].frame = picture, (*size, fit)
                if segment.clean_copy:
                    images.append(replace(images[-1], write=False))
            segments += [segment for segment, _ in passes]
            tokens = span[1]
        segments += self._end_of_text() if plain else []
        return Document(lay_out(segments, self.special_tokens), images, plain)

    def _text_segment(self, piece: Piece, loss_on: str | None, pads: bool, first: bool) -> TextSegment:
        """A text's tokens, and which of them have a loss; `loss_on` None = none."""
        ids = self._encode(piece.text, piece.controls)
        if pads and not piece.assistant:
            return TextSegment(self._replace_by_pads(ids, first), loss=False)
        if loss_on == "all" and not piece.assistant:
            return TextSegment(ids, loss=self._encode.inside(piece.text, piece.controls, piece.words))
        return TextSegment(ids, loss=loss_on is not None)

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a text without a template, as `plain` documents hold them: all that it spells are words."""
        self._set_template()
        return self._encode(check_text(text, "the text"), ())

    def begin_of_text(self) -> int:
        """The token that the first one of a text without a template is predicted from: the tokenizer's begin of text,
        or where it has none its end of text, as other harnesses do.

        Raises:
            ValueError: it has neither.
        """
        begin = self.tokenizer.bos_token_id
        begin = self.tokenizer.eos_token_id if begin is None else begin
        if begin is None:
            raise ValueError("the tokenizer has no token that begins or ends a text; set tokenizer.eos_token")
        return begin

    def _begin_of_text(self) -> list[TextSegment]:
        begin = self.tokenizer.bos_token_id
        return [] if begin is None else [TextSegment([begin], loss=False)]

    def _end_of_text(self) -> list[TextSegment]:
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token, which ends a text without a template; set tokenizer.eos_token"
            )
        return [TextSegment([self.tokenizer.eos_token_id])]

    def _replace_by_pads(self, ids: list[int], first: bool) -> list[int]:
        """The tokens of a text in the unconditional prompt of Janus; `first`: it opens the document."""
        if check_unconditional(self.unconditional) == "janus-official":
            keep = [first and position == 0 for position in range(len(ids))]
        else:
            keep = [token in (self.tokenizer.bos_token_id, self.special_tokens.begin_image) for token in ids]
        return [token if kept else self.special_tokens.pad for token, kept in zip(ids, keep, strict=True)]

    def pixels(
        self,
        picture: Image.Image,
        path: str,
        height: int | None = None,
        width: int | None = None,
        fit: str | None = None,
    ) -> Tensor:
        """A picture as a path wants it, (3, H, W); `fit` None = as it is read (the processor's `fit`)."""
        return self.pixel_values(self._levels(picture, path, height, width, fit), path)

    def _levels(
        self, picture: Image.Image, path: str, height: int | None, width: int | None, fit: str | None
    ) -> Tensor:
        if path == "understanding" and self._native is not None:
            picture = read_picture(picture)
            return self.image_processor.native_levels(picture, *self._native_size(picture))
        if path == "understanding":
            return self.image_processor.understanding_levels(picture)
        return self.image_processor.generation_levels(picture, *self.size_of(height, width), fit=fit or self.fit)

    def _tokens_at(self, path: str, height: int | None, width: int | None) -> int:
        """Tokens of an image whose pixels on this path have this size."""
        if path == "understanding" and self._native is not None:
            return self._native.count(height, width)
        return self.count_tokens(path, height, width)

    def read(self, picture, path: str, height: int | None = None, width: int | None = None) -> tuple[Tensor, int]:
        """A picture as a path reads it, (3, H, W), and how many tokens that takes."""
        pixels = self.pixels(picture, path, height, width)
        return pixels, self._tokens_at(path, *pixels.shape[-2:])

    @property
    def _native(self) -> NativeSizes | None:
        return None if self.native_sizes is None else NativeSizes(**self.native_sizes)

    def _native_size(self, picture) -> tuple[int | None, int | None]:
        """Height and width that the understanding path reads a picture in; None where it reads squares."""
        return (None, None) if self._native is None else self._native.size_of(*picture.size)

    # --------------------------------------------------------------------------------------------- settings and sizes

    def check_settings(
        self,
        read: str | list[str],
        write: str | None = None,
        loss_on: str = "assistant",
        clean_copy: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Raises ValueError if `document` would refuse these settings whatever the messages; needs no picture.

        `read` may name a path that this processor lacks as long as no image is read: a text-to-image model reads none.
        """
        check_read(read)
        for name, side in (("height", height), ("width", width)):
            if side is not None:
                whole_number(name, side)
        if write is not None:
            require_path(self.paths, write)
            if write == "understanding":
                raise ValueError("the understanding path only reads; write images by 'diffusion' or 'vq'")
            self.count_tokens(write, height, width)
        if loss_on not in LOSS_ON:
            raise ValueError(f"loss_on is {loss_on!r}; it must be one of {', '.join(map(repr, LOSS_ON))}")
        if clean_copy and write != "diffusion":
            raise ValueError(f"clean_copy belongs to images written by 'diffusion', not by {write!r}; set it to false")

    def count_tokens(self, path: str, height: int | None = None, width: int | None = None) -> int:
        """How many tokens an image takes on a path, without the two that frame it. On the understanding path that is
        their number for a picture of this size, where pictures keep their shape, and at most where none is given.

        Raises:
            ValueError: the processor lacks the path, or the size is not a whole number of tokens.
        """
        require_path(self.paths, path)
        if path == "understanding":
            known = self._native is not None and height is not None and width is not None
            return self._native.count(*self._native.size_of(width, height)) if known else self.num_image_tokens
        side = self._pixels_per_token[path]
        height, width = self.size_of(height, width)
        check_size(height, width, side)
        return (height // side) * (width // side) + (path == "diffusion" and self.diffusion_time_token)

    def decode_piece(self, ids: list[int]) -> str:
        """Token ids -> text without special tokens; safe while another thread tokenises."""
        return self._encode.decode(ids)

    def aspect_buckets(self, path: str, ratio: float = 2.0) -> list[tuple[int, int]]:
        """Heights and widths of images of a path with at most as many tokens as a square of `default_size`'s shorter
        side (`paths.patches.aspect_buckets`).

        Raises:
            ValueError: the processor lacks the path, or it is the understanding path, which has one size.
        """
        require_path(self.paths, path)
        if path == "understanding":
            raise ValueError("the understanding path reads squares of one size; name a path that draws")
        return aspect_buckets(min(self.size_of(None, None)), self._pixels_per_token[path], ratio)

    def size_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width; a side that is not given is that of `default_size`, whatever the other one is.

        Raises:
            ValueError: a side is missing, and there is no `default_size`.
        """
        if (height is None or width is None) and self.default_size is None:
            raise ValueError(
                f"the size of an image is {height}x{width}; give height and width, or a default_size to the processor"
            )
        default = (height, width) if self.default_size is None else self.default_size
        return default[0] if height is None else height, default[1] if width is None else width

    # ----------------------------------------------------------------------------------------- as transformers calls

    def __call__(self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs) -> BatchFeature:
        """Texts in which `<image_placeholder>` stands for an image, and those images -> `input_ids`, `attention_mask`
        and `pixel_values` of the understanding path, padded on the left. Other arguments as everywhere in transformers.

        A text that `apply_chat_template` rendered knows which of its control tokens the template wrote; what a user
        typed stays words. Any other text must spell none but `<image_placeholder>`: who wrote them cannot be told.
        `split_special_tokens` says it for a whole text: False = all are tokens, True = all are words.

        Raises:
            ValueError: as many images as placeholders are needed, and a path to read them; or a text spells control
                tokens, and it is not known whether they are meant.
        """
        split = kwargs.pop("split_special_tokens", kwargs.get("text_kwargs", {}).get("split_special_tokens"))
        texts = [self._known_controls(each, split) for each in _texts(text)]
        _check_tokenizing(kwargs | kwargs.get("text_kwargs", {}))
        images = None if images is None else self.image_processor.fetch_images(images)
        pictures = _flatten(images)
        placeholders, counts = [self._count_placeholders(each) for each in texts], _images_per_text(images)
        if len(counts) != len(placeholders):
            placeholders, counts = sum(placeholders), len(pictures)
        if texts and placeholders != counts:
            raise ValueError(
                f"the number of {self.image_token!r} tokens in the prompts should be the same as the number of images, "
                f"but there are {placeholders}, and {counts} images"
            )
        if pictures:
            require_path(self.paths, "understanding")
        if pictures and self.native_sizes is not None:
            raise ValueError(
                "pictures keep their shape here (native_sizes), which makes unlike numbers of tokens of them; use the "
                "pipeline (answer, reply, chat) or the processor's prompt and document"
            )
        text_kwargs = kwargs.get("text_kwargs", {})
        if "padding" not in text_kwargs and "padding" not in self.tokenizer.init_kwargs:
            kwargs.setdefault("padding", True)
        if "padding_side" not in text_kwargs:
            kwargs.setdefault("padding_side", "left")  # a tokenizer made for training pads on the right
        if any(isinstance(each, RenderedText) and not self._encode.is_literal(each, each.controls) for each in texts):
            return self._call_with_words(pictures, texts, kwargs)
        texts = [str(each) if isinstance(each, str) else each for each in texts]
        with _TOKENIZING:
            return super().__call__(images=pictures or None, text=texts or None, **kwargs)

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """As everywhere in transformers. Control tokens in the conversation stay words, whatever is done with the text
        that is returned: it knows where the template's stand."""
        kwargs.pop("sanitize_control_tokens", None)  # of transformers from 5.20 on: it is always so here
        template = self._required_template()
        given = {
            "conversation": _without_wrapper(conversation),
            **{key: kwargs.get(key) for key in ("tools", "documents")},
        }
        for each in _conversations(given["conversation"]):
            check_conversation(each)
        named = self.chat_template if isinstance(self.chat_template, dict) else {}
        chat_template = named.get(chat_template, chat_template) or template.for_parts
        given, mark = self._controls.marked(given, beside=chat_template)
        if mark is not None and kwargs.get("return_assistant_tokens_mask"):
            raise ValueError(
                "return_assistant_tokens_mask is not known where a text holds control tokens as words; leave one out"
            )
        token = _RENDERED_WITH.set((self, mark))
        try:
            rendered = super().apply_chat_template(**given, chat_template=chat_template, **kwargs)
        finally:
            _RENDERED_WITH.reset(token)
        if isinstance(rendered, str):
            return RenderedText(*self._controls.found(rendered, mark))
        if isinstance(rendered, list) and rendered and isinstance(rendered[0], str):
            return [RenderedText(*self._controls.found(each, mark)) for each in rendered]
        return rendered

    def _known_controls(self, text, split: bool | None):
        """A text of `__call__` as one that knows its control tokens; what is no text stays."""
        if not isinstance(text, str) or isinstance(text, RenderedText):
            return text
        if split:
            return RenderedText(text, ())
        processor, mark = _RENDERED_WITH.get() or (None, None)
        text, controls = self._controls.found(text, mark if processor is self else None)
        if split is None and processor is not self:
            spelled = [text[begin:end] for begin, end in controls]
            if foreign := [name for name in spelled if name != self.image_token]:
                raise ValueError(
                    f"the text spells {foreign[0]!r}, a control token, and it is not known who wrote it; give what "
                    "apply_chat_template returns, or say split_special_tokens=False (all are tokens) or True (all are "
                    "words)"
                )
        return RenderedText(text, controls)

    def _count_placeholders(self, text) -> int:
        if not isinstance(text, RenderedText):
            return text.count(self.image_token)
        return sum(text[begin:end] == self.image_token for begin, end in text.controls)

    def _call_with_words(self, pictures: list, texts: list[RenderedText], kwargs: dict) -> BatchFeature:
        """`__call__` for texts of which some hold control tokens as words, which the tokenizer alone cannot encode."""
        settings = {**kwargs, **kwargs.get("text_kwargs", {})}
        if unknown := [name for name in _MASKS if settings.get(name)]:
            raise ValueError(f"{unknown[0]} is not known where a text holds control tokens as words; leave one out")
        framed = settings.get("add_special_tokens", True)
        ids = [self._encode(*self._with_image_tokens(text), add_special_tokens=framed) for text in texts]
        longest = settings.get("max_length")
        if settings.get("truncation") and longest is not None:
            side = self.tokenizer.truncation_side
            ids = [row[-longest:] if side == "left" else row[:longest] for row in ids]
        batch = {} if not pictures else dict(super().__call__(images=pictures, **kwargs))
        batch |= self.tokenizer.pad(
            {"input_ids": ids}, **{name: settings[name] for name in _PADDING if settings.get(name) is not None}
        )
        if settings.get("return_mm_token_type_ids"):
            batch["mm_token_type_ids"] = self.create_mm_token_type_ids(batch["input_ids"])
        return BatchFeature(batch, tensor_type=settings.get("return_tensors"))

    def _with_image_tokens(self, text: RenderedText) -> tuple[str, Spans]:
        """The text with each placeholder as framed placeholders, and where its control tokens stand then."""
        written, spans, done = "", [], 0
        for begin, end in text.controls:
            written += text[done:begin]
            framed = self.replace_image_token() if text[begin:end] == self.image_token else text[begin:end]
            spans += [(len(written) + first, len(written) + last) for first, last in self._controls.found(framed)[1]]
            written, done = written + framed, end
        return written + text[done:], tuple(spans)

    def replace_image_token(self, *args, **kwargs) -> str:
        """A placeholder in the text as framed placeholders, one for each token of the image (transformers' hook)."""
        return f"{self.begin_image_token or ''}{self.image_token * self.num_image_tokens}{self.end_image_token or ''}"

    @property
    def image_token_id(self) -> int | None:
        return self.special_tokens.understanding

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As everywhere in transformers. Given a whole checkpoint (a saved pipeline), it loads the processor in it."""
        return super().from_pretrained(part_of(pretrained_model_name_or_path, "processor", **kwargs), **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """See `ProcessorMixin`. Loading's notes in the tokenizer about its origin are not saved with it."""
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
    """A square of the side that all writing paths share; None where no path writes."""
    known = {path: side for path, side in sides.items() if side is not None}
    if len(set(known.values())) > 1:
        shown = ", ".join(f"{path} {side}" for path, side in known.items())
        raise ValueError(
            f"the paths write images of different sides ({shown} pixels); say default_size=(height, width)"
        )
    return next(((side, side) for side in known.values()), None)


def _without_wrapper(conversation):
    """A conversation, or several, as transformers' pipelines wrap them, as lists."""
    if isinstance(conversation, list | tuple):
        return [_without_wrapper(each) for each in conversation]
    return getattr(conversation, "messages", conversation)


def _conversations(given) -> list:
    """One conversation, or a batch of them -> a list."""
    is_batch = isinstance(given, list | tuple) and bool(given) and isinstance(given[0], list | tuple)
    return list(given) if is_batch else [given]


def _images_per_text(images) -> list[int]:
    """How many images each text has, where they come as one list a text; empty otherwise."""
    nested = isinstance(images, list | tuple) and all(isinstance(each, list | tuple) for each in images)
    return [len(each) for each in images] if nested else []


def _flatten(images) -> list:
    """One picture, a list of them or one list a text -> a list of pictures."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in _flatten(item)]
    return [images]


def _texts(text) -> list:
    """The texts of a call: strings, or lists of words. Raises ValueError for what is neither."""
    texts = [] if text is None else [text] if isinstance(text, str) else listed(text)
    words = [word for each in texts or [] for word in (each if isinstance(each, list) else [each])]
    if texts is None or not all(isinstance(word, str) for word in words):
        raise ValueError(f"text is {shown(text)}; give a text or a list of texts")
    for word in words:
        check_text(word, "the text")
    return texts


def _check_tokenizing(settings: dict) -> None:
    """Raises ValueError for values of the tokenizer's settings that it does not know, and its own error hides."""
    for name, kinds in (("padding", PaddingStrategy), ("truncation", TruncationStrategy)):
        if (value := settings.get(name)) is not None and not isinstance(value, bool):
            choice(name, value, [kind.value for kind in kinds])
    if (longest := settings.get("max_length")) is not None:
        whole_number("max_length", longest)
    if (kind := settings.get("return_tensors")) is not None:
        choice("return_tensors", kind, [known.value for known in TensorType])


def check_read(read: str | list[str]) -> None:
    """Raises ValueError unless images can be read by this path, or by all of these, each named once."""
    paths = [read] if isinstance(read, str) else listed(read)
    if paths is None:
        raise ValueError(f"read is {shown(read)}; give the path by which images are read, or a list of several")
    if unknown := [path for path in paths if not isinstance(path, str) or path not in PATHS]:
        raise ValueError(f"no path {shown(unknown[0])} to read images by; the paths are {', '.join(PATHS)}")
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"read is {shown(read)}; name each path by which images are read once")


def _passes(read: str | list[str], write: str | None, clean_copy: bool) -> list[str]:
    """The paths by which one image stands in the document, in order."""
    read = [read] if isinstance(read, str) else list(read)
    if write is None:
        return read
    return [write, *(path for path in read if path != write)] if clean_copy and len(read) > 1 else [write]


def check_unconditional(unconditional: str) -> str:
    """The kind of unconditional prompt itself. Raises ValueError for one that is not known."""
    if unconditional not in UNCONDITIONAL:
        raise ValueError(f"unconditional is {unconditional!r}; it must be one of {', '.join(UNCONDITIONAL)}")
    return unconditional
