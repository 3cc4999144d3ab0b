"""A model behind the evals' questions: answers and likelihoods as one plain pass gives them, drawings that are the same again."""

import json
import math
from pathlib import Path

import pytest
import torch

from fourfold.cli.main import main
from fourfold.data.corpus import Corpus
from fourfold.data.omni import OmniCorpus
from fourfold.engine.generate import end_tokens
from fourfold.engine.grammar import forbidden
from fourfold.errors import ConfigError
from fourfold.evals.omni.subject import ModelSubject, Prompt
from fourfold.evals.omni.suite import KEYS, Sizes, measure
from fourfold.evals.omni.suite import text as measure_text
from fourfold.evals.perplexity import perplexity
from fourfold.formats.ours import save
from fourfold.media import spans
from fourfold.modality import Modality
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.text.tokenizer import Tokenizer
from tests.builders import scatter
from tests.compare import assert_close
from tests.evals.omni_small import make_codec, make_omni


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> OmniCorpus:
    return make_omni(tmp_path_factory.mktemp("corpora") / "media", tokenizer)


@pytest.fixture(scope="module")
def draws(tokenizer: Tokenizer) -> Transformer:
    """Preset `debug-omni` with random weights and a random codec; not to be changed."""
    classes, count = tokenizer.compression()
    codec = make_codec()
    config = preset("debug-omni").but(vocab_size=tokenizer.vocab_size, max_position_embeddings=512, initializer_range=0.15)
    config = config.but(memory=config.memory.but(engram_compressed_vocab_size=count))
    config = config.but(media_out=config.media_out.but(image_token_size=codec.codes))
    model = scatter(Transformer(config, classes).init_weights(3), 3).eval()
    model.tokenizer = tokenizer
    object.__setattr__(model, "codec", codec)  # beside the network, as loading puts it
    return model


