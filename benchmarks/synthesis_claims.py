"""Claims of synthesis_effects.py: each an experiment of arms that differ in one thing."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from effects import Experiment, score
from instruction_following import held_out, measured
from scipy.stats import rankdata
from synthesis_arms import BASES, INFO_NCE, SHOWN, Arm, Base, Context, Table, scl
from synthesis_domains import DOMAINS
from synthesis_making import WRITERS, Making

from polyvec import Embedder
from polyvec.data.tasks.sets import RetrievalSet
from polyvec.data.training.sources import training_rows
from polyvec.synthesize.judges import Pair
from polyvec.synthesize.rows import Row
from polyvec.synthesize.run import parts
from polyvec.synthesize.steps.ranking import scorer

# ---- queries for a domain -----------------------------------------------------------------------


def domain(name: str, base: str) -> Experiment:
    """Trained on as many unfiltered, filtered and gold rows."""
    source = f"queries {name}"
    both = [f"{source}/filtered", f"{source}/unfiltered"]
    gold = {**DOMAINS[name].gold, "rows_of": both}
    arms = {
        "untrained": Arm(BASES[base]),
        "unfiltered": Arm(BASES[base], [scl(data=({"source": both[1], "rows_of": both},))]),
        "round trip": Arm(BASES[base], [scl(data=({"source": both[0], "rows_of": both},))]),
        "all that was written": Arm(BASES[base], [scl(both[1])]),
        "gold": Arm(BASES[base], [scl(data=(gold,))]),
    }
    return Experiment(
        f"synthetic queries: {SHOWN[base]} on {DOMAINS[name].shown}",
        arms,
        (
            ("all that was written", "untrained", "synthetic queries beat zero-shot"),
            ("round trip", "unfiltered", "the round trip beats as many unfiltered queries"),
            ("round trip", "untrained", "and zero-shot"),
            ("gold", "round trip", "as many gold queries beat filtered ones"),
        ),
        columns=(name,),
    )


def tuned_queries(base: str) -> Experiment:
    arms = {
        "untrained": Arm(BASES[base]),
        "prompted": Arm(BASES[base], [scl("queries squad/unfiltered")]),
        "tuned": Arm(BASES[base], [scl("queries squad, tuned/unfiltered")]),
        "prompted, round trip": Arm(BASES[base], [scl("queries squad/filtered")]),
        "tuned, round trip": Arm(BASES[base], [scl("queries squad, tuned/filtered")]),
    }
    return Experiment(
        f"a tuned writer of questions: {SHOWN[base]} on SQuAD dev",
        arms,
        (
            ("tuned", "prompted", "a writer tuned on question pairs beats a prompted one"),
            ("tuned, round trip", "prompted, round trip", "after the round trip, too"),
            ("tuned", "untrained", "and zero-shot"),
        ),
        columns=("squad",),
    )


def tuned_nli(base: str) -> Experiment:
    short = {"max_length": 64}

    def on(name: str) -> Arm:
        rows = ["nli/filtered", "nli, tuned/filtered"]
        table = {"source": name, "rows_of": rows, "symmetric": True}
        return Arm(BASES[base], [scl(data=(table,), **short)])

    gold = {"name": "snli", "rows_of": ["nli/filtered", "nli, tuned/filtered"]}
    return Experiment(
        f"GenSE, arXiv:2210.16798: {SHOWN[base]}",
        {
            "untrained": Arm(BASES[base]),
            "prompted": on("nli/filtered"),
            "tuned": on("nli, tuned/filtered"),
            "gold (SNLI)": Arm(BASES[base], [scl(data=(gold,), **short)]),
        },
        (
            ("tuned", "prompted", "a writer tuned on SNLI beats a prompted one"),
            ("tuned", "untrained", "written triplets beat no training"),
            ("gold (SNLI)", "tuned", "people's triplets beat written ones"),
        ),
        columns=("stsb test", "sick test"),
    )


# ---- scores, levels, instructions, false negatives ----------------------------------------------


def soft_scores(base: str) -> Experiment:
    def on(name: str, loss: Table) -> Arm:
        table = {"source": name, "symmetric": True}
        return Arm(BASES[base], [scl(data=(table,), losses=[loss], max_length=64)])

    soft = {"kind": "soft_info_nce", "temperature": 0.05}
    return Experiment(
        f"CLAIF and CLHAIF, arXiv:2305.01918: {SHOWN[base]}",
        {
            "untrained": Arm(BASES[base]),
            "NLI pairs, hard": on("scores/hard", soft),
            "NLI pairs, soft": on("scores/soft", soft),
            "infilled pairs, hard": on("infilled/hard", {"kind": "mse_score"}),
            "infilled pairs, soft": on("infilled/soft", {"kind": "mse_score"}),
        },
        (
            ("NLI pairs, soft", "NLI pairs, hard", "CLHAIF: soft targets beat hard ones"),
            ("infilled pairs, soft", "infilled pairs, hard", "CLAIF: scores beat 0 and 1"),
            ("infilled pairs, soft", "untrained", "CLAIF: beats no training"),
        ),
        columns=("stsb test", "sick test", "sts16 test"),
    )


def graded(source: str, base: str) -> Experiment:
    """Order of the levels, on anchors that no stage saw."""

    def on(losses: Sequence[Table], margins: Table | None) -> Arm:
        name = f"{source}/train"
        tables = [{"name": "matches", "source": name, "symmetric": True, "num_negatives": 0}]
        chosen: list[Table] = [{**losses[0], "datasets": ["matches"]}]
        if margins is not None:
            tables.append({"name": "levels", "source": name, "symmetric": True})
            chosen.append({**margins, "datasets": ["levels"]})
        stage = scl(data=tuple(tables), losses=chosen, max_length=64, max_steps=100)
        return Arm(BASES[base], [stage], Ordered(source))

    hierarchy = {"kind": "hier_triplet", "margins": [0.1, 0.2]}
    return Experiment(
        f"NGCSE, arXiv:2309.06453: {SHOWN[base]}, "
        + ("SNLI's labels" if source == "nli levels" else "written levels"),
        {
            "untrained": Arm(BASES[base], (), Ordered(source)),
            "InfoNCE": on(INFO_NCE, None),
            "and levels": on(INFO_NCE, hierarchy),
        },
        (
            ("and levels", "InfoNCE", "levels end in the right order", ("in order",)),
            ("and levels", "untrained", "and did not before", ("in order",)),
            ("and levels", "InfoNCE", "levels help similarity", ("test",)),
        ),
        columns=("stsb test",),
    )


MOST_ORDERED = 400


@dataclass(frozen=True)
class Ordered:
    """The share of anchors whose three texts are in the order of their levels.

    Of held-out anchors, and of those that were trained on.
    """

    source: str

    @property
    def sources(self) -> list[str]:
        return [self.source]

    def __call__(self, model: Any, context: Context) -> dict[str, float]:
        found, trained = (self._ordered(model, context, name) for name in ("held_out", "train"))
        return {**found, "in order, trained on": trained["in order"]}

    def _ordered(self, model: Any, context: Context, name: str) -> dict[str, float]:
        path = context.sources / self.source / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()][:MOST_ORDERED]
        texts = [[row["query"], row["pos"][0], *row["neg"]] for row in rows]
        flat = [text for each in texts for text in each]
        vectors = np.asarray(model.encode(flat, show_progress_bar=False), np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        vectors_N4E = vectors.reshape(len(rows), 4, -1)
        near_N3 = np.einsum("ne,nke->nk", vectors_N4E[:, 0], vectors_N4E[:, 1:])
        first, second = near_N3[:, 0] > near_N3[:, 1], near_N3[:, 1] > near_N3[:, 2]
        return {
            "in order": float((first & second).mean()),
            "similar over intermediate": float(first.mean()),
            "intermediate over distinct": float(second.mean()),
        }


def instructions(scale: str) -> Experiment:
    """Negatives that are wrong by the instruction alone: written, judged, or MedQuAD's aspects."""
    base = Base(scale, "promptriever")
    longer = {"query_max_length": 160, "mixing": {"drop_last": True}}
    aspects = {"name": "medquad_instructions", "num_negatives": 3, "limit": 4000}

    def on(name: str) -> Arm:
        return Arm(base, [scl(f"instructed/{name}", **longer)], following)

    return Experiment(
        f"Promptriever, arXiv:2409.11136: {'SmolLM2-135M' if scale == 'small' else 'nano-lm'}",
        {
            "untrained": Arm(base, (), following),
            "no instructions": on("bare"),
            "instructions": on("alone"),
            "instructions and their negatives": on("unfiltered"),
            "negatives judged": on("filtered"),
            "aspects without negatives": Arm(
                base, [scl(data=({**aspects, "num_negatives": 0},), **longer)], following
            ),
            "aspects and their negatives": Arm(base, [scl(data=(aspects,), **longer)], following),
        },
        (
            ("instructions and their negatives", "instructions", "negatives help", FOLLOWS),
            ("negatives judged", "instructions and their negatives", "judged ones more", FOLLOWS),
            ("instructions", "no instructions", "instructions alone help", FOLLOWS),
            (
                "aspects and their negatives",
                "aspects without negatives",
                "instruction negatives make p-MRR positive",
                FOLLOWS,
            ),
        ),
        columns=(),
    )


