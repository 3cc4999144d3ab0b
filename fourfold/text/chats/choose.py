"""Which chat format a checkpoint speaks: by its template where that tells, else by its model_type and its vocabulary.

Generations share a model_type: V3, R1 and V3.1 are all deepseek_v3. What a template writes is compared with what the format found
writes, on short conversations; where they differ the template is used as it is (jinja.py), and only replies are read our way.
"""

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
# What a template contains, the more particular first: DSML tags, fenced calls (V3, R1), calls without (V3.1), turns.
TELLS: list[tuple[tuple[str, ...], type[ChatFormat]]] = [
    ((DSML, "tool_calls>"), V4),
    ((DSML,), V32),
    ((USER, ASSISTANT, CALL, "```json", THOUGHT), R1),
    ((USER, ASSISTANT, CALL, "```json"), V3),
    ((USER, ASSISTANT, SEPARATOR), V31),
    ((USER, ASSISTANT, THOUGHT), R1),
    ((USER, ASSISTANT), V25),
    (("<|im_start|>",), ChatML),
    (("<|start_header_id|>", "<|eot_id|>"), Llama3),
    (("User: ", "Assistant:"), V2),
]
PROBES = [
    [("user", "2 < 3?")],
    [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Why?")],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}]


def choose(tokenizer: "Tokenizer", name: str | None = None) -> ChatFormat:
    """The format of that name, or the one that fits the folder the tokenizer came from.

    Raises DataError for an unknown name, when nothing in the folder tells, and when the vocabulary is not of that generation.
    """
    if name is not None and name not in FORMATS:
        raise DataError(f"chat format: {name} is unknown; choose one of {', '.join(FORMATS)}")
    chat = find(tokenizer) if name is None else FORMATS[name].of(tokenizer.settings)
    chat.check_vocabulary(tokenizer)
    return chat


def find(tokenizer: "Tokenizer") -> ChatFormat:
    """The format that fits the folder; its template itself where it writes something else."""
    settings = tokenizer.settings
    kind = recognise(settings, tokenizer.controls)
    found = kind.of(settings) if kind else None
    if found and (kind is Own or settings.template is None or writes_as(found, settings, tokenizer)):
        return found
    if settings.template is None:
        known = ", ".join(FORMATS)
        raise DataError(f"chat format: no chat template here, and nothing else tells; name one (--chat-format): {known}")
    return _template(settings, tokenizer, found)


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
    kind = next((kind for pieces, kind in TELLS if all(piece in template for piece in pieces)), None)
    return V25 if kind is V3 and settings.model_type == "deepseek_v2" else kind


def writes_as(chat: ChatFormat, settings: TextSettings, tokenizer: "Tokenizer") -> bool:
    """Whether the folder's template writes short conversations as `chat` does. True where it cannot be rendered here.

    Tools count where the template lists them; of those that do not (V3's), the models were told in another way.
    """
    try:
        theirs = _template(settings, tokenizer, chat)
    except DataError:
        return True
    for probe in PROBES:
        messages = [{"role": role, "content": content} for role, content in probe]
        for options in ({}, {"thinking": True}, {"tools": TOOLS}):
            try:
                text = theirs.text(messages, **options)
                listed = "tools" not in options or text != theirs.text(messages)
                if listed and text != chat.text(messages, **options):
                    return False
            except DataError:  # a template that takes no system message says nothing about the rest
                continue
    return True


def _template(settings: TextSettings, tokenizer: "Tokenizer", like: ChatFormat | None) -> Jinja:
    assert settings.template is not None
    return Jinja(settings.template, tokenizer.controls, settings.bos, settings.eos, like)
