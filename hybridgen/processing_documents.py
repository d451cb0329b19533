"""Chat messages -> documents: the half of the processor that training and the pipeline call.

Messages become pieces (`chat`), pieces become segments of tokens and pixels, segments are laid out (`layout`). The fact
a newcomer gets wrong: `read` and `write` are paths by which images pass, and the same messages make another document by
another path; by several, where `read` is a list: an image then stands there once a path, in that order (BAGEL,
arXiv 2505.14683, reads clean latents and then what the tower sees).
"""

from dataclasses import replace

from torch import Tensor

from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.documents import Document, DocumentImage
from hybridgen.core.layout import PATHS, ImageSegment, TextSegment, lay_out
from hybridgen.core.messages import ChatTemplate, Piece, check_messages
from hybridgen.image_processing_hybridgen import fit_size
from hybridgen.paths.patches import aspect_buckets, check_size

LOSS_ON = ("assistant", "all")
UNCONDITIONAL = ("empty", "janus-official", "janus-hf")


class DocumentBuilding:
    """Mixed into the processor, whose settings say what an image becomes."""

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
    ) -> Document:
        """A training document.

        Args:
            messages: chat messages (`chat.check_messages`) whose image parts hold pictures.
            read: path by which images are read, or several.
            write: path by which images in turns that are taught are written; None = they are read as well.
            loss_on: whose turns are taught: the `assistant`'s (its text and its end of turn; its images if `write`
                says so), or `all` (every token and every image: Transfusion's recipe).
            prompt_dropout: leave out what the user says, as in the unconditional prompt of guidance.
            clean_copy: later tokens read a clean copy of each written image instead of the noised one (diffusion only), and
                after it the image by the other paths of `read`, where that is a list.
            height, width: of images on the diffusion and vq paths; None = `default_size`.
            image_tokens: those images keep their aspect ratio instead, and have at most so many tokens.

        Raises:
            ValueError: in one sentence, what is wrong with the messages or the settings.
        """
        self.check_settings(read, write, loss_on, clean_copy, height, width)
        padded = prompt_dropout and self.unconditional != "empty"
        pieces = self._pieces(messages, prompt_dropout=prompt_dropout and not padded)
        if loss_on == "assistant" and not any(piece.assistant for piece in pieces):
            raise ValueError("no message of the assistant, so nothing to learn; add one, or set loss_on='all'")
        return self._assemble(pieces, read, write, loss_on, clean_copy, height, width, padded, image_tokens)

    def prompt(
        self,
        messages: list[dict],
        *,
        read: str | list[str] = "understanding",
        height: int | None = None,
        width: int | None = None,
        unconditional: bool = False,
    ) -> Document:
        """What the model is given before it answers: every image is read, nothing is taught, the assistant's turn is
        open. To draw, the sampler goes on with the token that begins an image.

        Args:
            unconditional: what guidance leads away from, in place of what the user says (see the processor).

        Raises:
            ValueError: in one sentence, what is wrong with the messages or the path.
        """
        self.check_settings(read, height=height, width=width)
        padded = unconditional and self.unconditional != "empty"
        pieces = self._pieces(messages, generation_prompt=True, prompt_dropout=unconditional and not padded)
        return self._assemble(pieces, read, None, None, False, height, width, padded)

    def conversation(self, messages: list[dict], unconditional: bool = False) -> list[list[int] | None]:
        """The tokens of a `prompt`, text by text in reading order, and None where a picture stands (its frame is not
        among them): for whoever knows already what the pictures are.

        Raises:
            ValueError: in one sentence, what is wrong with the messages.
        """
        padded = unconditional and self.unconditional != "empty"
        found: list[list[int] | None] = []
        for piece in self._pieces(messages, generation_prompt=True, prompt_dropout=unconditional and not padded):
            ids = None if piece.text is None else self._encode(piece.text)
            if ids is not None and padded and not piece.assistant:
                ids = self._pads(ids, first=not found)
            found.append(ids)
        return found

    def check_settings(
        self,
        read: str | list[str],
        write: str | None = None,
        loss_on: str = "assistant",
        clean_copy: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Raises ValueError if `document` could not be called so, whatever the messages; needs no picture.

        `read` may name a path that is not there as long as no image is read: text-to-image models have none to read.
        """
        check_read(read)
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
        """How many tokens an image takes on a path, its frame not counted.

        Raises:
            ValueError: the path is not there, or the size is not a whole number of tokens.
        """
        require_path(self.paths, path)
        if path == "understanding":
            return self.num_image_tokens
        side = self._token_sizes[path]
        height, width = self.size_of(height, width)
        check_size(height, width, side)
        return (height // side) * (width // side)

    def decode_piece(self, ids: list[int]) -> str:
        """The text of tokens, special tokens left out; safe while another thread tokenises."""
        return self._encode.decode(ids)

    def aspect_buckets(self, path: str, ratio: float = 2.0) -> list[tuple[int, int]]:
        """Heights and widths that a path can draw for no more tokens than a square with `default_size`' shorter side.

        Raises:
            ValueError: the path is not there, or makes the same of every size.
        """
        require_path(self.paths, path)
        if path == "understanding":
            raise ValueError("the understanding path reads squares of one size; name a path that draws")
        return aspect_buckets(min(self.size_of(None, None)), self._token_sizes[path], ratio)

    def size_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """A size in full: a side that is not given is that of `default_size`, whatever the other one is.

        Raises:
            ValueError: a side is missing, and there is no `default_size`.
        """
        if (height is None or width is None) and self.default_size is None:
            raise ValueError(
                f"the size of an image is {height}x{width}; give height and width, or a default_size to the processor"
            )
        default = (height, width) if self.default_size is None else self.default_size
        return default[0] if height is None else height, default[1] if width is None else width

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
        self, pieces: list[Piece], read: str | list[str], write: str | None, loss_on: str | None, clean_copy: bool,
        height: int | None, width: int | None, padded: bool = False, image_tokens: int | None = None,
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
            for path in _passes(read, write if written else None, clean_copy):
                drawn, size = written and path == write, (height, width)
                if image_tokens is not None and path in self._token_sizes:
                    size = fit_size(piece.picture, image_tokens, self._token_sizes[path])
                length = self.count_tokens(path, *size)
                bidirectional = path in self.bidirectional_paths
                segments.append(ImageSegment(path, length, bidirectional, write=drawn, clean_copy=clean_copy and drawn))
                images.append(DocumentImage(path, self._pixels(piece, path, *size), drawn, piece.image_first))
                if clean_copy and drawn:
                    images.append(replace(images[-1], write=False))
        return Document(lay_out(segments, self.special_tokens), images)

    def _pads(self, ids: list[int], first: bool) -> list[int]:
        """What `unconditional` leaves of the tokens of a text; `first`: it opens the document."""
        if known_unconditional(self.unconditional) == "janus-official":
            kept = [first and place == 0 for place in range(len(ids))]
        else:
            kept = [token in (self.tokenizer.bos_token_id, self.special_tokens.begin_image) for token in ids]
        return [token if keep else self.special_tokens.pad for token, keep in zip(ids, kept, strict=True)]

    def _pixels(self, piece: Piece, path: str, height: int | None, width: int | None) -> Tensor:
        if path == "understanding":
            return self.image_processor.understanding([piece.picture])[0]
        return self.image_processor.generation(piece.picture, *self.size_of(height, width))


def check_read(read: str | list[str]) -> None:
    """Raises ValueError for what is no path, or no list of different ones, to read images by."""
    paths = [read] if isinstance(read, str) else list(read)
    if unknown := [path for path in paths if path not in PATHS]:
        raise ValueError(f"no path {unknown[0]!r} to read images by; the paths are {', '.join(PATHS)}")
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"read is {read!r}; name each path by which images are read once")


def _passes(read: str | list[str], write: str | None, clean_copy: bool) -> list[str]:
    """The paths by which one image stands in the document, in order."""
    read = [read] if isinstance(read, str) else list(read)
    if write is None:
        return read
    return [write, *(path for path in read if path != write)] if clean_copy and len(read) > 1 else [write]


def known_unconditional(unconditional: str) -> str:
    """Raises ValueError for a kind of unconditional prompt that is not known."""
    if unconditional not in UNCONDITIONAL:
        raise ValueError(f"unconditional is {unconditional!r}; it must be one of {', '.join(UNCONDITIONAL)}")
    return unconditional
