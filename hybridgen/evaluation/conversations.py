"""Conversations: what a model has drawn in a chat, does it understand there; does it draw when it is asked to, and only
then?

Each is a chat in which the model decides what its turn is made of, as a user meets it (`pipe.chat()`, no plan). Two for
each held-out prompt: one asks for a picture and then about it, the other shows a picture, asks about it, and then asks
for another picture. And one for each greeting.

    drawn            a picture came where one was asked for, and nothing else
    slots, ...       how much of what was asked for is in the pictures, by the dataset's own scorer
    after_drawing    questions about the picture that was just drawn, answered as the prompt says
    shown            questions about a picture that was shown
    words            words that ask for no picture were answered by words, and no picture
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.chat.session import Chat
from hybridgen.core.messages import strip_reasoning
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import generation
from hybridgen.evaluation.generation import Prompts, Verdict
from hybridgen.evaluation.intervals import score_by_groups, with_interval
from hybridgen.evaluation.result import Item
from hybridgen.evaluation.work import MAX_NEW_TOKENS, Work
from hybridgen.sampling.seeds import nth_seed

GREETINGS = ("hello", "Hello!", "hi", "good morning", "thank you", "who are you?", "what can you do?", "bye")
QUESTIONS = 4  # about a drawn picture; two about one that is shown
PICTURE_SCORES = ("slots", "all_seven", "picture", "pictures")  # a dataset's scores of pictures over the whole
LABELS = {
    "drawn": "a picture where one is asked for",
    "after_drawing": "questions about what was just drawn",
    "shown": "questions about a picture shown",
    "words": "words to a greeting, no picture",
}


class Reply(NamedTuple):
    """What a turn was made of: the text without the model's reasoning, and the pictures."""

    text: str
    images: list[Image.Image]


class Plan(NamedTuple):
    """What is asked in the two chats of a prompt: after its picture was drawn; about the picture shown in the second
    chat, before another is asked for, and after that."""

    after: list
    about_shown: list
    after_second: list


class Transcript(NamedTuple):
    """What was counted in one chat, about prompt `number`: a request for a picture and its reply, questions and
    answers."""

    number: int
    caption: str
    spec: object
    drawn: Reply
    after_drawing: list[tuple[object, str]]  # (question, answer)
    shown: list[tuple[object, str]]
    picture: Image.Image | None  # that was shown


def converse(
    work: Work, dataset: ModuleType, prompts: Prompts, path: str, side: int
) -> tuple[dict[str, dict], list[Item]]:
    """Tallies by category with 95 % intervals, and what was asked for. The chats of prompt i draw from `seed + i`, so
    all that is about one prompt is not independent.

    Args:
        prompts: what is asked for; the picture shown beside prompt i is that of prompt i + 1.
        side: of the pictures drawn, in pixels.
    """
    how = {"path": path, "max_new_tokens": MAX_NEW_TOKENS}
    settings = {**work.settings_of(path).arguments(path), "height": side, "width": side}
    plans = [_plan(dataset, prompts, number, work.seed) for number in range(len(prompts))]

    def talk(number: int) -> list:
        new_chat = partial(work.pipeline.chat, seed=nth_seed(work.seed, number), **how, **settings)
        return _talk(new_chat, prompts, number, plans[number])

    def greet(number: int) -> Reply:
        return reply(work.pipeline.chat(seed=work.seed, **how), GREETINGS[number])

    label = f"talking, drawing by {path}"
    told = work.each(len(prompts), talk, f"chat-{path}", label)
    greeted = [Reply(*each) for each in work.each(len(GREETINGS), greet, f"greet-{path}", f"{label}, greetings")]
    transcripts = [each for i, replies in enumerate(told) for each in _transcripts(prompts, i, plans[i], replies)]
    pictures, specs = _pictures(transcripts, side), [each.spec for each in transcripts]
    verdicts = generation.judge(dataset, pictures, specs)
    tallies = _tallies(dataset, transcripts, greeted, verdicts)
    return tallies, _items(dataset, transcripts, greeted, path, list(zip(pictures, verdicts, strict=True)))


def _plan(dataset: ModuleType, prompts: Prompts, number: int, seed: int) -> Plan:
    rng = np.random.default_rng((seed, number))

    def some_questions(of: object, count: int) -> list:
        questions = dataset.questions(of, rng)
        return [questions[place] for place in rng.permutation(len(questions))[:count]]

    spec, beside = prompts.specs[number], prompts.specs[_beside(prompts, number)]
    return Plan(some_questions(spec, QUESTIONS), some_questions(beside, 2), some_questions(spec, 1))


def _beside(prompts: Prompts, number: int) -> int:
    return (number + 1) % len(prompts)


