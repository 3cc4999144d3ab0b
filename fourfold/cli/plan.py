"""`fourfold plan`: what models need, side by side, and what a machine makes of them."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from fourfold.config import ModelConfig


def plan(
    models: Annotated[
        list[str], typer.Argument(help="presets (v3, v4, nano, ...), checkpoint folders or GGUF files", metavar="MODEL...")
    ],
    memory: Annotated[str | None, typer.Option(help="memory to fit in, like 32GB: says what stays and what streams")] = None,
    format: Annotated[str, typer.Option(help="weight format for --memory: bf16, fp8, int8 or int4")] = "int4",
    context: Annotated[
        int | None, typer.Option(help="tokens of context to hold with --memory; by default 8192, or all a model has", min=1)
    ] = None,
    ram_bandwidth: Annotated[str, typer.Option(help="bytes a second of the memory")] = "80GB/s",
    disk_bandwidth: Annotated[str, typer.Option(help="bytes a second of the disk")] = "5GB/s",
    as_json: Annotated[bool, typer.Option("--json", help="one object, or a list for several models")] = False,
) -> None:
    """Parameters, bytes and operations of models, without building them."""
    from rich.console import Console

    from fourfold.errors import FourfoldError
    from fourfold.planner.cost import FORMATS
    from fourfold.planner.count import count
    from fourfold.planner.placement import parse_bytes, place
    from fourfold.planner.report import report, show, show_placement, show_stored
    from fourfold.planner.stored import is_stored, stored

    budget = parse_bytes(memory, "--memory") if memory is not None else None
    speeds = parse_bytes(ram_bandwidth, "--ram-bandwidth"), parse_bytes(disk_bandwidth, "--disk-bandwidth")
    if format not in FORMATS:
        raise FourfoldError(f"--format: {format!r} is not known; choose one of {', '.join(FORMATS)}")
    reports = []
    for name in models:
        config, path = find_config(name)
        longest = config.max_position_embeddings
        if context is not None and context > longest:
            raise FourfoldError(f"--context: {context} is more than the {longest} tokens of {name}; give a shorter one")
        counts = count(config)
        reports.append(report(name, config, counts))
        if path is not None and is_stored(path):
            reports[-1]["stored"] = stored(path)
        if budget is not None:
            held = context or min(8192, longest)
            reports[-1]["placement"] = asdict(place(config, counts, budget, format, *speeds, held))
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2))
        return
    console = Console()
    show(reports, console)
    for each in reports:
        if "stored" in each:
            show_stored(each["name"], each["stored"], console)
        if "placement" in each:
            show_placement(each["name"], each["placement"], console)


def find_config(name: str) -> "tuple[ModelConfig, Path | None]":
    """The config of a preset, or of a checkpoint and where it lies."""
    from fourfold.formats import locate, open_config
    from fourfold.paths import find
    from fourfold.presets import PRESETS, preset

    known = name not in PRESETS and (name.endswith(".gguf") or find("models", name) is not None)
    return (open_config(name), locate(name)) if known else (preset(name), None)
