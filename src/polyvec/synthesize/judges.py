"""Judges: is a text relevant to an anchor? By an embedder, a cross-encoder or a language model.

To add a judge: a frozen dataclass with `verdicts`, and its line in JUDGES. P pairs.
"""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polyvec.errors import GenerationError, MissingExtraError, ModelError, SettingsError
from polyvec.interfaces import RunOptions
from polyvec.llm.answers import GenerationSettings
from polyvec.llm.prompts import Prompt
from polyvec.registry import Registry
from polyvec.rerank.reranker import with_instruction
from polyvec.synthesize.folder import file_hash
from polyvec.synthesize.prompt_files import PromptFile, prompt_file
from polyvec.synthesize.rows import Row
from polyvec.synthesize.spending import BUDGET_SPENT
from polyvec.synthesize.step import Asked, Tools
from polyvec.synthesize.steps.generate import Generate, as_taken


@dataclass(frozen=True, slots=True)
class Pair:
    """What is judged: a text, beside the anchor's positive (the text itself, if that is judged)."""

    anchor: str
    text: str
    positive: str
    instruction: str | None = None

    @property
    def is_positive(self) -> bool:
        return self.text == self.positive


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Whether each text is relevant, bool [P], and the score by which that is said, float [P]."""

    relevant_P: np.ndarray
    scores_P: np.ndarray


class Judge(abc.ABC):
    """A part of JUDGES: a frozen dataclass whose fields are its settings."""

    @abc.abstractmethod
    def verdicts(self, pairs: Sequence[Pair], tools: Tools) -> Verdicts:
        """A verdict for each pair."""

    def asks(self, pairs: Sequence[Pair], tools: Tools) -> Asked | None:
        """What it would ask a language model."""
        return None

    def depends(self, tools: Tools) -> list[str]:
        """What verdicts depend on beside the settings."""
        return []


@dataclass(frozen=True, slots=True)
class Limits:
    """From which score on a text is relevant.

    threshold: a score. absolute_margin: as near as the positive's score less this (GISTEmbed with
    0, NV-Retriever's MarginPos with 0.05). relative_margin: less this share of it (PercPos).
    """

    threshold: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    def check(self, where: str) -> None:
        given = (self.threshold, self.absolute_margin, self.relative_margin)
        if all(each is None for each in given):
            raise SettingsError(
                f"{where}: set threshold, absolute_margin or relative_margin, or it has no effect"
            )
        if any(each is not None and not math.isfinite(each) for each in given):
            raise SettingsError(f"{where}: a limit is not finite")

    def relevant(
        self, pairs: Sequence[Pair], scores_P: np.ndarray, positive_P: np.ndarray
    ) -> np.ndarray:
        """bool [P]; margins say nothing of a positive itself, which is then relevant."""
        own_P = np.array([each.is_positive for each in pairs], bool)
        above = np.zeros(len(pairs), bool)
        if self.threshold is not None:
            above |= scores_P >= self.threshold
        else:
            above |= own_P
        if self.absolute_margin is not None:
            above |= ~own_P & (scores_P > positive_P - self.absolute_margin)
        if self.relative_margin is not None:
            above |= ~own_P & (scores_P > positive_P - abs(positive_P) * self.relative_margin)
        return above


@dataclass(frozen=True)
class Guide(Judge):
    """An embedder: a text is relevant if it is near the anchor, by a threshold or a margin."""

    threshold: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        self._limits.check("judge 'guide'")

    @property
    def _limits(self) -> Limits:
        return Limits(self.threshold, self.absolute_margin, self.relative_margin)

    def depends(self, tools: Tools) -> list[str]:
        return [tools.embedder(self.model).fingerprint()]

    def verdicts(self, pairs: Sequence[Pair], tools: Tools) -> Verdicts:
        embedder, options = tools.embedder(self.model), RunOptions(truncate="silent")
        anchors = list(dict.fromkeys((each.anchor, each.instruction) for each in pairs))
        texts = list(dict.fromkeys(t for each in pairs for t in (each.text, each.positive)))
        of_text = {text: place for place, text in enumerate(texts)}
        texts_NE = np.concatenate(
            list(embedder.encode_iter(texts, options=options, role="document"))
        )
        of_anchor: dict[tuple[str, str | None], int] = {}
        parts: list[np.ndarray] = []
        for instruction in dict.fromkeys(given for _, given in anchors):
            own = [anchor for anchor, given in anchors if given == instruction]
            of_anchor |= {(anchor, instruction): len(of_anchor) + i for i, anchor in enumerate(own)}
            more = {} if instruction is None else {"prompt": instruction}
            parts += list(embedder.encode_iter(own, options=options, role="query", **more))  # type: ignore[arg-type]
        anchors_NE = np.concatenate(parts)
        asked = anchors_NE[[of_anchor[each.anchor, each.instruction] for each in pairs]]
        scores, positives = (
            np.asarray(embedder.similarity_pairwise(asked, texts_NE[rows]), np.float64)
            for rows in (
                [of_text[each.text] for each in pairs],
                [of_text[each.positive] for each in pairs],
            )
        )
        return Verdicts(self._limits.relevant(pairs, scores, positives), scores)


@dataclass(frozen=True)
class CrossEncoderJudge(Judge):
    """A cross-encoder, by name or "package.module:function"; limits as for the guide.

    A reranker that stage "true_false" has trained, or monoT5, is one. An instruction stands behind
    the anchor, as FollowIR has it.
    """

    name: str
    threshold: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    def __post_init__(self) -> None:
        self._limits.check("judge 'cross_encoder'")

    @property
    def _limits(self) -> Limits:
        return Limits(self.threshold, self.absolute_margin, self.relative_margin)

    def depends(self, tools: Tools) -> list[str]:
        return _files_of(self.name)

    def verdicts(self, pairs: Sequence[Pair], tools: Tools) -> Verdicts:
        from polyvec.train.mining.rescoring import checked_scores

        score = tools.cross_encoder(self.name)
        asked = [with_instruction(each.anchor, each.instruction) for each in pairs]
        texts = [(query, each.text) for query, each in zip(asked, pairs, strict=True)]
        positives = [(query, each.positive) for query, each in zip(asked, pairs, strict=True)]
        distinct = list(dict.fromkeys(texts + positives))
        found = dict(zip(distinct, checked_scores(score, distinct).tolist(), strict=True))
        scores_P = np.array([found[each] for each in texts])
        positive_P = np.array([found[each] for each in positives])
        return Verdicts(self._limits.relevant(pairs, scores_P, positive_P), scores_P)


@dataclass(frozen=True)
class LanguageModelJudge(Judge):
    """A language model that is asked; relevant if the first of the prompt's choices is likely.

    prompt: a name or file whose answer is of kind "choice". mode: "score" compares the
    probabilities of the choices, "write" reads what the model writes, for servers that give no
    probabilities; an answer without a choice is relevant for a positive and not for a negative.
    """

    prompt: str = "followir"
    threshold: float = 0.5
    mode: Literal["score", "write"] = "score"
    model: str | None = None

    def __post_init__(self) -> None:
        form = self._file.answer
        if form.kind != "choice" or len(form.choices) < 2:
            raise SettingsError(
                f"judge 'llm': prompt {self.prompt!r} needs an answer of kind 'choice' with choices"
            )
        if not 0 < self.threshold < 1:
            raise SettingsError(f"judge 'llm': threshold {self.threshold} is no probability")

    @property
    def _file(self) -> PromptFile:
        return prompt_file(self.prompt, "judge 'llm'")

    def depends(self, tools: Tools) -> list[str]:
        return [tools.language_model(self.model).identity, repr(self._file)]

    def _prompts(self, pairs: Sequence[Pair], tools: Tools) -> list[Prompt]:
        model, file = tools.language_model(self.model), self._file
        found = []
        for each in pairs:
            values = {"anchor": each.anchor, "text": each.text, "positive": each.positive}
            values["instruction"] = each.instruction or ""
            values["asked"] = with_instruction(each.anchor, each.instruction)
            named = {name: values.get(slot.field or name) for name, slot in file.slots.items()}
            found.append(as_taken(file.asked(named, file.demonstrations), model))
        return found

    def _settings(self) -> GenerationSettings:
        return GenerationSettings(max_new_tokens=self._file.answer.max_new_tokens)

    def asks(self, pairs: Sequence[Pair], tools: Tools) -> Asked | None:
        choices = self._file.answer.choices if self.mode == "score" else ()
        return Asked(self._prompts(pairs, tools), self._settings(), self.model, choices)

    def verdicts(self, pairs: Sequence[Pair], tools: Tools) -> Verdicts:
        from polyvec.synthesize.reading import UnreadableError, read_answer

        model, prompts = tools.language_model(self.model), self._prompts(pairs, tools)
        form = self._file.answer
        if self.mode == "score":
            scores_P = model.score(prompts, list(form.choices))[:, 0].astype(np.float64)
            return Verdicts(scores_P >= self.threshold, scores_P)
        scores_P = np.empty(len(pairs))
        stream = model.stream(
            prompts, max_new_tokens=form.max_new_tokens, stop=form.stop, show_progress_bar=False
        )
        for number, completion in stream:
            if completion.error == BUDGET_SPENT:
                raise GenerationError(BUDGET_SPENT)
            try:
                (read,) = read_answer(completion.answer, form)
                said = read[form.to] == form.choices[0].strip()
            except (UnreadableError, GenerationError):
                said = pairs[number].is_positive
            scores_P[number] = float(said)
        return Verdicts(scores_P >= self.threshold, scores_P)


@dataclass(frozen=True)
class Likelihood(Judge):
    """How likely the language model finds the anchor after the text (UPR, arXiv:2204.07496).

    The score is the sum of the log-probabilities of the anchor's tokens, in nats, or with `mean`
    their mean; relevant from `threshold` on. prompt: one that writes an anchor from a positive.
    Needs a local model.
    """

    prompt: str = "inpars"
    mean: bool = False
    threshold: float = 0.0
    model: str | None = None

    def depends(self, tools: Tools) -> list[str]:
        file = prompt_file(self.prompt, "judge 'likelihood'")
        return [tools.language_model(self.model).identity, repr(file)]

    def _prompts(self, pairs: Sequence[Pair], tools: Tools) -> list[Prompt]:
        model, asking = tools.language_model(self.model), Generate(self.prompt)
        rows = (Row(positive=each.text, instruction=each.instruction) for each in pairs)
        return [as_taken(asking.prompt_of(row), model) for row in rows]

    def asks(self, pairs: Sequence[Pair], tools: Tools) -> Asked | None:
        settings = GenerationSettings(max_new_tokens=1)
        return Asked(self._prompts(pairs, tools), settings, self.model, ("",))

    def verdicts(self, pairs: Sequence[Pair], tools: Tools) -> Verdicts:
        model = tools.language_model(self.model)
        found = model.logprobs(self._prompts(pairs, tools), [f" {each.anchor}" for each in pairs])
        take = np.mean if self.mean else np.sum
        scores_P = np.array([float(take(each)) for each in found])
        return Verdicts(scores_P >= self.threshold, scores_P)


@dataclass(frozen=True)
class Entailment(Judge):
    """A classifier of natural language inference: a folder or hub id of a cross-encoder.

    A text is relevant if the anchor entails it with at least `threshold`. With contradicts = true,
    a negative must be contradicted with at least `threshold`, or it counts as relevant (AdaptCL's
    check, GenSE's two labels). The classes are found by their names in the model's config.
    """

    name: str
    threshold: float = 0.5
    contradicts: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise SettingsError(f"judge 'nli': threshold {self.threshold} is no probability")

    def depends(self, tools: Tools) -> list[str]:
        return _files_of(self.name)

    def verdicts(self, pairs: Sequence[Pair], tools: Tools) -> Verdicts:
        key = f"nli {self.name}"
        if key not in tools.loaded:
            tools.loaded[key] = nli_classifier(self.name)
        classes, predict = tools.loaded[key]
        probabilities_PC = predict([(each.anchor, each.text) for each in pairs])
        entailed_P = probabilities_PC[:, classes["entail"]]
        if not self.contradicts:
            return Verdicts(entailed_P >= self.threshold, entailed_P)
        against_P = probabilities_PC[:, classes["contradict"]]
        own_P = np.array([each.is_positive for each in pairs], bool)
        relevant_P = np.where(own_P, entailed_P >= self.threshold, against_P < self.threshold)
        return Verdicts(relevant_P, np.where(own_P, entailed_P, against_P))


def _files_of(name: str) -> list[str]:
    """A hash of a model's folder; none for a hub id or a function, whose name stands for them."""
    return [file_hash(name)] if Path(name).is_dir() else []


def nli_classifier(
    name: str, *, softmax: bool = True
) -> tuple[dict[str, int], Callable[[Any], np.ndarray]]:
    """The columns of entailment and contradiction, and a function from pairs to probabilities,
    or without `softmax` to logits.

    Raises MissingExtraError without sentence-transformers, ModelError for another classifier.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise MissingExtraError("sentence-transformers", "train", f"judge 'nli' {name}") from None
    try:
        model = CrossEncoder(name)
    except Exception as error:  # noqa: BLE001 - what transformers, torch and the hub raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"judge 'nli' {name}: cannot be loaded ({reason})") from None
    labels = {int(i): str(label).lower() for i, label in model.config.id2label.items()}
    classes = {}
    for wanted in ("entail", "contradict"):
        places = [i for i, label in labels.items() if label.startswith(wanted)]
        if len(places) != 1:
            raise ModelError(
                f"judge 'nli' {name}: its classes are {', '.join(labels.values())}; expected one "
                f"that begins with {wanted!r}"
            )
        classes[wanted] = places[0]

    def predict(pairs: Any) -> np.ndarray:
        found = model.predict(list(pairs), apply_softmax=softmax, show_progress_bar=False)
        return np.asarray(found, np.float64)

    return classes, predict


JUDGES: Registry[type[Judge]] = Registry(
    "judge",
    {
        "guide": Guide,
        "cross_encoder": CrossEncoderJudge,
        "likelihood": Likelihood,
        "llm": LanguageModelJudge,
        "nli": Entailment,
    },
    accepts=lambda part: isinstance(part, type) and issubclass(part, Judge),
    expected="a subclass of Judge",
)
