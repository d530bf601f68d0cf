"""Clustering: do the clusters that k-means finds in the vectors match the labels?"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import ClusteringSet
from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.measures.clustering import v_measure
from polyvec.evaluate.measures.inputs import extra
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols.vectors import encode, equal_lengths


def clustering(
    encoder: Encoder,
    data: ClusteringSet,
    *,
    seed: int = 42,
    num_draws: int = 10,
    draw_size: int = 16_384,
) -> Outcome:
    """V-measure of mini-batch k-means with as many clusters as there are labels.

    MTEB's two protocols: "bootstrap" clusters ten draws of 16,384 texts with replacement, from
    `data.max_texts` or `data.fraction` of all texts; "sets" clusters each of `data.parts` (all
    texts, if there are none). "v_measure_std" is the standard deviation over draws or parts;
    "ami", for draws only, is the adjusted mutual information.
    """
    protocols = {"bootstrap": _bootstrap, "sets": _sets}
    if data.protocol not in protocols:
        raise SettingsError(
            f"{data.name}: protocol {data.protocol!r} is not known."
            + known(data.protocol, protocols)
        )
    equal_lengths(data.name, texts=data.texts, labels=data.labels)
    if len(set(data.labels)) < 2:
        raise DataError(f"{data.name}: only one label, {data.labels[0]!r}; expected 2 or more")
    if data.protocol == "sets":
        values = _sets(encoder, data, seed)
    else:
        values = _bootstrap(encoder, data, seed, num_draws, draw_size)
    scores: dict[str, float] = {}
    for name, each in values.items():
        scores |= {name: float(np.mean(each)), f"{name}_std": float(np.std(each))}
    kind = KINDS[data.kind]
    return Outcome(kind.name, kind.main_measure, scores)


def _bootstrap(
    encoder: Encoder, data: ClusteringSet, seed: int, num_draws: int, draw_size: int
) -> dict[str, list[float]]:
    """V-measure and adjusted mutual information of each draw."""
    draw = random.Random(seed)
    rows = _chosen(data, draw)
    texts = [data.texts[row] for row in rows]
    vectors_NE = encode(encoder, texts, data.name, name=lambda i: f"text {rows[i]}")
    labels = np.array([data.labels[row] for row in rows])
    num_clusters = len(set(labels.tolist()))
    if num_clusters < 2:
        raise DataError(f"{data.name}: the {len(rows)} sampled texts have only one label")
    if draw_size < num_clusters:
        raise SettingsError(
            f"{data.name}: draw_size {draw_size} is less than the number of labels, {num_clusters}"
        )
    model = _k_means(num_clusters, batch_size=512, seed=seed)
    ami = extra("sklearn.metrics", "clustering").adjusted_mutual_info_score
    found: dict[str, list[float]] = {"v_measure": [], "ami": []}
    for _ in range(num_draws):
        drawn = draw.choices(range(len(rows)), k=draw_size)
        clusters = model.fit_predict(vectors_NE[drawn])
        found["v_measure"].append(v_measure(clusters, labels[drawn]))
        found["ami"].append(float(ami(labels[drawn], clusters)))
    return found


def _chosen(data: ClusteringSet, draw: random.Random) -> Sequence[int]:
    """Rows of the texts that are encoded, in the order in which they were drawn."""
    if data.max_texts is not None and data.fraction is not None:
        raise SettingsError(f"{data.name}: max_texts and fraction are mutually exclusive")
    num_texts = len(data.texts)
    if data.max_texts is None and data.fraction is None:
        return range(num_texts)
    most = int(data.fraction * num_texts) if data.fraction is not None else data.max_texts
    chosen = draw.sample(range(num_texts), k=min(num_texts, most or 0))
    if not chosen:
        raise DataError(
            f"{data.name}: max_texts {data.max_texts}, fraction {data.fraction}: selects none of "
            f"{num_texts} texts"
        )
    return chosen


def _sets(encoder: Encoder, data: ClusteringSet, seed: int) -> dict[str, list[float]]:
    """V-measure of each part; 1 for a part with one label, as in MTEB."""
    parts = data.parts or (tuple(range(len(data.texts))),)
    for number, part in enumerate(parts):
        wrong = [row for row in part if not 0 <= row < len(data.texts)]
        if not part or wrong:
            what = f"has row {wrong[0]} of {len(data.texts)} texts" if wrong else "is empty"
            raise DataError(f"{data.name}: part {number} {what}")
    vectors_NE = encode(encoder, data.texts, data.name)
    found = []
    for part in parts:
        labels = [data.labels[row] for row in part]
        num_clusters = len(set(labels))
        if num_clusters > 1:
            model = _k_means(num_clusters, batch_size=500, seed=seed)
            found.append(v_measure(model.fit_predict(vectors_NE[list(part)]), labels))
        else:
            found.append(1.0)
    return {"v_measure": found}


def _k_means(num_clusters: int, *, batch_size: int, seed: int) -> Any:
    return extra("sklearn.cluster", "clustering").MiniBatchKMeans(
        n_clusters=num_clusters,
        batch_size=batch_size,
        init="k-means++",
        n_init=1,
        random_state=seed,
    )
