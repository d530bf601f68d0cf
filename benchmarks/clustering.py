"""What a language model's feedback gains in clustering: with an oracle that lies, and with SmolLM2.

    python benchmarks/clustering.py --data DATA --part oracle     (some minutes a data set)
    python benchmarks/clustering.py --data DATA --part model      (half an hour a data set)
    python benchmarks/clustering.py --data DATA --part k          (how many groups)
    python benchmarks/clustering.py --data DATA --part size       (100,000 vectors)

The oracle knows the gold groups and answers every prompt from the texts in it; at a rate it
answers at random instead. Each method is beside k-means on the same vectors. Accuracy is by the
best assignment. A data set, method, rate and seed is a cell in --folder, so that an interrupted
run goes on. Results go to docs/results/clustering.json; docs/generate.py makes the tables.
"""

import argparse
import functools
import gzip
import json
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training_free import Work

from polyvec import Embedder
from polyvec.cluster.algorithms import ALGORITHMS
from polyvec.cluster.clusterer import TextClusterer
from polyvec.cluster.measuring import agreement
from polyvec.llm.cache import CachedLanguageModel
from polyvec.llm.function import FunctionLanguageModel
from polyvec.llm.loading import load_language_model
from polyvec.storage.files import atomic_file, cache_folder

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "clustering.json"
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
ORACLE_SEEDS, MODEL_SEEDS = 3, 5
MOST_TEXTS = 1500  # of a set, drawn once; CLINC150 with LSA is whole, as its reference figures
SMALL_TEXTS, SMALL_GROUPS = 400, 20  # that SmolLM2 is asked about
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Characters of a text in prompts of these kinds; texts of other sets are short.
SHOWN, SHOWN_BY = {"newsgroups20": 300}, ("label", "keyphrase", "triplet")
TOKENS = 64  # of such a text, that triplets train on
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TRIPLET_RATES = RATES[:3]  # each is a training
WAYS = (
    "silhouette",
    "stability",
    *(f"oracle, {100 * lies:.0f} % lies" for lies in TRIPLET_RATES),
    "SmolLM2-135M-Instruct",
)
Embed = Callable[[Sequence[str]], np.ndarray]


class DataSet(NamedTuple):
    """File below the folder of data sets, its fields, and what prompts call texts and groups."""

    path: str
    text: str
    label: str
    noun: str
    facet: str


SETS = {
    "clinc150": DataSet("clinc150/test.jsonl.gz", "text", "label", "customer utterance", "intent"),
    "banking77": DataSet(
        "banking77/test.jsonl.gz", "text", "label", "banking customer utterance", "intent"
    ),
    "stackoverflow": DataSet(
        "stackoverflow_short/all.jsonl.gz", "text", "label", "question", "topic"
    ),
    "newsgroups20": DataSet("newsgroups20/test.jsonl.gz", "text", "label", "message", "topic"),
}


def stage(temperature: float, **length: Any) -> dict[str, Any]:
    """That of the recipes clusterllm and loop at scale small."""
    losses = [{"kind": "info_nce", "temperature": temperature}]
    return {"learning_rate": 2e-5, "losses": losses, **length}


