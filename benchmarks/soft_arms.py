"""What soft_compression.py trains and measures: rows of the table, and the orderings at nano."""

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
from polyvec.compress.soft.settings import ANSWER, AUTOENCODE, CONTINUE
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import training_rows
from polyvec.evaluate.measures.text import exact_match, token_overlap

Table = Mapping[str, Any]
# Recipes that answer questions, in the order of their weight for the table.
ANSWERING = (
    *("icae", "gist", "autocompressor", "xrag", "500xcompressor", "qgc", "rcc", "pisco"),
    *("readonce", "extentoken", "uniicl", "scc", "ic-former", "hd-gist", "rmt", "beacon"),
    "gist-coco",
)
RANKING, DISTILLED = ("pe-rank",), ("pc",)
ROWS = (*ANSWERING[:8], *RANKING, *ANSWERING[8:], *DISTILLED)
BATCH = 50


@dataclass(frozen=True)
class Toy:
    """A compressor on nano-lm, after it has learned the language of the data.

    stages: after next-token prediction. measure: a function in MEASURES.
    """

    compressor: Table
    measure: str
    stages: Sequence[Table] = ()
    attention: str = "native"
    first: int = 150  # steps of next-token prediction


LENGTH = 24
LORA = {"kind": "lora", "rank": 64, "dropout": 0.0}
WRITES: Table = {
    "kind": "compress",
    "objectives": {"autoencode": 1.0},
    "end": False,
    "adapter": LORA,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "warmup_steps": 0.1,
    "max_steps": 300,
}


def writing(carrier: str, num: int, decoder: str) -> Toy:
    """Captions of 24 tokens, written again from `num` vectors."""
    settings = {
        "memory": "slots",
        "memory_settings": {"num": num},
        "carrier": carrier,
        "decoder": decoder,
        "connector": "linear" if carrier == "hidden" else "none",
        "max_context": LENGTH,
        "max_target": LENGTH,
    }
    return Toy(settings, "written", ({**WRITES, "data": "captions"},))


def continuing(memory: str, settings: Table, connector: str = "none") -> Toy:
    """Stories that go on from the memory of their beginning."""
    found = {
        "memory": memory,
        "memory_settings": settings,
        "connector": connector,
        "max_context": 96,
        "max_target": 64,
    }
    stage = {**WRITES, "objectives": {"continue": 1.0}, "data": "stories", "batch_size": 32}
    return Toy(found, "continued", ({**stage, "max_continuation": 48},))


def keyed() -> Toy:
    """Codes of people, asked for by name, through n-grams weighted by the question."""
    found = {
        "memory": "pooled",
        "memory_settings": {"size": 8, "weights": "query", "num_heads": 6, "review": 0},
        "connector": "linear",
        "query_aware": True,
        "max_context": 96,
    }
    stage = {**WRITES, "objectives": {"answer": 1.0}, "end": True, "data": "codes"}
    stage |= {"batch_size": 32}
    return Toy(found, "keyed", (stage,), attention="bidirectional", first=0)


TOYS: Mapping[str, Toy] = {
    **{f"hidden, m={m}, trained": writing("hidden", m, "same") for m in (1, 4, 8, 12, 24)},
    **{f"kv, m={m}, trained": writing("kv", m, "same") for m in (1, 4)},
    **{f"hidden, m={m}, frozen": writing("hidden", m, "frozen") for m in (1, 4)},
    **{f"kv, m={m}, frozen": writing("kv", m, "frozen") for m in (1, 4)},
    "stories, accumulated": continuing("slots", {"num": 8, "segment": 24, "combine": "accumulate"}),
    "stories, replaced": continuing("slots", {"num": 8, "segment": 24, "combine": "replace"}),
    "stories, strided": continuing("strided", {"stride": 8, "segment": 48}, "linear"),
    "codes, n-grams": keyed(),
}

