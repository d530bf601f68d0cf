"""Scorers by what a language model on this machine finds likely. T tokens, U units."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.models import local_model
from polyvec.compress.text.scorer import SCORERS, How, Scorer, per_unit
from polyvec.compress.text.units import Span, sentences
from polyvec.errors import InputError, SettingsError
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL

if TYPE_CHECKING:
    from polyvec.llm.local import LocalLanguageModel

# LongLLMLingua's restrictive statement (Jiang et al. 2024, arXiv:2310.06839, section 4.1).
RESTRICTION = " We can get the answer to this question in the given documents."
WINDOW = 512  # tokens that are scored at a time
BEFORE = 512  # tokens before them that they are conditioned on
Ids = tuple[int, ...]


@dataclass(frozen=True)
class _OfLanguageModel(Scorer):
    model: str | LanguageModel = DEFAULT_LANGUAGE_MODEL

    @property
    def tokenizer(self) -> str | None:
        return self.model if isinstance(self.model, str) else None


@SCORERS.register("self_information")
@dataclass(frozen=True)
class SelfInformation(_OfLanguageModel):
    """-log p of a unit's tokens: what the model could not have guessed is kept.

    condition: each token on its "sentence", as Selective Context does (Li et al. 2023,
    arXiv:2310.06201), or on the "text" before it. segment: condition each run of so many tokens on
    what would be kept of the text before it, and rank tokens within the run: LLMLingua's
    iterative compression (Jiang et al. 2023, arXiv:2310.05736, with runs of 200).
    """

    condition: Literal["sentence", "text"] = "text"
    how: How = "mean"
    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment < 2:
            raise SettingsError(f"scorer 'self_information': segment {self.segment} is below 2")

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        lm = local_model(self.model, "scorer 'self_information'")
        if self.segment is not None:
            spans, values_T = iterative(lm, document.text, asked.rate, self.segment)
        else:
            parts = sentences(document.text) if self.condition == "sentence" else None
            spans, values_T = surprisals(lm, document.text, parts=parts)
        return per_unit(spans, values_T, document.units, self.how)


@SCORERS.register("contrastive")
@dataclass(frozen=True)
class Contrastive(_OfLanguageModel):
    """log p(unit | question) - log p(unit): what the question makes likely is kept.

    LongLLMLingua's contrastive perplexity of tokens (Jiang et al. 2024, arXiv:2310.06839, Eq. 3),
    whose tokens are conditioned on the "text" before them. There what the text itself has said
    already hides what the question says; on the "sentence" alone it does not.
    """

    needs_question = True

    condition: Literal["sentence", "text"] = "text"
    how: How = "mean"
    before: str = "{question}\n"

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        lm = local_model(self.model, "scorer 'contrastive'")
        question = self.before.replace("{question}", asked.question or "")
        parts = sentences(document.text) if self.condition == "sentence" else None
        spans, plain_T = surprisals(lm, document.text, parts=parts)
        before = lm.tokens.of_text(question)
        _, given_T = surprisals(lm, document.text, before=before, parts=parts)
        return per_unit(spans, plain_T - given_T, document.units, self.how)


@SCORERS.register("question_likelihood")
@dataclass(frozen=True)
class QuestionLikelihood(_OfLanguageModel):
    """Mean log p of the question's tokens after each unit: LongLLMLingua's choice of passages.

    restriction: a statement after the question that ties it to the passage (section 4.1).
    """

    needs_question = True

    restriction: str = RESTRICTION

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        lm = local_model(self.model, "scorer 'question_likelihood'")
        wanted = lm.tokens.of_text(f"\n\n{asked.question}{self.restriction}")
        room = _room(lm, len(wanted), "the question")
        return np.array([each.mean() for each in _after(lm, document.pieces(), wanted, room)])


@SCORERS.register("cxmi")
@dataclass(frozen=True)
class ConditionalMutualInformation(_OfLanguageModel):
    """log p(answer | unit, question) - log p(answer | question): an oracle, to make training data.

    FilCo's conditional cross-mutual information (Wang et al. 2023, arXiv:2311.08377).
    """

    needs_question = True
    needs_answer = True

    before: str = "\nQuestion: {question}\nAnswer:"

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        lm = local_model(self.model, "scorer 'cxmi'")
        question = self.before.replace("{question}", asked.question or "")
        wanted = lm.tokens.of_text(f" {(asked.answer or '').strip()}")
        after = lm.tokens.of_text(question)
        room = _room(lm, len(wanted) + len(after), "question and answer")
        units = ["", *document.pieces()]
        found = np.array([each.sum() for each in _after(lm, units, wanted, room, after)])
        return found[1:] - found[0]


# ---- log-probabilities --------------------------------------------------------------------------


def surprisals(
    lm: "LocalLanguageModel",
    text: str,
    *,
    before: Ids = (),
    parts: Sequence[Span] | None = None,
) -> tuple[list[Span], np.ndarray]:
    """Each token of a text as a span, and -log p of it in nats, float64 [T].

    A token is conditioned on `before` and on up to 512 to 1,024 tokens of the text before it;
    with `parts`, on those of its part alone.
    """
    from polyvec.embed.backbone.likelihood import log_probabilities

    ids, spans = lm.tokens.with_offsets(text)
    limits = [0, len(ids)]
    if parts is not None:  # the token that has a part's first character begins it
        ends = [end for _, end in spans]
        limits = sorted({0, len(ids), *np.searchsorted(ends, [a for a, _ in parts], "right")})
    first = (*_start(lm), *before)
    kept_before, window = _windows(lm, len(first))
    prompts, wanted = [], []
    for start, end in pairwise(limits):
        for place in range(start, end, window):
            prompts.append((*first, *ids[max(start, place - kept_before) : place]))
            wanted.append(ids[place : min(end, place + window)])
    found = log_probabilities(lm.model, prompts, wanted)
    return spans, -np.concatenate([np.zeros(0), *found]).astype(np.float64)


def iterative(
    lm: "LocalLanguageModel", text: str, rate: float, segment: int
) -> tuple[list[Span], np.ndarray]:
    """Each token as a span, and its rank by -log p within its segment, in (0, 1], float64 [T].

    A segment is read after the tokens that the segments before it kept: the `rate` least likely
    of each. Their keys and values are computed once.
    """
    ids, spans = lm.tokens.with_offsets(text)
    context = lm.model.context or 1 << 30
    if context < 3 * segment:
        raise InputError(f"segment {segment}: {lm.name} reads {context} tokens only")
    kept = list(_start(lm))
    read, cache = lm.model.read([kept])
    last = len(kept) - 1  # place of the last kept token in `read`
    ranks = []
    for start in range(0, len(ids), segment):
        if len(kept) + 2 * segment > context:  # go on with the last half of what is kept
            kept = kept[-(context // 2) :]
            read, cache = lm.model.read([kept])
            last = len(kept) - 1
        run = ids[start : start + segment]
        tried = lm.model.read_on([run], copy.deepcopy(cache), [len(kept)])
        logits = [read.logits([0], [last])]
        if len(run) > 1:
            logits.append(tried.logits([0] * (len(run) - 1), list(range(len(run) - 1))))
        values = np.concatenate([_surprise(each, run[i:]) for i, each in enumerate(logits)])
        order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        ranks.append((order + 1) / len(run))
        size = min(len(run), max(1, round(rate * len(run))))
        chosen = np.sort(np.argsort(-values, kind="stable")[:size])
        added = [run[place] for place in chosen.tolist()]
        read = lm.model.read_on([added], cache, [len(kept)])
        kept, last = kept + added, len(added) - 1
    return spans, np.concatenate([np.zeros(0), *ranks])


def _surprise(logits_TV: "object", ids: Ids) -> np.ndarray:
    """-log p of the tokens that follow, of as many as there are logits."""
    import torch

    assert isinstance(logits_TV, torch.Tensor)
    wanted_T = torch.tensor(ids[: len(logits_TV)], device=logits_TV.device)
    chosen_T = logits_TV.gather(1, wanted_T[:, None])[:, 0]
    return (logits_TV.logsumexp(1) - chosen_T).double().cpu().numpy()


def _after(
    lm: "LocalLanguageModel", texts: Sequence[str], wanted: Ids, room: int, between: Ids = ()
) -> list[np.ndarray]:
    """Log-probabilities of the same tokens after each text, of which the first `room` are read."""
    from polyvec.embed.backbone.likelihood import log_probabilities

    start = _start(lm)
    prompts = [(*start, *lm.tokens.of_text(text)[:room], *between) for text in texts]
    return log_probabilities(lm.model, prompts, [wanted] * len(texts))


def _start(lm: "LocalLanguageModel") -> Ids:
    """What stands before the first token, so that it has a probability, too."""
    if lm.tokens.before:
        return lm.tokens.before
    found = lm.tokens.tokenizer
    first = next((i for i in (found.bos_token_id, found.eos_token_id) if i is not None), 0)
    return (int(first),)


def _windows(lm: "LocalLanguageModel", taken: int) -> tuple[int, int]:
    """How many tokens before a window are read with it, and how many are scored at a time."""
    context = lm.model.context
    if context is None or context - taken >= BEFORE + WINDOW:
        return BEFORE, WINDOW
    half = (context - taken) // 2
    if half < 8:
        raise InputError(f"the question has {taken} tokens, {lm.name} reads {context}; shorten it")
    return half, half


def _room(lm: "LocalLanguageModel", taken: int, what: str) -> int:
    """How many tokens of a unit are read beside the question."""
    context = lm.model.context or 1 << 30
    room = context - taken - len(_start(lm))
    if room < 8:
        raise InputError(f"{what}: {taken} tokens, and {lm.name} reads {context}; shorten it")
    return room
