"""`fourfold eval [TASK] MODEL`: measure a checkpoint, every figure with its count and its 95 % interval."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli.generate import open_model

OMNI = "omni"  # the task of pictures, clips and sound, which has a table of its own


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK] [MODEL]", help="What to measure (as --task), and a checkpoint's name or folder."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="perplexity, recall, needles, indexer, experts, arithmetic or all (of these); or omni.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many documents, questions, contexts or rows of each; a quick look.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of the needles' contexts, like 1024,4096; by default 1k to 8k as far as they fit.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="int8 measures the model with its matrices kept as bytes.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens that perplexity reads at once.")] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write that object to a file, too.")] = None,
) -> None:
    """Measure a checkpoint on the bundled corpora.

    `fourfold eval omni MODEL` measures what it reads, hears, draws and films.
    """
    task, model = _asked(words or [], task)
    chosen = _lengths(lengths)
    network = open_model(model, weights)

    from fourfold.files import atomic_file

    if task == OMNI:
        from fourfold.evals import omni

        named = results = omni.run(network, limit)
    else:
        from fourfold.evals.suite import Options, run

        results = run(network, task, Options(limit, chosen, window))
        named = {"tasks": results}
    asked = {"model": model, "limit": limit} | ({"weights": weights} if weights else {})
    whole = json.dumps(asked | named, ensure_ascii=False)
    if out is not None:
        with atomic_file(out) as partial:
            partial.write_text(whole + "\n", "utf-8")
    if as_json:
        return typer.echo(whole)
    if task == OMNI:
        return typer.echo("\n".join(_omni(results)))
    for name, result in results.items():
        lines = [f"skipped: {result['skipped']}"] if "skipped" in result else SPOKEN[name](result)
        typer.echo("\n".join([f"## {name}", *lines, ""]))


def _asked(words: list[str], task: str | None) -> tuple[str, str]:
    """Task and model: a task may come first, or by its option; a model that is named like a task is found as ./NAME."""
    from fourfold.errors import ConfigError

    left = list(words)
    if task is None and left and left[0] in (*SPOKEN, "all", OMNI):
        task = left.pop(0)
    if len(left) > 1:
        raise ConfigError(f"{left[0]}: is no task; choose one of {', '.join(SPOKEN)}, all, {OMNI}, and one model after it")
    task = task or "all"
    return task, left[0] if left else ("nano-omni" if task == OMNI else "nano")


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


def _omni(result: dict) -> Iterator[str]:
    yield f"{'':<29} {'value':>7}  {'95 % interval':<18} {'chance':>7} {'baseline':>9}  {'count':>9}"
    for name, row in result.items():
        if row["value"] is None:
            yield f"{name:<29} {'-':>7}  {row['reason']}"
            continue
        numbers = " ".join(
            "-".rjust(n) if row[key] is None else f"{row[key]:>{n}.3f}" for key, n in (("chance", 7), ("baseline", 9))
        )
        interval = _interval(row["interval"], "{:.3f}").strip()
        line = f"{name:<29} {row['value']:>7.3f}  {interval:<18} {numbers}  {row['count']:>9,}  {row['baseline_is']}"
        ceiling = f"; at most {row['ceiling']:.3f} ({row['ceiling_is']})" if "ceiling" in row else ""
        yield line + ceiling


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
