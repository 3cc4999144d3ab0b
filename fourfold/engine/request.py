"""The vocabulary of the engine: what is asked of it, and what it gives."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from fourfold.engine.canvas import Drawing
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import Prompt
from fourfold.errors import FourfoldError
from fourfold.text.chats.events import DrawingEvent

if TYPE_CHECKING:
    from fourfold.engine.constraint import Constraint


class EngineBusy(FourfoldError):
    """The queue is full; `retry_after` seconds are likely to help."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"engine: {waiting} requests wait already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to be made; several answers to one prompt are several requests.

    constraint: what the answer has to be (a fresh one for each request); logprobs: how many likeliest tokens are reported beside
    each one (0: its own alone); prompt_logprobs: the same for the tokens of the prompt. Prefixes are shared within a namespace
    only, and with nobody where `use_store` is off. after: the id of the token that ends the thoughts, before which stop strings are
    not looked for; opening: the id of the one that may open thoughts as the very first token, where the prompt did not.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    drawing: Drawing = field(default_factory=Drawing)
    constraint: "Constraint | None" = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    namespace: str = ""
    use_store: bool = True
    after: int | None = None
    opening: int | None = None


@dataclass(frozen=True)
class Chosen:
    """Log-probabilities at one place: natural, and of the model's own distribution, before temperature and penalties.

    logprob: None for the first token of a prompt, and for what is no token of text; top: the likeliest tokens first.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step gave: text that is final (often empty while it is held back), the tokens behind it, and why it ended.

    finish_reason: None until the last piece, then "stop" (an end token or a stop string), "length" (max_tokens or the context) or
    "cancelled". A drawing comes as events: begun, a code a piece (codes are no `tokens`, which are of the vocabulary), finished.
    logprobs: one for each of `tokens`, where they were asked for.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    drawing: DrawingEvent | None = None
    logprobs: tuple[Chosen, ...] = ()


@dataclass
class Usage:
    """What one answer took, filled as it is made.

    prompt_tokens; cached_tokens: those of them that the prefix store gave; miss_reason: why it gave no more; completion_tokens:
    codes of drawings and the end of the turn included. Seconds are counted from `submit`.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    miss_reason: str | None = None
    queued_seconds: float = 0.0
    first_token_seconds: float | None = None
    accepted_drafts: int = 0


@dataclass
class Answer:
    """A whole answer. drawings: codes int64 [rows, columns] or [frames, rows, columns] of each."""

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    logprobs: list[Chosen] = field(default_factory=list)
    prompt_logprobs: list[Chosen] | None = None
    drawings: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Stats:
    """What an engine has done so far, and what it holds now."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    tokens_in: int = 0  # read from prompts: computed, not found in the store
    tokens_out: int = 0
    preemptions: int = 0
    drafts_offered: int = 0
    drafts_accepted: int = 0
    state_bytes: int = 0  # of running sequences
