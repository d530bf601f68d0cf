"""Does it pay to search by words and by meaning together, and to rerank? nDCG@10 on four sets.

    python benchmarks/search_quality.py train --data DATA --folder WORK     # the cross-encoder
    python benchmarks/search_quality.py measure --data DATA --folder WORK   # every cell, resumed

Test queries of SciFact, NFCorpus, Cranfield and CISI, each searched in an index as `polyvec index`
makes it, by all-MiniLM-L6-v2. Nothing is tuned: fusion takes the best 100 of both, rerankers the
best 30 of reciprocal rank fusion. No released cross-encoder was at hand, so `train` makes one of
all-MiniLM-L6-v2's weights by the stage "cross_encoder", on training queries only: of SciFact and
NFCorpus (whose documents the test queries are asked of, too), MedQuAD, and SQuAD's questions with
their sentences. It, and query likelihood, read the best 20 of the first 50 queries, for time.

A cell is a file in WORK/cells; a second run measures what is missing. `measure` writes
docs/results/search-quality.json, which docs/generate.py makes a table of.
"""

import argparse
import functools
import json
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from index_kinds import cpu

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "search-quality.json"
SETS = ("scifact", "nfcorpus", "cranfield", "cisi")
DEPTH, TOP, LLM_DEPTH, LLM_QUERIES = 100, 30, 20, 50
ROWS = {"scifact": 800, "nfcorpus": 1500, "medquad": 700, "squad": 1000}  # queries, times --share
DOCUMENTS = 1500  # of MedQuAD and SQuAD, so that they are encoded in minutes
NEGATIVES, SKIPPED, CANDIDATES = 3, 3, 50  # of a query's candidates, the first are skipped
RECIPE = """[system]
name = "cross-encoder"
paper = "-"
tasks = ["retrieval"]
[embedder]
backbone = "sentence-transformers/all-MiniLM-L6-v2"
pooling = "mean"
[[stage]]
kind = "cross_encoder"
model = "sentence-transformers/all-MiniLM-L6-v2"
data = [{{ name = "pairs", path = "{path}" }}]
positive_weight = 3.0
batch_size = 4
max_length = {max_length}
learning_rate = 2e-4
warmup_steps = 0.1
num_train_epochs = 1
max_steps = {max_steps}
bf16 = true
"""

Ranked = list[str]  # ids, best first


def read_set(name: str, data: Path, qrels: str = "") -> Any:
    """A task's data; of another split with `qrels`, the folder's file of judgements."""
    from polyvec.data.tasks.folder import read_folder
    from polyvec.evaluate.selection import select

    if qrels:
        return read_folder(data / name, qrels)
    (chosen,) = select([name], data=str(data), split="test", kind=None, subsets=())
    return chosen.read()


# ---- the cross-encoder --------------------------------------------------------------------------


def training_pairs(data: Path) -> "dict[str, tuple[list[tuple[str, set[str]]], dict[str, str]]]":
    """Of each source: queries with the ids of what matches them, and the documents by id."""
    from polyvec.data.texts import read_rows

    found = {}
    for name in ("scifact", "nfcorpus"):
        made = read_set(name, data, "train")
        pairs = [
            (text, {doc for doc, grade in made.qrels[query].items() if grade > 0})
            for query, text in made.queries.items()
            if any(grade > 0 for grade in made.qrels.get(query, {}).values())
        ]
        found[name] = (pairs, made.corpus)
    for name, file, query, document in (
        ("medquad", "medquad/pairs.jsonl.gz", "question", "answer"),
        ("squad", "squad_qg_pairs/dev.jsonl.gz", "question", "sentence"),
    ):
        rows = [row for _, row in read_rows(data / file) if row[query] and row[document]]
        corpus = dict.fromkeys(row[document] for row in rows)
        of_text = {text: str(place) for place, text in enumerate(corpus)}
        found[name] = (
            [(row[query], {of_text[row[document]]}) for row in rows],
            {key: text for text, key in of_text.items()},
        )
    return found


