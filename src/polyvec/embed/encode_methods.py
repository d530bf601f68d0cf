"""The encode methods, with sentence-transformers' names, order and defaults.

N texts, E vector size.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed import encoding
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.encoding import EncodeRun, Output
from polyvec.embed.formats.devices import check_device
from polyvec.embed.inputs.contract import check_count
from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch, Tokens
from polyvec.embed.projection import quantization
from polyvec.embed.projection.quantization import Calibration, Precision
from polyvec.errors import InputError, ShapeError, known
from polyvec.interfaces import (
    CHUNK_SIZE,
    ROLES,
    DenseVectors,
    EncodeReport,
    MultiVectors,
    Prompt,
    RunOptions,
    SparseVectors,
    TextEncoder,
    Truncate,
    Vectors,
)

Examples = Sequence[Example] | Callable[[str], Sequence[Example]]
Texts = str | Iterable[str]
OutputValue = Literal["sentence_embedding", "token_embeddings"]
SPECIAL_TOKENS = ("text", "parse")
OUTPUTS: dict[str, Output] = {
    "sentence_embedding": "vectors",
    "token_embeddings": "token states",
}
# Numbers of sparse vectors that are dense at a time while they are truncated and normalised.
DENSE_ELEMENTS = 2**24


class Finish(TypedDict, total=False):
    """What is done to finished vectors: step 5 after the model's own projections."""

    precision: Precision
    normalize_embeddings: bool
    truncate_dim: int | None
    calibration: Calibration | None


class EncodeOptions(Finish, total=False):
    """The options of `encode` that do not decide the type of what it returns."""

    sentences: Texts
    texts: Texts
    show_progress_bar: bool | None
    device: str | None
    truncate: Truncate
    role: str | None
    examples: Examples | None


