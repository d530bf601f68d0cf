"""What each training-free way of pooling a language model gains over mean and last-token pooling.

    python benchmarks/training_free.py --data DATA            (about 15 minutes, two cores)

Every recipe at scale nano, so all on nano-lm (MoEE on its mixture-of-experts version): Spearman on
STS-B dev and test (times 100), nDCG@10 on a part of SciFact: all test claims, every judged abstract
and as many others as make 500, drawn with seed 0. MetaEOL, which reads each text eight times, and
GenEOL, which writes its variants token by token, are measured on the first 200 pairs of each split,
beside PromptEOL, and GenEOL's own prompt without variants, on the same pairs.
Nothing here was chosen on a test split. Results go to docs/results/training-free.json.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from pathlib import Path

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import ModelError
from polyvec.evaluate.tasks import evaluate
from polyvec.recipe import load_recipe

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "training-free.json"
BASELINES = ("causal-mean", "causal-last")
RECIPES = (
    *BASELINES,
    *("prompteol", "prompteol-icl", "prompt-sth", "prompt-sum", "pretended-cot"),
    *("knowledge-enhancement", "token-prepending", "echo", "reba", "promptreps-dense"),
    *("promptreps-sparse", "moee", "moee-routes"),
)
SLOW = ("metaeol", "geneol")
FEW = 200


def part_of_scifact(folder: Path, size: int = 500, seed: int = 0) -> RetrievalSet:
    """All judged documents and others up to `size`, all queries."""
    whole = read_folder(folder, "test")
    assert isinstance(whole, RetrievalSet)
    judged = {doc for grades in whole.qrels.values() for doc in grades if doc in whole.corpus}
    others = sorted(set(whole.corpus) - judged)
    chosen = judged | set(random.Random(seed).sample(others, max(0, size - len(judged))))
    corpus = {doc: text for doc, text in whole.corpus.items() if doc in chosen}
    return dataclasses.replace(whole, corpus=corpus)


def first_pairs(data: StsSet, count: int) -> StsSet:
    return dataclasses.replace(
        data,
        sentences1=data.sentences1[:count],
        sentences2=data.sentences2[:count],
        scores=data.scores[:count],
    )


def scores(embedder: Embedder, sts: dict[str, StsSet], scifact: RetrievalSet) -> dict[str, float]:
    found = {
        f"stsb {split}": evaluate(embedder, ".", data=data).main_score
        for split, data in sts.items()
    }
    return {**found, "scifact part": evaluate(embedder, ".", data=scifact).main_score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="these recipes; the others' figures stay")
    options = parser.parse_args()
    sts = {split: read_folder(options.data / "stsb", split) for split in ("dev", "test")}
    scifact = part_of_scifact(options.data / "scifact")
    done = json.loads(RESULTS.read_text()) if options.only and RESULTS.exists() else {}
    for key in options.only or (*RECIPES, "promptreps-hybrid", *SLOW):
        began = time.perf_counter()
        try:
            done[key] = measured(key, sts, scifact)
        except ModelError as error:
            print(f"{key}: left out, {error}", file=sys.stderr)
            continue
        figures = "  ".join(f"{k} {v:.4f}" for k, v in done[key].items())
        print(f"{key:24} {figures}  ({time.perf_counter() - began:.0f} s)", flush=True)
        RESULTS.write_text(json.dumps(done, indent=2) + "\n")


def measured(key: str, sts: dict[str, StsSet], scifact: RetrievalSet) -> dict[str, float]:
    """The figures of a recipe, by data set."""
    if key == "promptreps-hybrid":  # fused rankings: pairs have no score
        model = load_recipe(key).build("nano")
        return {"scifact part": evaluate(model, ".", data=scifact).main_score}
    if key not in SLOW:
        return scores(load_recipe(key).build("nano"), sts, scifact)
    recipe = load_recipe(key)
    alone = dataclasses.replace(recipe.at(EMBEDDER, "nano"), variants={})
    models = {key: recipe.build("nano"), "prompteol": load_recipe("prompteol").build("nano")}
    if recipe.at(EMBEDDER, "nano").variants:
        models["no variants"] = compose(alone)
    return {
        f"stsb {split}, first {FEW} pairs, {name}": evaluate(
            model, ".", data=first_pairs(data, FEW)
        ).main_score
        for name, model in models.items()
        for split, data in sts.items()
    }


if __name__ == "__main__":
    main()
