"""Bytes, operations, and where weights go under a budget."""

import pytest
import torch

from fourfold.errors import FourfoldError
from fourfold.model.block_state import SLACK
from fourfold.model.state import new_state
from fourfold.model.transformer import Transformer
from fourfold.planner.cost import (
    LONG,
    fixed_bytes,
    flops_per_token,
    keys_indexed,
    keys_read,
    part_bytes,
    state_bytes,
    weight_bytes,
)
from fourfold.planner.count import count, skeleton
from fourfold.planner.placement import Placement, parse_bytes, place
from fourfold.presets import preset

GB = 10**9


def test_v3_remembers_576_values_a_layer() -> None:
    assert state_bytes(preset("v3")) == {"kv": 61 * 576 * 2, "index": 0, "other": 0}
    assert state_bytes(preset("v3.2"))["index"] == 61 * 128 * 2


def test_state_is_what_the_model_keeps() -> None:
    """The planner's figure against a real cache of the same model (fp32 here; the inputs themselves are 17 bytes more)."""
    config = preset("debug")
    model = Transformer(config).init_weights(0)
    planned = state_bytes(config)
    assert model.new_cache(1).bytes_per_token() == 2 * (planned["kv"] + planned["index"]) + planned["other"] + 17


def test_compressed_layers_cost_a_share_of_a_block() -> None:
    """V4-Flash: 21 CSA layers with index keys, 20 HCA layers; 8 bytes a block say where it ends. The window costs no token more."""
    flash = preset("v4-flash")
    ends = -(-8 * (21 * 32 + 20) // 128)
    assert state_bytes(flash) == {"kv": 21 * 256 + 20 * 8, "index": 21 * 64, "other": ends}
    assert keys_read(flash, LONG) == 43 * 128 + 21 * 512 + 20 * 8192
    assert keys_read(flash, 100) == 43 * 100 + 21 * 25
    assert keys_indexed(flash, LONG) == 21 * LONG // 4
    window, offers = 43 * (127 + SLACK) * 512 * 2, 4 * (21 * (7 + SLACK) * 2 * 2 * (512 + 128) + 20 * (127 + SLACK) * 2 * 512)
    assert fixed_bytes(flash) == window + offers
    layout = skeleton(flash).layers[2].attention.fields()
    state = new_state(layout, 1, torch.bfloat16, torch.device("cpu"))
    assert state.bytes_per_token() == 256 + 64 + 2
    assert state.fixed_bytes() == (127 + SLACK) * 1024 + (7 + SLACK) * 4 * 2 * 2 * 640


def test_the_released_v4_needs_little_at_1m() -> None:
    """Its report: a tenth of V3.2's operations and less than a tenth of its state (Flash), about a quarter and a tenth (Pro)."""
    base, flash, pro = (preset(name) for name in ("v3.2", "v4-flash", "v4-pro"))
    state = [sum(state_bytes(config).values()) for config in (base, flash, pro)]
    assert 0.06 < state[1] / state[0] < 0.09 and 0.09 < state[2] / state[0] < 0.12
    work = [flops_per_token(config, count(config), LONG) for config in (base, flash, pro)]
    assert 0.08 < work[1] / work[0] < 0.14 and 0.2 < work[2] / work[0] < 0.35


def test_weight_bytes_follow_the_format() -> None:
    counts = count(preset("v3"))
    sizes = weight_bytes(counts)
    assert sizes["bf16"] == 2 * counts.total
    assert sizes["bf16"] > sizes["int8"] > sizes["fp8"] > sizes["int4"] > counts.total / 2
    assert part_bytes(counts, "int4")["head"] == 2 * counts.parts["head"]  # published checkpoints leave it in 16 bits


def test_operations_of_a_dense_model_by_hand() -> None:
    config = preset("v1-7b")
    counts = count(config)
    assert flops_per_token(config, counts, 4096) == 2 * counts.active + 30 * 2 * 32 * (128 + 128) * 4096


def test_the_indexer_bounds_what_is_read() -> None:
    dense, sparse = preset("v3"), preset("v3.2")
    at_1m = [flops_per_token(c, count(c), LONG) for c in (dense, sparse)]
    assert at_1m[1] < 0.1 * at_1m[0]


def placed(memory: int, form: str = "int4", **changes: int) -> Placement:
    config = preset("v4")
    speeds = {"ram_bandwidth": 80 * GB, "disk_bandwidth": 5 * GB, "context": 8192} | changes
    return place(config, count(config), memory, form, **speeds)


def test_everything_is_somewhere() -> None:
    total = weight_bytes(count(preset("v4")))["int4"]
    for memory in (4, 32, 128, 512, 1024):
        p = placed(memory * GB)
        resident = p.resident_always_bytes + p.resident_expert_bytes + p.resident_table_bytes
        assert resident + p.streamed_bytes == pytest.approx(total, rel=1e-9)
        assert resident + p.context_bytes <= memory * GB
    assert placed(1024 * GB).fits and not placed(512 * GB).fits


def test_more_memory_is_never_slower() -> None:
    speeds = [placed(memory * GB).tokens_per_second for memory in (2, 8, 16, 32, 64, 128, 256, 400, 512, 700)]
    assert speeds == sorted(speeds)


def test_speed_is_bytes_over_bandwidth() -> None:
    p = placed(32 * GB)
    assert 1 / p.tokens_per_second == pytest.approx(p.memory_read_per_token / (80 * GB) + p.disk_read_per_token / (5 * GB))
    assert p.tokens_per_second_overlapped >= p.tokens_per_second


def test_a_context_that_does_not_fit_is_said() -> None:
    with pytest.raises(FourfoldError, match="--memory: the state of 1048576 tokens takes 90.1 GB"):
        placed(32 * GB, context=LONG)


@pytest.mark.parametrize(("text", "size"), [("32GB", 32 * GB), ("24GiB", 24 << 30), ("1.5k", 1500), ("80GB/s", 80 * GB), ("7", 7)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "lots", "-3GB", "0", "3 XB", "1.2.3GB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(FourfoldError, match="--memory"):
        parse_bytes(text, "--memory")
