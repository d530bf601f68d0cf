"""What an inverter says of vectors that no text gave: between two texts, led, drawn, edited.

N vectors, E numbers a vector.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyvec.embed.inputs.content_words import content_words
from polyvec.errors import DataError, InputError, ShapeError
from polyvec.evaluate.measures.inputs import extra, matrix, unit
from polyvec.invert.inverter import Inverted, Inverter
from polyvec.settings import check_seed


@dataclass(frozen=True, slots=True)
class Step:
    """A point between a query (0) and a document (1), what is written there, and the document's
    rank among all for the query that is written there, from 1 (None without documents)."""

    share: float
    text: str
    rank: int | None


def query_walk(
    inverter: Inverter,
    query: str,
    document: str,
    *,
    documents: Sequence[str] = (),
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    **options: Any,
) -> list[Step]:
    """Queries written from points on the way from a query's vector to a document's.

    What should have been asked to find the document (Adolphs et al. 2022, arXiv:2210.12084).
    documents: of the collection, the wanted one among them.
    """
    if documents and document not in documents:
        raise InputError("the document is not among the documents that its rank is counted in")
    ends_2E = inverter.embed([query, document])
    points_NE = np.stack([ends_2E[0] + k * (ends_2E[1] - ends_2E[0]) for k in shares])
    texts = [each.text for each in inverter.invert(points_NE, **options)]
    ranks: list[int | None] = [None] * len(texts)
    if documents:
        scores_NM = inverter.embed_found(texts) @ inverter.embed(documents).T
        own_N = scores_NM[:, list(documents).index(document)]
        ranks = [int((row > own).sum()) + 1 for row, own in zip(scores_NM, own_N, strict=True)]
    return [Step(*each) for each in zip(shares, texts, ranks, strict=True)]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A query, one that ranks its document higher, and the ranks of the document for both."""

    query: str
    suggested: str
    before: int
    after: int


def suggestions(
    inverter: Inverter,
    pairs: Sequence[tuple[str, str]],
    documents: Sequence[str],
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    **options: Any,
) -> list[Suggestion]:
    """Of (query, document) pairs the first text on the way to the document that ranks it higher.

    What a suggester learns from (qsT5, arXiv:2210.12084): `train_inverter` on pairs
    (query, suggested) writes suggestions from the vectors of queries alone; decode them with
    rerank=False. Queries that no text on the way improves are left out.
    """
    if not pairs:
        raise InputError("no pair of a query and a document to walk between")
    places = {text: number for number, text in enumerate(documents)}
    missing = next((text for _, text in pairs if text not in places), None)
    if missing is not None:
        raise InputError(f"{missing[:60]!r}: not among the documents that its rank is counted in")
    documents_ME = inverter.embed(documents)

    def ranks(texts: Sequence[str], wanted_N: np.ndarray) -> np.ndarray:
        scores_NM = inverter.embed_found(texts) @ documents_ME.T
        own_N1 = np.take_along_axis(scores_NM, wanted_N[:, None], 1)
        found: np.ndarray = (scores_NM > own_N1).sum(1) + 1
        return found

    queries = [query for query, _ in pairs]
    wanted_N = np.array([places[document] for _, document in pairs])
    before_N = ranks(queries, wanted_N)
    start_NE, found = inverter.embed(queries), dict[int, Suggestion]()
    for share in shares:
        left = [row for row in range(len(pairs)) if row not in found and before_N[row] > 1]
        if not left:
            break
        points_NE = start_NE[left] + share * (documents_ME[wanted_N[left]] - start_NE[left])
        texts = [each.text for each in inverter.invert(points_NE, **options)]
        for row, text, rank in zip(left, texts, ranks(texts, wanted_N[left]), strict=True):
            if rank < before_N[row]:
                found[row] = Suggestion(queries[row], text, int(before_N[row]), int(rank))
    return [found[row] for row in sorted(found)]


