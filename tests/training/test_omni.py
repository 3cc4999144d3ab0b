"""Training on media: losses by kind against hand calculations, micro-batches, resuming, and the weights that a run starts from."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

import fourfold
from fourfold.config import MediaInConfig, MediaOutConfig
from fourfold.data.rows import GIVEN, joined
from fourfold.errors import ConfigError, DataError
from fourfold.formats import ours
from fourfold.media.codec import Codec
from fourfold.media.spans import patches_of
from fourfold.modality import Modality
from fourfold.model.transformer import Transformer
from fourfold.ops.cross_entropy import IGNORED
from fourfold.presets import preset
from fourfold.training import recipes
from fourfold.training.data import TrainingData
from fourfold.training.loop import Run, train
from fourfold.training.losses import expert_loads, targets_ahead
from fourfold.training.media import MediaSettings, count_kinds, ctc_loss, kind_losses, kinds_ahead, model_batch
from fourfold.training.objective import accumulate, set_mode
from fourfold.training.optim import Optimizer, OptimizerSettings, kind_of, parts_of
from fourfold.training.progress import Reporter
from fourfold.training.start import start_from, told_apart
from tests.builders import scatter
from tests.compare import assert_close
from tests.data.small_media import make_codec, make_corpus
from tests.training.test_runs import assert_same_bits, metrics, state


@pytest.fixture(scope="module")
def media(tmp_path_factory, small_corpus):
    """Folders of a corpus of media and of a codec."""
    from fourfold.text.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("media")
    make_corpus(folder / "small", Tokenizer.load(small_corpus / "tokenizer"))
    return folder / "small", make_codec(folder / "codec")


@pytest.fixture
def omni(small_corpus, media):
    """debug-omni for six steps on rows of 128 tokens: as many of text as of pictures, of clips to draw and of speech and sounds."""
    corpus, codec = media
    mix = json.dumps({str(small_corpus): 1, f"{corpus}:image": 1, f"{corpus}:moving:draw": 1, f"{corpus}:voices+beeps": 1})
    sizes = "image_patch_size=8 audio_mel_bins=8 image_longest=16 clip_longest=16 clip_frames=4 image_grid=[2,2] film_grid=[3,2,2]"
    settings = [f"corpus={small_corpus}", f"media.codec={codec}", "sequence_length=128", "batch_size=4", "eval_rows=8"]
    settings += ["checkpoint_every=2", "document_stride=1", *(f"model.{size}" for size in sizes.split())]
    for stage in ("dense", "indexer", "sparse"):
        settings += [f"stages.{stage}.tokens=1024", f"stages.{stage}.mix={mix}"]
    return recipes.override(recipes.recipe("debug-omni"), settings)


@pytest.fixture
def data(omni):
    return TrainingData.open(omni)


@pytest.fixture
def model(omni, data):
    config = data.fit(omni.model_config()).but(initializer_range=0.1)
    return scatter(Transformer(config, data.token_classes).init_weights(3), 3)


EVERY = ("squares:read", "squares:draw", "moving:read", "moving:draw", "voices:read")


def media_rows(data, *sources):
    """A row of each of the sources, together with media of all kinds unless some are named."""
    corpus = data.media.names[0].split(":")[0]
    return joined([data.media.rows(f"{corpus}:{source}", 128).take([0]) for source in sources or EVERY])


def test_what_is_learnt_is_what_comes_next(data):
    rows = media_rows(data)
    for ahead in (1, 2, 3):
        kinds = kinds_ahead(rows, ahead)
        for row in range(5):
            for at in range(128):
                to = at + ahead
                inside = to < 129 and rows.documents[row, at] == rows.documents[row, to]
                assert kinds[row, at] == (rows.learnt[row, to] if inside else GIVEN)
    counts = count_kinds(rows, 1)
    assert {Modality.DRAWN, Modality.FILMED} <= counts.keys() and Modality.TEXT not in counts
    assert not {kind for kind in count_kinds(rows, 2) if kind.is_code}
    read = rows.modality[:, 1:][kinds_ahead(rows, 1) != GIVEN]
    assert not ((read >= Modality.IMAGE) & (read <= Modality.AUDIO)).any()  # a patch is never a target
    text = joined([rows, _text(data)])
    targets = targets_ahead(text.tokens, text.documents, 1)
    learnt = kinds_ahead(text, 1)
    assert torch.equal(learnt[5:] == GIVEN, targets[5:] == IGNORED)  # of text, everything that has a next token


def _text(data):
    """Rows of text alone, from the run's own mix."""
    batch = data.batch(0)
    plain = [i for i in range(4) if not batch.modality[i].any()]
    return batch.part(plain[0], plain[0] + 1)


