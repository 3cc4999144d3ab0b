"""What media bring into the model, part by part: patches, towers, positions, codes, router biases, prediction, memory, files."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.formats import ours
from fourfold.media.spans import Span, join, patches_of
from fourfold.modality import Modality
from fourfold.model.inputs import Batch
from fourfold.model.media import windows
from fourfold.model.places import Places, code_cells, patch_cells
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import build, grouped, random_tokens, token_classes
from tests.compare import assert_close
from tests.model import showing
from tests.model.showing import BINS, CODES, CONFIGS, FRAMES, PATCH, WORDS, flat, placed, story, towered


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param]())


def look(model: Transformer, *spans: Span) -> Tensor:
    with torch.no_grad():
        return model.batch(list(spans)).vectors


def last_hidden(model: Transformer, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.trunk(batch)[-1]


# Patches


def test_a_patch_is_projected_and_normed() -> None:
    """v = RMSNorm(W x + b), by hand; bytes 0 to 255 are -1 to 1, and mel goes in as it is."""
    model, picture, sound = build(flat()), showing.picture(), showing.sound()
    eps = model.config.rms_norm_eps
    for span, front, x in (
        (picture, model.media.pixels, picture.pixels.double() / 255 * 2 - 1),
        (sound, model.media.sound, sound.mel.double()),
    ):
        y = x @ front.proj.weight.double().T + front.proj.bias.double()
        expected = y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * front.norm.weight.double()
        assert_close(look(model, span), expected.float())


@pytest.mark.parametrize("config", CONFIGS.values())
def test_vectors_begin_at_the_scale_of_embeddings(config) -> None:
    small = config().but(initializer_range=0.03)
    model = Transformer(small, token_classes(small)).init_weights(0).eval()
    vectors, table = look(model, story()), model.embed.weight
    if small.media_in.image_place_waves:  # which come on top
        assert 0.03 < vectors.square().mean().sqrt() < 0.06
        return
    assert vectors.square().mean().sqrt() == pytest.approx(0.03, rel=0.02)
    assert vectors.square().mean(-1).sqrt().max() < 1.2 * table.square().mean().sqrt()


def test_vectors_come_in_the_order_of_places(model: Transformer) -> None:
    """Pictures and sound in turn, several sequences: each patch as alone, whatever stands before it."""
    parts = [showing.sound(3, 1), showing.picture(1, 2, 2), showing.sound(4, 3), showing.clip(seed=4), showing.picture(seed=5)]
    alone = torch.cat([look(model, part) for part in parts])
    assert_close(look(model, join(parts)), alone)
    assert_close(look(model, join(parts[:2]), showing.text(3, 1), join(parts[2:])), alone)


def test_flat_patches_have_no_company() -> None:
    """Without a tower a picture may be cut before it is looked at."""
    model, whole = build(flat()), story()
    for cut in range(3, len(whole), 4):
        parts = (whole.cut(0, cut), whole.cut(cut, len(whole)))
        seen = [look(model, part) for part in parts if part.pixels is not None or part.mel is not None]
        assert_close(torch.cat(seen), look(model, whole))


def test_cells_and_windows_follow_from_the_layout() -> None:
    clips = [showing.clip(2, 2, 1), showing.clip(1, 1, 2)]
    span = join([showing.picture(2, 3), showing.picture(1, 2), showing.text(1, 0), *clips, showing.sound(7)])
    cells, sizes = patch_cells(span.modality)
    pictures = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert cells.tolist() == [*pictures, [0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert sizes == [6, 2, 2, 2, 2]
    places, lengths = windows(join([span, showing.sound(2)]).modality, 3)
    assert (places.tolist(), lengths) == ([0, 1, 2, 0, 1, 2, 0, 0, 1], [3, 3, 1, 2])


def test_a_tower_sees_all_of_its_picture_and_nothing_else() -> None:
    model, frames = build(towered()), 3
    clip = showing.clip(frames, 2, 2)
    before = look(model, clip).unflatten(0, (frames, 4))
    clip.pixels[5, 0] += 100  # one byte of the second frame
    after = look(model, clip).unflatten(0, (frames, 4))
    moved = (after - before).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[False] * 4, [True] * 4, [False] * 4]
    sound = showing.sound(7)
    heard = look(model, sound)
    sound.mel[4, 0] += 1.0
    moved = (look(model, sound) - heard).abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * 3 + [False], "windows of three"


def test_a_tower_looks_at_pieces_of_patches_where_they_lie() -> None:
    """Against the picture itself in patches of the tower's size: bytes and places."""
    model, seen = build(towered()), {}
    front = model.media.pixels
    handles = [
        front.proj.register_forward_pre_hook(lambda _, args: seen.update(pieces=args[0])),
        front.tower.register_forward_pre_hook(lambda _, args: seen.update(places=args[1], sizes=args[2])),
    ]
    pixels = torch.randint(0, 256, (3, 2 * PATCH, 3 * PATCH), dtype=torch.uint8)
    look(model, showing.spans.picture(pixels, WORDS, PATCH))
    for handle in handles:
        handle.remove()
    fine = patches_of(pixels[None], model.media.piece)[0]  # [rows, columns, 3pp]
    rows, columns = seen["places"]
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(r, c) for r in range(4) for c in range(6)]
    assert_close(seen["pieces"].flatten(0, 1), fine[rows, columns].float() / 127.5 - 1)
    assert seen["sizes"] == [24]


