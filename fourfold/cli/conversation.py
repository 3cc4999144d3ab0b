"""A conversation with one model: what was said, shown and drawn so far, and the cache that has seen it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fourfold.engine.generate import Drawing
    from fourfold.text.chats import ChatFormat, Event


class Conversation:
    """The messages so far and the cache that has seen them, so that a turn computes only what is new.

    `attached` are the media that go with the next message, `drawn` uint8 [frames, 3, H, W] is what was drawn last.
    """

    def __init__(
        self,
        model,
        sampling,
        system: str | None,
        thinking: bool,
        chat: "ChatFormat | None" = None,
        drawing: "Drawing | None" = None,
    ) -> None:
        from fourfold.engine.canvas import Drawing
        from fourfold.engine.sequence import Sequence
        from fourfold.text.chats import choose

        self.model, self.sampling, self.thinking, self.system = model, sampling, thinking, system
        self.chat, self.drawing = chat or choose(model.tokenizer), drawing or Drawing()
        self.sequence = Sequence(model)
        self.finish_reason: str | None = None  # of the last answer
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        self.attached: list[dict[str, Any]] = []
        self.drawn: Tensor | None = None

    def attach(self, kind: str, source: Any) -> int:
        """Put an image, a video or audio before the next message; how many tokens it takes. Raises MediaError, and is as before."""
        from fourfold.engine.prompts import shown

        self.attached.append({"type": kind, "span": shown(self.model, kind, source)})
        return len(self.attached[-1]["span"])

    def look(self) -> int:
        """`attach` what was drawn last, as a picture or clip to read: a drawing itself is codes. Raises DataError without one."""
        from fourfold.engine.prompts import reread
        from fourfold.errors import DataError

        if self.drawn is None or self.model.config.media_in is None:
            raise DataError("/look: there is no drawing here that this model could read; have one drawn first")
        kind = "image" if len(self.drawn) == 1 else "video"
        self.attached.append({"type": kind, "span": reread(self.model, self.drawn)})
        return len(self.attached[-1]["span"])

    def ask(self, text: str) -> "Iterator[list[Event]]":
        """The events of an answer; it joins the messages when it ends or is stopped, or nothing does if it cannot begin."""
        from fourfold.engine.generate import generate
        from fourfold.text.chats import collect

        tokenizer = self.model.tokenizer
        content: Any = [*self.attached, {"type": "text", "text": text}] if self.attached else text
        messages = [*self.messages, {"role": "user", "content": content}]
        prompt, opened = self.chat.span(tokenizer, messages, thinking=self.thinking)
        pieces = generate(self.model, prompt, self.sampling, tokenizer, self.sequence, drawing=self.drawing)
        self.finish_reason, said = None, []
        try:
            for piece, events in self.chat.read(pieces, tokenizer, opened):
                self.finish_reason = piece.finish_reason
                said += events
                self.drawn = getattr(piece.drawing, "pixels", self.drawn)
                yield events
        finally:
            reply = collect(said).answer()  # thoughts are not remembered
            content = reply.parts() if reply.drawings else reply.content
            self.messages, self.attached = [*messages, {"role": "assistant", "content": content}], []
