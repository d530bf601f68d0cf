"""The losses of a stage as one objective: weighted terms, each nested over dimensions."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from polyvec.embed.part import wide
from polyvec.errors import DataError, SettingsError
from polyvec.registry import build, check_settings
from polyvec.settings import checked
from polyvec.train.compared import Compared
from polyvec.train.engine import Terms
from polyvec.train.losses.matryoshka import Matryoshka
from polyvec.train.losses.part import NEEDS, Loss, given, needed, positive_number
from polyvec.train.losses.table import LOSSES
from polyvec.train.settings import LOSS

# Keys of a table in `losses` that are not settings of the loss.
COMMON: Mapping[str, Any] = {
    "weight": float,
    "name": str,
    "datasets": tuple[str, ...],
    "nested": bool,
}


class Term(nn.Module):
    """A loss with its name in reports and its weight.

    datasets: those whose rows it is computed over; none: all.
    nested: it is summed over the dimensions and layers of `matryoshka`.
    needs: the fields of Compared that it reads. reads: the one that it reads if all rows have it.
    """

    def __init__(
        self,
        loss: Callable[[Compared], Tensor],
        name: str,
        weight: float = 1.0,
        datasets: Sequence[str] = (),
        nested: bool = True,
        needs: frozenset[str] = frozenset(),
        reads: str | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss  # a module registers itself, so that its weights are trained
        self.name, self.weight, self.datasets = name, weight, tuple(datasets)
        self.nested, self.needs, self.reads = nested, needs, reads

    @classmethod
    def of(cls, table: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> "Term":
        part, common, own = _parts(table, where)
        kind = table["kind"]
        loss = build(_maker(part), own, facts, where=f"{where} loss {kind!r}")
        return cls(
            loss,
            common.pop("name", kind),
            nested=common.pop("nested", not getattr(part, "once", False)),
            needs=needed(part, _settings(part, own)),
            reads=getattr(part, "reads", None),
            **common,
        )

    def forward(self, batch: Compared, matryoshka: Matryoshka) -> Tensor:
        rows = batch.of_datasets(self.datasets) if self.datasets else batch
        if rows is None:
            # Every batch has the same terms, and a backward pass.
            return wide(batch.query_BE).sum() * 0
        some, rows = rows, rows.complete()
        for field in sorted(self.needs):
            given(rows, field, self.name)
        read = self.reads
        if read and getattr(some, read) is not None and getattr(rows, read) is None:
            # Without it a pair that does not match would count as one that does.
            raise DataError(
                f"loss {self.name!r} reads {NEEDS[read]}, which some rows of the batch have and "
                "others lack. Name the data sets that have it in the loss's datasets"
            )
        value = matryoshka(self.loss, rows) if self.nested else self.loss(rows)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SettingsError(
                f"loss {self.name!r} returned {what}, expected a tensor with one number"
            )
        return self.weight * wide(value.reshape(()))


class Objective(nn.Module):
    """What a stage minimises: terms by name, whose sum is the loss.

    needs: fields of Compared that the task must fill, among those that are None by default.
    """

    def __init__(self, terms: Sequence[Term], matryoshka: Matryoshka | None = None) -> None:
        super().__init__()
        self.terms = nn.ModuleList(term for term in terms if term.weight)
        self.matryoshka = matryoshka or Matryoshka()
        self.needs = frozenset[str]().union(*(term.needs for term in terms if term.weight))
        self.needs |= self.matryoshka.needs

    @classmethod
    def of(
        cls,
        losses: Sequence[Mapping[str, Any]],
        matryoshka: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        *,
        where: str = "[[stage]]",
        loss: str = LOSS,
    ) -> "Objective":
        """From the tables `losses` and `matryoshka` of a stage.

        `facts`: "vector_size", of the embedder's vectors. `loss`: what errors call a table.
        Raises SettingsError.
        """
        facts = facts or {}
        found = [
            Term.of(table, facts, f"{where} {loss.format(place)}")
            for place, table in enumerate(losses)
        ]
        if not any(term.weight for term in found):
            raise SettingsError(f"{where}: no losses are given, or none with a weight")
        names = [term.name for term in found]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f"{where}: two losses are called {name!r}; give one a 'name'")
        nested = Matryoshka.of(matryoshka or {}, facts.get("vector_size"), f"{where} matryoshka")
        return cls(found, nested)

    def forward(self, batch: Compared) -> Terms:
        """Each term, weighted, in float32 or wider; a loss of weight 0 is not computed.

        Raises DataError if the batch lacks what a loss needs.
        """
        for field in sorted(self.matryoshka.needs):
            given(batch, field, "matryoshka")
        with torch.autocast(batch.query_BE.device.type, enabled=False):
            return {
                term.name: term(batch, self.matryoshka)
                for term in map(functools.partial(cast, Term), self.terms)
            }


def check_table(table: Mapping[str, Any], where: str) -> None:
    """Raises SettingsError for a loss or settings that are not known; the model is not asked."""
    part, common, own = _parts(table, where)
    where = f"{where} loss {table['kind']!r}"
    check_settings(_maker(part), own, where=where)
    for name, value in {**common, **own}.items():
        if isinstance(value, float) and (
            math.isnan(value) or (name == "weight" and math.isinf(value))
        ):
            raise SettingsError(f"{where}: {name} is {value}, expected a number")
        if name.endswith("temperature") and isinstance(value, int | float):
            positive_number(where, **{name: value})


def _parts(table: Mapping[str, Any], where: str) -> tuple[Loss, dict[str, Any], dict[str, Any]]:
    """The loss of a table, the settings of every term, and those of the loss."""
    if "kind" not in table:
        raise SettingsError(f"{where}: setting 'kind' is missing")
    kind = table["kind"]
    if isinstance(kind, str) and kind.endswith("Loss") and ":" not in kind:
        raise SettingsError(
            f"{where}: loss {kind!r} is not known; docs/losses.md has polyvec's name of each loss "
            "of sentence-transformers"
        )
    part = LOSSES.find(kind, where=where)
    common = {
        key: checked(table[key], hint, f"{where}: setting {key!r}")
        for key, hint in COMMON.items()
        if key in table
    }
    own = {key: value for key, value in table.items() if key not in COMMON and key != "kind"}
    return part, common, own


def _maker(part: Loss) -> Callable[..., Callable[[Compared], Tensor]]:
    """What takes a loss's settings, and returns what takes a batch."""
    if inspect.isclass(part):
        return cast(Callable[..., Callable[[Compared], Tensor]], part)
    parameters = list(inspect.signature(part).parameters.values())

    @functools.wraps(part)
    def make(**settings: Any) -> Callable[[Compared], Tensor]:
        return functools.partial(part, **settings)

    # The first argument is the batch, and no setting.
    make.__signature__ = inspect.Signature(parameters[1:])  # type: ignore[attr-defined]
    return make


def _settings(part: Loss, own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the defaults of those that are not given."""
    parameters = inspect.signature(part).parameters.values()
    return {each.name: each.default for each in parameters} | dict(own)
