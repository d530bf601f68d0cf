"""Embedder: texts in, vectors out. `forward` shows the flow on one screen; read it first.

1. inputs/       text and prompt -> spans -> token batches without padding
2. backbone/     token batch -> hidden states
3. pooling/      hidden states -> one vector per text
4. projection/   vectors -> dense, normalised, truncated, quantised

encode_methods.py has the methods that take texts, encoding.py runs them. B texts, T tokens of the
longest, D state size, E vector size, N and M vectors.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed import describing
from polyvec.embed.assembly import EmbedderParts, check_assigned, check_parts
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.fast import FAST
from polyvec.embed.backbone.states import States
from polyvec.embed.encode_methods import EncodeMethods, Examples
from polyvec.embed.encoding import check_texts
from polyvec.embed.fingerprints import Fingerprints
from polyvec.embed.fitting import FittedModel, fit
from polyvec.embed.formats import direct
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.embed.inputs.prompts import PromptTable, render
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import MEANS, POOLINGS, pool
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.pooling.steps import TokenSteps
from polyvec.embed.projection import quantization
from polyvec.embed.projection.dense import Normalize
from polyvec.embed.projection.quantization import Calibration
from polyvec.embed.projection.similarity import SIMILARITIES, similarity_matrix, similarity_pairs
from polyvec.embed.sample import sample_batch
from polyvec.embed.schemes import loader_of
from polyvec.embed.variants import TextVariants
from polyvec.errors import CalibrationError, InputError, ModelError, PolyvecError, known
from polyvec.interfaces import DenseVectors, MultiVectors, Prompt, SparseVectors
from polyvec.storage.files import as_path


class Embedder(EncodeMethods):
    """Turns texts into vectors; sentence-transformers' method names and defaults.

    Threads may share one, and it can be pickled, copied and sent to worker processes.

    >>> import polyvec
    >>> embedder = polyvec.Embedder.from_pretrained()
    >>> embedder.encode(["a cat", "a kitten"]).shape
    (2, 384)
    """

    def __init__(
        self,
        name_or_path: str | Path = DEFAULT_MODEL,
        *others: object,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_seq_length: int | None = None,
        pooling: str | Sequence[str] | None = None,
        output: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        special_tokens: str | None = None,
        attention: str | None = None,
        layout: str = "auto",
        revision: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        base_model: str | Path | None = None,
        merge_adapters: bool = False,
        backend: str | None = None,
    ) -> None:
        """The embedder of a sentence-transformers or Hugging Face folder, hub id or GGUF file.

        An option left at None is what the folder declares.

        device: "cpu", "cuda", "cuda:1", "mps"; the fastest one available by default.
        dtype: "float32", "bfloat16" or "float16", whatever the weights are stored in; "auto" is
            what they are stored in. By default that of the folder's settings
            (sentence_bert_config.json), else "float32". "fast": on the CPU float32 with products
            of 8-bit integers or bfloat16, whichever is faster and gives near states (BERT's and
            Llama's families; others warn and stay float32), on a GPU bfloat16.
        max_seq_length: most tokens that are read, special tokens included.
        pooling: a name in POOLINGS, several (their vectors are concatenated), or
            "package.module:function".
        output: "dense" or "sparse"; the folder's own by default. "sparse" reads bge-m3's sparse
            head, or a masked language model as SPLADE.
        prompts: replaces the stored prompts, by name.
        default_prompt_name: the stored prompt that `encode` uses.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
        truncate_dim: keep the first dimensions only.
        special_tokens: "text" (the default) or "parse": whether "[SEP]" and the like in a text
            are characters, or special tokens, as in sentence-transformers (SPECTER reads
            title[SEP]abstract).
        attention: "causal", "bidirectional", "last-K", "from-K" or "prefix".
        layout: "packed" (no padding), "padded", or "auto": packed where the model allows it.
        revision: branch, tag or commit on the hub.
        cache_folder: where downloads are stored.
        local_files_only: use downloaded files only.
        token: token for the hub; True uses the stored login.
        trust_remote_code: run code that comes with the model or that the folder names.
        base_model: folder or hub id of an adapter's base, in place of the one it names.
        merge_adapters: add an adapter's weights to its base; otherwise they are kept and saved
            apart.
        backend: "torch" (the default), or "onnx": on the CPU ONNX Runtime computes a text of up to
            64 tokens that is encoded alone, such as a query, in about two thirds of the time
            (BERT, RoBERTa, XLM-R in float32; extra "onnx"). Loads transformers, so it is for
            processes that stay.

        Raises ModelError, naming the file, if the folder is not what it declares, and
        TokenizerError if the tokenizer breaks its contract.
        """
        if others or isinstance(name_or_path, nn.Module):
            kinds = ", ".join(type(each).__name__ for each in (name_or_path, *others))
            raise InputError(
                f"Embedder takes a folder or a hub id, and options by keyword; got {kinds}; "
                "Embedder.from_parts(backbone, text_tokenizer, ...) composes one from parts"
            )
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "max_seq_length": max_seq_length,
            "pooling": pooling,
            "output": output,
            "prompts": prompts,
            "default_prompt_name": default_prompt_name,
            "similarity_fn_name": similarity_fn_name,
            "truncate_dim": truncate_dim,
            "attention": attention,
            "layout": layout,
            "revision": revision,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
            "token": token,
            "trust_remote_code": trust_remote_code,
            "base_model": base_model,
            "merge_adapters": merge_adapters,
        }
        start = direct.cold_start(name_or_path, options)
        if start is not None and start.parts is not None:
            self._assemble(**start.parts.keywords())
        else:
            from polyvec.embed.formats.reading import read_parts

            with direct.first_load(start):
                parts = read_parts(
                    name_or_path, folder=start.folder if start is not None else None, **options
                )
            self._assemble(**parts.keywords())
            self.to(parts.backbone.device, parts.backbone.model.dtype)
            if dtype == FAST:
                self._compute_fast()
            if start is not None and start.comparable:
                direct.compare(start, self, Embedder.from_parts)
        if special_tokens is not None:
            self.special_tokens = special_tokens
        if backend is not None:
            self.backend = backend

    def _compute_fast(self) -> None:
        # Itself and its routes, which may share a backbone.
        owners = {each.backbone: each for each in self.modules() if isinstance(each, Embedder)}
        for backbone, each in owners.items():
            backbone.compute_fast(sample_batch(each.text_tokenizer, backbone))

    # ---- in and out -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = DEFAULT_MODEL, **options: Any) -> Self:
        """`Embedder(name_or_path, **options)`, under the name that transformers uses.

        "openai:NAME", google:, amazon:, alibaba:, voyage:, cohere: and "http://host/v1#NAME" give
        a `services.ServiceEmbedder`: a TextEncoder without weights, with its own options.
        """
        load = loader_of(name_or_path) if cls is Embedder else None
        if load is not None:
            return cast("Self", load(name_or_path, **options))
        return cls(name_or_path, **options)

    @classmethod
    def from_parts(cls, backbone: Backbone, text_tokenizer: TextTokenizer, **parts: Any) -> Self:
        """The embedder composed of these parts; keywords are the fields of EmbedderParts.

        Raises InputError for a part that is not known or of another type, and ModelError for parts
        that do not fit together.
        """
        check_parts({"backbone": backbone, "text_tokenizer": text_tokenizer, **parts})
        embedder = cls.__new__(cls)
        embedder._assemble(backbone, text_tokenizer, **parts)
        return embedder

    def _assemble(
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
        routes: Mapping[str, EmbedderParts] | None = None,
        default_route: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_tokenizer = text_tokenizer
        self.pooling_module = pooling if isinstance(pooling, PoolingModule) else None
        self._pooling = () if isinstance(pooling, PoolingModule) else _pooling_names(pooling)
        self.pool_prompt = pool_prompt
        self.layers = layers
        self.projections = nn.ModuleList(_modules(projections))
        self.prompt_table = prompts or PromptTable()
        self.template, self.variants = template, variants
        try:
            self._similarity_fn_name = _similarity_name(similarity_fn_name)
        except InputError as error:  # in a folder's settings, or a composition
            raise ModelError(str(error)) from None
        self._truncate_dim = truncate_dim  # checked below, with what else has dimensions
        self.calibration = calibration
        self._fingerprints = Fingerprints()
        self._saved_card: Any = None  # formats.cards.Card of the last save
        # Parts that are the same object stay shared.
        made = {
            id(each): Embedder.from_parts(**each.keywords()) for each in (routes or {}).values()
        }
        # No ModuleDict: a task's name may hold a dot.
        self.routes: dict[str, Embedder] = {
            task: made[id(each)] for task, each in (routes or {}).items()
        }
        self._routed = nn.ModuleList(made.values())
        self.default_route = default_route
        self._check_dimensions()
        self._check_parts()
        backbone.prepare(self.needs)
        self.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that this class and sentence-transformers load to the same vectors.

        If the model has something that sentence-transformers does not support (a template,
        attention in the last layers only, a pooling of ours), sentence-transformers refuses
        the folder. Written atomically, with checksums. Of an existing model folder the model is
        replaced, other files stay; the card's metadata and the stored number type are kept (see
        docs/files.md).
        """
        from polyvec.embed.formats.cards import saved_card
        from polyvec.embed.formats.writing import write_parts

        folder = as_path(path, "path")
        card = self._card(folder)
        write_parts(self._parts(), folder, card=card)
        self._saved_card = saved_card(card, folder, [self])

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
            routes=self._route_parts(),
            default_route=self.default_route,
        )

    def _route_parts(self) -> dict[str, EmbedderParts]:
        """The parts of each route; the same object for tasks that share one."""
        found = {id(route): route._parts() for route in self.routes.values()}
        return {task: found[id(route)] for task, route in self.routes.items()}

    def _card(self, folder: Path | None = None) -> str:
        from polyvec.embed.formats.cards import card_of, model_card, weights_stamp

        source = card_of(folder, saved=self._saved_card, loaded=self.backbone.card)
        size = self.get_embedding_dimension()
        return model_card(self.settings(), size, source, weights_stamp([self]))

    # ---- the flow ---------------------------------------------------------------------------

    def forward(self, batch: TokenBatch, *, num_projections: int | None = None) -> Tensor:
        """Vectors of a batch before truncation and quantisation, [B, E]; differentiable.

        `num_projections` applies the first projections only, as fitting needs it.
        """
        return self._vectors(self.backbone(batch, needs=self.needs), num_projections)

    def layer_vectors(self, batch: TokenBatch) -> Tensor:
        """Vectors by the states of every layer, pooled and projected alike, [B, L, E]; the last
        are those of `forward`. Raises ModelError for a pooling that reads several layers itself.
        """
        if "all_layers" in self.needs:
            raise ModelError("vectors of each layer: the pooling reads several layers itself")
        states = self.backbone(batch, needs=self.needs | {"all_layers"})
        layers = states.all_layers[1:-1] if states.all_layers else ()
        each = [dataclasses.replace(states, last_BTD=state_BTD) for state_BTD in layers]
        return torch.stack([self._vectors(layer) for layer in (*each, states)], dim=1)

    def _vectors(self, states: States, num_projections: int | None = None) -> Tensor:
        if self.pooling_module is not None:
            vectors = self.pooling_module(states)
        else:
            tokens = self._pooled_states(states)
            vectors = pool(
                self.pooling,
                tokens,
                states.pooling_mask_BT,
                states.attention_mask_BT,
                zero_if_empty=self.zero_if_empty,
            )
        for step in list(self.projections)[:num_projections]:
            vectors = step(vectors)
        return vectors

    @property
    def computes_side_by_side(self) -> bool:
        """Whether several threads may compute a batch each (fused layers on the CPU)."""
        return self.backbone.computes_side_by_side(self.needs)

    @property
    def needs(self) -> frozenset[str]:
        """Side outputs of the backbone that the pooling reads."""
        if self.pooling_module is not None:
            return self.pooling_module.needs
        return frozenset({"all_layers"} if self.layers is not None else ())

    def rendered_inputs(self, texts: Sequence[str], prompt: Prompt) -> list[list[tuple[Span, ...]]]:
        """What is read of each text: one sequence of spans, or several, averaged later."""
        written = [[]] * len(texts) if self.variants is None else self.variants.of(texts)
        return [
            [spans for each in (text, *more) for spans in self._rendered(each, text, prompt)]
            for text, more in zip(texts, written, strict=True)
        ]

    def _rendered(self, text: str, original: str, prompt: Prompt) -> Sequence[tuple[Span, ...]]:
        """The forms of a text, which may be a variant of the original."""
        if self.template is None:
            return [render(text, prompt, pool_prompt=self.pool_prompt)]
        # A stored prompt is dropped on a side without a slot; one that the call gave is an error.
        passed = prompt.text and (prompt.given or self.takes_instruction(prompt.role))
        chosen: Examples | None = prompt.examples
        return self.template.render(
            text,
            prompt.role,
            instruction=prompt.text if passed else None,
            examples=tuple(chosen(original)) if callable(chosen) else chosen,
            **self.text_tokenizer.special_tokens(),
        )

    def token_states(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """What is pooled: states [B, T, D], and which of them are real, [B, T]."""
        states = self.backbone(batch, needs=self.needs)
        return self._pooled_states(states), states.attention_mask_BT

    def _pooled_states(self, states: States) -> Tensor:
        if isinstance(self.pooling_module, TokenSteps):
            return self.pooling_module.token_states(states).last_BTD
        if self.layers is None or states.all_layers is None:
            return states.last_BTD
        return self.layers(states.all_layers)

    def fit(self, texts: Iterable[str], **prompt: Any) -> "Embedder":
        """Fit the parts that are fitted rather than trained (whitening, PCA, ...), in order.

        Each on the vectors of a sample of texts as they reach it. What was fitted is saved with
        the model, so a vector depends on its text alone. With routes, those of `role`. Raises
        ModelError if there is nothing to fit.
        """
        check_texts(texts)  # a string would be fitted on its characters
        role = prompt.get("role")
        if self.routes and role is None:
            raise InputError(
                "this model's queries and documents take routes of their own: fit each with "
                f"role=.{known('', self.routes)}"
            )
        fit(cast(FittedModel, self.for_role(role)), list(texts), self.prompt_for(**prompt))
        return self

    # ---- what it is -------------------------------------------------------------------------

    def similarity(self, a: Any, b: Any) -> Tensor:
        """Similarity of every vector in `a` to every one in `b`, float32 [N, M].

        Vectors of integer precisions are dequantised. Raises CalibrationError where that is not
        possible, and ShapeError for vectors of different widths.
        """
        return similarity_matrix(self._matrix(a), self._matrix(b), self.similarity_fn_name)

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Similarity of each vector in `a` to the one beside it in `b`, [N]; as `similarity`."""
        return similarity_pairs(self._matrix(a), self._matrix(b), self.similarity_fn_name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Parts are checked when they are assigned; an option that is no attribute is refused."""
        check_assigned(name, value)
        super().__setattr__(name, value)

    @property
    def prompts(self) -> Mapping[str, str]:
        """The stored prompts by name; read-only, assign another table to change them."""
        return MappingProxyType(dict(self.prompt_table.by_name))

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        table = PromptTable(prompts)  # InputError for what is no table
        default = self.prompt_table.default_name
        table = dataclasses.replace(table, default_name=default if default in prompts else None)
        for each in (self, *self.routes.values()):
            each.prompt_table = table

    @property
    def default_prompt_name(self) -> str | None:
        """The name of the stored prompt that plain `encode` uses."""
        return self.prompt_table.default_name

    @default_prompt_name.setter
    def default_prompt_name(self, name: str | None) -> None:
        table = PromptTable(self.prompt_table.by_name, name)  # InputError for an unknown one
        for each in (self, *self.routes.values()):
            each.prompt_table = table

    @property
    def similarity_fn_name(self) -> str:
        """What `similarity` computes; assign another of its names to change it."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: str) -> None:
        self._similarity_fn_name = _similarity_name(name)

    @property
    def backend(self) -> str:
        """What computes a short text that is encoded alone: "torch", or "onnx" (ONNX Runtime).

        Assigning raises SettingsError for another name, ModelError if ONNX Runtime computes no such
        model, and MissingExtraError without it. Vectors differ by rounding alone, so that indexes
        and caches are shared. Not saved.
        """
        return self.backbone.backend

    @backend.setter
    def backend(self, name: str) -> None:
        backbones = [each.backbone for each in (self, *self.routes.values())]
        before = [backbone.backend for backbone in backbones]
        try:
            for backbone in backbones:
                backbone.use_backend(name)
        except PolyvecError:
            for backbone, own in zip(backbones, before, strict=True):
                backbone.use_backend(own)
            raise

    @property
    def pooling(self) -> tuple[str, ...]:
        """The poolings whose vectors are concatenated, by name; () for a pooling module."""
        return self._pooling

    @pooling.setter
    def pooling(self, pooling: str | Sequence[str]) -> None:
        if self.pooling_module is not None:
            kind = type(self.pooling_module).__name__
            raise InputError(
                f"the model pools with {kind}; load it with pooling={pooling!r} to change that"
            )
        names = _pooling_names(pooling)
        if len(names) != len(self._pooling) and len(self.projections) > 0:
            raise InputError(f"pooling {pooling!r} has another dimension than the projections take")
        self._pooling = names

    def takes_instruction(self, role: str | None = None) -> bool:
        """Whether the template has an instruction slot on this side."""
        return self.template is not None and "instruction" in self.template.slots(role)

    def takes_prompt(self, role: str | None = None) -> bool:
        """Whether a prompt changes what is read: always without a template, else with a slot."""
        return self.template is None or self.takes_instruction(role)

    def default_instruction(self, role: str | None = None) -> str:
        """The template's own instruction, which it reads where none is given."""
        return self.template.defaults.get("instruction", "") if self.template else ""

    @property
    def num_parameters(self) -> int:
        """Numbers in its weights."""
        return sum(each.numel() for each in self.parameters())

    def prompt_key(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> tuple[str | None, ...]:
        """The prompt's text and, with a template, the side: equal keys give equal vectors.

        Without a template or routes a role only chooses the prompt.
        """
        found = self.prompt_for(prompt, prompt_name, role)
        return found.text, found.role if self.template is not None or self.routes else None

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.text_tokenizer.hf

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def normalizes(self) -> bool:
        """Whether the model's own last step gives vectors of length 1, on every route."""
        own = len(self.projections) > 0 and isinstance(self.projections[-1], Normalize)
        return own and all(route.normalizes for route in self.routes.values())

    @property
    def output_kind(self) -> Literal["dense", "sparse"]:
        """Whether vectors are dense or mostly zeros, as the pooling or last projection declares."""
        steps = [step for step in self.projections if not isinstance(step, Normalize)]
        last = steps[-1] if steps else self.pooling_module
        return "sparse" if getattr(last, "output_kind", "dense") == "sparse" else "dense"

    @property
    def reads_text_mask(self) -> bool:
        """Whether the pooling reads which tokens belong to the user's text."""
        return bool(getattr(self.pooling_module, "text_only", False))

    @property
    def reads_words(self) -> bool:
        """Whether the pooling reads the ids of the user's content words."""
        return bool(getattr(self.pooling_module, "words", False))

    @property
    def zero_if_empty(self) -> bool:
        """Whether a text without tokens has zeros before the projections; else it is an error."""
        module = self.pooling_module
        zero = MEANS.issuperset(self.pooling) if module is None else module.zero_if_empty
        return zero and self.text_tokenizer.zero_if_empty

    def for_role(self, role: str | None) -> EncodeMethods:
        """The embedder of a role: this one, or the route of queries, documents or another task.

        Raises InputError if there are routes and none is for this role.
        """
        if not self.routes or (role is None and self.default_route is not None):
            return self
        if not isinstance(role, str) or role not in self.routes:
            ways = [f"encode_{name}" for name in ("query", "document") if name in self.routes]
            use = f"use {' or '.join(ways)}, or " if ways else ""
            raise InputError(
                f"role {role!r} has no route in this model; {use}pass role= with one that has."
                f"{known(str(role), self.routes)}"
            )
        return self.routes[role]

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        return self.truncate_dim or self.full_dimension

    # sentence-transformers' older name, still common in code.
    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def token_dimension(self) -> int:
        """Numbers in a token's embedding."""
        steps = self.pooling_module if isinstance(self.pooling_module, TokenSteps) else None
        return (steps.token_size if steps else None) or self.backbone.hidden_size

    @property
    def _pooled_dimension(self) -> int:
        if self.pooling_module is not None:
            return self.pooling_module.out_features
        return self.backbone.hidden_size * len(self.pooling)

    @property
    def full_dimension(self) -> int:
        """Numbers in a vector before truncation."""
        dim = self._pooled_dimension
        for step in self.projections:
            dim = getattr(step, "out_features", dim)
        return dim

    def settings(self) -> dict[str, Any]:
        """Everything beside the weights that decides a vector, as plain values."""
        return describing.settings(self)

    def described(self) -> list[str]:
        """How the model is run and what it sees, a line each, for a person."""
        return describing.lines(self)

    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and settings: equal if and only if vectors are.

        Computed once for each state of the model; repeating it costs a few milliseconds.
        """
        return self._fingerprint()

    def vectors_fingerprint(self) -> str:
        """`fingerprint` without prompts and similarity, for caches that keep prompts apart."""
        return self._fingerprint(without=describing.NOT_OF_VECTORS)

    def _fingerprint(self, without: Collection[str] = ()) -> str:
        settings = self.settings()
        entering = {name: value for name, value in settings.items() if name not in without}
        known = self.backbone.known_fingerprints
        found = known.get(describing.settings_hash(entering)) if known else None
        return found or self._fingerprints.of(
            settings, self.tokenizer.backend_tokenizer, self.state_dict(), without=without
        )

    @property
    def mteb_model_meta(self) -> Any:
        """Raises ModelError: mteb would take the model without a name, and another's scores."""
        raise ModelError("mteb takes MtebEncoder(embedder), from polyvec.evaluate.mteb_bridge")

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.settings().items())

    # ---- checks -----------------------------------------------------------------------------

    def _matrix(self, vectors: Any) -> Tensor:
        """Vectors as floating-point numbers, [N, E]; InputError for what is not vectors."""
        if isinstance(vectors, DenseVectors | SparseVectors | MultiVectors):
            vectors = vectors.to_dense()  # an error for several vectors a text
        if isinstance(vectors, Tensor) and vectors.layout != torch.strided:
            vectors = vectors.to_dense()
        try:
            if isinstance(vectors, list | tuple) and any(isinstance(v, Tensor) for v in vectors):
                vectors = torch.stack([torch.as_tensor(v) for v in vectors])
            if not isinstance(vectors, Tensor):
                # A copy of what torch does not take: vectors[::-1], a read-only memmap.
                vectors = torch.from_numpy(np.require(vectors, requirements=["C", "W"]))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"similarity takes vectors, an array [N, E], got {type(vectors).__name__} "
                f"({' '.join(str(error).split())[:100]})"
            ) from None
        tensor = vectors[None] if vectors.ndim == 1 else vectors
        if tensor.dtype in (torch.int8, torch.uint8):
            dim = self.get_embedding_dimension()
            found = quantization.comparable(tensor.cpu().numpy(), dim, self.calibration)
            return torch.from_numpy(found).to(tensor.device)
        return tensor if tensor.dtype.is_floating_point else tensor.float()

    def _check_parts(self) -> None:
        """Raises ModelError for parts that do not fit together, before a text is read."""
        if self.template is not None and not self.pool_prompt:
            raise ModelError("a template says itself what is pooled; leave out pool_prompt")
        if self.pooling_module is not None and self.layers is not None:
            raise ModelError(
                "weighted layers and a pooling with settings both choose the layer; use one of them"
            )
        num_states = self.backbone.num_layers + 1
        if self.pooling_module is not None:
            self.pooling_module.check_layers(num_states)
        if self.layers is not None and self.layers.num_hidden_layers != num_states - 1:
            raise ModelError(
                f"WeightedLayerPooling is for {self.layers.num_hidden_layers} layers, "
                f"{type(self.backbone.model).__name__} has {num_states - 1}"
            )
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
        for task, route in self.routes.items():
            if route.full_dimension != dim:
                raise ModelError(
                    f"route {task!r} gives {route.full_dimension} dimensions, another one {dim}"
                )
        most = self.truncate_dim
        if most is not None and not (type(most) is int and 1 <= most <= dim):
            raise ModelError(f"truncate_dim {most!r} is not a whole number between 1 and {dim}")
        if self.calibration is not None:
            ranges = self.calibration.ranges_2E.shape[1]
            if ranges > dim:
                raise CalibrationError(
                    f"calibration is for {ranges} dimensions, vectors have {dim}"
                )


def _pooling_names(pooling: str | Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; ModelError for none, or for one that is not known."""
    many = isinstance(pooling, Sequence) and all(isinstance(name, str) for name in pooling)
    if not many:
        raise InputError(f"pooling is {pooling!r}, expected a name or several")
    names = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    if not names:
        raise ModelError(f"no pooling is given. Known: {', '.join(POOLINGS)}.")
    for name in names:
        POOLINGS.find(name)
    return names


def _modules(parts: Iterable[nn.Module]) -> list[nn.Module]:
    """The projections as a list; InputError, with its place, for what is no module."""
    found = list(parts)
    for place, each in enumerate(found):
        if not isinstance(each, nn.Module):
            raise InputError(f"projections[{place}] is {type(each).__name__}, expected a module")
    return found


def _similarity_name(name: Any) -> str:
    """The name itself, or that of sentence-transformers' enum; InputError for an unknown one."""
    found = getattr(name, "value", name)
    if found not in SIMILARITIES:
        raise InputError(f"similarity {found!r} is not known.{known(found, SIMILARITIES)}")
    return str(found)