def test_losses_by_kind_are_those_of_each_place_by_hand(model, data):
    rows = joined([media_rows(data), _text(data)])
    settings = MediaSettings(image=3.0, video=0.5, audio=2.0, drawn=0.25, filmed=0.125)
    with torch.no_grad():
        hidden = model.train_forward(model_batch(model, rows), selection="dense").hidden.unflatten(0, (6, 128))
        sums: dict[Modality, list[float]] = {}
        for row, at in (rows.learnt[:, 1:] != GIVEN).nonzero().tolist():
            if rows.documents[row, at] == rows.documents[row, at + 1]:
                kind = Modality(int(rows.learnt[row, at + 1]))
                logits = (model.code_logits if kind.is_code else model.logits)(hidden[row, at][None])
                sums.setdefault(kind, []).append(F.cross_entropy(logits, rows.tokens[row, at + 1][None]).item())
    assert len(sums) == 6
    set_mode(model, "dense")
    outcome = accumulate(model, rows, "dense", 0.3, 0, settings)
    for kind, values in sums.items():
        assert outcome.terms[f"{kind.name.lower()}_loss"] == pytest.approx(sum(values) / len(values), rel=1e-4)
    weights = {kind: settings.weight(kind) for kind in sums}
    weighed = sum(weights[kind] * sum(values) for kind, values in sums.items())
    expected = weighed / sum(weights[kind] * len(values) for kind, values in sums.items())
    assert outcome.terms["lm_loss"] == pytest.approx(expected, rel=1e-4)


def test_tokens_further_ahead_are_words_alone(model, data):
    rows = media_rows(data)
    with torch.no_grad():
        out = model.train_forward(model_batch(model, rows), selection="dense")
        counts = count_kinds(rows, 2)
        losses = kind_losses(model, out.mtp_hidden[0], rows, 2, counts)
        states, total = out.mtp_hidden[0].unflatten(0, (5, 128)), []
        for row, at in (rows.learnt[:, 2:] == Modality.VIDEO).nonzero().tolist():
            if rows.documents[row, at] == rows.documents[row, at + 2]:
                total.append(F.cross_entropy(model.logits(states[row, at][None]), rows.tokens[row, at + 2][None]).item())
    assert losses.keys() == counts.keys() and losses[Modality.VIDEO].item() == pytest.approx(sum(total) / len(total), rel=1e-4)


def test_rows_of_text_cost_the_same_with_and_without_the_fields_of_media(model, data):
    text = _text(data)
    plain = dataclasses.replace(text, modality=None, positions=None, learnt=None)
    set_mode(model, "dense")
    outcomes = [accumulate(model, rows, "dense", 0.3, 0).terms for rows in (text, plain)]
    for name in ("loss", "lm_loss", "mtp_loss", "text_loss"):
        assert outcomes[0][name] == pytest.approx(outcomes[1][name], rel=1e-5)
    assert outcomes[0].keys() == outcomes[1].keys() and outcomes[0]["text_loss"] == outcomes[0]["lm_loss"]