@pytest.mark.parametrize("config", [flat, towered])
def test_a_patch_of_two_frames_shows_both(config: Callable[[], ModelConfig]) -> None:
    """As one matrix over the two of them, and the same for every piece that a tower looks at."""
    single = config()
    model = build(single.but(media_in=single.media_in.but(clip_patch_frames=2)))
    frames = torch.randint(0, 256, (4, 3, PATCH, 2 * PATCH), dtype=torch.uint8)
    inputs: list[Tensor] = []
    handle = model.media.pixels.proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    look(model, showing.spans.clip(frames, [0.0, 0.1, 0.2, 0.3], WORDS, PATCH, together=2))
    handle.remove()
    side = model.media.piece
    pairs = patches_of(frames, side).unflatten(0, (2, 2)).float() / 127.5 - 1  # [groups, 2, rows, columns, 3pp]
    across = PATCH // side
    wanted = pairs.unflatten(3, (2, across)).permute(0, 3, 2, 4, 1, 5).flatten(4)  # [groups, patches, rows, columns, 2 · 3pp]
    assert_close(inputs[0], wanted.flatten(2, 3).flatten(0, 1))


def test_a_tower_knows_rows_from_columns() -> None:
    """The same patches laid out otherwise are another picture; moved as a whole in the text they are the same."""
    model = build(towered())
    wide, high = showing.picture(1, 2), showing.picture(2, 1)
    same = Span(high.tokens, high.modality, high.positions, wide.pixels)
    assert (look(model, same) - look(model, wide)).abs().max() > 1e-4
    assert_close(look(model, join([showing.text(9, 0), wide])), look(model, wide))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_plain_pictures_and_silence_are_numbers(model: Transformer, value: int) -> None:
    pixels, silence = torch.full((3, PATCH, PATCH), value, dtype=torch.uint8), torch.zeros(1, BINS)
    vectors = look(model, showing.spans.picture(pixels, WORDS, PATCH), showing.spans.sound(silence, WORDS, FRAMES))
    assert vectors.isfinite().all()


def test_bf16_with_media(model: Transformer) -> None:
    low = build(model.config).bfloat16()
    batch, cache = low.batch([story()]), low.new_cache(1)
    assert batch.vectors.dtype == torch.bfloat16
    with torch.no_grad():
        chunks = [low.trunk(batch.cut(start, start + 11), cache) for start in range(0, len(story()) - 10, 11)]
        assert all(hidden.isfinite().all() for hidden in [low.trunk(batch), *chunks])
        assert low.code_logits(chunks[0]).dtype == torch.float32
    assert_close(look(low, story()).float(), look(model, story()), dtype=torch.bfloat16)


