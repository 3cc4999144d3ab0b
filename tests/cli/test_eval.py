"""`fourfold eval`: figures in words and as JSON, and one line for every mistake."""

import json
from pathlib import Path

import pytest

from fourfold.cli.main import main
from fourfold.data.corpus import Corpus
from fourfold.formats.ours import save
from fourfold.text.tokenizer import Tokenizer
from tests.evals.small import make_corpus, make_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "small", tokenizer)


@pytest.fixture(autouse=True)
def on_a_small_corpus(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEXT", "CHAT"):
        monkeypatch.setattr(f"fourfold.evals.suite.{name}", corpus.folder)
    monkeypatch.setattr("fourfold.evals.arithmetic.LONGEST", 8)


def test_all_evals_as_json_and_in_a_file(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "result.json"
    assert main(["eval", "tiny", "--limit", "3", "--window", "50", "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    assert (result["model"], result["limit"]) == ("tiny", 3)
    tasks = result["tasks"]
    assert tasks.keys() == {"perplexity", "recall", "needles", "indexer", "experts", "arithmetic"}
    assert tasks["perplexity"]["total"]["documents"] == 3 and tasks["perplexity"]["window"] == 50
    assert tasks["recall"]["questions"] == 3 and tasks["arithmetic"]["total"]["total"] == 3
    # its 96 positions are too few for the others
    assert "96 positions" in tasks["needles"]["skipped"] and "96 positions" in tasks["indexer"]["skipped"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("perplexity", ["source", "long ", "short ", "total "]),
        ("recall", ["stated", "majority", "read  ", "  capital", "never read, without Engram"]),
        ("experts", ["in all", "worst batch", "worst "]),
        ("arithmetic", ["sums +", "chains", "total"]),
    ],
)
def test_figures_in_words(task: str, said: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "--task", task, "--window", "90"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"## {task}\n") and all(part in out for part in said), out
    assert "Traceback" not in err


def test_longer_models_get_needles_and_indexers(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(save(make_model(tokenizer), tmp_path / "longer", tokenizer))
    assert main(["eval", name, "--task", "needles", "--lengths", "300,400", "--limit", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [[n, k, s, k] for n in ("300", "400") for k in ("1", "4") for s in ("sparse", "dense")]
    assert [line.split()[:4] for line in lines[2:10]] == expected
    monkeypatch.setattr("fourfold.evals.indexer.LENGTH", 64)
    assert main(["eval", name, "--task", "indexer", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "16 keys of up to 128, 2 rows" in out and "sparse minus dense loss:" in out and "oracle" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nix"], "nix: no such model"),
        (["tiny", "--task", "nix"], "--task: 'nix' is not known; choose one of perplexity"),
        (["tiny", "--lengths", "1k"], "--lengths: '1k' is not a list of whole numbers"),
        (["tiny", "--task", "needles", "--lengths", "300"], "--lengths: 300 is not within 256 and the 96 positions"),
        (["tiny", "--task", "indexer"], "exceed the 96 positions"),
        (["tiny", "--limit", "0"], "--limit"),
        (["tiny", "--window", "1"], "--window"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and said in err, err