def test_ctc_is_torchs_own_for_each_utterance(model, data):
    rows = media_rows(data, "voices:read", "squares:read", "voices:draw")
    with torch.no_grad():
        hidden = model.train_forward(model_batch(model, rows), selection="dense").hidden
        expected = []
        for said in rows.spoken:
            states = hidden.unflatten(0, (3, 128))[said.row, said.start : said.stop]
            odds, sizes = model.logits(states).log_softmax(-1)[:, None], ([len(states)], [len(said.tokens)])
            own = F.ctc_loss(odds, said.tokens[None], *map(torch.tensor, sizes), blank=0, reduction="sum", zero_infinity=True)
            expected.append(own.item() / len(said.tokens))
        assert ctc_loss(model, hidden, rows, 1).item() == pytest.approx(sum(expected), rel=1e-5, abs=1e-4)
    set_mode(model, "dense")
    with_it, without = (accumulate(model, rows, "dense", 0.3, 0, MediaSettings(ctc_weight=w)).terms for w in (0.5, 0.0))
    assert with_it["ctc_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-4, abs=1e-4) and "ctc_loss" not in without
    assert with_it["loss"] == pytest.approx(without["loss"] + 0.5 * with_it["ctc_loss"], rel=1e-4)


@pytest.mark.parametrize("mode", ["dense", "indexer", "sparse"])
def test_micro_batches_add_up(model, data, mode):
    rows = joined([media_rows(data), _text(data)])
    set_mode(model, mode)
    gradients, terms = [], []
    for micro in (0, 2):
        outcome = accumulate(model, rows, mode, 0.3, micro, MediaSettings(ctc_weight=0.3))
        terms.append(outcome.terms)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys() and gradients[0] and terms[0].keys() == terms[1].keys()
    if mode != "indexer":
        assert {"media.pixels.proj.weight", "media.sound.proj.weight", "code_embed.weight", "code_head"} <= gradients[0].keys()
        assert {"drawn_loss", "filmed_loss", "image_loss", "video_loss", "audio_loss", "text_loss", "ctc_loss"} <= terms[0].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], atol=1e-5, rtol=1e-3)
    for name in terms[0]:
        assert terms[1][name] == pytest.approx(terms[0][name], rel=1e-4, abs=1e-6)


def test_padding_has_no_say(model, data):
    """Other padding, other documents of it: the same losses, loads and gradients of everything else."""
    rows = media_rows(data, "squares:read")
    pads = (rows.tokens[0] == 0) & (rows.modality[0] == Modality.TEXT)
    assert pads.any()
    shorter = dataclasses.replace(
        rows,
        tokens=rows.tokens[:, ~pads], documents=rows.documents[:, ~pads], modality=rows.modality[:, ~pads],
        positions=rows.positions[:, :, ~pads], learnt=rows.learnt[:, ~pads],
    )  # fmt: skip
    set_mode(model, "dense")
    padded, bare = (accumulate(model, r, "dense", 0.3, 0) for r in (rows, shorter))
    for name in ("lm_loss", "mtp_loss"):
        assert padded.terms[name] == pytest.approx(bare.terms[name], rel=1e-4)
    for mine, theirs in zip(padded.loads, bare.loads, strict=True):
        assert (mine - theirs).abs().sum() <= model.config.experts.num_experts_per_tok  # the row's last token is no input


def test_each_modality_is_balanced_by_its_own_load(omni, tmp_path):
    ids, modality = torch.tensor([[0, 1], [1, 2], [1, 0], [2, 1]]), torch.tensor([0, 1, 1, 6])
    loads = expert_loads(ids, modality, 4)
    assert loads.shape == (6, 4) and loads[0].tolist() == [1, 1, 0, 0] and loads[1].tolist() == [1, 2, 1, 0]
    assert not loads[2:].any()
    with Reporter(6) as reporter:
        run = Run(omni, tmp_path, reporter)
        run.advance(99)
    moved = torch.stack([router.media_bias for router in run.model.routers()])
    speed = run.model.config.experts.bias_update_speed
    there = torch.bincount(run.data.batch(0).modality[:, :-1].flatten(), minlength=6)[1:] > 0
    assert there.sum() > 2 and moved.abs().max().item() == pytest.approx(speed)
    assert all(torch.equal(router.any(-1), there) for router in moved)
    assert not torch.equal(moved[0, 0], moved[0, 3])