def _talk(new_chat: Callable[[], Chat], prompts: Prompts, number: int, plan: Plan) -> list[list[Reply]]:
    """The replies in the two chats of prompt `number`, in the order of what was said."""
    caption, shown = prompts.captions[number], prompts.pictures[_beside(prompts, number)]
    chat = new_chat()
    first = [reply(chat, caption), *(reply(chat, question.question) for question in plan.after)]
    chat = new_chat()
    second = [
        reply(chat, question.question, () if place else (shown,)) for place, question in enumerate(plan.about_shown)
    ]
    second.append(reply(chat, caption))
    return [first, second + [reply(chat, question.question) for question in plan.after_second]]


def _transcripts(prompts: Prompts, number: int, plan: Plan, replies: list[list]) -> Iterator[Transcript]:
    """The two chats of prompt `number`, replies beside what they are replies to."""
    first, second = ([Reply(*each) for each in chat] for chat in replies)
    asked, seen = (number, prompts.captions[number], prompts.specs[number]), len(plan.about_shown)
    yield Transcript(*asked, first[0], _answers(plan.after, first[1:]), [], None)
    shown = prompts.pictures[_beside(prompts, number)]
    after = _answers(plan.after_second, second[seen + 1 :])
    yield Transcript(*asked, second[seen], after, _answers(plan.about_shown, second[:seen]), shown)


def _answers(questions: list, replies: list[Reply]) -> list[tuple[object, str]]:
    """A picture is no answer to a question."""
    return [(question, "" if each.images else each.text) for question, each in zip(questions, replies, strict=True)]


def reply(chat: Chat, text: str, images: tuple = ()) -> Reply:
    """The assistant's turn, as the model decides."""
    written, drawn = "", []
    for event in chat.send(text, images):
        if isinstance(event, TextDelta):
            written += event.text
        elif isinstance(event, ImageDone):
            drawn.append(event.image)
    return Reply(strip_reasoning(written), drawn)


def _pictures(transcripts: list[Transcript], side: int) -> list[Image.Image]:
    """What was drawn in each; black where no picture came."""
    blank = Image.new("RGB", (side, side))
    return [each.drawn.images[0] if each.drawn.images else blank for each in transcripts]


def _tallies(
    dataset: ModuleType, transcripts: list[Transcript], greeted: list[Reply], verdicts: list[Verdict]
) -> dict[str, dict]:
    def of_some(places: list[int]) -> dict[str, dict]:
        some = [transcripts[i] for i in places]
        counts = {"drawn": tally(sum(_is_picture(each.drawn) for each in some), len(some))}
        for name in PICTURE_SCORES:
            of_pictures = [verdicts[i].counts[name] for i in places if name in verdicts[i].counts]
            if of_pictures:
                counts[name] = tally(*map(sum, zip(*of_pictures, strict=True)))
        for name in ("shown", "after_drawing"):
            given = [pair for transcript in some for pair in getattr(transcript, name)]
            if given:
                counts[name] = dataset.score_answers([text for _, text in given], [asked for asked, _ in given])["all"]
        return counts

    tallies = score_by_groups(of_some, [each.number for each in transcripts])
    return tallies | {"words": with_interval(tally(sum(map(_is_words, greeted)), len(greeted)))}


def _is_picture(answer: Reply) -> bool:
    return len(answer.images) == 1 and not answer.text


def _is_words(answer: Reply) -> bool:
    return bool(answer.text) and not answer.images


def _items(
    dataset: ModuleType, transcripts: list[Transcript], greeted: list[Reply], path: str, drawn: list[tuple]
) -> list[Item]:
    """Everything that was said in the chats, one after the other, then the greetings.

    Args:
        drawn: the picture of each chat, and its verdict.
    """
    items = []
    for transcript, (image, judged) in zip(transcripts, drawn, strict=True):
        group = f"prompt {transcript.number}"
        items += [_item_of(dataset, pair, "shown", {"shown": transcript.picture}, group) for pair in transcript.shown]
        verdict = {name: share for name, share in judged.shares.items() if name in PICTURE_SCORES}
        verdict["drawn"] = float(_is_picture(transcript.drawn))
        pictures = {path: image} if transcript.drawn.images else {}
        wrong = "" if all(share == 1 for share in verdict.values()) else "not all is as asked"
        items.append(Item(transcript.caption, pictures, transcript.drawn.text or None, "", verdict, wrong, group))
        items += [_item_of(dataset, pair, "after_drawing", pictures, group) for pair in transcript.after_drawing]
    for greeting, answer in zip(GREETINGS, greeted, strict=True):
        pictures = {path: answer.images[0]} if answer.images else {}
        items.append(Item(greeting, pictures, answer.text, "words", {"words": float(_is_words(answer))}))
    return items


def _item_of(dataset: ModuleType, pair: tuple[object, str], category: str, pictures: dict, group: str) -> Item:
    question, answer = pair
    right = float(dataset.score_answers([answer], [question])["all"]["right"])
    return Item(question.question, pictures, answer, question.answer, {category: right}, group=group)
