"""Checksums of a model folder's files: written by save_pretrained, compared at every load.

Folders of other programs have none: damage of their weights is seen only where it touches the
header of a safetensors file, or its length.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from polyvec.embed.formats.schema import (
    CALIBRATION_FILE,
    POLYVEC_FILE,
    read_json,
    write_json,
)
from polyvec.errors import ChangedFileWarning, ModelError
from polyvec.storage.checksums import file_crc32

FILE = "polyvec_checksums.json"
WEIGHTS = (".safetensors", ".bin")
OWN = (POLYVEC_FILE, CALIBRATION_FILE, FILE)
READ = (*WEIGHTS, ".json", ".txt", ".model")  # not the card, and no chat template


def write_checksums(folder: Path, files: Iterable[Path] | None = None) -> None:
    """Write the checksums of a folder's files, by default of all that are read at a load."""
    if files is None:
        files = [
            each for each in sorted(folder.rglob("*")) if each.suffix in READ and each.is_file()
        ]
    found = {path.relative_to(folder).as_posix(): file_crc32(path) for path in files}
    write_json(folder / FILE, {"crc32": found})


def stored_checksums(folder: Path) -> dict[str, str]:
    """The checksums that a folder holds, by file; {} if none."""
    path = folder / FILE
    found = read_json(path, {"crc32": {}}).get("crc32")
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ModelError(f"{path}: crc32 is damaged, expected checksums by file; {_REMEDY}")
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelError(f"{path}: file {name!r} is outside the folder; {_REMEDY}")
    return found


def replaced(folder: Path) -> bool:
    """Whether sentence-transformers saved a model over one of polyvec's.

    It leaves our files in place, which are of the model before. The versions in its settings tell:
    ours names polyvec.
    """
    stored = read_json(folder / "config_sentence_transformers.json", {}).get("__version__")
    return (
        isinstance(stored, dict) and "sentence_transformers" in stored and "polyvec" not in stored
    )


def own_settings(folder: Path, root: Path | None = None) -> dict[str, Any]:
    """polyvec.json of a folder inside the model's `root`; {} without it, or of a model before."""
    return {} if replaced(root or folder) else dict(read_json(folder / POLYVEC_FILE, {}))


def check_files(folder: Path) -> None:
    """Compares a folder's files with its checksums, if it has any.

    Raises ModelError for weights that are not those that were saved; warns of other files, which
    people edit, and of a folder into which sentence-transformers has saved since.
    """
    if replaced(folder):
        left = [name for name in OWN if (folder / name).is_file()]
        if left:
            warnings.warn(
                f"{folder}: sentence-transformers has saved a model over polyvec's. That one is "
                f"loaded; {', '.join(left)} of the model before not read, and may be deleted",
                ChangedFileWarning,
                stacklevel=4,
            )
        return
    if not (folder / FILE).is_file():
        return
    changed = [
        name
        for name, expected in stored_checksums(folder).items()
        if not (folder / name).is_file() or file_crc32(folder / name) != expected
    ]
    for name in changed:
        if name.endswith(WEIGHTS):
            state = "not" if (folder / name).is_file() else "missing, and was among"
            raise ModelError(
                f"{folder / name}: {state} what save_pretrained wrote (by {FILE}): damaged, "
                f"or written by another program; copy the model again, or {_REMEDY}"
            )
    if changed:
        warnings.warn(
            f"{folder}: not as save_pretrained wrote them (by {FILE}): {', '.join(changed)}; "
            f"damaged, or edited. If you edited them, {_REMEDY}",
            ChangedFileWarning,
            stacklevel=4,
        )


_REMEDY = f"delete {FILE}"