class EncodeMethods(nn.Module, TextEncoder):
    """Everything that an embedder does with texts, over its `forward` for one batch."""

    backbone: Backbone
    text_tokenizer: TextTokenizer
    template: Template | None
    prompt_table: PromptTable
    calibration: Calibration | None
    _truncate_dim: int | None
    # By task, where queries and documents go through different parts.
    routes: Mapping[str, "EncodeMethods"]

    @abc.abstractmethod
    def rendered_inputs(self, texts: Sequence[str], prompt: Prompt) -> list[list[tuple[Span, ...]]]:
        """What is read of each text: one sequence of spans, or several, averaged later."""

    @abc.abstractmethod
    def token_states(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """What is pooled: states [B, T, D], and which of them are real, [B, T]."""

    def for_role(self, role: str | None) -> "EncodeMethods":
        """The embedder that a role's texts go through; InputError if it has none."""
        return self

    @property
    @abc.abstractmethod
    def token_dimension(self) -> int:
        """Numbers in a token's embedding."""

    @property
    @abc.abstractmethod
    def normalizes(self) -> bool:
        """Whether the model's own last step gives vectors of length 1."""

    @property
    @abc.abstractmethod
    def output_kind(self) -> Literal["dense", "sparse"]:
        """Whether vectors are dense or mostly zeros."""

    @property
    @abc.abstractmethod
    def reads_text_mask(self) -> bool:
        """Whether the pooling reads which tokens belong to the user's text."""

    @property
    @abc.abstractmethod
    def reads_words(self) -> bool:
        """Whether the pooling reads the ids of the user's content words."""

    @property
    @abc.abstractmethod
    def zero_if_empty(self) -> bool:
        """Whether a text without tokens has zeros before the projections; else it is an error."""

    @property
    @abc.abstractmethod
    def computes_side_by_side(self) -> bool:
        """Whether several threads may compute a batch each."""

    @property
    @abc.abstractmethod
    def full_dimension(self) -> int:
        """Numbers in a vector before truncation."""

    @property
    def max_seq_length(self) -> int | None:
        """Most tokens that are read, special tokens included; longer texts are truncated."""
        return self.text_tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        limit = self.backbone.max_positions
        value = limit if value is None else value
        if value is not None:
            check_count("max_seq_length", value)
        if value is not None and limit is not None and value > limit:
            raise InputError(f"max_seq_length {value} is beyond the model's {limit} positions")
        self.text_tokenizer.max_length = value
        for route in self.routes.values():
            route.max_seq_length = value

    @property
    def special_tokens(self) -> str:
        """What "[SEP]" and other special-token strings in a text are: "text", characters like any
        others, or "parse", special tokens, as in sentence-transformers. May be assigned."""
        return SPECIAL_TOKENS[self.text_tokenizer.parses_texts]

    @special_tokens.setter
    def special_tokens(self, value: str) -> None:
        if value not in SPECIAL_TOKENS:
            raise InputError(
                f"special_tokens {value!r} is not known.{known(value, SPECIAL_TOKENS)}"
            )
        self.text_tokenizer.parses_texts = value == "parse"
        for route in self.routes.values():
            route.special_tokens = value

    @property
    def truncate_dim(self) -> int | None:
        """Numbers that are kept of each vector; None for all."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        _check_dimension(value, self.full_dimension)
        self._truncate_dim = value

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    # ---- texts to vectors -------------------------------------------------------------------

    @overload  # type: ignore[override]  # the interface accepts any option
    def encode(
        self, inputs: Texts | None = ..., prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...  # fmt: skip
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, inputs: str, prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, output_value: Literal["token_embeddings"],
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...  # fmt: skip
    @overload
    def encode(
        self, inputs: Iterable[str], prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, output_value: Literal["token_embeddings"],
        **options: Unpack[EncodeOptions],
    ) -> list[np.ndarray]: ...  # fmt: skip
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, inputs: str, prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_numpy: Literal[False],
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...  # fmt: skip
    @overload
    def encode(
        self, inputs: Iterable[str], prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_numpy: Literal[False],
        **options: Unpack[EncodeOptions],
    ) -> list[Tensor]: ...  # fmt: skip
    @overload
    def encode(
        self, inputs: Texts | None = ..., prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, output_value: Literal["sentence_embedding"] = ...,
        convert_to_numpy: Literal[True] = ..., convert_to_tensor: Literal[False] = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...  # fmt: skip
    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: OutputValue = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        sentences: Texts | None = None,
        texts: Texts | None = None,
        truncate: Truncate = "warn",
        calibration: Calibration | None = None,
        role: str | None = None,
        examples: Examples | None = None,
    ) -> Any:
        """Vectors in the order of the texts: float32 [N, E], or [E] for a single string.

        Batches are made by token count; `batch_size` limits the number of texts in one, for
        memory, and changes no vector. With `output_value="token_embeddings"` a list of
        [tokens, D]. Integer precisions need `calibrate` once. `truncate` says what happens to
        texts longer than the model reads: "warn" (counted), "error", or "silent".
        With a template the prompt is its instruction, `role` ("query", "document") chooses its
        side, and `examples` are the demonstrations shown: the same for all texts, or a function
        from a text to its own (`demonstrations.nearest_examples`).
        `sentences` and `texts` are other names of `inputs`. Raises InputError, with the index,
        for what is not a text.
        """
        given = _only_one(inputs=inputs, sentences=sentences, texts=texts)
        single = isinstance(given, str)
        found, _ = self.encode_with_report(
            [given] if isinstance(given, str) else given,
            prompt_name=prompt_name,
            prompt=prompt,
            role=role,
            examples=examples,
            options=RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate=truncate),
            output_value=output_value,
            device=device,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            calibration=calibration,
        )
        out = found[0] if single else found
        if convert_to_tensor and not isinstance(out, list):
            return torch.as_tensor(out)
        if convert_to_numpy and not convert_to_tensor:
            return out
        return torch.as_tensor(out) if single else [torch.as_tensor(each) for each in out]

    @overload
    def encode_query(
        self, inputs: Texts | None = ..., prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...  # fmt: skip
    @overload
    def encode_query(
        self, inputs: Texts | None = ..., prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_tensor: Literal[False] = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...  # fmt: skip
    @overload
    def encode_query(self, inputs: Texts, **options: Any) -> Any: ...
    def encode_query(self, inputs: Texts | None = None, *positional: Any, **options: Any) -> Any:
        """`encode` with the model's "query" prompt or its template's query side, if it has one."""
        _refuse_role("query", options)
        return self.encode(inputs, *positional, role="query", **options)

    @overload
    def encode_document(
        self, inputs: Texts | None = ..., prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...  # fmt: skip
    @overload
    def encode_document(
        self, inputs: Texts | None = ..., prompt_name: str | None = ..., prompt: str | None = ...,
        batch_size: int | None = ..., *, convert_to_tensor: Literal[False] = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...  # fmt: skip
    @overload
    def encode_document(self, inputs: Texts, **options: Any) -> Any: ...
    def encode_document(self, inputs: Texts | None = None, *positional: Any, **options: Any) -> Any:
        """`encode` with the template's document side, or the first set of the prompts "document",
        "passage" and "corpus"."""
        _refuse_role("document", options)
        return self.encode(inputs, *positional, role="document", **options)

    def encode_with_report(
        self,
        inputs: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        role: str | None = None,
        examples: Examples | None = None,
        options: RunOptions | None = None,
        output_value: OutputValue = "sentence_embedding",
        device: str | None = None,
        **finish: Unpack[Finish],
    ) -> tuple[Any, EncodeReport]:
        """The result of `encode`, and a report: prompt used, tokens, truncations, seconds."""
        empty = self._check_finish(output_value, finish)
        self._move(device)
        run = EncodeRun(
            self.for_role(role),
            self.prompt_for(prompt, prompt_name, role, examples),
            options or RunOptions(),
            EncodeReport(),
            OUTPUTS[output_value],
        )
        if output_value == "token_embeddings":
            return [x.numpy() for window in run.windows(inputs) for x in window], run.report
        parts = (self._finished(window, **finish) for window in run.windows(inputs))
        total = len(inputs) if isinstance(inputs, Sequence) else None
        return _gather(parts, total, empty), run.report

    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        role: str | None = None,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        device: str | None = None,
        **finish: Unpack[Finish],
    ) -> Iterator[np.ndarray]:
        """Arrays [at most `chunk_size`, E], in order, for any number of texts in bounded memory."""
        encoding.check_texts(inputs)
        check_count("chunk_size", chunk_size)
        self._check_finish("sentence_embedding", finish)
        self._move(device)
        run = EncodeRun(
            self.for_role(role),
            self.prompt_for(prompt, prompt_name, role),
            options or RunOptions(),
            EncodeReport() if report is None else report,
        )
        return (self._finished(window, **finish) for window in run.windows(inputs, chunk_size))

    def encode_vectors(
        self,
        inputs: Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        role: str | None = None,
        options: RunOptions | None = None,
        examples: Examples | None = None,
        output_value: OutputValue = "sentence_embedding",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> tuple[Vectors, EncodeReport]:
        """The vectors in the form that suits them, and a report.

        SparseVectors where the pooling or projection declares `output_kind = "sparse"`,
        MultiVectors for token embeddings, else DenseVectors.
        """
        finish: Finish = {
            "normalize_embeddings": normalize_embeddings,
            "truncate_dim": truncate_dim,
        }
        empty = self._check_finish(output_value, finish)
        sparse = output_value == "sentence_embedding" and self.output_kind == "sparse"
        run = EncodeRun(
            self.for_role(role),
            self.prompt_for(prompt, prompt_name, role, examples),
            options or RunOptions(),
            EncodeReport(),
            "sparse vectors" if sparse else OUTPUTS[output_value],
        )
        windows = run.windows(inputs)
        if sparse:
            return self._sparse(windows, finish), run.report
        if output_value == "token_embeddings":
            states = [x.numpy() for window in windows for x in window]
            dimension = self.for_role(role).token_dimension
            return MultiVectors.of(states, dimension), run.report
        parts = (self._finished(window, **finish) for window in windows)
        total = len(inputs) if isinstance(inputs, Sequence) else None
        values = _gather(parts, total, empty)
        return DenseVectors(values), run.report

    def tokenize(
        self,
        inputs: Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        role: str | None = None,
        examples: Examples | None = None,
    ) -> list[list[Tokens]]:
        """What the model reads of each text, as `encode` reads it; TokenBatch.of makes a batch.

        One input a text, or as many as are averaged where the template has several forms or a
        language model writes variants. Raises InputError, with the index, for what is not a text.
        """
        encoding.check_texts(inputs)
        texts = [encoding.check_text(text, index) for index, text in enumerate(inputs)]
        model, found = self.for_role(role), self.prompt_for(prompt, prompt_name, role, examples)
        encoding.check_prompt(model, found)
        return encoding.tokenize(model, texts, found)

    def encode_tokens(
        self,
        inputs: Sequence[list[Tokens]],
        *,
        role: str | None = None,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **finish: Unpack[Finish],
    ) -> np.ndarray:
        """Vectors [N, E] of what `tokenize` gave, with the role that it was given.

        A server counts tokens before it admits texts, and then does not read them twice.
        """
        self._check_finish("sentence_embedding", finish)
        run = EncodeRun(
            self.for_role(role),
            Prompt(role=role),
            options or RunOptions(),
            EncodeReport() if report is None else report,
        )
        return self._finished(run.of_tokens(inputs), **finish)

    def prompt_for(
        self,
        prompt: str | None = None,
        prompt_name: str | None = None,
        role: str | None = None,
        examples: Examples | None = None,
    ) -> Prompt:
        """The prompt of a call; InputError for examples if there is no template to show them."""
        if role is not None and not isinstance(role, str):
            raise InputError(f"role {role!r} is not known.{known(role, ROLES)}")
        # A route may have a name of its own, for which no prompt is stored.
        own_route = role is not None and role not in ROLES and role in self.routes
        found = self.prompt_table.resolve(prompt, prompt_name, None if own_route else role)
        found = dataclasses.replace(found, role=role) if own_route else found
        if examples is None:
            return found
        if self.template is None:
            raise InputError("examples: the model has no template that could show them")
        chosen = examples if callable(examples) else tuple(examples)
        return dataclasses.replace(found, examples=chosen)

    def calibrate(self, inputs: Iterable[str], **encode_options: Any) -> Calibration:
        """Measure and store the ranges that int8 and uint8 need, from a sample of texts.

        Pass the same normalize_embeddings and truncate_dim as in later calls; a few thousand
        texts of the kind to be embedded are enough. Saved with the model.
        """
        self.calibration = Calibration.of(self.encode(inputs, **encode_options))
        return self.calibration

    def _finished(
        self,
        vectors: Sequence[Tensor],
        *,
        precision: Precision = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        calibration: Calibration | None = None,
    ) -> np.ndarray:
        """Step 5 for a window: truncated, normalised and quantised."""
        dim = self.truncate_dim if truncate_dim is None else truncate_dim
        unit = normalize_embeddings or self.normalizes
        vectors_NE = torch.stack(list(vectors)) if vectors else torch.zeros(0, self.full_dimension)
        vectors_NE = quantization.truncate(vectors_NE, dim, renormalize=unit)
        if normalize_embeddings:
            vectors_NE = nn.functional.normalize(vectors_NE, dim=-1)
        return quantization.quantize(vectors_NE.numpy(), precision, calibration or self.calibration)

    def _sparse(self, windows: Iterator[list[Tensor]], finish: Finish) -> SparseVectors:
        """Finished sparse rows; a block of them is dense at a time, never all [N, V]."""
        size = max(1, DENSE_ELEMENTS // self.full_dimension)
        blocks = [
            SparseVectors.of(
                self._finished([x.to_dense() for x in window[start : start + size]], **finish)
            )
            for window in windows
            for start in range(0, len(window), size)
        ]
        dimension = self._finished([], **finish).shape[1]
        return SparseVectors.joined(blocks, dimension)

    def _check_finish(self, output_value: str, finish: Finish) -> np.ndarray:
        """The finished form of no vectors, [0, E].

        Refuses a wrong output, precision, dimension or calibration before any computation.
        """
        if not isinstance(output_value, str) or output_value not in OUTPUTS:
            raise InputError(
                f"output_value {output_value!r} is not known.{known(output_value, OUTPUTS)}"
            )
        if output_value == "token_embeddings" and finish.get("precision", "float32") != "float32":
            raise InputError("token_embeddings are float32 only")
        _check_dimension(finish.get("truncate_dim"), self.full_dimension)
        if isinstance(finish.get("normalize_embeddings"), str):
            given = finish["normalize_embeddings"]
            raise InputError(f"normalize_embeddings is {given!r}, expected True or False")
        calibration = finish.get("calibration")
        if not isinstance(calibration, Calibration | None):
            kind = type(calibration).__name__
            raise InputError(f"calibration is {kind}; pass what `calibrate` gives")
        return self._finished([], **finish)

    def _move(self, device: str | None) -> None:
        if device is not None and check_device(device) != self.device:
            self.to(device)


def _refuse_role(role: str, options: Mapping[str, Any]) -> None:
    if "role" in options:
        raise InputError(
            f"encode_{role} takes no role: its role is {role!r}; pass another to encode"
        )


def _check_dimension(value: int | None, full: int) -> None:
    if value is None:
        return
    check_count("truncate_dim", value)
    if value > full:
        raise InputError(f"truncate_dim {value} is not between 1 and {full}")


def _only_one(**given: Texts | None) -> Texts:
    """The texts, whichever name they were passed by."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(found) != 1:
        names = " and ".join(found) or "none"
        raise InputError(f"encode takes the texts once, as inputs, sentences or texts; got {names}")
    return next(iter(found.values()))


def _gather(parts: Iterator[np.ndarray], total: int | None, empty: np.ndarray) -> np.ndarray:
    """The parts as one array, written in place where their number is known beforehand."""
    if total is None:
        return np.concatenate([empty, *parts])
    out, filled = np.empty((total, *empty.shape[1:]), empty.dtype), 0
    wrong = f"inputs says that it has {total} texts, and gives"
    for part in parts:
        if part.shape[1:] != empty.shape[1:]:
            raise ShapeError(f"vectors have shape {part.shape}, expected [N, {empty.shape[1]}]")
        if filled + len(part) > total:
            raise InputError(f"{wrong} more; pass a list")
        out[filled : filled + len(part)] = part
        filled += len(part)
    if filled < total:
        raise InputError(f"{wrong} {filled}; pass a list")
    return out
