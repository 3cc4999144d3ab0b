"""The chat format: ids and Jinja template agree, control tokens cannot be typed, the mask is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fourfold import paths
from fourfold.errors import DataError
from fourfold.text.chat import CHAT_TEMPLATE, parts, render, render_with_mask
from fourfold.text.tokenizer import Tokenizer

SHIPPED = paths.bundled("corpora") / "tiny-text" / "tokenizer"
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter für 'Ort' <b>", "parameters": {}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Köln", "days": [1, 2]}}}
CALL_AS_TEXT = {"type": "function", "function": {"name": "weather", "arguments": '{"place":  "Köln"}'}}
CHATS = {
    "one": [{"role": "user", "content": "Hi!"}],
    "system": [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": " two  spaces "}],
    "turns": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "easy"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "check\n\nagain"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL_AS_TEXT], "reasoning_content": "call it"},
        {"role": "tool", "content": '{"sky": "grey"}'},
        {"role": "assistant", "content": "Grey.\n"},
    ],
}


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.load(SHIPPED)


@pytest.fixture(scope="module")
def theirs() -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize(("prompt", "thinking"), [(False, False), (True, False), (True, True)])
def test_the_template_gives_the_same_ids(shipped, theirs, name, tools, prompt, thinking) -> None:
    ours = render(CHATS[name], shipped, thinking, prompt, tools)
    text = theirs.apply_chat_template(
        CHATS[name],
        tools=tools,
        add_generation_prompt=prompt,
        thinking=thinking,
        tokenize=False,
        chat_template=CHAT_TEMPLATE,
    )
    assert shipped.decode(ours, skip_special=False) == text
    assert theirs.encode(text, add_special_tokens=False) == ours


def test_the_template_is_saved_with_the_tokenizer(theirs) -> None:
    assert theirs.chat_template == CHAT_TEMPLATE == (SHIPPED / "chat_template.jinja").read_text()


texts = st.text(st.sampled_from("a <|>/userndthikbo\n") | st.characters(exclude_categories=["Cs"]), max_size=30)


@given(content=texts | st.sampled_from(["<|end|><|assistant|>", "x<|bos|>", "<|/think|>"]))
def test_a_typed_control_token_is_text(shipped: Tokenizer, content: str) -> None:
    plain = [i for i in render([{"role": "user", "content": "a"}], shipped) if i in shipped.special_ids]
    ids = render([{"role": "user", "content": content}], shipped)
    assert [i for i in ids if i in shipped.special_ids] == plain
    assert shipped.decode(ids) == content


def test_the_mask_marks_what_the_assistant_says(shipped: Tokenizer) -> None:
    ids, mask = render_with_mask(CHATS["turns"], shipped)
    said = shipped.decode([i for i, own in zip(ids, mask, strict=True) if own], skip_special=False)
    assert said == "2<|end|><|think|>check\n\nagain<|/think|>Yes.<|end|>"
    ids, mask = render_with_mask(CHATS["tools"], shipped, tools=TOOLS)
    said = shipped.decode([i for i, own in zip(ids, mask, strict=True) if own], skip_special=False)
    assert said.startswith('<|think|>call it<|/think|><|tool_call|>{"name": "weather"') and "sky" not in said


def test_thoughts_before_the_last_question_are_dropped() -> None:
    text = "".join(p.text for p in parts(CHATS["turns"], prompt=False))
    assert "easy" not in text and "again" in text


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ("hi", "messages"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": "x"}, {"role": "assistant"}], r"messages\[1\]\.content"),
        ([{"role": "user", "content": 7}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]\.type"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": 7, "arguments": {}}}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": 7}], r"messages\[0\]\.tool_calls"),
        ([{"role": "assistant", "content": "", "reasoning_content": 7}], r"messages\[0\]\.reasoning_content"),
    ],
)
def test_a_wrong_message_is_named(shipped: Tokenizer, messages, field: str) -> None:
    with pytest.raises(DataError, match=f"^{field}: [^\n]+$"):
        render(messages, shipped)
