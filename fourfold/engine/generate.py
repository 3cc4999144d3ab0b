"""A prompt in, text and drawings out as they come: chunked prefill, cached decoding, stop strings, whole characters only."""

from collections.abc import Iterator
from dataclasses import dataclass

from fourfold.engine.canvas import Drawing, open_canvas, pixels_of, placed
from fourfold.engine.grammar import Grammar
from fourfold.engine.layout import Layout
from fourfold.engine.sampler import Sampling, sample
from fourfold.engine.sequence import PREFILL, Prompt, Sequence, glue, span_of
from fourfold.engine.stops import StopStrings
from fourfold.errors import ConfigError
from fourfold.media.spans import Span
from fourfold.model.transformer import Transformer
from fourfold.text.chats.events import DrawingBegun, DrawingCodes, DrawingEvent, DrawingFinished
from fourfold.text.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Piece:
    """What one step gave: text that is final (often empty while it is held back), the tokens behind it, and why it ended.

    finish_reason: None until the last piece, then "stop" (an end token or a stop string) or "length" (max_tokens or the context).
    A drawing comes as events: begun, a code a piece (codes are no `tokens`, which are of the vocabulary), finished.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    drawing: DrawingEvent | None = None


def generate(
    model: Transformer,
    prompt: Prompt,
    sampling: Sampling,
    tokenizer: Tokenizer,
    sequence: Sequence | None = None,
    chunk: int = PREFILL,
    drawing: Drawing | None = None,
) -> Iterator[Piece]:
    """Continue a prompt (a Span, or token ids), a Piece for each token; the last piece has the finish reason.

    A prompt that ends in a drawing, as after `spans.draw_opening`, has it drawn first. `sequence` keeps its cache between calls: a
    prompt that begins like what it has seen is computed from there on. Raises ConfigError at once for an empty prompt, or one that
    leaves no room in the context or for its drawing.
    """
    sequence = Sequence(model) if sequence is None else sequence
    if not len(prompt):
        raise ConfigError("prompt: empty; give at least one token of text")
    if len(prompt) >= sequence.limit:
        raise ConfigError(f"prompt: {len(prompt)} tokens leave no room in the context of {sequence.limit}; shorten it")
    return _Answer(sequence, span_of(prompt), sampling, tokenizer, chunk, drawing or Drawing()).pieces()


class _Answer:
    """One answer in the making. `pending` is still to be read by the model, `left` tokens may still come, the next at `place`."""

    def __init__(
        self, sequence: Sequence, prompt: Span, sampling: Sampling, tokenizer: Tokenizer, chunk: int, drawing: Drawing
    ) -> None:
        self.sequence, self.prompt, self.place, self.chunk = sequence, prompt, len(prompt), chunk
        self.sampling, self.drawing, self.generator = sampling, drawing, sampling.generator()
        self.tokenizer, self.ends = tokenizer, end_tokens(sequence.model, tokenizer)
        self.decoder, self.stops = StreamDecoder(tokenizer), StopStrings(sampling.stop)
        self.left = min(sampling.max_tokens or sequence.limit, sequence.limit - len(prompt))
        self.grammar = Grammar(sequence.model.config, tokenizer, drawing.begin, drawing.most)
        self.grammar.resume(prompt, self.left)
        self.reason: str | None = None

    def pieces(self) -> Iterator[Piece]:
        self.pending = self.sequence.rewind(self.prompt)
        while self.reason is None:
            if self.grammar.layout is None:
                yield self._say()
            else:
                yield from self._draw(self.grammar.layout)

    def _say(self) -> Piece:
        """The next token of the vocabulary, and what it adds to the text."""
        token = self.grammar.only(self.left)
        if token is None:
            logits = self.sequence.feed(self.pending, self.chunk)
            token = sample(self.grammar.masked(logits, self.left), self.sampling, self.generator)
            self.pending = span_of([token], self.place)
        else:
            self.pending = glue(self.pending, span_of([token], self.place))
        self.grammar.take(token)
        self.place, self.left = self.place + 1, self.left - 1
        return self._piece(token)

    def _piece(self, token: int) -> Piece:
        begun, ended = len(self.grammar.begun), token in self.ends
        text = self.decoder.finish() if begun == 1 else "" if begun or ended else self.decoder.push(token)
        text, stopped = self.stops.add(text)
        if token in self.tokenizer.special_ids - self.ends and not stopped:
            text += self.stops.flush()  # a stop string does not reach across a control token
        if ended or (self.left == 0 and not stopped):
            tail, stopped = self.stops.add(self.decoder.finish())
            text += tail + self.stops.flush()
        self.reason = "stop" if stopped or ended else "length" if self.left == 0 else None
        return Piece(text, (token,), self.reason)

    def _draw(self, layout: Layout) -> Iterator[Piece]:
        """The drawing whose opening is there, to its end."""
        sequence, grammar, there = self.sequence, self.grammar, len(self.grammar.begun)
        start, guidance = self.place - there, self.drawing.guidance
        canvas, hidden = open_canvas(sequence, self.pending, layout, there, grammar.drawn, guidance, self.chunk)
        yield Piece("", drawing=DrawingBegun(layout.grid))
        for codes in canvas.strokes(hidden, there, lambda logits: [sample(logits[0], self.drawing.codes, self.generator)]):
            yield Piece("", drawing=DrawingCodes(tuple(codes)))
        tokens = canvas.tokens[0]
        sequence.keep(canvas.own_cache(), placed(layout, tokens, start, len(sequence) - start, canvas.fed))
        self.pending = placed(layout, tokens, start, canvas.fed, len(layout))
        self.place, self.left = start + len(layout), self.left - (len(layout) - there)
        self.grammar.finish()
        self.reason = None if self.left else "length"
        whole = canvas.codes()[0]
        yield Piece("", (int(layout.span.tokens[-1]),), self.reason, DrawingFinished(whole, pixels_of(sequence.model, whole)))


def end_tokens(model: Transformer, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: the model's end of text, and the end of a turn."""
    own = model.config.eos_token_id
    return tokenizer.ends if own is None else tokenizer.ends | {own}
