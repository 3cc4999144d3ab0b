"""Recipes of models that read and draw pictures, clips and sound too, and their mixes.

The nano-omni that ships was made by nano-omni-joined, -anneal, -placed, -moving, -ways and -blended, each from the one before.
"""

import dataclasses
from typing import Any

from fourfold.training.media import MediaSettings
from fourfold.training.optim import OptimizerSettings
from fourfold.training.recipe import Recipe, Stage
from fourfold.training.text_recipes import debug, micro, nano

TEXT_SHARES = {"tiny-text": 0.7, "tiny-chat": 0.22, "needles": 0.08}
MEDIA_SHARES = {
    "tiny-omni:fashion:read": 0.12,
    "tiny-omni:fashion:draw": 0.08,
    "tiny-omni:fluent+noto": 0.28,
    "tiny-omni:animated": 0.08,
    "tiny-omni:sprites": 0.2,
    "tiny-omni:speech": 0.18,
    "tiny-omni:sounds": 0.06,
}
# one part text to three of media, most of it what takes most to learn
JOINED = {
    "tiny-text": 0.15,
    "tiny-chat": 0.07,
    "needles": 0.03,
    "tiny-omni:fashion:read": 0.15,
    "tiny-omni:fashion:draw": 0.09,
    "tiny-omni:fluent+noto": 0.13,
    "tiny-omni:animated": 0.03,
    "tiny-omni:sprites": 0.19,
    "tiny-omni:speech": 0.13,
    "tiny-omni:sounds": 0.03,
}
MICRO_ROWS: dict[str, dict[str, int]] = {  # of every step of `micro-omni`, by modality and source
    "text": {"tiny-text": 2},
    "images": {"tiny-omni:fashion": 1, "tiny-omni:fluent+noto": 1},
    "clips": {"tiny-omni:sprites": 2},
    "sound": {"tiny-omni:speech:read": 1, "tiny-omni:speech+sounds:read": 1},
}
MICRO_STEPS, MICRO_LENGTH = 300, 400  # rows in which two clips fit
ANNEALED = {
    "tiny-text": 0.26,
    "tiny-chat": 0.08,
    "needles": 0.02,
    "tiny-omni:fashion:read": 0.13,
    "tiny-omni:fashion:draw": 0.12,
    "tiny-omni:fluent+noto": 0.06,
    "tiny-omni:animated": 0.01,
    "tiny-omni:sprites": 0.16,
    "tiny-omni:speech": 0.14,
    "tiny-omni:sounds": 0.02,
}
PLACED = {
    "tiny-text": 0.36,
    "tiny-chat": 0.07,
    "needles": 0.02,
    "tiny-omni:fashion:read": 0.13,
    "tiny-omni:fashion:draw": 0.11,
    "tiny-omni:fluent+noto": 0.07,
    "tiny-omni:sprites": 0.02,
    "tiny-omni:speech:read": 0.16,
    "tiny-omni:speech": 0.04,
    "tiny-omni:sounds": 0.02,
}
# clips above all, then which way they move, with a little of all else; then everything, two fifths of it text
MOVING = {
    "tiny-text": 0.08,
    "tiny-omni:sprites:draw": 0.48,
    "tiny-omni:sprites:talk": 0.26,
    "tiny-omni:fashion:read": 0.04,
    "tiny-omni:fashion:draw": 0.04,
    "tiny-omni:fluent+noto": 0.02,
    "tiny-omni:speech:read": 0.07,
    "tiny-omni:sounds": 0.01,
}
WAYS = {
    "tiny-text": 0.06,
    "tiny-omni:sprites:draw": 0.2,
    "tiny-omni:sprites:way": 0.62,
    "tiny-omni:fashion:read": 0.04,
    "tiny-omni:fashion:draw": 0.03,
    "tiny-omni:speech:read": 0.05,
}
BLENDED = {
    "tiny-text": 0.34,
    "tiny-chat": 0.06,
    "needles": 0.02,
    "tiny-omni:sprites:draw": 0.18,
    "tiny-omni:sprites:way": 0.07,
    "tiny-omni:sprites:talk": 0.03,
    "tiny-omni:fashion:read": 0.08,
    "tiny-omni:fashion:draw": 0.09,
    "tiny-omni:fluent+noto": 0.02,
    "tiny-omni:speech:read": 0.09,
    "tiny-omni:speech": 0.01,
    "tiny-omni:sounds": 0.01,
}


