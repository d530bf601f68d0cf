"""A job on a Ray cluster: an actor a device, each with the model, and a shard a task.

The input and output folders must be seen by every machine. A shard that is done is not done again,
by whichever means it was made.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyvec.bulk.job import Job
from polyvec.bulk.plan import DONE, LEASES, Plan
from polyvec.embed.embedder import Embedder
from polyvec.errors import DataError, MissingExtraError
from polyvec.interfaces import RunOptions

LOCAL = "local"  # in place of an address: a cluster of this machine's processes


class _Worker:
    """Embeds shards by their number; the model is sent once to each actor."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for number in batch["item"]:
            shard = self.job.plan.shards[int(number)]
            done = self.job.done(shard) or self.job.embed(shard)
            rows.append(done.rows)
        return {"item": batch["item"], "rows": rows}


def run_on_ray(
    address: str,
    plan: Plan,
    source: Path,
    folder: Path,
    embedder: Embedder,
    asked: Mapping[str, Any],
    options: RunOptions,
    columns: Mapping[str, str | None],
    advance: Callable[[int], None],
    *,
    num_actors: int | None = None,
) -> int:
    """The rows that the cluster embedded; then this process writes the manifest.

    Raises DataError if the cluster cannot be reached, or gave a shard up.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ImportError:
        raise MissingExtraError("ray", "scale", "--ray") from None
    for name in (DONE, LEASES):
        (folder / name).mkdir(exist_ok=True)
    # Absolute, as workers have other working directories.
    job = Job(plan, source.absolute(), folder.absolute(), embedder, asked, options, columns)
    missing = [n for n, shard in enumerate(plan.shards) if job.done(shard) is None]
    advance(plan.num_rows - sum(plan.shards[n].part.rows for n in missing))
    made = 0
    if missing:
        try:
            if not ray.is_initialized():
                ray.init(address=None if address == LOCAL else address, log_to_driver=False)
        except ConnectionError as error:
            reason = next(iter(str(error).splitlines()), "unreachable")
            raise DataError(f"--ray {address}: no cluster there ({reason})") from None
        gpus = int(ray.cluster_resources().get("GPU", 0))
        size = num_actors or gpus or max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
        size = min(size, len(missing))
        # A block for each shard: few rows end in one block, and one actor would do all.
        shards = ray.data.from_items(missing, override_num_blocks=len(missing))
        worked = shards.map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ActorPoolStrategy(size=size),
            num_gpus=1 if gpus else 0,
        )
        for row in worked.iter_rows():
            made += int(row["rows"])
            advance(int(row["rows"]))
    # What is not there now (an actor that was given up) is done here.
    return made + job.run()
