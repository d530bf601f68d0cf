"""What a job will do: which records go into which shard, and how they are embedded.

The plan is a function of the input and the options, so that processes that begin at once write
the same one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyvec.data.parts import Part, parts_of
from polyvec.data.texts import READERS, kind_of
from polyvec.errors import DataError
from polyvec.storage.files import atomic_file, files_below

FORMAT = 1
PLAN, MANIFEST, DONE, LEASES = "plan.json", "manifest.json", "done", "leases"


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of vectors, and the records of one input file that go into it."""

    name: str
    file: str
    part: Part


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole job. how: all that decides a vector, as plain values. sizes: bytes by input file."""

    how: Mapping[str, Any]
    shard_rows: int
    sizes: Mapping[str, int]
    shards: Sequence[Shard]

    @property
    def num_rows(self) -> int:
        return sum(each.part.rows for each in self.shards)

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def input_files(source: Path) -> dict[str, Path]:
    """The files of texts of a folder by their names in it, or one file by its own."""
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder")
    found = {
        path.relative_to(source).as_posix(): path
        for path in files_below(source)
        if kind_of(path) in ("txt", *READERS)
    }
    shown = {
        name: path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
    if not shown:
        raise DataError(f"{source}: contains no files of texts. Known: txt, {', '.join(READERS)}.")
    return shown


def make_plan(source: Path, how: Mapping[str, Any], shard_rows: int) -> Plan:
    """The plan of a job; reads the input once, to count."""
    files = input_files(source)
    shards = [
        Shard(f"{_flat(name)}-{number:05d}.parquet", name, part)
        for name, path in files.items()
        for number, part in enumerate(parts_of(path, shard_rows))
    ]
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return Plan(dict(how), shard_rows, sizes, shards)


def _flat(name: str) -> str:
    """A name without folders that no other input file has: "_" is written twice."""
    return name.replace("_", "__").replace("/", "_-")


def agreed_plan(folder: Path, source: Path, how: Mapping[str, Any], shard_rows: int) -> Plan:
    """The plan of the folder, which is written if there is none.

    Raises DataError for a folder with a job of other input or options, or with other files.
    """
    path = folder / PLAN
    if not path.exists():
        _check_empty(folder)
        plan = make_plan(source, how, shard_rows)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "w") as file:
            json.dump(plan.as_dict(), file, ensure_ascii=False)
        return plan
    plan = read_plan(folder)
    _check_same(folder, plan, source, how, shard_rows)
    return plan


def read_plan(folder: Path) -> Plan:
    """The plan of a folder; DataError if there is none, or it is damaged."""
    path = folder / PLAN
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}, this version reads {FORMAT}")
        shards = [
            Shard(str(each["name"]), str(each["file"]), Part(**each["part"]))
            for each in raw["shards"]
        ]
        for each in shards:  # a plan from elsewhere must not lead out of its folder
            if "/" in each.name or each.name.startswith(".") or not each.name.endswith(".parquet"):
                raise ValueError(f"{each.name!r} is not the name of a shard")
        return Plan(dict(raw["how"]), int(raw["shard_rows"]), dict(raw["sizes"]), shards)
    except FileNotFoundError:
        raise DataError(f"{folder}: contains no {PLAN}, so it is no output of a job") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); begin again in a new folder") from None


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file, not a folder")
    if folder.is_dir():
        # Another process may be writing the plan at this moment.
        others = [each.name for each in folder.iterdir() if not each.name.startswith(f".{PLAN}.")]
        if others and not (folder / PLAN).exists():
            raise DataError(
                f"{folder}: holds other files ({sorted(others)[0]}); give a new or an empty folder"
            )


def _check_same(
    folder: Path, plan: Plan, source: Path, how: Mapping[str, Any], shard_rows: int
) -> None:
    changed = [key for key in {*plan.how, *how} if plan.how.get(key) != how.get(key)]
    if changed:
        key = sorted(changed)[0]
        raise DataError(
            f"{folder}: a job with {key} {plan.how.get(key)!r}, not {how.get(key)!r}; give the "
            "same options, or a new folder"
        )
    if plan.shard_rows != shard_rows:
        raise DataError(
            f"{folder}: a job with {plan.shard_rows} rows a shard, not {shard_rows}; give the "
            "same number, or a new folder"
        )
    sizes = {name: path.stat().st_size for name, path in input_files(source).items()}
    if sizes != plan.sizes:
        name = sorted(
            each for each in {*sizes, *plan.sizes} if sizes.get(each) != plan.sizes.get(each)
        )[0]
        raise DataError(
            f"{folder}: a job of other input: {name} has {sizes.get(name, 0)} bytes, it had "
            f"{plan.sizes.get(name, 0)}; give a new folder"
        )
