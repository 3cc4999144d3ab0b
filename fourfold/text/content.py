"""Content of messages in parts: words, what is shown to the model, and what it drew.

    {"type": "text", "text": ...}
    {"type": "image" | "video" | "audio", "source": path or bytes}     or with "span" once that was read; not from the assistant
    {"type": "draw", "codes": [rows][columns]}   {"type": "film", "codes": [frames][rows][columns]}    the assistant's alone

Codes are an int64 tensor, or nested lists.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fourfold.errors import DataError

if TYPE_CHECKING:
    from fourfold.media.spans import Span
    from fourfold.text.tokenizer import Tokenizer

SHOWN = {"image": "a picture", "video": "a clip", "audio": "sound"}
DRAWN = {"draw": 2, "film": 3}  # how many dimensions the codes have

Show = Callable[[str, Any], "Span"]  # a kind of SHOWN and a source -> how the model reads it


def check_part(part: Any, field: str, role: str) -> None:
    """Raise DataError unless it is a part that one of this role may say."""
    if not isinstance(part, dict) or part.get("type") not in ("text", *SHOWN, *DRAWN):
        raise DataError(f"{field}.type: must be one of text, {', '.join((*SHOWN, *DRAWN))}")
    kind, own = part["type"], role == "assistant"
    if kind == "text" and not isinstance(part.get("text"), str):
        raise DataError(f"{field}.text: must be text")
    if kind in (SHOWN if own else DRAWN):
        raise DataError(f"{field}.type: {kind} is not for {role} messages; put it into a message of the {_other(own)}")
    if kind in SHOWN and part.get("source") is None and part.get("span") is None:
        raise DataError(f"{field}.source: is missing; give a path or the bytes of a file")
    if kind in DRAWN:
        _codes(part, field)


def plain(content: Any) -> Any:
    """A list of texts as one text; all else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return content
    return "".join(part["text"] for part in content) if all(part.get("type") == "text" for part in content) else content


def text_only(messages: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Messages whose lists of texts are texts. Raises DataError for one with media, which chat format `name` cannot write."""
    made = [message | {"content": plain(message["content"])} if "content" in message else message for message in messages]
    for i, message in enumerate(made):
        kinds = [part["type"] for part in message.get("content") or [] if isinstance(part, dict) and part.get("type") != "text"]
        if kinds:
            remedy = "leave it out, or choose a model of ours with media parts, such as nano-omni"
            raise DataError(f"messages[{i}].content: chat format {name} has no words for {kinds[0]}; {remedy}")
    return made


def span_of_part(part: dict[str, Any], tokenizer: "Tokenizer", show: Show | None) -> "Span":
    """What stands in the sequence for a part that is not text."""
    from fourfold.media import spans

    if part["type"] == "draw":
        return spans.drawing(_codes(part), tokenizer)
    if part["type"] == "film":
        return spans.film(_codes(part), tokenizer)
    if part.get("span") is not None:
        return part["span"]
    if show is None:
        raise DataError(f"content: {part['type']} was not read; give a span, or say how to read it")
    return show(part["type"], part["source"])


def _codes(part: dict[str, Any], field: str = "content") -> Any:
    import torch

    try:
        codes = torch.as_tensor(part.get("codes"))
    except (TypeError, ValueError, RuntimeError):
        codes = torch.tensor(0.5)
    axes = ("frames, rows, columns", "rows, columns")[part["type"] == "draw"]
    if codes.dim() != DRAWN[part["type"]] or not codes.numel() or codes.is_floating_point() or codes.dtype == torch.bool:
        raise DataError(f"{field}.codes: must be whole numbers [{axes}]")
    return codes.long()


def _other(own: bool) -> str:
    return "user" if own else "assistant"
