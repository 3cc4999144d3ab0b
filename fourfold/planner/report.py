"""Everything the planner knows of a model, as one flat object for programs and as tables for people."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from fourfold.config import ModelConfig
from fourfold.planner.cost import LONG, flops_per_token, state_bytes, weight_bytes
from fourfold.planner.count import Counts


def report(name: str, config: ModelConfig, counts: Counts) -> dict[str, Any]:
    """All figures; parameters are counts, sizes bytes, operations FLOPs of one decoded token."""
    state = state_bytes(config)
    per_token = sum(state.values())
    return {
        "name": name,
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "engram_parameters": counts.engram,
        "engram_share_of_sparse": round(counts.engram_share, 4),
        "mtp_parameters": counts.mtp,
        "media_parameters": counts.media,
        "parts": counts.parts,
        "layers": config.num_hidden_layers,
        "routed_experts": config.experts.n_routed_experts if config.experts else 0,
        "experts_per_token": config.experts.num_experts_per_tok if config.experts else 0,
        "context": config.max_position_embeddings,
        "keys_read_per_query": config.selection.index_topk if config.selection else None,
        "residual_streams": config.streams.hc_mult if config.streams else 1,
        "weight_bytes": weight_bytes(counts),
        "kv_bytes_per_token": state["kv"],
        "index_bytes_per_token": state["index"],
        "state_bytes_per_token": per_token,
        "state_bytes_at_1m": per_token * LONG,
        "flops_per_token_4k": flops_per_token(config, counts, 4096),
        "flops_per_token_1m": flops_per_token(config, counts, LONG),
    }


def amount(value: float | None, unit: str = "") -> str:
    """`671.0B`, `70.3 kB`: three significant figures and more where it is short anyway."""
    if value is None:
        return "all"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g} {letter}{unit}" if unit else f"{value / size:.4g}{letter}"
    return f"{value:g} {unit}".strip()


ROWS: list[tuple[str, Callable[[dict], float | None], str]] = [
    ("total parameters", lambda r: r["total_parameters"], ""),
    ("active per token", lambda r: r["active_parameters"], ""),
    ("Engram tables", lambda r: r["engram_parameters"], ""),
    ("multi-token prediction", lambda r: r["mtp_parameters"], ""),
    ("media parts", lambda r: r["media_parameters"], ""),
    ("layers", lambda r: r["layers"], ""),
    ("routed experts", lambda r: r["routed_experts"], ""),
    ("experts per token", lambda r: r["experts_per_token"], ""),
    ("residual streams", lambda r: r["residual_streams"], ""),
    ("context", lambda r: r["context"], ""),
    ("keys read per query", lambda r: r["keys_read_per_query"], ""),
    ("weights, bf16", lambda r: r["weight_bytes"]["bf16"], "B"),
    ("weights, fp8", lambda r: r["weight_bytes"]["fp8"], "B"),
    ("weights, int8", lambda r: r["weight_bytes"]["int8"], "B"),
    ("weights, int4", lambda r: r["weight_bytes"]["int4"], "B"),
    ("keys and values per token", lambda r: r["kv_bytes_per_token"], "B"),
    ("index keys per token", lambda r: r["index_bytes_per_token"], "B"),
    ("state at 1M tokens", lambda r: r["state_bytes_at_1m"], "B"),
    ("FLOPs per token at 4k", lambda r: r["flops_per_token_4k"], "FLOP"),
    ("FLOPs per token at 1M", lambda r: r["flops_per_token_1m"], "FLOP"),
]


def show(reports: list[dict[str, Any]], console: Console) -> None:
    """Models side by side; with two or more, the last against the first."""
    table = Table(title=None, box=None, header_style="bold")
    table.add_column("")
    for each in reports:
        table.add_column(each["name"], justify="right")
    if len(reports) > 1:
        table.add_column(f"{reports[0]['name']} -> {reports[-1]['name']}", justify="right", style="cyan")
    for label, value, unit in ROWS:
        values = [value(each) for each in reports]
        cells = [amount(v, unit) for v in values]
        if len(reports) > 1:
            cells.append(f"x {values[-1] / values[0]:.3g}" if values[0] and values[-1] else "")
        table.add_row(label, *cells)
    console.print(table)
    for each in reports:
        parts = ", ".join(f"{part} {amount(number)}" for part, number in each["parts"].items())
        console.print(f"[dim]{each['name']}: {parts}[/dim]", highlight=False)


def show_stored(name: str, stored: dict[str, Any], console: Console) -> None:
    """What a checkpoint takes on disk, part by part."""
    formats = ", ".join(f"{kind} {amount(size, 'B')}" for kind, size in stored["formats"].items())
    parts = ", ".join(f"{part} {amount(each['bytes'], 'B')}" for part, each in stored["parts"].items())
    files = f"{stored['files']} file{'s' * (stored['files'] > 1)}"
    whole = f"{amount(stored['parameters'])} parameters in {amount(stored['bytes'], 'B')}, {files}"
    console.print(f"[bold]{name}[/bold] as stored: {whole} ({formats})", highlight=False, soft_wrap=True)
    console.print(f"  {parts}", highlight=False, soft_wrap=True)


def show_placement(name: str, placed: dict[str, Any], console: Console) -> None:
    """The answer to "does it run here, and how fast at best?"."""

    def size(key: str) -> str:
        return amount(placed[key], "B")

    always = f"{size('resident_always_bytes')} of {size('always_bytes')} that every token needs"
    experts = f"{size('resident_expert_bytes')} of routed experts ({placed['resident_expert_share']:.1%})"
    state = f"{size('context_bytes')} of state for {placed['context']} tokens"
    moved = f"{size('memory_read_per_token')} of memory and {size('disk_read_per_token')} of disk"
    hidden = f"{placed['tokens_per_second_overlapped']:.3g} with all disk reads hidden"
    streams = "all of it is resident" if placed["fits"] else f"{size('streamed_bytes')} of it streams from disk"
    lines = [
        f"[bold]{name}[/bold] as {placed['format']} in {size('memory_bytes')}: {streams}",
        f"  resident: {always}, {state}, {experts}, {size('resident_table_bytes')} of tables",
        f"  a token reads {moved}: at most {placed['tokens_per_second']:.3g} tokens/s ({hidden})",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
