"""A seed means the same weights in every process, and each part draws its own: switching one off changes no other."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from fourfold.config import ModelConfig
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.ops.streams import site_weights
from tests.builders import build, everything, grouped, multi_head, random_tokens, token_classes
from tests.compare import assert_close


def drawn(config: ModelConfig, seed: int) -> Transformer:
    return Transformer(config, token_classes(config)).init_weights(seed)


def digest(seed: int = 3) -> str:
    """Of all weights as drawn, and of the rows that Engram's hash finds."""
    found = hashlib.sha256()
    for config in (everything(), grouped(), multi_head()):
        model = drawn(config, seed)
        for name, tensor in sorted(model.state_dict().items()):
            found.update(name.encode() + tensor.numpy().tobytes())
        if config.memory is not None:
            context = model.context(Batch.from_tokens(random_tokens(2, 30)), None, None, "sparse")
            for layer in config.memory.engram_layers:
                rows = model.layers[layer].engram.row_ids(context.history.tokens, context.queries, context)
                found.update(rows.numpy().tobytes())
    return found.hexdigest()


def test_other_processes_draw_the_same_weights_and_hash_alike() -> None:
    code = "from tests.model.test_seeds import digest; print(digest())"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    torch.manual_seed(99)  # the global generator has no part in it
    assert done.stdout.strip() == digest()
    assert digest(4) != digest(3)


def test_switching_a_part_off_changes_no_other() -> None:
    whole = dict(drawn(everything(), 5).named_parameters())
    for part in ("selection", "experts", "streams", "memory", "num_nextn_predict_layers"):
        rest = everything().but(**{part: 0 if part == "num_nextn_predict_layers" else None})
        model = drawn(rest, 5)
        shared = {name: p for name, p in model.named_parameters() if name in whole and p.shape == whole[name].shape}
        assert len(shared) > 0.6 * len(list(model.named_parameters())), part
        for name, parameter in shared.items():
            assert torch.equal(parameter, whole[name]), f"{name} without {part}"


def test_a_deeper_model_starts_with_the_same_layers() -> None:
    shallow, deep = (drawn(everything().but(num_hidden_layers=n), 1) for n in (3, 5))
    theirs = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        if not name.startswith("mtp."):
            assert torch.equal(parameter, theirs[name]), name


def test_weights_have_the_spread_asked_for_and_no_two_are_alike() -> None:
    model = drawn(everything().but(initializer_range=0.05), 2)
    seen = set()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        last = name.rsplit(".", 1)[-1]
        if parameter.numel() > 400 and last not in ("conv", "conv_norm", "query_norm", "key_norm"):
            assert 0.04 < parameter.std() < 0.06, name
            assert parameter.abs().max() < 0.4, name
            seen.add(parameter.detach().flatten()[:8].numpy().tobytes())
    assert len(seen) > 20
    named = {name: p for name, p in model.named_parameters() if name.endswith("engram.conv") or name.endswith("norm.weight")}
    assert all((p == (0 if name.endswith("conv") else 1)).all() for name, p in named.items())


def test_at_the_start_streams_are_near_the_plain_residual() -> None:
    """mHC starts with each stream kept mostly in place, every stream read alike at the end, and post weights of one."""
    model = drawn(everything(), 0)
    streams = torch.randn(7, 3, model.config.hidden_size)
    for site in (0, 1, 2):
        found = model.layers[site].attention_site
        pre, post, comb = site_weights(streams, found.fn, found.base, found.scale, 20, 1e-6, 1e-6)
        assert (comb.diagonal(dim1=1, dim2=2) > 0.6).all()
        assert_close(post, torch.ones(7, 3), dtype=torch.bfloat16)
        assert (pre.argmax(-1) == 2 * site % 3).all()
    assert_close(model.collapse(streams), streams.mean(1), dtype=torch.bfloat16)


def test_norms_and_biases_keep_a_trained_value() -> None:
    """`init_weights` draws matrices only: what `scatter` of the builders changed here is still there after it."""
    model = build(multi_head())
    before = model.layers[0].attention.q_proj.bias.clone()
    model.init_weights(1)
    assert torch.equal(model.layers[0].attention.q_proj.bias, before)
