"""What an answer is worth to a model that is optimised by it: REWARDS, for the step "ppo".

N answers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from polyvec.errors import SettingsError
from polyvec.interfaces import RunOptions
from polyvec.registry import Fact, Registry
from polyvec.synthesize.judges import nli_classifier
from polyvec.synthesize.step import Tools

Wanted = Literal["positive", "negative"]
# Takes anchors, what is wanted of each, and the answers; gives a reward each.
Reward = Callable[[Sequence[str], Sequence[Wanted], Sequence[str]], np.ndarray]
OfTools = Annotated[Tools, Fact("tools")]

# A part is called with the tools of the run and its settings, and returns a Reward; what its
# rewards depend on beside its settings may be in an attribute `depends`, a list of texts.
REWARDS: Registry[Callable[..., Reward]] = Registry("reward")

NON_ASCII = re.compile(r"[^\x00-\x7F]")
MARKS = ("Original Sentence:", "Note:", "Variation:")


def cleaned(answer: str) -> tuple[str, float]:
    """The answer without what follows it and spaces around it, and the reward of its form."""
    answer = answer.strip()
    if "\n" in answer:
        return answer.split("\n")[0].strip(), -5.0 if NON_ASCII.search(answer) else -1.5
    for mark in MARKS:
        if mark in answer:
            return answer.split(mark)[0].strip(), -1.0
    return answer, 0.5


def similarity_reward(cosine: float, wanted: Wanted) -> float:
    """15 (0.85 - cos) of a positive, negated below a cosine of 0.7; 15 (cos - 0.65) of others."""
    if wanted == "negative":
        return 15 * (cosine - 0.65)
    return 15 * (0.85 - cosine) * (-1 if cosine < 0.7 else 1)


def label_reward(logits: dict[str, float], wanted: Wanted) -> float:
    """30 (p - 0.93) if the classifier finds the wanted relation, else its logit 1.5 times.

    A negative that is found neutral has -1.
    """
    label = {"positive": "entail", "negative": "contradict"}[wanted]
    found = max(logits, key=lambda each: logits[each])
    if found == label:
        values = np.array(list(logits.values()))
        return 30 * float(1 / np.exp(values - values.max()).sum() - 0.93)
    if wanted == "negative" and found == "neutral":
        return -1.0
    return 1.5 * logits[label]


def form_reward(answer: str, anchor: str, before: float) -> float:
    """The whole reward: `before` is that of similarity, relation and what follows the sentence.

    Too short -7, other letters than ASCII -8, a copy -5; a sentence that lacks words or its end
    loses some.
    """
    if len(answer) < 5:
        return -7.0
    if NON_ASCII.search(answer):
        return -8.0
    lacking = len(anchor.split(" ")) - len(answer.split(" "))
    if answer[1:-3] in anchor:
        before = -5.0
    elif lacking > 5:
        before -= 4
    before -= max(0, lacking) / 3
    return before + (1 if answer.endswith((".", '"')) else -3.5)


@REWARDS.register("adaptcl")
@dataclass(frozen=True)
class AdaptCL:
    """AdaptCL's reward of hard pairs (Xu et al. 2024; WuNein/AdaptCL@32da6d3, rm_api.py).

    Its three terms are similarity by the encoder, the relation that a classifier of inference
    finds, and the form. embedder: a name, "run:NAME" or None for the run's. nli: a cross-encoder;
    None leaves this term out. The code takes 3.5 from every answer, since its test of the last
    character is always true; here those that end as a sentence get 1 instead.
    """

    tools: OfTools
    embedder: str | None = None
    nli: str | None = None

    @property
    def depends(self) -> list[str]:
        return [self.tools.embedder(self.embedder).fingerprint(), self.nli or ""]

    def __call__(
        self, anchors: Sequence[str], wanted: Sequence[Wanted], answers: Sequence[str]
    ) -> np.ndarray:
        """The rewards, float64 [N]."""
        texts, formal = zip(*map(cleaned, answers), strict=True)
        cosines_N = self._cosines(anchors, texts)
        found = np.array(formal) + [
            similarity_reward(float(c), w) for c, w in zip(cosines_N, wanted, strict=True)
        ]
        if self.nli is not None:
            found = found + self._labels(anchors, wanted, texts)
        each = zip(texts, anchors, found, strict=True)
        return np.array([form_reward(text, anchor, float(x)) for text, anchor, x in each])

    def _cosines(self, anchors: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        embedder = self.tools.embedder(self.embedder)
        # A text without a letter has no vector of its own; its reward is that of its form.
        both = [text if text.strip() else "." for text in (*anchors, *texts)]
        chunks = list(embedder.encode_iter(both, options=RunOptions(truncate="silent")))
        vectors = np.concatenate(chunks).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        own, other = np.split(vectors, 2)
        return np.asarray((own * other).sum(axis=1), np.float64)

    def _labels(
        self, anchors: Sequence[str], wanted: Sequence[Wanted], texts: Sequence[str]
    ) -> np.ndarray:
        key = f"nli logits {self.nli}"
        if key not in self.tools.loaded:
            self.tools.loaded[key] = nli_classifier(str(self.nli), softmax=False)
        classes, predict = self.tools.loaded[key]
        logits_NC = predict(list(zip(anchors, texts, strict=True)))
        if logits_NC.shape[1] != 3:
            raise SettingsError(f"reward 'adaptcl': {self.nli} has {logits_NC.shape[1]} classes")
        (neutral,) = set(range(3)) - set(classes.values())
        columns = {**classes, "neutral": neutral}
        rows = [{name: float(row[i]) for name, i in columns.items()} for row in logits_NC]
        return np.array([label_reward(row, w) for row, w in zip(rows, wanted, strict=True)])


def build_reward(table: dict[str, Any], tools: Tools, where: str) -> Reward:
    """The reward of a table with `kind` and settings."""
    settings = dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise SettingsError(f"{where}: reward has no kind; known: {', '.join(REWARDS)}")
    found: Reward = REWARDS.build(kind, settings, {"tools": tools}, where=where)
    return found
