"""Summarization: does similarity to human summaries correlate with human quality scores?

M machine summaries and H human ones of a text, E vector dimensions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import SummarizationSet
from polyvec.embed.projection.similarity import similarity_matrix
from polyvec.errors import DataError
from polyvec.evaluate.outcome import Encoder, Item, Outcome
from polyvec.evaluate.protocols.sts import correlated
from polyvec.evaluate.protocols.vectors import encode, equal_lengths


def summarization(encoder: Encoder, data: SummarizationSet) -> Outcome:
    """Correlation of a summary's score and its similarity to the nearest human one, mean of texts.

    Spearman's (the main score) and Pearson's by the model's own similarity, by cosine and by dot
    product ("cosine_spearman"). As in the second version of MTEB's task, texts with all scores
    or all similarities equal are skipped, since their correlation is undefined (the first version
    averaged correlations together with their p-values).
    """
    _check(data)
    human, machine = (_encoded(encoder, data, side) for side in ("human", "machine"))
    found: dict[str, list[float]] = {}
    items = []
    for row, text in enumerate(data.texts):
        nearest = _nearest(encoder, machine[row], human[row])
        gold = data.scores[row]
        if len(set(gold)) == 1 or any(np.ptp(values) == 0 for values in nearest.values()):
            items.append(Item(str(row), (text,), float("nan")))
            continue
        for prefix, values in nearest.items():
            for measure, value in correlated(data.name, values, gold).items():
                found.setdefault(prefix + measure, []).append(value)
        items.append(Item(str(row), (text,), found["spearman"][-1]))
    if not found:
        raise DataError(
            f"{data.name}: all scores or all similarities of each of the {len(items)} texts are "
            "equal, so no correlation is defined"
        )
    averages = {name: float(np.mean(each)) for name, each in found.items()}
    paired = np.array([[item.value] for item in items])
    kind = KINDS[data.kind]
    return Outcome(kind.name, kind.main_measure, averages, tuple(items), paired, _mean)


def _check(data: SummarizationSet) -> None:
    equal_lengths(
        data.name, texts=data.texts, human=data.human, machine=data.machine, scores=data.scores
    )
    for row, (human, machine) in enumerate(zip(data.human, data.machine, strict=True)):
        equal_lengths(f"{data.name}: text {row}", human_summaries=human)
        equal_lengths(
            f"{data.name}: text {row}", machine_summaries=machine, scores=data.scores[row]
        )


def _encoded(encoder: Encoder, data: SummarizationSet, side: str) -> list[np.ndarray]:
    """Vectors of each text's summaries, encoded in one call."""
    summaries: Sequence[Sequence[str]] = getattr(data, side)
    flat = [summary for each in summaries for summary in each]
    ends = np.cumsum([len(each) for each in summaries])

    def name(place: int) -> str:
        text = int(np.searchsorted(ends, place, side="right"))
        return f"text {text}, {side} summary {place - ends[text] + len(summaries[text])}"

    return np.split(encode(encoder, flat, data.name, name=name), ends[:-1])


def _nearest(
    encoder: Encoder, machine_ME: np.ndarray, human_HE: np.ndarray
) -> dict[str, np.ndarray]:
    """Similarity of each machine summary to the nearest human one, [M], by function.

    One summary at a time: in one matrix product equal summaries may differ in the last digit,
    which breaks ties in their ranks.
    """
    human = torch.from_numpy(human_HE)
    found: dict[str, list[float]] = {"": [], "cosine_": [], "dot_": []}
    for one in torch.from_numpy(machine_ME)[:, None]:
        found[""].append(float(np.max(encoder.similarity(one.numpy(), human_HE))))
        for name in ("cosine", "dot"):
            found[f"{name}_"].append(similarity_matrix(one, human, name).max().item())
    return {prefix: np.array(each) for prefix, each in found.items()}


def _mean(items: np.ndarray) -> float:
    """Mean of the first column without the skipped texts."""
    return float(np.nanmean(items[:, 0]))
