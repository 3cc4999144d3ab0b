"""Stores: the same ids give the same bits, wherever the rows are kept; a file that cannot serve is one clear line."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fourfold.errors import CheckpointError
from fourfold.weights.stores import MappedStore, ResidentStore

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64]


def stack(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randint(-1000, 1000, shape) if dtype == torch.int64 else torch.randn(*shape).to(dtype)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {f"{name}": stack((13, 3, 4), dtype) for name, dtype in zip("abcd", DTYPES, strict=True)}
    save_file(tensors | {"table": torch.randn(31, 5)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(13, 5), (13, 3, 4)])
def test_fetch_gives_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    rows = stack(shape, dtype)
    save_file({"before": torch.randn(3), "rows": rows, "zzz": torch.randn(7)}, tmp_path / "x.safetensors")
    mapped = MappedStore(tmp_path / "x.safetensors", "rows")
    assert mapped.shape == shape
    assert torch.equal(mapped.all(), rows)
    for ids in (torch.tensor([0]), torch.tensor(12), torch.randint(0, 13, (4, 7)), torch.zeros(0, dtype=torch.long)):
        fetched = mapped.fetch(ids)
        assert fetched.dtype == dtype
        assert torch.equal(fetched, rows[ids])
        if dtype.is_floating_point:
            resident = ResidentStore(*shape).to(dtype)
            resident.weight.data.copy_(rows)
            assert resident.shape == mapped.shape
            assert torch.equal(resident.fetch(ids), fetched)
            assert torch.equal(resident.all(), mapped.all())


def test_a_mapped_store_has_no_parameter_and_no_state(file: Path) -> None:
    store = MappedStore(file, "table")
    assert not list(store.parameters())
    assert not store.state_dict()


@pytest.mark.filterwarnings("error")
def test_what_was_fetched_is_a_copy(file: Path) -> None:
    """Writing to it must neither fail nor reach the file."""
    store = MappedStore(file, "table")
    for ids in (torch.tensor([3, 4]), torch.tensor(3)):
        before = store.fetch(ids).clone()
        store.fetch(ids).zero_()
        assert torch.equal(store.fetch(ids), before)


def test_resident_rows_have_gradients_and_repeats_add_up() -> None:
    for shape in ((4, 3), (4, 3, 2)):
        store = ResidentStore(*shape)
        torch.nn.init.zeros_(store.weight)
        store.fetch(torch.tensor([[1, 1], [3, 1]])).sum().backward()
        assert store.weight.grad.flatten(1)[:, 0].tolist() == [0, 3, 0, 1]


def test_unknown_tensor_is_named(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: has no tensor nothing"):
        MappedStore(file, "nothing")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: .*No such file"):
        MappedStore(tmp_path / "gone.safetensors", "a")


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 5) + b"{no}}", struct.pack("<Q", 2**62) + b"{}", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
        MappedStore(tmp_path / "x.safetensors", "a")


def test_a_truncated_file_is_named(file: Path) -> None:
    content = file.read_bytes()
    for cut in (1, 300, len(content) - 20):
        file.write_bytes(content[:-cut])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
            [MappedStore(file, name) for name in ("a", "b", "c", "d", "table")]


def test_a_format_that_cannot_be_mapped_is_named(tmp_path: Path) -> None:
    save_file({"rows": torch.zeros(3, 2, dtype=torch.float64)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*rows.*F64"):
        MappedStore(tmp_path / "x.safetensors", "rows")