@pytest.mark.parametrize(("stop", "dtype"), [(1, "float32"), (5, "bfloat16")])
def test_resumed_is_uninterrupted(omni, tmp_path, stop, dtype):
    omni = dataclasses.replace(omni, dtype=dtype, media=dataclasses.replace(omni.media, ctc_weight=0.1))
    train(omni, tmp_path / "whole")
    train(omni, tmp_path / "parts", steps=stop)
    train(omni, tmp_path / "parts", resume=True)
    assert_same_bits(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_run_leaves_a_model_with_its_codec(omni, tmp_path, media):
    train(omni, tmp_path / "run")
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kinds = {"text", "image", "video", "audio", "drawn", "filmed"}
    assert kinds == {kind for kind in kinds for row in rows if f"{kind}_loss" in row}
    assert all(rows[-1][f"held_out_{name}"] > 0 for name in ("image_loss", "audio_loss", "filmed_loss", "bits_per_byte"))
    assert {"media.png", "media_held_out.png"} <= {path.name for path in folder.iterdir()}
    about = json.loads((folder / "run.json").read_text())["data"]
    assert "codec" in about and f"{media[0]}/train-squares-00000.parquet" in about
    model = fourfold.load(folder / "model")
    assert model.config.media_out.image_token_size == Codec.load(folder / "model" / "codec").codes == 9
    assert_same_bits(dict(Codec.load(folder / "model" / "codec").state_dict()), dict(Codec.load(media[1]).state_dict()))
    assert "words about pictures" in (folder / "model" / "README.md").read_text()


def test_fixed_rows_are_learnt(model, data):
    rows = joined([media_rows(data), _text(data)])
    set_mode(model, "dense")
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-2), {name for name, _ in model.indexer_parameters()})
    losses = []
    for _ in range(25):
        losses.append(accumulate(model, rows, "dense", 0.3, 0).terms)
        optimizer.step(1e-2)
    for kind in ("text", "image", "video", "audio", "drawn", "filmed"):
        assert losses[-1][f"{kind}_loss"] < 0.7 * losses[0][f"{kind}_loss"]


def test_media_parts_are_added_to_a_text_model(omni, small, data, tmp_path):
    train(small, tmp_path / "text")
    text = fourfold.load(tmp_path / "text" / "model")
    config = data.fit(omni.model_config())
    model = Transformer(config, data.token_classes).init_weights(5)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, str(tmp_path / "text" / "model"))
    for name, tensor in model.state_dict().items():
        expected = text.state_dict()[name] if name in text.state_dict() else fresh[name]
        assert torch.equal(tensor, expected), name
    added = {name for name in fresh if name not in text.state_dict()}
    assert added and all(n.startswith(("media.", "code_")) or n.endswith("media_bias") for n in added)
    assert train(dataclasses.replace(omni, init=str(tmp_path / "text" / "model")), tmp_path / "on", steps=1).step == 1
    with pytest.raises(ConfigError, match="init: .* has another hidden_size"):
        start_from(Transformer(config.but(hidden_size=64), data.token_classes), str(tmp_path / "text" / "model"))
    patches = config.but(media_in=config.media_in.but(image_patch_size=16))
    train(omni, tmp_path / "omni", steps=6)
    with pytest.raises(ConfigError, match="init: .* has another image_patch_size"):
        start_from(Transformer(patches, data.token_classes), str(tmp_path / "omni" / "model"))


def test_places_are_added_to_a_model_without_them(omni, data, tmp_path):
    """And are not taken away: other waves than a checkpoint has are another model."""
    config = data.fit(omni.model_config())
    bare = config.but(media_in=config.media_in.but(image_place_waves=0), media_out=config.media_out.but(code_place_waves=0))
    old = Transformer(bare, data.token_classes).init_weights(4)
    ours.save(old, tmp_path / "bare", data.tokenizer)
    model = Transformer(config, data.token_classes).init_weights(5)
    start_from(model, str(tmp_path / "bare"))
    new = model.state_dict().keys() - old.state_dict().keys()
    assert new == {"media.pixels.places.waves", "code_places.waves"}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in old.state_dict().items())
    ours.save(model, tmp_path / "placed", data.tokenizer)
    with pytest.raises(ConfigError, match="init: .* has another image_place_waves"):
        start_from(old, str(tmp_path / "placed"))


def test_frames_read_by_twos_are_told_apart_from_the_start(omni, data, tmp_path):
    """What is equal in both, as a picture is, stays what it was."""
    config = data.fit(omni.model_config())
    old = scatter(Transformer(config, data.token_classes).init_weights(4), 4)
    ours.save(old, tmp_path / "old", data.tokenizer)
    paired = config.but(media_in=config.media_in.but(clip_patch_frames=2))
    model = Transformer(paired, data.token_classes).init_weights(5)
    start_from(model, str(tmp_path / "old"))
    patch = config.media_in.image_patch_size
    frames = torch.randint(0, 256, (2, 3, patch, 2 * patch), dtype=torch.uint8)
    kinds = torch.full((2,), Modality.IMAGE, dtype=torch.uint8)
    first, second = patches_of(frames, patch).view(2, 2, -1)
    still, moving = (model.look(kinds, torch.cat([first, other], 1), None) for other in (first, second))
    assert_close(still, old.look(kinds, first, None))
    assert (moving - still).square().mean() > 0.1 * still.square().mean()
    back = model.look(kinds, torch.cat([second, first], 1), None)
    assert (moving - back).square().mean() > 0.1 * still.square().mean(), "which of them comes first"
    kept = {n: t for n, t in old.state_dict().items() if n != "media.pixels.proj.weight"}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in kept.items())
    one = torch.randn(5, 7)
    assert_close(told_apart(one, 3).unflatten(1, (3, 7)).sum(1), one)
    ours.save(model, tmp_path / "paired", data.tokenizer)
    with pytest.raises(ConfigError, match="init: .* has another clip_patch_frames"):
        start_from(old, str(tmp_path / "paired"))


