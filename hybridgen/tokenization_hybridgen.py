"""Tokenizers: the tokens that images need, added to any tokenizer; texts whose control tokens are words; and a small
tokenizer trained from texts.

Models that start from a pretrained backbone keep its tokenizer (`add_image_tokens`); models from scratch get one of
their own (`build_tokenizer`). The embedding of a placeholder is never its row of the table, so only the two tokens that
frame an image need rows there.
"""

import json
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.control_tokens import ControlTokens, Spans
from hybridgen.core.layout import SpecialTokens

BEGIN_IMAGE, END_IMAGE = "<begin_of_image>", "<end_of_image>"
PLACEHOLDERS = {
    "understanding": "<image_placeholder>",
    "diffusion": "<diffusion_placeholder>",
    "vq": "<vq_placeholder>",
}
IMAGE_TOKENS = (BEGIN_IMAGE, END_IMAGE, *PLACEHOLDERS.values())
TEXT_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
REASONING_TOKENS = ("<think>", "</think>")  # of the texts, as in Qwen3, not special: decoding keeps them
LONGEST_CACHED = 1000  # characters: a longer text is a document, and hardly comes again
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")


def add_image_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the tokens of images that the tokenizer lacks. Returns their number (then resize the embeddings)."""
    missing = [token for token in IMAGE_TOKENS if token not in tokenizer.get_vocab()]
    return tokenizer.add_tokens(missing, special_tokens=True)


def has_role_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has the tokens that hybridgen's own chat template writes for roles."""
    return not set(ROLE_TOKENS) - set(tokenizer.get_vocab())


def image_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of image tokens under the config's names: `HybridGenConfig(..., **image_token_ids(tokenizer))`.

    Raises:
        ValueError: the tokenizer lacks some.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in IMAGE_TOKENS if token not in vocabulary]:
        raise ValueError(f"the tokenizer has no {', '.join(missing)}; call add_image_tokens on it first")
    names = ("begin_image", "end_image", "image", "diffusion", "vq")
    return {f"{name}_token_id": vocabulary[token] for name, token in zip(names, IMAGE_TOKENS, strict=True)}


def check_token_ids(config: HybridGenConfig, tokens: SpecialTokens) -> None:
    """Raises ValueError if a model's placeholders, or the tokens that frame images, are not those of the tokenizer."""
    expected = {"begin_image": tokens.begin_image, "end_image": tokens.end_image}
    names = {"understanding": "image", "diffusion": "diffusion", "vq": "vq"}
    expected |= {names[path]: tokens.placeholder(path) for path in config.paths}
    for name, token_id in expected.items():
        configured = getattr(config, f"{name}_token_id")
        if configured != token_id:
            raise ValueError(
                f"the model's {name}_token_id is {configured}, but the tokenizer says {token_id}; "
                "make the config with **image_token_ids(tokenizer)"
            )


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, begin_image: str | None, end_image: str | None, placeholders: dict[str, str]
) -> SpecialTokens:
    """The ids behind the names of the two tokens that frame images (None = nothing does), and of the placeholder of
    each path.

    Raises:
        ValueError: the tokenizer lacks some, or has nothing to pad with.
    """
    names = {"begin_image": begin_image, "end_image": end_image, **placeholders}
    ids = {kind: None if name is None else tokenizer.convert_tokens_to_ids(name) for kind, name in names.items()}
    unknown = (None, tokenizer.unk_token_id)
    missing = [name for kind, name in names.items() if name is not None and ids[kind] in unknown]
    if missing:
        raise ValueError(
            f"the tokenizer has no {', '.join(missing)}; call hybridgen.processing_hybridgen.add_image_tokens on it, "
            "or say what it calls them"
        )
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad is None:
        raise ValueError("the tokenizer has neither a pad nor an end-of-text token; set tokenizer.pad_token")
    return SpecialTokens(pad=pad, **ids)


