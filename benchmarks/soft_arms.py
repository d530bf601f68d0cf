"""What soft_compression.py measures of the rows of the table, each beside its controls."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.memory import Memory
from polyvec.compress.soft.ranking import Ranking, list_mle, orders, scores
from polyvec.compress.soft.settings import ANSWER, AUTOENCODE
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import training_rows
from polyvec.evaluate.measures.text import exact_match, token_overlap

Table = Mapping[str, Any]
# Recipes that answer questions, in the order of their weight for the table.
ANSWERING = (
    *("icae", "gist", "autocompressor", "xrag", "500xcompressor", "qgc", "rcc", "pisco"),
    *("readonce", "extentoken", "uniicl", "scc", "ic-former", "hd-gist", "rmt", "beacon"),
    *("gist-coco", "nugget2d", "nugget"),
)
RANKING, DISTILLED = ("pe-rank",), ("pc",)
ROWS = (*ANSWERING[:8], *RANKING, *ANSWERING[8:], *DISTILLED)
BATCH = 50


# ---- measures -----------------------------------------------------------------------------------


@dataclass
class Held:
    """Held-out questions, and files of the toys.

    max_tokens: of an answer. end: whether its end counts where its likelihood is measured.
    """

    data: Path
    files: Mapping[str, Path]
    num: int
    max_tokens: int = 12
    end: bool = True
    cache: dict[str, Any] = field(default_factory=dict)

    def questions(self) -> list[TrainingRow]:
        if "rows" not in self.cache:
            rows = training_rows({"name": "squad_windows", "split": "held_out"}, self.data)
            fit = [row for row in rows if 180 <= len(row.query) <= 320]
            self.cache["rows"] = random.Random(0).sample(fit, min(self.num, len(fit)))
        found: list[TrainingRow] = self.cache["rows"]
        return found

    def read(self, name: str) -> list[Any]:
        lines = self.files[f"{name}-test"].read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines][: self.num]


def answered(model: SoftCompressor, held: Held) -> dict[str, float]:
    """Reconstruction, and answers from memories and from each control."""
    rows = held.questions()
    texts, questions = [row.query for row in rows], [row.instruction or "" for row in rows]
    memories = model.compress(texts, questions, batch_size=BATCH)
    others = rolled(memories)
    kept = [
        first_tokens(model, text, len(each)) for text, each in zip(texts, memories, strict=True)
    ]
    conditions: dict[str, tuple[Sequence[Memory] | None, Sequence[str] | None]] = {
        "memory": (memories, None),
        "shuffled": (others, None),
        "closed book": (None, [""] * len(rows)),
        "full text": (None, texts),
        "truncated": (None, kept),
    }
    found: dict[str, float] = {
        "questions": len(rows),
        "tokens in": sum(each.num_context for each in memories) / len(rows),
        "vectors out": sum(map(len, memories)) / len(rows),
    }
    golds = [row.positives for row in rows]
    for name, (given, contexts) in conditions.items():
        written: list[str] = []
        likely: list[float] = []
        for start in range(0, len(rows), BATCH):
            some = slice(start, start + BATCH)
            mine = None if given is None else given[some]
            their = None if contexts is None else contexts[some]
            written += model.generate(
                questions[some], mine, contexts=their, max_tokens=held.max_tokens
            )
            first = [f" {each[0]}" for each in golds[some]]
            found_B, _ = model.score(
                ANSWER, first, mine, questions=questions[some], contexts=their, end=held.end
            )
            likely += found_B.tolist()
        found |= {
            f"em, {name}": best(exact_match, written, golds),
            f"f1, {name}": best(lambda a, b: token_overlap(a, b).f, written, golds),
            f"nats, {name}": -sum(likely) / len(likely),
        }
    for name in ("memory", "shuffled", "closed book"):
        given, contexts = conditions[name]
        found[f"rebuilt, {name}"] = token_accuracy(
            model, AUTOENCODE, texts, given, contexts, end=held.end
        )
    return found


def best(measure: Any, written: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """The mean over questions of the best agreement with any of the gold answers."""
    each = [
        max(measure([text], [gold]) for gold in gold_list)
        for text, gold_list in zip(written, golds, strict=True)
    ]
    return sum(each) / len(each)


def token_accuracy(
    model: SoftCompressor,
    prompt: str,
    texts: Sequence[str],
    memories: Sequence[Memory] | None,
    contexts: Sequence[str] | None = None,
    *,
    end: bool = True,
) -> float:
    """Share of the texts' tokens that are the most likely one, teacher-forced."""
    total = 0.0
    for start in range(0, len(texts), BATCH):
        some = slice(start, start + BATCH)
        mine = None if memories is None else memories[some]
        their = None if contexts is None else contexts[some]
        total += float(model.score(prompt, texts[some], mine, contexts=their, end=end)[1].sum())
    return total / len(texts)


