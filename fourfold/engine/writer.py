"""One answer in the making, as a coroutine: it says what it wants read, is sent the logits after it, and gives Pieces.

    steps = Writer(model, tokenizer, Request(prompt)).write()
    item = next(steps)
    while True:                                             # until it returns, which raises StopIteration
        item = steps.send(logits) if isinstance(item, Read) else next(steps)

Whoever runs the model drives it: `generate` does so alone over one sequence, the Engine for many answers in one cache. An answer
cannot tell the difference, so that it is the same among others as alone.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from fourfold.engine.canvas import Canvas, guided, pixels_of
from fourfold.engine.chooser import Chooser
from fourfold.engine.grammar import Grammar
from fourfold.engine.layout import Layout
from fourfold.engine.logprobs import chosen, prompt_chosen
from fourfold.engine.request import Chosen, Piece, Request
from fourfold.engine.sampler import sample
from fourfold.engine.sequence import Prompt, glue, span_of
from fourfold.engine.stops import StopStrings
from fourfold.errors import ConfigError
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.model.transformer import Transformer
from fourfold.text.chats.events import DrawingBegun, DrawingCodes, DrawingFinished
from fourfold.text.tokenizer import StreamDecoder, Tokenizer

Watch = Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Read:
    """What is to be read next, at least one token: by the answer's own sequence, and by its twin (canvas.py), where it has one.

    The first own one is the whole prompt; ids are text at the next place. The first one with a twin begins that sequence, the next
    without one ends it. The answer: logits fp32 [1, V], or of codes [1 or 2, codes], the twin's last. watch: is given the logits of
    every token of the own part, in order and some at a time [n, V].
    """

    own: Prompt
    twin: Span | None = None
    codes: bool = False
    watch: Watch | None = None


Steps = Generator[Piece | Read, Tensor, None]


class Writer:
    """An answer to one request. `pending` is still to be read by the model, `left` tokens may still come, the next at `place`.

    Raises ConfigError for an empty prompt, or one that leaves no room in the context or for its drawing.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, request: Request) -> None:
        self.model, self.tokenizer, self.request = model, tokenizer, request
        self.prompt = prompt = _checked(span_of(request.prompt), model)
        limit, sampling = model.config.max_position_embeddings, request.sampling
        self.ends = end_tokens(model, tokenizer) | set(sampling.stop_tokens)
        self.decoder, self.stops = StreamDecoder(tokenizer), StopStrings(sampling.stop)
        self.place, self.left = len(prompt), min(sampling.max_tokens or limit, limit - len(prompt))
        self.grammar = Grammar(model.config, tokenizer, request.drawing.begin, request.drawing.most)
        self.grammar.resume(prompt, self.left)
        repeated = prompt.tokens[prompt.modality == Modality.TEXT].tolist() if sampling.repetition_penalty != 1 else ()
        self.chooser = Chooser(sampling, model.config.vocab_size, request.constraint, repeated)
        self.pending: Prompt = prompt
        self.prompt_logprobs: list[Chosen] | None = None if request.prompt_logprobs is None else []
        self.reason: str | None = None
        self.thinks = request.after is not None and request.opening is None  # inside thoughts, where stop strings do not count

    @property
    def made(self) -> int:
        """Tokens so far, codes included."""
        return self.place - len(self.prompt)

    def write(self) -> Steps:
        while self.reason is None:
            if self.grammar.layout is None:
                yield from self._say()
            else:
                yield from self._draw(self.grammar.layout)

    def _say(self) -> Steps:
        """The next token of the vocabulary, and what it adds to the text."""
        forced = self._forced()
        if forced:
            for token in forced:
                self._append(token)
                yield self._piece(token, None)
                if self.reason is not None:
                    return
            return
        logits = (yield Read(self.pending, watch=self._first_watch()))[0]
        token = self.chooser.choose(self.grammar.masked(logits, self.left))
        self.pending = [token]
        yield self._piece(token, logits)

    def _first_watch(self) -> Watch | None:
        """What looks on while the prompt is read, where its log-probabilities are asked for."""
        return None if self.prompt_logprobs is None or self.prompt_logprobs else self._watch

    def _forced(self) -> list[int]:
        """Tokens that have to come next whatever the model says. Where log-probabilities are asked for, the model is heard."""
        if (only := self.grammar.only(self.left)) is not None:
            return [only]
        return [] if self.request.logprobs is not None else self.chooser.forced()[: self.left]

    def _append(self, token: int) -> None:
        if isinstance(self.pending, Span):
            self.pending = glue(self.pending, span_of([token], self.place))
        else:
            self.pending = [*self.pending, token]

    def _piece(self, token: int, logits: Tensor | None) -> Piece:
        """A token has come: the text that is final with it."""
        self.grammar.take(token)
        self.chooser.take(token)
        add = _as_it_is if self._in_thoughts(token) else self.stops.add
        self.place, self.left = self.place + 1, self.left - 1
        begun, ended = len(self.grammar.begun), token in self.ends
        text = self.decoder.finish() if begun == 1 else "" if begun or ended else self.decoder.push(token)
        text, stopped = add(text)
        if token in self.tokenizer.special_ids - self.ends and not stopped:
            text += self.stops.flush()  # a stop string does not reach across a control token
        if ended or (self.left == 0 and not stopped):
            tail, stopped = add(self.decoder.finish())
            text += tail + self.stops.flush()
        self.reason = "stop" if stopped or ended else "length" if self.left == 0 else None
        return Piece(text, (token,), self.reason, logprobs=self._chosen(token, logits))

    def _in_thoughts(self, token: int) -> bool:
        """Whether a token that has come belongs to the thoughts, the one that ends them included."""
        within = self.thinks or (self.made == 0 and token == self.request.opening)
        self.thinks = within and token != self.request.after
        return within

    def _chosen(self, token: int, logits: Tensor | None) -> tuple[Chosen, ...]:
        if self.request.logprobs is None:
            return ()
        return (Chosen(token, None) if logits is None else chosen(logits, token, self.request.logprobs),)

    def _watch(self, start: int, logits: Tensor) -> None:
        """Log-probabilities of the prompt's tokens, from the logits [n, V] at those from `start` on."""
        assert self.request.prompt_logprobs is not None
        known = self.prompt_logprobs = (self.prompt_logprobs or [Chosen(int(self.prompt.tokens[0]), None)])[: start + 1]
        own = slice(start + 1, start + 1 + len(logits))
        tokens, is_text = self.prompt.tokens[own], self.prompt.modality[own] == Modality.TEXT
        found = prompt_chosen(logits[: len(tokens)], tokens * is_text, self.request.prompt_logprobs)
        shown = zip(found, tokens.tolist(), is_text.tolist(), strict=True)
        known += [place if text else Chosen(token, None) for place, token, text in shown]

    def _draw(self, layout: Layout) -> Steps:
        """The drawing whose opening is there, to its end."""
        grammar, drawing = self.grammar, self.request.drawing
        there = len(grammar.begun)
        start = self.place - there
        unread = span_of(self.pending, self.place - len(self.pending))
        fed = -1  # tokens of the drawing that have been read, once any code has come
        canvas = Canvas(layout, start, grammar.drawn, drawing.guidance, self.tokenizer)
        yield Piece("", drawing=DrawingBegun(layout.grid))
        for place in canvas.places(there):
            own = canvas.part(fed, place) if fed >= 0 else glue(unread, canvas.part(there, place))
            twin = canvas.twin(max(fed, 0), place)
            logits = yield Read(own, twin, codes=True, watch=self._first_watch())
            code = sample(guided(logits, drawing.guidance)[0], drawing.codes, self.chooser.generator)
            canvas.tokens[place], fed = code, place
            self.place = start + place + 1
            yield Piece("", drawing=DrawingCodes((code,)))
        self.pending = glue(unread, canvas.part(there, len(layout))) if fed < 0 else canvas.part(fed, len(layout))
        self.place, self.left = start + len(layout), self.left - (len(layout) - there)
        grammar.finish()
        self.reason = None if self.left else "length"
        whole = canvas.codes()
        pixels = pixels_of(self.model, whole) if drawing.pixels else None
        end = int(layout.span.tokens[-1])
        yield Piece("", (end,), self.reason, DrawingFinished(whole, pixels), self._chosen(end, None))


def _as_it_is(text: str) -> tuple[str, bool]:
    """In place of `StopStrings.add`, where none count."""
    return text, False


def end_tokens(model: Transformer, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: the model's end of text, and the end of a turn."""
    own = model.config.eos_token_id
    return tokenizer.ends if own is None else tokenizer.ends | {own}


def _checked(prompt: Span, model: Transformer) -> Span:
    limit, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    if not len(prompt):
        raise ConfigError("prompt: empty; give at least one token of text")
    if len(prompt) >= limit:
        raise ConfigError(f"prompt: {len(prompt)} tokens leave no room in the context of {limit}; shorten it")
    tokens = prompt.tokens[prompt.modality == Modality.TEXT]
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ConfigError(f"prompt: holds ids that are no tokens; they go from 0 to {vocabulary - 1}")
    return prompt