@pytest.fixture(scope="module")
def subject(draws: Transformer, omni: OmniCorpus) -> ModelSubject:
    return ModelSubject(draws, omni)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, short answers, clips of three frames."""
    monkeypatch.setattr("fourfold.evals.omni.emoji.CANDIDATES", 5)
    monkeypatch.setattr("fourfold.evals.omni.clips.FRAMES", 3)
    for part in ("fashion", "emoji", "speech", "sounds", "clips"):
        monkeypatch.setattr(f"fourfold.evals.omni.{part}.LONGEST", 4)


@pytest.fixture(scope="module")
def prompts(omni: OmniCorpus) -> list[Prompt]:
    """One of each kind of media, in both orders, of several lengths."""
    items = {item.kind: item for item in omni.items("held_out")}
    image, clip, said, sound = (items[kind] for kind in ("image", "clip", "speech", "sound"))
    return [(image, "cat"), (clip, "the dog?"), (said, "hat"), (sound, "on the mat"), (image, said, "off"), ("cat", image)]


def test_a_prompt_is_written_as_in_training(subject: ModelSubject, prompts: list[Prompt]) -> None:
    special, tokenizer = subject.tokenizer.special, subject.tokenizer
    span = subject.span(prompts[0])
    assert span.tokens[:3].tolist() == [special("bos"), special("user"), special("image")]
    said = [*tokenizer.encode("cat"), special("end"), special("assistant")]
    assert span.tokens[-len(said) :].tolist() == said and span.tokens[-len(said) - 1] == special("/image")
    assert (span.modality == Modality.IMAGE).sum() == 4 and span.pixels.shape == (4, 192)  # 16 x 16 pixels


def test_likelihoods_are_those_of_one_plain_pass(
    subject: ModelSubject, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    endings = [["cat", "the dog ran off", ""], ["mat"], ["a", "b"], ["dog"], ["cat", "rug"], ["on"]]
    model, tokenizer = subject.model, subject.tokenizer
    expected = []
    for prompt, own in zip(prompts, endings, strict=True):
        for ending in own:
            ids = [*tokenizer.encode(ending), tokenizer.special("end")]
            whole = spans.join([subject.span(prompt), spans.text(ids)])
            with torch.inference_mode():
                logits = model(model.batch([whole])).logits[-len(ids) - 1 : -1]
            expected.append(-logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item())
    for at_once in (1, 4, 99):
        monkeypatch.setattr("fourfold.evals.omni.subject.ENDINGS", at_once)
        found = subject.surprise(prompts, endings, "")
        assert [len(own) for own in found] == [len(own) for own in endings]
        assert_close(torch.tensor([nats for own in found for nats in own]), torch.tensor(expected), "nats")


def test_answers_are_greedy_and_do_not_depend_on_their_neighbours(
    subject: ModelSubject, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = subject.model, subject.tokenizer
    together = subject.answer(prompts, 6, "")
    monkeypatch.setattr("fourfold.evals.omni.subject.AT_ONCE", 2)
    assert subject.answer(prompts[::-1], 6, "") == together[::-1] and any(together)
    ends, prompt = end_tokens(model, tokenizer), subject.span(prompts[1])
    never = torch.tensor(forbidden(model.config, tokenizer, []))
    ids: list[int] = []
    while len(ids) < 6 and not set(ids[-1:]) & ends:
        with torch.inference_mode():
            logits = model(model.batch([spans.join([prompt, spans.text(ids)])])).logits[-1]
            ids.append(int(logits.index_fill(0, never, -torch.inf).argmax()))
    assert tokenizer.decode(ids) == together[1]


def test_drawings_have_their_size_and_come_again(subject: ModelSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = [("cat",), ("the dog",), ("mat",)]
    pictures, clips = subject.draw(wishes, (2, 3), ""), subject.draw(wishes, (3, 2, 2), "")
    assert (pictures.shape, clips.shape, pictures.dtype) == ((3, 1, 3, 16, 24), (3, 3, 3, 16, 16), torch.uint8)
    assert len({bytes(picture.numpy()) for picture in pictures}) > 1
    monkeypatch.setattr("fourfold.evals.omni.subject.DRAWN", 2)
    assert torch.equal(subject.draw(wishes, (2, 3), ""), pictures)


def test_every_figure_of_a_random_model(subject: ModelSubject, omni: OmniCorpus, short: None) -> None:
    found = measure(subject, omni, Sizes().at_most(4))
    assert found.keys() == set(KEYS) - {"text_bits_per_byte"}
    for name, about in found.items():
        if about["value"] is None:
            assert name in ("speech_cer_real", "emoji_caption_similarity") and about["reason"]
            continue
        assert {"value", "count", "interval", "chance", "baseline", "baseline_is", "seconds"} <= about.keys(), name
        assert about["count"] >= 2 and about["interval"][0] <= about["value"] <= about["interval"][1], name
    json.dumps(found, allow_nan=False)


def test_text_is_measured_as_perplexity_is(draws: Transformer, corpus: Corpus) -> None:
    found, total = measure_text(draws, corpus, 4), perplexity(draws, corpus, limit=4)["total"]
    assert (found["value"], found["interval"], found["count"]) == (total["bits_per_byte"], total["interval"], total["bytes"])
    assert found["chance"] == pytest.approx(total["tokens"] * math.log2(draws.config.vocab_size) / total["bytes"])
    assert 0.5 < found["baseline"] < 8


def test_a_model_that_reads_no_media_is_told_so(model: Transformer, omni: OmniCorpus) -> None:
    with pytest.raises(ConfigError, match="media_in: .*such as nano-omni"):
        ModelSubject(model, omni)


def test_a_model_without_codec_draws_nothing(draws: Transformer, omni: OmniCorpus) -> None:
    subject = ModelSubject(draws, omni)
    subject.codec = None
    with pytest.raises(ConfigError, match="draws nothing"):
        subject.draw([("cat",)], (2, 2), "")


@pytest.fixture
def named(
    draws: Transformer, omni: OmniCorpus, corpus: Corpus, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setattr("fourfold.evals.omni.suite.CORPUS", omni.corpus.folder)
    monkeypatch.setattr("fourfold.evals.omni.suite.TEXT", corpus.folder)
    return str(save(draws, tmp_path / "draws", draws.tokenizer))


def test_the_command_names_every_figure(
    named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "figures.json"
    assert main(["eval", "omni", named, "--limit", "2", "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result and (result.pop("model"), result.pop("limit")) == (named, 2)
    assert result.keys() == set(KEYS)
    monkeypatch.setattr("fourfold.evals.omni.run", lambda model, limit: result)
    assert main(["eval", "--task", "omni", named]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines.keys() == set(KEYS) and "asterisk" in lines["speech_cer_real"]
    assert f"{result['codec_psnr']['value']:.3f}" in lines["codec_psnr"] and "bicubic" in lines["codec_psnr"]
    assert "at most" in lines["drawn_diversity"]


def test_a_task_may_come_first(
    checkpoint: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourfold.evals.suite.TEXT", corpus.folder)
    asked = ["--limit", "2", "--window", "50", "--json"]
    said = []
    for words in (["perplexity", "tiny"], ["tiny", "--task", "perplexity"]):
        assert main(["eval", *words, *asked]) == 0
        said.append(json.loads(capsys.readouterr().out))
        del said[-1]["tasks"]["perplexity"]["seconds"]
    assert said[0] == said[1] and said[0]["model"] == "tiny"
    assert main(["eval", "omni", "tiny"]) == 2
    assert "media_in: this model reads no pictures" in capsys.readouterr().err
    assert main(["eval", "nix", "tiny"]) == 2
    assert "nix: is no task; choose one of perplexity" in capsys.readouterr().err
