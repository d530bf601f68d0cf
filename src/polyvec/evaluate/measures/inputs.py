"""What a measure accepts: finite numbers, in pairs, and packages that are installed."""

import importlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from polyvec.errors import DataError, MissingExtraError, SettingsError, ShapeError

PACKAGES = {"ir_measures": "ir-measures", "rouge_score": "rouge-score", "sklearn": "scikit-learn"}
BLOCK = 4096  # rows of a matrix read at a time

Numbers = Sequence[float] | np.ndarray
Labels = Sequence[Hashable] | np.ndarray


def extra(module: str, purpose: str) -> Any:
    """The module, imported when a measure needs it; MissingExtraError names its pip command."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise MissingExtraError(PACKAGES.get(package, package), "evaluate", purpose) from None


def paired(what: str, predicted: Any, gold: Any, *, of: str) -> None:
    """Raises ShapeError if the two are not of one length, DataError if they are empty or a string.

    A string is a sequence, too: of its characters, which is never what was meant.
    """
    for name, values in (("predicted", predicted), ("gold", gold)):
        if isinstance(values, str):
            raise DataError(f"{what}: {name} is one string; a list of {of} belongs there")
    if len(predicted) != len(gold):
        raise ShapeError(f"{what}: {len(predicted)} predicted {of}, {len(gold)} gold")
    if not len(gold):
        raise DataError(f"{what}: there are no {of}")


def numbers(what: str, values: Numbers) -> np.ndarray:
    """Finite numbers as float64, [N]; N may be 0."""
    found = _array(what, values, float)
    if found.ndim != 1:
        raise ShapeError(f"{what}: one number an item belongs there, not shape {found.shape}")
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        raise DataError(f"{what} hold NaN or infinity: {found[wrong[0]]} at {wrong[0]}")
    return found


def matrix(what: str, values: Any, *, at_least: int = 2) -> np.ndarray:
    """Finite vectors, [N, E], with N at least `at_least`; float64 stays, all else is float32."""
    found = _array(what, values)
    if found.dtype != np.float64:
        found = _array(what, found, np.float32)
    if found.ndim != 2 or not found.shape[1]:
        raise ShapeError(f"{what}: vectors belong there, [N, E], not shape {found.shape}")
    if len(found) < at_least:
        raise DataError(f"{what}: {len(found)} vectors came, at least {at_least} are needed")
    for start in range(0, len(found), BLOCK):
        wrong = np.flatnonzero(~np.isfinite(found[start : start + BLOCK]).all(axis=1))
        if len(wrong):
            raise DataError(f"{what}: vector {start + wrong[0]} holds NaN or infinity")
    return found


def unit(what: str, values_NE: np.ndarray) -> np.ndarray:
    """The vectors at length 1, [N, E]; DataError for one of length 0, which has no direction."""
    squares_N = np.einsum("ne,ne->n", values_NE, values_NE, dtype=np.float64)
    norms_N = np.sqrt(squares_N).astype(values_NE.dtype)
    if not norms_N.all():
        raise DataError(f"{what}: vector {int(norms_N.argmin())} is zero, it has no direction")
    return values_NE / norms_N[:, None]


def vector_pairs(what: str, a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices whose rows belong together, both [N, E]."""
    a_NE, b_NE = matrix(what, a, at_least=1), matrix(what, b, at_least=1)
    if a_NE.shape != b_NE.shape:
        raise ShapeError(f"{what}: vectors of shapes {a_NE.shape} and {b_NE.shape} are not paired")
    return a_NE, b_NE


def classes(what: str, labels: Labels) -> list[Hashable]:
    """Labels of any hashable kind; DataError for NaN, which is no class."""
    # Two elements of a tensor are two classes, even where they are equal numbers.
    found = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for i, label in enumerate(found):
        if not isinstance(label, Hashable):
            raise ShapeError(f"{what}: one label an item belongs there, {label!r} stands at {i}")
        if label != label:
            raise DataError(f"{what}: label {i} is NaN")
    return found


def _array(what: str, values: Any, dtype: Any = None) -> np.ndarray:
    try:
        return np.asarray(values, dtype)
    except (TypeError, ValueError):
        raise ShapeError(f"{what}: numbers belong there, in rows of one length") from None


def whole(what: str, value: Any, *, at_least: int = 1) -> int:
    """A whole number of at least `at_least`, or SettingsError."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not good or value < at_least:
        raise SettingsError(f"{what} must be a whole number of at least {at_least}, not {value!r}")
    return int(value)


def positive(what: str, value: float) -> float:
    """A finite number above 0, or SettingsError."""
    if not np.isfinite(value) or value <= 0:
        raise SettingsError(f"{what} must be above 0 and finite, not {value!r}")
    return float(value)