def debug_omni() -> Recipe:
    """Text, pictures, clips and sound through all three stages, in a minute once the codec has seen the pictures."""
    mix = _mix(text=0.4)
    stages = (
        Stage("dense", "dense", tokens=40_960, mix=mix),
        Stage("indexer", "indexer", tokens=6_144, lr=3e-3, mix=mix),
        Stage("sparse", "sparse", tokens=12_288, lr=1e-3, mix=mix),
    )
    return dataclasses.replace(debug(), name="debug-omni", preset="debug-omni", stages=stages, sequence_length=512, batch_size=2)


def nano_omni() -> Recipe:
    """All modalities in one trunk from the first step on: two parts text, three parts media."""
    stages = (
        Stage("mixed", "dense", tokens=1_500_000, warmup=0.05, decay=0.3, final=0.3, mix=_mix(text=0.4)),
        *_omni_ends(),
    )
    return dataclasses.replace(nano(), name="nano-omni", preset="nano-omni", stages=stages)


def nano_omni_late() -> Recipe:
    """What nano-omni is measured against: the same tokens of every source, but text by itself first, and media added later."""
    stages = (
        Stage("text", "dense", tokens=500_000, warmup=0.15, decay=0.0, mix=_mix(text=1.0)),
        Stage("media", "dense", tokens=1_000_000, warmup=0.0, decay=0.45, final=0.3, mix=_mix(text=0.1)),
        *_omni_ends(),
    )
    return dataclasses.replace(nano_omni(), name="nano-omni-late", stages=stages)


def nano_omni_joined() -> Recipe:
    """The small omni model's beginning, from the weights of `nano`: text goes on beside media, in rows that clips fit into."""
    settings = MediaSettings(image=8.0, video=8.0, audio=6.0, ctc_weight=0.1)
    stages = (Stage("mixed", "dense", tokens=2_600_000, lr=3e-3, warmup=0.03, decay=0.0, mix=JOINED),)
    unplaced = {"image_place_waves": 0, "code_place_waves": 0}
    shape: dict[str, Any] = dict(sequence_length=1024, batch_size=4, dtype="float32", model=nano().model | unplaced)
    return dataclasses.replace(
        nano(), name="nano-omni-joined", preset="nano-omni", init="nano", seed=3, stages=stages, media=settings, **shape
    )


def nano_omni_anneal() -> Recipe:
    """Goes on from `nano-omni-joined`: more text, drawings counting more, rates that fall to nothing; then the indexers."""
    settings = dataclasses.replace(nano_omni_joined().media, drawn=1.0, filmed=1.0)
    stages = (
        Stage("mixed", "dense", tokens=1_500_000, lr=3e-3, warmup=0.02, decay=0.85, final=0.02, mix=ANNEALED),
        Stage("indexer", "indexer", tokens=80_000, lr=1e-3, decay=0.3, final=0.05, mix=ANNEALED),
    )
    return dataclasses.replace(
        nano_omni_joined(), name="nano-omni-anneal", init="nano-omni-joined", seed=4, stages=stages, media=settings
    )


def nano_omni_placed() -> Recipe:
    """Goes on from `nano-omni-anneal`, whose patches and codes did not name their places: nearly half text.

    Clips are read at half their frames, and few of them: in trials of 160k to 480k tokens none of the ways to show and ask about
    them (fewer pixels, a tower, more questions) had begun to teach which way things move.
    """
    before = nano_omni_anneal()
    stages = (
        Stage("mixed", "dense", tokens=2_600_000, lr=1.5e-3, warmup=0.02, decay=0.95, final=0.02, mix=PLACED),
        Stage("indexer", "indexer", tokens=60_000, lr=1e-3, decay=0.3, final=0.05, mix=PLACED),
    )
    model = before.model | {"clip_rate": 4.0, "image_place_waves": 6, "code_place_waves": 6}
    return dataclasses.replace(
        before, name="nano-omni-placed", init="nano-omni-anneal", seed=5, stages=stages, batch_size=2, model=model
    )