def rolled(memories: Sequence[Memory]) -> list[Memory]:
    """Each item gets another's memory."""
    half = max(1, len(memories) // 2)
    return [*memories[half:], *memories[:half]]


def first_tokens(model: SoftCompressor, text: str, count: int) -> str:
    tokenizer = model.decoder.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids[:count]
    return str(tokenizer.decode(ids))


def ranked(model: SoftCompressor, held: Held) -> dict[str, float]:
    """MRR among eight passages, of which one holds the answer; and that each is a permutation."""
    rows = held.questions()[: max(8, held.num // 2)]
    rng = random.Random(0)
    asked, other, golds = [], [], []
    for row in rows:
        others = rng.sample([each.query for each in rows if each.query != row.query], 7)
        passages = [row.query, *others]
        rng.shuffle(passages)
        golds.append(passages.index(row.query))
        asked.append((row.instruction or "", tuple(passages)))
        # Each passage gets its neighbour's vector.
        other.append((row.instruction or "", (*passages[1:], passages[0])))
    places = []
    for given in (asked, other):
        found: list[list[int]] = []
        for start in range(0, len(given), BATCH):
            found += orders(model, given[start : start + BATCH])
        places.append(found)
    losses = []
    for start in range(0, len(asked), BATCH):
        rankings = [
            Ranking(question, passages, (gold,))
            for (question, passages), gold in zip(
                asked[start : start + BATCH], golds[start : start + BATCH], strict=True
            )
        ]
        with torch.no_grad():
            found_S = scores(model, rankings)
        losses += [float(list_mle(f, r.order)) for f, r in zip(found_S, rankings, strict=True)]
    near = []
    for question, passages in asked:
        vectors = torch.cat(model.vectors([question, *passages]))
        near.append((vectors[1:] @ vectors[0]).argsort(descending=True).tolist())

    def mrr(lists: Sequence[Sequence[int]]) -> float:
        return sum(1 / (1 + f.index(g)) for f, g in zip(lists, golds, strict=True)) / len(golds)

    count = len(rows)
    return {
        "mrr, memory": mrr(places[0]),
        "mrr, shuffled": mrr(places[1]),
        "mrr, cosine of the embedder": mrr(near),
        "list_mle": sum(losses) / count,
        "permutations": sum(sorted(f) == list(range(8)) for f in places[0]) / count,
        "tokens in": sum(len(model.context(row.query).ids) for row in rows) / count,
        "vectors out": 1.0,
        "rebuilt, memory": _rebuilt(model, rows, shuffle=False),
        "rebuilt, shuffled": _rebuilt(model, rows, shuffle=True),
    }


def _rebuilt(model: SoftCompressor, rows: Sequence[TrainingRow], *, shuffle: bool) -> float:
    texts = [row.query for row in rows]
    memories = model.compress(texts, batch_size=BATCH)
    return token_accuracy(model, AUTOENCODE, texts, rolled(memories) if shuffle else memories)


def distilled(model: SoftCompressor, held: Held, prompt: str) -> dict[str, float]:
    """KL from the hard prompt's predictions, of the vectors and of nothing."""
    from polyvec.compress.soft.decoder import Asked, token_ids
    from polyvec.compress.soft.stage import divergence

    texts = [" ".join(row.query.split()[:40]) for row in held.questions()][:64]
    tokenizer = model.decoder.tokenizer
    hard = token_ids(tokenizer, prompt)
    asked = [model.asked(ANSWER, target=f" {text}") for text in texts]
    teacher = [Asked(each.parts, each.target, hard) for each in asked]
    found = {"tokens in": float(len(hard))}
    memories = model.compress([prompt] * len(texts))
    found["vectors out"] = float(len(memories[0]))
    nothing = [Asked(each.parts, each.target, hard[:0]) for each in asked]
    for name, mine, batch in (
        ("memory", asked, model.batch(memories)),
        ("nothing", nothing, None),
    ):
        with torch.no_grad():
            student = model.decoder.predict(mine, batch)
            found[f"kl, {name}"] = float(divergence(model, teacher, student, 1.0).mean())
    return found