# Each claim: an arm's column over another arm's (or another column of its own), and what is said.
Claim = tuple[str, str, str, str, str]
CLAIMS: Sequence[Claim] = (
    ("hidden, m=4, trained", "memory", "hidden, m=1, trained", "memory", "more vectors help"),
    ("hidden, m=8, trained", "memory", "hidden, m=4, trained", "memory", "more vectors help"),
    ("hidden, m=12, trained", "memory", "hidden, m=8, trained", "memory", "more vectors help"),
    ("hidden, m=24, trained", "memory", "hidden, m=12, trained", "memory", "more vectors help"),
    *(
        (f"kv, m={m}, {d}", "memory", f"hidden, m={m}, {d}", "memory", "keys and values hold more")
        for d in ("trained", "frozen")
        for m in (1, 4)
    ),
    ("hidden, m=4, trained", "memory", "hidden, m=4, frozen", "memory", "a trained decoder helps"),
    ("kv, m=4, trained", "memory", "kv, m=4, frozen", "memory", "a trained decoder helps"),
    ("hidden, m=4, trained", "memory", "hidden, m=4, trained", "nothing", "better than no memory"),
    ("hidden, m=4, trained", "nothing", "hidden, m=4, trained", "shuffled",
     "another context's memory is worse than none"),
    *(
        (arm, "nothing", arm, "memory", "perplexity falls with a memory")
        for arm in ("stories, accumulated", "stories, replaced", "stories, strided")
    ),
    ("stories, accumulated", "shuffled", "stories, accumulated", "memory",
     "perplexity is higher with another's memory"),
    ("stories, replaced", "memory", "stories, accumulated", "memory",
     "keeping all summaries beats replacing them"),
    ("codes, n-grams", "right n-gram", "codes, n-grams", "by chance",
     "the question's n-gram has the largest score"),
)  # fmt: skip


# ---- data ---------------------------------------------------------------------------------------


def write_data(folder: Path, data: Path) -> dict[str, Path]:
    """The toys' texts, as files that stages read; the same in every process."""
    found = {}
    for name, make in {"captions": captions, "stories": stories, "codes": codes}.items():
        for part in ("train", "test"):
            path = folder / f"{name}-{part}.jsonl"
            found[f"{name}-{part}"] = path
            if not path.exists():
                lines = [json.dumps(each) for each in make(data, part)]
                partial = path.with_suffix(f".{random.SystemRandom().getrandbits(32)}")
                partial.write_text("\n".join(lines) + "\n", "utf-8")
                partial.replace(path)
    return found


def captions(data: Path, part: str) -> list[Table]:
    """Three captions of a picture each, at least 24 tokens."""
    file = {"train": "captions_train", "test": "captions_test_2016"}[part]
    table = {"path": str(data / f"multi30k/{file}.jsonl"), "format": "equivalents"}
    rows = training_rows({**table, "columns": {"set": "captions"}})
    texts = [" ".join((row.query, *row.positives[:2])) for row in rows]
    texts = [text for text in texts if len(text) > 130]
    return [{"text": text} for text in (texts[:12000] if part == "train" else texts[:300])]


def stories(data: Path, part: str) -> list[Table]:
    table = {"path": str(data / "fairytaleqa/corpus.jsonl"), "format": "text"}
    rows = training_rows({**table, "where": {"split": "train" if part == "train" else "test"}})
    texts = [row.query for row in rows if len(row.query) > 500]
    return [{"text": text} for text in (texts if part == "train" else texts[:200])]


NAMES = (
    *("Ann", "Bob", "Carl", "Dora", "Emma", "Fred", "Gina", "Hans", "Ida", "John"),
    *("Kate", "Leo", "Mary", "Nina", "Olaf", "Paul", "Rosa", "Sam", "Tina", "Walt"),
)
THINGS = ("code", "key", "seat", "room")


def codes(data: Path, part: str) -> list[Table]:
    """Six people's numbers, and a question about one of them; the numbers are drawn."""
    rng = random.Random(part)
    found = []
    for _ in range(8000 if part == "train" else 200):
        people, thing = rng.sample(NAMES, 6), rng.choice(THINGS)
        numbers = [rng.randint(10, 99) for _ in people]
        pairs = zip(people, numbers, strict=True)
        text = " ".join(f"The {thing} of {name} is {number}." for name, number in pairs)
        at = rng.randrange(6)
        row = {"query": text, "instruction": f"The {thing} of {people[at]}?"}
        found.append({**row, "positive": str(numbers[at]), "name": people[at]})
    return found


# ---- measures -----------------------------------------------------------------------------------


