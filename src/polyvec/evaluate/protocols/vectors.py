"""Checked vectors of texts and similarities of pairs: the first steps of every protocol.

N texts, E vector dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import DataError, ModelError, ShapeError
from polyvec.evaluate.outcome import Encoder
from polyvec.index.exact import top_k

SHOWN = 40  # characters of a text that an error shows


def encode(
    encoder: Encoder,
    texts: Sequence[str],
    task: str,
    *,
    role: str | None = None,
    instruction: str | None = None,
    name: Callable[[int], str] = "text {}".format,
) -> np.ndarray:
    """Vectors of the texts, float32 [N, E].

    `name` is the name of a row's text in errors. Raises DataError if there are no texts,
    ModelError naming task and text for a vector with NaN or infinity, ShapeError if the number
    of vectors is not that of the texts.
    """
    if not len(texts):
        raise DataError(f"{task}: no texts")
    found = encoder.encode(texts, role=role, instruction=instruction)
    vectors_NE = np.asarray(found, np.float32)
    if vectors_NE.ndim != 2 or len(vectors_NE) != len(texts):
        raise ShapeError(f"{task}: vectors of shape {vectors_NE.shape} for {len(texts)} texts")
    wrong = np.flatnonzero(~np.isfinite(vectors_NE).all(axis=1))
    if len(wrong):
        row = int(wrong[0])
        start = texts[row][:SHOWN] + ("..." if len(texts[row]) > SHOWN else "")
        raise ModelError(f"{task}: the vector of {name(row)} ({start!r}) contains NaN or infinity")
    return vectors_NE


def encode_instructed(
    encoder: Encoder,
    texts: Sequence[str],
    instructions: Sequence[str],
    task: str,
    *,
    role: str | None = None,
    name: Callable[[int], str] = "text {}".format,
    joined: bool = False,
) -> np.ndarray:
    """Vectors of texts with an instruction each, float32 [N, E]: one call for each instruction.

    With `joined` the instruction is appended to the text, as in MTEB: one call in total.
    """
    equal_lengths(task, texts=texts, instructions=instructions)
    if joined:
        pairs = zip(texts, instructions, strict=True)
        return encode(encoder, [f"{a} {b}" for a, b in pairs], task, role=role, name=name)
    groups: dict[str, list[int]] = {}
    for row, instruction in enumerate(instructions):
        groups.setdefault(instruction, []).append(row)
    found: list[np.ndarray] = []
    for instruction, rows in groups.items():
        part = [texts[row] for row in rows]
        names = [name(row) for row in rows].__getitem__
        found.append(encode(encoder, part, task, role=role, instruction=instruction, name=names))
    order = [row for rows in groups.values() for row in rows]
    return np.concatenate(found)[np.argsort(order)]


def encode_pairs(
    encoder: Encoder, first: Sequence[str], second: Sequence[str], task: str
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the two sides of pairs, both [N, E], in one call."""
    vectors = encode(encoder, [*first, *second], task, name=side(len(first)))
    return vectors[: len(first)], vectors[len(first) :]


def side(num_pairs: int) -> Callable[[int], str]:
    """Names of the texts of pairs in errors; all first texts come before all second ones."""
    return lambda row: f"pair {row % num_pairs}, sentence{row // num_pairs + 1}"


def pair_similarities(
    encoder: Encoder, a_NE: np.ndarray, b_NE: np.ndarray, task: str
) -> dict[str, np.ndarray]:
    """Similarity of row with row, [N], by the model's own function ("similarity") and by MTEB's.

    Distances are negated, so that larger always means more similar. Raises DataError if the
    model's own similarities are not finite, or equal for all pairs.
    """
    own_N = np.asarray(encoder.similarity_pairwise(a_NE, b_NE), np.float32)
    varied(task, own_N)
    difference_NE = a_NE - b_NE
    return {
        "similarity": own_N,
        "cosine": cosine_pairs(a_NE, b_NE),
        "manhattan": -np.abs(difference_NE).sum(axis=-1),
        "euclidean": -np.sqrt(_squared(difference_NE)),
        "dot": np.vecdot(a_NE, b_NE),
    }


def cosine_pairs(a_NE: np.ndarray, b_NE: np.ndarray) -> np.ndarray:
    """Cosine of row with row, [N], by half the squared distance of unit vectors, as in MTEB.

    A zero vector, whose cosine is undefined, gets 0.5.
    """
    return 1 - 0.5 * _squared(_unit(a_NE) - _unit(b_NE))


def nearest(
    encoder: Encoder, queries_QE: np.ndarray, documents_NE: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of each query's nearest documents by the model's own similarity.

    Both [Q, min(k, N)], best first, equal scores in the order of their rows.
    """
    named = encoder.similarity_name in SIMILARITIES
    similarity = encoder.similarity_name if named else encoder.similarity
    return top_k(queries_QE, documents_NE, k, similarity)


def varied(task: str, similarities: np.ndarray) -> None:
    """Raises DataError for similarities that are not finite, or all equal: no ranking."""
    if not np.isfinite(similarities).all():
        raise DataError(f"{task}: similarities contain NaN or infinity")
    if similarities.size > 1 and np.ptp(similarities) == 0:
        raise DataError(
            f"{task}: all {similarities.size} predicted scores are equal, so they give no ranking"
        )


def equal_lengths(task: str, **sequences: Sequence[Any]) -> int:
    """The common length; DataError if lengths differ or are 0."""
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise DataError(f"{task}: {shown}; they must have equal length")
    name, length = next(iter(lengths.items()))
    if not length:
        raise DataError(f"{task}: no {name}")
    return length


def mean(items: np.ndarray) -> float:
    """Mean of the first column: the statistic of scores that are averages."""
    return float(items[:, 0].mean())


def _unit(vectors_NE: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1, [N, E]; nearly zero ones unchanged, as in scikit-learn."""
    norms_N = np.sqrt(_squared(vectors_NE))
    norms_N[norms_N < 10 * np.finfo(norms_N.dtype).eps] = 1
    unit_NE: np.ndarray = vectors_NE / norms_N[:, None]
    return unit_NE


def _squared(vectors_NE: np.ndarray) -> np.ndarray:
    squared_N: np.ndarray = np.einsum("ne,ne->n", vectors_NE, vectors_NE)
    return squared_N
