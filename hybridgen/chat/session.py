"""A conversation with a model that reads and draws: `stream` for one turn, `Chat` for many.

A turn is made by `chat.turn`; this file keeps the messages and the cache between turns. `stream` and `send` check
everything and return at once; the work is done as their events are iterated over. A turn is added to the chat with its
last event, `Usage`; an unfinished iteration leaves the chat unchanged.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from PIL import Image

from hybridgen.chat.events import Event, ImageDone, TextDelta, Usage
from hybridgen.chat.settings import TurnSettings
from hybridgen.chat.turn import Conversation, Turn
from hybridgen.core.messages import check_messages
from hybridgen.core.pictures import read_pictures, with_pictures
from hybridgen.core.values import text as check_text
from hybridgen.core.values import whole_number
from hybridgen.sampling.interleaved import ReadTokens, Token, common_length
from hybridgen.sampling.text import Answer


def stream(pipe, messages: list[dict], **settings) -> Iterator[Event]:
    """One turn of a pipeline's assistant, event by event; see `HybridGenPipeline.stream`."""
    return Turn(pipe, Conversation(), messages, TurnSettings(**settings)).events()


@dataclass(frozen=True)
class _TurnEnd:
    """Where a turn ended: how many messages and pictures there were, and the tokens that had been read of them.

    `cond` are those that text goes on from, `uncond` those that guidance leads away from (see `turn.Conversation`).
    """

    messages: int
    images: int
    cond: list[Token]
    uncond: list[Token]


class Chat:
    """A conversation that is read once: each turn computes only what is new in it.

    Args:
        pipe: the `HybridGenPipeline` that answers.
        messages: what it begins with, such as a message of the system.
        settings: those of `TurnSettings`, for every turn that sets no others, as far as they matter to its path.
    """

    def __init__(self, pipe, messages: list[dict] | tuple = (), **settings):
        self.pipe, self.settings = pipe, TurnSettings(**settings)
        messages = list(messages) if isinstance(messages, tuple) else messages
        self._opening = [] if isinstance(messages, list) and not messages else with_pictures(check_messages(messages))
        self._conversation = Conversation()
        self._turn_ends: list[_TurnEnd] = []

    @property
    def messages(self) -> list[dict]:
        """The record, in the chat format; pictures are PIL images."""
        return list(self._conversation.messages or self._opening)

    @property
    def turns(self) -> int:
        """How many turns of the assistant there were."""
        return len(self._turn_ends)

    def send(self, text: str = "", images=(), **settings) -> Iterator[Event]:
        """The user's turn; the assistant's, event by event.

        Args:
            images: pictures, or one, that stand before the text; see `core.pictures`.
            settings: those of `TurnSettings`, for this turn.

        Raises:
            ValueError: in one sentence, what is wrong; at once, before anything is computed.
        """
        check_text("text", text)
        content = [{"type": "image", "image": image} for image in read_pictures(images)]
        if text or not content:
            content.append({"type": "text", "text": text})
        message = {"role": "user", "content": content}
        messages = [message] if self._conversation.messages else [*self._opening, message]
        return self._recorded(Turn(self.pipe, self._conversation, messages, replace(self.settings, **settings)))

    def _recorded(self, turn: Turn) -> Iterator[Event]:
        before = self._conversation
        with closing(turn.events()) as events:
            for event in events:
                if isinstance(event, Usage):  # the last one
                    if self._conversation is not before:
                        raise ValueError("the chat went on while this turn was made; fork() it to follow two threads")
                    self._append(turn.conversation)
                yield event

    def _append(self, conversation: Conversation) -> None:
        self._conversation = conversation
        tokens = [[] if read is None else read.tokens for read in (conversation.cond, conversation.uncond)]
        self._turn_ends.append(_TurnEnd(len(conversation.messages), len(conversation.images), *tokens))

    def ask(self, text: str = "", images=(), **settings) -> Answer:
        """`send` for a text alone: the answer, which knows whether it was cut off (`answer.truncated`)."""
        events = list(self.send(text, images, **{"plan": ["text"], "max_images": None, **settings}))
        words = "".join(event.text for event in events if isinstance(event, TextDelta))
        return Answer(words, truncated=events[-1].truncated)

    def draw(self, text: str = "", images=(), **settings) -> Image.Image:
        """`send` for a picture alone: the picture."""
        events = self.send(text, images, **{"plan": ["image"], "max_images": None, **settings})
        return [event.image for event in events if isinstance(event, ImageDone)][-1]

    def fork(self) -> "Chat":
        """Another chat that goes on from here; what was computed is shared, and neither changes the other."""
        other = Chat(self.pipe)
        other.settings, other._opening = self.settings, self._opening
        other._conversation, other._turn_ends = self._conversation, list(self._turn_ends)
        return other

    def rollback(self, turns: int = 1) -> None:
        """Take back the last turns, the user's words and the assistant's.

        Raises:
            ValueError: there were fewer.
        """
        turns = whole_number("turns", turns)
        if turns > self.turns:
            raise ValueError(f"turns is {turns}, but this chat has {self.turns}; take back at most those")
        del self._turn_ends[-turns:]
        if not self._turn_ends:
            self._conversation = Conversation()
            return
        end, now = self._turn_ends[-1], self._conversation
        self._conversation = Conversation(
            now.messages[: end.messages],
            now.images[: end.images],
            _cut_back(now.cond, end.cond),
            _cut_back(now.uncond, end.uncond),
        )


def _cut_back(read: ReadTokens | None, tokens: list[Token]) -> ReadTokens | None:
    """Drops from the cache what was read after the first `count` shared tokens; None if there are none."""
    count = 0 if read is None else common_length(read.tokens, tokens)
    return replace(read, tokens=read.tokens[:count], prefix=read.until(count), image_start=None) if count else None
