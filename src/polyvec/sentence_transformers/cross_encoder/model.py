"""CrossEncoder: scores of pairs of texts, which the model reads together.

N pairs, K labels, T tokens of the longest.
"""

import contextlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from polyvec import __version__
from polyvec.embed.encoding import check_text
from polyvec.embed.formats.devices import best_device, check_device, dtype_name
from polyvec.embed.formats.schema import read_json
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.transformer import check_dtype, chosen_dtype
from polyvec.embed.inputs.contract import NO_LIMIT, check_count
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.progress import progress
from polyvec.errors import InputError, ModelError
from polyvec.rerank.classifier import SETTINGS, load_classifier, write_classifier
from polyvec.sentence_transformers import arguments, workers
from polyvec.sentence_transformers.as_modules import written
from polyvec.sentence_transformers.common import Common
from polyvec.sentence_transformers.cross_encoder.container import Classifier
from polyvec.sentence_transformers.features import Features
from polyvec.sentence_transformers.saving import beside
from polyvec.sentence_transformers.util import batch_to_device

logger = logging.getLogger(__name__)
# The constructor's arguments under their names of sentence-transformers 2 and 3.
OLDER = {
    "automodel_args": "model_kwargs",
    "cache_dir": "cache_folder",
    "classifier_dropout": "classifier_dropout",
    "config_args": "config_kwargs",
    "default_activation_function": "activation_fn",
    "tokenizer_args": "tokenizer_kwargs",
}


