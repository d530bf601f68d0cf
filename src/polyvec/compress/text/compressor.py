"""TextCompressor: fewer words of a context, to an exact number of tokens."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polyvec.compress.inputs import check_text
from polyvec.compress.text.asking import (
    Budget,
    budget_of,
    check_question,
    check_threshold,
    forced_patterns,
    given,
)
from polyvec.compress.text.choosing import Chooser, within
from polyvec.compress.text.document import Asked, Compressed, Document
from polyvec.compress.text.scorer import Scorer, as_scorer, check_scores
from polyvec.compress.text.tokens import TokenCounter
from polyvec.compress.text.units import UNITS, Span, divided
from polyvec.compress.text.view import View
from polyvec.errors import InputError, SettingsError, known
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL

Unit = Literal["token", "word", "phrase", "sentence", "passage"]
EXACT = ("token", "word", "phrase")  # units that fill a budget to the last token by default


@dataclass(frozen=True, slots=True)
class Coarse:
    """A first choice among larger units: the best, until they have `factor` times the budget and
    `extra` tokens.
    """

    scorer: Any
    unit: Unit = "passage"
    factor: float = 1.0
    extra: int = 0


class TextCompressor:
    """Keeps the units of a context that a scorer rates highest, in their order.

    scorer: a kind ("self_information"), a table {"kind": ..., settings}, a Scorer, or a function of
    the units' texts and the question. unit: "token", "word", "phrase", "sentence" or "passage".
    tokenizer: the model whose tokens are counted: a name, a TokenCounter, or a function from a text
    to a number. coarse: first choices among larger units. keep_words: words that stay wherever
    they occur; keep_digits: all numbers stay. exact: fill what whole units leave of the budget with
    words of the next best; by default for tokens, words and phrases. threshold: least score
    that is kept, so that the result may be empty. order "score": passages in the order of their
    scores. dynamic_ratio: the share of tokens that the best passage keeps above the rate and the
    worst below it.

    >>> compressor = TextCompressor("lexical", unit="sentence", tokenizer="polyvec/nano-lm")
    >>> text = "The sky was grey. The key lies in the red box. Cats slept."
    >>> compressor.compress(text, "Where is the key?", tokens=12).text
    'The key lies in the red box.'
    """

    def __init__(
        self,
        scorer: Any,
        *,
        unit: Unit = "word",
        tokenizer: Any = None,
        coarse: Sequence[Coarse] = (),
        keep_words: Sequence[str] = (),
        keep_digits: bool = False,
        exact: bool | None = None,
        threshold: float | None = None,
        order: Literal["original", "score"] = "original",
        dynamic_ratio: float = 0.0,
        separator: str = "\n\n",
        default_rate: float | None = None,
    ) -> None:
        for each in (unit, *(stage.unit for stage in coarse)):
            if each not in ("token", *UNITS):
                raise SettingsError(f"unit {each!r} is not known.{known(each, ('token', *UNITS))}")
        if dynamic_ratio and not any(stage.unit == "passage" for stage in coarse):
            raise SettingsError("dynamic_ratio needs a coarse stage of passages, which ranks them")
        if order not in ("original", "score"):
            raise SettingsError(f"order is {order!r}, expected 'original' or 'score'")
        check_threshold(threshold)
        if not 0 <= dynamic_ratio <= 1:
            raise SettingsError(f"dynamic_ratio is {dynamic_ratio}, expected 0 to 1")
        self.scorer, self.unit = as_scorer(scorer), unit
        self.coarse = [(stage, as_scorer(stage.scorer, "coarse: scorer")) for stage in coarse]
        self._tokenizer = tokenizer
        self.forced = forced_patterns(keep_words, keep_digits)
        self.exact = unit in EXACT if exact is None else exact
        self.threshold, self.order, self.dynamic_ratio = threshold, order, dynamic_ratio
        self.separator, self.default_rate = separator, default_rate

    @property
    def counter(self) -> TokenCounter:
        """What counts tokens; by default the tokenizer of the scorer's language model."""
        return counter_of(self._tokenizer or self.scorer.tokenizer)

    @property
    def needs_question(self) -> bool:
        return any(each.needs_question for each in self._scorers())

    def _scorers(self) -> list[Scorer]:
        return [self.scorer, *(scorer for _, scorer in self.coarse)]

    def compress(
        self,
        texts: str | Sequence[str],
        question: str | None = None,
        *,
        tokens: int | None = None,
        rate: float | None = None,
        threshold: float | None = None,
        answer: str | None = None,
    ) -> Compressed:
        """One context, of one text or of several passages, within a budget.

        tokens: at most so many tokens; rate: this share of the context's. threshold: units with at
        least this score, alone or within a budget. The question is not part of the budget.
        Raises InputError for an empty context, a budget below 1 or below what is forced, a question
        that is missing or longer than the budget.
        """
        began = time.perf_counter()
        view = View.whole(given(texts), self.separator)
        self._check(question, answer)
        notes = self._absent(view.text)
        counter = self.counter.remembering()
        num_in = counter.count(view.text)
        threshold = self.threshold if threshold is None else threshold
        budget = budget_of(num_in, tokens, rate, threshold, self.default_rate)
        check_question(question, budget, counter)
        if num_in <= budget.tokens and budget.threshold is None:
            whole = ((0, len(view.text)),)
            return Compressed(view.text, view.text, whole, num_in, num_in, notes=notes)
        asked = Asked(question, answer, min(1.0, budget.tokens / num_in))
        original, clock = view.text, _Clock()
        view, ranks_P = self._narrow(view, asked, budget, counter, clock)
        text, spans = self._select(view, asked, budget, counter, ranks_P, clock)
        return Compressed(
            text,
            original,
            view.spans_in_original(spans),
            num_in,
            counter.count(text),
            seconds=time.perf_counter() - began,
            scoring_s=clock.seconds,
            notes=notes,
        )

    def _absent(self, text: str) -> tuple[str, ...]:
        """Words to keep that the text does not have."""
        absent = [name for name, each in self.forced.items() if not each.search(text)]
        return (f"to keep, but not in the text: {', '.join(absent)}",) if absent else ()

    def _check(self, question: str | None, answer: str | None) -> None:
        for what, text in (("the question", question), ("the answer", answer)):
            if text is not None:
                check_text(text, what)
        for scorer in self._scorers():
            name = type(scorer).__name__
            if scorer.needs_question and not (question or "").strip():
                raise InputError(f"{name} compresses for a question; give one")
            if scorer.needs_answer and not (answer or "").strip():
                raise InputError(f"{name} is an oracle, which needs answer=")

    # ---- stages ---------------------------------------------------------------------------------

    def _narrow(
        self, view: View, asked: Asked, budget: Budget, counter: TokenCounter, clock: "_Clock"
    ) -> tuple[View, np.ndarray | None]:
        """The view after the coarse stages, and the rank of each of its passages, 0 the best."""
        scores_P: np.ndarray | None = None
        for stage, scorer in self.coarse:
            document = self._divide(view, stage.unit, counter)
            scores_U = clock.time(scorer, document, asked)
            tokens = max(1, round(stage.factor * budget.tokens) + stage.extra)
            # The best units until the budget is reached: the next stage makes the last one fit.
            order = np.argsort(-scores_U, kind="stable")
            sums = np.cumsum(counter.costs(document.text, document.units)[order])
            kept_U = np.zeros(len(scores_U), bool)
            kept_U[order[: int(np.searchsorted(sums, tokens)) + 1]] = True
            if stage.unit == "passage":
                scores_P = scores_U[kept_U]
            view = view.narrowed(document, kept_U)
        if scores_P is None or len(scores_P) != len(view.passages):
            return view, None
        return view, np.argsort(np.argsort(-scores_P, kind="stable"), kind="stable")

    def _select(
        self,
        view: View,
        asked: Asked,
        budget: Budget,
        counter: TokenCounter,
        ranks_P: np.ndarray | None,
        clock: "_Clock",
    ) -> tuple[str, tuple[Span, ...]]:
        """The compressed text, and its spans in the view."""
        document = self._divide(view, self.unit, counter)
        if self.coarse:  # the rate is that of what is left
            left = max(1, counter.count(view.text))
            asked = Asked(asked.question, asked.answer, min(1.0, budget.tokens / left))
        scores_U = clock.time(self.scorer, document, asked)
        allowed_U = np.ones(len(scores_U), bool)
        if budget.threshold is not None:
            allowed_U = scores_U >= budget.threshold
        if self.dynamic_ratio and ranks_P is not None:
            scores_U = tilted(scores_U, document, ranks_P, asked.rate, self.dynamic_ratio)
        forced_U = self._forced(document)
        order = self._order(document, scores_U, ranks_P)
        chooser = Chooser(counter, budget.tokens, order, self.separator)
        if forced_U.any():
            cost = counter.count(chooser.writer(document)(forced_U))
            if cost > budget.tokens:
                raise InputError(
                    f"the words and digits to keep have {cost} tokens, more than the budget of "
                    f"{budget.tokens}; raise it, or keep fewer"
                )
        small = self.exact and self.unit in EXACT
        chosen = chooser.choose(document, scores_U, forced_U, allowed_U, exchange=small)
        if self.exact and self.unit != "token":
            chosen = chooser.filled(chosen, scores_U, allowed_U)
        if not chosen.kept_U.any() and allowed_U.any():
            least = counter.costs(document.text, document.units)[allowed_U].min()
            raise InputError(
                f"no {self.unit} fits into {budget.tokens} tokens, the shortest has about {least}; "
                "raise the budget, take a smaller unit or exact=True"
            )
        return chosen.text, chosen.spans

    def _divide(self, view: View, unit: Unit, counter: TokenCounter) -> Document:
        if unit == "token":
            units = within(counter.spans(view.text), view.passages)
        elif unit == "passage" and len(view.passages) > 1:
            units = list(view.passages)  # as they were given
        else:
            units = divided(view.text, view.passages, UNITS[unit])
        passages = view.passages
        if unit == "passage":
            passages = tuple(units)
        return Document(view.text, passages, tuple(units))

    def _order(
        self, document: Document, scores_U: np.ndarray, ranks_P: np.ndarray | None
    ) -> np.ndarray | None:
        """The numbers of the passages in the order of the output; None: as they are."""
        if self.order == "original":
            return None
        if ranks_P is not None:
            return np.argsort(ranks_P, kind="stable")
        of_U, num = document.passage_of_units(), len(document.passages)
        sums_P = np.bincount(of_U, scores_U, minlength=num)
        return np.argsort(-sums_P / np.maximum(np.bincount(of_U, minlength=num), 1), kind="stable")

    def _forced(self, document: Document) -> np.ndarray:
        forced_U = np.zeros(len(document.units), bool)
        if not self.forced or not len(forced_U):
            return forced_U
        starts = np.array([start for start, _ in document.units])
        ends = np.array([end for _, end in document.units])
        found = (each.finditer(document.text) for each in self.forced.values())
        for match in itertools.chain.from_iterable(found):
            first = np.searchsorted(ends, match.start(), side="right")
            after = np.searchsorted(starts, match.end(), side="left")
            forced_U[first:after] = True
        return forced_U


