"""Names and JSON files shared by reading and writing."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from polyvec.embed.formats.types import check_types
from polyvec.errors import ModelError

# sentence-transformers' names of our poolings, as legacy flag and as `pooling_mode`.
POOLING_FLAGS = {
    "first": ("pooling_mode_cls_token", "cls"),
    "max": ("pooling_mode_max_tokens", "max"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len": ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "weighted_mean": ("pooling_mode_weightedmean_tokens", "weightedmean"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}
POLYVEC_FILE = "polyvec.json"
CALIBRATION_FILE = "polyvec_calibration.safetensors"
# Pooling functions that sentence-transformers does not have; their names are in config.json.
POOLING_FUNCTIONS = "polyvec.pooling_functions"
# A module of this name says that polyvec.json affects the vectors too (template, attention, ...).
OWN_WAY = "polyvec.own_way"

LFS = b"version https://git-lfs"
SPARSE_MODULES = ("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding")


def module_type(kind: str) -> str:
    """What modules.json calls a module: sentence-transformers' class, or a part of ours.

    sentence-transformers finds no module of either of our two forms, "polyvec.NAME" for a
    registered part and "package.module:NAME", and refuses the folder.
    """
    if kind.startswith("polyvec.") or ":" in kind:
        return kind
    place = "sparse_encoder.models" if kind in SPARSE_MODULES else "models"
    return f"sentence_transformers.{place}.{kind}"


def module_folder(folder: Path, path: str) -> Path:
    """A module's folder; a file of a model may not point out of the model's own folder."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ModelError(f"{folder}/modules.json: path {path!r} points outside the model's folder")
    return folder / path


def read_json(path: Path, default: Any = None) -> Any:
    """The object of a JSON file, or the default if there is none.

    Raises ModelError, naming file and key, for what is not JSON, or a value of another type.
    """
    found = _loaded(path, default)
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected an object {{...}}, got {type(found).__name__}")
    check_types(found, path)
    return found


def listed_modules(folder: Path) -> list[Any]:
    """What modules.json lists, [] without the file; ModelError if it is no list of modules."""
    path = folder / "modules.json"
    found = _loaded(path, [])
    types = {"idx": int, "path": str, "type": str}
    if not isinstance(found, list) or not all(
        isinstance(m, dict) and all(type(m.get(key)) is kind for key, kind in types.items())
        for m in found
    ):
        raise ModelError(f"{path}: expected a list of modules with idx (a number), path and type")
    for module in found:
        try:
            (folder / module["path"]).exists()
        except OSError as error:
            raise ModelError(f"{path}: path {module['path']!r:.80}: {error.strerror}") from None
    return found


def _loaded(path: Path, default: Any) -> Any:
    if not path.is_file():
        if default is not None:
            return default
        raise ModelError(f"{path} is missing")
    check_pointer(path)
    try:
        return json.loads(path.read_text("utf-8"))
    # Also of integers of 5,000 digits, and of 1,000 nested brackets.
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error})") from None


def check_pointer(path: Path) -> None:
    """Raises ModelError for a pointer of git-lfs in the file's place."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ModelError(
                f"{path}: a pointer of git-lfs, not the file itself; run 'git lfs pull' in the "
                "folder, or download the model with huggingface_hub"
            )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
