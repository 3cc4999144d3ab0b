"""Conversions give what loading gives, hold one tensor at a time, and go on where they were killed."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch as st
import torch

import fourfold
from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError, FourfoldError
from fourfold.formats import convert as conversion
from fourfold.formats import convert_checkpoint, export, ours, published
from fourfold.formats.adapter import Place
from fourfold.formats.llama import LlamaAdapter
from fourfold.formats.shards import INDEX, WHOLE, Stored
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.builders import build, everything
from tests.formats.small import CONFIGS, Held, model, quantised_twins, respell, same_bits, v3_in_blocks

SHARD = 20_000  # bytes; some ten shards


@pytest.fixture(scope="module")
def original() -> Transformer:
    return model("deepseek_v3")


@pytest.fixture
def source(original: Transformer, tmp_path: Path) -> Path:
    return export(original, tmp_path / "theirs")


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("shard_bytes", [SHARD, 10**9])
def test_there_and_back(kind: str, shard_bytes: int, tmp_path: Path) -> None:
    theirs = export(model(kind), tmp_path / "theirs")
    done = convert_checkpoint(theirs, tmp_path / "ours", shard_bytes=shard_bytes)
    assert same_bits(ours.load(tmp_path / "ours"), fourfold.load(theirs))
    assert done["shards"] == len(list((tmp_path / "ours").glob("*.safetensors"))) and (done["shards"] > 1) == (shard_bytes == SHARD)
    convert_checkpoint(tmp_path / "ours", tmp_path / "again", to="hf")
    first, again = st.load_file(theirs / WHOLE), st.load_file(tmp_path / "again" / WHOLE)
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert json.loads((theirs / "config.json").read_text()) == json.loads((tmp_path / "again" / "config.json").read_text())
    assert beside(theirs) == {"theirs", "ours", "again"}


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_quantised_becomes_plain(tmp_path: Path, dtype: str | None) -> None:
    export(build(v3_in_blocks()), tmp_path / "plain")
    quantised_twins(tmp_path / "plain", tmp_path / "coded", tmp_path / "twin", (128, 128), False, "weight_scale_inv")
    for to in ("fourfold", "hf"):
        convert_checkpoint(tmp_path / "coded", tmp_path / to, to=to, dtype=dtype, shard_bytes=10**6)
        assert same_bits(fourfold.load(tmp_path / to), fourfold.load(tmp_path / "coded", dtype=dtype))
        about = json.loads((tmp_path / to / "config.json").read_text())
        assert "quantization_config" not in about and about["dtype"] == (dtype or "bfloat16")


def test_our_own_folder_in_other_shards(tmp_path: Path, tiny: Transformer, tokenizer: Tokenizer) -> None:
    """Engram's tables and token classes included; a tokenizer comes along."""
    ours.save(tiny, tmp_path / "one", tokenizer)
    convert_checkpoint(tmp_path / "one", tmp_path / "many", shard_bytes=50_000)
    assert (tmp_path / "many" / INDEX).is_file()
    many = fourfold.load(tmp_path / "many")
    assert same_bits(many, tiny) and many.tokenizer.checksum == tokenizer.checksum
    convert_checkpoint(tmp_path / "many", tmp_path / "half", dtype="bfloat16")
    assert same_bits(fourfold.load(tmp_path / "half"), fourfold.load(tmp_path / "many", dtype="bfloat16"))


class Columns(LlamaAdapter):
    """Llama's format, but for output projections stored in two halves of their inputs, the second transposed."""

    def places(self, config: ModelConfig, names: object = ()) -> dict[str, Place]:
        places = super().places(config)
        for n in range(config.num_hidden_layers):
            name = f"model.layers.{n}.self_attn.o_proj.weight"
            whole = places.pop(name)
            half = config.attention.num_attention_heads * config.attention.head_dim // 2
            places[f"{name}.left"] = Place(whole.name, (slice(None), slice(0, half)))
            places[f"{name}.right"] = Place(whole.name, (slice(None), slice(half, 2 * half)), torch.t, torch.t)
        return places


