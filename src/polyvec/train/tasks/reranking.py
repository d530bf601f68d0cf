"""What the stages that train a reranker share: pairs of rows, and the pieces of a batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, SettingsError
from polyvec.train.engine import Piece
from polyvec.train.predicting import split
from polyvec.train.settings import StageSettings
from polyvec.train.task import Work

FOLDER = "reranker"  # of the run, where the trained one is


def check_reranker_stage(stage: StageSettings, folder: str, *, instead: str = "set lora") -> None:
    """Raises SettingsError for a setting that only an embedder has, or a folder elsewhere."""
    for name in ("losses", "adapter", "matryoshka", "dropout", "attention_dropout"):
        if getattr(stage, name):
            hint = f"; {instead}" if name == "adapter" and instead else ""
            raise SettingsError(
                f"{stage.where}: {name} is of stages that train the embedder; this one trains a "
                f"reranker{hint}"
            )
    if Path(folder).name != folder or folder in ("model", "stages", ".", ".."):
        raise SettingsError(f"{stage.where}: folder {folder!r} is no name of a folder in the run")


def pairs_of(row: TrainingRow) -> list[tuple[str, bool]]:
    """The documents of a row, and whether each answers it."""
    if not row.matches:
        raise DataError(
            f"{row.place or 'row'}: the pair has a score or a class, so whether it matches is not "
            "known; make matches of it with min_score"
        )
    found = [(text, True) for text in row.positives] + [(text, False) for text in row.negatives]
    if not found:
        raise DataError(f"{row.place or 'row'}: no document to say true or false of")
    return found


def work_of_pairs(
    job: str,
    texts: Sequence[Any],
    sizes: Sequence[int],
    facts: Any,
    budget: int,
    payload: Callable[[Sequence[Any]], Any],
) -> Work:
    """The work of a share's pairs, `texts` as they are read; `payload` makes a piece of some.

    sizes: the pairs of each process's share; budget: tokens of a piece, padding included.
    """
    lengths = [len(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: -lengths[place])
    pieces, num_computed = [], 0
    for start, stop in split([lengths[place] for place in order], budget, padded=True):
        group = tuple(texts[place] for place in order[start:stop])
        pieces.append(Piece(job, payload(group), len(group)))
        num_computed += len(group) * len(group[0])
    return Work(
        tuple(pieces),
        {job: torch.tensor(order)},
        {job: tuple(sizes)},
        facts,
        sum(lengths),
        num_computed,
        num_texts=len(texts),
        num_cut=sum(text.truncated for text in texts),
    )
