"""What defended vectors are still worth: similarity and retrieval, never a text finding itself."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import RetrievalSet, StsSet, TaskSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.correlation import spearman
from polyvec.evaluate.tasks import Evaluator
from polyvec.invert.defended import Defended

PAIRS, QUERIES, DOCUMENTS = 500, 50, 500  # of a quick audit, drawn with the seed
NEIGHBOURS = 10


def task_sets(
    data: Path | None, sts: str, retrieval: str, *, quick: bool, seed: int
) -> list[TaskSet]:
    """The two data sets; of a quick audit parts of them."""
    if data is None:
        return []
    draw = np.random.default_rng(seed)
    pairs, ranked = read_folder(data / sts), read_folder(data / retrieval)
    if not isinstance(pairs, StsSet):
        raise DataError(f"{data / sts}: not pairs with a similarity; --sts names such a set")
    if not isinstance(ranked, RetrievalSet):
        raise DataError(f"{data / retrieval}: not retrieval; --retrieval names such a set")
    if not quick:
        return [pairs, ranked]
    return [_pairs(pairs, draw), _part(ranked, draw)]


def _pairs(data: StsSet, draw: np.random.Generator) -> StsSet:
    rows = sorted(draw.permutation(len(data.scores))[:PAIRS].tolist())
    names = ("sentences1", "sentences2", "scores")
    chosen: dict[str, Any] = {
        name: tuple(getattr(data, name)[row] for row in rows) for name in names
    }
    return dataclasses.replace(data, **chosen)


def _part(data: RetrievalSet, draw: np.random.Generator) -> RetrievalSet:
    """Drawn queries, their judged documents, and drawn others."""
    queries = [sorted(data.qrels)[row] for row in draw.permutation(len(data.qrels))[:QUERIES]]
    judged = {doc for query in queries for doc in data.qrels[query] if doc in data.corpus}
    others = sorted(set(data.corpus) - judged)
    rest = max(0, DOCUMENTS - len(judged))
    kept = judged | {others[row] for row in draw.permutation(len(others))[:rest]}
    return dataclasses.replace(
        data,
        corpus={doc: text for doc, text in data.corpus.items() if doc in kept},
        queries={query: data.queries[query] for query in queries},
        qrels={query: data.qrels[query] for query in queries},
    )


def utility(model: Defended, sets: Sequence[TaskSet], texts: Sequence[str]) -> dict[str, float]:
    """The main score of each set by its name and measure; without sets, on the user's own texts:
    the correlation of similarities with the undefended ones, and the share of the 10 nearest
    neighbours (of at most half of the others) that stay."""
    if sets:
        evaluator = Evaluator(model, show_progress_bar=False)
        found = {}
        for data in sets:
            outcome = evaluator.measure(data).outcome
            found[f"{data.name} {outcome.main_measure}"] = float(outcome.main_score)
        return found
    plain_NN = _similarities(Defended(model.model, memo=model.memo), texts)
    own_NN = _similarities(model, texts)
    above = np.triu_indices(len(texts), 1)
    # At most half of the others, or any order would keep them.
    near = min(NEIGHBOURS, max(1, (len(texts) - 1) // 2))
    same = [
        len(set(a.tolist()) & set(b.tolist())) / near
        for a, b in zip(_nearest(plain_NN, near), _nearest(own_NN, near), strict=True)
    ]
    return {
        "similarities spearman": spearman(own_NN[above], plain_NN[above]),
        f"neighbours overlap@{near}": float(np.mean(same)),
    }


def _similarities(model: Defended, texts: Sequence[str]) -> np.ndarray:
    vectors_NE = model.encode(list(texts))
    found_NN: np.ndarray = vectors_NE @ vectors_NE.T
    np.fill_diagonal(found_NN, -np.inf)
    return found_NN


def _nearest(scores_NN: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores_NN, axis=1, kind="stable")[:, :count]