@dataclass
class Held:
    """Held-out questions, and files of the toys."""

    data: Path
    files: Mapping[str, Path]
    num: int
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
            written += model.generate(questions[some], mine, contexts=their, max_tokens=12)
            first = [f" {each[0]}" for each in golds[some]]
            found_B, _ = model.score(ANSWER, first, mine, questions=questions[some], contexts=their)
            likely += found_B.tolist()
        found |= {
            f"em, {name}": best(exact_match, written, golds),
            f"f1, {name}": best(lambda a, b: token_overlap(a, b).f, written, golds),
            f"nats, {name}": -sum(likely) / len(likely),
        }
    for name in ("memory", "shuffled", "closed book"):
        given, contexts = conditions[name]
        found[f"rebuilt, {name}"] = token_accuracy(model, AUTOENCODE, texts, given, contexts)
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
) -> float:
    """Share of the texts' tokens that are the most likely one, teacher-forced."""
    total = 0.0
    for start in range(0, len(texts), BATCH):
        some = slice(start, start + BATCH)
        mine = None if memories is None else memories[some]
        their = None if contexts is None else contexts[some]
        total += float(model.score(prompt, texts[some], mine, contexts=their)[1].sum())
    return total / len(texts)


def rolled(memories: Sequence[Memory]) -> list[Memory]:
    """Each item gets another's memory."""
    half = max(1, len(memories) // 2)
    return [*memories[half:], *memories[:half]]


def first_tokens(model: SoftCompressor, text: str, count: int) -> str:
    tokenizer = model.decoder.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids[:count]
    return str(tokenizer.decode(ids))


def written(model: SoftCompressor, held: Held) -> dict[str, float]:
    """Token accuracy of writing a caption again."""
    texts = [row["text"] for row in held.read("captions")]
    texts = [first_tokens(model, text, LENGTH) for text in texts]
    memories = model.compress(texts, batch_size=BATCH)
    return {
        "memory": token_accuracy(model, AUTOENCODE, texts, memories),
        "shuffled": token_accuracy(model, AUTOENCODE, texts, rolled(memories)),
        "nothing": token_accuracy(model, AUTOENCODE, texts, None, [""] * len(texts)),
    }


def continued(model: SoftCompressor, held: Held) -> dict[str, float]:
    """Perplexity of 48 tokens after the first 96 of a story."""
    tokenizer = model.tokenizer
    begun, rest = [], []
    for row in held.read("stories"):
        offsets = tokenizer(row["text"], add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in offsets.offset_mapping]
        if len(starts) < 145:
            continue
        at = row["text"].rfind(" ", 0, starts[96])
        begun.append(row["text"][:at])
        rest.append(row["text"][at : starts[144]])
    memories = model.compress(begun, batch_size=BATCH)
    found = {}
    for name, given, contexts in (
        ("memory", memories, None),
        ("shuffled", rolled(memories), None),
        ("nothing", None, [""] * len(rest)),
        ("full text", None, begun),
    ):
        nats = [
            model.score(
                CONTINUE,
                rest[start : start + BATCH],
                None if given is None else given[start : start + BATCH],
                contexts=None if contexts is None else contexts[start : start + BATCH],
            )[0]
            for start in range(0, len(rest), BATCH)
        ]
        found[name] = float((-torch.cat(nats)).mean().exp())
    return found


@torch.no_grad()
def keyed_measure(model: SoftCompressor, held: Held) -> dict[str, float]:
    """How often the n-gram with the asked name has the largest score, and answers."""
    rows = held.read("codes")
    model.eval()
    right = chance = 0.0
    for row in rows:
        context = model.context(row["query"], row["instruction"])
        weights = model.memory.largest(model.reader(), [context])[0]
        size = model.memory.size
        tokens = [model.tokenizer.decode([each]) for each in context.ids]
        ends = [len("".join(tokens[: at + 1])) for at in range(len(tokens))]
        begin = "".join(tokens).find(row["name"])
        place = next(at for at, end in enumerate(ends) if end > begin)
        # The answer follows the name at once, in this n-gram or the next one.
        right += int(weights.argmax()) in {place // size, (place + 4) // size}
        chance += len({place // size, (place + 4) // size}) / len(weights)
    texts, questions = [r["query"] for r in rows], [r["instruction"] for r in rows]
    memories = model.compress(texts, questions, batch_size=BATCH)
    golds = [[row["positive"]] for row in rows]
    return {
        "right n-gram": right / len(rows),
        "by chance": chance / len(rows),
        "em, memory": best(exact_match, model.generate(questions, memories, max_tokens=4), golds),
        "em, shuffled": best(
            exact_match, model.generate(questions, rolled(memories), max_tokens=4), golds
        ),
    }


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

    rows = [row["text"] for row in held.read("stories")]
    texts = [" ".join(text.split()[:40]) for text in rows][:64]
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


MEASURES: Mapping[str, Any] = {"written": written, "continued": continued, "keyed": keyed_measure}
