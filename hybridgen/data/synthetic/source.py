"""What all synthetic datasets' sources share: record number i, computed from (seed, split, i) alone, as a chat record.

The pictures and the words come from the dataset that inherits. An index is a picture: record 7 of the draw task and
record 7 of the answer task show the same one (give the two different seeds where that matters), as does `picture(7)`.
"""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from hybridgen.data.records import chat_record, image_part, text_part
from hybridgen.data.synthetic.chats import Scene, chat_turns
from hybridgen.data.synthetic.questions import Question
from hybridgen.data.synthetic.sizes import check_side

TASKS = ("draw", "answer", "chat")
LENGTH = 2**31  # records in a source: in effect endless, and an index fits every integer type


class SyntheticSource:
    """An indexable, deterministic, in effect endless source of chat records.

    The position of an interrupted run is one integer, and threads need no coordination. Pictures are RGB images in the
    messages.

    - task "draw": the user writes the caption, the assistant answers with the picture;
    - task "answer": the user shows the picture and asks, the assistant answers; `questions_per_picture` turns in
      random order, drawn from those that apply, all of them when it is None; `yes_no_questions` of those that apply
      are yes/no questions. Such an answer is one bit, so a model needs many of them to learn to compare.
      `categories` are those asked; a picture to which none of them applies is asked all that do. With `reasoning`
      the assistant first writes what a yes or no follows from (`reasoning_content`, as transformers calls
      it): seeing and comparing are then learned one after the other instead of both from that one bit;
    - task "chat": a conversation of several turns, in which the assistant draws and answers (`chats`); its questions
      are chosen as those of "answer".

    `open_captions` is the share of captions that leave something open ("an elf wearing a robe"), by which several
    pictures are right: so prompts that say less are understood too, and questions about the rest are answered by
    looking.

    `oversampling` shows some things more often than others of their kind, by the dataset's `names`: {"dwarf": 2.5}.
    Things that are easily confused are learned too slowly at their natural share of the pictures.

    `size` is the side of the pictures in pixels: they are enlarged by whole pixels or pooled (`sizes`);
    a dataset that draws from shapes draws itself at that size.

    `record["meta"]` is plain JSON for scoring: {"dataset", "spec", "questions": [[category, question, answer], ...]}
    (the questions asked, in order; none for "draw"); the dataset's `spec_of(record)` gives the spec back.
    """

    dataset: str
    splits: tuple[str, ...]
    question_categories: tuple[str, ...]
    names: Sequence[str] = ()  # the keys that `oversampling` may have
    has_open_captions = False
    native_size: int  # pixels a side, where `size` says nothing

    def __init__(
        self,
        split: str,
        task: str,
        seed: int,
        questions_per_picture: int | None = None,
        yes_no_questions: int = 1,
        categories: list[str] | None = None,
        oversampling: dict[str, float] | None = None,
        reasoning: bool = False,
        open_captions: float = 0.0,
        size: int | None = None,
    ):
        """Raises ValueError for an unknown split, task, category or name, a negative seed, fewer than one question per
        picture, open captions of a dataset that has none, or a size that its pictures cannot have."""
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r} of {self.dataset}: it is one of {', '.join(self.splits)}")
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r} of {self.dataset}: it is one of {', '.join(TASKS)}")
        if seed < 0:
            raise ValueError(f"the seed of a source must not be negative, and {seed} is: choose 0 or more")
        if questions_per_picture is not None and questions_per_picture < 1:
            raise ValueError(
                f"questions_per_picture is {questions_per_picture}: ask at least 1, or None for all that apply"
            )
        if yes_no_questions < 1:
            raise ValueError(f"yes_no_questions is {yes_no_questions}: ask at least 1 per picture")
        if categories is not None and (not categories or (wrong := set(categories) - set(self.question_categories))):
            fault = f"has {min(wrong)!r}" if categories else "is empty"
            known = ", ".join(self.question_categories)
            raise ValueError(f"categories of {self.dataset}'s questions {fault}: choose among {known}")
        if unknown := set(oversampling or {}) - set(self.names):
            near = difflib.get_close_matches(min(unknown), self.names, n=3, cutoff=0)
            raise ValueError(
                f"oversampling of {self.dataset} has {min(unknown)!r}: "
                + (f"did you mean {', '.join(near)}?" if near else "this dataset has none, leave oversampling out")
            )
        if open_captions and not self.has_open_captions:
            raise ValueError(f"{self.dataset} has no captions that leave something open; leave open_captions out")
        self.split, self.task, self.seed, self.categories = split, task, seed, categories
        self.oversampling, self.reasoning, self.open_captions = oversampling or {}, reasoning, open_captions
        self.questions_per_picture, self.yes_no_questions = questions_per_picture, yes_no_questions
        self.size = self.native_size if size is None else size
        self._check_size()

    def _check_size(self) -> None:
        check_side(self.size, self.native_size)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict:
        """Chat record number `index`; raises IndexError outside 0 to `LENGTH` - 1."""
        spec, rng = self._spec_and_rng(index)
        image, questions = self._render(spec), []
        if self.task == "draw":
            words = self._some_caption(spec, rng)
            record = chat_record(("user", [text_part(words)]), ("assistant", [image_part(image)]))
        elif self.task == "chat":
            another = lambda: self._scene(self.spec(int(rng.integers(len(self)))), rng)  # noqa: E731
            messages, questions = chat_turns(rng, self._scene(spec, rng), another)
            record = {"messages": messages}
        else:
            questions = self._choose_questions(spec, rng)
            record = conversation(image, questions)
            if self.reasoning:
                for message, question in zip(record["messages"][1::2], questions, strict=True):
                    if thought := self._reasoning(spec, question):
                        message["reasoning_content"] = thought
        asked = [list(question) for question in questions]
        return {**record, "meta": {"dataset": self.dataset, "spec": spec._asdict(), "questions": asked}}

    def _scene(self, spec, rng: np.random.Generator) -> Scene:
        """A picture with what can be said of it in a conversation."""
        questions = self._choose_questions(spec, rng)
        thoughts = [self._reasoning(spec, question) if self.reasoning else "" for question in questions]
        return Scene(self._render(spec), self._some_caption(spec, rng), list(zip(questions, thoughts, strict=True)))

    def _some_caption(self, spec, rng: np.random.Generator) -> str:
        if self.open_captions and rng.random() < self.open_captions:
            return self._open_caption(spec, rng)
        return self._caption(spec, rng)

    def _choose_questions(self, spec, rng: np.random.Generator) -> list[Question]:
        questions = self._questions(spec, rng)
        for _ in range(1, self.yes_no_questions):
            questions += [question for question in self._questions(spec, rng) if question.category == "yes_no"]
        if self.categories is not None:
            questions = [question for question in questions if question.category in self.categories] or questions
        return [questions[i] for i in rng.permutation(len(questions))[: self.questions_per_picture]]

    def spec(self, index: int):
        """What record number `index` shows, as a spec of the dataset."""
        return self._spec_and_rng(index)[0]

    def picture(self, index: int) -> Image.Image:
        """The picture of record number `index`, without words: what a codec trains on."""
        return self._render(self.spec(index))

    def _spec_and_rng(self, index: int):
        if not 0 <= index < LENGTH:
            raise IndexError(f"record {index} does not exist: a source of {self.dataset} has records 0 to {LENGTH - 1}")
        rng = np.random.default_rng((self.seed, self.splits.index(self.split), index))
        return self._draw(index, rng), rng

    # A dataset defines these. `rng` is the record's random stream, read in the order of the calls above;
    # `_render` draws at `self.size`.

    def _draw(self, index: int, rng: np.random.Generator):
        raise NotImplementedError

    def _render(self, spec) -> Image.Image:
        raise NotImplementedError

    def _caption(self, spec, rng: np.random.Generator) -> str:
        raise NotImplementedError

    def _open_caption(self, spec, rng: np.random.Generator) -> str:
        raise NotImplementedError

    def _questions(self, spec, rng: np.random.Generator) -> list[Question]:
        raise NotImplementedError

    def _reasoning(self, spec, question: Question) -> str:
        raise NotImplementedError


def conversation(image: Image.Image, questions: Iterable[Question]) -> dict:
    """A chat record: the picture with the first question, its answer, then further questions and answers in turn."""
    turns = []
    for question in questions:
        picture = [] if turns else [image_part(image)]
        turns += [("user", [*picture, text_part(question.question)]), ("assistant", [text_part(question.answer)])]
    return chat_record(*turns)
