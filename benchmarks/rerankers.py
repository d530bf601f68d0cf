"""What rerankers that say true or false gain: monoT5 over a first stage, a judge over instructions.

    python benchmarks/rerankers.py monot5 --data DATA --scale nano
    python benchmarks/rerankers.py followir --data DATA --scale nano

monot5: questions of SQuAD (squad_qg_pairs, test), each with a negative of BM25. Measured is nDCG@10
on questions of its dev part: of BM25's order, and of its first documents in the reranker's.
followir: subjects of MedQuAD under instructions that ask for one aspect. Measured are p-MRR, and
how often an answer to the right aspect comes first, on subjects that were kept from training
(instruction_following.py). Each before training, after it with three seeds, and their mean with the
standard deviation.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from instruction_following import held_out

from polyvec.data.training.sources import training_sets
from polyvec.embed.compose import compose
from polyvec.embed.inputs.demonstrations import Example, ExamplePool
from polyvec.embed.settings import EmbedderSettings
from polyvec.evaluate.measures.instruction import p_mrr
from polyvec.evaluate.measures.ranking import per_query
from polyvec.rerank.reranker import Reranker
from polyvec.rerank.true_false import TrueFalse
from polyvec.train.run import Run, run
from polyvec.train.settings import StageSettings

MODELS = {
    "monot5": {"nano": "polyvec/nano-t5", "small": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "followir": {"nano": "polyvec/nano-lm", "small": "HuggingFaceTB/SmolLM2-135M-Instruct"},
}
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0}
RATES = {"nano": 1e-3, "small": 1e-3}
BM25 = {"candidates": "bm25", "num_negatives": 1, "range_max": 50, "sampling_strategy": "random"}


def trained(options: argparse.Namespace, seed: int, **stage: Any) -> Reranker:
    """The reranker after a stage of that seed."""
    lora = {} if options.scale == "nano" else {"lora": LORA}
    model = MODELS[options.system][options.scale]
    settings = StageSettings(
        "true_false",
        settings={"model": model, "prompt": options.prompt, **lora},
        batch_size=options.batch_size,
        max_length=options.max_length,
        max_steps=options.steps,
        learning_rate=RATES[options.scale],
        warmup_steps=0.1,
        seed=seed,
        trainer={"save_strategy": "no"},
        **stage,
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        # The embedder is neither read nor trained.
        run(
            Run((settings,), output, data=options.data),
            compose(EmbedderSettings("polyvec/nano-lm")),
        )
        return TrueFalse.load(output / "reranker")


def untrained(options: argparse.Namespace) -> Reranker:
    model = MODELS[options.system][options.scale]
    return TrueFalse.load(model, prompt=options.prompt, max_length=options.max_length)


def monot5(options: argparse.Namespace) -> Any:
    """A function from a reranker to its scores, and what BM25 has."""
    table = {
        "path": str(options.data / "squad_qg_pairs" / "dev.jsonl.gz"),
        "format": "pairs",
        "columns": {"query": "question", "positive": "sentence"},
    }
    (found,) = training_sets(table, options.data)
    rows = random.Random(0).sample(list(found.rows), options.questions * 5)
    texts = list(dict.fromkeys(row.positives[0] for row in rows))
    pool = ExamplePool([Example(text, text) for text in texts])
    asked = rows[: options.questions]
    qrels = {str(i): {row.positives[0]: 1} for i, row in enumerate(asked)}
    first = {
        str(i): [each.document for each in pool.nearest(row.query, options.depth)][::-1]
        for i, row in enumerate(asked)
    }

    def score(order: Mapping[str, Mapping[str, float]]) -> float:
        return float(np.mean(list(per_query(qrels, order, "ndcg@10").values())))

    def measure(reranker: Reranker) -> dict[str, float]:
        pairs = [(asked[int(i)].query, text) for i, texts in first.items() for text in texts]
        scores = iter(reranker.scores(pairs).tolist())
        order = {i: {text: next(scores) for text in texts} for i, texts in first.items()}
        return {"nDCG@10": score(order)}

    ranks = {i: {text: -float(n) for n, text in enumerate(texts)} for i, texts in first.items()}
    inside = np.mean([qrels[i].keys() <= ranks[i].keys() for i in qrels])
    drawn = random.Random(0)
    chance = {i: {text: drawn.random() for text in texts} for i, texts in first.items()}
    print(f"BM25: nDCG@10 {score(ranks):.4f}, in any order {score(chance):.4f}")
    print(
        f"the answer is among its first {options.depth} of {len(texts)}: {inside:.2f}", flush=True
    )
    stage = {"data": ({"name": "squad_qg_pairs"},), "mining": BM25}
    return measure, stage


def followir(options: argparse.Namespace) -> Any:
    subjects = held_out(options.data, options.questions)
    changed, own = subjects.changed, subjects.own_answers

    def ranked(reranker: Reranker, query: str, instruction: str) -> dict[str, float]:
        names = own.candidates[query]
        pairs = [(query, own.corpus[name]) for name in names]
        scores = reranker.scores(pairs, [instruction] * len(pairs)).tolist()
        return dict(zip(names, scores, strict=True))

    def measure(reranker: Reranker) -> dict[str, float]:
        runs = {
            (query, instruction): ranked(reranker, query, instruction)
            for query in own.queries
            for instruction in own.instructions[query]
        }
        right = [
            max(order, key=order.get) in judged
            for query in own.queries
            for instruction, judged in zip(own.instructions[query], own.qrels[query], strict=True)
            for order in [runs[query, instruction]]
        ]
        before, after, excluded = {}, {}, {}
        for key, text in changed.queries.items():
            first, second = changed.instructions[key]
            before[key], after[key] = runs[text, first], runs[text, second]
            relevant, still = changed.qrels[key]
            excluded[key] = [name for name in relevant if name not in still]
        return {"p-MRR": p_mrr(before, after, excluded), "right aspect": float(np.mean(right))}

    print(f"right aspect by chance: {subjects.chance:.4f}", flush=True)
    return measure, {"data": ({"name": "medquad_instructions", "num_negatives": 1},)}


SYSTEMS = {"monot5": monot5, "followir": followir}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scale", choices=("nano", "small"), default="nano")
    parser.add_argument("--prompt", default="monot5")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--questions", type=int, default=100, help="or subjects")
    parser.add_argument("--depth", type=int, default=20, help="documents of BM25 to order anew")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    measure, stage = SYSTEMS[options.system](options)
    print("untrained", measure(untrained(options)), flush=True)
    found = []
    for seed in range(options.seeds):
        began = time.perf_counter()
        found.append(measure(trained(options, seed, **stage)))
        print(f"seed {seed} ({time.perf_counter() - began:.0f} s)", found[-1], flush=True)
    for name in found[0]:
        values = [each[name] for each in found]
        print(f"{name}: {np.mean(values):.4f} ± {np.std(values, ddof=1) if values[1:] else 0:.4f}")


if __name__ == "__main__":
    main()
