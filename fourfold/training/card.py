"""The model card of a trained model: what it is, what it was trained on, how well it does, written from the run itself."""

from fourfold.training.recipes import Recipe, Stage

CARD = """---
license: apache-2.0
library_name: fourfold
pipeline_tag: text-generation
---
# {name}

A small model of the V4 design, {parameters:,} parameters in all, trained {begun} by Fourfold's recipe `{recipe}`.
It shows that every part works together; it is far too small to be relied on for facts.

```python
import fourfold

model = fourfold.load("{name}")
```

## Training
| stage | trains | reads | tokens | a step | peak learning rate |
|---|---|---|---|---|---|
{stages}

Weights in {dtype}, seed {seed}; stopped after {done:,} tokens; evaluated on `{corpus}` in rows of {length} tokens.
Checksums of the data and versions are in the run's `run.json`.

## Result
| measure | value |
|---|---|
{results}
{held_out}"""
HELD_OUT = """
Held-out documents of the same corpus, read with sparse selection; bits per byte count the UTF-8 bytes of the predicted text.
"""
TRAINS = {"dense": "all but the indexers, full attention", "indexer": "the indexers alone", "sparse": "all, sparse attention"}
MEASURES = {
    "held_out_bits_per_byte": "held-out bits per byte",
    "held_out_loss": "held-out loss (nats per token)",
    "held_out_image_loss": "held-out loss, words about pictures (nats per token)",
    "held_out_video_loss": "held-out loss, words about clips",
    "held_out_audio_loss": "held-out loss, words about speech and sounds",
    "held_out_drawn_loss": "held-out loss, codes of pictures (nats per code)",
    "held_out_filmed_loss": "held-out loss, codes of clips",
    "lm_loss": "last training loss, next token",
    "mtp_loss": "last training loss, token after next",
    "indexer_kl": "last indexer KL, summed over layers",
    "expert_load_max": "highest expert load over the mean",
    "residual_gain": "composite residual gain",
}


def model_card(recipe: Recipe, row: dict, parameters: int) -> str:
    """README.md of the saved model; row: the last step's metrics."""
    stages = [f"| {s.name} | {TRAINS[s.mode]} | {_reads(recipe, s)} | {_rate(recipe, s):g} |" for s in recipe.stages if s.tokens]
    results = [f"| {said} | {row[name]:.4f} |" for name, said in MEASURES.items() if row.get(name) is not None]
    return CARD.format(
        name=recipe.preset, recipe=recipe.name, parameters=parameters, stages="\n".join(stages),
        corpus=recipe.corpus, length=recipe.sequence_length, dtype=recipe.dtype, seed=recipe.seed,
        begun="on from " + ", ".join((recipe.init, *recipe.blend)) if recipe.init else "from scratch",
        done=row.get("tokens", 0), results="\n".join(results),
        held_out=HELD_OUT if row.get("held_out_loss") is not None else "",
    )  # fmt: skip


def _reads(recipe: Recipe, stage: Stage) -> str:
    rows, length = recipe.shape(stage)
    sources = recipe.sources(stage)
    shares = [f"{share / sum(sources.values()):.0%} {name}" for name, share in sources.items()]
    return f"{', '.join(shares)} | {stage.tokens:,} | {rows} x {length:,}"


def _rate(recipe: Recipe, stage: Stage) -> float:
    rate = recipe.optimizer.lr if stage.lr is None else stage.lr
    return rate * recipe.optimizer.indexer_lr_scale if stage.mode == "indexer" else rate