def control_names(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How the control tokens of a tokenizer are spelled, and its other added tokens, which a chat template may use as
    such. Tokens of reasoning are neither: an answer spells them."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    special |= {token.content for token in added if token.content in IMAGE_TOKENS}
    others = {token.content for token in added} - special - set(REASONING_TOKENS)
    special, others = (sorted(name for name in names if not name.isspace()) for names in (special, others))
    return tuple(special), tuple(others)


class PieceTokenizer:
    """Tokenises pieces of text, each alone, with a cache.

    It works on its own copy of the tokenizer's backend: `tokenizer(..., padding=True)` in one thread while another
    encodes is an error of the library ("Already borrowed"), and loaders run in a thread.

    Args:
        controls: the tokens that a text may spell without meaning them; None = every token that it spells is meant.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, controls: ControlTokens | None = None, cache_size: int = 50_000
    ):
        self.cache_size = cache_size
        self._controls = controls or ControlTokens(())
        self._control_ids = set(tokenizer.convert_tokens_to_ids(list(self._controls.names)))
        if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
            self._control_ids -= {tokenizer.unk_token_id}  # which any unknown character is
        self._ids: dict[tuple[str, Spans | None], list[int]] = {}
        self._slow, self._backend = None if tokenizer.is_fast else tokenizer, None
        self._fenced: dict[int, FencedTokenizer] = {}
        if tokenizer.is_fast:
            self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_padding()
            self._backend.no_truncation()
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content in self._controls.names]
        # whether it finds control tokens that are spelled otherwise, such as in capitals
        self._folds = (
            any(token.normalized for token in added) and getattr(self._backend, "normalizer", None) is not None
        )

    def __call__(self, text: str, controls: Spans | None = None, add_special_tokens: bool = False) -> list[int]:
        """Text -> token ids.

        Args:
            controls: where the text holds control tokens that are meant; what others it spells are words. None = all
                are meant.
            add_special_tokens: frame the text as the tokenizer's post-processor does.

        Raises:
            ValueError: the tokenizer cannot write a control token as words.
        """
        key = (text, controls) if not add_special_tokens and len(text) <= LONGEST_CACHED else None
        ids = self._ids.get(key)
        if ids is None:
            plain = self._encode(text)
            if controls is None or self._are_meant(plain, text, controls):
                ids = self._encode(text, add_special_tokens=True) if add_special_tokens else plain
            else:
                ids = self._encode_words(text, controls, add_special_tokens)
            if len(self._ids) >= self.cache_size:
                self._ids.clear()
            if key is not None:
                self._ids[key] = ids
        return ids

    def inside(self, text: str, controls: Spans, stretches: Spans) -> list[bool]:
        """Of each token of a text, whether it holds a character of one of the stretches.

        Raises:
            ValueError: the tokenizer does not tell where its tokens stand.
        """
        ids, places = self(text, controls), self._places(text, controls)
        if len(places) != len(ids):
            raise ValueError(
                "the tokenizer does not tell where its tokens stand in a text, so which of them a user wrote is not "
                "known; set loss_on to 'assistant', or to 'everything' (then the template's own tokens are taught, too)"
            )
        return [any(first < end and begin < last for first, last in stretches) for begin, end in places]

    def _places(self, text: str, controls: Spans) -> list[tuple[int, int]]:
        """(begin, end) of each token in the text; none where they are not known."""
        if self._slow is not None:
            return []
        if self._are_meant(self._encode(text), text, controls):
            return _offsets(self._backend, text)
        return self._fenced[fence_for(text)].places(text, controls)

    def is_literal(self, text: str, controls: Spans) -> bool:
        """Whether the tokenizer itself encodes the text so: every control token that it spells is meant."""
        return not self._folds and len(self._controls.found(text)[1]) == len(controls)

    def _encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        if self._slow is None:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return self._slow(text, add_special_tokens=add_special_tokens)["input_ids"]

    def _are_meant(self, ids: list[int], text: str, controls: Spans) -> bool:
        """Whether all control tokens among the ids are the meant ones; a tokenizer that folds may find others."""
        spelled = self._controls.found(text)[1]
        return len(spelled) == len(controls) and len(self._control_tokens(ids)) <= len(controls)

    def _control_tokens(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._control_ids]

    def _encode_words(self, text: str, controls: Spans, add_special_tokens: bool) -> list[int]:
        """The text with each control token as words, but for the meant ones."""
        if self._slow is None:
            fences = fence_for(text)
            if fences not in self._fenced:
                self._fenced[fences] = FencedTokenizer(self._backend, self._controls.names, fences)
            fenced = self._fenced[fences]
            ids, meant = fenced.encode(text, controls), fenced.ids_of(text, controls)
            if self._control_tokens(ids) == [token for token in meant if token in self._control_ids]:
                return fenced.encode(text, controls, add_special_tokens) if add_special_tokens else ids
        typed = [span for span in self._controls.found(text)[1] if span not in controls]
        names = ", ".join(sorted({repr(text[begin:end]) for begin, end in typed})) or "spelled otherwise"
        raise ValueError(
            f"a text holds a control token of the tokenizer ({names}), which it cannot write as words; leave it out"
        )

    def decode(self, ids: list[int]) -> str:
        """Token ids -> text, without special tokens."""
        return (self._slow or self._backend).decode(ids, skip_special_tokens=True)

    def __deepcopy__(self, memo) -> "PieceTokenizer":
        return self  # `to_dict` of a processor copies its attributes whole


def _offsets(backend: Tokenizer, text: str) -> list[tuple[int, int]]:
    """(begin, end) of each token in the text, the spaces counted that a post-processor leaves out."""
    places, done = [], 0
    for begin, end in backend.encode(text, add_special_tokens=False).offsets:
        places.append((min(begin, done), end) if end > done else (begin, end))
        done = max(done, end)
    return places


_FENCE = "\ufdd0"  # a character that no text should hold; where one does, several of them are the fence


def fence_for(text: str) -> int:
    """How many fences in a row the text does not hold."""
    return max(map(len, re.findall(f"{_FENCE}+", text)), default=0) + 1


class FencedTokenizer:
    """A copy of a tokenizer that takes its control tokens for words, and finds them only by other, fenced names.

    So a text with both kinds is tokenised at once, and its words as they would be without: what a tokenizer does at the
    borders of control tokens (spaces that they swallow, a space put before the first word) stays.
    """

    def __init__(self, backend: Tokenizer, names: Iterable[str], fences: int):
        content = json.loads(backend.to_str())
        controls = [token for token in content["added_tokens"] if token["content"] in set(names)]
        for token in controls:
            token["special"] = True  # only those can be ignored
        self._backend = Tokenizer.from_str(json.dumps(content))
        self._backend.encode_special_tokens = True
        self._fenced = {token["content"]: f"{_FENCE * fences}{token['id']};" for token in controls}
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        self._backend.add_tokens(
            [
                AddedToken(self._fenced[token["content"]], **{flag: token[flag] for flag in flags}, special=False)
                for token in controls
            ]
        )
        self._ids = {token["content"]: token["id"] for token in controls}
        self._meant = {self._backend.token_to_id(self._fenced[name]): id for name, id in self._ids.items()}

    def ids_of(self, text: str, controls: Spans) -> list[int]:
        """The ids of the control tokens that stand there."""
        return [self._ids[text[begin:end]] for begin, end in controls]

    def encode(self, text: str, controls: Spans, add_special_tokens: bool = False) -> list[int]:
        """Token ids; of all control tokens that the text spells, those at `controls` are tokens."""
        fenced, _ = self._rename(text, controls)
        ids = self._backend.encode(fenced, add_special_tokens=add_special_tokens).ids
        return [self._meant.get(token, token) for token in ids]

    def places(self, text: str, controls: Spans) -> list[tuple[int, int]]:
        """(begin, end) in the text of each token of `encode`."""
        fenced, origins = self._rename(text, controls)
        return [
            (origins[begin], origins[end - 1] + 1 if end > begin else origins[begin])
            for begin, end in _offsets(self._backend, fenced)
        ]

    def _rename(self, text: str, controls: Spans) -> tuple[str, list[int]]:
        """The text with fenced names for the control tokens that are meant, and the place in the text that each of its
        characters comes from (with one more, of its end)."""
        fenced, origins, done = "", [], 0
        for begin, end in controls:
            name = self._fenced[text[begin:end]]
            fenced += text[done:begin] + name
            origins += [*range(done, begin), *[begin] * (len(name) - 1), end - 1]
            done = end
        return fenced + text[done:], [*origins, *range(done, len(text) + 1)]


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`: every text can be written, and frequent words are one token.

    Deterministic. It has the tokens of images, of roles, of reasoning, and `<|bos|> <|eos|> <|pad|>`.

    Raises:
        ValueError: the vocabulary is too small for the bytes and the special tokens.
    """
    special = [*TEXT_TOKENS.values(), *ROLE_TOKENS, *IMAGE_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < (least := len(alphabet) + len(special) + len(REASONING_TOKENS)):
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: {len(alphabet)} bytes and {least - len(alphabet)} tokens with "
            f"a meaning of their own need at least {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(REASONING_TOKENS),
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in REASONING_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=[*ROLE_TOKENS, *IMAGE_TOKENS],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **TEXT_TOKENS,
    )
