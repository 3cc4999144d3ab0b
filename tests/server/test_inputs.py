"""Input of any shape: it is understood, or refused by name; nothing that a client sends is a failure of ours."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.server import messages_input, responses_input
from fourfold.server.errors import ApiError
from fourfold.server.media import TEXTS, Intake
from fourfold.server.settings import Settings
from fourfold.text import chat
from tests.omni import make_omni

WORDS = (
    *("user", "assistant", "system", "developer", "tool", "message", "reasoning", "function_call", "function_call_output"),
    *(
        "image_generation_call",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "document",
        "base64",
        "url",
        "file",
        "mp4",
    ),
    *(
        "image_url",
        "video_url",
        "input_audio",
        "input_image",
        "image",
        "data:image/png;base64,AAAA",
        "data:,",
        "http://x",
        "AAAA",
        "",
    ),
    *TEXTS,
)
KEYS = (
    *("type", "role", "content", "text", "source", "data", "url", "image_url", "video_url", "input_audio", "summary", "arguments"),
    *("name", "call_id", "output", "result", "output_format", "thinking", "input", "tool_use_id", "id", "refusal", "images"),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(-1, 1), st.sampled_from(WORDS))
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=12
)
blocks = st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional=dict.fromkeys(KEYS[3:], values))
messages = st.fixed_dictionaries(
    {},
    optional={"role": st.sampled_from(WORDS[:6]), "type": st.sampled_from(WORDS), "content": st.lists(blocks, max_size=3) | values}
    | dict.fromkeys(KEYS[5:], values),
)


@pytest.fixture(scope="module")
def intake(tokenizer) -> Intake:
    return Intake(Settings(media_count=10**9), make_omni(tokenizer))


def understood(made: list[dict[str, Any]]) -> None:
    """Messages that the chat formats take."""
    chat.check(made, media=True)


@given(given_=st.lists(messages | values, max_size=4) | values)
def test_responses(intake: Intake, given_: Any) -> None:
    try:
        made = responses_input.messages_of(given_, intake)
    except ApiError as error:
        assert error.status in (400, 413) and error.param and error.param.startswith("input")
    else:
        understood(made)


@given(system=values, given_=st.lists(messages | values, max_size=4) | values)
def test_messages(intake: Intake, system: Any, given_: Any) -> None:
    try:
        made = messages_input.messages_of(system, given_, intake)
    except ApiError as error:
        assert error.status in (400, 413) and error.param and error.param.startswith(("messages", "system"))
    else:
        understood(made)


@given(given_=st.lists(messages | values, max_size=4) | values)
def test_chat(intake: Intake, given_: Any) -> None:
    try:
        intake.messages(given_)
    except ApiError as error:
        assert error.status in (400, 413) and error.param and error.param.startswith("messages")