def tilted(
    scores_U: np.ndarray, document: Document, ranks_P: np.ndarray, rate: float, ratio: float
) -> np.ndarray:
    """Scores by which the better passages keep more: each unit's rank within its passage.

    The passage of rank r of R keeps the share rate + ratio (1 - 2 r / (R - 1)) of its units:
    LongLLMLingua's dynamic ratio (Jiang et al. 2024, arXiv:2310.06839, Eq. 5).
    """
    of_U, found_U = document.passage_of_units(), np.zeros(len(scores_U))
    last = max(1, len(ranks_P) - 1)
    for passage, rank in enumerate(ranks_P.tolist()):
        own = np.flatnonzero(of_U == passage)
        share = rate + ratio * (1 - 2 * rank / last)
        place = np.argsort(np.argsort(scores_U[own], kind="stable"), kind="stable")
        found_U[own] = (place + 1) / max(1, len(own)) - (1 - share)
    return found_U


def counter_of(given: Any) -> TokenCounter:
    """The counter of a model's name, of a function, or of the default language model."""
    if isinstance(given, TokenCounter):
        return given
    return (
        TokenCounter(given)
        if callable(given)
        else TokenCounter.load(given or DEFAULT_LANGUAGE_MODEL)
    )


class _Clock:
    """Runs scorers, and adds up their seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, scorer: Scorer, document: Document, asked: Asked) -> np.ndarray:
        began = time.perf_counter()
        found = check_scores(scorer.scores(document, asked), document, scorer)
        self.seconds += time.perf_counter() - began
        return found
