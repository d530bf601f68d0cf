"""How many mined negatives are relevant documents that nobody labelled, by rule of mining.

    python benchmarks/mining.py --data DATA [--documents 1500] [--queries 500]

NFCorpus has about 43 judged documents for each training query. A share of them is known to mining,
drawn with seed 0, the rest is hidden: a negative that is hidden is a false one. Documents of the
corpus are drawn with seed 0, too. The teacher is all-MiniLM-L6-v2, at its first 128 tokens. Prints
a table; vectors are cached, so that a second run takes seconds.
"""

import argparse
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polyvec import Embedder
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import training_sets
from polyvec.storage.vector_cache import EmbeddingCache
from polyvec.train.mining.candidates import Tools
from polyvec.train.mining.documents import own_corpus
from polyvec.train.mining.miner import mine
from polyvec.train.mining.report import false_negatives, relevant_of
from polyvec.train.mining.settings import mining_settings

SIMANS = {"sampling_strategy": "simans", "simans_a": 100.0, "range_max": 100}
RULES = {
    "any document": {"sampling_strategy": "random", "range_max": 10**6},
    "top": {},
    "ranks 10 to 50, random": {"range_min": 10, "range_max": 50, "sampling_strategy": "random"},
    "ranks 30 to 100, random": {"range_min": 30, "range_max": 100, "sampling_strategy": "random"},
    "TopK-PercPos, 95 %": {"relative_margin": 0.05, "range_max": 100},
    "TopK-PercPos, 70 %": {"relative_margin": 0.3, "range_max": 100},
    "TopK-MarginPos, 0.05": {"absolute_margin": 0.05, "range_max": 100},
    "max_score 0.4": {"max_score": 0.4, "range_max": 100},
    "SimANS, a = 100, b = 0": SIMANS,
    "SimANS, a = 100, b = -0.2": {**SIMANS, "simans_b": -0.2},
    "BM25, top": {"candidates": "bm25"},
    "BM25, ranks 30 to 100, random": {
        "candidates": "bm25",
        "range_min": 30,
        "range_max": 100,
        "sampling_strategy": "random",
    },
    "BM25, TopK-PercPos, 95 %": {"candidates": "bm25", "relative_margin": 0.05, "range_max": 100},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--num-negatives", type=int, default=7)
    options = parser.parse_args()
    (whole,) = training_sets({"path": str(options.data / "nfcorpus")})
    corpus = own_corpus(whole)
    corpus = random.Random(0).sample(corpus, min(options.documents, len(corpus)))
    rows = list(_within(whole.rows, set(corpus)))[: options.queries]
    embedder = Embedder.from_pretrained()
    embedder.max_seq_length = 128
    tools = Tools(embedder, EmbeddingCache())
    relevant = relevant_of(rows)
    judged = np.mean([len(row.positives) for row in rows])
    print(f"{len(rows)} queries, {len(corpus)} documents, {judged:.1f} relevant a query")
    for share in (0.5, 0.0):
        known = dataclasses.replace(whole, rows=list(_known(rows, share)))
        count = np.mean([len(row.positives) for row in known.rows])
        print(f"\n{count:.1f} positives a query are known\n")
        print("| rule | false negatives | unfilled | similarity | of the lowest positive |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, rule in RULES.items():
            print(_line(name, known, corpus, rule, options.num_negatives, tools, relevant))


def _line(name, found, corpus, rule, num_negatives, tools, relevant) -> str:
    settings = mining_settings({**rule, "num_negatives": num_negatives})
    mined = mine(found, settings, tools=tools, corpus=corpus)
    judged = false_negatives(mined, relevant)
    unfilled = 1 - judged.num_negatives / (len(mined.negatives) * num_negatives)
    negatives = np.concatenate(mined.scores).mean()
    lowest = np.mean([each.min() for each in mined.positive_scores])
    return (
        f"| {name} | {100 * judged.rate:.1f} % | {100 * unfilled:.1f} % | {negatives:.2f} | "
        f"{lowest:.2f} |"
    )


def _within(rows: list[TrainingRow], corpus: set[str]) -> Iterator[TrainingRow]:
    """Rows with two or more positives in the corpus, and these alone."""
    for row in rows:
        positives = tuple(text for text in row.positives if text in corpus)
        if len(positives) > 1:
            yield dataclasses.replace(row, positives=positives, negatives=())


def _known(rows: list[TrainingRow], share: float) -> Iterator[TrainingRow]:
    """The rows with this share of their positives, and with one at least."""
    draw = random.Random(0)
    for row in rows:
        count = max(1, round(share * len(row.positives)))
        yield dataclasses.replace(row, positives=tuple(draw.sample(row.positives, count)))


if __name__ == "__main__":
    main()
