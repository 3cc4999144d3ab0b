"""`fourfold chat` and `generate --chat` with published chat formats: the prompt, the screen, what is remembered, where it ends."""

import io
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

import fourfold
from fourfold.cli.conversation import Conversation
from fourfold.cli.main import main
from fourfold.engine.generate import end_tokens, generate
from fourfold.engine.sampler import Sampling
from fourfold.formats.ours import save
from fourfold.media.spans import Span
from fourfold.model.transformer import Transformer
from fourfold.text.chats import FORMATS, collect
from fourfold.text.settings import TextSettings
from fourfold.text.tokenizer import Tokenizer
from tests.builders import build, multi_head
from tests.text.templates import CHATML, V31

CONTROLS = ["<|im_start|>", "<|im_end|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
CALLS = ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
CONTROLS += ["<think>", "</think>", *(f"<｜tool▁{name}｜>" for name in CALLS)]


def a_tokenizer(template: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.add_special_tokens(CONTROLS)
    bos, eos = ("<|im_start|>", "<|im_end|>") if template is CHATML else CONTROLS[2:4]
    return Tokenizer(inner, TextSettings(template=template, bos=bos, eos=eos, add_bos=False))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of the tiny model with a tokenizer and template of others."""
    place, out = tmp_path_factory.mktemp("chats"), {}
    for name, template in (("chatml", CHATML), ("v3.1", V31)):
        tokenizer = a_tokenizer(template)
        config = multi_head().but(vocab_size=tokenizer.vocab_size, eos_token_id=None, bos_token_id=None, pad_token_id=None)
        out[name] = save(build(config.but(max_position_embeddings=512)), place / name, tokenizer)
    return out


@pytest.mark.parametrize("name", ["chatml", "v3.1"])
def test_a_checkpoint_of_another_family_chats(folders: dict, name: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    model = fourfold.load(folders[name])
    tokenizer, chat = model.tokenizer, FORMATS[name].of(model.tokenizer.settings)
    prompt = chat.encode(tokenizer, [{"role": "user", "content": "Hi <|im_end|>"}])
    pieces = generate(model, prompt, Sampling(0, max_tokens=9), tokenizer)
    said = collect([event for _, events in chat.read(pieces, tokenizer) for event in events]).content.strip("\n")
    arguments = ["--temperature", "0", "--max-tokens", "9"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi <|im_end|>\n"), "utf-8"))
    assert main(["chat", str(folders[name]), *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.strip("\n") == said and not err
    assert main(["generate", str(folders[name]), "--chat", "--prompt", "Hi <|im_end|>", *arguments]) == 0
    assert capsys.readouterr().out.strip("\n") == said


def test_a_format_may_be_named(folders: dict, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    prompts: list[list[int]] = []

    def seen(model: Transformer, prompt: Span, *more: object, **settings: object):
        prompts.append(prompt.tokens.tolist())
        return iter(())

    monkeypatch.setattr("fourfold.engine.generate.generate", seen)
    tokenizer = a_tokenizer(CHATML)
    for name in ("chatml", "v3.1"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n"), "utf-8"))
        assert main(["chat", str(folders["chatml"]), "--chat-format", name]) == 0
    expected = [FORMATS["chatml"].of(tokenizer.settings), FORMATS["v3.1"]()]
    assert prompts == [chat.encode(tokenizer, [{"role": "user", "content": "Hi"}]) for chat in expected]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n"), "utf-8"))
    assert main(["chat", str(folders["chatml"]), "--chat-format", "v9"]) == 2
    assert capsys.readouterr().err.startswith("error: chat format: v9 is unknown; choose one of ")


def test_the_end_of_a_turn_ends_an_answer(folders: dict) -> None:
    for name, end in (("chatml", "<|im_end|>"), ("v3.1", "<｜end▁of▁sentence｜>")):
        model = fourfold.load(folders[name])
        assert model.tokenizer.special(end) in end_tokens(model, model.tokenizer)


class Said:
    """Stands for `generate`: says these texts, one after the other, in tokens; control tokens are written by their names."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def __call__(
        self, model: Transformer, prompt: Span, sampling: Sampling, tokenizer: Tokenizer, *more: object, **settings: object
    ):
        from fourfold.engine.generate import Piece
        from fourfold.text.chats.format import marked

        for part in marked(self.texts.pop(0), tokenizer.controls):
            for token in [tokenizer.special(part.text)] if part.control else tokenizer.encode(part.text):
                yield Piece("" if part.control else tokenizer.decode([token]), (token,))
        yield Piece("", (tokenizer.special("<｜end▁of▁sentence｜>"),), "stop")


CALL = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'


def test_the_answer_is_printed_and_thoughts_go_to_standard_error(folders: dict, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    saying = f"hm </think>\n\nYes.{CALL}{CALL.removesuffix('<｜tool▁call▁end｜><｜tool▁calls▁end｜>')}"
    shown = ('Yes.\nf({"a": 1})\nf({"a": 1} ...)\n', "hm \n")
    monkeypatch.setattr("fourfold.engine.generate.generate", Said(saying, saying, saying, "hm"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n"), "utf-8"))
    assert main(["chat", str(folders["v3.1"]), "--thinking"]) == 0
    assert capsys.readouterr() == shown
    asked = ["generate", str(folders["v3.1"]), "--thinking", "--prompt", "Hi"]
    assert main(asked) == 0
    assert capsys.readouterr() == shown
    assert main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    function = {"name": "f", "arguments": '{"a": 1}'}
    assert result["tool_calls"] == [{"type": "function", "function": function}] * 2
    assert (result["text"], result["reasoning_content"], result["finish_reason"]) == ("\n\nYes.", "hm ", "stop")
    assert main(asked) == 0
    assert capsys.readouterr() == ("\n", "hm\n")  # no answer


def test_on_a_terminal_thoughts_are_dimmed_and_codes_taken_out(folders: dict, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("fourfold.engine.generate.generate", Said("h\033[31mm</think>Yes\033[0m"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n"), "utf-8"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["chat", str(folders["v3.1"]), "--thinking"]) == 0
    out = capsys.readouterr().out
    assert out.replace("\033[0m\033[2m", "") == "\033[2mh[31mm\033[0m\nYes[0m\n"


def test_only_the_answer_is_remembered(folders: dict, monkeypatch) -> None:
    monkeypatch.setattr("fourfold.engine.generate.generate", Said("hm</think>\n\nYes.", "no end"))
    talk = Conversation(fourfold.load(folders["v3.1"]), Sampling(0), None, True)
    list(talk.ask("Hi"))
    list(talk.ask("Why?"))
    assert [message["content"] for message in talk.messages] == ["Hi", "Yes.", "Why?", ""]
    assert "<｜Assistant｜></think>Yes." in talk.chat.text(talk.messages)


def test_a_text_is_continued_from_its_beginning(folders: dict, capsys: pytest.CaptureFixture) -> None:
    """Without --chat there is no template, and no token before the text where the folder says so."""
    model = fourfold.load(folders["v3.1"])
    ids = model.tokenizer.encode("the cat")
    expected = "".join(piece.text for piece in generate(model, ids, Sampling(0, max_tokens=5), model.tokenizer))
    assert main(["generate", str(folders["v3.1"]), "--prompt", "the cat", "--temperature", "0", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == expected + "\n"
