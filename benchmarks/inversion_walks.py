"""qsT5 and Text Revealer: what an inverter writes from vectors that no text gave.

N queries, M documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from polyvec.invert.inverter import Inverter
from polyvec.invert.leakage import nearest_texts
from polyvec.invert.walks import query_walk, reveal, suggestions

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_DOCUMENTS = 300
NUM_PAIRS = 600  # that suggestions are looked for
NUM_CLASSES = 20  # of the attacked classifier
NUM_REVEALED = 10
SPREAD = 0.5
MOST_WORDS = 12


def walked(
    inverter: Inverter, pairs: Sequence[tuple[str, str]], documents: Sequence[str]
) -> dict[str, Any]:
    """By the share of the way from a query's vector to its document's: how the text that is
    written there ranks the document, beside the query itself."""
    walks = [
        query_walk(inverter, *pair, documents=documents, shares=SHARES, beams=4) for pair in pairs
    ]
    ranks_NS = np.array([[step.rank for step in walk] for walk in walks])
    own_N = ranked(inverter, [query for query, _ in pairs], pairs, documents)
    found = {"the query itself": scores(own_N)}
    found |= {f"{s:g} of the way": scores(ranks_NS[:, i]) for i, s in enumerate(SHARES)}
    found["mean rank falls at each step"] = bool((np.diff(ranks_NS.mean(0)) <= 0).all())
    return found


def ranked(
    inverter: Inverter,
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    documents: Sequence[str],
) -> np.ndarray:
    """The rank of each pair's document for a text in the place of its query, [N], from 1."""
    places = {text: place for place, text in enumerate(documents)}
    scores_NM = inverter.embed(list(texts)) @ inverter.embed(list(documents)).T
    own_N1 = scores_NM[np.arange(len(pairs)), [places[each] for _, each in pairs]][:, None]
    found: np.ndarray = (scores_NM > own_N1).sum(1) + 1
    return found


def scores(ranks_N: np.ndarray) -> dict[str, float]:
    return {
        "mrr": round(float((1 / ranks_N).mean()), 4),
        "first": round(float((ranks_N == 1).mean()), 4),
        "mean rank": round(float(ranks_N.mean()), 2),
    }


def suggested(
    inverter: Inverter, pairs: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, str]], float]:
    """Pairs of a query and a better one, and the share of queries that have a better one."""
    documents = [document for _, document in pairs]
    found = suggestions(inverter, pairs, documents, beams=1)
    ranks_N = ranked(inverter, [query for query, _ in pairs], pairs, documents)
    share = len(found) / max(1, int((ranks_N > 1).sum()))
    return [(each.query, each.suggested) for each in found], round(share, 4)


def revealed(
    inverter: Inverter,
    public: Sequence[str],
    private: Sequence[tuple[str, str]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """A classifier of private texts is asked about what the inverter writes; its texts and their
    probability of a class, at the start, by chance and by feedback, as many texts each.

    private: texts with their classes. near: the cosine with the nearest private text of the class.
    """
    draw = np.random.default_rng(seed)
    classes = sorted({label for _, label in private})
    classes = sorted(draw.permutation(classes)[:NUM_CLASSES].tolist())
    kept = [(text, label) for text, label in private if label in set(classes)]
    texts, labels = [text for text, _ in kept], [label for _, label in kept]
    vectors_NE = inverter.embed(texts)
    model = LogisticRegression(C=10.0, max_iter=2000).fit(vectors_NE, labels)
    starts = inverter.embed([public[row] for row in draw.permutation(len(public))[:NUM_REVEALED]])
    found: dict[str, list[dict[str, float]]] = {}
    examples = []
    for number, label in enumerate(draw.permutation(classes)[:NUM_REVEALED].tolist()):
        column = list(model.classes_).index(label)
        own = [text for text, each in kept if each == label]

        def score(written: Sequence[str], column: int = column) -> list[float]:
            known = inverter.embed([text if text.strip() else "." for text in written])
            return [float(each) for each in model.predict_proba(known)[:, column]]

        options = {"spread": SPREAD, "seed": seed, "beams": 1}
        rounds = reveal(inverter, score, starts[number], rounds=10, population=8, **options)
        (first, *_), (chance, by_chance) = (
            rounds[0],
            reveal(inverter, score, starts[number], rounds=1, population=80, **options)[-1],
        )
        for name, text, value in (
            ("start", first, rounds[0][1]),
            ("80 texts by chance", chance, by_chance),
            ("10 rounds of 8 by feedback", *rounds[-1]),
        ):
            vector_1E = inverter.embed([text if text.strip() else "."])
            near = float((vector_1E @ inverter.embed(own).T).max())
            found.setdefault(name, []).append({"probability": value, "near": near})
        (closest,) = nearest_texts(vector_1E, inverter.embed(own), own)
        examples.append([label, first, rounds[-1][0], closest])
    means = {
        name: {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}
        for name, rows in found.items()
    }
    return {"classes": len(classes), "attacked": NUM_REVEALED, **means, "examples": examples[:3]}


def short(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Text and class of each short row, no text twice."""
    found = {" ".join(row["text"].split()): row["label"] for row in rows}
    return [(text, label) for text, label in found.items() if len(text.split()) <= MOST_WORDS]


def other_captions(rows: Sequence[dict[str, Any]], most: int) -> list[tuple[str, str]]:
    """A caption of each picture and another of the same, both short, no document twice."""
    found: dict[str, str] = {}
    for row in rows:
        query, document = row["captions"][:2]
        if max(len(query.split()), len(document.split())) <= most and query != document:
            found.setdefault(document, query)
    return [(query, document) for document, query in found.items()]