class CrossEncoder(Common, Classifier, nn.Module):
    """A sequence classifier that takes and gives what sentence-transformers' CrossEncoder does.

    >>> reranker = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
    >>> reranker.rank("a question", documents)                          # doctest: +SKIP
    """

    model_type = "CrossEncoder"
    default_huggingface_organization = "cross-encoder"
    _counterpart = "CrossEncoder"
    _fits = "sentence_transformers.cross_encoder.fit_mixin"

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
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
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        keep_in_fp32_modules: Sequence[str] | None = None,
        **older: Any,
    ) -> None:
        """The classifier of a folder or hub id; a checkpoint without a head gets a random one.

        Or that of `modules`, a list of sentence-transformers' modules, copied: one Transformer.
        `num_labels` and `config_kwargs` replace settings of config.json. Raises ModelError for
        a model that isn't a sequence classifier, as rerankers that write "yes" or "no".
        """
        super().__init__()
        arguments.check_backend(backend)
        self.set_keep_in_fp32_modules(keep_in_fp32_modules or [])
        older = arguments.older_names(older, OLDER, f"{type(self).__name__}")
        model_kwargs = older.get("model_kwargs", model_kwargs)
        tokenizer_kwargs = older.get("tokenizer_kwargs", tokenizer_kwargs)
        config_kwargs = older.get("config_kwargs", config_kwargs)
        config_kwargs = arguments.table("config_kwargs", config_kwargs)
        if "classifier_dropout" in older:
            config_kwargs["classifier_dropout"] = older["classifier_dropout"]
        activation_fn = older.get("activation_fn", activation_fn)
        cache_folder = older.get("cache_folder", cache_folder)
        words = arguments.old_name(
            tokenizer_kwargs, processor_kwargs, "tokenizer_kwargs:processor_kwargs"
        )
        options = arguments.model_options(model_kwargs, words, None)
        with contextlib.ExitStack() as stack:
            if model_name_or_path is None:
                made = stack.enter_context(tempfile.TemporaryDirectory())
                model_name_or_path = written("CrossEncoder", modules, made)
            folder = model_folder(
                model_name_or_path,
                revision=revision,
                cache_folder=cache_folder,
                local_files_only=local_files_only,
                token=token,
                namespace="cross-encoder",
                trust_remote_code=trust_remote_code,
            )
            self._load(folder, options, config_kwargs, num_labels, device, trust_remote_code)
            stored = read_json(folder / SETTINGS, {})
        table = stored.get("prompts") or {}
        prompts = arguments.table("prompts", prompts)
        try:
            self.prompt_table = PromptTable(
                {**table, **prompts},
                default_prompt_name or stored.get("default_prompt_name"),
            )
        except (InputError, TypeError) as error:
            if prompts or default_prompt_name:
                raise
            raise ModelError(f"{folder / SETTINGS}: {error}") from None
        _check_function(activation_fn)
        self.activation_fn = activation_fn or self._default_activation(
            stored, trust_remote_code, folder
        )
        length = max_length or options.get("max_seq_length")
        if length is not None:
            self.max_length = length
        self.trust_remote_code, self.backend = trust_remote_code, backend
        self._model_card_data = model_card_data
        self.eval()

    def _load(
        self,
        folder: Path,
        options: Mapping[str, Any],
        config_kwargs: Mapping[str, Any] | None,
        num_labels: int | None,
        device: Any,
        trusted: bool,
    ) -> None:
        """Model and tokenizer of the folder, on their device."""
        device = check_device(options.get("device") or device or best_device())
        config = {
            **(config_kwargs or {}),
            **({} if num_labels is None else {"num_labels": num_labels}),
        }
        dtype = check_dtype(
            chosen_dtype(dtype_name(options.get("dtype")), None, folder), str(device)
        )
        self.model, self.tokenizer = load_classifier(folder, config, dtype, trusted)
        self.tokenizer.truncation_side = options.get(
            "truncation_side", self.tokenizer.truncation_side
        )
        self.to(device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "activation_fn":  # a setting, not a module with a place in the weights
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---- pairs to scores --------------------------------------------------------------------

    @arguments.per_call
    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        sentences: Any = None,
        **older: Any,
    ) -> Any:
        """Scores of the pairs, float32 [N], or [N, K] of several labels; of one pair one score.

        A numpy array, with `convert_to_tensor` a tensor, with neither a list of tensors.
        """
        older = arguments.older_names(older, {"activation_fct": "activation_fn"}, "predict")
        activation_fn = older.get("activation_fn", activation_fn)
        given = arguments.only_one(inputs=inputs, sentences=sentences)
        given = _listed(given)
        _check_function(activation_fn)
        single = self.is_singular_input(given)
        pairs = [_pair(each, place) for place, each in enumerate([given] if single else given)]
        call = {
            "prompt": self.prompt_table.resolve(prompt, prompt_name).text,
            "batch_size": batch_size,
            "activation_fn": activation_fn or self.activation_fn,
            "apply_softmax": bool(apply_softmax),
            "show_progress_bar": False if show_progress_bar is None else show_progress_bar,
        }
        if pool is not None or isinstance(device, list | tuple):
            chunks = workers.in_pool(
                self,
                device,
                pool,
                lambda each: workers.run(each, "_scores", pairs, chunk_size, call),
            )
            found = torch.cat(chunks)
        else:
            if device is not None:
                self.to(check_device(device))
            found = self._scores(pairs, **call)
        if convert_to_tensor:
            return found[0].to(self.device) if single else found.to(self.device)
        if convert_to_numpy:
            return found.numpy()[0] if single else found.numpy()
        return found[0] if single else list(found)

    @torch.inference_mode()
    def _scores(self, pairs: Sequence[tuple[str, str]], **call: Any) -> Tensor:
        """Scores on the CPU, float32 [N] or [N, K]; batches are sorted by length."""
        check_count("batch_size", call["batch_size"])
        self.eval()
        order = sorted(range(len(pairs)), key=lambda place: -sum(map(len, pairs[place])))
        found: dict[int, Tensor] = {}
        with progress(len(pairs), call["show_progress_bar"]) as advance:
            for start in range(0, len(order), call["batch_size"]):
                places = order[start : start + call["batch_size"]]
                features = self.preprocess([pairs[p] for p in places], call["prompt"])
                features = batch_to_device(features, self.device)
                logits = self(features)["scores"].float()
                scores = call["activation_fn"](logits)
                if not isinstance(scores, Tensor) or len(scores) != len(logits):
                    raise InputError(
                        f"activation_fn gave {str(scores)[:60]}, expected a score for each pair"
                    )
                single = self.num_labels == 1 and scores.ndim > 1
                scores = scores.squeeze(-1) if single else scores
                if call["apply_softmax"] and scores.ndim > 1:
                    scores = scores.softmax(dim=1)
                found.update(zip(places, scores.cpu(), strict=True))
                advance(len(places))
        empty = torch.empty(0) if self.num_labels == 1 else torch.empty(0, self.num_labels)
        return torch.stack([found[place] for place in range(len(pairs))]) if pairs else empty

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        device: Any = None,
        pool: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        **older: Any,
    ) -> list[dict[str, Any]]:
        """The documents by falling score: corpus_id, score, and text if asked for.

        convert_to_numpy and convert_to_tensor of older scripts change nothing, as the log says.
        Raises InputError for a model of several labels.
        """
        for name in ("convert_to_numpy", "convert_to_tensor"):
            if older.pop(name, None) is not None:
                logger.warning("rank: %s has no effect", name)
        arguments.no_others("rank", older)
        if self.num_labels != 1:
            raise InputError("rank() is for models with num_labels=1; use predict()")
        if top_k is not None and (type(top_k) is not int or top_k < 0):
            raise InputError(f"top_k is {top_k!r}, expected a whole number")
        if isinstance(documents, str | Mapping) or not isinstance(documents, Iterable):
            kind = type(documents).__name__
            raise InputError(f"rank: the documents are {kind}, expected a list of texts")
        documents = list(documents)
        scores = self.predict(
            [(query, document) for document in documents],
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        ).tolist()
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[:top_k]
        return [
            {"corpus_id": place, "score": scores[place]}
            | ({"text": documents[place]} if return_documents else {})
            for place in order
        ]

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether this is one pair rather than several."""
        if isinstance(inputs, np.ndarray):
            inputs = inputs.tolist()
        if not isinstance(inputs, list | tuple) and hasattr(inputs, "__iter__"):
            return isinstance(inputs, str | Mapping)
        return isinstance(inputs, list | tuple) and len(inputs) > 0 and isinstance(inputs[0], str)

    # ---- features ---------------------------------------------------------------------------

    @arguments.per_call
    def preprocess(self, inputs: Any, prompt: str | None = None, **options: Any) -> Features:
        """The tokens of pairs, padded, as tensors [N, T]; the prompt stands before each first text.

        Also of single texts, which only statistics of a data set are made of. Special-token
        strings in a text are read as the tokenizer reads them.
        """
        arguments.no_others("preprocess", {k: v for k, v in options.items() if k != "task"})
        read = list(_listed(inputs))
        if not read:
            return {}
        before = prompt or ""
        second: list[str] | None = None
        if all(isinstance(each, str) for each in read):
            first = [before + check_text(each, place) for place, each in enumerate(read)]
        else:
            pairs = [_pair(each, place) for place, each in enumerate(read)]
            first, second = [before + pair[0] for pair in pairs], [pair[1] for pair in pairs]
        found: Features = self.tokenizer(
            first,
            second,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        found["modality"] = "text"
        return found

    tokenize = preprocess

    def forward(self, input: Mapping[str, Any], **options: Any) -> Features:
        """The features with their logits as scores, [N, K]; differentiable."""
        names = (*self.tokenizer.model_input_names, "inputs_embeds", "position_ids")
        read = {name: value for name, value in input.items() if name in names}
        if not {"input_ids", "inputs_embeds"} & set(read):
            raise InputError(f"forward: no input_ids among the features {sorted(input)}")
        return {**input, "scores": self.model(**read).logits}

    # ---- what it is -------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Scores of a pair."""
        return int(self.model.config.num_labels)

    @property
    def max_length(self) -> int | None:
        """Most tokens of a pair."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        length = self.tokenizer.model_max_length
        return limit if length > NO_LIMIT else min(length, limit or length)

    @max_length.setter
    def max_length(self, value: int) -> None:
        check_count("max_length", value)
        self.tokenizer.model_max_length = value

    max_seq_length = max_length

    @property
    def prompts(self) -> dict[str, str]:
        """The stored prompts by name."""
        return cast(dict[str, str], self.prompt_table.by_name)

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        name = self.default_prompt_name
        self.prompt_table = PromptTable(dict(prompts), name if name in prompts else None)

    @property
    def default_prompt_name(self) -> str | None:
        """The stored prompt that is used by default."""
        return self.prompt_table.default_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        self.prompt_table = PromptTable(self.prompt_table.by_name, name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    @property
    def config(self) -> Any:
        """The configuration of transformers' model."""
        return self.model.config

    @property
    def transformers_model(self) -> Any:
        """transformers' model."""
        return self.model

    @property
    def processor(self) -> Any:
        """The tokenizer."""
        return self.tokenizer

    @property
    def default_activation_function(self) -> Any:
        """The older name of `activation_fn`."""
        warnings.warn(
            "default_activation_function is now activation_fn", DeprecationWarning, stacklevel=2
        )
        return self.activation_fn

    def get_default_activation_fn(self) -> Callable[[Tensor], Tensor]:
        """The function of config.json that is torch's own, else sigmoid for one label."""
        found: Callable[[Tensor], Tensor] = self._default_activation({}, False, Path("config.json"))
        return found

    def set_keep_in_fp32_modules(self, module_names: Sequence[str]) -> None:
        """Takes an empty list. Raises InputError for names: one type is computed in."""
        if not isinstance(module_names, list | tuple) or module_names:
            raise InputError(
                f"keep_in_fp32_modules {module_names!r}: polyvec computes all layers in one type; "
                'load the model with model_kwargs={"dtype": "float32"}'
            )
        self.keep_in_fp32_modules = list(module_names)

    def smart_batching_collate(self, batch: Sequence[Any]) -> tuple[Features, Tensor]:
        """Features of the pairs, and labels, of InputExamples; for the older `fit`."""
        dtype = torch.float if self.num_labels == 1 else torch.long
        labels = torch.tensor([example.label for example in batch], dtype=dtype)
        return self.smart_batching_collate_text_only(batch), labels

    def smart_batching_collate_text_only(self, batch: Sequence[Any]) -> Features:
        """Features of the pairs of InputExamples."""
        return self.preprocess([getattr(example, "texts", example) for example in batch])

    def set_activation_fn(self, activation_fn: Callable[[Tensor], Tensor]) -> None:
        """Use another function of the logits."""
        self.activation_fn = activation_fn

    def _default_activation(self, stored: Mapping[str, Any], trusted: bool, folder: Path) -> Any:
        """The function that the folder names, of torch or trusted; else sigmoid for one label."""
        own = getattr(self.config, "sentence_transformers", None)
        own = own if isinstance(own, dict) else {}
        old = getattr(self.config, "sbert_ce_default_activation_function", None)
        name = stored.get("activation_fn") or own.get("activation_fn") or old
        if name and (trusted or str(name).startswith("torch.")):
            module, _, kind = str(name).rpartition(".")
            try:
                return getattr(importlib.import_module(module), kind)()
            except Exception as error:  # noqa: BLE001 - whatever the name stands for
                raise ModelError(
                    f"{folder / SETTINGS}: activation_fn {str(name)[:60]!r} cannot be made "
                    f"({' '.join(str(error).split())[:100]})"
                ) from None
        return nn.Sigmoid() if self.num_labels == 1 else nn.Identity()

    # ---- saving -----------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path, **options: Any) -> None:
        """Write a folder that this class and sentence-transformers load to the same scores."""
        if options.get("safe_serialization") is False:
            raise InputError("safe_serialization=False: polyvec writes safetensors only")
        kind = type(self.activation_fn)
        settings = {
            "model_type": "CrossEncoder",
            "__version__": {"polyvec": __version__},
            "prompts": dict(self.prompts),
            "default_prompt_name": self.default_prompt_name,
            "activation_fn": f"{kind.__module__}.{kind.__qualname__}",
        }
        with beside(Path(path)) as folder:
            write_classifier(folder, self.model, self.tokenizer, settings)

    save = save_pretrained


def _pair(each: Any, place: int) -> tuple[str, str]:
    """The two texts; InputError, with the place, for anything else."""
    texts = list(each) if isinstance(each, list | tuple | np.ndarray) else []
    texts = [t["text"] if isinstance(t, Mapping) and set(t) == {"text"} else t for t in texts]
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise InputError(f"inputs[{place}] is {str(each)[:60]!r}, expected a pair of texts")
    first, second = (check_text(text, place) for text in texts)
    return first, second


def _listed(inputs: Any) -> Any:
    """The inputs as they are, of an array as a list; InputError for what is none."""
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
    if isinstance(inputs, str) or not isinstance(inputs, Iterable):
        raise InputError(f"inputs is {type(inputs).__name__}, expected pairs of texts")
    return inputs


def _check_function(activation_fn: Any) -> None:
    if activation_fn is not None and not callable(activation_fn):
        raise InputError(f"activation_fn is {activation_fn!r}, expected a function of the logits")
