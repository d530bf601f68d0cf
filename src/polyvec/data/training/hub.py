"""Rows of data sets of the Hugging Face hub, or of its cache."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from polyvec.data.training.files import Again, is_data_file, records_again
from polyvec.data.training.table import DataTable
from polyvec.errors import DataError, MissingExtraError

ALL = "*"  # as the split: each split is a data set of its own


@dataclass(frozen=True, slots=True)
class HubRows:
    """Rows of a split, in order and by number."""

    name: str
    rows: Iterable[tuple[str, Mapping[str, Any]]]
    again: Again | None


def hub_rows(table: DataTable) -> Iterator[HubRows]:
    """The table's split of a data set of the hub, or each of its splits."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingExtraError("datasets", "train", f"reading {table.hub} from the hub") from None
    assert table.hub
    name = table.name or table.hub
    every = table.split == ALL
    found = _from_hub(
        table,
        f"split {table.split!r}",
        lambda: load_dataset(
            table.hub,
            table.subset,
            split=None if every else table.split,
            revision=table.revision,
        ),
    )
    splits = {f"{name}/{split}": found[split] for split in found} if every else {name: found}
    for split, records in splits.items():
        yield HubRows(split, _numbered(records, split), records_again(records, f"{split} row"))


def hub_files(table: DataTable) -> list[Path]:
    """The files of a data set's repository that match the patterns `files` of the table."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("datasets", "train", f"reading {table.hub} from the hub") from None
    hub = table.hub
    assert hub
    patterns = [table.files] if isinstance(table.files, str) else list(table.files)
    folder = _from_hub(
        table,
        f"files {', '.join(patterns)}",
        lambda: snapshot_download(
            hub, repo_type="dataset", revision=table.revision, allow_patterns=patterns
        ),
    )
    root = Path(folder)
    files = sorted(
        path
        for path in root.rglob("*")
        if is_data_file(path)
        # As the hub matches them: "*" stands for slashes, too.
        and any(fnmatch(path.relative_to(root).as_posix(), pattern) for pattern in patterns)
    )
    if not files:
        raise DataError(f"hub {table.hub}: no data file matches {', '.join(patterns)}")
    return files


def _from_hub(table: DataTable, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    # The libraries raise their own errors and those of the connection.
    except Exception as error:  # noqa: BLE001
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"hub {table.hub}: could not load the data set's {what} ({reason}). "
            "Check the id and the connection, or download it and name its files with path."
        ) from None


def _numbered(records: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((f"{name} row {number}", row) for number, row in enumerate(records))
