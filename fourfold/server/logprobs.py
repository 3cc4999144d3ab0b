"""Log-probabilities of tokens as the two completion APIs show them."""

from collections.abc import Sequence
from typing import Any

from fourfold.engine.request import Chosen
from fourfold.text.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which JSON cannot say


def chat_logprobs(tokenizer: Tokenizer, said: Sequence[Chosen], thought: Sequence[Chosen]) -> dict[str, Any]:
    """`logprobs` of a chat: of the answer's tokens but its end, and of the thoughts' where there are any."""
    content = [_entry(tokenizer, chosen) for chosen in said if chosen.token not in tokenizer.ends]
    found: dict[str, Any] = {"content": content, "refusal": None}
    return found | ({"reasoning_content": [_entry(tokenizer, chosen) for chosen in thought]} if thought else {})


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[Chosen], most: int, offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion: lists with an entry a token; without the likeliest where `most` is 0. A first token has null."""
    texts = [token_text(tokenizer, chosen.token) for chosen in tokens]
    offsets, place = [], offset
    for chosen in tokens:
        offsets.append(place)
        place += len(tokenizer.decode([chosen.token]))
    return {
        "tokens": texts,
        "token_logprobs": [_finite(chosen.logprob) for chosen in tokens],
        "top_logprobs": [_likeliest(tokenizer, chosen) for chosen in tokens] if most else None,
        "text_offset": offsets,
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; a part of a character as its bytes, a control token by its name: so different tokens stay different."""
    raw = tokenizer.bytes_of(token, skip_special=False)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _entry(tokenizer: Tokenizer, chosen: Chosen) -> dict[str, Any]:
    top = [_named(tokenizer, token, logprob) for token, logprob in chosen.top]
    return _named(tokenizer, chosen.token, chosen.logprob) | {"top_logprobs": top}


def _named(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    raw = tokenizer.bytes_of(token, skip_special=False)
    return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def _likeliest(tokenizer: Tokenizer, chosen: Chosen) -> dict[str, float | None] | None:
    """By text, likeliest first, the chosen token always among them."""
    if chosen.logprob is None:
        return None
    found = {token_text(tokenizer, token): _finite(logprob) for token, logprob in chosen.top}
    return found | {token_text(tokenizer, chosen.token): _finite(chosen.logprob)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(float(logprob), LEAST)
