"""SentenceTransformer: an Embedder with the constructor, methods and results of that name.

N texts, E vector size.
"""

import contextlib
import dataclasses
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.backbone.onnx_layers import BACKENDS
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.contract import check_count
from polyvec.embed.inputs.prompts import ROLE_PROMPTS, PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.embed.progress import progress
from polyvec.embed.projection import quantization
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import InputError, known
from polyvec.interfaces import DenseVectors, MultiVectors, Prompt, SparseVectors
from polyvec.sentence_transformers import arguments, util, workers
from polyvec.sentence_transformers.as_modules import written
from polyvec.sentence_transformers.common import Common
from polyvec.sentence_transformers.containers import Container
from polyvec.sentence_transformers.features import (
    Features,
    Pair,
    as_inputs,
    computed,
    features_of,
    has_pairs,
)
from polyvec.sentence_transformers.saving import beside

OUTPUTS = ("sentence_embedding", "token_embeddings", None)
HALVES = (torch.float16, torch.bfloat16)
logger = logging.getLogger(__name__)


class SentenceTransformer(Common, Container, Embedder):  # type: ignore[misc]
    """An Embedder that takes and gives what sentence-transformers' class does.

    >>> model = SentenceTransformer("all-MiniLM-L6-v2")
    >>> model.encode(["a cat", "a kitten"]).shape
    (2, 384)
    """

    SUPPORTED_SIMILARITY_FN_NAMES = SIMILARITIES
    model_type = "SentenceTransformer"
    _counterpart = "SentenceTransformer"
    _fits = "sentence_transformers.sentence_transformer.fit_mixin"
    _output: str | None = None

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: Sequence[nn.Module] | None = None,
        device: str | torch.device | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        similarity_fn_name: Any = None,
        truncate_dim: int | None = None,
        special_tokens: str = "parse",
    ) -> None:
        """The model of a folder or hub id, or of sentence-transformers' `modules`, copied.

        Arguments are sentence-transformers' own, but for `special_tokens`: "parse" reads "[SEP]"
        in a text as that library does, "text" as Embedder does, as characters. Raises InputError
        for an option in one of the keyword tables that would have no effect.
        """
        arguments.check_backend(backend, BACKENDS)
        words = arguments.old_name(
            tokenizer_kwargs, processor_kwargs, "tokenizer_kwargs:processor_kwargs"
        )
        options: dict[str, Any] = {
            "device": device,
            "cache_folder": cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME"),
            "trust_remote_code": trust_remote_code,
            "revision": revision,
            "local_files_only": local_files_only,
            "token": arguments.old_name(use_auth_token, token, "use_auth_token:token"),
            "similarity_fn_name": getattr(similarity_fn_name, "value", similarity_fn_name),
            "output": self._output,
            "special_tokens": special_tokens,
            **arguments.model_options(model_kwargs, words, config_kwargs),
        }
        side = options.pop("truncation_side", None)
        with contextlib.ExitStack() as stack:
            if model_name_or_path is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                model_name_or_path = written(self._counterpart, modules, folder)
            super().__init__(model_name_or_path, **options)
        if truncate_dim is not None:
            self.truncate_dim = truncate_dim
        if side is not None:
            self.tokenizer.truncation_side = side
        given = arguments.table("prompts", prompts)
        table = {"query": "", "document": "", **self.prompt_table.by_name, **given}
        name = default_prompt_name or self.prompt_table.default_name
        self._set_prompts(PromptTable(table, name))
        self._model_card_data = model_card_data
        self.trust_remote_code, self.backend = trust_remote_code, backend

    # ---- texts to vectors -------------------------------------------------------------------

    @arguments.per_call
    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        sentences: Any = None,
        texts: Any = None,
        task: str | None = None,
        role: str | None = None,
        **options: Any,
    ) -> Any:
        """Vectors in the order of the texts, in the form that sentence-transformers gives.

        A numpy array [N, E], with `convert_to_tensor` a tensor on the model's device, with
        neither a list of tensors; [E] for a single text. `output_value="token_embeddings"` gives
        a tensor [tokens, D] a text, None a dict of all features a text. `task` is another name
        of `role`. Also takes Embedder.encode's `truncate`, `calibration` and `examples`.
        """
        given = arguments.only_one(inputs=inputs, sentences=sentences, texts=texts)
        arguments.no_others(
            f"{type(self).__name__}.encode",
            {k: v for k, v in options.items() if k not in ("truncate", "calibration", "examples")},
        )
        if output_value not in OUTPUTS:
            raise InputError(
                f"output_value {output_value!r} is not known.{known(output_value, OUTPUTS[:2])}"
            )
        single = self.is_singular_input(given)
        read = as_inputs([given] if single else given)
        role = task if role is None else role
        choice: dict[str, Any] = {"prompt_name": prompt_name, "prompt": prompt, "role": role}
        show = _shows(show_progress_bar)
        if output_value is None:
            self._move(device)
            rows = self._all_features(read, self.prompt_for(**choice), batch_size, show)
            most = self._at_most(truncate_dim) or self.truncate_dim
            for row in rows:
                row["sentence_embedding"] = row["sentence_embedding"][:most]
            return rows[0] if single else rows
        half = self.dtype in HALVES
        call = {
            **choice,
            **options,
            "batch_size": batch_size,
            "show_progress_bar": show,
            "output_value": output_value,
            "normalize_embeddings": normalize_embeddings and not half,
            "truncate_dim": self._at_most(truncate_dim),
        }
        if pool is not None or isinstance(device, list | tuple):
            call["show_progress_bar"] = False
            chunks = workers.in_pool(
                self,
                device,
                pool,
                lambda each: workers.run(each, "_encoded", read, chunk_size, call),
            )
            found = _joined(chunks)
        else:
            found = self._encoded(read, device=device, **call)
        if output_value == "token_embeddings":
            tokens = [torch.as_tensor(each).to(self.device, self.dtype) for each in found]
            return tokens[0] if single else tokens
        if half:  # sentence-transformers normalises in the type that it gives
            found = _rounded(found, self.dtype, normalize_embeddings)
        dtype = self.dtype
        if precision not in (None, "float32") and len(found):
            ranges = options.get("calibration") or self.calibration
            found = util.quantize_embeddings(
                found, precision, None if ranges is None else ranges.ranges_2E
            )
            dtype = torch.as_tensor(found[:0]).dtype
        if convert_to_tensor or not convert_to_numpy:
            found = torch.as_tensor(found).to(self.device, dtype)
        elif dtype == torch.float16:  # numpy has no bfloat16
            found = found.astype(np.float16)
        if single:
            return found[0]
        return found if convert_to_tensor or convert_to_numpy else list(found)

    def encode_query(self, inputs: Any = None, *positional: Any, **options: Any) -> Any:
        """`encode` with the model's "query" prompt."""
        return self._encoded_as("query", inputs, positional, options)

    def encode_document(self, inputs: Any = None, *positional: Any, **options: Any) -> Any:
        """`encode` with the first set of the prompts "document", "passage" and "corpus"."""
        return self._encoded_as("document", inputs, positional, options)

    def _encoded_as(
        self, role: str, inputs: Any, positional: Sequence[Any], options: dict[str, Any]
    ) -> Any:
        """`encode` by keywords, as subclasses that replace it expect."""
        options.update(zip(self._order(), positional, strict=False))
        names = ("inputs", "sentences", "texts")
        given = {"inputs": inputs, **{name: options.pop(name, None) for name in names[1:]}}
        options["inputs"] = arguments.only_one(**given)
        if options.get("prompt_name") is None and options.get("prompt") is None:
            found = self.prompt_for(role=role)
            declared = next((n for n in ROLE_PROMPTS[role] if n in self.prompt_table.by_name), None)
            options["prompt_name"] = found.name or (declared if self.template is None else None)
        return self.encode(**options, task=role)

    @classmethod
    def _order(cls) -> Iterator[str]:
        """The names of encode's positional arguments after the inputs."""
        kinds = inspect.signature(cls.encode).parameters.values()
        names = [each.name for each in kinds if each.kind is each.POSITIONAL_OR_KEYWORD]
        return iter(names[2:])

    def _encoded(self, inputs: Sequence[str | Pair], **options: Any) -> Any:
        """Embedder.encode's arrays, also of pairs; what a worker of a pool computes."""
        if not has_pairs(inputs):
            return super().encode(cast(Sequence[str], inputs), **options)
        for name in ("truncate", "examples"):
            if options.get(name) is not None:
                raise InputError(f"encode: {name} is for single texts, not for pairs")
        self._move(options["device"]) if options.get("device") is not None else None
        prompt = self.prompt_for(options["prompt"], options["prompt_name"], options["role"])
        found: list[Any] = [None] * len(inputs)
        tokens = options["output_value"] == "token_embeddings"
        run = (prompt, options["batch_size"], options["show_progress_bar"])
        for places, features in self._in_batches(inputs, *run):
            for row, place in enumerate(places):
                if tokens:
                    real_T = features["attention_mask"][row].bool()
                    found[place] = features["token_embeddings"][row][real_T].float().cpu().numpy()
                else:
                    found[place] = features["sentence_embedding"][row].float().cpu()
        if tokens:
            return found
        names = ("normalize_embeddings", "truncate_dim")
        return self._finished(found, **{name: options[name] for name in names})

    def _finished(self, vectors: Sequence[Tensor], **finish: Any) -> np.ndarray:
        """Truncated without being normalised again, as sentence-transformers does it."""
        dim = finish.pop("truncate_dim", None) or self.truncate_dim
        if dim is None or dim >= self.full_dimension:
            return super()._finished(vectors, truncate_dim=None, **finish)
        vectors_NE = torch.stack(list(vectors)) if vectors else torch.zeros(0, self.full_dimension)
        vectors_NE = vectors_NE[:, :dim]
        if finish.get("normalize_embeddings"):
            vectors_NE = nn.functional.normalize(vectors_NE, dim=-1)
        calibration = finish.get("calibration") or self.calibration
        return quantization.quantize(
            vectors_NE.numpy(), finish.get("precision", "float32"), calibration
        )

    def settings(self) -> dict[str, Any]:
        """Embedder's, and that truncated vectors are not normalised again."""
        return {**super().settings(), "truncation": "not normalised again"}

    def _in_batches(
        self, inputs: Sequence[str | Pair], prompt: Prompt, batch_size: int, show: bool
    ) -> Iterator[tuple[list[int], Features]]:
        """For each batch the places of its inputs, and their features with the vectors.

        The longest inputs come first, so that batches are padded as sentence-transformers' are.
        """
        check_count("batch_size", batch_size)
        lengths = [len(each) if isinstance(each, str) else sum(map(len, each)) for each in inputs]
        order = np.argsort([-length for length in lengths]).tolist()
        with evaluating(self), progress(len(inputs), show) as advance:
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                    read = features_of(self, [inputs[place] for place in places], prompt)
                    found = self(util.batch_to_device(read, self.device), task=prompt.role)
                yield places, found
                advance(len(places))

    def _all_features(
        self, inputs: Sequence[str | Pair], prompt: Prompt, batch_size: int, show: bool
    ) -> list[Features]:
        """One dict of features an input, each as long as the longest of its batch."""
        rows: list[Features] = [{} for _ in inputs]
        for places, found in self._in_batches(inputs, prompt, batch_size, show):
            for row, place in enumerate(places):
                rows[place] = {
                    name: value[row] if isinstance(value, Tensor) else value
                    for name, value in found.items()
                }
        return rows

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether this is one input rather than a batch."""
        return isinstance(inputs, str | Mapping) or not hasattr(inputs, "__iter__")

    # ---- features ---------------------------------------------------------------------------

    @arguments.per_call
    def preprocess(
        self, inputs: Any, prompt: str | None = None, task: str | None = None, **options: Any
    ) -> Features:
        """input_ids and attention_mask of texts or pairs, padded, as tensors [N, T].

        A BatchEncoding: a mapping whose tensors `to(device)` moves.
        """
        arguments.no_others("preprocess", options)
        found = self.prompt_table.resolve(prompt or "")
        return features_of(self, as_inputs(inputs), dataclasses.replace(found, role=task))

    def tokenize(self, texts: Any, **options: Any) -> Any:  # type: ignore[override]
        """The older name of `preprocess`."""
        return self.preprocess(texts, **options)

    def forward(  # type: ignore[override]
        self, input: TokenBatch | Mapping[str, Any], *, task: str | None = None, **options: Any
    ) -> Any:
        """Of a dict of features the dict with its vectors; differentiable."""
        if isinstance(input, Mapping):
            return computed(self, input, task)
        return super().forward(input, **options)

    def get_sentence_features(self, *features: Any) -> Any:
        """Raises InputError: sentence-transformers 6 has no module that could do it, either."""
        raise InputError("get_sentence_features is no longer there; use preprocess(texts)")

    def smart_batching_collate(self, batch: Sequence[Any]) -> tuple[list[Features], Tensor]:
        """Features by column, and labels, of InputExamples."""
        columns = zip(*(example.texts for example in batch), strict=True)
        labels = torch.tensor([example.label for example in batch])
        return [self.preprocess(list(column)) for column in columns], labels

    # ---- settings ---------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer; another one may be assigned."""
        return self.text_tokenizer.hf

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        words = TextTokenizer(
            tokenizer, max_length=self.max_seq_length, lower_case=self.text_tokenizer.lower_case
        )
        words.check_rows(self.backbone.num_rows)
        words.parses_texts = self.text_tokenizer.parses_texts
        self.text_tokenizer = words

    processor = tokenizer

    @property
    def transformers_model(self) -> Any:
        """transformers' model."""
        return self.backbone.model

    @property
    def config(self) -> Any:
        """The configuration of transformers' model."""
        return self.backbone.model.config

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Similarity of every vector to every other, [N, M]; vectors of int8 are dequantised."""
        return super().similarity(*_tensors(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Similarity of each vector to the one beside it, [N]; of two single vectors a scalar.

        One vector stands beside each of several.
        """
        one, other = _tensors(embeddings1, embeddings2)
        return util.by_pairs(one, other, super().similarity_pairwise)

    @property
    def prompts(self) -> dict[str, str]:
        """The stored prompts by name. Assign a table to change them, or change this one."""
        return cast(dict[str, str], self.prompt_table.by_name)

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        name = self.prompt_table.default_name
        self._set_prompts(PromptTable(dict(prompts), name if name in prompts else None))

    def _set_prompts(self, table: PromptTable) -> None:
        for each in (self, *self.routes.values()):
            each.prompt_table = table

    @property
    def similarity_fn_name(self) -> str:
        """The similarity's name; None, or another one, may be assigned."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        Embedder.similarity_fn_name.__set__(self, "cosine" if name is None else name)  # type: ignore[attr-defined]

    @property
    def truncate_dim(self) -> int | None:
        """Numbers that are kept of each vector; None for all."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        self._truncate_dim = self._at_most(value)

    def _at_most(self, dim: int | None) -> int | None:
        """The dimension, at most that of the vectors, which a warning says."""
        if dim is None:
            return None
        check_count("truncate_dim", dim)
        if dim > self.full_dimension:
            warnings.warn(
                f"truncate_dim {dim}: vectors have {self.full_dimension} numbers, all are kept",
                stacklevel=3,
            )
        return min(dim, self.full_dimension)

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Whether the tokens of prompts are pooled."""
        for each in (self, *self.routes.values()):
            each.pool_prompt = bool(include_prompt)

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Vectors inside the block have this many numbers."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    # ---- saving, older methods --------------------------------------------------------------

    def save_pretrained(
        self,
        path: str | Path,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: Sequence[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write a folder that sentence-transformers and Embedder load to the same vectors."""
        if not safe_serialization:
            raise InputError("safe_serialization=False: polyvec writes safetensors only")
        place = Path(path)
        if place.is_dir() and any(place.iterdir()) and not (place / "modules.json").is_file():
            with beside(place) as folder:  # a trainer's folder, which holds checkpoints
                super().save_pretrained(folder)
        else:
            super().save_pretrained(place)

    save = save_pretrained

    @classmethod
    def load(cls, input_path: str | Path) -> "SentenceTransformer":
        """The older form of `SentenceTransformer(path)`."""
        return cls(input_path)

    @property
    def mteb_model_meta(self) -> Any:
        """Not there: mteb asks the model card instead."""
        raise AttributeError("mteb_model_meta")

    def encode_multi_process(self, sentences: Sequence[str], pool: Any, **options: Any) -> Any:
        """`encode(sentences, pool=pool)`."""
        return self.encode(sentences, pool=pool, **options)


def _shows(show: bool | None) -> bool:
    """Whether a progress bar is shown: if asked for, or where logging is verbose."""
    return logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG) if show is None else show


def _tensors(*vectors: Any) -> list[Any]:
    """Vectors as tensors; those of polyvec's own classes as they are."""
    own = DenseVectors | MultiVectors | SparseVectors
    return [each.to_dense() if isinstance(each, own) else util.as_tensor(each) for each in vectors]


def _rounded(vectors_NE: np.ndarray, dtype: torch.dtype, normalize: bool) -> np.ndarray:
    """The vectors rounded to half precision, normalised there if asked for, as float32."""
    found = torch.as_tensor(vectors_NE).to(dtype)
    return (nn.functional.normalize(found, dim=-1) if normalize else found).float().numpy()


def _joined(chunks: Sequence[Any]) -> Any:
    """The chunks' arrays as one, or their lists."""
    if chunks and isinstance(chunks[0], list):
        return [each for chunk in chunks for each in chunk]
    return np.concatenate(chunks) if chunks else np.zeros((0,), np.float32)
