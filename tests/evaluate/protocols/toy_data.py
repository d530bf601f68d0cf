"""Synthetic sets of every kind: words drawn at random, topics, doubles, unequal sizes."""

import numpy as np

from polyvec.data.tasks.sets import (
    BitextMiningSet,
    ClassificationSet,
    ClusteringSet,
    InstructionRetrievalSet,
    PairClassificationSet,
    RetrievalSet,
    StsSet,
    SummarizationSet,
)


class Words:
    """Texts out of a vocabulary, or near to another text or to a topic."""

    def __init__(self, seed: int, num_words: int = 60) -> None:
        self.draw = np.random.default_rng(seed)
        self.known = [f"w{i}" for i in range(num_words)]

    def text(self, topic: int | None = None, length: int = 6) -> str:
        """Words at random; a topic's own words are drawn as often as all others together."""
        words = list(self.draw.choice(self.known, length))
        if topic is not None:
            words[: length // 2] = [f"t{topic}x{self.draw.integers(6)}" for _ in words[::2]]
        return " ".join(words)

    def near(self, text: str, share: float) -> str:
        """The text with that share of its words kept."""
        return " ".join(
            word if self.draw.random() < share else str(self.draw.choice(self.known))
            for word in text.split()
        )

    def labels(self, num: int, num_labels: int) -> list[int]:
        """Unequal classes: the first is twice as frequent as the second, and so on."""
        weights = 0.5 ** np.arange(num_labels)
        return self.draw.choice(num_labels, num, p=weights / weights.sum()).tolist()


def sts(seed: int, num: int = 90) -> StsSet:
    words = Words(seed)
    first = [words.text() for _ in range(num)]
    shares = words.draw.random(num)
    second = [words.near(text, share) for text, share in zip(first, shares, strict=True)]
    first[5:9], second[5:9] = [first[4]] * 4, [second[4]] * 4
    gold = np.round(shares * 5 + words.draw.normal(0, 0.4, num)).tolist()
    return StsSet("toy sts", "test", tuple(first), tuple(second), tuple(gold))


def pairs(seed: int, num: int = 90) -> PairClassificationSet:
    data, words = sts(seed, num), Words(seed + 1000)
    labels = [int(score + words.draw.normal() > 3) for score in data.scores]
    return PairClassificationSet(
        "toy pairs", "test", data.sentences1, data.sentences2, tuple(labels)
    )


def classes(seed: int, num_labels: int, *, names=str, samples: int = 4) -> ClassificationSet:
    words = Words(seed)
    train, test = words.labels(120, num_labels), words.labels(70, num_labels)
    train[:num_labels] = range(num_labels)
    texts = [words.text(label) for label in train], [words.text(label) for label in test]
    texts[0][10], texts[1][3] = texts[0][9], texts[0][2]
    return ClassificationSet(
        "toy classes",
        "test",
        tuple(texts[0]),
        tuple(map(names, train)),
        tuple(texts[1]),
        tuple(map(names, test)),
        samples_per_label=samples,
    )


def clusters(seed: int, **settings) -> ClusteringSet:
    words = Words(seed)
    labels = words.labels(150, 5)
    labels[:5] = range(5)
    texts = [words.text(label) for label in labels]
    texts[20] = texts[21]
    names = [f"topic {label}" for label in labels]
    return ClusteringSet("toy clusters", "test", tuple(texts), tuple(names), **settings)


def bitext(seed: int, num: int = 130) -> BitextMiningSet:
    """The second side is longer and shuffled; a few of the first side have no translation."""
    words = Words(seed)
    first = [words.text() for _ in range(num)]
    second = [words.near(text, 0.7) for text in first] + [words.text() for _ in range(25)]
    place = words.draw.permutation(len(second))
    shuffled = [""] * len(second)
    for row, to in enumerate(place.tolist()):
        shuffled[to] = second[row]
    kept = sorted(words.draw.permutation(num)[: num - 7].tolist())
    gold = tuple((row, int(place[row])) for row in kept)
    return BitextMiningSet("toy bitext", "test", tuple(first), tuple(shuffled), gold)


def summaries(seed: int, num: int = 14) -> SummarizationSet:
    """Unequal numbers of summaries; doubles; a text whose human scores are all equal."""
    words = Words(seed)
    texts = [words.text(length=12) for _ in range(num)]
    human = [tuple(words.near(t, 0.8) for _ in range(words.draw.integers(1, 5))) for t in texts]
    machine, scores = [], []
    for row, text in enumerate(texts):
        shares = words.draw.random(words.draw.integers(4, 9))
        each = [words.near(text, share) for share in shares]
        each[1] = each[0]
        machine.append(tuple(each))
        noisy = np.clip(shares * 5 + words.draw.normal(0, 0.5, len(each)), 0, 5)
        scores.append(tuple((np.round(noisy * 3) / 3).tolist()) if row else (2.0,) * len(each))
    return SummarizationSet(
        "toy summaries", "test", tuple(texts), tuple(human), tuple(machine), tuple(scores)
    )


def corpus(seed: int, num_documents: int = 160, num_queries: int = 25, **settings) -> RetrievalSet:
    """Doubles in the corpus, graded and negative judgements, a query with none that is relevant."""
    words = Words(seed, 40)
    texts = {f"d{i}": words.text(length=8) for i in words.draw.permutation(num_documents).tolist()}
    names = list(texts)
    for row in range(0, num_documents - 1, 9):
        texts[names[row]] = texts[names[row + 1]]
    queries, qrels = {}, {}
    for row in range(num_queries):
        right = words.draw.choice(names, 4, replace=False).tolist()
        queries[f"q{row}"] = words.near(texts[right[0]], 0.6)
        qrels[f"q{row}"] = dict(zip(right, (2, 1, -1, 1), strict=True))
    qrels["q1"] = dict.fromkeys(qrels["q1"], 0)
    return RetrievalSet("toy corpus", "test", texts, queries, qrels, **settings)


def candidates(seed: int, most: int = 30) -> dict[str, tuple[str, ...]]:
    """Unequal numbers of candidates, relevant ones not always among them; none for one query."""
    words, data = Words(seed + 50), corpus(seed)
    found = {}
    for query, judged in data.qrels.items():
        some = words.draw.choice(list(data.corpus), words.draw.integers(1, most), replace=False)
        found[query] = tuple(dict.fromkeys([*some.tolist(), *list(judged)[1:]]))
    return found | {"q3": ()}


def instructed(seed: int, *, changed: bool) -> InstructionRetrievalSet:
    """Instructions of unequal numbers, or two of which the second rules documents out."""
    words, data = Words(seed + 90), corpus(seed)
    instructions, qrels = {}, {}
    known = [words.text(length=3) for _ in range(5)]  # queries share them
    for query in data.queries:
        names = words.draw.choice(list(data.corpus), 6, replace=False).tolist()
        if changed:
            both = {name: 1 + row % 2 for row, name in enumerate(names)}
            ruled_out = names[: words.draw.integers(4)]
            qrels[query] = both, both | dict.fromkeys(ruled_out, 0)
        else:
            split = words.draw.integers(1, 4)
            qrels[query] = tuple(dict.fromkeys(names[i::split], 1) for i in range(split))
        several = words.draw.choice(known, len(qrels[query]), replace=False)
        instructions[query] = tuple(several.tolist())
    return InstructionRetrievalSet(
        "toy instructions", "test", data.corpus, data.queries, instructions, qrels, changed=changed
    )