def test_where_gradients_go(model: Transformer) -> None:
    """Of the codes alone to their head; through the trunk to patches, to the codes that came, to words, and no others."""
    span = story()
    out = model.train_forward(model.batch([span]), selection="dense")
    logits = torch.cat([model.logits(out.hidden)[-1], model.code_logits(out.hidden)[-1]])
    model.zero_grad()
    logits.logsumexp(-1).backward()
    named = dict(model.named_parameters())
    missing = [name for name in named if name.startswith(("media.", "code_")) and not named[name].grad.abs().sum() > 0]
    assert not missing
    drawn = (span.modality >= Modality.DRAWN).numpy()
    rows = model.code_embed.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert rows == sorted(set(span.tokens[drawn].tolist()))


# Positions


def test_pairs_turn_by_time_row_and_column_in_turn(model: Transformer) -> None:
    """The angles of attention and indexer at every place of the story, each from the axis of its pair."""
    batch = model.batch([story()])
    context = model.context(batch, None, None, "sparse")
    assert {"attention", "index"} == set(context.rotary)
    for name, (cos, sin) in context.rotary.items():
        turns = model.get_buffer(f"{name}_turns").double()
        for pair, turn in enumerate(turns):
            angle = batch.positions[pair % 3].double() * turn
            assert_close(cos[:, pair], (angle.cos() * model.rope_scale).float(), f"{name} pair {pair}")
            assert_close(sin[:, pair], (angle.sin() * model.rope_scale).float(), f"{name} pair {pair}")


def test_rows_and_columns_are_told_apart(model: Transformer) -> None:
    """Codes in other shapes, everything else alike; and without rows and columns it would be another answer again."""
    batch = model.batch([join([showing.drawing(2, 3), showing.text(1, 1)])])
    turned = Batch(**{**vars_of(batch), "positions": batch.positions[[0, 2, 1]]})
    assert (last_hidden(model, turned) - last_hidden(model, batch)).abs().max() > 1e-4


def vars_of(batch: Batch) -> dict:
    names = ("tokens", "lengths", "positions", "modality", "documents", "vectors")
    return {name: getattr(batch, name) for name in names}


# Codes


def test_codes_have_a_table_and_a_head_of_their_own(model: Transformer) -> None:
    batch = model.batch([join([showing.text(2, 1), showing.drawing(2, 2)])])
    drawn = batch.modality == Modality.DRAWN
    context = model.context(batch, None, None, "sparse")
    embedded = model.embedded(batch, context)
    codes = model.code_embed.weight[batch.tokens[drawn]]
    if model.code_places is not None:
        codes = codes + model.code_places(torch.tensor([[0, row, column] for row in range(2) for column in range(2)]))
    assert torch.equal(embedded[drawn], codes)
    assert torch.equal(embedded[~drawn], model.embed.weight[batch.tokens[~drawn]])
    with torch.no_grad():
        hidden = model.trunk(batch)
        assert_close(model.code_logits(hidden), hidden @ model.code_head.T)
    assert model.code_logits(hidden).shape == (batch.lengths[0], CODES)
    assert model.code_head_weight is model.code_head


@pytest.mark.parametrize("code", [-1, CODES])
def test_codes_that_are_none_are_refused(model: Transformer, code: int) -> None:
    span = showing.spans.drawing(torch.tensor([[0, code]]), WORDS)
    said = rf"codes from {min(code, 0)} to {max(code, 0)} are not within image_token_size \({CODES}\)"
    with pytest.raises(ValueError, match=said):
        model.trunk(model.batch([span]))


