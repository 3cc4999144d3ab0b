"""Safetensors headers against the library that defines them, and everything that can be wrong with a sharded folder."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch as st
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from fourfold.errors import CheckpointError
from fourfold.formats.shards import DTYPES, INDEX, WHOLE, header, region, stored_tensors
from fourfold.formats.writing import Spec, divide, index_of, write_shard

ODD = [(3, 5), (7,), (), (0, 4), (2, 3, 4), (1,)]


def of_every_kind() -> dict[str, Tensor]:
    """A tensor of each number format, in shapes that are not multiples of anything."""
    tensors = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        shape = ODD[i % len(ODD)]
        if dtype == torch.bool:
            tensors[name] = torch.rand(shape) < 0.5
        else:
            size = torch.empty(shape, dtype=dtype).nbytes
            tensors[name] = torch.randint(0, 100, (size,), dtype=torch.uint8).view(dtype).reshape(shape)
    return tensors


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit, NaN included."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = of_every_kind()
    st.save_file(tensors, tmp_path / WHOLE, metadata={"format": "pt"})
    stored = stored_tensors(tmp_path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        entry = stored[name]
        assert (entry.dtype, entry.shape, entry.bytes) == (tensor.dtype, tuple(tensor.shape), tensor.nbytes)
        assert same(entry.read(), tensor), name


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    tensors = of_every_kind()
    specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_shard(tmp_path / WHOLE, specs, lambda name: [tensors[name]])
    read = st.load_file(tmp_path / WHOLE)
    assert read.keys() == tensors.keys() and all(same(read[name], tensors[name]) for name in tensors)
    assert all(entry.offset % entry.dtype.itemsize == 0 for entry in header(tmp_path / WHOLE).values())


def test_pieces_must_fill_their_tensor(tmp_path: Path) -> None:
    whole = torch.randn(4, 3)
    specs = {"a": Spec(torch.bfloat16, (4, 3))}
    write_shard(tmp_path / "good", specs, lambda _: whole.split(3))
    assert torch.equal(st.load_file(tmp_path / "good")["a"], whole.bfloat16())
    with pytest.raises(RuntimeError, match="18 bytes were written instead of 24"):
        write_shard(tmp_path / "short", specs, lambda _: [whole[:3]])


@given(some.data())
def test_a_part_is_what_indexing_gives(data: some.DataObject) -> None:
    shape = data.draw(some.lists(some.integers(1, 4), min_size=1, max_size=4))
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    depth = data.draw(some.integers(0, len(shape)))
    part: list[int | slice] = [data.draw(some.integers(0, size - 1)) for size in shape[:depth]]
    if depth < len(shape) and data.draw(some.booleans()):
        part.append(slice(*sorted(data.draw(some.tuples(*2 * [some.integers(0, shape[depth])])))))
    start, size = region(tuple(shape), tuple(part))
    expected = whole[tuple(part)]
    assert size == tuple(expected.shape)
    assert torch.equal(whole.flatten()[start : start + expected.numel()].reshape(size), expected)


def test_a_part_is_read_alone(tmp_path: Path) -> None:
    stack = torch.randn(5, 6, 7).bfloat16()
    st.save_file({"before": torch.zeros(3), "stack": stack}, tmp_path / WHOLE)
    entry = stored_tensors(tmp_path)["stack"]
    for part in [(3,), (2, slice(1, 4)), (slice(2, 5),), (4, 5), (1, 2, slice(0, 3))]:
        assert same(entry.read(part), stack[part]), part
    assert same(entry.read((1,), torch.float32), stack[1].float())
    for part in [(slice(0, 2), 1), (0, slice(0, 6, 2))]:
        with pytest.raises(ValueError, match="does not lie together"):
            entry.read(part)


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (100, 3), (1, 6)])
def test_shards_hold_what_fits(limit: int, files: int) -> None:
    specs = {f"t{i}": Spec(torch.float32, (size,)) for i, size in enumerate([10, 10, 30, 5, 5, 5])}
    shards = divide(specs, limit)
    assert [name for names in shards.values() for name in names] == list(specs)
    assert len(shards) == files
    for names in shards.values():
        assert len(names) == 1 or sum(specs[name].bytes for name in names) <= limit
    index = index_of(shards, specs)
    if files == 1:
        assert list(shards) == [WHOLE] and index is None
    else:
        assert index["metadata"]["total_size"] == 260 and set(index["weight_map"]) == set(specs)
        assert next(iter(shards)) == f"model-00001-of-{files:05d}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index."""
    first, second = {"a": torch.zeros(2), "b": torch.ones(3, 2)}, {"c": torch.arange(4)}
    st.save_file(first, tmp_path / "one.safetensors")
    st.save_file(second, tmp_path / "two.safetensors")
    weight_map = dict.fromkeys(first, "one.safetensors") | dict.fromkeys(second, "two.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def respell(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the header of the first shard."""

    def spoil(folder: Path) -> None:
        path = folder / "one.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        head = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])

    return spoil


def reindex(**names: str | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"] | names
        (folder / INDEX).write_text(json.dumps({"weight_map": {k: v for k, v in weight_map.items() if v}}))

    return spoil


def twice_in_a_header(folder: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    head = f'{{"a":{entry},"a":{entry}}}'.encode()
    (folder / "one.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))


def cut(count: int) -> Callable[[Path], object]:
    return lambda f: (f / "two.safetensors").write_bytes((f / "two.safetensors").read_bytes()[:count])


SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    ("absent file", lambda f: (f / "two.safetensors").unlink(), r"two\.safetensors: missing; copy the whole checkpoint again"),
    ("absent file in the index", reindex(d="three.safetensors"), r"three\.safetensors: missing"),
    ("a file elsewhere", reindex(d="../one.safetensors"), r"index\.json: weight_map must give each tensor a file of this folder"),
    ("tensor that its file lacks", reindex(d="two.safetensors"), r"says that two\.safetensors holds tensor d, which it does not;"),
    (
        "tensors in the other file",
        reindex(a="two.safetensors", b="two.safetensors"),
        r"holds tensor a, which it does not \(and 1 more\)",
    ),
    (
        "a name in two shards",
        lambda f: st.save_file({"c": torch.arange(4), "a": torch.zeros(2)}, f / "two.safetensors"),
        r"tensor a lies in both one\.safetensors and two\.safetensors; keep the shards of one checkpoint only",
    ),
    ("a name twice in a header", twice_in_a_header, r"one\.safetensors: .*its header names a twice"),
    ("nothing", cut(0), r"two\.safetensors: truncated or not a safetensors file"),
    ("cut length", cut(5), r"two\.safetensors: truncated"),
    ("cut header", cut(20), r"two\.safetensors: truncated .*its header is cut off"),
    ("cut data", cut(-1), r"two\.safetensors: truncated .*bytes where its header asks for"),
    ("other bytes", lambda f: (f / "two.safetensors").write_bytes(b"\x10" + bytes(7) + b"not JSON at all!"), "not a safetensors"),
    ("too much data", lambda f: (f / "one.safetensors").open("ab").write(b"more"), r"one\.safetensors: .*its header asks for"),
    ("unknown number format", respell(lambda h: h["b"].update(dtype="F6_E2M3")), r"tensor b is stored as F6_E2M3, which cannot be"),
    (
        "another shape",
        respell(lambda h: h["b"].update(shape=[3, 3])),
        r"one\.safetensors: .*tensor b has 24 bytes, which is not its",
    ),
    ("negative shape", respell(lambda h: h["b"].update(shape=[-3, -2])), r"its header says nothing sound of tensor b"),
    ("no shape", respell(lambda h: h["b"].pop("shape")), r"its header says nothing sound of tensor b"),
    ("overlap", respell(lambda h: h["b"].update(data_offsets=[0, 24])), "does not begin where the one before it ends"),
    ("index of something else", lambda f: (f / INDEX).write_text("[]"), r"index\.json: must hold one JSON object"),
]


@pytest.mark.parametrize(("spoil", "said"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED])
def test_what_is_wrong_is_one_line(folder: Path, spoil: Callable[[Path], object], said: str) -> None:
    assert len(stored_tensors(folder)) == 3
    spoil(folder)
    with pytest.raises(CheckpointError, match=said) as refused:
        stored_tensors(folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_pickled_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing; the weights are pickled"):
        stored_tensors(tmp_path)
