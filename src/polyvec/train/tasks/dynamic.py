"""Hard negatives that give way to the next of their list when they have become easy.

Conan-embedding (Li et al. 2024, arXiv:2408.15710). R rows of the stage, n negatives of a row that
are used at a time, B rows of a batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.part import wide
from polyvec.errors import DataError, SettingsError
from polyvec.settings import fill
from polyvec.train.compared import Compared
from polyvec.train.exchange import Exchange
from polyvec.train.losses.part import Pairs, own_scores
from polyvec.train.settings import StageSettings

WHERE = "[[stage]] dynamic_negatives"


@dataclasses.dataclass(frozen=True, slots=True)
class DynamicSettings:
    """How many of a row's negatives are used at a time, and when one is replaced.

    every: steps between checks. A negative is easy if its cosine to the query times `ratio` is
    below the first one that was measured, and its absolute value below `ceiling`.
    """

    num_negatives: int = 1
    every: int = 100
    ratio: float = 1.15
    ceiling: float = 0.8


def dynamic_of(table: Mapping[str, Any] | None, stage: StageSettings) -> "DynamicNegatives | None":
    """From the stage's table; SettingsError for values that cannot be."""
    if table is None:
        return None
    found: DynamicSettings = fill(DynamicSettings, dict(table), WHERE)
    for name, least in (("num_negatives", 1), ("every", 1), ("ratio", 0), ("ceiling", 0)):
        if not getattr(found, name) >= least:
            raise SettingsError(f"{WHERE}: {name} is {getattr(found, name)}, expected {least}")
    if stage.mining.get("refresh_epochs"):
        raise SettingsError(f"{WHERE} goes on with one list; leave out refresh_epochs of mining")
    return DynamicNegatives(found)


class DynamicNegatives(nn.Module):
    """Which of each row's negatives are used now; a module, so that checkpoints keep it.

    place_Rn: in the row's list. next_R: the first that was not used yet. first_Rn, last_Rn: the
    first and the last cosine to the query that was measured while it was used; NaN: none yet.
    """

    place_Rn: Tensor
    next_R: Tensor
    first_Rn: Tensor
    last_Rn: Tensor

    def __init__(self, settings: DynamicSettings) -> None:
        super().__init__()
        self.settings = settings
        self.number_of: dict[bytes, int] = {}
        self.lengths: list[int] = []

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Called with all rows of the stage, before the first batch.

        Raises SettingsError for data whose rows have other negatives in each epoch.
        """
        for each in rows.sets if isinstance(rows, TrainingData) else ():
            if each.table.num_negatives is not None:
                raise SettingsError(
                    f"{WHERE}: data set {each.name!r} has num_negatives, which draws others in "
                    "each epoch; leave it out of the data"
                )
        for row in rows:
            if row.teacher_scores:
                raise DataError(
                    f"{row.place or 'row'}: the row has a teacher's scores, and {WHERE} changes "
                    "its negatives"
                )
            if self.number_of.setdefault(_key(row), len(self.lengths)) == len(self.lengths):
                self.lengths.append(len(row.negatives))
        count, used = len(self.lengths), self.settings.num_negatives
        self.register_buffer("place_Rn", torch.arange(used).repeat(count, 1))
        self.register_buffer("next_R", torch.full((count,), used))
        for name in ("first_Rn", "last_Rn"):
            self.register_buffer(name, torch.full((count, used), float("nan")))

    def numbers(self, rows: Sequence[TrainingRow]) -> tuple[int, ...]:
        """The rows' numbers, by which their state is kept."""
        return tuple(self.number_of[_key(row)] for row in rows)

    def of(self, row: TrainingRow) -> tuple[str, ...]:
        """The negatives of a row that are used now."""
        if not hasattr(self, "place_Rn"):
            return row.negatives[: self.settings.num_negatives]
        places = self.place_Rn[self.number_of[_key(row)]].tolist()
        return tuple(row.negatives[place] for place in places if place < len(row.negatives))

    @torch.no_grad()
    def record(self, batch: Compared, numbers: Sequence[int]) -> None:
        """Keep the cosines of a batch's own negatives to their queries."""
        pairs = Pairs.of(batch, ~batch.positive_N)
        if not len(pairs.row_M):
            return
        score_M = wide(own_scores(batch, pairs, "cosine")).float()
        score_BK = pairs.table(score_M, float("nan"), len(numbers)).to(self.last_Rn)
        rows_B = torch.tensor(numbers, device=self.last_Rn.device)
        width = score_BK.shape[1]
        last_BK, first_BK = self.last_Rn[rows_B, :width], self.first_Rn[rows_B, :width]
        self.last_Rn[rows_B, :width] = torch.where(score_BK.isnan(), last_BK, score_BK)
        self.first_Rn[rows_B, :width] = torch.where(first_BK.isnan(), score_BK, first_BK)

    @torch.no_grad()
    def check(self, step: int) -> int:
        """Before a step: every so many of them, replace what has become easy; returns how many.

        A negative stays where its row's list is at its end.
        """
        if not step or step % self.settings.every:
            return 0
        ratio, ceiling = self.settings.ratio, self.settings.ceiling
        easy_Rn = (self.last_Rn * ratio < self.first_Rn) & (self.last_Rn.abs() < ceiling)
        # On GPUs a process may differ from another by a rounding: the first one decides.
        places = Exchange.here().broadcast(easy_Rn.nonzero().tolist())
        changed = 0
        for row, slot in places:
            following = int(self.next_R[row])
            if following >= self.lengths[row]:
                continue
            self.place_Rn[row, slot] = following
            self.next_R[row] = following + 1
            self.first_Rn[row, slot] = self.last_Rn[row, slot] = float("nan")
            changed += 1
        return changed


def _key(row: TrainingRow) -> bytes:
    """What tells rows apart: query, list of negatives, and where they come from.

    Not the positives, of which an epoch may draw some.
    """
    told = repr((row.dataset, row.place, row.query, row.instruction, row.negatives))
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).digest()
