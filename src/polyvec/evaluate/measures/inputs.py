"""Checks of what a measure is given: finite numbers, equal lengths, valid options."""

import importlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from polyvec.errors import DataError, MissingExtraError, SettingsError, ShapeError

PACKAGES = {"ir_measures": "ir-measures", "rouge_score": "rouge-score", "sklearn": "scikit-learn"}
BLOCK = 4096  # rows of a matrix checked at a time, to bound the memory of the check

Numbers = Sequence[float] | np.ndarray
Labels = Sequence[Hashable] | np.ndarray


def extra(module: str, purpose: str) -> Any:
    """A module of the extra `evaluate`; MissingExtraError, with the pip command, without it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise MissingExtraError(PACKAGES.get(package, package), "evaluate", purpose) from None


def paired(what: str, predicted: Any, gold: Any, *, of: str) -> None:
    """Raises ShapeError for different lengths, DataError if they are empty or a single string."""
    for name, values in (("predicted", predicted), ("gold", gold)):
        if isinstance(values, str):  # also a sequence, of characters: never what was meant
            raise DataError(f"{what}: {name} is a string, expected a list of {of}")
    if len(predicted) != len(gold):
        raise ShapeError(
            f"{what}: {len(predicted)} predicted {of}, {len(gold)} gold; give one for each item"
        )
    if not len(gold):
        raise DataError(f"{what}: no {of}, expected at least one")


def numbers(what: str, values: Numbers) -> np.ndarray:
    """Finite numbers as float64, [N]; N may be 0."""
    found = _array(what, values, float)
    if found.ndim != 1:
        raise ShapeError(f"{what}: expected one number per item, got shape {found.shape}")
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        raise DataError(f"{what} hold NaN or infinity: {found[wrong[0]]} at index {wrong[0]}")
    return found


def matrix(what: str, values: Any, *, at_least: int = 2) -> np.ndarray:
    """Finite vectors, [N, E], with N at least `at_least`; float64 stays, others become float32."""
    found = _array(what, values)
    if found.dtype != np.float64:
        found = _array(what, found, np.float32)
    if found.ndim != 2 or not found.shape[1]:
        raise ShapeError(f"{what}: expected vectors [N, E], got shape {found.shape}")
    if len(found) < at_least:
        raise DataError(f"{what}: expected at least {at_least} vectors, got {len(found)}")
    for start in range(0, len(found), BLOCK):
        wrong = np.flatnonzero(~np.isfinite(found[start : start + BLOCK]).all(axis=1))
        if len(wrong):
            raise DataError(f"{what}: vector {start + wrong[0]} holds NaN or infinity")
    return found


def unit(what: str, values_NE: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1, [N, E]; DataError for a zero vector."""
    squares_N = np.einsum("ne,ne->n", values_NE, values_NE, dtype=np.float64)
    norms_N = np.sqrt(squares_N).astype(values_NE.dtype)
    if not norms_N.all():
        raise DataError(f"{what}: vector {int(norms_N.argmin())} is zero; leave out its text")
    unit_NE: np.ndarray = values_NE / norms_N[:, None]
    return unit_NE


def vector_pairs(what: str, a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices of paired rows, both [N, E]."""
    a_NE, b_NE = matrix(what, a, at_least=1), matrix(what, b, at_least=1)
    if a_NE.shape != b_NE.shape:
        raise ShapeError(f"{what}: shapes {a_NE.shape} and {b_NE.shape}, expected equal shapes")
    return a_NE, b_NE


def classes(what: str, labels: Labels) -> list[Hashable]:
    """Labels of any hashable type; DataError for NaN, which equals no other label."""
    # tolist, because elements of a tensor are hashed by identity: equal labels would differ.
    found = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for i, label in enumerate(found):
        if not isinstance(label, Hashable):
            raise ShapeError(f"{what}: expected one label per item, got {label!r} at index {i}")
        if label != label:
            raise DataError(f"{what}: label {i} is NaN; leave out the item")
    return found


def _array(what: str, values: Any, dtype: Any = None) -> np.ndarray:
    try:
        return np.asarray(values, dtype)
    except (TypeError, ValueError):
        raise ShapeError(f"{what}: expected numbers, in rows of equal length") from None


def whole(what: str, value: Any, *, at_least: int = 1) -> int:
    """The value as an int; SettingsError unless it is an integer of at least `at_least`."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not good or value < at_least:
        raise SettingsError(f"{what} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def positive(what: str, value: float) -> float:
    """The value as a float; SettingsError unless it is finite and above 0."""
    if not np.isfinite(value) or value <= 0:
        raise SettingsError(f"{what} must be above 0 and finite, got {value!r}")
    return float(value)
