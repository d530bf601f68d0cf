"""Groups as one HTML page: a map of the texts, the groups as a tree, and the texts of each.

The page loads nothing; its policy lets its own script run and no other. All texts are data.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from polyvec.cluster.clusterer import Clusters
from polyvec.cluster.naming import keyword_names, keywords
from polyvec.cluster.projection import plane
from polyvec.cluster.uncertainty import centroids
from polyvec.evaluate.measures.inputs import extra
from polyvec.storage.files import atomic_file

FOLDER = Path(__file__).parent
MOST_POINTS = 20_000  # on the map; a browser draws them in some 20 ms
MOST_CHARACTERS = 240  # of a text
MOST_LISTED = 300  # texts that are listed at a time
FLAT_UP_TO = 12  # groups that need no tree


def write_page(
    path: Path, title: str, found: Clusters, facts: Mapping[str, str], *, seed: int = 0
) -> None:
    """The page; the same clusters always give the same bytes."""
    with atomic_file(path, "w") as file:
        file.write("".join(page(title, found, facts, seed=seed)))


def page(title: str, found: Clusters, facts: Mapping[str, str], *, seed: int = 0) -> Iterator[str]:
    """The parts of the page."""
    rows = thinned(found.labels, seed)
    places, how = plane(found.vectors[rows], seed)
    told = dict(facts)
    told["map"] = f"{how}, {len(rows):,} of {len(found.texts):,} texts"
    if len(rows) < len(found.texts):
        told["map"] += ", drawn from each group by its size; search finds these alone"
    script = (FOLDER / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{html.escape(title)}</title>"
    yield f"<style>{(FOLDER / 'page.css').read_text('utf-8')}</style></head><body>"
    yield f"<header><h1>{html.escape(title)}</h1>"
    yield "<p>" + html.escape(" · ".join(f"{k}: {v}" for k, v in told.items())) + "</p></header>"
    yield '<main><section aria-label="groups"><div class="bar">'
    yield '<input id="search" type="search" placeholder="Search texts" aria-label="Search texts">'
    yield '<span id="count" role="status"></span></div><div id="groups">'
    yield from _groups(found, seed)
    yield '</div></section><section aria-label="map"><div class="bar">'
    for name, label in (("in", "Zoom in"), ("out", "Zoom out"), ("reset", "Whole map")):
        yield f'<button id="{name}" type="button">{label}</button>'
    yield '</div><div id="map"><canvas id="canvas" role="img" '
    yield 'aria-label="Map of the texts; the groups beside it list the same texts"></canvas>'
    yield '<div id="tip"></div></div><div id="texts"></div></section></main>'
    yield f'<script type="application/json" id="data">{_data(found, places, rows)}</script>'
    yield f"<script>{script}</script></body></html>\n"


def thinned(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """The numbers of the texts that are shown: all, or the same share of each group."""
    if len(labels_N) <= MOST_POINTS:
        return np.arange(len(labels_N))
    draw = np.random.default_rng(seed)
    share = MOST_POINTS / len(labels_N)
    kept = []
    for group in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == group)
        kept.append(draw.choice(rows, max(1, int(share * len(rows))), replace=False))
    return np.sort(np.concatenate(kept))


def families(found: Clusters) -> list[list[int]]:
    """The groups in about as many families as there are groups in a family, by Ward's merges."""
    num = len(found.names)
    if num <= FLAT_UP_TO:
        return [list(range(num))]
    means = centroids(found.vectors, found.labels)
    model = extra("sklearn.cluster", "clustering").AgglomerativeClustering(
        n_clusters=round(num**0.5)
    )
    of_K = model.fit_predict(means)
    made = [np.flatnonzero(of_K == each).tolist() for each in range(of_K.max() + 1)]
    return sorted(made, key=lambda groups: -sum(found.sizes[group] for group in groups))


def _groups(found: Clusters, seed: int) -> Iterator[str]:
    tree = families(found)
    names = _family_names(found, tree)
    for name, groups in zip(names, tree, strict=True):
        texts = sum(found.sizes[group] for group in groups)
        if len(tree) > 1:
            yield f"<details open><summary>{html.escape(name)} ({texts:,})</summary>"
        for group in groups:
            words = ", ".join(found.keywords[group])
            yield f'<button type="button" class="group" data-group="{group}" aria-pressed="false">'
            yield '<canvas style="width:14px;height:14px;flex:none" aria-hidden="true"></canvas>'
            yield f"<span>{html.escape(found.names[group])}"
            if words and words != found.names[group]:
                yield f'<span class="words">{html.escape(words)}</span>'
            yield f'</span><span class="n">{found.sizes[group]:,}</span></button>'
        if len(tree) > 1:
            yield "</details>"
    outside = int((found.labels < 0).sum())
    if outside:
        yield '<button type="button" class="group" data-group="-1" aria-pressed="false">'
        yield '<canvas style="width:14px;height:14px;flex:none" aria-hidden="true"></canvas>'
        yield f'<span>in no group</span><span class="n">{outside:,}</span></button>'


def _family_names(found: Clusters, tree: Sequence[Sequence[int]]) -> list[str]:
    family = {group: number for number, groups in enumerate(tree) for group in groups}
    labels_N = np.array([family.get(int(label), -1) for label in found.labels], np.int64)
    return keyword_names(keywords(found.texts, labels_N))


def _data(found: Clusters, places: np.ndarray, rows: np.ndarray) -> str:
    """What the script reads, as JSON that cannot end its element."""
    texts = [" ".join(found.texts[row].split()) for row in rows.tolist()]
    cut = [t if len(t) <= MOST_CHARACTERS else t[:MOST_CHARACTERS] + " …" for t in texts]
    value = {
        "x": [round(float(each), 4) for each in places[:, 0]],
        "y": [round(float(each), 4) for each in places[:, 1]],
        "group": found.labels[rows].tolist(),
        "text": cut,
        "groups": [{"name": name} for name in found.names],
        "most": MOST_LISTED,
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