def test_vectors_must_fit_the_places(model: Transformer) -> None:
    batch = model.batch([showing.picture()])
    with pytest.raises(ValueError, match="reads at 6 places and has 0 vectors"):
        model.trunk(Batch(**{**vars_of(batch), "vectors": None}))
    with pytest.raises(ValueError, match="reads at 6 places and has 5 vectors"):
        model.trunk(Batch(**{**vars_of(batch), "vectors": batch.vectors[1:]}))
    with pytest.raises(ValueError, match="pixels: 5 patches for 6 places"):
        model.look(batch.modality, showing.picture().pixels[1:])
    with pytest.raises(ValueError, match="pixels: a patch of 1 frames of 4 x 4 is not 96 bytes"):
        model.look(batch.modality, showing.picture().pixels.repeat(1, 2))
    with pytest.raises(ValueError, match="mel: 0 patches for 4 places"):
        model.look(showing.sound().modality)


def test_a_model_says_what_it_does_not_do() -> None:
    deaf, mute = build(flat().but(media_in=None)), build(flat().but(media_out=None))
    with pytest.raises(ConfigError, match="media_in: this model reads no pictures and no sound"):
        deaf.batch([showing.picture()])
    with pytest.raises(ConfigError, match="media_in: this model reads no pictures and no sound"):
        deaf.trunk(mute.batch([showing.picture()]))
    assert deaf.trunk(deaf.batch([showing.drawing()])).isfinite().all()
    drawn = deaf.batch([showing.drawing()])
    for asked in (lambda: mute.trunk(drawn), lambda: mute.batch([showing.drawing()]), lambda: mute.code_logits(torch.zeros(1, 22))):
        with pytest.raises(ConfigError, match="media_out: this model draws nothing"):
            asked()
    assert mute.trunk(mute.batch([showing.picture()])).isfinite().all()


# Routers


def test_each_modality_is_chosen_by_its_own_bias() -> None:
    model, span = build(flat()), story()
    for router in model.routers():
        router.media_bias.zero_()
        for kind in list(Modality)[1:]:
            router.media_bias[kind - 1, int(kind)] = 50.0  # expert 1 for pictures, 2 for clips, ...
    trace = Trace()
    with torch.no_grad():
        model.train_forward(model.batch([span]), trace)
    for layer in trace.layers[1:]:  # the first is dense
        for kind in list(Modality)[1:]:
            chosen = layer.expert_ids[span.modality == kind]
            assert (chosen == int(kind)).any(-1).all(), kind.name
    router, scores = model.routers()[0], torch.rand(9, 8, generator=torch.Generator().manual_seed(0))
    own = router.choose(scores, torch.zeros(9, dtype=torch.uint8))
    assert torch.equal(own, router.choose(scores)), "text goes by its own bias"


def test_each_modality_is_balanced_by_its_own_load() -> None:
    router = build(flat()).routers()[0]
    experts = router.config.n_routed_experts
    before = torch.cat([router.bias[None], router.media_bias]).clone()
    load = torch.zeros(6, experts)
    load[Modality.TEXT, :2] = 8.0
    load[Modality.VIDEO] = torch.arange(experts)
    load[Modality.FILMED] = 3.0  # even already
    router.balance(load, 0.25)
    moved = (torch.cat([router.bias[None], router.media_bias]) - before) / 0.25
    expected = torch.zeros(6, experts)
    expected[Modality.TEXT] = torch.tensor([-1.0] * 2 + [1.0] * (experts - 2))
    expected[Modality.VIDEO] = torch.sign(load[Modality.VIDEO].mean() - load[Modality.VIDEO])
    assert_close(moved, expected)


# Multi-token prediction


def test_prediction_embeds_what_comes_next_as_the_trunk_does(model: Transformer) -> None:
    """Words, patches and codes alike; the last of each sequence is followed by nothing."""
    rows, given = [story(), join([showing.picture(1, 2, 7), showing.text(2, 3)])], []
    hooks = [layer.enorm.register_forward_pre_hook(lambda _, args: given.append(args[0])) for layer in model.mtp]
    batch = model.batch(rows)
    with torch.no_grad():
        model.train_forward(batch)
        whole = model.embedded(batch, model.context(batch, None, None, "sparse"))
    for depth, embedded in enumerate(given, 1):
        start = 0
        for row in rows:
            known = len(row) - depth
            assert torch.equal(embedded[start : start + known], whole[start + depth : start + len(row)])
            assert not embedded[start + known : start + len(row)].any()
            start += len(row)
    assert len(given) == model.config.num_nextn_predict_layers > 0
    for hook in hooks:
        hook.remove()


