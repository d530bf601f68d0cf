"""Is a folder of vectors whole? Every shard against the manifest."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.bulk.plan import MANIFEST, read_plan
from polyvec.errors import DataError, MissingExtraError
from polyvec.storage.checksums import file_crc32

BLOCK = 65_536  # rows that are looked at at a time


@dataclass(frozen=True, slots=True)
class Verified:
    """What a folder holds, and what is wrong with it, a line each."""

    rows: int
    shards: int
    bytes: int
    dimension: int
    problems: list[str]


def verify(folder: Path) -> Verified:
    """Compare every shard with the manifest: size, checksum, rows, width, finite values, ids.

    Raises DataError for a folder without a manifest.
    """
    manifest = _manifest(folder)
    problems: list[str] = []
    ids: dict[str, list[np.ndarray]] = {}
    width, whole = int(manifest["dimension"]), set[str]()
    for each in manifest["shards"]:
        path = folder / str(each["name"])
        found = list(_wrong(path, each, width, ids.setdefault(path.name, [])))
        problems += found
        if not found:
            whole.add(path.name)
    for name in _with_repeated(ids):
        problems.append(f"{name}: an id occurs twice")
        whole.discard(name)
    rows = sum(int(each["rows"]) for each in manifest["shards"] if each["name"] in whole)
    paths = [folder / str(each["name"]) for each in manifest["shards"]]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    known = {str(each["name"]) for each in manifest["shards"]}
    problems += [
        f"{path.name}: not in the manifest"
        for path in sorted(folder.glob("*.parquet"))
        if path.name not in known
    ]
    return Verified(rows, len(manifest["shards"]), size, width, problems)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    plan = read_plan(folder)
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        names = [each["name"] for each in found["shards"]]
        found["dimension"] = int(found["dimension"])
    except FileNotFoundError:
        raise DataError(
            f"{folder}: has no {MANIFEST}: the job has not ended; run its command again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); run the job's command again") from None
    if names != [each.name for each in plan.shards]:
        raise DataError(f"{path}: names other shards than the plan; run the job's command again")
    return found


def _wrong(path: Path, said: dict[str, Any], width: int, ids: list[np.ndarray]) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "polyvec verify") from None
    if not path.is_file():
        yield f"{path.name}: missing"
        return
    if path.stat().st_size != said["bytes"] or file_crc32(path) != said["crc32"]:
        yield f"{path.name}: its bytes are not those that were written"
        return
    try:
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows != said["rows"]:
            yield f"{path.name}: {file.metadata.num_rows} rows, expected {said['rows']}"
        for batch in file.iter_batches(batch_size=BLOCK):
            yield from _wrong_rows(path.name, batch, width, ids)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        yield f"{path.name}: cannot be read ({next(iter(str(error).splitlines()), 'damaged')})"


def _wrong_rows(name: str, batch: Any, width: int, ids: list[np.ndarray]) -> Iterator[str]:
    vectors = batch.column("embedding")
    found = vectors.type.list_size
    if found != width and len(batch):
        yield f"{name}: {found} dimensions, expected {width}"
    values = vectors.flatten().to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0]) // max(1, found)
        yield f"{name}: the vector of {batch.column('id')[row].as_py()!r} holds NaN or infinity"
    # Hashes, as a billion ids would not fit into memory; two of 64 bits collide once in 10^10 ids.
    ids.append(np.fromiter(map(hash, batch.column("id").to_pylist()), np.int64, len(batch)))


def _with_repeated(ids: Mapping[str, Sequence[np.ndarray]]) -> Iterator[str]:
    """The shards with an id that they have twice, or that a shard before them has."""
    all_parts = [part for parts in ids.values() for part in parts]
    found_N = np.concatenate([np.empty(0, np.int64), *all_parts])
    found_N.sort()
    repeated = found_N[1:][found_N[1:] == found_N[:-1]]
    if not len(repeated):
        return
    seen: set[int] = set()
    for name, parts in ids.items():
        own = [int(each) for part in parts for each in part[np.isin(part, repeated)]]
        if len(set(own)) < len(own) or seen & set(own):
            yield name
        seen |= set(own)
