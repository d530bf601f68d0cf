"""The interface of scorers, their table, and how values of tokens become values of units.

To add a scorer: a frozen dataclass with `scores` in a file of scorers/, registered in SCORERS.
T tokens, U units.
"""

import abc
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.units import Span
from polyvec.errors import InputError, SettingsError
from polyvec.registry import Registry

How = Literal["mean", "sum", "max"]
FILES = ("simple", "likelihood", "dense", "classifier", "attention", "judge")


class Scorer(abc.ABC):
    """Says how much each unit of a text matters: the fields of a subclass are its settings."""

    needs_question = False
    needs_answer = False

    @abc.abstractmethod
    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        """float [U], higher for units that matter more, finite."""

    @property
    def tokenizer(self) -> str | None:
        """The name of the model whose tokens it reads, if it has one."""
        return None


# Kinds live in several files; the table is whole after `load_scorers`.
SCORERS: Registry[Callable[..., Scorer]] = Registry("scorer")


def load_scorers() -> Registry[Callable[..., Scorer]]:
    """The table with all kinds in it."""
    for name in FILES:
        importlib.import_module(f"polyvec.compress.text.scorers.{name}")
    return SCORERS


@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """A function of the units' texts and the question, which gives a number for each."""

    function: Callable[[Sequence[str], str | None], Any]

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        found: np.ndarray = self.function(document.pieces(), asked.question)
        return found  # checked by check_scores, as those of all scorers


def as_scorer(given: Any, where: str = "scorer") -> Scorer:
    """A scorer from an object, a function, a kind, or a table with a kind and its settings."""
    if isinstance(given, Scorer):
        return given
    if callable(given):
        return FunctionScorer(given)
    settings: Mapping[str, Any] = {"kind": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or "kind" not in settings:
        raise SettingsError(f"{where} is {given!r}; expected a kind, or a table with a kind")
    own = {key: value for key, value in settings.items() if key != "kind"}
    label = where.removesuffix("scorer").strip(": ")  # the table names its kind itself
    found: Scorer = load_scorers().build(settings["kind"], own, where=label)
    return found


def check_scores(scores: Any, document: Document, scorer: Scorer) -> np.ndarray:
    """float64 [U]; InputError for other shapes and for what is not a finite number."""
    name = type(scorer).__name__
    if hasattr(scores, "detach"):  # a tensor, which may need a gradient and be on a GPU
        scores = scores.detach().cpu()
    try:
        if np.iscomplexobj(scores):
            raise TypeError
        found = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} gave {type(scores).__name__}, expected a number for each unit"
        ) from None
    if found.shape != (len(document.units),):
        raise InputError(
            f"{name} gave an array of shape {found.shape} for {len(document.units)} units"
        )
    if not np.isfinite(found).all():
        raise InputError(f"{name} gave scores that are not finite")
    return found


def per_unit(
    spans: Sequence[Span], values_T: np.ndarray, units: Sequence[Span], how: How = "mean"
) -> np.ndarray:
    """Values of the tokens in each unit, float64 [U]; of a unit within one token, that token's.

    A token belongs to the unit that has its last character, as many begin with a space.

    >>> per_unit([(0, 2), (2, 4), (4, 8)], np.array([1.0, 3.0, 5.0]), [(0, 4), (5, 8)]).tolist()
    [2.0, 5.0]
    """
    if not len(spans):
        return np.zeros(len(units))
    starts_U = np.array([start for start, _ in units], np.int64)
    ends_T = np.array([end for _, end in spans], np.int64)
    place_T = np.searchsorted(starts_U, ends_T - 1, side="right") - 1
    inside = place_T >= 0
    values_T = np.asarray(values_T, np.float64)
    place, values = place_T[inside], values_T[inside]
    counts_U = np.bincount(place, minlength=len(units))
    if how == "max":
        found_U = np.full(len(units), -np.inf)
        np.maximum.at(found_U, place, values)
    else:
        found_U = np.bincount(place, values, minlength=len(units))
        if how == "mean":
            found_U = found_U / np.maximum(counts_U, 1)
    covering = np.minimum(np.searchsorted(ends_T, starts_U, side="right"), len(spans) - 1)
    return np.where(counts_U > 0, found_U, values_T[covering])
