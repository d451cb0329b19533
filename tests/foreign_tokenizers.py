"""Small tokenizers built as those of known families are, with their chat templates. Not a test itself.

Each is made as the family's `tokenizer.json` says: what stands before the first word, how bytes are written, which
added tokens are special, which are normalised or swallow the spaces beside them.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["what is it? a red circle, is it?", "system user assistant end of text im start", "<| |> </ > [ ]"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "
    "(message.content | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}"
    "{% elif message.role == 'assistant' %}{{ '<｜Assistant｜>' + message.content + eos_token }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
LETTERS, MARKS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = f"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{LETTERS}|{MARKS}"


def byte_level(added: list[AddedToken], bos: str | None = None, normalizer=None, **names) -> PreTrainedTokenizerFast:
    """BPE over bytes, as Llama 3, Qwen and DeepSeek have it."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(WORDS * 3, trainer)
    backend.add_tokens(added)
    if bos is not None:
        frame = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=frame)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, clean_up_tokenization_spaces=False, **names)


def special(*names: str, **flags) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def llama3() -> PreTrainedTokenizerFast:
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(12)]
    return byte_level(
        special(*names, *reserved), bos=names[0], eos_token=names[4], pad_token=names[1], chat_template=LLAMA3
    )


def qwen() -> PreTrainedTokenizerFast:
    added = special("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    added += [AddedToken(name, special=False, normalized=False) for name in ("<tool_call>", "<think>", "</think>")]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return byte_level(added, normalizer=normalizers.NFC(), **names)


def deepseek() -> PreTrainedTokenizerFast:
    """Its role tokens are not special."""
    added = special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    added += [
        AddedToken(name, special=False, normalized=False) for name in ("<｜User｜>", "<｜Assistant｜>", "</think>")
    ]
    return byte_level(
        added, bos=added[0].content, eos_token=added[1].content, pad_token=added[1].content, chat_template=DEEPSEEK
    )


def phi() -> PreTrainedTokenizerFast:
    """Its tokens swallow spaces, those of roles on the right."""
    added = special("<|endoftext|>") + special("<|im_start|>", "<|im_end|>", rstrip=True, lstrip=True)
    return byte_level(added, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def lowercase() -> PreTrainedTokenizerFast:
    """It finds its tokens in normalised text: `<|IM_END|>` is one, too."""
    added = [
        AddedToken(name, special=True, normalized=True) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return byte_level(added, normalizer=normalizers.Lowercase(), **names)


def llama2(legacy: bool) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, with a space before each stretch (legacy) or before the first word only."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=tokens, show_progress=False)
    backend.train_from_iterator([word.replace(" ", "▁") for word in WORDS * 3], trainer)
    plain = Tokenizer.from_str(_without_added(backend.to_str()))
    plain.add_special_tokens(special("<unk>", "<s>", "</s>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=LLAMA2, **names)


def _without_added(content: str) -> str:
    return json.dumps(json.loads(content) | {"added_tokens": []})


def unigram() -> PreTrainedTokenizerFast:
    """Its model itself holds `</s>`, so it writes the token from plain characters."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((chr(code), -3.0) for code in range(32, 127)), ("▁", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(special("<unk>", "<s>", "</s>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=LLAMA2, **names)


FAMILIES = {
    "llama3": llama3,
    "qwen": qwen,
    "deepseek": deepseek,
    "phi": phi,
    "lowercase": lowercase,
    "llama2": lambda: llama2(legacy=False),
    "llama2-legacy": lambda: llama2(legacy=True),
}
