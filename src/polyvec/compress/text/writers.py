"""Compression by a model that writes the shorter text: summaries, capsules, chosen snippets.

To add a way: a frozen dataclass with `write`, registered in WRITERS. S sentences, K blocks.
"""

import abc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyvec.compress.text.asking import Budget, budget_of, check_question, given
from polyvec.compress.text.compressor import counter_of
from polyvec.compress.text.document import Compressed
from polyvec.compress.text.models import embedder, language_model
from polyvec.compress.text.tokens import TokenCounter
from polyvec.compress.text.units import Span, divided, sentences, words
from polyvec.compress.text.view import View
from polyvec.errors import GenerationError, InputError, SettingsError
from polyvec.interfaces import RunOptions, TextEncoder
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL
from polyvec.llm.slots import SlotTemplate
from polyvec.registry import Registry

SUMMARY = "Summarize the text in at most {words} words, and write nothing else.\n\nText: {text}"
FOR_QUESTION = (
    "Summarize what helps to answer the question, in at most {words} words. If the text does not "
    "help, write NONE.\n\nText: {text}\n\nQuestion: {question}"
)
SNIPPET = (
    "Copy the one sentence of the text that answers the question, word for word.\n\n"
    "Text: {text}\n\nQuestion: {question}"
)
WORDS = 0.7  # a word of English has about 1.4 tokens


@dataclass(frozen=True)
class TextWriter(abc.ABC):
    """A compressor with the calls of TextCompressor; budgets are upper limits."""

    model: str | LanguageModel = DEFAULT_LANGUAGE_MODEL
    tokenizer: Any = None
    default_rate: float | None = None
    separator: str = "\n\n"
    prompt: str = ""

    needs_question = False

    def __post_init__(self) -> None:
        if self.prompt and "text" not in SlotTemplate.parse(self.prompt, "writer: prompt").slots:
            raise SettingsError("writer: prompt has no slot {text}")

    @abc.abstractmethod
    def write(
        self, text: str, question: str | None, tokens: int, counter: TokenCounter
    ) -> tuple[str, tuple[Span, ...]]:
        """The shorter text; if it is made of pieces of the original, they, too."""

    @property
    def counter(self) -> TokenCounter:
        name = self.model if isinstance(self.model, str) and "://" not in self.model else None
        return counter_of(self.tokenizer or name)

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
        """One context within a budget; see `TextCompressor.compress`."""
        began = time.perf_counter()
        if threshold is not None:
            raise InputError("a text that a model writes has no scores; leave threshold out")
        if self.needs_question and not (question or "").strip():
            raise InputError(f"{type(self).__name__} compresses for a question; give one")
        text, counter = View.whole(given(texts), self.separator).text, self.counter
        num_in = counter.count(text)
        budget: Budget = budget_of(num_in, tokens, rate, None, self.default_rate)
        check_question(question, budget, counter)
        if num_in <= budget.tokens:
            return Compressed(text, text, ((0, len(text)),), num_in, num_in)
        found, kept = self.write(text, question, budget.tokens, counter)
        found = fitting(found, budget.tokens, counter)
        seconds = time.perf_counter() - began
        num = counter.count(found)
        return Compressed(found, text, kept, num_in, num, not kept, seconds=seconds)

    def ask(self, tokens: int, n: int = 1, temperature: float = 0.0, **slots: str) -> list[str]:
        """The model's answers to the prompt, at most so long."""
        lm = language_model(self.model)
        filled = {"words": str(max(1, round(WORDS * tokens))), **slots}
        prompt = SlotTemplate.parse(self.prompt).render(filled)
        chat = [{"role": "user", "content": prompt}]
        (found,) = lm.generate(
            [chat if lm.takes_chats else f"{prompt}\n\nAnswer:"],
            max_new_tokens=tokens,
            n=n,
            temperature=temperature,
        )
        if found.error is not None:
            raise GenerationError(found.error)
        return [each.text.strip() for each in found.answers]


WRITERS: Registry[Callable[..., TextWriter]] = Registry("writer")


@WRITERS.register("summary")
@dataclass(frozen=True)
class Summary(TextWriter):
    """A summary, for the question if there is one; nothing, where the text does not help.

    RECOMP's abstractive compressor (Xu et al. 2023, arXiv:2310.04408), asked for and not trained.
    nothing: the answer that stands for an empty text.
    """

    prompt: str = ""
    nothing: str = "NONE"

    def write(
        self, text: str, question: str | None, tokens: int, counter: TokenCounter
    ) -> tuple[str, tuple[Span, ...]]:
        own = self if self.prompt else _with_prompt(self, FOR_QUESTION if question else SUMMARY)
        (found,) = own.ask(tokens, text=text, question=question or "")
        empty = found.strip(" .\"'").upper() == self.nothing.upper()
        return "" if empty else found, ()


