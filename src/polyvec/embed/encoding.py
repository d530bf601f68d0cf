"""The run of `encode`: check, prompt, tokenise, batch by token budget, compute, put in order.

Texts are taken in windows, so a generator of any length needs bounded memory; within a
window equal texts are computed once and batches are sorted by token count.
"""

import itertools
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.inputs.prompts import Prompt, render
from polyvec.embed.inputs.tokens import NoRoomError, TokenBatch, Tokens, budget_batches
from polyvec.errors import InputError, ModelError, TruncationWarning

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

WINDOW = 8192
BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}
BAR_FROM_TEXTS = 256
Truncate = Literal["warn", "error", "silent"]


@dataclass(slots=True)
class EncodeReport:
    """What one run of encode did: which prompt it used, what it cut, where the time went.

    `num_tokens` are those the model read, `num_computed_tokens` with padding; wall seconds.
    `truncated` holds the index of each distinct text that was cut, where it stands first.
    """

    prompt: Prompt = field(default_factory=Prompt)
    num_texts: int = 0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    num_truncated: int = 0
    first_truncated: tuple[int, int] | None = None
    truncated: list[int] = field(default_factory=list)
    tokenize_s: float = 0.0
    forward_s: float = 0.0

    def add_truncated(self, index: int, full_length: int, count: int) -> None:
        self.num_truncated += count
        self.truncated.append(index)
        if self.first_truncated is None:
            self.first_truncated = (index, full_length)

    def truncation_message(self, max_length: int | None) -> str:
        index, length = self.first_truncated or (0, 0)
        return (
            f"{self.num_truncated} of {self.num_texts} texts were longer than the model's "
            f"{max_length} tokens and were cut (first: index {index}, {length} tokens); "
            "split them, raise max_seq_length, or pass truncate='error' or 'silent'"
        )


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run: nothing here may change a vector."""

    batch_size: int | None = None
    batch_tokens: int | None = None
    show_progress_bar: bool | None = None
    truncate: Truncate = "warn"
    token_states: bool = False

    def __post_init__(self) -> None:
        if self.truncate not in ("warn", "error", "silent"):
            raise InputError(
                f"truncate={self.truncate!r} is not known. Known: error, silent, warn."
            )


def check_texts(texts: object) -> None:
    """Refuses what has no texts, or no order that vectors could keep."""
    if isinstance(texts, set | frozenset | dict):
        raise InputError(f"texts is a {type(texts).__name__}, which keeps no order; give a list")
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"texts is {type(texts).__name__}; give a list of strings")


def check_text(text: object, index: int) -> str:
    """The text itself, or an InputError that names its index and what it is instead."""
    if not isinstance(text, str):
        hint = "; decode it first" if isinstance(text, bytes) else ""
        raise InputError(f"texts[{index}] is {type(text).__name__}, not a string{hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"texts[{index}] has a lone surrogate at character {error.start}, which is no text; "
            "clean it with text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


def run(
    embedder: "Embedder",
    texts: Iterable[str],
    prompt: Prompt,
    options: RunOptions,
    report: EncodeReport,
    window: int = WINDOW,
) -> Iterator[list[Tensor]]:
    """Windows of vectors on the CPU, each window a list in the order of its texts."""
    report.prompt = prompt
    check_texts(texts)
    _check_prompt(embedder, prompt)
    total = len(texts) if isinstance(texts, Sequence) else None
    with _progress(total, options.show_progress_bar) as advance:
        for start, chunk in _windows(texts, window):
            yield _run_window(embedder, chunk, start, prompt, options, report, advance)
    if report.num_truncated and options.truncate == "warn":
        message = report.truncation_message(embedder.max_seq_length)
        warnings.warn(message, TruncationWarning, stacklevel=4)


def _check_prompt(embedder: "Embedder", prompt: Prompt) -> None:
    """A prompt that fills the model leaves vectors that say nothing of their texts."""
    limit = embedder.max_seq_length
    if not prompt.text or limit is None or embedder.template is not None:
        return  # a template's tokens are counted text by text
    (tokens,) = embedder.text_tokenizer.encode([render("", prompt)])
    if tokens.full_length >= limit:
        raise InputError(
            f"the prompt alone has {tokens.full_length} tokens, the model reads {limit}: "
            "no text would be left"
        )


def _windows(texts: Iterable[str], window: int) -> Iterator[tuple[int, list[str]]]:
    stream, start = enumerate(texts), 0
    while chunk := [check_text(text, i) for i, text in itertools.islice(stream, window)]:
        yield start, chunk
        start += len(chunk)


def _run_window(
    embedder: "Embedder",
    texts: list[str],
    start: int,
    prompt: Prompt,
    options: RunOptions,
    report: EncodeReport,
    advance,
) -> list[Tensor]:
    first_row = {text: row for row, text in reversed(list(enumerate(texts)))}
    unique = sorted(first_row.values())
    copies = np.bincount([first_row[text] for text in texts], minlength=len(texts))
    # A text has several readings where a template has variants; their vectors are averaged.
    rows, tokens = _tokenize(embedder, texts, unique, start, prompt, report)
    _check_all(rows, tokens, start, copies, embedder, options, report)
    found: list[Tensor | None] = [None] * len(tokens)
    readings = Counter(rows)
    lengths = [len(t) for t in tokens]
    budget = options.batch_tokens or BATCH_TOKENS.get(embedder.device.type, 8192)
    for places in budget_batches(lengths, batch_tokens=budget, batch_size=options.batch_size):
        batch = TokenBatch.of([rows[p] for p in places], [tokens[p] for p in places])
        vectors = _forward(embedder, batch, options, report)
        _check_finite(vectors, batch.rows, start)
        for place, vector in zip(places, vectors, strict=True):
            found[place] = vector
        advance(sum(copies[row] / readings[row] for row in batch.rows))
    report.num_texts += len(texts)
    by_row = _averaged(rows, found, options)
    return [by_row[first_row[text]] for text in texts]


def _tokenize(
    embedder: "Embedder",
    texts: list[str],
    unique: list[int],
    start: int,
    prompt: Prompt,
    report: EncodeReport,
) -> tuple[list[int], list[Tokens]]:
    """Tokens of every reading of every distinct text, and whose it is."""
    began = time.perf_counter()
    rows, spans = [], []
    for row in unique:
        for reading in embedder.rendered_inputs(texts[row], prompt):
            rows.append(row)
            spans.append(reading)
    try:
        tokens = embedder.text_tokenizer.encode(spans)
    except NoRoomError as error:
        raise InputError(f"texts[{start + rows[error.place]}]: {error}") from None
    report.tokenize_s += time.perf_counter() - began
    return rows, tokens


def _averaged(
    rows: list[int], found: list[Tensor | None], options: RunOptions
) -> dict[int, Tensor]:
    """One vector a text: the mean over its readings."""
    readings: dict[int, list[Tensor]] = {}
    for row, vector in zip(rows, found, strict=True):
        assert vector is not None
        readings.setdefault(row, []).append(vector)
    if options.token_states and any(len(v) > 1 for v in readings.values()):
        raise InputError("token_embeddings of a text with several readings are not one sequence")
    return {
        row: vectors[0] if len(vectors) == 1 else torch.stack(vectors).mean(0)
        for row, vectors in readings.items()
    }


def _check_all(
    rows: list[int],
    tokens: list[Tokens],
    start: int,
    copies: np.ndarray,
    embedder: "Embedder",
    options: RunOptions,
    report: EncodeReport,
) -> None:
    counted: set[int] = set()
    for row, token in zip(rows, tokens, strict=True):
        if row not in counted or not token.pooled.any():
            _check_tokens(token, start + row, int(copies[row]), embedder, options, report)
        if token.truncated:
            counted.add(row)


def _check_tokens(
    tokens: Tokens,
    index: int,
    count: int,
    embedder: "Embedder",
    options: RunOptions,
    report: EncodeReport,
) -> None:
    """Refuses or counts what `count` equal texts, the first at `index`, cannot keep."""
    if not tokens.pooled.any():
        raise InputError(
            f"texts[{index}] leaves no token to pool: it is empty for this tokenizer, "
            "which adds no special tokens"
        )
    if tokens.truncated:
        if options.truncate == "error":
            raise InputError(
                f"texts[{index}] has {tokens.full_length} tokens, the model reads "
                f"{embedder.max_seq_length}; split it, or pass truncate='warn'"
            )
        report.add_truncated(index, tokens.full_length, count)


def _forward(
    embedder: "Embedder", batch: TokenBatch, options: RunOptions, report: EncodeReport
) -> Sequence[Tensor]:
    began = time.perf_counter()
    with torch.inference_mode():
        if options.token_states:
            states = embedder.token_states(batch)
            out: Sequence[Tensor] = [s[m].float().cpu() for s, m in zip(*states, strict=True)]
        else:
            out = embedder(batch).float().cpu()
    packed = embedder.backbone.layout == "packed"
    report.num_tokens += len(batch.ids_T)
    report.num_computed_tokens += (
        len(batch.ids_T) if packed else max(batch.lengths) * len(batch.lengths)
    )
    report.forward_s += time.perf_counter() - began
    return out


def _check_finite(vectors: Sequence[Tensor], rows: Sequence[int], start: int) -> None:
    if isinstance(vectors, Tensor) and bool(torch.isfinite(vectors).all()):
        return  # one look at all of them; which one is asked only where it matters
    for row, vector in zip(rows, vectors, strict=True):
        if not bool(torch.isfinite(vector).all()):
            raise ModelError(f"the vector of texts[{start + row}] holds NaN or infinity")


class _progress:
    """A bar on stderr with texts/s and time left; nothing where stderr is no terminal."""

    def __init__(self, total: int | None, wanted: bool | None) -> None:
        many = total is None or total >= BAR_FROM_TEXTS
        self.shown = (sys.stderr.isatty() and many) if wanted is None else wanted
        self.total = total

    def __enter__(self):
        if not self.shown:
            return lambda count: None
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.bar = Progress(
            TextColumn("embedding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.speed:.0f} texts/s", justify="right"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        # A speed of None (before the first batch) would break the format above.
        self.bar.columns[3].render = lambda task: f"{task.speed or 0:.0f} texts/s"
        self.bar.start()
        self.task = self.bar.add_task("embedding", total=self.total)
        return lambda count: self.bar.advance(self.task, count)

    def __exit__(self, *error) -> None:
        if self.shown:
            self.bar.stop()
