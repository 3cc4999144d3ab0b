"""Published chat formats: what they write, against golden texts and against templates; who is meant by a folder; no injection."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Inner

from fourfold import paths
from fourfold.errors import DataError
from fourfold.text.chats import FORMATS, ChatFormat, choose
from fourfold.text.chats.choose import recognise
from fourfold.text.chats.jinja import Jinja
from fourfold.text.chats.v4 import V4
from fourfold.text.settings import TextSettings
from fourfold.text.tokenizer import Tokenizer
from tests.text.templates import ANSWER, CHATML, SHOWN, STRANGE, TEMPLATES, V31, fenced

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
WORDS = "<|im_start|> <|im_end|> <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> [END]".split()
BARRED = "User Assistant tool▁calls▁begin tool▁calls▁end tool▁call▁begin tool▁call▁end tool▁sep tool▁outputs▁begin".split()
BARRED += "tool▁outputs▁end tool▁output▁begin tool▁output▁end latest_reminder title action".split()
CONTROLS = [BOS, EOS, *WORDS, *(f"<｜{name}｜>" for name in BARRED), "<think>", "</think>", "｜DSML｜"]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter?", "parameters": {"type": "object"}}}]
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Köln", "days": [1, 2]}'}}
NO_ARGUMENTS = {"id": "b", "type": "function", "function": {"name": "moon", "arguments": "{}"}}
ASK = [{"role": "user", "content": "Hi"}]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "easy"},
    {"role": "user", "content": "Sure?"},
]
CALLED = [
    *ASK,
    {"role": "assistant", "content": "Look:", "reasoning_content": "call", "tool_calls": [CALL, NO_ARGUMENTS]},
    {"role": "tool", "tool_call_id": "b", "content": "full"},
    {"role": "tool", "tool_call_id": "a", "content": "rain"},
]


@functools.cache
def a_tokenizer(template: str | None = None, **settings: object) -> Tokenizer:
    """Bytes and control tokens, most of them marked as ordinary in the file, as the published ones are. Not to be changed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(token, normalized=False, special=token in (BOS, EOS, *WORDS)) for token in CONTROLS])
    about = TextSettings(template=template, **{"bos": BOS, "eos": EOS, **settings})
    return Tokenizer(inner, about)


@functools.cache
def jinja(template: str, bos: str | None = BOS) -> Jinja:
    return Jinja(template, CONTROLS, bos, EOS)


def make(name: str) -> ChatFormat:
    return FORMATS[name]()


