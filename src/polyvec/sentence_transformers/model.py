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

from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.contract import check_count
from polyvec.embed.inputs.prompts import ROLE_PROMPTS, PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.embed.projection import quantization
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import InputError, known
from polyvec.sentence_transformers import arguments, util, workers
from polyvec.sentence_transformers.as_modules import written
from polyvec.sentence_transformers.features import Features, as_texts, computed, features_of
from polyvec.sentence_transformers.installed import attribute, blank, counterpart
from polyvec.sentence_transformers.saving import beside, upload
from polyvec.sentence_transformers.views import View, views_of

OUTPUTS = ("sentence_embedding", "token_embeddings", None)
logger = logging.getLogger(__name__)


class SentenceTransformer(Embedder):
    """An Embedder that takes and gives what sentence-transformers' class does.

    >>> model = SentenceTransformer("all-MiniLM-L6-v2")
    >>> model.encode(["a cat", "a kitten"]).shape
    (2, 384)
    """

    SUPPORTED_SIMILARITY_FN_NAMES = SIMILARITIES
    model_type = "SentenceTransformer"
    _counterpart = "SentenceTransformer"
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
        arguments.check_backend(backend)
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
        table = {"query": "", "document": "", **self.prompt_table.by_name, **(prompts or {})}
        name = default_prompt_name or self.prompt_table.default_name
        self._set_prompts(PromptTable(table, name))
        self._model_card_data = model_card_data
        self.trust_remote_code, self.backend = trust_remote_code, backend

    # ---- standing for sentence-transformers' class ------------------------------------------

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return counterpart(self._counterpart, type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return blank, (type(self),), self.__getstate__()

    # ---- texts to vectors -------------------------------------------------------------------

    def encode(  # type: ignore[override]
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
        found_texts = as_texts([given] if single else given)
        role = task if role is None else role
        choice = {"prompt_name": prompt_name, "prompt": prompt, "role": role}
        if output_value is None:
            rows = self._all_features(found_texts, choice, batch_size, device)
            most = self._at_most(truncate_dim) or self.truncate_dim
            for row in rows:
                row["sentence_embedding"] = row["sentence_embedding"][:most]
            return rows[0] if single else rows
        call = {
            **choice,
            **options,
            "batch_size": batch_size,
            "show_progress_bar": _shows(show_progress_bar),
            "output_value": output_value,
            "normalize_embeddings": normalize_embeddings,
            "truncate_dim": self._at_most(truncate_dim),
        }
        if pool is not None or isinstance(device, list | tuple):
            call["show_progress_bar"] = False
            chunks = workers.in_pool(
                self,
                device,
                pool,
                lambda each: workers.run(each, "_encoded", found_texts, chunk_size, call),
            )
            found = _joined(chunks)
        else:
            found = self._encoded(found_texts, device=device, **call)
        if output_value == "token_embeddings":
            tokens = [torch.as_tensor(each).to(self.device) for each in found]
            return tokens[0] if single else tokens
        if precision not in (None, "float32") and len(found):
            ranges = options.get("calibration") or self.calibration
            found = util.quantize_embeddings(
                found, precision, None if ranges is None else ranges.ranges_2E
            )
        if convert_to_tensor or not convert_to_numpy:
            found = torch.as_tensor(found).to(self.device)
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

    def _encoded(self, texts: Sequence[str], **options: Any) -> Any:
        """Embedder.encode's arrays; what a worker of a pool computes."""
        return super().encode(texts, **options)

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

    def _all_features(
        self, texts: Sequence[str], choice: Mapping[str, Any], batch_size: int, device: Any
    ) -> list[Features]:
        """One dict of features a text, each as long as the longest of its batch."""
        self._move(device)
        self.eval()
        prompt = self.prompt_for(**choice)
        rows: list[Features] = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            with torch.inference_mode():
                found = computed(
                    self, self._on_device(features_of(self, part, prompt)), prompt.role
                )
            rows += [
                {k: v[row] if isinstance(v, Tensor) else v for k, v in found.items()}
                for row in range(len(part))
            ]
        return rows

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether this is one input rather than a batch."""
        return isinstance(inputs, str | Mapping) or not hasattr(inputs, "__iter__")

    # ---- features ---------------------------------------------------------------------------

    def preprocess(
        self, inputs: Any, prompt: str | None = None, task: str | None = None, **options: Any
    ) -> Features:
        """input_ids and attention_mask of the texts, padded, as tensors [N, T]."""
        arguments.no_others("preprocess", options)
        found = self.prompt_table.resolve(prompt or "")
        return features_of(self, as_texts(inputs), dataclasses.replace(found, role=task))

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

    def _on_device(self, features: Features) -> Features:
        return util.batch_to_device(features, self.device)

    def smart_batching_collate(self, batch: Sequence[Any]) -> tuple[list[Features], Tensor]:
        """Features by column, and labels, of InputExamples."""
        columns = zip(*(example.texts for example in batch), strict=True)
        labels = torch.tensor([example.label for example in batch])
        return [self.preprocess(list(column)) for column in columns], labels

    # ---- modules ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(views_of(self))

    def __getitem__(self, place: int) -> View:
        return views_of(self)[place]

    def __iter__(self) -> Iterator[View]:
        return iter(views_of(self))

    def _first_module(self) -> View:
        return self[0]

    def _last_module(self) -> View:
        return self[-1]

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

    @property
    def modalities(self) -> list[str]:
        """What can be embedded: texts."""
        return ["text"]

    def supports(self, modality: Any) -> bool:
        """Whether inputs of this kind can be embedded."""
        return bool(modality == "text")

    def get_backend(self) -> str:
        """ "torch"."""
        return self.backend

    def get_model_kwargs(self) -> list[str]:
        """Keywords that `encode` passes to the model: none."""
        return []

    def get_max_seq_length(self) -> int | None:
        """The older form of `max_seq_length`."""
        return self.max_seq_length

    # ---- settings ---------------------------------------------------------------------------

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

    # ---- saving, evaluating, training -------------------------------------------------------

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

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save the model and upload it to the hub; returns the address of the commit."""
        for name in ("safe_serialization", "replace_model_card", "train_datasets"):
            options.pop(name, None)  # the card is always written anew, the weights as safetensors
        return upload(self.save_pretrained, repo_id, **options)

    def evaluate(self, evaluator: Any, output_path: str | None = None) -> Any:
        """What the evaluator gives for this model."""
        if output_path is not None:
            Path(output_path).mkdir(parents=True, exist_ok=True)
        return evaluator(self, output_path)

    def fit(self, *positional: Any, **options: Any) -> Any:
        """sentence-transformers' older training loop, `fit(train_objectives=[...], ...)`."""
        mixin = attribute("sentence_transformers.sentence_transformer.fit_mixin", "FitMixin")
        return mixin.fit(self, *positional, **options)

    @property
    def model_card_data(self) -> Any:
        """sentence-transformers' data of a model card, as given or made when first read."""
        if self._model_card_data is None:
            kind = attribute("sentence_transformers", f"{self._counterpart}ModelCardData")
            self._model_card_data = kind(local_files_only=True)
        return self._model_card_data

    @property
    def mteb_model_meta(self) -> Any:
        """Not there: mteb asks the model card instead."""
        raise AttributeError("mteb_model_meta")

    # ---- processes --------------------------------------------------------------------------

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> Any:
        """A pool for `encode(pool=)`: one process for each device."""
        return workers.start(self, target_devices)

    stop_multi_process_pool = staticmethod(workers.stop)

    def encode_multi_process(self, sentences: Sequence[str], pool: Any, **options: Any) -> Any:
        """`encode(sentences, pool=pool)`."""
        return self.encode(sentences, pool=pool, **options)

    # ---- adapters ---------------------------------------------------------------------------

    def add_adapter(self, *positional: Any, **options: Any) -> None:
        """Add a PEFT adapter to transformers' model."""
        self.backbone.model.add_adapter(*positional, **options)

    def load_adapter(self, *positional: Any, **options: Any) -> None:
        """Load a PEFT adapter into transformers' model."""
        self.backbone.model.load_adapter(*positional, **options)

    def set_adapter(self, *positional: Any, **options: Any) -> None:
        """Choose the adapters that are used."""
        self.backbone.model.set_adapter(*positional, **options)

    def enable_adapters(self) -> None:
        """Use the adapters."""
        self.backbone.model.enable_adapters()

    def disable_adapters(self) -> None:
        """Compute without the adapters."""
        self.backbone.model.disable_adapters()

    def active_adapters(self) -> list[str]:
        """The names of the adapters that are used."""
        return list(self.backbone.model.active_adapters())

    def delete_adapter(self, *positional: Any, **options: Any) -> None:
        """Remove an adapter."""
        self.backbone.model.delete_adapter(*positional, **options)

    def get_adapter_state_dict(self, *positional: Any, **options: Any) -> Any:
        """An adapter's weights."""
        return self.backbone.model.get_adapter_state_dict(*positional, **options)


def _shows(show: bool | None) -> bool:
    """Whether a progress bar is shown: if asked for, or where logging is verbose."""
    return logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG) if show is None else show


def _joined(chunks: Sequence[Any]) -> Any:
    """The chunks' arrays as one, or their lists."""
    if chunks and isinstance(chunks[0], list):
        return [each for chunk in chunks for each in chunk]
    return np.concatenate(chunks) if chunks else np.zeros((0,), np.float32)
