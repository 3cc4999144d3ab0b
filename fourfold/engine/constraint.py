"""What an answer has to be: a grammar that says at each step which tokens may come (llguidance does the work).

    Constraint.json_schema(tokenizer, schema)       # also json_object, regex, choice, lark

A grammar speaks of bytes, and of control tokens by id (<[17]>): text that spells a control token is not that token. What a request
to the API means as a grammar is in server/tools.py, how a chat format writes calls in markup.py.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from fourfold.engine.schema import as_lark, check_schema, literal, one_line
from fourfold.errors import ConfigError, FourfoldError
from fourfold.text.tokenizer import Tokenizer, sound


class Constraint:
    """Where one answer stands in its grammar. A fresh one, or a `copy`, for each answer; one thread at a time.

    grammar: Lark as llguidance writes it; after: the id of the token that ends the thoughts, before which all is free but the end
    of the answer; opening: the id of the token that may open thoughts as the very first one, where the prompt did not.
    Raises ConfigError for a grammar that is none, in one line that begins with `where`.
    """

    def __init__(
        self, tokenizer: Tokenizer, grammar: str, after: int | None = None, opening: int | None = None, where: str = "grammar"
    ) -> None:
        self._matcher = LLMatcher(adapted(tokenizer), grammar, log_level=0)
        self._matcher.compute_bitmask()  # nothing may fit at all
        if self._matcher.is_error():
            raise ConfigError(f"{where}: {one_line(self._matcher.get_error())}")
        self._ends = _ends(tokenizer)
        self._after, self._opening = after, opening
        self._asleep = after is not None and opening is None
        self._over = False

    @classmethod
    def lark(cls, tokenizer: Tokenizer, grammar: str, where: str = "grammar") -> Self:
        """A Lark grammar, as https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md has it."""
        return cls(tokenizer, LLMatcher.grammar_from_lark(grammar), where=where)

    @classmethod
    def json_schema(cls, tokenizer: Tokenizer, schema: dict[str, Any], where: str = "schema") -> Self:
        """JSON of this schema. Raises ConfigError naming what is not supported in it, and where."""
        check_schema(schema, where)
        return cls.lark(tokenizer, f"start: {as_lark(schema)}", where)

    @classmethod
    def json_object(cls, tokenizer: Tokenizer) -> Self:
        """Any JSON object."""
        return cls.lark(tokenizer, f"start: {as_lark({'type': 'object'})}")

    @classmethod
    def regex(cls, tokenizer: Tokenizer, pattern: str, where: str = "regex") -> Self:
        """Text that a regular expression (of Rust: no look-around, no references) matches as a whole."""
        return cls(tokenizer, LLMatcher.grammar_from_regex(pattern), where=where)

    @classmethod
    def choice(cls, tokenizer: Tokenizer, texts: Sequence[str], where: str = "choice") -> Self:
        """One of these texts."""
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"{where}: give a list of one text or more, none of them empty")
        return cls.lark(tokenizer, "start: " + " | ".join(map(literal, texts)), where)

    def copy(self) -> Self:
        """Another that stands at the same place, for another answer: the grammar, which takes its time, is not read again."""
        made = copy(self)
        made._matcher = self._matcher.deep_copy()
        return made

    @property
    def may_end(self) -> bool:
        """Whether what has come is a whole answer."""
        return self._over or (not self._asleep and self._matcher.is_accepting())

    def mask(self, logits: Tensor) -> Tensor:
        """Logits [V] on the CPU without what may not come next, as new ones.

        Raises FourfoldError where nothing may, because something else has ruled out the only tokens that fit.
        """
        if self._asleep:
            return logits.index_fill(-1, torch.tensor(self._ends), -torch.inf)
        masked = logits.masked_fill(~self._allowed(len(logits)), -torch.inf)
        if bool(masked.max() == -torch.inf) and bool(logits.max() > -torch.inf):
            raise FourfoldError("constraint: no token that may come next fits its grammar; ask for another form of answer")
        return masked

    def take(self, token: int) -> None:
        """A token has come. Raises FourfoldError for one that the mask rules out."""
        if self._asleep:
            self._asleep = token != self._after
        elif token == self._opening:
            self._asleep = True
        elif token in self._ends and self._matcher.is_accepting():
            self._over = True
        elif self._over or not self._matcher.consume_token(token):
            raise FourfoldError(f"constraint: token {token} does not fit its grammar; {one_line(self._matcher.get_error())}")
        self._opening = None

    def forced(self) -> list[int]:
        """The tokens that have to come next, where there is no choice; the end of the answer is not among them."""
        if self._asleep or self._over or self._opening is not None:
            return []
        forced = self._matcher.compute_ff_tokens()
        return forced[: self._matcher.validate_tokens(forced)]  # an encoder may put a space before a text

    def begin_with(self, text: str, tokenizer: Tokenizer, where: str = "messages") -> None:
        """Stand behind text that the prompt already holds of the answer. Raises ConfigError where it is no beginning of one."""
        tokens = adapted(tokenizer).greedy_tokenize(sound(text))
        if self._matcher.validate_tokens(tokens) < len(tokens):
            raise ConfigError(f"{where}: what the answer begins with does not fit the form asked for; change one of them")
        self._matcher.consume_tokens(tokens)
        self._opening = None

    def _allowed(self, size: int) -> Tensor:
        """Bool [size]: which tokens may come."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():  # the mask would say that the answer is over
            raise FourfoldError(f"constraint: {one_line(self._matcher.get_error())}")
        allowed = torch.zeros(size, dtype=torch.bool)
        known = min(size, len(bits))
        allowed[:known] = torch.from_numpy(bits[:known].astype(bool))
        if self._opening is not None:
            allowed[self._opening] = True
        return allowed