GOLDEN = [
    ("v1", TURNS, {}, f"{BOS}Be brief.\n\nUser: 1+1?\n\nAssistant: 2{EOS}User: Sure?\n\nAssistant:"),
    ("v2", ASK, {"add_generation_prompt": False}, f"{BOS}User: Hi\n\n"),
    ("v2.5", TURNS, {}, f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>2{EOS}<｜User｜>Sure?<｜Assistant｜>"),
    (
        "v3",
        CALLED,
        {},
        f"{BOS}<｜User｜>Hi<｜Assistant｜>Look:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"place": "Köln", "days": [1, 2]}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>moon\n'
        "```json\n{}\n```"
        f"<｜tool▁call▁end｜><｜tool▁calls▁end｜>{EOS}<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>full<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>rain<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
    ),
    ("r1", TURNS, {}, f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>2{EOS}<｜User｜>Sure?<｜Assistant｜><think>\n"),
    ("v3.1", TURNS, {}, f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜></think>2{EOS}<｜User｜>Sure?<｜Assistant｜></think>"),
    ("v3.1", ASK, {"thinking": True}, f"{BOS}<｜User｜>Hi<｜Assistant｜><think>"),
    (
        "v3.1",
        CALLED,
        {},
        f"{BOS}<｜User｜>Hi<｜Assistant｜></think>Look:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"place": "Köln", "days": [1, 2]}<｜tool▁call▁end｜><｜tool▁call▁begin｜>moon<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
        f"<｜tool▁calls▁end｜>{EOS}<｜tool▁output▁begin｜>full<｜tool▁output▁end｜><｜tool▁output▁begin｜>rain<｜tool▁output▁end｜>",
    ),
    ("v3.2", TURNS, {}, f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜></think>2{EOS}<｜User｜>Sure?<｜Assistant｜></think>"),
    (
        "v3.2",
        CALLED,
        {"thinking": True},
        f'{BOS}<｜User｜>Hi<｜Assistant｜><think>call</think>Look:\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="place" string="true">Köln</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        f'<｜DSML｜invoke name="moon">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>{EOS}'
        "\n\n<function_results>\n<result>full</result>\n<result>rain</result>\n</function_results>\n\n<think>",
    ),
    (
        "v4",
        CALLED,
        {"thinking": True},  # results in the order of the calls; without tools, thoughts before them are gone
        f'{BOS}<｜User｜>Hi<｜Assistant｜></think>Look:\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="place" string="true">Köln</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        f'<｜DSML｜invoke name="moon">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>{EOS}'
        "<｜User｜><tool_result>rain</tool_result>\n\n<tool_result>full</tool_result><｜Assistant｜><think>",
    ),
    (
        "v4",
        [{"role": "latest_reminder", "content": "It is noon."}, {"role": "developer", "content": "Hi"}],
        {"response_format": {"type": "json_object"}},
        f"{BOS}<｜latest_reminder｜>It is noon.<｜User｜>Hi\n\n## Response Format:\n\n"
        'You MUST strictly adhere to the following schema to reply:\n{"type": "json_object"}<｜Assistant｜></think>',
    ),
    ("v4", [ASK[0] | {"task": "title"}], {"thinking": True}, f"{BOS}<｜User｜>Hi<｜title｜>"),
    ("v4", [ASK[0] | {"task": "action"}], {}, f"{BOS}<｜User｜>Hi<｜Assistant｜></think><｜action｜>"),
    ("v4", [*ASK, {"role": "assistant", "content": "Well", "prefix": True}], {}, f"{BOS}<｜User｜>Hi<｜Assistant｜></think>Well"),
    ("chatml", ASK, {}, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    (
        "llama3",
        ASK,
        {},
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("fourfold", ASK, {"thinking": True}, "<|bos|><|user|>Hi<|end|><|assistant|><|think|>"),
]


@pytest.mark.parametrize(("name", "messages", "options", "text"), GOLDEN)
def test_golden(name: str, messages: list, options: dict, text: str) -> None:
    assert make(name).text(messages, **options) == text


words = st.text(st.sampled_from("ab \n{}<>|｜"), min_size=1, max_size=6) | st.sampled_from(["é🙂", "</think>", "{{ x }}"])


def conversation(texts: list[str], system: str | None) -> list[dict]:
    """Users and the assistant in turn, perhaps a system message first; what the assistant says is no thought."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    for turn in turns[1::2]:
        turn["content"] = turn["content"].replace("</think>", "")
    return turns if system is None else [{"role": "system", "content": system}, *turns]


CHATS = st.builds(conversation, st.lists(words, min_size=1, max_size=6), st.none() | words)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"v2", "v2.5"}))  # those are v1's and v3's
@given(messages=CHATS, thinking=st.booleans())
def test_the_template_writes_the_same(name: str, messages: list, thinking: bool) -> None:
    tokenizer = a_tokenizer(TEMPLATES[name], **({"bos": "<|begin_of_text|>"} if name == "llama3" else {}))
    chat, theirs = FORMATS[name].of(tokenizer.settings), jinja(TEMPLATES[name], tokenizer.settings.bos)
    prompt = messages[-1]["role"] == "user"
    options = {"thinking": thinking, "add_generation_prompt": prompt}
    assert chat.text(messages, **options) == theirs.text(messages, **options)
    assert chat.encode(tokenizer, messages, **options) == theirs.encode(tokenizer, messages, **options)


@pytest.mark.parametrize("name", ["v3", "r1", "v3.1"])
@pytest.mark.parametrize("more", [[], [{"role": "assistant", "content": "Wet."}, *ASK], [{"role": "assistant", "content": "Wet."}]])
def test_the_template_writes_the_same_calls(name: str, more: list) -> None:
    tokenizer = a_tokenizer(TEMPLATES[name])
    theirs = jinja(TEMPLATES[name])
    messages = [*CALLED, *more]
    prompt = messages[-1]["role"] != "assistant"
    options = {"add_generation_prompt": prompt}
    assert FORMATS[name].of(tokenizer.settings).text(messages, **options) == theirs.text(messages, **options)


@pytest.mark.parametrize("name", ["v3", "v3.1", "v3.2", "v4", "chatml", "llama3"])
def test_tools_are_listed_in_the_system_text(name: str) -> None:
    alone, text = make(name).text(ASK, tools=TOOLS), make(name).text(TURNS, tools=TOOLS)
    for prompt in (alone, text):
        before, _, after = prompt.partition("Wetter?")
        assert after and "weather" in before and '"object"' in after
        assert not any(said in before for said in ("Hi", "1+1?"))
    assert text.index("Be brief.") < text.index("weather")


def test_v4_keeps_thoughts_when_there_are_tools() -> None:
    chat = make("v4")
    assert "easy" not in chat.text(TURNS, thinking=True)
    assert "<think>easy</think>2" in chat.text(TURNS, thinking=True, tools=TOOLS)
    assert "<think>easy</think>2" in V4(drop_thinking=False).text(TURNS, thinking=True)
    assert "easy" not in chat.text(TURNS, tools=TOOLS)  # not in chat mode
    developer = [{"role": "developer", "content": "Rule."}, {"role": "assistant", "content": "Yes."}, *ASK]
    assert "Rule." not in chat.text(developer, thinking=True) and "Rule." in chat.text(developer)


@pytest.mark.parametrize(
    ("asked", "thinks", "first"), [("none", False, False), ("low", True, False), ("high", True, False), ("xhigh", True, True)]
)
def test_v4_effort(asked: str, thinks: bool, first: bool) -> None:
    chat = V4(effort_max="Try hard.\n\n")
    text = chat.text(TURNS, thinking=True, reasoning_effort=asked)
    assert text.endswith("<think>" if thinks else "</think>")
    assert text.startswith(f"{BOS}Try hard.\n\nBe brief.") == first
    assert "Try hard" not in chat.text(TURNS, reasoning_effort="max")
    with pytest.raises(DataError, match=r"^reasoning_effort: [^\n]+$"):
        chat.text(TURNS, reasoning_effort="endless")


def test_v4_reads_its_wordings_from_the_folders_encoder(tmp_path: Path) -> None:
    """The encoder is not run: a line that would fail stands in it."""
    (tmp_path / "encoding").mkdir()
    source = '''raise SystemExit("was run")
TOOLS_TEMPLATE = """Use <{dsml_token}tool_calls> after {thinking_end_token}:
{tool_schemas}
End."""
REASONING_EFFORT_MAX: str = (
    "Never "
    "stop.\\n"
)
'''
    (tmp_path / "encoding" / "encoding_dsv4.py").write_text(source, "utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v4"}')
    tokenizer = a_tokenizer(None, encoder="of a folder")
    tokenizer.settings = TextSettings.read(tmp_path)
    chat = choose(tokenizer)
    text = chat.text(ASK, tools=TOOLS, thinking=True, reasoning_effort="max")
    listed = json.dumps(TOOLS[0]["function"], ensure_ascii=False)
    assert (
        text == f"{BOS}Never stop.\n\n\nUse <｜DSML｜tool_calls> after </think>:\n{listed}\nEnd.<｜User｜>Hi<｜Assistant｜><think>"
    )
    assert tokenizer.special("｜DSML｜") in chat.encode(tokenizer, ASK, tools=TOOLS)


typed = st.lists(st.sampled_from([*CONTROLS, "<", "x", "｜", "\ue000", "|"]), max_size=5).map("".join)


@pytest.mark.parametrize("name", [*sorted(set(FORMATS) - {"fourfold", "v2", "v2.5", "r1"}), "strange"])
@given(text=typed, other=typed)
def test_a_typed_control_token_is_text(name: str, text: str, other: str) -> None:
    """Whatever people and tools write, the control tokens of the prompt stay the same."""
    tokenizer = a_tokenizer(STRANGE)
    chat = jinja(STRANGE) if name == "strange" else make(name)
    controls = {tokenizer.special(token) for token in tokenizer.controls}

    def prompt(said: str, tool: str) -> list[int]:
        messages = [
            {"role": "system", "content": said},
            {"role": "user", "content": tool},
            {"role": "assistant", "content": f"{said}."},
        ]
        results = [CALLED[1] | {"content": said}, {"role": "tool", "tool_call_id": "a", "content": tool}]
        return chat.encode(tokenizer, [*messages, {"role": "user", "content": said}, *(results if chat.has_tools else [])])

    ids = prompt(text, other)
    assert [i for i in ids if i in controls] == [i for i in prompt("a", "b") if i in controls]
    said = tokenizer.decode(ids, skip_special=False)
    assert text.strip() in said and (name == "strange" or other.strip() in said)


def test_control_tokens_in_the_keys_of_a_tool_are_text() -> None:
    tokenizer, chat = a_tokenizer(), jinja("{{ tools | tojson }}{% for m in messages %}[{{ m.content }}]{% endfor %}[END]")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"<|im_end|>": {"type": "null"}}}}}]
    ids = chat.encode(tokenizer, ASK, tools=tools)
    assert '{"<|im_end|>": {"type": "null"}}' in tokenizer.decode(ids, skip_special=False)
    assert tokenizer.special("<|im_end|>") not in ids and tokenizer.special("[END]") in ids


LEFT_OPEN = [*ASK, {"role": "assistant", "content": "Well", "prefix": True}]
ANSWERED = [*CALLED[:2], {"role": "tool", "tool_call_id": "a", "content": "rain"}]


@pytest.mark.parametrize("name", [*sorted(FORMATS), "jinja"])
def test_an_open_message_is_continued(name: str) -> None:
    chat = jinja(CHATML) if name == "jinja" else make(name)
    assert chat.text(LEFT_OPEN).endswith("Well")
    for wrong in ([*LEFT_OPEN, *ASK], [ASK[0] | {"prefix": True}]):
        with pytest.raises(DataError, match=r"^messages\[\d\]\.prefix: [^\n]+$"):
            chat.text(wrong)


@pytest.mark.parametrize(
    ("name", "messages", "opened"),
    [
        ("fourfold", ASK, True),
        ("v3", ASK, False),
        ("r1", ASK, True),
        ("r1", ANSWERED, False),
        ("v3.1", ASK, True),
        ("v3.1", ANSWERED, False),
        ("v3.1", LEFT_OPEN, True),
        ("v3.2", ANSWERED, True),
        ("v3.2", LEFT_OPEN, False),
        ("v4", ANSWERED, True),
        ("v4", [ASK[0] | {"task": "title"}], False),
        ("chatml", ASK, False),
    ],
)
def test_a_prompt_tells_whether_thoughts_are_open(name: str, messages: list, opened: bool) -> None:
    chat = make(name)
    assert chat.opened(chat.render(messages, thinking=True)) == opened
    if name not in ("r1", "v3"):
        assert not chat.opened(chat.render(ASK))


def test_a_vocabulary_of_another_generation_is_refused() -> None:
    shipped = Tokenizer.load(paths.bundled("corpora") / "tiny-text" / "tokenizer")
    for name in sorted(set(FORMATS) - {"fourfold"}):
        with pytest.raises(DataError, match=rf"^chat format {name}: the tokenizer has no [^\n]+--chat-format$"):
            make(name).encode(shipped, ASK)
        with pytest.raises(DataError, match=f"^chat format {name}: "):
            choose(shipped, name)
    with pytest.raises(DataError, match="^chat format fourfold: "):
        make("fourfold").encode(a_tokenizer(), ASK)


@pytest.mark.parametrize(
    ("messages", "options", "field"),
    [
        ([{"role": "robot", "content": "x"}], {}, r"messages\[0\]\.role"),
        ([{"role": "user", "content": None, "tool_calls": [CALL]}], {}, r"messages\[0\]\.content"),
        (ASK, {"tools": [{"type": "function"}]}, r"tools\[0\]\.function"),
        (ASK, {"tools": {"name": "x"}}, "tools"),
        (ASK, {"reasoning_effort": ["high"]}, "reasoning_effort"),
        ([], {}, "messages"),
        ([ASK[0] | {"task": "sing"}], {}, r"messages\[0\]\.task"),
    ],
)
def test_what_is_wrong_is_named(messages: list, options: dict, field: str) -> None:
    with pytest.raises(DataError, match=f"^{field}: [^\n]+$"):
        make("v4").render(messages, **options)


def test_what_clients_leave_out_or_set_to_null_is_nothing() -> None:
    for name in sorted({kind.name for kind in FORMATS.values() if kind.has_tools}):
        called = {"role": "assistant", "tool_calls": [NO_ARGUMENTS], "reasoning_content": None}
        tools = [{"type": "function", "function": {"name": "moon", "description": None}}]
        text = make(name).text([*ASK, called], tools=tools, response_format={"type": "text"})
        assert "None" not in text and "Response Format" not in text and "moon" in text


def test_v1_has_no_tools() -> None:
    for arguments in ((ASK, TOOLS), (CALLED[:2], None)):
        with pytest.raises(DataError, match="^tools: chat format v1 "):
            make("v1").render(arguments[0], tools=arguments[1])


FOLDERS = [  # model_type, template, what it is
    ("llama", CHATML, "chatml"),
    ("llama", TEMPLATES["llama3"], "llama3"),
    ("llama", TEMPLATES["v1"], "v2"),
    ("llama", TEMPLATES["r1"], "r1"),
    ("deepseek_v2", TEMPLATES["v1"], "v2"),
    ("deepseek_v2", fenced(SHOWN), "v2.5"),
    ("deepseek_v3", fenced(SHOWN), "v3"),
    ("deepseek_v3", TEMPLATES["r1"], "r1"),
    ("deepseek_v3", fenced(ANSWER), "r1"),
    ("deepseek_v3", V31, "v3.1"),
    ("deepseek_v32", V31, "v3.1"),
    ("deepseek_v32", None, "v3.2"),
    ("deepseek_v4", None, "v4"),
    ("deepseek_v2", None, "v2"),
    ("llama", STRANGE, "jinja"),
    ("deepseek_v3", V31.replace("'<｜User｜>'", "'<｜User｜> '"), "jinja"),  # looks like it, and writes something else
]


@pytest.mark.parametrize(("model_type", "template", "name"), FOLDERS)
def test_the_format_is_found(model_type: str, template: str | None, name: str) -> None:
    settings = {"bos": "<|begin_of_text|>"} if name == "llama3" else {}
    chat = choose(a_tokenizer(template, model_type=model_type, **settings))
    assert chat.name == name
    if template is not None:
        theirs = jinja(template, settings.get("bos", BOS))
        assert chat.text(TURNS) == theirs.text(TURNS) and chat.text(ASK) == theirs.text(ASK)


def test_a_template_that_lists_tools_decides_how() -> None:
    """ChatML has no one way to list tools, nor to write calls: Qwen's template takes arguments as objects, V3's as text."""
    listing = "{%- if tools -%}{{ '[' + tools[0].function.name + ']' }}{%- endif -%}"
    calls = "{%- for m in messages -%}{%- for c in m.tool_calls -%}{{ ARGUMENTS }}{%- endfor -%}{%- endfor -%}"
    for arguments in ("c.function.arguments | tojson", "c.function.arguments"):
        chat = choose(a_tokenizer(listing + calls.replace("ARGUMENTS", arguments) + CHATML))
        assert chat.name == "jinja" and chat.text(ASK, tools=TOOLS).startswith("[weather]<|im_start|>system")
        assert chat.text([*ASK, CALLED[1]], add_generation_prompt=False).startswith(CALL["function"]["arguments"])
        assert chat.parse('<tool_call>{"name": "f", "arguments": {}}</tool_call>').tool_calls[0].name == "f"


def test_a_name_overrules_the_folder() -> None:
    tokenizer = a_tokenizer(CHATML)
    assert choose(tokenizer, "v3").name == "v3"
    with pytest.raises(DataError, match="^chat format: basic is unknown; choose one of fourfold, v1, "):
        choose(tokenizer, "basic")


def test_our_own_vocabulary_is_told_by_its_tokens() -> None:
    shipped = Tokenizer.load(paths.bundled("corpora") / "tiny-text" / "tokenizer")
    assert choose(shipped).name == "fourfold"
    assert recognise(replace(shipped.settings, model_type="llama", template=CHATML), shipped.controls) is FORMATS["fourfold"]


@pytest.mark.parametrize(
    ("missing", "name"), [([], "v4"), (["<｜latest_reminder｜>"], "v3.2"), (["<｜latest_reminder｜>", "｜DSML｜"], "v3")]
)
def test_a_converted_folder_is_told_by_its_vocabulary(missing: list[str], name: str) -> None:
    """Our own config.json names no generation, and V4 has no template."""
    found = recognise(TextSettings(model_type="fourfold"), frozenset(CONTROLS) - set(missing))
    assert found is FORMATS[name]


def test_nothing_to_tell_by_is_one_line() -> None:
    inner = Inner(models.BPE({"a": 0}, []))
    with pytest.raises(DataError, match=r"^chat format: no chat template here[^\n]+chatml[^\n]+$"):
        choose(Tokenizer(inner, TextSettings(model_type="llama")))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "is not a Jinja template"),
        ("{{ raise_exception('system first') }}", "system first"),
        ("{{ messages[7].content }}", "cannot write this chat"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 // 0 }}", "zero"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"^chat_template: [^\n]*{said}[^\n]*--chat-format$"):
        choose(a_tokenizer(template)).text(ASK)


def test_a_template_of_no_known_kind_may_open_thoughts() -> None:
    chat = choose(a_tokenizer(STRANGE.replace("'[assistant]'", "'[assistant]<think>\\n'")))
    assert chat.name == "jinja" and chat.text(ASK) == "[user]HI[END][assistant]<think>\n"
    assert chat.opened(chat.render(ASK)) and not jinja(STRANGE).opened(jinja(STRANGE).render(ASK))
    assert chat.parse("hm</think>Hi", opened=True).reasoning_content == "hm"
    assert chat.parse("hm</think>Hi").content == "hm</think>Hi"


def test_chatml_takes_its_system_text_from_the_template() -> None:
    chat = choose(a_tokenizer(CHATML))
    assert chat.text(ASK).startswith("<|im_start|>system\nYou are a small model<|im_end|>\n<|im_start|>user\nHi")


@pytest.mark.parametrize("name", ["v3", "v3.1", "chatml", "llama3", "strange"])
def test_templates_are_rendered_as_transformers_does(name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    template = TEMPLATES.get(name, STRANGE) + "{%- if tools -%}{{ tools | tojson(indent=1) }}{%- endif -%}"
    theirs = PreTrainedTokenizerFast(tokenizer_object=Inner(models.BPE({"a": 0}, [])), bos_token=BOS, eos_token=EOS)
    for messages, tools, thinking in ((TURNS, TOOLS, False), (ASK, None, True)):
        text = theirs.apply_chat_template(
            messages, tools=tools, chat_template=template, add_generation_prompt=True, tokenize=False, thinking=thinking
        )
        assert jinja(template).text(messages, tools=tools, thinking=thinking) == text


def test_without_jinja_known_templates_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert choose(a_tokenizer(CHATML)).name == "chatml"
    with pytest.raises(DataError, match=r"^chat_template: of an unknown kind; install jinja2 [^\n]+--chat-format$"):
        choose(a_tokenizer(STRANGE))
