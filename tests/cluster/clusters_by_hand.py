"""Texts in planted groups, and a language model that knows them and lies at a rate."""

import re

import numpy as np

from polyvec.llm.function import FunctionLanguageModel

GROUPS = ("card lost", "exchange rate", "top up", "pin code")


def planted(num_a_group: int = 12, spread: float = 0.35, seed: int = 0):
    """Texts, their vectors, float32 [N, 8], and the group of each."""
    draw = np.random.default_rng(seed)
    texts, rows, gold = [], [], []
    for group, name in enumerate(GROUPS):
        for number in range(num_a_group):
            texts.append(f"{name} question {number}")
            rows.append(np.eye(8)[group] + spread * draw.standard_normal(8))
            gold.append(group)
    vectors = np.array(rows, np.float32)
    return texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), gold


def embed(texts):
    """The group's axis of each text that names one; zeros of others."""
    return np.array([[float(name in text) for name in GROUPS] + [0.0] * 4 for text in texts])


def group_of(text):
    return next(number for number, name in enumerate(GROUPS) if name in text)


class Oracle:
    """Answers every prompt of the package from the texts in it; `asked` keeps the prompts."""

    def __init__(self, lies: float = 0.0, seed: int = 0) -> None:
        self.lies, self.draw, self.asked = lies, np.random.default_rng(seed), []

    def model(self) -> FunctionLanguageModel:
        return FunctionLanguageModel(self.answer, "oracle")

    def answer(self, prompt: str) -> str:
        self.asked.append(prompt)
        lie = self.draw.random() < self.lies
        if "Choice 1: " in prompt:
            query = group_of(re.search(r"Query: (.*)", prompt).group(1))
            choices = [group_of(text) for text in re.findall(r"Choice \d+: (.*)", prompt)]
            if lie:
                return f"Choice {1 + int(self.draw.integers(len(choices)))}"
            return f"Choice {1 + choices.index(query)}" if query in choices else "neither"
        for first, second in (("Sentence 1", "Sentence 2"), ("Group 1", "Group 2")):
            if f"{first}: " in prompt:
                a, b = (
                    group_of(re.findall(rf"{each}: (.*)", prompt)[-1]) for each in (first, second)
                )
                return "Yes" if (a == b) != lie else "No"
        texts = [text for text in prompt.splitlines() if any(name in text for name in GROUPS)]
        group = int(self.draw.integers(len(GROUPS))) if lie else group_of(texts[-1])
        return GROUPS[group]
