"""Tokenizers: the tokens that images need, added to any tokenizer, and a small tokenizer trained from texts.

Models that start from a pretrained backbone keep its tokenizer (`add_image_tokens`); models from scratch get one of
their own (`build_tokenizer`). The embedding of a placeholder is never its row of the table, so only the two tokens that
frame an image need rows there.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hybridgen.configuration_hybridgen import HybridGenConfig
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
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")


def add_image_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add the tokens of images that the tokenizer lacks. Returns their number (then resize the embeddings)."""
    missing = [token for token in IMAGE_TOKENS if token not in tokenizer.get_vocab()]
    return tokenizer.add_tokens(missing, special_tokens=True)


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
    tokenizer: PreTrainedTokenizerBase, begin_image: str, end_image: str, placeholders: dict[str, str]
) -> SpecialTokens:
    """The ids behind the names of the two tokens that frame images and of the placeholder of each path.

    Raises:
        ValueError: the tokenizer lacks some, or has nothing to pad with.
    """
    names = {"begin_image": begin_image, "end_image": end_image, **placeholders}
    ids = {kind: tokenizer.convert_tokens_to_ids(name) for kind, name in names.items()}
    missing = [names[kind] for kind, token_id in ids.items() if token_id in (None, tokenizer.unk_token_id)]
    if missing:
        raise ValueError(
            f"the tokenizer has no {', '.join(missing)}; call hybridgen.processing_hybridgen.add_image_tokens on it, "
            "or say what it calls them"
        )
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad is None:
        raise ValueError("the tokenizer has neither a pad nor an end-of-text token; set tokenizer.pad_token")
    return SpecialTokens(pad=pad, **ids)


class PieceTokenizer:
    """Tokenises pieces of text, each alone, with a cache.

    It works on its own copy of the tokenizer's backend: `tokenizer(..., padding=True)` in one thread while another
    encodes is an error of the library ("Already borrowed"), and loaders run in a thread.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cache_size: int = 50_000):
        self.cache_size = cache_size
        self._ids: dict[str, list[int]] = {}
        self._slow = None if tokenizer.is_fast else tokenizer
        if tokenizer.is_fast:
            self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_padding()
            self._backend.no_truncation()

    def __call__(self, text: str) -> list[int]:
        ids = self._ids.get(text)
        if ids is None:
            if self._slow is None:
                ids = self._backend.encode(text, add_special_tokens=False).ids
            else:
                ids = self._slow(text, add_special_tokens=False)["input_ids"]
            if len(self._ids) >= self.cache_size:
                self._ids.clear()
            self._ids[text] = ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Token ids -> text, without special tokens."""
        return (self._slow or self._backend).decode(ids, skip_special_tokens=True)

    def __deepcopy__(self, memo) -> "PieceTokenizer":
        return self  # `to_dict` of a processor copies its attributes whole


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