class _Vocabulary:
    """A Tokenizer as llguidance wants one: the bytes of every token, which of them are control tokens, and an encoder."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.bytes_of(id, skip_special=False) for id in range(tokenizer.vocab_size)]
        special = {tokenizer.special(name) for name in tokenizer.controls} | tokenizer.special_ids
        self.special_token_ids = sorted(special)
        self.eos_token_id = min(_ends(tokenizer))

        self._ids = {token: id for id, token in enumerate(self.tokens) if token and id not in special}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids that spell exactly this: as the tokenizer writes it, also behind a line end, since some put a space before a text."""
        raw = text.encode() if isinstance(text, str) else text
        for before in (b"", b"\n"):
            ids = self._tokenizer.encode((before + raw).decode("utf-8", "replace"))
            for start in range(min(3, len(ids) + 1)):
                if b"".join(self.tokens[id] for id in ids[start:]) == raw:
                    return ids[start:]
        return list(self._greedy(raw))

    def _greedy(self, raw: bytes) -> Iterator[int]:
        """The longest token that fits, again and again."""
        while raw:
            size = next((size for size in range(self._longest, 0, -1) if raw[:size] in self._ids), 0)
            if not size:  # bytes that the vocabulary lacks; nothing is forced from here on
                return
            yield self._ids[raw[:size]]
            raw = raw[size:]


_adapted: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()


def adapted(tokenizer: Tokenizer) -> LLTokenizer:
    """The tokenizer for llguidance, made once (a second for 130k tokens). Raises ConfigError where no token ends an answer."""
    if tokenizer not in _adapted:
        if not _ends(tokenizer):
            raise ConfigError("constraint: the vocabulary has no token that ends an answer; answers cannot be constrained")
        _adapted[tokenizer] = LLTokenizer(_Vocabulary(tokenizer), eos_token=_ends(tokenizer))
    return _adapted[tokenizer]


def _ends(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer and are there: a folder may name others."""
    return sorted(end for end in tokenizer.ends if end < tokenizer.vocab_size)
