"""In which order the events of a stream may come, as regular expressions over their types; and what they have to agree on."""

import re
from collections.abc import Sequence
from typing import Any

import httpx

Told = dict[str, Any]

RESPONSES = r"""
created in_progress
( output_item.added
  ( reasoning_summary_part.added reasoning_summary_text.delta* reasoning_summary_text.done reasoning_summary_part.done
  | content_part.added output_text.delta* output_text.done content_part.done
  | function_call_arguments.delta* function_call_arguments.done
  | image_generation_call.in_progress image_generation_call.generating image_generation_call.completed? )
  output_item.done )*
( completed | incomplete | failed )
"""
MESSAGES = r"""
message_start ping*
( content_block_start (ping | content_block_delta)* content_block_stop ping* )*
message_delta message_stop
"""


def stream(http: httpx.Client, path: str, **body: Any) -> list[Told]:
    """The events of a streamed answer, each under the name that its line has."""
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    told = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            value = httpx.Response(200, text=data.removeprefix("data: ")).json()
            assert name == f"event: {value['type']}"
            told.append(value)
    return told


def follows(grammar: str, types: Sequence[str]) -> bool:
    """Whether types are in an order of the grammar."""
    pattern = re.sub(r"[a-z_.]+", lambda word: f"(?:{re.escape(word[0])};)", grammar)
    return re.fullmatch(pattern, "".join(f"{kind};" for kind in types), re.VERBOSE) is not None


def check_response(told: list[Told]) -> Told:
    """Check the events of a response against the grammar and each other; returns the response that they end with."""
    assert follows(RESPONSES, [each["type"].removeprefix("response.") for each in told]), [each["type"] for each in told]
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    final, done = told[-1]["response"], list[Told]()
    assert told[0]["response"]["status"] == "in_progress" and told[0]["response"]["output"] == []
    item: Told = {}
    for each in told[2:-1]:
        kind = each["type"].removeprefix("response.")
        assert each["output_index"] == len(done)
        if kind == "output_item.added":
            item, deltas, text = each["item"], [], None
            assert item["status"] == "in_progress"
        elif kind == "output_item.done":
            assert each["item"]["id"] == item["id"] and each["item"]["type"] == item["type"]
            done.append(each["item"])
        else:
            assert each["item_id"] == item["id"] and OWN[kind.partition(".")[0]] == item["type"]
            deltas += [each["delta"]] if "delta" in each else []
            text = each.get("text", each.get("arguments", text))
            if kind.endswith(".done"):
                assert (text if text is not None else each["part"]["text"]) == "".join(deltas)
    assert final["output"] == done
    return final


OWN = {
    "reasoning_summary_part": "reasoning",
    "reasoning_summary_text": "reasoning",
    "content_part": "message",
    "output_text": "message",
    "function_call_arguments": "function_call",
    "image_generation_call": "image_generation_call",
}


def check_message(told: list[Told]) -> Told:
    """Check the events of a message against the grammar and each other; returns the message that they make."""
    assert follows(MESSAGES, [each["type"] for each in told]), [each["type"] for each in told]
    message = dict(told[0]["message"])
    assert message["content"] == [] and message["stop_reason"] is None
    blocks: list[Told] = []
    for each in told[1:]:
        match each["type"]:
            case "content_block_start":
                assert each["index"] == len(blocks)
                blocks.append(dict(each["content_block"]))
                given = ""
            case "content_block_delta":
                delta = each["delta"]
                assert each["index"] == len(blocks) - 1 and DELTAS[delta["type"]] == blocks[-1]["type"]
                if delta["type"] == "input_json_delta":
                    given += delta["partial_json"]
                else:
                    field = delta["type"].removesuffix("_delta")
                    blocks[-1][field] += delta[field]
            case "content_block_stop":
                assert each["index"] == len(blocks) - 1
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = given
            case "message_delta":
                message |= each["delta"] | {"usage": each["usage"]}
    return message | {"content": blocks}


DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "thinking", "input_json_delta": "tool_use"}