def test_parts_that_do_not_lie_together(tmp_path: Path) -> None:
    """A tensor whose parts are spread over it is put together first; written back, it is cut again."""
    whole, adapter = model("llama"), Columns()
    folder = published.save(adapter, whole, tmp_path / "theirs")
    origin = conversion.Published(published.open_folder(adapter, folder), None)
    assert list(origin.pieces("layers.0.attention.o_proj.weight")) == [()]
    conversion.convert(origin, conversion.as_ours(origin, "ours"), tmp_path / "ours")
    assert same_bits(fourfold.load(tmp_path / "ours"), whole)
    back = conversion.Ours(tmp_path / "ours", None)
    conversion.convert(back, conversion.as_published(back, adapter, "back"), tmp_path / "back")
    first, again = st.load_file(folder / WHOLE), st.load_file(tmp_path / "back" / WHOLE)
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_one_stored_tensor_is_held_at_a_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both directions, and never a whole stack of experts."""
    stack = 8 * 2 * 10 * 22
    for given, made, to in ((source, tmp_path / "ours", "fourfold"), (tmp_path / "ours", tmp_path / "again", "hf")):
        held = Held()
        with monkeypatch.context() as patch:
            patch.setattr(Stored, "read", held.watch(Stored.read))
            convert_checkpoint(given, made, to=to)
        assert held.count > 100 and held.largest < stack, to


def test_our_own_tensors_are_read_in_pieces(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_checkpoint(source, tmp_path / "ours")
    held = Held()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "PIECE", 100)
        patch.setattr(Stored, "read", held.watch(Stored.read))
        convert_checkpoint(tmp_path / "ours", tmp_path / "again")
    assert held.largest <= 2 * 10 * 22  # one expert's gate and up is the smallest piece of its stack
    assert checksums(tmp_path / "ours") == checksums(tmp_path / "again")


def stopping(after: int, error: BaseException) -> Callable[..., None]:
    """`write_shard`, until it has been called so often."""
    calls, write = [], conversion.write_shard

    def stopped(path: Path, *arguments: object) -> None:
        if len(calls) == after:
            path.write_bytes(b"half of a shard")
            raise error
        calls.append(path)
        write(path, *arguments)

    return stopped


def interrupt(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> Path:
    """A conversion that was killed after so many shards; returns the folder aside."""
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_shard", stopping(after, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(source, target, shard_bytes=SHARD)
    assert not target.exists()
    return target.with_name(f".{target.name}.converting")


def test_a_killed_conversion_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD)
    whole = checksums(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    aside = interrupt(source, tmp_path / "model", monkeypatch)
    times = {file.name: file.stat().st_mtime_ns for file in aside.glob("model-*")}
    done = convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD)
    assert done["taken_over"] == len(times) == 3
    assert all((tmp_path / "model" / name).stat().st_mtime_ns == time for name, time in times.items())
    assert checksums(tmp_path / "model") == whole and not aside.exists()


CONVERT_SLOWLY = """
import sys, time
from fourfold.formats import convert, convert_checkpoint
write = convert.write_shard
def slowly(*arguments):
    write(*arguments)
    time.sleep(0.5)
convert.write_shard = slowly
convert_checkpoint(sys.argv[1], sys.argv[2], shard_bytes=int(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_process_that_is_really_killed(source: Path, tmp_path: Path) -> None:
    aside = tmp_path / ".model.converting"
    with subprocess.Popen([sys.executable, "-c", CONVERT_SLOWLY, source, tmp_path / "model", str(SHARD)]) as process:
        while process.poll() is None and len(list(aside.glob("model-*"))) < 3:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "model").exists()
    assert convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD)["taken_over"] >= 2
    assert same_bits(fourfold.load(tmp_path / "model"), fourfold.load(source))
    assert not list((tmp_path / "model").glob(".*"))


def spoil(aside: Path) -> None:
    file = sorted(aside.glob("model-*"))[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda source, aside: spoil(aside), 2),
        (lambda source, aside: sorted(aside.glob("model-*"))[0].unlink(), 2),
        (lambda source, aside: os.utime(source / WHOLE), 0),
        (lambda source, aside: respell(source, lambda t: t["model.norm.weight"].add_(1)), 0),
        (lambda source, aside: (aside / conversion.NOTES).unlink(), 0),
        (lambda source, aside: (aside / conversion.NOTES).write_text("{}"), 0),
        (lambda source, aside: (aside / ".model-00009.partial-1").write_bytes(b"of one that was killed"), 3),
    ],
    ids=["spoilt shard", "lost shard", "touched source", "other source", "lost notes", "other notes", "partial file"],
)
def test_only_what_is_whole_is_taken_over(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], object], kept: int
) -> None:
    aside = interrupt(source, tmp_path / "model", monkeypatch)
    change(source, aside)
    assert convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD)["taken_over"] == kept
    assert same_bits(fourfold.load(tmp_path / "model"), fourfold.load(source))
    assert not list((tmp_path / "model").glob(".*")) and not (tmp_path / "model" / conversion.NOTES).exists()


def test_other_options_start_over(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(source, tmp_path / "model", monkeypatch)
    done = convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD, dtype="bfloat16")
    assert done["taken_over"] == 0 and fourfold.load(tmp_path / "model").embed.weight.dtype == torch.bfloat16


def test_a_full_disk_leaves_no_target(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_shard", stopping(2, OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(FourfoldError, match="no space left on the disk") as refused:
            convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD)
    assert "\n" not in str(refused.value) and not (tmp_path / "model").exists()
    assert convert_checkpoint(source, tmp_path / "model", shard_bytes=SHARD)["taken_over"] == 2


def test_what_cannot_be_converted_is_one_line(source: Path, tmp_path: Path) -> None:
    ours.save(build(everything()), tmp_path / "ours")
    (tmp_path / "file").write_text("mine")
    wrong: list[tuple[type[FourfoldError], str, dict[str, object]]] = [
        (CheckpointError, "exists; name a new folder", {"folder": source}),
        (CheckpointError, "exists; name a new folder", {"folder": tmp_path / "file"}),
        (ConfigError, "to: 'onnx' is not a format", {"to": "onnx"}),
        (ConfigError, "dtype: int3 is not a weight format", {"dtype": "int3"}),
        (CheckpointError, "nowhere: no such model", {"source": "nowhere"}),
        (ConfigError, "no published format has words for this model", {"source": tmp_path / "ours", "to": "hf"}),
    ]
    for kind, said, options in wrong:
        with pytest.raises(kind, match=said) as refused:
            convert_checkpoint(**({"source": source, "folder": tmp_path / "new"} | options))
        assert "\n" not in str(refused.value)
    respell(source, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight \[22\] is missing"):
        convert_checkpoint(source, tmp_path / "new")
    assert not (tmp_path / "new").exists() and beside(source) == {"theirs", "ours", "file"}
    assert (tmp_path / "file").read_text() == "mine"