def methods(num: int) -> dict[str, list[dict[str, Any]]]:
    """What is asked of so many texts: a label or keyphrases each, two pairs a text, triplets about
    a fifth, a fifth corrected.
    """
    return {
        "k-means": [],
        "label": [{"kind": "label", "smooth": ()}],
        "label, smoothed": [{"kind": "label", "smooth": (5, 15)}],
        "keyphrase": [{"kind": "keyphrase"}],
        "triplet, ClusterLLM": [
            {
                "kind": "triplet",
                "num_queries": num // 5,
                "stage": stage(0.05, batch_size=16, num_train_epochs=3.0),
            }
        ],
        "triplet, LOOP": [
            {
                "kind": "triplet",
                "num_queries": num // 5,
                "select": "boundary",
                "share": 1.0,
                "candidates": "neighbours",
                "num_neighbours": 50,
                "self_pairs": num // 2,
                "prompt": "loop_triplet",
                "stage": stage(0.07, batch_size=32, max_steps=40),
            }
        ],
        "pair, contracted": [{"kind": "pair", "num_queries": 2 * num, "use": "contract"}],
        "pair, PCKMeans": [{"kind": "pair", "num_queries": 2 * num}],
        "reassign": [
            {"kind": "reassign", "select": "entropy", "num_queries": num // 5, "num_candidates": 5}
        ],
        "reassign, propagated": [
            {
                "kind": "reassign",
                "select": "entropy",
                "num_queries": num // 5,
                "num_candidates": 5,
                "propagate": 5,
                "share": 0.5,
            }
        ],
    }


def read(data: Path, name: str, *, whole: bool = False) -> tuple[list[str], list[str]]:
    """Texts, on one line each, and their gold groups; no text twice."""
    found = SETS[name]
    groups: dict[str, str] = {}
    with gzip.open(data / found.path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            text = " ".join(row[found.text].split())[:1000]
            if text:
                groups.setdefault(text, str(row[found.label]))
    texts = list(groups)
    chosen = np.random.default_rng(0).permutation(len(texts))
    chosen = chosen if whole else chosen[:MOST_TEXTS]
    return [texts[i] for i in chosen], [groups[texts[i]] for i in chosen]


def small(texts: Sequence[str], gold: Sequence[str]) -> tuple[list[str], list[str]]:
    draw = np.random.default_rng(1)
    kept = set(draw.permutation(sorted(set(gold)))[:SMALL_GROUPS].tolist())
    rows = [row for row in range(len(texts)) if gold[row] in kept][:SMALL_TEXTS]
    return [texts[row] for row in rows], [gold[row] for row in rows]


class Oracle:
    """Answers from the gold groups of the texts in a prompt; at a rate, at random."""

    def __init__(self, texts: Sequence[str], gold: Sequence[str], lies: float, seed: int) -> None:
        self.group = dict(zip(texts, gold, strict=True))
        self.names = sorted(set(gold))
        self.lies, self.draw = lies, np.random.default_rng(seed)

    def model(self) -> FunctionLanguageModel:
        return FunctionLanguageModel(self.answer, "oracle")

    def answer(self, prompt: str) -> str:
        lie = self.draw.random() < self.lies
        if re.search("\n ?Choice 1: ", prompt):  # the space is LOOP's
            query = self.group[re.search(r"\n ?Query: (.*)", prompt).group(1)]
            choices = [self.group[each] for each in re.findall(r"\n ?Choice \d+: (.*)", prompt)]
            if lie:
                return f"Choice {1 + int(self.draw.integers(len(choices)))}"
            return f"Choice {1 + choices.index(query)}" if query in choices else "none of them"
        if "\nSentence 1: " in prompt:
            a, b = (self.group[re.findall(rf"\nSentence {n}: (.*)", prompt)[-1]] for n in (1, 2))
            same = bool(self.draw.random() < 0.5) if lie else a == b
            return "Yes" if same else "No"
        text = re.findall(r"\n[a-z ]+: (.*)\n(?:description|label|Keyphrases):$", prompt)[-1]
        found = str(self.draw.choice(self.names)) if lie else self.group[text]
        return re.sub(r"[._-]+", " ", found)


def lsa(texts: Sequence[str]) -> Embed:
    """256 dimensions of the texts' own latent semantic analysis."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = TfidfVectorizer(sublinear_tf=True)
    model = TruncatedSVD(256, random_state=0).fit(words.fit_transform(texts))
    return lambda each: normalize(model.transform(words.transform(each)))


def minilm() -> Embed:
    """all-MiniLM-L6-v2, each text once."""
    embedder = Embedder.from_pretrained(MINILM)
    known: dict[str, np.ndarray] = {}

    def embed(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            found = embedder.encode(new, truncate="silent", show_progress_bar=False)
            known.update(zip(new, found, strict=True))
        return np.array([known[text] for text in texts])

    return embed


def oracle_part(data: Path, names: Sequence[str], vectors: Sequence[str], work: Work) -> None:
    for how in vectors:
        for name in names:
            texts, gold = read(data, name, whole=how == "lsa" and name == "clinc150")
            embed: Embed | None = None
            for method, feedback in methods(len(texts)).items():
                if "triplet" in method and how == "lsa":
                    continue  # nothing that can be trained
                for lies in rates(method, how):
                    for seed in range(ORACLE_SEEDS):
                        key = ("oracle", how, name, method, f"{lies:g}", str(seed))
                        if work.path(*key).exists() or not work.claim(*key):
                            continue
                        embed = embed or (lsa(texts) if how == "lsa" else minilm())
                        model = Oracle(texts, gold, lies, seed).model()
                        cell = run(name, texts, gold, feedback, embed, model, seed)
                        work.keep(cell, *key)
                        work.release(*key)
                        print(*key, cell["accuracy"], cell["calls"], cell["s"], flush=True)


def rates(method: str, how: str) -> Sequence[float]:
    """Of lies, that a method is measured with."""
    if method == "k-means":
        return RATES[:1]
    return TRIPLET_RATES if "triplet" in method or how == "lsa" else RATES


def model_part(
    data: Path, names: Sequence[str], chosen: Sequence[str], seeds: int | None, work: Work
) -> None:
    """SmolLM2 by the likelihood of the choices in float32; its labels are what it writes in
    bfloat16, as prompts of labels are long.
    """

    @functools.cache
    def language_model(dtype: str) -> CachedLanguageModel:
        return CachedLanguageModel(load_language_model(SMOL, dtype=dtype), work.folder / "answers")

    embed = minilm()
    for name in names:
        texts, gold = small(*read(data, name))
        asked = methods(len(texts))
        asked["pair, contracted"][0]["num_queries"] = len(texts) // 2
        asked["pair, PCKMeans"][0]["num_queries"] = len(texts) // 2
        for method in chosen or asked:
            feedback = asked[method]
            kind = feedback[0]["kind"] if feedback else ""
            judge = language_model("bfloat16" if kind in ("label", "keyphrase") else "float32")
            cut = name in SHOWN and kind in SHOWN_BY
            shown = {"max_characters": SHOWN[name]} if cut else {}
            if cut and kind == "triplet":
                feedback[0]["stage"] |= {"max_length": TOKENS, "query_max_length": TOKENS}
            for seed in range(seeds or MODEL_SEEDS):
                key = ("model", "minilm", name, method, str(seed))
                if work.path(*key).exists() or not work.claim(*key):
                    continue
                cell = run(
                    name, texts, gold, feedback, embed, judge, seed, answers="likelihood", **shown
                )
                work.keep(cell, *key)
                work.release(*key)
                print(*key, cell["accuracy"], cell["right"], cell["s"], flush=True)


def run(
    name: str,
    texts: Sequence[str],
    gold: Sequence[str],
    feedback: Sequence[Mapping[str, Any]],
    embed: Embed,
    model: Any,
    seed: int,
    **more: Any,
) -> dict[str, Any]:
    """Scores of a method; `right`: the share of its answers that an honest oracle would give."""
    began = time.perf_counter()
    trains = any(each["kind"] == "triplet" for each in feedback)
    clusterer = TextClusterer(
        k=len(set(gold)),
        feedback=feedback,
        noun=SETS[name].noun,
        facet=SETS[name].facet,
        embedder=Embedder.from_pretrained(MINILM) if trains else embed,
        language_model=model,
        name=False,
        seed=seed,
        **more,
    )
    found = clusterer.fit(texts, vectors=embed(texts))
    answered = [call for call in found.calls if call.value is not None]
    rights = [is_right(call, gold) for call in answered]
    judged = [each for each in rights if each is not None]
    return {
        **agreement(found.labels, gold),
        "calls": len(found.calls),
        "answered": len(answered),
        "right": round(float(np.mean(judged)), 4) if judged else None,
        "s": round(time.perf_counter() - began, 1),
    }


def is_right(call: Any, gold: Sequence[str]) -> bool | None:
    """Whether a choice is of the same gold group; None for labels, and where none is."""
    own, *others = (gold[each] for each in call.texts)
    if call.feedback == "triplet" and own in others:
        return bool(others[call.value] == own) if others[0] != others[1] else None
    if call.feedback == "pair":
        return (call.value == 0) == (own == others[0])
    if call.feedback == "reassign" and own in others:
        return bool(others[call.value] == own)
    return None


def k_part(data: Path, names: Sequence[str], work: Work) -> None:
    """How many groups each way finds in 400 texts of 20 groups and in 1,500 of all."""
    judge = CachedLanguageModel(load_language_model(SMOL), work.folder / "answers")
    embed = minilm()
    for name in names:
        whole = read(data, name)
        for size, (texts, gold) in (("all", whole), ("small", small(*whole))):
            vectors = embed(texts)
            judges: dict[str, Any] = {
                f"oracle, {100 * lies:.0f} % lies": Oracle(texts, gold, lies, 0).model()
                for lies in TRIPLET_RATES
            }
            judges["SmolLM2-135M-Instruct"] = judge
            ways = [("silhouette", None), ("stability", None), *judges.items()]
            for way, model in ways:
                key = ("k", name, size, way)
                if work.path(*key).exists() or not work.claim(*key):
                    continue
                clusterer = TextClusterer(
                    k="auto",
                    choose_by=way if model is None else "granularity",
                    noun=SETS[name].noun,
                    facet=SETS[name].facet,
                    embedder=embed,
                    language_model=model,
                    answers="likelihood" if model is judge else "text",
                    name=False,
                )
                found = clusterer.fit(texts, vectors=vectors)
                assert found.choice is not None
                cell = {
                    "texts": len(texts),
                    "gold": len(set(gold)),
                    "k": found.choice.k,
                    "calls": len(found.calls),
                }
                work.keep(cell, *key)
                work.release(*key)
                print(*key, cell, flush=True)


def size_part(work: Work) -> None:
    """Seconds, and memory of the process, of k-means of 100,000 vectors of MiniLM's size."""
    draw = np.random.default_rng(0)
    centers = draw.standard_normal((200, 384)).astype(np.float32)
    vectors = centers[draw.integers(0, 200, 100_000)]
    vectors += 0.8 * draw.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    began, used = time.perf_counter(), time.process_time()
    labels = ALGORITHMS["kmeans"]().labels(vectors, 200, 0)
    cell = {
        "vectors": len(vectors),
        "groups": len(np.unique(labels)),
        "s": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time() - used, 1),
        "mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    work.keep(cell, "size")
    print(cell)


def collect(work: Work) -> None:
    """Means and standard deviations over seeds; what the folder lacks stays as it was."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found: dict[str, Any] = {"oracle": {}, "model": {}, **before}
    for how in ("lsa", "minilm"):
        for name in SETS:
            num = 3  # any; the names of the methods are wanted
            for method in methods(num):
                for lies in RATES:
                    cells = [
                        cell
                        for seed in range(ORACLE_SEEDS)
                        if (cell := work.read("oracle", how, name, method, f"{lies:g}", str(seed)))
                    ]
                    if cells:
                        table = found["oracle"].setdefault(how, {}).setdefault(name, {})
                        table.setdefault(method, {})[f"{lies:g}"] = summary(cells)
                cells = [
                    cell
                    for seed in range(MODEL_SEEDS)
                    if (cell := work.read("model", how, name, method, str(seed)))
                ]
                if cells:
                    found["model"].setdefault(name, {})[method] = summary(cells)
    for name in SETS:
        for size in ("all", "small"):
            for way in WAYS:
                if (cell := work.read("k", name, size, way)) is not None:
                    found.setdefault("k", {}).setdefault(name, {}).setdefault(size, {})[way] = cell
    if (cell := work.read("size")) is not None:
        found["size"] = cell
    with atomic_file(RESULTS, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def spread(name: str) -> list[float]:
        values = [cell[name] for cell in cells]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return [round(float(np.mean(values)), 4), round(deviation, 4), len(values)]

    rights = [cell["right"] for cell in cells if cell["right"] is not None]
    return {
        **{name: spread(name) for name in ("accuracy", "nmi", "ari")},
        "calls": round(float(np.mean([cell["calls"] for cell in cells]))),
        "answered": round(float(np.mean([cell["answered"] for cell in cells]))),
        "right": round(float(np.mean(rights)), 4) if rights else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--part", choices=("oracle", "model", "k", "size"), default="oracle")
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--vectors", nargs="*", default=["lsa"], choices=("lsa", "minilm"))
    parser.add_argument("--methods", nargs="*", help="of part model; default: all")
    parser.add_argument("--seeds", type=int, help="of part model; default: 5")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    work = Work(options.folder or cache_folder("clustering"))
    if not options.collect:
        if options.part == "oracle":
            oracle_part(options.data, options.only, options.vectors, work)
        elif options.part == "model":
            model_part(options.data, options.only, options.methods, options.seeds, work)
        elif options.part == "k":
            k_part(options.data, options.only, work)
        else:
            size_part(work)
    collect(work)


if __name__ == "__main__":
    main()
