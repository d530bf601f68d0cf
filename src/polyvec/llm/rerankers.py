"""Language models as rerankers: how likely they write the query, and the order that they write.

P pairs.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.errors import AnswerWarning, GenerationError, ModelError, SettingsError
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL, load_language_model
from polyvec.llm.prompts import Message, Prompt
from polyvec.rerank.reranker import (
    Reranker,
    by_query,
    check_asked,
    instructed,
    warn_truncated,
)

MAX_WORDS = 300  # of a document, as in RankGPT's code
WINDOW, STEP = 20, 10
# UPR's instruction (Sachan et al. 2022), behind the passage.
LIKELIHOOD_PROMPT = "Passage: {document}\nPlease write a question based on this passage."


class QueryLikelihood(Reranker):
    """Mean log-probability of the query's tokens, in nats, when the model has read the document.

    UPR (Sachan et al. 2022, arXiv:2204.07496). The prompt is a user's turn for a model that takes
    chats, and the query its answer; else a text that goes on with the query. A document is read up
    to `max_words` words. Needs a model that gives log-probabilities of a given text: a local one.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        prompt: str = LIKELIHOOD_PROMPT,
        max_words: int = MAX_WORDS,
    ) -> None:
        if prompt.count("{document}") != 1:
            raise SettingsError(f"query likelihood: prompt {prompt!r} has no {{document}}, or two")
        self.model, self.prompt, self.max_words = model, prompt, _checked_words(max_words)

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Float32 [P], at most 0; an instruction stands behind the query."""
        read = instructed(pairs, instructions)
        if not read:
            return np.zeros(0, np.float32)
        chats = self.model.takes_chats
        documents = _shortened([document for _, document in read], self.max_words)
        asked = [self.prompt.replace("{document}", document) for document in documents]
        prompts: list[Prompt] = [_turn(text) if chats else text for text in asked]
        queries = [query if chats else f" {query}" for query, _ in read]
        found = self.model.logprobs(prompts, queries)
        return np.array([each.mean() for each in found], np.float32)


@dataclass(slots=True)
class ListwiseReport:
    """What a model's orders lacked: identifiers that were missing, given twice, or of no passage,
    and windows without an answer, which keep their order."""

    num_windows: int = 0
    num_missing: int = 0
    num_repeated: int = 0
    num_unknown: int = 0
    num_failed: int = 0


class Listwise(Reranker):
    """The order that a language model writes of the passages of a window, from the last window
    to the first (RankGPT, Sun et al. 2023, arXiv:2304.09542).

    The documents come best first. A window has `window` of them, the next one begins `step`
    earlier, so that good ones move to the top. What an answer leaves out follows in its order, what
    it repeats counts once. A score says the place alone: N for the first of N, 1 for the last.
    `report` counts what was wrong with the answers.
    """

    orders_lists = True

    def __init__(
        self,
        model: LanguageModel,
        *,
        window: int = WINDOW,
        step: int = STEP,
        max_words: int = MAX_WORDS,
    ) -> None:
        if window < 2 or not 1 <= step <= window:
            raise SettingsError(
                f"listwise: window is {window} and step {step}; expected at least 2 passages in a "
                "window, and a step from 1 to the window"
            )
        if not model.takes_chats:
            name = getattr(model, "name", model.identity)
            raise ModelError(
                f"listwise: {name} has no chat template, and the prompt is a chat; take a model "
                "that was tuned on chats, or the reranker query_likelihood"
            )
        self.model, self.window, self.step = model, window, step
        self.max_words, self.report = _checked_words(max_words), ListwiseReport()

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """N for the first of a query's N documents, 1 for its last, float32 [P]."""
        read = instructed(pairs, instructions)
        found_P = np.empty(len(read), np.float32)
        for query, mine in by_query(read).items():
            order = self._order(query, [read[place][1] for place in mine])
            for rank, number in enumerate(order):
                found_P[mine[number]] = len(mine) - rank
        return found_P

    def _order(self, query: str, documents: Sequence[str]) -> list[int]:
        """Places of the documents, best first."""
        check_asked(query, documents)
        texts = _shortened(documents, self.max_words)
        order = list(range(len(texts)))
        end = len(order)
        before = (self.report.num_failed, self.report.num_windows)
        while end > 1:
            start = max(0, end - self.window)
            mine = order[start:end]
            order[start:end] = [
                mine[place] for place in self._window(query, [texts[row] for row in mine])
            ]
            end = 0 if start == 0 else end - self.step
        failed = self.report.num_failed - before[0]
        if failed:
            warnings.warn(
                f"listwise: {failed} of {self.report.num_windows - before[1]} windows have no "
                "answer with an order, and keep theirs",
                AnswerWarning,
                stacklevel=4,
            )
        return order

    def _window(self, query: str, passages: Sequence[str]) -> list[int]:
        """The places of one window's passages in the order that the model writes."""
        # An identifier and what is between two are about five tokens.
        found = dict(
            self.model.stream(
                [listwise_prompt(query, passages)],
                show_progress_bar=False,
                max_new_tokens=6 * len(passages) + 8,
            )
        )[0]
        self.report.num_windows += 1
        try:
            text = found.text
        except GenerationError:
            text = ""
        return self._parsed(text, len(passages))

    def _parsed(self, text: str, num: int) -> list[int]:
        """Places from "[2] > [1]"; with those that are left out behind, in their order."""
        order: list[int] = []
        for word in re.findall(r"\d+", text):
            place = int(word) - 1 if len(word) < 6 else -1
            if not 0 <= place < num:
                self.report.num_unknown += 1
            elif place in order:
                self.report.num_repeated += 1
            else:
                order.append(place)
        if not order:
            self.report.num_failed += 1
        self.report.num_missing += num - len(order)
        return order + [place for place in range(num) if place not in order]


