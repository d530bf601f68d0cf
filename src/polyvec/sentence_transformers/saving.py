"""Saving into a folder that holds other things, too."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty folder whose entries replace those of the same names in `path` at the end.

    Whatever else is in `path` stays there.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".polyvec-") as made:
        yield Path(made)
        for each in sorted(Path(made).rglob("*")):
            target = path / each.relative_to(made)
            if each.is_dir():
                target.mkdir(exist_ok=True)
            else:
                each.replace(target)
