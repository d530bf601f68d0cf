"""Sources of synthesis_effects.py: training files that a language model wrote or judged.

A source writes files of rows (NAME.jsonl, as `polyvec train` reads them) into its folder and tells
figures; it is made once, and several arms train on its files.
"""

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from synthesis_domains import (
    DOMAINS,
    gold_rows,
    write_prompt,
)
from synthesis_making import WRITERS, Making, removed, step_tables, tuned_writer, written

from polyvec import Embedder
from polyvec.data.training.sources import training_rows
from polyvec.data.words import hash64
from polyvec.recipe import load_recipe
from polyvec.synthesize.judges import JUDGES, Judge, Verdicts
from polyvec.synthesize.prompt_files import prompt_file
from polyvec.synthesize.relabel import Accuracy, relabel, training_lines
from polyvec.synthesize.rows import Row
from polyvec.synthesize.run import parts
from polyvec.synthesize.step import Tools
from polyvec.synthesize.steps.generate import Generate

Table = Mapping[str, Any]
NANO_WORDS = 30  # of a text at scale nano, whose context of 512 tokens prompts nearly fill
WANTED, NEAR = 4, 60  # negatives of a row; candidates that judges look at
Source = Callable[[Making], dict[str, Any]]


# ---- the recipes of Table 3 ---------------------------------------------------------------------


