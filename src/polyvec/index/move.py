"""An index moved to another place, of any engine: resumed, counted and compared.

N texts, K found, Z numbers that are not zero.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyvec.embed.progress import progress
from polyvec.errors import IndexStoreError, InputError
from polyvec.index.adding import picked
from polyvec.index.engines import engine_of
from polyvec.index.engines.interface import Description, Engine, Rows
from polyvec.index.engines.places import shown
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors

BATCH = 512
SAMPLE = 20  # rows whose vectors are searched in both places
TOP_K = 10
# Two places of an index have to agree on these; names of the model and fields may differ.
SAME = ("model_sha256", "similarity", "dimensions", "prompt", "asked", "chunking")


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: texts in all, those that were sent now, those that were there.

    agreement: the share of the nearest that a sample of searches finds in both places.
    """

    num_texts: int
    num_sent: int
    num_there: int
    num_searched: int
    agreement: float


def move(
    source: str | Path,
    target: str | Path,
    *,
    batch_size: int = BATCH,
    show_progress_bar: bool | None = None,
) -> Moved:
    """Copy the index at `source` to `target`, with its vectors; the source stays as it is.

    What the target has is not sent again, so that an interrupted move goes on. At the end every
    text, its metadata and its vectors are read from the target and compared, within the
    precision in which it stores numbers, and the nearest of a sample are searched in both.
    Raises IndexStoreError if the target holds another index or other texts, or if anything
    differs; InputError if it cannot store these vectors.
    """
    if str(source) == str(target):
        raise InputError(f"{shown(str(source))}: source and target are one place")
    origin = engine_of(source).open(str(source))
    try:
        copy = _target(str(target), origin.description)
        try:
            return _moved(origin, copy, shown(str(target)), batch_size, show_progress_bar)
        finally:
            copy.close()
    finally:
        origin.close()


def _target(where: str, made: Description) -> Engine:
    """The collection to fill: the one that an earlier move made, or a new one."""
    kind = engine_of(where)
    missing = set(made.dimensions) - kind.forms
    if missing:
        raise InputError(
            f"{shown(where)}: {kind.name} stores no {' and '.join(sorted(missing))} vectors"
        )
    if not kind.exists(where):
        return kind.create(where, made)
    engine = kind.open(where)
    old = engine.description
    different = [name for name in SAME if getattr(old, name) != getattr(made, name)]
    if different:
        engine.close()
        raise IndexStoreError(
            f"{shown(where)}: holds another index, of another {different[0]} "
            f"({getattr(old, different[0])!r:.60}, not {getattr(made, different[0])!r:.60}); "
            "give another name"
        )
    if old != made:
        engine.describe(made)
    return engine


def _moved(origin: Engine, copy: Engine, where: str, batch_size: int, bar: bool | None) -> Moved:
    num_texts = origin.count()
    _refuse_others(origin, copy, where)
    sent = 0
    with copy.writing(), progress(num_texts, bar, name="moving") as advance:
        for rows in origin.scan(batch_size=batch_size):
            there = _equal(rows, copy)
            new = [row for row, each in enumerate(rows.ids) if each not in there]
            if new:
                copy.upsert(_part(rows, new))
            sent += len(new)
            advance(len(rows))
    copy.optimize()
    _compare(origin, copy, where, batch_size, bar)
    sample = next(origin.scan(batch_size=SAMPLE), None)
    searched = 0 if sample is None else len(sample)
    agreement = 1.0 if sample is None else _agreement(origin, copy, sample)
    return Moved(num_texts, sent, num_texts - sent, searched, agreement)


def _refuse_others(origin: Engine, copy: Engine, where: str) -> None:
    """Raises IndexStoreError for a text of the target that the source does not have."""
    for rows in copy.scan(vectors=False):
        known = set(origin.get(rows.ids).ids)
        other = next((each for each in rows.ids if each not in known), None)
        if other is not None:
            raise IndexStoreError(
                f"{where}: holds texts that the source does not have (first: {other!r}); give "
                "another name, or delete them"
            )


