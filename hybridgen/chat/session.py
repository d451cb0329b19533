"""A conversation with a model that reads and draws: `pipe.stream` for one turn, `Chat` for many.

A turn is made by `pipeline_turn`; this file keeps what turns leave behind. The fact a newcomer gets wrong: `stream` and
`send` return at once, with everything checked and nothing done. The work is done while their events are asked for, and
a turn belongs to the chat only when its last event, `Usage`, was.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from hybridgen.chat.events import Event, ImageDone, TextDelta, Usage
from hybridgen.chat.settings import TurnSettings
from hybridgen.chat.turn import Conversation, Turn
from hybridgen.core.messages import check_messages
from hybridgen.pipeline_checks import check_counts
from hybridgen.sampling.interleaved import Row, Token, common

if TYPE_CHECKING:
    from hybridgen.pipeline_hybridgen import HybridGenPipeline


class Conversing:
    """Mixed into the pipeline."""

    def stream(self, messages: list[dict], **settings) -> Iterator[Event]:
        """The assistant's next turn, event by event (`pipeline_events`). To stop, stop asking, or close the iterator.

        Args:
            messages: chat messages whose image parts hold pictures, the user's last.
            settings: those of `TurnSettings`: path, plan, seed, preview_every, max_new_tokens, ...

        Raises:
            ValueError: in one sentence, what is wrong; at once, before anything is computed.
        """
        return Turn(self, Conversation(), messages, TurnSettings(**settings)).events()

    def chat(self, messages: list[dict] | tuple = (), **settings) -> "Chat":
        """A conversation of many turns; see `Chat`."""
        return Chat(self, messages, **settings)


@dataclass(frozen=True)
class _Mark:
    """Where a turn ended: how many messages and pictures there were, and what of them had been read."""

    messages: int
    pictures: int
    full: list[Token]
    without: list[Token]


class Chat:
    """A conversation that is read once: each turn computes only what is new in it.

    Args:
        messages: what it begins with, such as a message of the system.
        settings: those of `TurnSettings`, for every turn that does not say otherwise, and whose path they matter to.
    """

    def __init__(self, pipe: "HybridGenPipeline", messages: list[dict] | tuple = (), **settings):
        self.pipe, self.settings = pipe, TurnSettings(**settings)
        self._opening = check_messages(list(messages)) if messages else []
        self._kept = Conversation()
        self._marks: list[_Mark] = []

    @property
    def messages(self) -> list[dict]:
        """The record, in the chat format; pictures are PIL images."""
        return list(self._kept.messages or self._opening)

    @property
    def turns(self) -> int:
        """How many there were."""
        return len(self._marks)

    def send(self, text: str = "", images=(), **settings) -> Iterator[Event]:
        """The user's turn; the assistant's, event by event.

        Args:
            images: pictures, or one, said before the text.
            settings: those of `TurnSettings`, for this turn.

        Raises:
            ValueError: in one sentence, what is wrong; at once, before anything is computed.
        """
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r}; give a text")
        images = images if isinstance(images, list | tuple) else [images]
        content = [{"type": "image", "image": image} for image in images]
        if text or not content:
            content.append({"type": "text", "text": text})
        said = {"role": "user", "content": content}
        messages = [said] if self._kept.messages else [*self._opening, said]
        return self._made(Turn(self.pipe, self._kept, messages, replace(self.settings, **settings)))

    def _made(self, turn: Turn) -> Iterator[Event]:
        before = self._kept
        with closing(turn.events()) as events:
            for event in events:
                if isinstance(event, Usage):  # the last one
                    if self._kept is not before:
                        raise ValueError("the chat went on while this turn was made; fork() it to follow two threads")
                    self._keep(turn.conversation)
                yield event

    def _keep(self, conversation: Conversation) -> None:
        self._kept = conversation
        tokens = [[] if row is None else row.tokens for row in (conversation.full, conversation.without)]
        self._marks.append(_Mark(len(conversation.messages), len(conversation.pictures), *tokens))

    def ask(self, text: str = "", images=(), **settings) -> str:
        """`send` for a text alone: the answer."""
        events = self.send(text, images, **{"plan": ["text"], "max_images": None, **settings})
        return "".join(event.text for event in events if isinstance(event, TextDelta))

    def draw(self, text: str = "", images=(), **settings) -> Image.Image:
        """`send` for a picture alone: the picture."""
        events = self.send(text, images, **{"plan": ["image"], "max_images": None, **settings})
        return [event.image for event in events if isinstance(event, ImageDone)][-1]

    def fork(self) -> "Chat":
        """Another chat that goes on from here; what was computed is shared, and neither changes the other."""
        other = Chat(self.pipe)
        other.settings, other._opening = self.settings, self._opening
        other._kept, other._marks = self._kept, list(self._marks)
        return other

    def rollback(self, turns: int = 1) -> None:
        """Take back the last turns, the user's words and the assistant's.

        Raises:
            ValueError: there were fewer.
        """
        check_counts(turns=turns)
        if turns > self.turns:
            raise ValueError(f"turns is {turns}, but this chat has {self.turns}; take back at most those")
        del self._marks[-turns:]
        if not self._marks:
            self._kept = Conversation()
            return
        mark, kept = self._marks[-1], self._kept
        self._kept = Conversation(
            kept.messages[: mark.messages],
            kept.pictures[: mark.pictures],
            _cut(kept.full, mark.full),
            _cut(kept.without, mark.without),
        )


def _cut(row: Row | None, tokens: list[Token]) -> Row | None:
    """What a row still holds of an earlier one."""
    count = 0 if row is None else common(row.tokens, tokens)
    return Row(row.tokens[:count], row.until(count)) if count else None