def listwise_prompt(query: str, passages: Sequence[str]) -> list[Message]:
    """RankGPT's chat: a passage a turn, and the order asked for in the last one."""
    num = len(passages)
    turns: list[Message] = [
        {
            "role": "system",
            "content": "You are RankGPT, an intelligent assistant that can rank passages based on "
            "their relevancy to the query.",
        },
        {
            "role": "user",
            "content": f"I will provide you with {num} passages, each indicated by number "
            f"identifier []. \nRank the passages based on their relevance to query: {query}.",
        },
        {"role": "assistant", "content": "Okay, please provide the passages."},
    ]
    for number, passage in enumerate(passages, start=1):
        turns.append({"role": "user", "content": f"[{number}] {passage.strip()}"})
        turns.append({"role": "assistant", "content": f"Received passage [{number}]."})
    content = (
        f"Search Query: {query}. \nRank the {num} passages above based on their relevance to the "
        "search query. The passages should be listed in descending order using identifiers. The "
        "most relevant passages should be listed first. The output format should be [] > [], "
        "e.g., [1] > [2]. Only response the ranking results, do not say any word or explain."
    )
    return [*turns, {"role": "user", "content": content}]


def query_likelihood(
    model: str = DEFAULT_LANGUAGE_MODEL,
    prompt: str = LIKELIHOOD_PROMPT,
    max_words: int = MAX_WORDS,
) -> Reranker:
    """UPR by a local model: see QueryLikelihood."""
    return QueryLikelihood(load_language_model(model), prompt=prompt, max_words=max_words)


def listwise(
    model: str = DEFAULT_LANGUAGE_MODEL,
    window: int = WINDOW,
    step: int = STEP,
    max_words: int = MAX_WORDS,
) -> Reranker:
    """RankGPT by a local model or a server's URL: see Listwise."""
    return Listwise(load_language_model(model), window=window, step=step, max_words=max_words)


def _turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _shortened(documents: Sequence[str], max_words: int) -> list[str]:
    """The first words of each, with one warning for those that are cut."""
    cut, found = 0, []
    for document in documents:
        words = document.split(maxsplit=max_words)
        if len(words) > max_words:
            cut += 1
            document = document[: len(document) - len(words[-1])].rstrip()
        found.append(document)
    warn_truncated(cut, len(documents), f"{max_words} words")
    return found


def _checked_words(max_words: int) -> int:
    if max_words < 1:
        raise SettingsError(f"reranker: max_words is {max_words}, expected at least 1")
    return max_words
