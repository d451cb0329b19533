"""Tokenizers: the tokens that images need, added to any tokenizer, and a small tokenizer trained from texts.

Models that start from a pretrained backbone keep its tokenizer (`add_image_tokens`); models from scratch get one of
their own (`build_tokenizer`). The fact a newcomer gets wrong: a placeholder is never looked up in the embedding table,
so only the two tokens that frame an image need rows of their own there.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BEGIN_IMAGE, END_IMAGE = "<begin_of_image>", "<end_of_image>"
PLACEHOLDERS = {
    "understanding": "<image_placeholder>",
    "diffusion": "<diffusion_placeholder>",
    "vq": "<vq_placeholder>",
}
IMAGE_TOKENS = (BEGIN_IMAGE, END_IMAGE, *PLACEHOLDERS.values())
TEXT_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")


def add_image_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add what images need and the tokenizer lacks, and say how many tokens that were (resize the embeddings then)."""
    missing = [token for token in IMAGE_TOKENS if token not in tokenizer.get_vocab()]
    return tokenizer.add_tokens(missing, special_tokens=True)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`: every text can be written, and frequent words are one token.

    Deterministic. It has the tokens of images, of roles, and `<|bos|> <|eos|> <|pad|>`.

    Raises:
        ValueError: the vocabulary is too small for the bytes and the special tokens.
    """
    special = [*TEXT_TOKENS.values(), *ROLE_TOKENS, *IMAGE_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(special) + len(alphabet):
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: {len(alphabet)} bytes and {len(special)} special tokens need "
            f"at least {len(special) + len(alphabet)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=[*ROLE_TOKENS, *IMAGE_TOKENS],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **TEXT_TOKENS,
    )
