"""`fourfold eval MODEL`: measure a checkpoint, every figure with its count and its 95 % interval."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli.generate import open_model


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")] = "nano",
    task: Annotated[str, typer.Option(help="perplexity, recall, needles, indexer, experts, arithmetic or all.")] = "all",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many documents, questions, contexts or rows of each; a quick look.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of the needles' contexts, like 1024,4096; by default 1k to 8k as far as they fit.")
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens that perplexity reads at once.")] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write that object to a file, too.")] = None,
) -> None:
    """Measure a checkpoint on the bundled corpora."""
    chosen = _lengths(lengths)
    network = open_model(model)

    from fourfold.evals.suite import Options, run
    from fourfold.files import atomic_file

    results = run(network, task, Options(limit, chosen, window))
    whole = json.dumps({"model": model, "limit": limit, "tasks": results}, ensure_ascii=False)
    if out is not None:
        with atomic_file(out) as partial:
            partial.write_text(whole + "\n", "utf-8")
    if as_json:
        return typer.echo(whole)
    for name, result in results.items():
        lines = [f"skipped: {result['skipped']}"] if "skipped" in result else SPOKEN[name](result)
        typer.echo("\n".join([f"## {name}", *lines, ""]))


def _lengths(given: str | None) -> list[int] | None:
    from fourfold.errors import ConfigError

    if given is None:
        return None
    if not all(part.strip().isdigit() for part in given.split(",")):
        raise ConfigError(f"--lengths: {given!r} is not a list of whole numbers; write them like 1024,4096")
    return [int(part) for part in given.split(",")]


def _perplexity(result: dict) -> Iterator[str]:
    yield f"{'source':<14} {'documents':>9} {'bytes':>11} {'nats/token':>10}  bits/byte"
    for name, row in {**result["sources"], "total": result["total"]}.items():
        interval = _interval(row["interval"], "{:.3f}")
        counts = f"{row['documents']:>9,} {row['bytes']:>11,} {row['nats_per_token']:>10.4f}"
        yield f"{name:<14} {counts}  {row['bits_per_byte']:.4f}{interval}"


def _recall(result: dict) -> Iterator[str]:
    yield f"{'':<34} {'asked':>6}  {'stated':<22} {'exact':<22} majority answer"
    for read in ("read", "never_read"):
        yield from _judged(read.replace("_", " "), result[read])
        if "without_engram" in result:
            yield from _judged(f"{read.replace('_', ' ')}, without Engram", {"total": result["without_engram"][read]["total"]})


def _judged(name: str, group: dict) -> Iterator[str]:
    rows = {name: group["total"]} | {f"  {relation}": row for relation, row in group.get("relations", {}).items()}
    for label, row in rows.items():
        cells = " ".join(f"{_share(row[judge]):<22}" for judge in ("stated", "exact", "majority"))
        yield f"{label:<34} {row['exact']['total']:>6}  {cells}".rstrip()


def _needles(result: dict) -> Iterator[str]:
    yield f"{'length':>6} {'needles':>7} {'selection':<9} {'asked':>6}  right"
    for row in result["results"]:
        yield f"{row['length']:>6} {row['needles']:>7} {row['selection']:<9} {row['total']:>6}  {_share(row)}"


def _indexer(result: dict) -> Iterator[str]:
    yield f"{result['topk']} keys of up to {result['length']}, {result['rows']} rows; share of attention mass captured"
    names = [name for name in result["total"] if name != "zero_scores"]
    yield " ".join([f"{'layer':<6}", *(f"{name:>10}" for name in names), "zero scores"])
    for label, row in {**{str(row["layer"]): row for row in result["layers"]}, "all": result["total"]}.items():
        yield " ".join([f"{label:<6}", *(f"{row[name]:>10.4f}" for name in names), f"{row['zero_scores']:>11.4f}"])
    gap = result["sparse_minus_dense"]
    yield f"sparse minus dense loss: {gap['difference']:+.5f} nats per token{_interval(gap['interval'], '{:+.5f}')}"


def _experts(result: dict) -> Iterator[str]:
    yield f"largest load of an expert over its layer's mean, {result['batches']} batches of {result['rows']} x {result['length']}"
    yield f"{'layer':<6} {'in all':>7} {'mean batch':>11} {'worst batch':>12}"
    for row in [*result["layers"], {"layer": "worst", **result["total"]}]:
        yield f"{row['layer']:<6} {row['all']:>7.2f} {row['mean']:>11.2f} {row['worst']:>12.2f}"


def _arithmetic(result: dict) -> Iterator[str]:
    for name, row in {**result["kinds"], "total": result["total"]}.items():
        yield f"{name:<24} {row['total']:>6}  {_share(row)}"


def _share(row: dict) -> str:
    if row["share"] is None:
        return "-"
    return f"{row['share']:.1%}{_interval(row['interval'], '{:.1%}')}"


def _interval(edges: list[float] | None, form: str) -> str:
    return "" if edges is None else f" [{form.format(edges[0])}, {form.format(edges[1])}]"


SPOKEN: dict[str, Callable[[dict], Iterator[str]]] = {
    "perplexity": _perplexity,
    "recall": _recall,
    "needles": _needles,
    "indexer": _indexer,
    "experts": _experts,
    "arithmetic": _arithmetic,
}
