"""The tokens of an answer that another server makes: as its `usage` says, else counted as it passes by."""

import json
import logging
from typing import Any

MOST = 32 << 20  # bytes of an answer, or of one event of a stream, that are looked into
BYTES = 4  # of UTF-8 that count as a token where nobody says: about right for English, Chinese and code
MOST_TOKENS = 2**31  # what says more is a mistake
TEXTS = frozenset(
    "content reasoning_content reasoning text arguments delta thinking partial_json prompt input system instructions".split()
)


class Count:
    """Of one answer of `model` to a request: `add` what comes, then ask for `tokens`."""

    def __init__(self, model: str, asked: dict[str, Any], is_stream: bool) -> None:
        self.model, self._asked, self._is_stream = model, asked, is_stream
        self._rest, self._bytes, self._usage = bytearray(), 0, dict[str, Any]()

    def add(self, chunk: bytes) -> None:
        """The next bytes of the answer's body."""
        self._rest += chunk
        if self._is_stream and b"\n" in chunk:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                self._look_into(line)
        if len(self._rest) > MOST:
            self._rest.clear()

    def tokens(self, whole: bool) -> tuple[int, int, int]:
        """Of the prompt (cached there, and not) and of the answer; `whole` says whether all of it has come.

        Warns of a usage that is none.
        """
        self._look_into(self._rest)
        self._rest.clear()
        said = tokens_in(self._bytes)
        try:
            hit, prompt, told = figures(self._usage)
        except ValueError:
            text = "the server behind %s tells its usage as %.200s, which is none; its tokens are counted by their text"
            logging.getLogger("fourfold.server").warning(text, self.model, self._usage)
            hit, prompt, told = 0, None, None
        if prompt is None:
            prompt = tokens_in(text_bytes(self._asked))
        return hit, prompt - hit, said if told is None else told if whole else max(said, told)

    def _look_into(self, text: bytearray) -> None:
        """A whole answer, or a line of events: the usage may be in it, or in the response or message that it is about."""
        try:
            event = json.loads(text.removeprefix(b"data:"))
        except (ValueError, RecursionError):  # the end mark, a comment, or something cut off
            return
        if not isinstance(event, dict):
            return
        self._bytes += text_bytes(event)
        for about in (event, event.get("response"), event.get("message")):
            if isinstance(about, dict) and about.get("usage") is not None:
                usage = about["usage"]
                self._usage |= usage if isinstance(usage, dict) else {"prompt_tokens": str(usage)}


def figures(usage: dict[str, Any]) -> tuple[int, int | None, int | None]:
    """Tokens of the prompt that were cached, of all of it, and of the answer, None where it does not say.

    Raises ValueError for what cannot be.
    """
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    said = usage.get("completion_tokens", usage.get("output_tokens"))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    if not isinstance(details, dict):
        raise ValueError(f"details: {details!r}")
    hit = usage.get("prompt_cache_hit_tokens") or details.get("cached_tokens") or 0
    for number in (prompt, said, hit):
        if number is not None and (type(number) is not int or not 0 <= number < MOST_TOKENS):
            raise ValueError(f"usage: {number!r}")
    if hit > (prompt or 0):
        raise ValueError(f"cached: {hit} of {prompt}")
    return hit, prompt, said


def tokens_in(size: int) -> int:
    """About how many tokens so many bytes of text are."""
    return -(-size // BYTES)


def text_bytes(value: Any) -> int:
    """Bytes of text in a request or an answer; an id of a token counts as long as a token is. Media do not count."""
    total, left = 0, [(value, False)]
    while left:
        each, is_text = left.pop()
        if isinstance(each, dict):
            left += [(inner, name in TEXTS) for name, inner in each.items()]
        elif isinstance(each, list):
            left += [(inner, is_text) for inner in each]
        elif is_text and isinstance(each, str):
            total += len(each.encode("utf-8", "replace"))
        elif is_text and isinstance(each, int):
            total += BYTES
    return total
