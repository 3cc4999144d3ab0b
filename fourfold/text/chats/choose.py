"""Which chat format a checkpoint speaks: by its template where that tells, else by its model_type and its vocabulary.

Generations share a model_type: V3, R1 and V3.1 are all deepseek_v3. What a template writes is compared with what the format found
writes, on short conversations; where they differ the template is used as it is (jinja.py), and only replies are read our way.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fourfold.errors import DataError
from fourfold.text.chats.chatml import ChatML, Llama3
from fourfold.text.chats.format import ChatFormat
from fourfold.text.chats.jinja import Jinja
from fourfold.text.chats.own import Own
from fourfold.text.chats.tokens import ASSISTANT, BOS, CALL, DSML, REMINDER, SEPARATOR, THOUGHT, USER
from fourfold.text.chats.v1 import V1, V2
from fourfold.text.chats.v3 import R1, V3, V25
from fourfold.text.chats.v4 import V4
from fourfold.text.chats.v31 import V31
from fourfold.text.chats.v32 import V32
from fourfold.text.settings import TextSettings

if TYPE_CHECKING:
    from fourfold.text.tokenizer import Tokenizer

FORMATS: dict[str, type[ChatFormat]] = {kind.name: kind for kind in (Own, V1, V2, V25, V3, R1, V31, V32, V4, ChatML, Llama3)}
# Without a template: by model_type, else by tokens of the vocabulary, the more particular first.
BY_TYPE = {"deepseek_v2": V2, "deepseek_v3": V3, "deepseek_v32": V32, "deepseek_v4": V4}
BY_TOKENS: list[tuple[set[str], type[ChatFormat]]] = [
    ({DSML, REMINDER}, V4),
    ({DSML}, V32),
    ({USER, ASSISTANT}, V3),
    ({"<|im_start|>", "<|im_end|>"}, ChatML),
    ({"<|eot_id|>"}, Llama3),
    ({BOS}, V1),
]
PROBES = [
    [("user", "2 < 3?")],
    [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Why?")],
]


def choose(tokenizer: "Tokenizer", name: str | None = None) -> ChatFormat:
    """The format of that name, or the one that fits the folder the tokenizer came from.

    Raises DataError for an unknown name, and when nothing in the folder tells.
    """
    settings = tokenizer.settings
    if name is not None:
        if name not in FORMATS:
            raise DataError(f"chat format: {name} is unknown; choose one of {', '.join(FORMATS)}")
        return FORMATS[name].of(settings)
    kind = recognise(settings, tokenizer.controls)
    found = kind.of(settings) if kind else None
    if settings.template is None or kind is Own:
        if found is None:
            known = ", ".join(FORMATS)
            raise DataError(f"chat format: no chat template here, and nothing else tells; name one (--chat-format): {known}")
        return found
    return found if found and writes_as(found, settings, tokenizer) else _template(settings, tokenizer, found)


def recognise(settings: TextSettings, controls: frozenset[str]) -> type[ChatFormat] | None:
    """The generation that template, model_type and vocabulary point to; None where they point nowhere."""
    template = settings.template
    if {"<|bos|>", "<|tool_result|>"} <= controls:
        return Own
    if template is None:
        by_tokens = (kind for tokens, kind in BY_TOKENS if tokens <= controls)
        return BY_TYPE.get(settings.model_type or "") or next(by_tokens, None)
    if settings.model_type == "deepseek_v4":
        return V4
    kind = next((kind for fits, kind in TELLS if fits(template)), None)
    return V25 if kind is V3 and settings.model_type == "deepseek_v2" else kind


def _has(*pieces: str) -> Callable[[str], bool]:
    return partial(_all_in, pieces)


def _all_in(pieces: tuple[str, ...], template: str) -> bool:
    return all(piece in template for piece in pieces)


# What a template contains, the more particular first: DSML tags, fenced calls (V3, R1), calls without (V3.1), turns.
TELLS: list[tuple[Callable[[str], bool], type[ChatFormat]]] = [
    (_has(DSML, "tool_calls>"), V4),
    (_has(DSML), V32),
    (_has(USER, ASSISTANT, CALL, "```json", THOUGHT), R1),
    (_has(USER, ASSISTANT, CALL, "```json"), V3),
    (_has(USER, ASSISTANT, SEPARATOR), V31),
    (_has(USER, ASSISTANT, THOUGHT), R1),
    (_has(USER, ASSISTANT), V25),
    (_has("<|im_start|>"), ChatML),
    (_has("<|start_header_id|>", "<|eot_id|>"), Llama3),
    (_has("User: ", "Assistant:"), V2),
]


def writes_as(chat: ChatFormat, settings: TextSettings, tokenizer: "Tokenizer") -> bool:
    """Whether the folder's template writes short conversations as `chat` does. True where it cannot be rendered here."""
    try:
        theirs = _template(settings, tokenizer, chat)
    except DataError:
        return True
    for probe in PROBES:
        messages = [{"role": role, "content": content} for role, content in probe]
        for thinking in (False, True):
            try:
                if chat.text(messages, thinking=thinking) != theirs.text(messages, thinking=thinking):
                    return False
            except DataError:  # a template that takes no system message says nothing about the rest
                continue
    return True


def _template(settings: TextSettings, tokenizer: "Tokenizer", like: ChatFormat | None) -> Jinja:
    assert settings.template is not None
    like = R1(opening="") if isinstance(like, R1) else like  # the template itself says whether it opens thoughts
    return Jinja(settings.template, tokenizer.controls, settings.bos, settings.eos, like)