def test_what_media_need_is_said_in_one_line(omni, small, media):
    corpus, codec = media
    with pytest.raises(ConfigError, match="mix: .*:image is no text, and debug reads text only"):
        TrainingData.open(recipes.override(small, [f'stages.dense.mix={{"{corpus}:image": 1}}']))
    with pytest.raises(DataError, match="has no rabbits"):
        TrainingData.open(recipes.override(omni, [f'stages.dense.mix={{"{corpus}:rabbits": 1}}']))
    with pytest.raises(fourfold.errors.FourfoldError, match="nowhere"):
        TrainingData.open(recipes.override(omni, ["media.codec=nowhere"]))
    with pytest.raises(ConfigError, match="model.image_token_size: follows from the codec"):
        recipes.override(omni, ["model.image_token_size=5"])
    with pytest.raises(ConfigError, match="media.drawn: -1"):
        recipes.override(omni, ["media.drawn=-1"])


def test_recipes_of_text_read_as_before():
    assert "media" not in recipes.to_dict(recipes.recipe("nano"))
    changed = recipes.override(recipes.recipe("nano-omni"), ["media.ctc_weight=0.1", "media.codec=mine"])
    assert recipes.to_dict(changed)["media"]["ctc_weight"] == 0.1
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(changed)))) == changed


def test_late_fusion_reads_the_same_tokens_of_every_source():
    def tokens(name):
        found: dict[str, float] = {}
        recipe = recipes.recipe(name)
        for stage in recipe.stages:
            sources = recipe.sources(stage)
            for source, share in sources.items():
                found[source] = found.get(source, 0) + share / sum(sources.values()) * stage.tokens
        return found

    native, late = tokens("nano-omni"), tokens("nano-omni-late")
    assert native.keys() == late.keys() and sum(native.values()) == pytest.approx(2_000_000)
    assert all(late[source] == pytest.approx(native[source], rel=1e-3) for source in native)
    assert all(":" not in source for source in recipes.recipe("nano-omni-late").stages[0].mix)
    sizes = {recipes.recipe(name).model_config().to_flat()["hidden_size"] for name in ("nano", "nano-omni", "nano-omni-late")}
    assert len(sizes) == 1


def test_media_parameters_have_their_optimiser():
    config = preset("debug").but(
        vocab_size=300,
        media_in=MediaInConfig(
            image_patch_size=8,
            audio_mel_bins=8,
            tower_layers=1,
            tower_hidden_size=16,
            tower_intermediate_size=24,
            tower_heads=2,
            image_place_waves=2,
        ),
        media_out=MediaOutConfig(image_token_size=9, code_place_waves=2),
    )
    config = config.but(memory=config.memory.but(engram_compressed_vocab_size=None))
    kinds = {name: kind_of(name, p) for name, p in Transformer(config).init_weights(1).named_parameters()}
    tables = {name for name, kind in kinds.items() if kind == "table"}
    assert {"code_embed.weight", "code_head", "media.pixels.proj.weight", "media.sound.proj.weight", "embed.weight"} <= tables
    assert {"media.pixels.places.waves", "code_places.waves"} <= tables
    assert all(kind in ("vector", "matrix") for name, kind in kinds.items() if ".tower." in name)
    assert kinds["media.pixels.tower.layers.0.q_proj.weight"] == "matrix" and kinds["media.pixels.norm.weight"] == "vector"
    assert parts_of("layers.0.attention.o_a_proj.weight", 4) == 4 and parts_of("layers.0.attention.o_b_proj.weight", 4) == 1