# Engram


def test_memory_is_silent_outside_words_and_stops_at_spans(model: Transformer) -> None:
    """Nothing is written where a patch or code stands, other codes change no n-gram, and behind them a text begins anew."""
    layer = model.config.memory.engram_layers[-1]
    engram, rows = model.layers[layer].engram, []
    spans = [join([showing.text(4, 1), showing.picture(1, 2), showing.drawing(1, 3, seed), showing.text(9, 2)]) for seed in (1, 2)]
    end = int((spans[0].modality == Modality.DRAWN).nonzero()[-1]) + 1
    for span in [*spans, showing.spans.text(spans[0].tokens[end:].tolist())]:
        context = model.context(model.batch([span]), None, None, "sparse")
        classes = model._classes(context.history)
        rows.append(engram.row_ids(classes, context.queries, context)[0])
        with torch.no_grad():
            written = engram(torch.randn(len(span), engram.branches, model.config.hidden_size), classes, context)
        assert torch.equal(written.abs().amax((1, 2)) > 0, span.modality == Modality.TEXT)
    words = spans[0].modality == Modality.TEXT
    assert torch.equal(rows[0][words], rows[1][words])
    assert torch.equal(rows[0][end:], rows[2])


# Caches and files


def test_a_pass_that_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are given again with the positions that were kept; patches cannot be, and the cache is to be cut to before them."""
    model, span = build(flat()), story()
    batch, first_patch = model.batch([span]), 4
    drawn = int((span.modality == Modality.DRAWN).nonzero()[0]) + 2

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def broken(start: int, stop: int):
        cache = model.new_cache(1)
        with torch.no_grad():
            model.trunk(batch.cut(0, start), cache)
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(model.layers[1], "forward", interrupted)
                model.trunk(batch.cut(start, stop), cache)
        return cache

    with torch.no_grad():
        expected = model.trunk(batch)
        cache = broken(drawn, drawn + 3)
        assert_close(model.trunk(batch.cut(drawn + 3, len(span)), cache), expected[drawn + 3 :])
        cache = broken(first_patch, first_patch + 3)
        with pytest.raises(ValueError, match="patches cannot be given again"):
            model.trunk(batch.cut(first_patch + 3, first_patch + 5), cache)
        cache.truncate(first_patch)
        assert_close(model.trunk(batch.cut(first_patch, len(span)), cache), expected[first_patch:])


def test_positions_are_kept_where_they_are_needed() -> None:
    with_media, plain = build(flat()), build(flat().but(media_in=None, media_out=None))
    assert with_media.new_cache(1).bytes_per_token() == plain.new_cache(1).bytes_per_token() + 3 * 4


def test_saved_and_loaded(model: Transformer, tmp_path: Path) -> None:
    ours.save(model, tmp_path / "whole")
    loaded = ours.load(tmp_path / "whole")
    assert loaded.config == model.config
    with torch.no_grad():
        one, other = (m.train_forward(m.batch([story()])).hidden for m in (model, loaded))
    assert torch.equal(one, other)
    config, drawn = tmp_path / "whole" / "config.json", showing.MEDIA_OUT.model_dump()
    config.write_text(json.dumps({name: value for name, value in json.loads(config.read_text()).items() if name not in drawn}))
    with pytest.raises(CheckpointError, match="code_embed.weight"):
        ours.load(tmp_path / "whole")


def test_what_stays_in_fp32(model: Transformer) -> None:
    kept = {name for name in model.state_dict() if model.keep_fp32(name)}
    assert not [name for name in kept if name.startswith(("media.", "code_"))]
    assert all(name in kept for name in model.state_dict() if name.endswith("media_bias"))


# Batches


def test_a_batch_of_one_sequence_is_cut_with_its_vectors() -> None:
    model, span = build(flat()), story()
    batch = model.batch([span])
    for start in range(0, len(span), 5):
        part = batch.cut(start, start + 5)
        made = Batch.from_spans([span.cut(start, start + 5)])
        for name in ("tokens", "positions", "modality", "documents"):
            assert torch.equal(getattr(part, name), getattr(made, name)), name
        assert len(part.vectors) == int(((part.modality >= 1) & (part.modality <= 3)).sum())
    with pytest.raises(ValueError, match="only a batch of one sequence can be cut, this one has 2"):
        model.batch([span, span]).cut(0, 3)


def test_documents_and_lengths_of_rows() -> None:
    a, b, c = showing.text(3, 1), showing.picture(1, 1), showing.text(2, 2)
    batch = Batch.from_spans([[a, b], c, b.cut(0, 0), [c]])
    assert batch.lengths == (3 + len(b), 2, 0, 2)
    assert batch.documents.tolist() == [0] * 3 + [1] * len(b) + [0] * 4
    assert batch.positions[0].tolist() == [0, 1, 2, *range(len(b)), 0, 1, 0, 1]


def test_shifted_by_hand() -> None:
    batch = Batch.from_spans([showing.text(3, 1), showing.text(1, 2), showing.text(2, 3)])
    shifted = batch.shifted(torch.arange(1.0, 7)[:, None].expand(-1, 2))
    assert shifted[:, 0].tolist() == shifted[:, 1].tolist() == [2.0, 3.0, 0.0, 0.0, 6.0, 0.0]


def test_a_text_model_ignores_what_modalities_say() -> None:
    """Such a batch is as good as text to it, but for its memory: it has no other table."""
    model = build(grouped().but(memory=None))
    batch = Batch.from_tokens(random_tokens(1, 9))
    marked = Batch(**{**vars_of(batch), "modality": torch.ones(9, dtype=torch.uint8)})
    assert torch.equal(last_hidden(model, marked), last_hidden(model, batch))


# Places


def test_places_by_hand() -> None:
    """Cosines of frame, row and column, then sines; places of one wavelength apart are told by the longer ones."""
    places = Places(2, 5)
    with torch.no_grad():
        places.waves.normal_()
    cell = torch.tensor([[1, 2, 3]])
    angles = torch.tensor([x * 2 * math.pi / length for x in (1.0, 2.0, 3.0) for length in (2, 4)])
    assert_close(places(cell)[0], places.waves @ torch.cat([angles.cos(), angles.sin()]) / 3)


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_cells_of_codes_in_chunks(size: int) -> None:
    """Counted from the first code of their own drawing, however a sequence is cut and wherever it stands."""
    model = build(placed())
    span = join([showing.text(3, 1), showing.drawing(2, 3), showing.text(1, 2), showing.film(2, 1, 2), showing.drawing(1, 2)])
    batch, cache, found = model.batch([span]), model.new_cache(1), []
    for start in range(0, len(span), size):
        part = batch.cut(start, start + size)
        found.append(code_cells(part, model.context(part, cache, None, "sparse")))
    drawing = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert torch.cat(found).tolist() == [*drawing, [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]


def test_cells_of_codes_in_packed_documents() -> None:
    model, rows = build(placed()), [[showing.text(3, 1), showing.drawing(2, 1)], [showing.drawing(1, 2), showing.drawing(1, 1)]]
    batch = model.batch(rows)
    cells = code_cells(batch, model.context(batch, None, None, "sparse"))
    assert cells.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_equal_patches_differ_by_their_places() -> None:
    white = torch.full((3, 3, 2 * PATCH, 2 * PATCH), 255, dtype=torch.uint8)
    clip = showing.spans.clip(white, [0.0, 0.125, 0.25], WORDS, PATCH)
    assert look(build(placed()), clip).unique(dim=0).shape[0] == 3 * 2 * 2
    assert look(build(flat()), clip).unique(dim=0).shape[0] == 1