FOLLOWS = ("right aspect", "p-MRR")


def following(model: Any, context: Context) -> dict[str, float]:
    """How the model follows instructions about subjects that no stage saw."""
    most = {"small": 120, "nano": 40, "tiny": 5}[context.options.sets]
    return measured(model, held_out(context.tasks.folder, most))


def false_negatives(base: str) -> Experiment:
    names = ("naive", "positive-aware", "dropped", "relabelled", "refilled")
    names += ("dropped, right 90 %", "relabelled, right 90 %")

    def on(name: str) -> Arm:
        return Arm(BASES[base], [scl(f"mined/{name}", max_length=48)], by_intent)

    return Experiment(
        f"false negatives on CLINC150: {SHOWN[base]}",
        {
            "untrained": Arm(BASES[base], (), by_intent),
            **{name: on(name) for name in names},
        },
        (
            ("positive-aware", "naive", "NV-Retriever: positive-aware mining beats naive"),
            ("dropped", "naive", "dropping false negatives helps"),
            ("relabelled", "dropped", "relabelling beats dropping"),
            ("relabelled, right 90 %", "dropped, right 90 %", "by a judge right 9 times in 10"),
            ("refilled", "dropped", "filling the places with true negatives helps"),
        ),
        columns=(),
    )


def by_intent(model: Any, context: Context) -> dict[str, float]:
    """nDCG@10 of test utterances that search others of their intent."""
    rows = training_rows(
        {"path": str(context.tasks.folder / "clinc150" / "test.jsonl.gz"), "format": "classes"}
    )
    by_class: dict[str, list[str]] = {}
    for row in rows:
        by_class.setdefault(str(row.label), []).append(row.query)
    each = {"small": 10, "nano": 4, "tiny": 1}[context.options.sets]
    corpus, queries, qrels = {}, {}, {}
    for label, texts in sorted(by_class.items()):
        first, *others = texts[: each + 1]
        queries[f"q{label}"] = first
        own = {f"d{label}-{i}": text for i, text in enumerate(others)}
        corpus |= own
        qrels[f"q{label}"] = dict.fromkeys(own, 1)
    return {"clinc150": score(model, RetrievalSet("clinc150", "test", corpus, queries, qrels))}