def of_recipe(key: str, texts: str | None, scale: str) -> Source:
    """A recipe's own steps on these texts, with as many of them as the options say."""

    def make(making: Making) -> dict[str, Any]:
        recipe = load_recipe(key)
        steps = step_tables(key, scale)
        limit = making.options.limit
        first = steps[0]
        if first["kind"] == "grid":
            first |= {"repeat": 1, "limit": limit} if "topic" in first["values"] else {}
            if "topic" not in first["values"]:
                first["repeat"] = max(2, limit // 10)  # long answers, of three kinds
        elif key == "claif":
            first["limit"] = max(2, limit // 6)  # nine rows a sentence
        else:
            first["limit"] = max(2, limit // 2) if key == "promptriever-data" else limit
        writer = making.options.writer if scale == "small" else WRITERS[scale]
        models = making.models(writer, lambda: recipe.build(scale))
        max_words = NANO_WORDS if scale == "nano" else None
        return written(making, steps, texts, models, max_words=max_words)

    return make


# ---- queries for a domain -----------------------------------------------------------------------


def queries(domain: str, *, tuned: bool = False) -> Source:
    """Queries for a domain's documents; filtered is the round trip by all-MiniLM-L6-v2."""

    def make(making: Making) -> dict[str, Any]:
        prompt = write_prompt(domain, making.data, making.folder / "prompt.toml", shown=not tuned)
        writer, facts = making.options.writer, {}
        if tuned:
            rows = [
                {"query": f"{_asked(prompt, row.positives[0])}", "pos": [f" {row.query}"]}
                for row in gold_rows(domain, making.data)
            ]
            writer, facts = tuned_writer(making, rows)
        steps = [
            {"kind": "texts"},
            {"kind": "generate", "prompt": str(prompt)},
            {"kind": "refusals"},
            {"kind": "length", "min": 3},
            {"kind": "copies", "inside": True},
            {"kind": "deduplicate", "fields": ["anchor"]},
            {"kind": "round_trip", "k": 1},
        ]
        with removed(making.folder / "tuned"):
            return {**written(making, steps, domain, making.models(writer)), **facts}

    return make


def _asked(prompt: Path, document: str) -> str:
    asked = Generate(str(prompt)).prompt_of(Row(positive=document, meta={"id": "0"}))
    assert isinstance(asked, str)
    return asked


# ---- sentences ----------------------------------------------------------------------------------


def nli(*, tuned: bool) -> Source:
    """GenSE's triplets; tuned: SmolLM2 has learned to write SNLI's."""

    def make(making: Making) -> dict[str, Any]:
        writer, facts = making.options.writer, {}
        if tuned:
            rows = []
            for row in training_rows({"name": "snli"}, making.data):
                for name, text in (
                    ("gense_entail", row.positives[0]),
                    ("gense_contradict", row.negatives[0]),
                ):
                    asked = prompt_file(name).asked({"sentence": row.query}, ())
                    rows.append({"query": asked, "pos": [f' "{text}"']})
            writer, facts = tuned_writer(making, rows)
        cleaned = {"kind": "refusals"}  # takes the quotation marks away, too
        steps = [
            {"kind": "texts", "to": "anchor"},
            {"kind": "generate", "prompt": "gense_entail", "max_new_tokens": 56},
            {"kind": "generate", "prompt": "gense_contradict", "max_new_tokens": 56},
            {**cleaned, "field": "positive"},
            {**cleaned, "field": "negatives"},
            {"kind": "copies", "field": "positive", "of": "anchor"},
            {"kind": "copies", "field": "negatives", "of": "anchor"},
            {"kind": "deduplicate"},
        ]
        with removed(making.folder / "tuned"):
            found = written(making, steps, "wiki", making.models(writer))
        return {**found, **facts}

    return make


def levels(making: Making) -> dict[str, Any]:
    """NGCSE's three levels; a fifth of the anchors is for measuring their order."""
    models = making.models(making.options.writer)
    steps = [
        {"kind": "texts", "to": "anchor"},
        *(
            {"kind": "generate", "prompt": f"ngcse_{name}", "max_new_tokens": 56}
            for name in ("similar", "intermediate", "distinct")
        ),
        {"kind": "refusals", "field": "positive"},
        {"kind": "refusals", "field": "negatives"},
    ]
    found = written(making, steps, "wiki", models)
    rows = _lines(making.folder / "filtered.jsonl")
    return {**found, "rows": _split(making, [row for row in rows if len(row["neg"]) == 2])}


def nli_levels(making: Making) -> dict[str, Any]:
    """SNLI's premises with an entailed, a neutral and a contradicted sentence each."""
    rows: dict[str, dict[str, str]] = {}
    with gzip.open(making.data / "snli_devtest" / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in map(json.loads, file):
            rows.setdefault(line["premise"], {})[line["label"]] = line["hypothesis"]
    found = [
        {"query": query, "pos": [by["entailment"]], "neg": [by["neutral"], by["contradiction"]]}
        for query, by in rows.items()
        if len(by) == 3
    ]
    found = random.Random(0).sample(found, min(len(found), 5 * making.options.limit))
    return {"rows": _split(making, found)}


def _split(making: Making, rows: Sequence[Table]) -> dict[str, int]:
    """A fifth of the anchors, by their hash, is not trained on."""
    held = [hash64(row["query"]) % 5 == 0 for row in rows]
    return {
        "train": making.write("train", (r for r, out in zip(rows, held, strict=True) if not out)),
        "held_out": making.write("held_out", (r for r, out in zip(rows, held, strict=True) if out)),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ---- scores -------------------------------------------------------------------------------------


def scores(making: Making) -> dict[str, Any]:
    """CLHAIF: people's entailed pairs with the model's score, or with 1 each."""
    models = making.models(making.options.writer)
    steps = [
        {"kind": "pairs", "data": {"name": "cad_nli"}, "limit": 2 * making.options.limit},
        {"kind": "rate", "prompt": "claif_score", "mode": "expect"},
    ]
    found = written(making, steps, None, models)
    rows = _lines(making.folder / "filtered.jsonl")
    found["rows"]["soft"] = making.write("soft", rows)
    found["rows"]["hard"] = making.write("hard", ({**row, "score": 1.0} for row in rows))
    found["score quantiles"] = _spread([row["score"] for row in rows])
    return found


def infilled(making: Making) -> dict[str, Any]:
    """CLAIF: what the model wrote, with its score, or with 1; unrelated pairs have 0 in both."""
    models = making.models(making.options.writer)
    recipe = step_tables("claif", "small")
    recipe[0]["limit"] = max(2, making.options.limit // 6)
    found = written(making, recipe, "wiki", models)
    rows = _lines(making.folder / "filtered.jsonl")
    hard = ({**row, "score": 1.0 if row["score"] > 0 else 0.0} for row in rows)
    found["rows"] |= {"soft": making.write("soft", rows), "hard": making.write("hard", hard)}
    found["score quantiles"] = _spread([row["score"] for row in rows])
    return found


def _spread(values: Sequence[float]) -> list[float]:
    """The tenth, the median and the nine tenth."""
    return [round(float(each), 3) for each in np.quantile(values, (0.1, 0.5, 0.9))]


# ---- instructions -------------------------------------------------------------------------------


def instructed(making: Making) -> dict[str, Any]:
    """Promptriever's data: instructions for questions, and passages that are wrong by them."""
    models = making.models(making.options.writer)
    limit = making.options.limit
    steps = [
        {"kind": "pairs", "data": {"name": "squad_qg_pairs"}, "limit": limit},
        {
            "kind": "generate",
            "prompt": "instance_instruction",
            "slots": {"length": ["one short sentence"]},
            "max_new_tokens": 48,
            "keep_cut": True,
        },
        {"kind": "refusals", "field": "instruction"},
        *(
            {
                "kind": "generate",
                "prompt": "instruction_negative",
                "max_new_tokens": 48,
                "keep_cut": True,
                "seed": seed,
            }
            for seed in range(2)
        ),
        {"kind": "refusals", "field": "negatives"},
        {
            "kind": "judge",
            "judges": [{"kind": "llm", "prompt": "followir", "threshold": 0.5}],
            "of": "negatives",
        },
    ]
    found = written(making, steps, None, models)
    rows = _lines(making.folder / "unfiltered.jsonl")
    bare = ({"query": row["query"], "pos": row["pos"], "neg": []} for row in rows)
    found["rows"]["bare"] = making.write("bare", bare)
    found["rows"]["alone"] = making.write("alone", ({**row, "neg": []} for row in rows))
    return found


# ---- false negatives ----------------------------------------------------------------------------


@dataclass(frozen=True)
class OfIntent(Judge):
    """Knows the intents, and is right with this probability."""

    accuracy: float = 1.0

    def verdicts(self, pairs: Any, tools: Tools) -> Verdicts:
        intents = tools.loaded["intents"]
        true = np.array([intents[p.anchor] == intents[p.text] for p in pairs], bool)
        at = np.array([hash64(f"{p.anchor}|{p.text}") / 2**64 for p in pairs])
        relevant = np.where(at < self.accuracy, true, ~true)
        return Verdicts(relevant, relevant.astype(float))


def mined(making: Making) -> dict[str, Any]:
    """CLINC150 with the nearest texts as negatives: as they are, by margin, dropped, relabelled."""
    if "intent" not in JUDGES:
        JUDGES.register("intent")(OfIntent)
    rows, intents, embedder = _nearest(making)
    tools = Tools(embedder=lambda name: embedder, loaded={"intents": intents})
    naive = [replace(row, negatives=row.negatives[:WANTED]) for row in rows]
    near = [replace(row, negatives=row.negatives[:NEAR]) for row in rows]
    margin = {"kind": "guide", "relative_margin": 0.05}
    good, perfect = {"kind": "intent", "accuracy": 0.9}, {"kind": "intent"}
    files: dict[str, tuple[list[Row], list[Table], dict[str, Any]]] = {
        "naive": (naive, [], {}),
        "positive-aware": (near, [margin], {"keep": WANTED}),
        "dropped": (naive, [perfect], {}),
        "relabelled": (naive, [perfect], {"then": "relabel"}),
        "dropped, right 90 %": (naive, [good], {}),
        "relabelled, right 90 %": (naive, [good], {"then": "relabel"}),
        "refilled": (near, [perfect], {"keep": WANTED}),
    }
    facts: dict[str, Any] = {"rows": {}, "false negatives": {}, "negatives": {}}
    for name, (found, judges, settings) in files.items():
        kept = found
        if judges:
            table = {"of": "negatives", "judges": judges, **settings}
            step: Any = parts().build("judge", table, where=making.name)
            kept = relabel(found, step, tools, accuracy=Accuracy(0.9, 0.9)).changed.kept
        lines = training_lines(kept)
        facts["rows"][name] = making.write(name, lines)
        wrong = [intents[str(r["query"])] == intents[t] for r in lines for t in r["neg"]]  # type: ignore[attr-defined]
        facts["false negatives"][name] = round(float(np.mean(wrong)), 4) if wrong else 0.0
        facts["negatives"][name] = round(len(wrong) / len(lines), 2)
    return facts


def _nearest(making: Making) -> tuple[list[Row], dict[str, str], Any]:
    """Rows with their nearest texts, by all-MiniLM-L6-v2; 20 texts an intent."""
    by_intent: dict[str, list[str]] = {}
    with gzip.open(making.data / "clinc150" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in map(json.loads, file):
            by_intent.setdefault(line["label"], []).append(line["text"])
    draw = random.Random(0)
    chosen = {name: draw.sample(texts, 20) for name, texts in sorted(by_intent.items())}
    intents = {text: name for name, texts in chosen.items() for text in texts}
    texts = list(intents)
    embedder = Embedder.from_pretrained()
    vectors_NE = np.asarray(embedder.encode(texts, show_progress_bar=False), np.float32)
    asked = sorted(draw.sample(range(len(texts)), min(len(texts), 4 * making.options.limit)))
    rows = []
    for place in asked:
        others = [text for text in chosen[intents[texts[place]]] if text != texts[place]]
        positive = draw.choice(others)
        order = np.argsort(-(vectors_NE @ vectors_NE[place]), kind="stable")[: NEAR + 2]
        near = tuple(texts[i] for i in order if texts[i] not in (texts[place], positive))
        rows.append(Row(texts[place], positive, near[:NEAR], meta={"id": f"{place}.0"}))
    return rows, intents, embedder


SOURCES: dict[str, Source] = {
    **{f"queries {name}": queries(name) for name in DOMAINS},
    "queries squad, tuned": queries("squad", tuned=True),
    "nli": nli(tuned=False),
    "nli, tuned": nli(tuned=True),
    "levels": levels,
    "nli levels": nli_levels,
    "scores": scores,
    "infilled": infilled,
    "instructed": instructed,
    "mined": mined,
}
