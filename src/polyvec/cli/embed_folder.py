"""`polyvec embed INPUT -o FOLDER/`: shards of vectors, by as many processes as run the command."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.bulk.plan import Plan
    from polyvec.embed.embedder import Embedder

SHARD_ROWS = 50_000


def is_folder(output: str | None) -> bool:
    """Whether the output is a folder of shards: it ends in / or is there."""
    return output is not None and (output.endswith(("/", "\\")) or Path(output).is_dir())


def run(options: argparse.Namespace, embedder: "Embedder", asked: dict[str, Any]) -> None:
    from polyvec.bulk.job import Job
    from polyvec.bulk.plan import agreed_plan
    from polyvec.embed.progress import progress
    from polyvec.interfaces import RunOptions

    source, folder = Path(options.file), Path(options.output)
    columns = {"column": options.column, "id_column": options.id_column}
    rows = options.shard_rows or SHARD_ROWS
    plan = agreed_plan(folder, source, _how(options, embedder, asked, columns), rows)
    how = RunOptions(options.batch_size, show_progress_bar=False, truncate=options.truncate)
    began = time.perf_counter()
    with progress(plan.num_rows, None, name="rows") as advance:
        if options.ray is not None:
            from polyvec.bulk.on_ray import run_on_ray

            made = run_on_ray(
                options.ray, plan, source, folder, embedder, asked, how, columns, advance
            )
        else:
            made = Job(plan, source, folder, embedder, asked, how, columns, advance).run()
    _tell(folder, plan, made, time.perf_counter() - began)


def check(options: argparse.Namespace) -> None:
    """What is wrong with the options, before anything is loaded."""
    from polyvec.embed.schemes import scheme_of

    if options.ray is not None and scheme_of(options.model) is not None:
        raise InputError(
            f"--ray: {options.model} is behind an API and needs no devices; leave it out"
        )
    if options.file in (None, "-"):
        raise InputError(
            f"-o {options.output}: a folder of shards needs a FILE or folder that can be read "
            "again after an interruption, not standard input"
        )
    source, folder = Path(options.file).absolute(), Path(options.output).absolute()
    if source.is_dir() and (folder == source or folder.is_relative_to(source)):
        raise InputError(
            f"{options.output}: in the folder that is read, where shards would be read as texts; "
            "write elsewhere"
        )


def _how(
    options: argparse.Namespace,
    embedder: "Embedder",
    asked: dict[str, Any],
    columns: dict[str, str | None],
) -> dict[str, Any]:
    """All that decides the rows of a shard, as plain values."""
    choice = {key: asked.get(key) for key in ("prompt", "prompt_name", "role")}
    ranges = embedder.calibration
    return {
        "model": common.model_name(options),
        "model_sha256": embedder.fingerprint(),
        "prompt": embedder.prompt_key(**choice)[0] or "",
        "asked": json.dumps({k: v for k, v in choice.items() if v is not None}, sort_keys=True),
        "precision": asked["precision"],
        "normalize": asked["normalize_embeddings"],
        "truncate": options.truncate,
        "dimension": int(embedder.encode([], **asked).shape[1]),
        "ranges": [] if ranges is None else ranges.ranges_2E.tolist(),
        **{key: value or "" for key, value in columns.items()},
    }


def _tell(folder: Path, plan: "Plan", made: int, seconds: float) -> None:
    from polyvec.bulk.plan import MANIFEST

    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    print(
        f"{folder}: {plan.num_rows} x {manifest['dimension']}, {manifest['precision']}, in "
        f"{len(plan.shards)} shards; {made} rows here in {seconds:.0f} s",
        file=sys.stderr,
    )
    if manifest["truncated"]:
        print(
            f"{manifest['truncated']} texts were longer than the model reads and were truncated",
            file=sys.stderr,
        )
    print(f"next: polyvec verify {folder}", file=sys.stderr)
