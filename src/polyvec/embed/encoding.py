"""The run of `encode`: check, tokenise, batch by token budget, compute, restore the order.

Texts are taken in windows, so a generator of any length needs bounded memory. Within a window
equal texts are computed once, and batches are sorted by token count.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.inputs.contract import TokenizerContract
from polyvec.embed.inputs.prompts import render
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import (
    NoRoomError,
    TokenBatch,
    Tokens,
    budget_batches,
)
from polyvec.embed.progress import progress
from polyvec.embed.side_by_side import each_on_one_thread
from polyvec.errors import InputError, ModelError, TokenizerError, TruncationWarning
from polyvec.interfaces import CHUNK_SIZE, EncodeReport, Prompt, RunOptions

# Tokens in a batch. A CPU gains nothing beyond a few thousand, a GPU is idle below.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}
# Batches that threads compute side by side: each has at least so many, of so many tokens.
SHARES, LEAST_TOKENS = 4, 1024
Output = Literal["vectors", "sparse vectors", "token states"]


class SpanTokenizer(Protocol):
    """What an encode run asks of a tokenizer, as TextTokenizer has it."""

    @property
    def hf(self) -> Any: ...
    @property
    def contract(self) -> TokenizerContract: ...
    def encode(
        self, batch: Sequence[tuple[Span, ...]], *, text_mask: bool = False
    ) -> list[Tokens]: ...
    def word_ids(self, text: str) -> np.ndarray: ...
    def check_rows(self, rows: int | None) -> None: ...


class Model(Protocol):
    """What an encode run asks of an embedder."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def text_tokenizer(self) -> SpanTokenizer: ...
    @property
    def template(self) -> Template | None: ...
    @property
    def max_seq_length(self) -> int | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def reads_text_mask(self) -> bool: ...
    @property
    def reads_words(self) -> bool: ...
    @property
    def zero_if_empty(self) -> bool: ...
    @property
    def computes_side_by_side(self) -> bool: ...

    def __call__(self, batch: TokenBatch, *, num_projections: int | None = None) -> Tensor: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def eval(self) -> object: ...
    def rendered_inputs(
        self, texts: Sequence[str], prompt: Prompt
    ) -> list[list[tuple[Span, ...]]]: ...
    def token_states(self, batch: TokenBatch) -> tuple[Tensor, Tensor]: ...


def check_texts(inputs: object) -> None:
    """Raises InputError for what has no texts, has them in no order, or would give its keys."""
    name = type(inputs).__name__
    if isinstance(inputs, set | frozenset | Mapping):
        raise InputError(f"inputs is a {name}, which has no order; pass a list of strings")
    # pandas, polars, pyarrow and datasets: a loop over some of them gives the names of columns.
    if any(hasattr(inputs, table) for table in ("columns", "column_names", "schema")):
        raise InputError(f"inputs is a {name}; pass one of its columns as a list of strings")
    if isinstance(inputs, str | bytes | bytearray) or not isinstance(inputs, Iterable):
        raise InputError(f"inputs is {name}; pass a list of strings")
    if getattr(inputs, "shape", None) == ():
        raise InputError(f"inputs is a {name} without dimensions; pass a list of strings")