# ---- filters ------------------------------------------------------------------------------------


def filters(scale: str) -> Experiment:
    """Questions of SQuAD with their sentence are good; bad ones are planted."""
    names = {
        "chance": None,
        "log-probability": {"kind": "log_probability", "prompt": "inpars", "keep": 1.0},
        "likelihood of the question": {"kind": "likelihood", "prompt": "inpars"},
        "judge": {"kind": "llm", "prompt": "followir"},
        "guide": {"kind": "guide"},
    }
    writer = "SmolLM2-135M" if scale == "small" else "nano-lm"
    return Experiment(
        f"filters: {writer}, and all-MiniLM-L6-v2 as the guide",
        {name: Arm(None, (), Auc(scale, json.dumps(table))) for name, table in names.items()},
        (
            ("log-probability", "chance", "InPars: the likelier question is the good one"),
            ("likelihood of the question", "chance", "UPR: its sum, too"),
            ("guide", "log-probability", "InPars-v2: a reranker filters better"),
            ("judge", "chance", "FollowIR's judge"),
        ),
        columns=(),
    )


SHORT_WORDS = 20


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve of good above bad pairs: of random ones, and of near ones.

    Near: the question of the sentence that is nearest by all-MiniLM-L6-v2.
    """

    scale: str
    table: str

    def __call__(self, model: Any, context: Context) -> dict[str, float]:
        table = json.loads(self.table)
        rows = training_rows({"name": "squad_qg_pairs"}, context.tasks.folder)
        # InPars' prompt leaves nano-lm's context no room for longer ones.
        rows = [row for row in rows if len(row.positives[0].split()) <= SHORT_WORDS]
        count = max(4, context.options.limit // 2)
        rows = random.Random(context.seed).sample(rows, min(count, len(rows)))
        asked, texts = [row.query for row in rows], [row.positives[0] for row in rows]
        near_N = self._near(texts)
        bad = {
            "random": [asked[i - 1] for i in range(len(rows))],
            "near": [asked[place] for place in near_N],
        }
        found = {}
        good_N = self._scores(table, asked, texts, context)
        for name, other in bad.items():
            bad_N = self._scores(table, other, texts, context)
            found[f"AUC, {name}"] = auc(good_N, bad_N)
        return found

    def _near(self, texts: Sequence[str]) -> list[int]:
        vectors = np.asarray(
            Embedder.from_pretrained().encode(list(texts), show_progress_bar=False), np.float32
        )
        near = vectors @ vectors.T
        near[np.equal.outer(np.array(texts), np.array(texts))] = -1
        return near.argmax(axis=1).tolist()

    def _scores(
        self, table: Table | None, asked: Sequence[str], texts: Sequence[str], context: Context
    ) -> np.ndarray:
        if table is None:
            return np.zeros(len(texts))
        making = Making(context.options, context.tasks, context.sources / "filters", "filters")
        tools = making.models(
            context.options.writer if self.scale == "small" else WRITERS["nano"]
        ).tools(())
        if table["kind"] == "log_probability":
            settings = {key: value for key, value in table.items() if key != "kind"}
            step: Any = parts().build("log_probability", settings, where="filters")
            rows = [
                Row(q, t, meta={"id": str(i)})
                for i, (q, t) in enumerate(zip(asked, texts, strict=True))
            ]
            return np.array([row.meta["log_probability"] for row in step.run(rows, tools).kept])
        pairs = [Pair(q, t, t) for q, t in zip(asked, texts, strict=True)]
        return scorer(table, "filters").verdicts(pairs, tools).scores_P


def auc(good_N: np.ndarray, bad_N: np.ndarray) -> float:
    """The share of good and bad pairs in which the good one scores higher; ties count a half."""
    ranks = rankdata(np.concatenate([good_N, bad_N]))[: len(good_N)]
    above = ranks.sum() - len(good_N) * (len(good_N) + 1) / 2
    return float(above / (len(good_N) * len(bad_N)))


# ---- all of them --------------------------------------------------------------------------------

EFFECTS: Mapping[str, Callable[[], Experiment]] = {
    **{
        f"{name}, {base}": (lambda name=name, base=base: domain(name, base))
        for name, base in (
            ("scifact", "smollm2"),
            ("nl2bash", "smollm2"),
            ("nl2bash", "minilm"),
            ("cosqa", "minilm"),
            ("scifact", "minilm-reset"),
            ("squad", "minilm-reset"),
            ("medquad", "minilm-reset"),
            ("squad", "nano-lm"),
            ("medquad", "nano-lm"),
        )
    },
    "filters, small": lambda: filters("small"),
    "filters, nano": lambda: filters("nano"),
    "scores, smollm2": lambda: soft_scores("smollm2"),
    "scores, nano-lm": lambda: soft_scores("nano-lm"),
    "levels, smollm2": lambda: graded("levels", "smollm2"),
    "nli levels, smollm2": lambda: graded("nli levels", "smollm2"),
    "nli levels, minilm": lambda: graded("nli levels", "minilm"),
    "nli levels, minilm-reset": lambda: graded("nli levels", "minilm-reset"),
    "nli levels, nano-lm": lambda: graded("nli levels", "nano-lm"),
    "instructions, small": lambda: instructions("small"),
    "instructions, nano": lambda: instructions("nano"),
    "false negatives, minilm-reset": lambda: false_negatives("minilm-reset"),
    "false negatives, nano-lm": lambda: false_negatives("nano-lm"),
    "tuned queries, smollm2": lambda: tuned_queries("smollm2"),
    "tuned queries, minilm-reset": lambda: tuned_queries("minilm-reset"),
    "tuned queries, nano-lm": lambda: tuned_queries("nano-lm"),
    "tuned nli, smollm2": lambda: tuned_nli("smollm2"),
    "tuned nli, minilm-reset": lambda: tuned_nli("minilm-reset"),
    "tuned nli, nano-lm": lambda: tuned_nli("nano-lm"),
}
