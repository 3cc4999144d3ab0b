"""`fourfold convert SRC DST`: a checkpoint in another format, tensor by tensor, and where it stopped when it was killed."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="Name or folder of a checkpoint, or a GGUF file.", metavar="SRC")],
    target: Annotated[str, typer.Argument(help="Folder to be made.", metavar="DST")],
    to: Annotated[str, typer.Option(help="fourfold, or hf: the published format that has words for the model.")] = "fourfold",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; by default as stored, and bfloat16 for what is quantised."),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Most bytes of a file, like 2GB.")] = "2GB",
    as_json: Annotated[bool, typer.Option("--json", help="One object that says what was done.")] = False,
) -> None:
    """Write a checkpoint in our format or a published one; a killed conversion goes on where it stopped when it is asked again."""
    from fourfold.data.progress import progress
    from fourfold.formats import convert_checkpoint
    from fourfold.planner.placement import parse_bytes
    from fourfold.planner.report import amount

    def watch(files: Iterable[str], sizes: Mapping[str, int]) -> Iterable[str]:
        return progress(files, f"converting {source}", total=sum(sizes.values()), weigh=sizes.__getitem__)

    done = convert_checkpoint(source, target, to, dtype, parse_bytes(shard_size, "--shard-size"), watch)
    if as_json:
        print(json.dumps(done))
        return
    before = f", {done['taken_over']} of them from before" if done["taken_over"] else ""
    print(f"{done['folder']}: {amount(done['bytes'], 'B')} in {done['shards']} file{'s' * (done['shards'] > 1)}{before}")
