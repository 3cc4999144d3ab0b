"""The messages of the Messages API in OpenAI's form: blocks become parts, calls, their results and thoughts."""

import json
from typing import Any

from fourfold.server.errors import bad
from fourfold.server.media import Intake

ROLES = ("user", "assistant", "system")
Message = dict[str, Any]


def messages_of(system: Any, messages: Any, intake: Intake) -> list[Message]:
    """All that was said, the system's words first. Blocks while it fetches. Raises ApiError naming the block that is wrong.

    A last message of the assistant is left open, to be continued.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise bad("messages", "must be a list of objects with role and content")
    made = [{"role": "system", "content": _words(system, "system")}] if system else []
    for i, message in enumerate(messages):
        made += _turns(message, f"messages[{i}]", intake)
    if made and made[-1]["role"] == "assistant" and not made[-1].get("tool_calls"):
        made[-1]["prefix"] = True
    return made


def _turns(message: Message, field: str, intake: Intake) -> list[Message]:
    """One message as one or more: results of calls are turns of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise bad(f"{field}.role", f"must be one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise bad(f"{field}.content", "must be text, or a list of blocks")
    results: list[Message] = []
    turn: Message = {"role": role, "content": []}
    for i, block in enumerate(content):
        _add(block, f"{field}.content[{i}]", turn, results, intake)
    if not turn["content"]:
        turn["content"] = None if turn.get("tool_calls") else ""
    return results if results and not turn["content"] else [*results, turn]


def _add(block: dict[str, Any], field: str, turn: Message, results: list[Message], intake: Intake) -> None:
    kind, own = block.get("type"), turn["role"] == "assistant"
    if kind == "text":
        turn["content"].append({"type": "text", "text": _text(block, "text", field)})
    elif kind == "image":
        turn["content"].append(intake.part(block, field, turn["role"]))
    elif kind == "thinking" and own:
        turn["reasoning_content"] = turn.get("reasoning_content", "") + _text(block, "thinking", field)
    elif kind == "redacted_thinking" and own:
        pass  # thoughts of another service, which nobody can read
    elif kind == "tool_use" and own:
        given = block.get("input")
        if not isinstance(given, dict):
            raise bad(f"{field}.input", "must be an object")
        function = {"name": _text(block, "name", field), "arguments": json.dumps(given, ensure_ascii=False)}
        turn.setdefault("tool_calls", []).append({"id": block.get("id"), "type": "function", "function": function})
    elif kind == "tool_result" and turn["role"] == "user":
        results.append(
            {"role": "tool", "tool_call_id": _text(block, "tool_use_id", field), "content": _result(block, field, intake)}
        )
    elif kind == "document" and isinstance(source := block.get("source"), dict) and source.get("type") == "text":
        turn["content"].append({"type": "text", "text": _text(source, "data", f"{field}.source")})
    else:
        takes = "text, image, thinking, tool_use" if own else "text, image, tool_result, document (of plain text)"
        raise bad(f"{field}.type", f"is {kind!r}; a message of the {turn['role']} takes {takes}")


def _result(block: dict[str, Any], field: str, intake: Intake) -> Any:
    content = block.get("content") or ""
    if not isinstance(content, str | list):
        raise bad(f"{field}.content", "must be text, or a list of blocks")
    return intake.parts(content, f"{field}.content", "tool")


def _words(content: Any, field: str) -> str:
    """A text, or blocks of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise bad(field, "must be text, or a list of blocks of text")
    return "\n\n".join(_text(block, "text", f"{field}[{i}]") for i, block in enumerate(content))


def _text(block: dict[str, Any], name: str, field: str) -> str:
    if not isinstance(block.get(name), str):
        raise bad(f"{field}.{name}", "must be text")
    return block[name]