def train(data: Path, folder: Path, share: float, max_length: int, max_steps: int) -> None:
    """WORK/run/reranker, by one epoch over pairs with negatives that both searches found.

    Pairs that are there are used again, and a training that was stopped goes on.
    """
    from polyvec.recipe import load_recipe
    from polyvec.storage.files import atomic_file
    from polyvec.train.run import train_recipe

    path = folder / "pairs.jsonl"
    if not path.exists():
        lines = mined_pairs(data, folder, share)
        with atomic_file(path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    recipe = folder / "cross-encoder.toml"
    recipe.write_text(
        RECIPE.format(path=path.absolute(), max_length=max_length, max_steps=max_steps)
    )
    run = folder / "run"
    train_recipe(load_recipe(str(recipe)), "full", run, resume=run.exists())


def mined_pairs(data: Path, folder: Path, share: float) -> list[dict[str, Any]]:
    """Queries, each with a document that matches it and NEGATIVES that do not."""
    from polyvec import Embedder, Index
    from polyvec.data.texts import Record

    rng = random.Random(0)
    embedder = Embedder.from_pretrained()
    lines = []
    for name, (pairs, corpus) in training_pairs(data).items():
        chosen = rng.sample(pairs, min(round(share * ROWS[name]), len(pairs)))
        if name not in SETS:
            needed = sorted({each for _, matching in chosen for each in matching})
            others = sorted(set(corpus) - set(needed))
            names = [*needed, *rng.sample(others, max(0, DOCUMENTS - len(needed)))]
            corpus = {each: corpus[each] for each in names}
        print(f"{name}: {len(chosen)} queries, {len(corpus)} documents", flush=True)
        records = [Record(key, text) for key, text in corpus.items()]
        index, _ = Index.build(folder / "indexes" / name, records, embedder, truncate="silent")
        queries = [query for query, _ in chosen]
        dense, words = (
            [
                [hit.id for hit in hits]
                for hits in index.search(queries, top_k=CANDIDATES, mode=mode)
            ]
            for mode in ("dense", "words")
        )
        for (query, matching), *found in zip(chosen, dense, words, strict=True):
            candidates = dict.fromkeys(each for ids in found for each in ids[SKIPPED:])
            pool = [each for each in candidates if each not in matching]
            if len(pool) >= NEGATIVES:
                positive = corpus[rng.choice(sorted(matching))]
                negatives = [corpus[each] for each in rng.sample(pool, NEGATIVES)]
                lines.append({"query": query, "pos": [positive], "neg": negatives})
    rng.shuffle(lines)
    return lines


def by_words(texts: Sequence[str], queries: Sequence[str], depth: int) -> list[list[int]]:
    """BM25 of bm25s, as it is by default: no stems, English stop words; rows, best first."""
    import bm25s

    def words(several: Sequence[str]) -> Any:
        return bm25s.tokenize(list(several), stopwords="en", return_ids=False, show_progress=False)

    index = bm25s.BM25()
    index.index(words(texts), show_progress=False)
    found = []
    for asked_words in words(queries):
        scores_N = index.get_scores(asked_words) if asked_words else np.zeros(len(texts))
        rows = np.argsort(-scores_N, kind="stable")[:depth]
        found.append([int(row) for row in rows if scores_N[row] > 0])
    return found


# ---- cells --------------------------------------------------------------------------------------


def methods(folder: Path) -> "dict[str, Callable[[Any, Any], tuple[list[Ranked], list[float]]]]":
    """What is measured, by name: a function from a set and its index to rankings and seconds."""

    def bm25s_words(made: Any, index: Any) -> tuple[list[Ranked], list[float]]:
        names, began = list(made.corpus), time.perf_counter()
        found = by_words(list(made.corpus.values()), asked(made), DEPTH)
        second = (time.perf_counter() - began) / len(found)
        return [[names[row] for row in rows] for rows in found], [second] * len(found)

    def searched(num: int | None = None, **how: Any) -> Any:
        return lambda made, index: timed(index, asked(made)[:num], **how)

    def reranked(num: int | None = None, depth: int = TOP, **table: Any) -> Any:
        def search(made: Any, index: Any) -> tuple[list[Ranked], list[float]]:
            from polyvec.rerank.table import load_reranker

            reranker: Any = load_reranker(table, where="benchmark")
            scores = reranker.scores

            def in_bfloat16(*asked: Any) -> np.ndarray:
                with torch.autocast("cpu", torch.bfloat16):  # half of the time
                    return scores(*asked)

            if table["kind"] == "cross_encoder":  # as it was trained
                reranker.scores = in_bfloat16
            return timed(
                index, asked(made)[:num], mode="hybrid", rerank=reranker, rerank_depth=depth
            )

        return search

    def late(factor: int) -> Any:
        def search(made: Any, index: Any) -> tuple[list[Ranked], list[float]]:
            states = token_states(made.name)
            reranker = states if factor == 1 else pooled(states, factor)
            return timed(index, asked(made), mode="hybrid", rerank=reranker, rerank_depth=TOP)

        return search

    few = LLM_QUERIES
    return {
        "words, bm25s": bm25s_words,
        "words": searched(mode="words"),
        "dense": searched(mode="dense"),
        "hybrid, ranks": searched(mode="hybrid"),
        "hybrid, scores": searched(mode="hybrid", fusion="score", weights=(0.5, 0.5)),
        "late interaction": late(1),
        "late interaction, factor 2": late(2),
        "late interaction, factor 3": late(3),
        f"hybrid, ranks, {few} queries": searched(num=few, mode="hybrid"),
        f"cross-encoder, {few} queries": reranked(
            num=few,
            depth=LLM_DEPTH,
            kind="cross_encoder",
            model=str(folder / "run" / "reranker"),
            max_length=128,
        ),
        f"query likelihood, {few} queries": reranked(
            num=few, depth=LLM_DEPTH, kind="query_likelihood", max_words=150
        ),
    }


@functools.lru_cache(1)
def token_states(name: str) -> Any:
    """The late interaction of all-MiniLM's token states, which keeps those of a whole set."""
    from polyvec import Embedder
    from polyvec.rerank.late_interaction import LateInteraction

    return LateInteraction(Embedder.from_pretrained(), kept_tokens=2_000_000)


def pooled(states: Any, factor: int) -> Any:
    """The same with pooled tokens of documents; their states are not computed again."""
    from polyvec.embed.projection.token_pooling import pool_tokens
    from polyvec.rerank.late_interaction import LateInteraction

    class Pooled(LateInteraction):
        def document_vectors(self, documents: Sequence[str]) -> list[np.ndarray]:
            return [pool_tokens(each, factor) for each in states.document_vectors(documents)]

    return Pooled(states.embedder)


def asked(made: Any) -> list[str]:
    """The texts of the queries with judgements."""
    return [text for query, text in made.queries.items() if made.qrels.get(query)]


def timed(index: Any, queries: Sequence[str], **how: Any) -> tuple[list[Ranked], list[float]]:
    """The best documents of each query, searched one at a time, and the seconds of each."""
    found, seconds = [], []
    for query in queries:
        began = time.perf_counter()
        (hits,) = index.search([query], top_k=20, depth=DEPTH, **how)
        seconds.append(time.perf_counter() - began)
        found.append([hit.id for hit in hits])
    return found, seconds


def measure(data: Path, folder: Path, sets: Sequence[str], only: Sequence[str]) -> None:
    """Every cell that is not there, and the results of all that are."""
    from polyvec import Embedder, Index
    from polyvec.data.texts import Record
    from polyvec.evaluate.measures import per_query

    cells = folder / "cells"
    cells.mkdir(exist_ok=True)
    embedder = Embedder.from_pretrained()
    chosen = {name: each for name, each in methods(folder).items() if not only or name in only}
    for name in sets:
        for method, search in chosen.items():
            path = cells / f"{name} {method}.json".replace(", ", "-").replace(" ", "_")
            if path.exists():
                continue
            made = read_set(name, data)
            records = [Record(key, text) for key, text in made.corpus.items()]
            index, _ = Index.build(folder / "indexes" / name, records, embedder, truncate="silent")
            index.compact()  # which a small index does after many writes only
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # texts that a reranker reads in part
                found, seconds = search(made, index)
            queries = [query for query in made.queries if made.qrels.get(query)][: len(found)]
            run = {
                query: {each: float(-rank) for rank, each in enumerate(ids)}
                for query, ids in zip(queries, found, strict=True)
            }
            qrels = {query: made.qrels[query] for query in queries}
            values = per_query(qrels, run, "ndcg@10")
            cell = {
                "set": name,
                "method": method,
                "ndcg@10": float(np.mean([values[query] for query in queries])),
                "num_queries": len(queries),
                "p50_ms": 1000 * float(np.median(seconds)),
                "per_query": [round(values[query], 5) for query in queries],
            }
            path.write_text(json.dumps(cell) + "\n")
            print(f"{name}  {method}  {cell['ndcg@10']:.4f}  {cell['p50_ms']:.0f} ms", flush=True)
    gather(cells)


def gather(cells: Path) -> None:
    """docs/results/search-quality.json of all cells."""
    found = [json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))]
    order = list(methods(cells.parent))
    found.sort(key=lambda cell: (order.index(cell["method"]), SETS.index(cell["set"])))
    result = {"cpu": cpu(), "cells": [{**cell, "per_query": None} for cell in found]}
    for cell in result["cells"]:
        del cell["per_query"]
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--methods", nargs="+", default=())
    parser.add_argument("--share", type=float, default=1.0, help="of the training queries")
    parser.add_argument("--max-length", type=int, default=192, help="tokens of a training pair")
    parser.add_argument("--max-steps", type=int, default=-1, help="of 4 queries; -1: one epoch")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "train":
        train(options.data, options.folder, options.share, options.max_length, options.max_steps)
    else:
        measure(options.data, options.folder, options.sets, options.methods)


if __name__ == "__main__":
    main()
