"""Embedder: texts in, vectors out. The whole flow is `forward` and `encode`; read it first.

1. prompts.py     text and prompt -> spans
2. tokens.py      spans -> token batches without padding
3. backbone.py    token batch -> hidden states
4. pooling.py     hidden states -> one vector a text
5. projection.py  vectors -> dense, normalised, truncated, quantised

B texts, T tokens of the longest, D state size, E vector size.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed import describing, encoding
from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.states import States
from polyvec.embed.encoding import EncodeReport, RunOptions
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.inputs.prompts import Prompt, PromptTable, Span, render
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS, pool
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.projection import quantization
from polyvec.embed.projection.dense import Normalize
from polyvec.embed.projection.quantization import Calibration, Precision
from polyvec.embed.projection.similarity import SIMILARITIES, similarity_matrix, similarity_pairs
from polyvec.embed.variants import TextVariants
from polyvec.errors import CalibrationError, InputError, ModelError, known

Examples = Sequence[Example] | Callable[[str], Sequence[Example]]


class Embedder(nn.Module):
    """Turns texts into vectors; sentence-transformers' method names and defaults.

    >>> import polyvec
    >>> embedder = polyvec.Embedder.from_pretrained()
    >>> embedder.encode(["a cat", "a kitten"]).shape
    (2, 384)
    """

    def __init__(
        self,
        backbone: Backbone,
        text_tokenizer: TextTokenizer,
        *,
        pooling: str | Sequence[str] | PoolingModule = "mean",
        pool_prompt: bool = True,
        layers: WeightedLayers | None = None,
        projections: Iterable[nn.Module] = (),
        prompts: PromptTable | None = None,
        template: Template | None = None,
        variants: TextVariants | None = None,
        similarity_fn_name: str = "cosine",
        truncate_dim: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_tokenizer = text_tokenizer
        self.pooling_module = pooling if isinstance(pooling, PoolingModule) else None
        if isinstance(pooling, PoolingModule):
            self.pooling: tuple[str, ...] = ()
        else:
            self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if not self.pooling and self.pooling_module is None:
            raise ModelError(f"no pooling is given. Known: {', '.join(POOLINGS)}.")
        for name in self.pooling:
            POOLINGS.find(name)
        if similarity_fn_name not in SIMILARITIES:
            raise ModelError(
                f"similarity {similarity_fn_name!r} is not known."
                + known(similarity_fn_name, SIMILARITIES)
            )
        self.pool_prompt = pool_prompt
        self.layers = layers
        self.projections = nn.ModuleList(projections)
        self.prompt_table = prompts or PromptTable()
        self.template, self.variants = template, variants
        text_tokenizer.wants_text = getattr(pooling, "text_only", False)
        self.similarity_fn_name = similarity_fn_name
        self.truncate_dim = truncate_dim
        self.calibration = calibration
        self.num_steps: int | None = None  # of the projections; fewer while they are fitted
        self._check_dimensions()
        self._check_parts()
        self.eval()

    # ---- in and out -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str = "float32",
        max_seq_length: int | None = None,
        pooling: str | Sequence[str] | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        attention: str | None = None,
        layout: str = "auto",
        revision: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
    ) -> "Embedder":
        """The embedder of a sentence-transformers or Hugging Face folder or hub id.

        An option left at None is what the folder declares.

        device: "cpu", "cuda", "cuda:1", "mps"; the fastest one available by default.
        dtype: "float32", "bfloat16" or "float16", whatever the weights are stored in.
        max_seq_length: most tokens that are read, special tokens included.
        pooling: a name in POOLINGS, several (their vectors are concatenated), or
            "package.module:function".
        prompts: replaces the stored prompts, by name.
        default_prompt_name: the stored prompt that `encode` uses.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
        truncate_dim: keep the first dimensions only.
        attention: "causal", "bidirectional", "last-K", "from-K" or "prefix".
        layout: "packed" (no padding), "padded", or "auto": packed where the model allows it.
        revision: branch, tag or commit on the hub.
        cache_folder: where downloads are stored.
        local_files_only: use downloaded files only.
        token: token for the hub; True uses the stored login.
        trust_remote_code: run code that comes with the model or that the folder names.

        Raises ModelError, naming the file, if the folder is not what it declares, and
        TokenizerError if the tokenizer breaks its contract.
        """
        from polyvec.embed.formats.reading import read_parts

        parts = read_parts(
            name_or_path,
            device=device,
            dtype=dtype,
            max_seq_length=max_seq_length,
            pooling=pooling,
            prompts=prompts,
            default_prompt_name=default_prompt_name,
            similarity_fn_name=similarity_fn_name,
            truncate_dim=truncate_dim,
            attention=attention,
            layout=layout,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=token,
            trust_remote_code=trust_remote_code,
        )
        embedder = cls(**parts.keywords())
        return embedder.to(parts.backbone.device, parts.backbone.model.dtype)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that this class and sentence-transformers load to the same vectors.

        If the model has something that sentence-transformers does not support (a template,
        attention in the last layers only, a pooling of ours), sentence-transformers refuses
        the folder. Written atomically; an existing model folder is replaced.
        """
        from polyvec.embed.formats.writing import write_parts

        write_parts(self._parts(), Path(path), card=self._card())

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save the model and upload it to the hub; returns the commit's address.

        Options are those of huggingface_hub.HfApi.upload_folder, `private` and `token`.
        """
        from polyvec.embed.formats.writing import upload_parts

        return upload_parts(self._parts(), repo_id, card=self._card(), **options)

    def _parts(self) -> EmbedderParts:
        return EmbedderParts(
            backbone=self.backbone,
            text_tokenizer=self.text_tokenizer,
            pooling=self.pooling_module or self.pooling,
            pool_prompt=self.pool_prompt,
            layers=self.layers,
            projections=tuple(self.projections),
            prompts=self.prompt_table,
            template=self.template,
            variants=self.variants,
            similarity_fn_name=self.similarity_fn_name,
            truncate_dim=self.truncate_dim,
            calibration=self.calibration,
        )

    def _card(self) -> str:
        from polyvec.embed.formats.writing import model_card

        return model_card(self.settings(), self.get_embedding_dimension())

    # ---- the flow ---------------------------------------------------------------------------

    def forward(self, batch: TokenBatch) -> Tensor:
        """Vectors of a batch before truncation and quantisation, [B, E]; differentiable."""
        states = self.backbone(batch, needs=self.needs)
        if self.pooling_module is not None:
            vectors = self.pooling_module(states)
        else:
            tokens = self._token_states(states)
            vectors = pool(self.pooling, tokens, states.pooling_mask_BT, states.attention_mask_BT)
        for step in list(self.projections)[: self.num_steps]:
            vectors = step(vectors)
        return vectors

    @property
    def needs(self) -> frozenset[str]:
        """Side outputs of the backbone that the pooling reads."""
        if self.pooling_module is not None:
            return self.pooling_module.needs
        return frozenset({"all_layers"} if self.layers is not None else ())

    def rendered_inputs(self, text: str, prompt: Prompt) -> list[tuple[Span, ...]]:
        """What is read of a text: one sequence of spans, or several whose vectors are averaged."""
        texts = [text] if self.variants is None else [text, *self.variants.of(text)]
        if self.template is None:
            return [render(each, prompt, pool_prompt=self.pool_prompt) for each in texts]
        takes = "instruction" in self.template.slots(prompt.role)
        told = prompt.text if prompt.text and (takes or prompt.given) else None
        marks = self.text_tokenizer.special_tokens()
        chosen = prompt.examples
        shown = tuple(chosen(text)) if callable(chosen) else chosen
        return [
            spans
            for each in texts
            for spans in self.template.render(
                each, prompt.role, instruction=told, examples=shown, **marks
            )
        ]

    def token_states(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """What is pooled: states [B, T, D] and which of them are real, [B, T]."""
        states = self.backbone(batch, needs=self.needs)
        return self._token_states(states), states.attention_mask_BT

    def _token_states(self, states: States) -> Tensor:
        if self.layers is None or states.all_layers is None:
            return states.last_BTD
        return self.layers(states.all_layers)

    def encode(
        self,
        texts: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        truncate: encoding.Truncate = "warn",
        calibration: Calibration | None = None,
        role: str | None = None,
        examples: Examples | None = None,
    ) -> Any:
        """Vectors in the order of the texts: float32 [N, E], or [E] for a single string.

        Batches are made by token count; `batch_size` caps the number of texts in one, for
        memory, and changes no vector. With `output_value="token_embeddings"` a list of
        [tokens, D]. Integer precisions need `calibrate` once. `truncate` says what happens
        to texts longer than the model reads: "warn" (counted), "error", or "silent".
        With a template the prompt is its instruction, `role` ("query", "document") the side
        that is read, and `examples` the demonstrations shown: the same for all texts, or a
        function from a text to its own (`demonstrations.nearest_examples`).
        Raises InputError, naming the index, for what is not a text.
        """
        single = isinstance(texts, str)
        vectors, _ = self.encode_with_report(
            [texts] if single else texts,  # type: ignore[list-item]
            prompt_name=prompt_name,
            prompt=prompt,
            role=role,
            examples=examples,
            options=RunOptions(
                batch_size,
                show_progress_bar=show_progress_bar,
                truncate=truncate,
                token_states=_wants_tokens(output_value, precision),
            ),
            precision=precision,
            device=device,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            calibration=calibration,
        )
        out = vectors if not single else vectors[0]
        if convert_to_tensor:
            return (
                [torch.as_tensor(v) for v in out] if isinstance(out, list) else torch.as_tensor(out)
            )
        if convert_to_numpy:
            return out
        return torch.as_tensor(out) if single else [torch.as_tensor(v) for v in out]

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> Any:
        """`encode` with the model's "query" prompt or its template's query side, if it has one."""
        return self.encode(texts, role="query", **options)

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> Any:
        """`encode` with the template's document side, or the first set of the prompts "document",
        "passage" and "corpus"."""
        return self.encode(texts, role="document", **options)

    def encode_with_report(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        role: str | None = None,
        examples: Examples | None = None,
        options: RunOptions | None = None,
        **finish: Any,
    ) -> tuple[Any, EncodeReport]:
        """The vectors of `encode`, and a report: the prompt used, tokens, truncations, seconds."""
        report = EncodeReport()
        options = options or RunOptions()
        resolved = self.prompt_for(prompt, prompt_name, role, examples)
        windows = self._windows(texts, resolved, options, report, encoding.WINDOW, finish)
        if options.token_states:
            return [states for part in windows for states in part], report
        total = len(texts) if isinstance(texts, Sequence) else None
        return _gather(windows, total, self._finish([], **_no_device(finish))), report

    def encode_iter(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        role: str | None = None,
        chunk_size: int = encoding.WINDOW,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **finish: Any,
    ) -> Iterator[np.ndarray]:
        """Arrays [at most `chunk_size`, E], in order, for texts of any number in bounded memory."""
        encoding.check_texts(texts)
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        resolved = self.prompt_for(prompt, prompt_name, role)
        return self._windows(
            texts, resolved, options or RunOptions(), report or EncodeReport(), chunk_size, finish
        )

    def prompt_for(
        self,
        prompt: str | None = None,
        prompt_name: str | None = None,
        role: str | None = None,
        examples: Examples | None = None,
    ) -> Prompt:
        """The prompt of a call; InputError for examples that the model has no place for."""
        found = self.prompt_table.resolve(prompt, prompt_name, role)
        if examples is None:
            return found
        if self.template is None:
            raise InputError("examples are given, but the model has no template to show them in")
        chosen = examples if callable(examples) else tuple(examples)
        return dataclasses.replace(found, examples=chosen)

    def _windows(self, texts, resolved, options, report, window, finish) -> Iterator[Any]:
        if finish.get("device") is not None:
            self.to(finish["device"])
        finish = _no_device(finish)
        self._check_finish(**finish)
        was_training = self.training
        self.eval()
        try:
            for part in encoding.run(self, texts, resolved, options, report, window):
                yield (
                    [v.numpy() for v in part]
                    if options.token_states
                    else self._finish(part, **finish)
                )
        finally:
            self.train(was_training)

    def _finish(
        self,
        vectors: Sequence[Tensor],
        *,
        precision: Precision = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        calibration: Calibration | None = None,
    ) -> np.ndarray:
        """Step 5 for a window: truncate, normalise and quantise."""
        dim = truncate_dim or self.truncate_dim
        unit = normalize_embeddings or self.normalizes
        stack = torch.stack(list(vectors)) if len(vectors) else torch.zeros(0, self._full_dimension)
        stack = quantization.truncate(stack, dim, renormalize=unit)
        if normalize_embeddings:
            stack = nn.functional.normalize(stack, dim=-1)
        return quantization.quantize(stack.numpy(), precision, calibration or self.calibration)

    def _check_finish(self, **finish: Any) -> None:
        """Refuse a wrong precision, dimension or calibration before anything is computed."""
        self._finish([], **finish)

    # ---- what it is -------------------------------------------------------------------------

    def calibrate(self, texts: Iterable[str], **encode_options: Any) -> Calibration:
        """Measure and keep the ranges that int8 and uint8 need, from a sample of texts.

        Give the same normalize_embeddings and truncate_dim as later calls; a few thousand
        texts of the kind to be embedded are enough. Saved with the model.
        """
        self.calibration = Calibration.of(self.encode(texts, **encode_options))
        return self.calibration

    def fit(self, texts: Iterable[str], **prompt: Any) -> "Embedder":
        """Fit what is fitted rather than trained (whitening, removal of components, ...), in order.

        On the vectors of a sample of texts as they come to each part; saved with the model, so
        that a vector depends on its text alone. Raises ModelError if there is nothing to fit.
        """
        from polyvec.embed.fitting import fit

        fit(self, list(texts), prompt)
        return self

    def similarity(self, a: Any, b: Any) -> Tensor:
        """Similarity of every vector in `a` to every one in `b`, [N, M]."""
        return similarity_matrix(_matrix(a), _matrix(b), self.similarity_fn_name)

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Similarity of each vector in `a` to the one beside it in `b`, [N]."""
        return similarity_pairs(_matrix(a), _matrix(b), self.similarity_fn_name)

    @property
    def prompts(self) -> dict[str, str]:
        """The stored prompts by name."""
        return dict(self.prompt_table.by_name)

    @property
    def max_seq_length(self) -> int | None:
        """Most tokens that are read, special tokens included; longer texts are cut."""
        return self.text_tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        limit = self.backbone.max_positions
        if value is not None and limit is not None and value > limit:
            raise InputError(f"max_seq_length {value} is beyond the model's {limit} positions")
        self.text_tokenizer.max_length = value

    @property
    def tokenizer(self):
        """The Hugging Face tokenizer."""
        return self.text_tokenizer.hf

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def normalizes(self) -> bool:
        """Whether the model's own last step makes vectors of length 1."""
        return len(self.projections) > 0 and isinstance(self.projections[-1], Normalize)

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        return self.truncate_dim or self._full_dimension

    # sentence-transformers' older name, in most code that users bring along.
    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def _pooled_dimension(self) -> int:
        if self.pooling_module is not None:
            return self.pooling_module.out_features
        return self.backbone.hidden_size * len(self.pooling)

    @property
    def _full_dimension(self) -> int:
        dim = self._pooled_dimension
        for step in self.projections:
            dim = getattr(step, "out_features", dim)
        return dim

    def _check_parts(self) -> None:
        """Refuses parts that cannot go together, before a text is read."""
        if self.template is not None and not self.pool_prompt:
            raise ModelError("a template says itself what is pooled; leave pool_prompt out")
        if self.pooling_module is not None and self.layers is not None:
            raise ModelError("weighted layers and a pooling with settings both choose the states")
        if "lm_head" in self.needs and self.backbone.lm_head is None:
            raise ModelError(
                f"{type(self.backbone.model).__name__} was loaded without its LM head, which "
                f"{type(self.pooling_module).__name__} needs"
            )
        if self.template is not None:
            self.text_tokenizer.check_ends(self.template)

    def _check_dimensions(self) -> None:
        dim = self._pooled_dimension
        for step in self.projections:
            takes = getattr(step, "in_features", getattr(step, "dimension", dim))
            if takes != dim:
                raise ModelError(f"{type(step).__name__} takes {takes} dimensions, but gets {dim}")
            dim = getattr(step, "out_features", dim)
        if self.truncate_dim is not None and not 1 <= self.truncate_dim <= dim:
            raise ModelError(f"truncate_dim {self.truncate_dim} is not between 1 and {dim}")
        if self.calibration is not None:
            ranges = self.calibration.ranges_2E.shape[1]
            if ranges > dim:
                raise CalibrationError(f"ranges are for {ranges} dimensions, vectors have {dim}")

    def settings(self) -> dict[str, Any]:
        """Everything beside the weights that decides a vector, as plain values."""
        return describing.settings(self)

    def described(self) -> list[str]:
        """How the model is run and what it sees, a line each, for a person."""
        return describing.lines(self)

    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and settings: equal if and only if vectors are."""
        return describing.fingerprint(self)

    @property
    def mteb_model_meta(self) -> Any:
        """Raises ModelError: mteb would take the model without a name, and another's scores."""
        raise ModelError("mteb takes MtebEncoder(embedder), from polyvec.evaluate.mteb_bridge")

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.settings().items())


def _wants_tokens(output_value: str, precision: str) -> bool:
    if output_value not in ("sentence_embedding", "token_embeddings"):
        raise InputError(
            f"output_value {output_value!r} is not known. "
            "Known: sentence_embedding, token_embeddings."
        )
    if output_value == "token_embeddings" and precision != "float32":
        raise InputError("token_embeddings come in float32 only")
    return output_value == "token_embeddings"


def _gather(parts: Iterator[np.ndarray], total: int | None, empty: np.ndarray) -> np.ndarray:
    """Parts one below another; written in place where their number is known beforehand."""
    if total is None:
        return np.concatenate([empty, *parts])
    out, filled = np.empty((total, *empty.shape[1:]), empty.dtype), 0
    for part in parts:
        out[filled : filled + len(part)] = part
        filled += len(part)
    return out


def _no_device(finish: dict) -> dict:
    return {key: value for key, value in finish.items() if key != "device"}


def _matrix(vectors: Any) -> Tensor:
    if isinstance(vectors, list):
        vectors = np.stack([np.asarray(v) for v in vectors])
    tensor = torch.as_tensor(vectors)
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    return tensor if tensor.dtype.is_floating_point else tensor.float()