def _compare(origin: Engine, copy: Engine, where: str, batch_size: int, bar: bool | None) -> None:
    """Raises IndexStoreError for a text that is missing or differs in the target."""
    num_texts = 0
    with progress(origin.count(), bar, name="comparing") as advance:
        for rows in origin.scan(batch_size=batch_size):
            there = _equal(rows, copy)
            wrong = next((each for each in rows.ids if each not in there), None)
            if wrong is not None:
                raise IndexStoreError(
                    f"{where}: text {wrong!r} is missing there or differs from the source; did "
                    "another process write? Move again"
                )
            num_texts += len(rows)
            advance(len(rows))
    found = copy.count()
    if found != num_texts:
        raise IndexStoreError(
            f"{where}: {found} texts, the source has {num_texts}; did another process write? "
            "Move again"
        )


def _agreement(origin: Engine, copy: Engine, sample: Rows) -> float:
    """The share of the nearest of these rows' vectors that both places find."""
    shares = []
    for queries in sample.vectors.values():
        pairs = zip(origin.near(queries, TOP_K, exact=True), copy.near(queries, TOP_K), strict=True)
        for wanted, found in pairs:
            if not wanted:
                continue
            # Of equal scores either may come first, and be the last that is found.
            least = wanted[-1].score - 10 * copy.precision * max(1.0, abs(wanted[-1].score))
            ids = {each.id for each in wanted}
            right = sum(each.id in ids or each.score >= least for each in found)
            shares.append(min(1.0, right / len(wanted)))
    return float(np.mean(shares)) if shares else 1.0


# ---- equal rows ---------------------------------------------------------------------------------


def _equal(rows: Rows, copy: Engine) -> set[str]:
    """The ids of the rows that are in the other place as they are here."""
    stored = copy.get(rows.ids, vectors=True)
    place_of = {each: row for row, each in enumerate(rows.ids)}
    places = [place_of[each] for each in stored.ids]
    if not places:
        return set()
    same = np.array(
        [
            rows.texts[here] == stored.texts[row]
            and dict(rows.metadata[here]) == dict(stored.metadata[row])
            for row, here in enumerate(places)
        ]
    )
    for form, vectors in rows.vectors.items():
        same &= _close(picked(vectors, places), stored.vectors[form], copy.precision)
    return {each for each, equal in zip(stored.ids, same, strict=True) if equal}


def _close(a: Vectors, b: Vectors, precision: float) -> np.ndarray:
    """Whether each vector is the other one, up to rounding, [N]."""
    same_N = np.zeros(len(a), bool)
    for row, (one, other) in enumerate(zip(_numbers(a), _numbers(b), strict=True)):
        (keys, values), (other_keys, others) = one, other
        if keys.shape == other_keys.shape and (keys == other_keys).all():
            limit = precision * max(1e-30, float(np.abs(values).max(initial=0)))
            same_N[row] = np.abs(values - others).max(initial=0) <= limit
    return same_N


def _numbers(vectors: Vectors) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each text what has to be equal, dimensions and numbers of tokens, and the numbers."""
    match vectors:
        case DenseVectors(values_NE):
            for row in values_NE:
                yield np.array(row.shape), row
        case MultiVectors():
            for place in range(len(vectors)):
                yield np.array(vectors[place].shape), vectors[place]
        case SparseVectors(indptr, indices_Z, values_Z):
            for start, stop in itertools.pairwise(indptr):
                keys, values = indices_Z[start:stop], values_Z[start:stop]
                kept = np.flatnonzero(values)  # not every engine stores zeros
                kept = kept[np.argsort(keys[kept], kind="stable")]
                yield keys[kept], values[kept]


def _part(rows: Rows, places: Sequence[int]) -> Rows:
    return Rows(
        [rows.ids[row] for row in places],
        [rows.texts[row] for row in places],
        [rows.metadata[row] for row in places],
        {form: picked(each, places) for form, each in rows.vectors.items()},
    )