def check_text(text: object, index: int) -> str:
    """The text itself, or an InputError with its index and what was passed instead."""
    if not isinstance(text, str):
        hint = "; decode it first" if isinstance(text, bytes) else ""
        raise InputError(f"inputs[{index}] is {type(text).__name__}, not a string{hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"inputs[{index}] has a lone surrogate at character {error.start}, which is not valid "
            "text; clean it with text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


def tokenize(
    model: Model, texts: Sequence[str], prompt: Prompt, indices: Sequence[int] | None = None
) -> list[list[Tokens]]:
    """The tokens of each text: one input, or several whose vectors are averaged.

    `indices` are the numbers by which errors name the texts. Raises InputError for a template
    that leaves a text no room.
    """
    indices = range(len(texts)) if indices is None else indices
    rendered = model.rendered_inputs(texts, prompt)
    owners = [place for place, inputs in enumerate(rendered) for _ in inputs]
    try:
        found = model.text_tokenizer.encode(
            [spans for inputs in rendered for spans in inputs], text_mask=model.reads_text_mask
        )
    except NoRoomError as error:
        raise InputError(f"inputs[{indices[owners[error.place]]}]: {error}") from None
    if model.reads_words:
        words = model.text_tokenizer.word_ids
        found = [
            dataclasses.replace(each, word_ids=words(texts[owner]))
            for each, owner in zip(found, owners, strict=True)
        ]
    tokens = iter(found)
    return [list(itertools.islice(tokens, len(inputs))) for inputs in rendered]


def check_prompt(model: Model, prompt: Prompt) -> None:
    """Raises InputError for a prompt that fills the model and leaves no room for a text.

    TokenizerError for a tokenizer with tokens that the model has no embedding of.
    """
    model.text_tokenizer.check_rows(model.backbone.num_rows)
    limit = model.max_seq_length
    if not prompt.text or limit is None or model.template is not None:
        return  # a template's tokens are counted text by text
    try:
        length = model.text_tokenizer.encode([render("", prompt)])[0].full_length
    except NoRoomError as error:
        length = error.fixed + limit - error.room
    if length >= limit:
        raise InputError(
            f"the prompt alone has {length} tokens, the model reads {limit}: no text would be left"
        )


@dataclass(frozen=True, slots=True)
class EncodeRun:
    """One run over any number of texts.

    Its output are "vectors", "sparse vectors" (the same as sparse tensors, for vectors that are
    mostly zero) or "token states". `num_projections` applies the first projections only.
    """

    model: Model
    prompt: Prompt
    options: RunOptions
    report: EncodeReport
    output: Output = "vectors"
    num_projections: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.options, RunOptions):
            kind = type(self.options).__name__
            raise InputError(
                f"options is a {kind}; pass polyvec.interfaces.RunOptions(batch_size=..., "
                "batch_tokens=..., show_progress_bar=..., truncate=...)"
            )
        if not isinstance(self.report, EncodeReport):
            kind = type(self.report).__name__
            raise InputError(f"report is a {kind}; pass polyvec.interfaces.EncodeReport()")

    def windows(self, inputs: Iterable[str], size: int = CHUNK_SIZE) -> Iterator[list[Tensor]]:
        """The output of every text on the CPU, in order, `size` texts at a time."""
        self.report.prompt = self.prompt
        check_texts(inputs)
        check_prompt(self.model, self.prompt)
        total = len(inputs) if isinstance(inputs, Sequence) else None
        if total is not None and total > size:
            self._check_blanks(inputs)
        total = self.options.num_texts if total is None else total
        with progress(total, self.options.show_progress_bar) as advance:
            for start, texts in _split(inputs, size):
                with evaluating(self.model):
                    found = self._window(texts, start, advance)
                yield found
        if self.report.num_truncated and self.options.truncate == "warn":
            message = self.report.truncation_message(self.model.max_seq_length)
            warnings.warn(message, TruncationWarning, stacklevel=4)

    def _check_blanks(self, inputs: Iterable[str]) -> None:
        """Raises InputError for an empty text of a later window before the first is computed."""
        blanks = (i for i, x in enumerate(inputs) if isinstance(x, str) and not x.strip())
        index = next(blanks, None)
        if index is not None:
            self._check_tokens(tokenize(self.model, [""], self.prompt)[0], index, 1)

    def _window(
        self, texts: list[str], start: int, advance: Callable[[float], None]
    ) -> list[Tensor]:
        first_row = {text: row for row, text in reversed(list(enumerate(texts)))}
        unique = sorted(first_row.values())
        copies = Counter(first_row[text] for text in texts)
        began = time.perf_counter()
        inputs = tokenize(
            self.model, [texts[row] for row in unique], self.prompt, [start + r for r in unique]
        )
        self.report.tokenize_s += time.perf_counter() - began
        means = self._computed(unique, inputs, start, copies, advance)
        self.report.num_texts += len(texts)
        return [means[first_row[text]] for text in texts]

    def of_tokens(self, inputs: Sequence[list[Tokens]]) -> list[Tensor]:
        """The output of texts that `tokenize` has read, in order."""
        self.report.prompt = self.prompt
        self.model.text_tokenizer.check_rows(self.model.backbone.num_rows)
        rows = range(len(inputs))
        with evaluating(self.model):
            found = self._computed(rows, inputs, 0, Counter(rows), lambda _: None)
        self.report.num_texts += len(rows)
        return [found[row] for row in rows]

    def _computed(
        self,
        unique: Sequence[int],
        inputs: Sequence[list[Tokens]],
        start: int,
        copies: Mapping[int, int],
        advance: Callable[[float], None],
    ) -> dict[int, Tensor]:
        """The output of each text that differs, by its row; `copies` counts the equal ones."""
        for row, tokens in zip(unique, inputs, strict=True):
            self._check_tokens(tokens, start + row, copies[row])

        rows = [row for row, tokens in zip(unique, inputs, strict=True) for _ in tokens]
        flat = [each for tokens in inputs for each in tokens]
        num_inputs = dict(zip(unique, map(len, inputs), strict=True))
        lengths = [len(tokens) for tokens in flat]
        threads = self._threads(sum(lengths))
        places_of = list(self._batches(lengths, threads))
        batches = [
            TokenBatch.of([rows[p] for p in each], [flat[p] for p in each]) for each in places_of
        ]
        found: dict[int, Tensor] = {}
        began = time.perf_counter()
        with contextlib.closing(self._outputs(batches, start, threads)) as outputs:
            for places, batch, output in zip(places_of, batches, outputs, strict=True):
                found.update(zip(places, output, strict=True))
                self._count(batch)
                advance(sum(copies[row] / num_inputs[row] for row in batch.rows))
        self.report.forward_s += time.perf_counter() - began
        return self._means(rows, [found[place] for place in range(len(flat))])

    def _threads(self, num_tokens: int) -> int:
        """How many threads may compute a batch each; 1: torch's threads share each operation."""
        threads = torch.get_num_threads()
        few = num_tokens < threads * SHARES * LEAST_TOKENS
        if threads == 1 or few or self.output != "vectors" or self.model.device.type != "cpu":
            return 1
        with torch.inference_mode(), _no_autocast("cpu"):
            return threads if self.model.computes_side_by_side else 1

    def _batches(self, lengths: Sequence[int], threads: int) -> Iterator[list[int]]:
        """The places of the inputs of each batch."""
        budget = self.options.batch_tokens
        if budget is None:
            budget = BATCH_TOKENS.get(self.model.device.type, 8192)
            if threads > 1:  # the last ones may leave threads without work
                share = sum(lengths) // (SHARES * threads)
                budget = max(LEAST_TOKENS, min(budget, share))
        batch_size = self.options.batch_size
        return budget_batches(lengths, batch_tokens=budget, batch_size=batch_size)

    def _outputs(
        self, batches: Sequence[TokenBatch], start: int, threads: int
    ) -> Generator[list[Tensor]]:
        """The output of each text of each batch."""
        forward = functools.partial(self._forward, start=start)
        if len(batches) >= SHARES * threads > SHARES:
            yield from each_on_one_thread(forward, batches, threads)
        else:
            yield from map(forward, batches)

    def _count(self, batch: TokenBatch) -> None:
        packed = self.model.backbone.layout == "packed"
        self.report.num_tokens += len(batch.ids_T)
        self.report.num_computed_tokens += (
            len(batch.ids_T) if packed else max(batch.lengths) * len(batch.lengths)
        )

    def _check_tokens(self, inputs: list[Tokens], index: int, count: int) -> None:
        """Refuses or counts what `count` equal texts, the first at `index`, lose."""
        if not self.model.zero_if_empty and not all(tokens.pooled.any() for tokens in inputs):
            raise InputError(
                f"inputs[{index}] leaves no token to pool: it is empty for this tokenizer, "
                "which adds no special tokens; leave it out, or put a word in its place"
            )
        truncated = next((tokens for tokens in inputs if tokens.truncated), None)
        if truncated is None:
            return
        if self.options.truncate == "error":
            raise InputError(
                f"inputs[{index}] has {truncated.full_length} tokens, the model reads "
                f"{self.model.max_seq_length}; split it, or pass truncate='warn'"
            )
        self.report.add_truncated(index, truncated.full_length, count)

    def _forward(self, batch: TokenBatch, start: int) -> list[Tensor]:
        """The output of each text of a batch, on the CPU in float32."""
        rows = self.model.backbone.num_rows
        if rows is not None and len(batch.ids_T) and batch.ids_T.max() >= rows:
            self._raise_without_row(batch, rows, start)
        with torch.inference_mode(), _no_autocast(self.model.device.type):
            if self.output == "token states":
                padded_BTD, mask_BT = self.model.token_states(batch)
                out = [s[m].float().cpu() for s, m in zip(padded_BTD, mask_BT, strict=True)]
                finite = all(bool(torch.isfinite(states).all()) for states in out)
            else:
                vectors_BE = self.model(batch, num_projections=self.num_projections)
                vectors_BE = vectors_BE.float().cpu()
                # Several operations fewer, and exact unless a sum of large numbers overflows.
                finite = math.isfinite(vectors_BE.sum()) or bool(vectors_BE.isfinite().all())
                out = list(vectors_BE)
        if not finite:
            _raise_not_finite(out, batch.rows, start)
        if self.output == "sparse vectors":
            # Row by row, so that no more than one batch of vocabulary vectors is dense at a time.
            out = [vector_E.to_sparse() for vector_E in out]
        return out

    def _raise_without_row(self, batch: TokenBatch, rows: int, start: int) -> None:
        place = int(np.argmax(batch.ids_T))
        row = batch.rows[int(np.searchsorted(np.cumsum(batch.lengths), place, side="right"))]
        token = self.model.text_tokenizer.hf.convert_ids_to_tokens([int(batch.ids_T[place])])[0]
        raise TokenizerError(
            f"inputs[{start + row}]: token {token!r} (id {batch.ids_T[place]}) has no row in the "
            f"embedding table, which has {rows} rows; leave it out of the prompt, or resize the "
            "table with model.resize_token_embeddings(len(tokenizer))"
        )

    def _means(self, rows: list[int], found: list[Tensor]) -> dict[int, Tensor]:
        """The output of each text by its row: the mean over its inputs."""
        outputs: dict[int, list[Tensor]] = {}
        for row, output in zip(rows, found, strict=True):
            outputs.setdefault(row, []).append(output)
        if self.output == "token states" and any(len(each) > 1 for each in outputs.values()):
            raise InputError(
                "token_embeddings: a text that is read in several forms has no single sequence"
            )
        return {row: _mean(each) for row, each in outputs.items()}


def _split(inputs: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Windows of texts, and the index of each one's first text."""
    stream, start = enumerate(inputs), 0
    while texts := [check_text(text, i) for i, text in itertools.islice(stream, size)]:
        yield start, texts
        start += len(texts)


def _no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Under a caller's autocast the same text would have another vector."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _mean(vectors: list[Tensor]) -> Tensor:
    if len(vectors) == 1:
        return vectors[0]
    mean = torch.stack([v.to_dense() if v.is_sparse else v for v in vectors]).mean(0)
    return mean.to_sparse() if vectors[0].is_sparse else mean


def _raise_not_finite(out: Sequence[Tensor], rows: Sequence[int], start: int) -> None:
    row = next(r for r, x in zip(rows, out, strict=True) if not bool(torch.isfinite(x).all()))
    raise ModelError(f"the vector of inputs[{start + row}] holds NaN or infinity")