@WRITERS.register("capsule")
@dataclass(frozen=True)
class Capsule(TextWriter):
    """The one of `tries` summaries that is nearest to the text, if it is near enough.

    Nano-Capsulator (Chuang et al. 2024, arXiv:2402.18700): a capsule in plain words under a length
    limit that keeps the meaning, which the cosine of an embedder measures; its own model is
    trained with that as the reward. Raises GenerationError if none has `min_similarity`.
    """

    prompt: str = SUMMARY
    tries: int = 4
    temperature: float = 0.7
    min_similarity: float = 0.8
    embedder: str | TextEncoder | None = None

    def write(
        self, text: str, question: str | None, tokens: int, counter: TokenCounter
    ) -> tuple[str, tuple[Span, ...]]:
        several = 0.0 if self.tries == 1 else self.temperature
        found = self.ask(tokens, self.tries, several, text=text, question=question or "")
        cut = [fitting(each, tokens, counter) for each in found]
        kept = [each for each in dict.fromkeys(cut) if each]
        if not kept:
            raise GenerationError("no capsule: the model's answers are empty")
        vectors_NE = _unit_vectors(embedder(self.embedder), [text, *kept])
        near = vectors_NE[1:] @ vectors_NE[0]
        best = int(near.argmax())
        if near[best] < self.min_similarity:
            raise GenerationError(
                f"no capsule of {self.tries} reached the similarity {self.min_similarity:g}, the "
                f"best has {near[best]:.2f}; give more tokens or tries, or take a lower one"
            )
        return kept[best], ()


@WRITERS.register("blocks")
@dataclass(frozen=True)
class Blocks(TextWriter):
    """Summaries of blocks of sentences about the same, joined in the order of the text.

    Semantic compression (Fei et al. 2023, arXiv:2312.09571): a graph of sentences by the cosine of
    their vectors, spectral clustering, and a summary of each block of about `size` sentences.
    """

    prompt: str = SUMMARY
    size: int = 6
    embedder: str | TextEncoder | None = None

    def write(
        self, text: str, question: str | None, tokens: int, counter: TokenCounter
    ) -> tuple[str, tuple[Span, ...]]:
        spans = divided(text, [(0, len(text))], sentences)
        pieces = [text[a:b] for a, b in spans]
        blocks = self.blocks(pieces)
        costs = [counter.count(" ".join(pieces[s] for s in block)) for block in blocks]
        found = []
        for block, cost in zip(blocks, costs, strict=True):
            share = max(1, tokens * cost // max(1, sum(costs)))
            whole = " ".join(pieces[s] for s in block)
            (short,) = self.ask(share, text=whole, question=question or "")
            found.append(fitting(short, share, counter))
        return "\n".join(each for each in found if each), ()

    def blocks(self, pieces: Sequence[str]) -> list[list[int]]:
        """Numbers of the sentences of each block, blocks by their first sentence."""
        from sklearn.cluster import SpectralClustering

        num = math.ceil(len(pieces) / self.size)
        if num < 2:
            return [list(range(len(pieces)))]
        vectors_SE = _unit_vectors(embedder(self.embedder), pieces)
        near_SS = np.clip(vectors_SE @ vectors_SE.T, 0.0, None)
        labels = SpectralClustering(
            num, affinity="precomputed", assign_labels="cluster_qr", random_state=0
        ).fit_predict(near_SS)
        found: dict[int, list[int]] = {}
        for sentence, label in enumerate(labels.tolist()):
            found.setdefault(label, []).append(sentence)
        return list(found.values())  # by their first sentence, as dicts keep their order


@WRITERS.register("snippet")
@dataclass(frozen=True)
class Snippet(TextWriter):
    """The sentence of the text that is nearest to what the model copies for the question.

    FilCo's filter (Wang et al. 2023, arXiv:2311.08377) writes the chosen span; here what it wrote
    is replaced by the sentence with the most words in common, so that the output is of the text.
    """

    needs_question = True
    prompt: str = SNIPPET
    longest: int = field(default=64)  # tokens of the model's answer

    def write(
        self, text: str, question: str | None, tokens: int, counter: TokenCounter
    ) -> tuple[str, tuple[Span, ...]]:
        (said,) = self.ask(self.longest, text=text, question=question or "")
        spans = sentences(text)
        wanted = _bag(said)
        shares = [len(_bag(text[a:b]) & wanted) / max(1, len(_bag(text[a:b]))) for a, b in spans]
        start, end = spans[int(np.argmax(shares))]
        found = fitting(text[start:end], tokens, counter)
        return found, ((start, start + len(found)),)


def fitting(text: str, tokens: int, counter: TokenCounter) -> str:
    """The beginning that fits: whole sentences, or of a longer first one whole words."""
    text = text.strip()
    if counter.count(text) <= tokens:
        return text
    for spans in (sentences(text), words(text)):
        low, high = 0, len(spans)
        while low < high:  # the longest beginning that fits
            middle = (low + high + 1) // 2
            fits = counter.count(text[: spans[middle - 1][1]]) <= tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        if low:
            return text[: spans[low - 1][1]]
    return ""


def _with_prompt(writer: Summary, prompt: str) -> Summary:
    import dataclasses

    return dataclasses.replace(writer, prompt=prompt)


def _bag(text: str) -> set[str]:
    return {text[a:b].lower() for a, b in words(text)}


def _unit_vectors(model: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    options = RunOptions(truncate="silent", show_progress_bar=False)
    found, _ = model.encode_vectors(list(texts), options=options, role="document")
    vectors_NE = found.to_dense()
    norms = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return np.asarray(vectors_NE / np.maximum(norms, 1e-12), np.float32)
