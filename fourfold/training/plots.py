"""The pictures of a run, drawn from its metrics.jsonl."""

import json
from pathlib import Path

from fourfold.errors import CheckpointError
from fourfold.modality import Modality

KINDS = tuple(kind.name.lower() for kind in Modality)

PLOTS: dict[str, tuple[str, tuple[str, ...], bool]] = {  # file: (title, fields, logarithmic)
    "loss.png": ("Loss (nats per token)", ("lm_loss", "mtp_loss", "held_out_loss"), False),
    "media.png": ("Loss by what is learnt (nats per place)", tuple(f"{kind}_loss" for kind in KINDS), False),
    "media_held_out.png": ("Held-out loss by what is learnt", tuple(f"held_out_{kind}_loss" for kind in KINDS), False),
    "experts.png": ("Load of an expert over its layer's mean", ("expert_load_max", "expert_load_min"), False),
    "residual_gain.png": (
        "Composite gain of the residual streams",
        ("residual_gain", "residual_gain_backward", "residual_gain_min"),
        True,
    ),
    "indexer.png": ("Indexer: KL to the attention, share of dead queries", ("indexer_kl", "indexer_dead"), True),
}


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a metrics file; a line cut short by a kill is left out."""
    rows: list[dict] = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise CheckpointError(f"{path}: line {number} is not a row of metrics; remove it")
        rows.append(row)
    return rows


def draw_plots(run: Path, plots: dict[str, tuple[str, tuple[str, ...], bool]] = PLOTS) -> list[Path]:
    """Draw those plots whose fields the run has, into the run's folder; returns their paths."""
    from matplotlib.figure import Figure  # a heavy import, wanted once at the end of a run

    rows = read_metrics(run / "metrics.jsonl")
    drawn = []
    for name, (title, fields, logarithmic) in plots.items():
        series = {f: [(row["step"], row[f]) for row in rows if row.get(f) is not None] for f in fields}
        if not any(series.values()):
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel="step", yscale="symlog" if logarithmic else "linear")
        for label, points in series.items():
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1, marker="." if len(points) < 50 else None)
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(run / name, dpi=110)
        drawn.append(run / name)
    return drawn
