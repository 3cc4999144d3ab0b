"""The input of the Responses API as messages: items become turns, those of the assistant that follow each other one turn."""

from typing import Any

from fourfold.server.errors import bad
from fourfold.server.media import Intake

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
ITEMS = ("message", "function_call", "function_call_output", "reasoning", "image_generation_call")
Message = dict[str, Any]


def messages_of(items: Any, intake: Intake) -> list[Message]:
    """A text or a list of items as messages in our form. Blocks while it fetches. Raises ApiError naming the item that is wrong."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise bad("input", "must be text, or a list of items")
    messages: list[Message] = []
    for i, item in enumerate(items):
        _add(messages, item, f"input[{i}]", intake)
    for message in messages:
        if message["role"] == "assistant" and "content" not in message:
            message["content"] = None if message.get("tool_calls") else ""
    return messages


def _add(messages: list[Message], item: dict[str, Any], field: str, intake: Intake) -> None:
    kind = item.get("type") or "message"
    match kind:
        case "message":
            _say(messages, item, field, intake)
        case "reasoning":
            _turn(messages, "content", "tool_calls", "reasoning_content")["reasoning_content"] = _thoughts(item, field)
        case "function_call":
            name, arguments = _text(item, "name", field), _text(item, "arguments", field)
            call = {"id": item.get("call_id"), "type": "function", "function": {"name": name, "arguments": arguments}}
            _turn(messages).setdefault("tool_calls", []).append(call)
        case "function_call_output":
            output = _content(item, "output", field, "tool", intake)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        case "image_generation_call":
            named = "image_url" if item.get("output_format") != "mp4" else "video_url"
            url = f"data:image/png;base64,{_text(item, 'result', field)}"
            turn = _turn(messages, "tool_calls")
            shown = intake.parts([{"type": named, named: url}], f"{field}.result", "assistant")
            turn["content"] = [*_listed(turn.get("content")), *shown]
        case _:
            raise bad(f"{field}.type", f"must be one of {', '.join(ITEMS)}")


def _say(messages: list[Message], item: dict[str, Any], field: str, intake: Intake) -> None:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad(f"{field}.role", f"must be one of {', '.join(ROLES)}")
    content = _content(item, "content", field, ROLES[role], intake)
    if role != "assistant":
        return messages.append({"role": ROLES[role], "content": content})
    turn = _turn(messages, "tool_calls")
    said = turn.get("content")
    turn["content"] = content if said is None else [*_listed(said), *_listed(content)]


def _turn(messages: list[Message], *behind: str) -> Message:
    """The assistant's turn that is going on, or a new one where it has something that what comes may not follow (`behind`)."""
    if not messages or messages[-1]["role"] != "assistant" or any(messages[-1].get(name) for name in behind):
        messages.append({"role": "assistant"})
    return messages[-1]


def _thoughts(item: dict[str, Any], field: str) -> str:
    """What an item of reasoning says: its own words where it has them, else their summary."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise bad(f"{field}.summary", "must be a list of parts with text")
    return "\n\n".join(part["text"] for part in parts)


def _content(item: dict[str, Any], name: str, field: str, role: str, intake: Intake) -> Any:
    if not isinstance(item.get(name), str | list):
        raise bad(f"{field}.{name}", "must be text, or a list of parts")
    return intake.parts(item[name], f"{field}.{name}", role)


def _text(item: dict[str, Any], name: str, field: str) -> str:
    if not isinstance(item.get(name), str):
        raise bad(f"{field}.{name}", "must be text")
    return item[name]


def _listed(content: Any) -> list[Any]:
    """Content as a list of parts."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