def nano_omni_moving() -> Recipe:
    """Goes on from `nano-omni-placed` with clips above all, their patches made of two frames each."""
    before = nano_omni_placed()
    stage = Stage("clips", "dense", tokens=1_228_800, lr=3e-3, warmup=0.03, decay=0.0, mix=MOVING)
    model = before.model | {"clip_patch_frames": 2}
    return dataclasses.replace(
        before, name="nano-omni-moving", init="nano-omni-placed", seed=6, stages=(stage,), model=model, batch_size=4, threads=2
    )


def nano_omni_ways() -> Recipe:
    """Goes on from `nano-omni-moving`: which way things move, asked by itself."""
    stage = Stage("ways", "dense", tokens=409_600, lr=3e-3, warmup=0.07, decay=0.0, mix=WAYS)
    return dataclasses.replace(nano_omni_moving(), name="nano-omni-ways", init="nano-omni-moving", seed=9, stages=(stage,))


def nano_omni_blended() -> Recipe:
    """The small omni model that ships: all sources, from an average in which text and speech were not yet forgotten for clips.

    The trunk begins as 5 parts nano-omni-ways, 2 parts nano-omni-placed and 3 parts nano; what reads pixels as nano-omni-ways.
    """
    stages = (
        Stage("mixed", "dense", tokens=2_680_000, lr=1.5e-3, warmup=0.02, decay=0.95, final=0.02, mix=BLENDED),
        Stage("indexer", "indexer", tokens=60_000, lr=1e-3, decay=0.3, final=0.05, mix=BLENDED),
    )
    blend = {"nano-omni-placed": 2 / 7, "nano": 0.3}
    return dataclasses.replace(
        nano_omni_ways(), name="nano-omni-blended", init="nano-omni-ways", blend=blend, seed=7, stages=stages
    )


def micro_omni(*kinds: str) -> Recipe:
    """Some modalities (all by default), each on rows of its own, the same number of every source in every step.

    With fewer modalities a step has fewer rows: just those that the step of all modalities has of them, at the same rate. Attention
    is dense throughout and only the next token is predicted, so that all arms of a study take two cores half an hour.
    """
    mix = {source: float(rows) for kind in kinds or MICRO_ROWS for source, rows in MICRO_ROWS[kind].items()}
    size = round(sum(mix.values()))
    stage = Stage("mixed", "dense", tokens=MICRO_STEPS * MICRO_LENGTH * size, warmup=0.05, decay=0.3, mix=mix)
    base, name = micro(), "-".join(("micro-omni", *kinds))
    return dataclasses.replace(
        base, name=name, preset="micro-omni", stages=(stage,), sequence_length=MICRO_LENGTH, batch_size=size,
        model=base.model | {"selection": None, "num_nextn_predict_layers": 0}, eval_every=MICRO_STEPS // 6, eval_rows=16,
        optimizer=OptimizerSettings(lr=4e-3), checkpoint_every=60, threads=1,
    )  # fmt: skip


def micro_omni_late() -> Recipe:
    """As many rows of every source as `micro-omni` and the same rates, but two thirds of the text first and by themselves.

    The rest of the text goes with the media, a tenth of all rows there, so that it is not forgotten.
    """
    early, whole = MICRO_STEPS // 6, micro_omni()
    size, mix = whole.batch_size, dict(whole.stages[0].mix)
    text = MICRO_ROWS["text"]
    late = mix | {source: rows - size * early * rows / sum(text.values()) / MICRO_STEPS for source, rows in text.items()}
    stages = (
        Stage("text", "dense", tokens=early * MICRO_LENGTH * size, warmup=0.05 * 6, decay=0.0, mix={s: mix[s] for s in text}),
        Stage("media", "dense", (MICRO_STEPS - early) * MICRO_LENGTH * size, mix=late, warmup=0.0, decay=0.3 * 6 / 5),
    )
    return dataclasses.replace(whole, name="micro-omni-late", stages=stages)


def _omni_ends() -> tuple[Stage, ...]:
    mix = _mix(text=0.4)
    return (
        Stage("indexer", "indexer", tokens=100_000, lr=2e-3, mix=mix),
        Stage("sparse", "sparse", tokens=400_000, lr=1.2e-3, warmup=0.0, decay=0.7, mix=mix),
    )


def _mix(text: float) -> dict[str, float]:
    """Shares of sources, of which `text` is text and the rest is media."""
    parts = ((TEXT_SHARES, text), (MEDIA_SHARES, 1 - text))
    return {name: round(share * part, 4) for shares, part in parts for name, share in shares.items() if part > 1e-9}
