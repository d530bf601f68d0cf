"""Contexts with questions, for compress_text.py: made ones with keys and values, and SQuAD's.

SQuAD: the development set as passage retrieval (DATA/squad11_dev); a context is the paragraph with
the answer and another one of its article, in an order drawn by the seed.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from polyvec.data.texts import find_file, read_jsonl
from polyvec.evaluate.measures.text import normalized

NAMES = [
    "Ann",
    "Bob",
    "Cleo",
    "Dan",
    "Eve",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Jane",
    "Kim",
    "Leo",
    "Mia",
    "Nora",
    "Otto",
    "Pia",
    "Quin",
    "Rosa",
    "Sam",
    "Tess",
    "Uma",
    "Vera",
    "Walt",
    "Xenia",
    "Yuri",
    "Zoe",
]
FILLER = (
    "The weather by the sea was mild for the time of the year.",
    "Ships came and went over the bay, and nobody counted them.",
    "Cats slept on the old wall behind the market all afternoon.",
    "A long road leads from the harbour up to the village on the hill.",
    "Most people had left by then, and the streets were quiet.",
    "The baker sold the last of his bread before the bells rang.",
    "Some said that the winter would be harder than the last one.",
    "Children ran along the river and threw stones into the water.",
)


@dataclass(frozen=True)
class Item:
    """A context of one or more texts, a question, and its right answers."""

    texts: tuple[str, ...]
    question: str
    answers: tuple[str, ...]

    def kept(self, text: str) -> bool:
        """Whether an answer is in the text, as SQuAD compares."""
        plain = f" {normalized(text)} "
        return any(f" {normalized(answer)} " in plain for answer in self.answers)

    def right(self, said: str) -> bool:
        """Exact match, as SQuAD compares."""
        return any(normalized(said) == normalized(answer) for answer in self.answers)


def key_values(count: int, seed: int, *, pairs: int = 6, filler: int = 12) -> list[Item]:
    """Codes of names among sentences about nothing; one of the codes is asked for."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        names = draw.sample(NAMES, pairs)
        codes = [str(draw.randrange(1000, 10000)) for _ in names]
        lines = [f"The code of {n} is {c}." for n, c in zip(names, codes, strict=True)]
        lines += [draw.choice(FILLER) for _ in range(filler)]
        draw.shuffle(lines)
        place = draw.randrange(pairs)
        question = f"What is the code of {names[place]}?"
        found.append(Item((" ".join(lines),), question, (codes[place],)))
    return found


def squad(data: Path, count: int, seed: int, others: int = 1) -> list[Item]:
    """Questions with an answer in their paragraph, of all articles alike."""
    folder = data / "squad11_dev"
    rows = [row for _, row in read_jsonl(find_file(folder, "corpus.jsonl"))]
    texts = {row["_id"]: row["text"] for row in rows}
    articles: dict[str, list[str]] = {}
    for key in texts:
        articles.setdefault(key.rpartition("#")[0], []).append(key)
    gold = {}
    for line in read_lines(folder):
        query, document, _ = line
        gold[query] = document
    questions = [row for _, row in read_jsonl(find_file(folder, "queries.jsonl"))]
    draw = random.Random(seed)
    found = []
    for row in draw.sample(questions, len(questions)):
        own = gold[row["_id"]]
        near = [key for key in articles[own.rpartition("#")[0]] if key != own]
        chosen = [own, *draw.sample(near, min(others, len(near)))]
        draw.shuffle(chosen)
        item = Item(tuple(texts[key] for key in chosen), row["text"], tuple(row["answers"]))
        if item.kept(" ".join(item.texts)):
            found.append(item)
        if len(found) == count:
            break
    return found


def read_lines(folder: Path) -> list[tuple[str, str, str]]:
    """(query, document, score) of the qrels."""
    from polyvec.data.texts import read_lines as lines

    rows = [line.split("\t") for _, line in lines(find_file(folder / "qrels", "test.tsv"))]
    return [(a, b, c) for a, b, c in rows[1:]]