def reveal(
    inverter: Inverter,
    score: Callable[[Sequence[str]], Sequence[float]],
    start: np.ndarray,
    *,
    rounds: int = 10,
    population: int = 8,
    spread: float = 0.5,
    seed: int = 0,
    **options: Any,
) -> list[tuple[str, float]]:
    """The best text and its score after each round, the first from the start vector [E] itself.

    score: of texts, such as the probability of a class by the attacked classifier. Each round
    writes from `population` perturbations (of length `spread`) of the best vector so far: Text
    Revealer's feedback (Zhang et al. 2022, arXiv:2209.10505) without the classifier's gradients.
    """
    check_seed(seed)
    if rounds < 0 or population < 1:
        raise InputError(
            f"rounds is {rounds} and population {population}, expected at least 0 and 1"
        )
    draw = np.random.default_rng(seed)
    best_E = unit("start", matrix("start", np.asarray(start)[None], at_least=1))[0]
    (first,) = inverter.write(best_E[None].astype(np.float32), **options)
    found = [(first[0].text, float(score([first[0].text])[0]))]
    for _ in range(rounds):
        noise_NE = unit("noise", draw.standard_normal((population, len(best_E))))
        tried_NE = unit("perturbed", best_E + spread * noise_NE).astype(np.float32)
        texts = [each[0].text for each in inverter.write(tried_NE, **options)]
        scores = list(map(float, score(texts)))
        top = int(np.argmax(scores))
        if scores[top] > found[-1][1]:
            best_E = tried_NE[top]
            found.append((texts[top], scores[top]))
        else:
            found.append(found[-1])
    return found


def decode_vote(
    inverter: Inverter, vectors: np.ndarray, *, draws: int = 10, k: int = 10, seed: int = 0
) -> list[list[str]]:
    """The k content words that most of `draws` drawn texts have, for each vector.

    Sentence-level inference (Gu et al. 2023, PoPETs 2023(3)).
    """
    check_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = inverter.write(inverter.checked(vectors), draws=draws)
    found = []
    for each in written:
        counts = Counter(word for one in each for word in dict.fromkeys(content_words(one.text)))
        found.append([word for word, _ in counts.most_common(k)])
    return found


class ConceptEditor:
    """Moves vectors from one class to another and leaves the rest: counterfactuals of texts.

    The difference of class means is added (Avitan et al. 2024, arXiv:2402.11355, its affine map
    without the covariance), so that the projection on that direction becomes the other class's.
    """

    def __init__(self, vectors: np.ndarray, labels: Sequence[Hashable]) -> None:
        vectors_NE = matrix("vectors", vectors)
        if len(vectors_NE) != len(labels):
            raise ShapeError(f"concept editor: {len(vectors_NE)} vectors, {len(labels)} labels")
        self.classes = sorted(set(labels), key=str)
        if len(self.classes) < 2:
            raise DataError("concept editor: all texts have one label; give texts of two classes")
        gold = np.array([self.classes.index(each) for each in labels])
        self.means = np.stack([vectors_NE[gold == c].mean(0) for c in range(len(self.classes))])
        linear = extra("sklearn.linear_model", "concept edits")
        self.probe = linear.LogisticRegression(C=10.0, max_iter=2000).fit(vectors_NE, gold)

    def edit(self, vectors: np.ndarray, source: Hashable, target: Hashable) -> np.ndarray:
        """Vectors of texts of class `source` as if of `target`, [N, E] of length 1."""
        for name in (source, target):
            if name not in self.classes:
                raise InputError(f"class {name!r} is none of {', '.join(map(str, self.classes))}")
        a, b = (self.means[self.classes.index(each)] for each in (source, target))
        vectors_NE = matrix("vectors", vectors, at_least=1)
        direction_E = (b - a) / np.linalg.norm(b - a)
        moved_N1 = (b - vectors_NE) @ direction_E[:, None]
        return unit("edited vectors", vectors_NE + moved_N1 * direction_E)

    def predict(self, vectors: np.ndarray) -> list[Hashable]:
        """The class that a linear probe reads."""
        return [self.classes[row] for row in self.probe.predict(matrix("vectors", vectors))]


def counterfactuals(
    inverter: Inverter, editor: ConceptEditor, texts: Sequence[str], source: Hashable,
    target: Hashable, **options: Any,
) -> list[Inverted]:  # fmt: skip
    """The texts again from their edited vectors."""
    return inverter.invert(editor.edit(inverter.embed(texts), source, target), **options)
