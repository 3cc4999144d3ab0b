"""The codec: its quantiser against a definition by hand, causality, pictures as first frames, batches, grids, folders."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fourfold.errors import CheckpointError, ConfigError
from fourfold.media.blocks import Conv, Fold, Unfold
from fourfold.media.codec import Codec, CodecConfig, psnr
from fourfold.media.fsq import FiniteScalarQuantiser
from tests.compare import assert_close

LEVELS = ((8, 8, 8, 8), (8, 5, 5, 5), (7, 5, 2), (3,))
NEAR = 1e-3  # of a level: a number this near to the middle between two may be rounded to either


def small(seed: int = 1, **changes) -> Codec:
    """Random weights with spread: every block does something, and the codes are spread over all levels."""
    codec = Codec(CodecConfig(**{"levels": (5, 4, 3), "widths": (12, 20), "encoder_blocks": 3, **changes})).init_weights(seed)
    drawn = torch.Generator().manual_seed(seed)
    for parameter in codec.parameters():
        scale = 1.2 * parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.2
        torch.nn.init.normal_(parameter, std=scale, generator=drawn)
    return codec.eval()


def clips(frames: int = 9, count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, frames, 3, height, width, generator=torch.Generator().manual_seed(3))


def assert_same_codes(codec: Codec, mine: torch.Tensor, theirs: torch.Tensor, source: torch.Tensor) -> None:
    """Equal codes, but where a number lies in the middle between two levels; `source` is what `theirs` was encoded from."""
    bounded = codec.quantiser.bound(codec.encoder(source.permute(0, 1, 3, 4, 2) - 0.5))
    sure = ((bounded - bounded.floor() - 0.5).abs() > NEAR).all(-1)
    assert torch.equal(mine[sure], theirs[sure]) and sure.float().mean() > 0.9


def by_hand(numbers: list[float], levels: tuple[int, ...]) -> tuple[list[float], int]:
    """What the quantiser makes of one vector, a number at a time with Python's own arithmetic."""
    made, code, step = [], 0, 1
    for number, count in zip(numbers, levels, strict=True):
        half = (count - 1) * 1.001 / 2
        offset = 0.5 if count % 2 == 0 else 0.0
        level = round(math.tanh(number + math.atanh(offset / half)) * half - offset)
        assert -(count // 2) <= level <= (count - 1) // 2
        made.append(level / (count // 2))
        code += (level + count // 2) * step
        step *= count
    return made, code


@pytest.mark.parametrize("levels", LEVELS)
def test_the_quantiser_is_its_definition(levels):
    quantiser = FiniteScalarQuantiser(levels)
    vectors = 2 * torch.randn(200, len(levels), dtype=torch.float64)
    expected = [by_hand(vector, levels) for vector in vectors.tolist()]
    assert_close(quantiser.quantise(vectors), torch.tensor([made for made, _ in expected], dtype=torch.float64))
    assert quantiser.encode(vectors).tolist() == [code for _, code in expected]


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_vectors_are_one_to_one(levels):
    quantiser = FiniteScalarQuantiser(levels)
    codes = torch.arange(quantiser.codes)
    vectors = quantiser.decode(codes)
    grid = itertools.product(*(torch.arange(-(n // 2), (n + 1) // 2) / (n // 2) for n in levels[::-1]))
    assert torch.equal(vectors, torch.tensor([[float(x) for x in point[::-1]] for point in grid]))
    # the vector that is bounded to just these levels comes back as its code
    half = (quantiser.levels - 1) * 1.001 / 2
    offset = torch.where(quantiser.levels % 2 == 0, 0.5, 0.0)
    raw = torch.atanh((vectors * (quantiser.levels // 2) + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(quantiser.encode(raw), codes)
    assert_close(quantiser.quantise(raw), vectors)


def test_the_gradient_passes_the_rounding():
    quantiser = FiniteScalarQuantiser((8, 5, 5, 5))
    vectors = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 4, dtype=torch.float64)
    (passed,) = torch.autograd.grad((quantiser.quantise(vectors) * weight).sum(), vectors)
    (smooth,) = torch.autograd.grad((quantiser.bound(vectors) / (quantiser.levels // 2) * weight).sum(), vectors)
    assert torch.equal(passed, smooth) and passed.abs().min() > 0


def test_nothing_at_all_is_the_middle():
    quantiser = FiniteScalarQuantiser((8, 5))
    assert_close(quantiser.bound(torch.zeros(2)), torch.zeros(2))
    assert quantiser.encode(torch.tensor([[-1e9, -1e9], [1e9, 1e9]])).tolist() == [0, 39]


def test_a_convolution_is_torch_s_and_folding_has_an_inverse():
    conv, plain = Conv(3, 5), torch.nn.Conv2d(3, 5, 3, padding=1)
    torch.nn.init.normal_(conv.weight)
    with torch.no_grad():
        plain.weight.copy_(conv.weight.view(5, 3, 3, 3).permute(0, 3, 1, 2))
        plain.bias.copy_(conv.bias)
    x = torch.randn(2, 4, 6, 7, 3)
    assert_close(conv(x), plain(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, (2, 4)))
    x = torch.arange(2 * 8 * 4 * 3).view(1, 2, 8, 4, 3)
    folded = Fold(4)(x)
    assert folded.shape == (1, 2, 2, 1, 48) and torch.equal(folded[0, 1, 1, 0], x[0, 1, 4:].flatten())
    assert torch.equal(Unfold(4)(folded), x)


@pytest.mark.parametrize("frame", range(1, 9))
def test_nothing_looks_ahead(frame):
    codec, source = small(), clips()
    codes = codec.encode(source)
    changed = source.clone()
    changed[:, frame:] = 1 - changed[:, frame:]
    other = codec.encode(changed)
    assert torch.equal(other[:, :frame], codes[:, :frame]) and not torch.equal(other[:, frame], codes[:, frame])
    pixels, later = codec.decode(codes), codes.clone()
    later[:, frame:] = (later[:, frame:] + 7) % codec.codes
    assert torch.equal(codec.decode(later)[:, :frame], pixels[:, :frame])
    assert not torch.equal(codec.decode(later)[:, frame], pixels[:, frame])


def test_earlier_frames_matter():
    codec, source = small(), clips()
    codes, alone = codec.encode(source), codec.encode(source[:, 8:])
    assert not torch.equal(codes[:, 8:], alone)
    assert not torch.allclose(codec.decode(codes)[:, 8:], codec.decode(codes[:, 8:]))


@pytest.mark.parametrize("frames", range(1, 10))
def test_a_clip_begins_as_a_shorter_one(frames):
    """With one frame: a picture is the first frame of any clip that begins with it."""
    codec, source = small(), clips()
    codes = codec.encode(source)
    assert_same_codes(codec, codec.encode(source[:, :frames]), codes[:, :frames], source[:, :frames])
    assert_close(codec.decode(codes[:, :frames]), codec.decode(codes)[:, :frames])


def test_a_batch_is_each_alone():
    codec, source = small(), clips(count=5)
    codes = codec.encode(source)
    assert_same_codes(codec, torch.cat([codec.encode(clip[None]) for clip in source]), codes, source)
    assert_close(torch.cat([codec.decode(each[None]) for each in codes]), codec.decode(codes))


@pytest.mark.parametrize(("rows", "columns"), [*itertools.product(range(1, 5), repeat=2), (8, 8), (1, 12)])
def test_every_grid_has_its_shape_and_is_decoded_alike_each_time(rows, columns):
    codec = small(widths=(4, 6))
    codes = torch.randint(codec.codes, (2, 3, rows, columns))
    pixels = codec.decode(codes)
    assert pixels.shape == (2, 3, 3, 8 * rows, 8 * columns) and pixels.dtype == torch.float32
    assert pixels.min() >= 0 and pixels.max() <= 1 and torch.equal(codec.decode(codes), pixels)
    again = codec.encode(pixels)
    assert again.shape == codes.shape and again.dtype == torch.int64 and torch.equal(codec.encode(pixels), again)
    assert again.min() >= 0 and again.max() < codec.codes


@pytest.mark.parametrize("widths", [(6,), (4, 6), (4, 6, 8), (2, 4, 6, 8)])
def test_any_number_of_widths_reduces_by_eight(widths):
    codec = small(widths=widths)
    assert codec.encode(clips(2)).shape == (2, 2, 2, 3)
    assert codec.decode(codec.encode(clips(2))).shape == clips(2).shape


def test_what_is_trained_is_what_is_used():
    codec, source = small(), clips()
    made = codec(source)
    assert_close(made.clamp(0, 1), codec.decode(codec.encode(source)))
    made.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in codec.parameters())


def test_a_new_codec_is_the_same_for_the_same_seed():
    first, second, other = (Codec(CodecConfig()).init_weights(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.1.weight"], other["encoder.1.weight"])


def test_psnr_by_hand():
    true = torch.zeros(2, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    assert_close(psnr(made, true), torch.tensor([20.0, 60.0]))


@pytest.mark.parametrize("shape", [(2, 3, 3, 16), (1, 2, 4, 16, 16), (1, 1, 3, 12, 16), (1, 1, 3, 16, 0), (1, 0, 3, 16, 16)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(ValueError, match="are not"):
        small().encode(torch.zeros(shape))


@pytest.mark.parametrize("codes", [torch.zeros(2, 2, dtype=torch.long), torch.full((1, 1, 2, 2), 60), torch.full((1, 1, 2, 2), -1)])
def test_what_is_no_grid_of_codes_is_refused(codes):
    with pytest.raises(ValueError, match="codes"):
        small().decode(codes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"levels": (8, 1)}, "levels has 1"),
        ({"levels": ()}, "levels"),
        ({"downsample": 6, "widths": (4, 4, 4)}, "downsample is 6"),
        ({"widths": (0,)}, "0"),
        ({"depth": 3}, "depth is not a known field"),
    ],
)
def test_impossible_configs_name_the_field(fields, said):
    with pytest.raises(ConfigError, match=said):
        CodecConfig(**fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small().save(tmp_path / "codec", "# a codec\n")


def test_a_saved_codec_comes_back(folder, fourfold_home):
    codec, again = small(), Codec.load(folder)
    assert again.config == codec.config and not again.training
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in codec.state_dict().items())
    assert (folder / "README.md").read_text() == "# a codec\n"
    again.save(folder)  # with its card
    assert (folder / "README.md").read_text() == "# a codec\n"
    small(seed=2).save(folder)  # an older codec is replaced
    assert (folder / "README.md").read_text() != "# a codec\n"
    shutil.copytree(folder, fourfold_home / "models" / "named")
    assert torch.equal(Codec.load("named").encode(clips()), small(seed=2).encode(clips()))
    shutil.rmtree(fourfold_home / "models" / "named")


def config_with(**changes):
    def change(folder):
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | changes))

    return change


def tensors_with(change):
    def damage(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "no such codec"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "does not hold one JSON object"),
        (config_with(model_type="fourfold"), "model_type is 'fourfold'"),
        (config_with(levels=[1]), "config.json: levels has 1"),
        (config_with(widths=[12, 24]), r"tensor decoder.0.bias is \[20\] float32, not \[24\] float32"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x09"), "model.safetensors: missing, truncated"),
        (tensors_with(lambda t: t.pop("encoder.1.bias")), "tensor encoder.1.bias is missing"),
        (tensors_with(lambda t: t.update(extra=torch.zeros(1))), "tensor extra is not part"),
        (tensors_with(lambda t: t.update({"encoder.1.bias": torch.zeros(12, dtype=torch.half)})), r"is \[12\] float16, not"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folder, damage, said):
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        Codec.load(folder)
    assert "\n" not in str(caught.value)


def test_saving_replaces_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds other files"):
        small().save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
