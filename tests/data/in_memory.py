"""Sources that tests fill by hand, and what a batch holds, as words. Not a test itself."""

import torch

from hybridgen.data.document_source import DocumentSource
from hybridgen.data.source_config import SourceConfig
from tests.processors import assistant, image, user


class Listed:
    """Records from a list."""

    def __init__(self, conversations: list[list[dict]]):
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        return {"messages": self.conversations[index]}


def numbered(count: int, name: str = "n") -> Listed:
    """Texts of various lengths; record i says `<name i>`."""
    return Listed([[user("what?"), assistant(f"<{name} {i}>" + " red" * (i * 7 % 11))] for i in range(count)])


def drawings(count: int) -> Listed:
    return Listed([[user(f"red {i}"), assistant(image(i))] for i in range(count)])


def questions(count: int) -> Listed:
    return Listed([[user(image(i), "what colour is it?"), assistant(f"blue {i}")] for i in range(count)])


def source_of(source: Listed, seed: int = 0, name: str = "task", **config) -> DocumentSource:
    return DocumentSource(source, SourceConfig("memory.jsonl", name=name, **config), seed)


def documents_of(batch: dict, tokenizer) -> list[str]:
    """The documents of a batch as texts, in reading order."""
    found = []
    for ids, numbers in zip(batch["input_ids"], batch["document_ids"], strict=True):
        found += [tokenizer.decode(ids[numbers == number]) for number in range(int(numbers.max()) + 1)]
    return found


def same(a, b) -> bool:
    """Whether two batches are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, tuple):
        return a == b
    return a.dtype == b.dtype and torch.equal(a, b)
