"""MultiVectorEmbedder: a vector for each token of a text, compared by late interaction.

ColBERT (Khattab and Zaharia 2020, arXiv:2004.12832) and its successors. A side ("query",
"document", or neither) has its own length; queries may be filled up with mask tokens, whose
states are vectors too; some tokens of documents (punctuation) give no vector.

B texts, T tokens of the longest, D state size, E vector size, N and M texts.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed import describing
from polyvec.embed.backbone import runners
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.fast import FAST
from polyvec.embed.encoding import EncodeRun
from polyvec.embed.fingerprints import Fingerprints
from polyvec.embed.inputs.contract import TokenizerContract
from polyvec.embed.inputs.prompts import PromptTable, render
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch, Tokens
from polyvec.embed.multi_parts import Expansion, LateSettings, MultiParts
from polyvec.embed.projection.late_interaction import (
    check_similarity,
    max_similarities,
    max_similarity_pairs,
)
from polyvec.embed.sample import sample_batch
from polyvec.errors import InputError, ModelError, ShapeError
from polyvec.interfaces import (
    CHUNK_SIZE,
    EncodeReport,
    MultiVectors,
    Prompt,
    PromptChoice,
    RunOptions,
    TextEncoder,
)
from polyvec.storage.files import as_path

# Between real tokens (segment 0) and expansion (1): nobody sees the expansion, itself included.
UNSEEN = ((0, 1), (1, 1))


class MultiVectorEmbedder(nn.Module, TextEncoder):
    """Turns a text into a vector for each token; `similarity` is late interaction (MaxSim).

    Loads the folders of ColBERT, PyLate and sentence-transformers' MultiVectorEncoder, and
    bge-m3's ColBERT head. Queries and documents are read differently: use `encode_query` and
    `encode_document`.

    >>> embedder = MultiVectorEmbedder.from_pretrained("my-colbert")    # doctest: +SKIP
    >>> queries = embedder.encode_query(["a question"])                 # doctest: +SKIP
    >>> embedder.similarity(queries, embedder.encode_document(texts))   # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: Backbone,
        text_tokenizer: TextTokenizer,
        *,
        projections: Iterable[nn.Module] = (),
        settings: LateSettings | None = None,
        prompts: PromptTable | None = None,
        similarity_fn_name: str = "maxsim",
    ) -> None:
        super().__init__()
        check_similarity(similarity_fn_name)
        self.backbone, self.text_tokenizer = backbone, text_tokenizer
        self.projections = nn.ModuleList(projections)
        self.late = settings or LateSettings()
        self.prompt_table = prompts or PromptTable()
        self.similarity_fn_name = similarity_fn_name
        self._fingerprints = Fingerprints()
        self._saved_card: Any = None  # formats.cards.Card of the last save
        self._check_dimensions()
        self._sides = {role: self._side(role) for role in (None, "query", "document")}
        self.eval()

    # ---- in and out -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
        similarity_fn_name: str | None = None,
        layout: str = "auto",
        revision: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
    ) -> "MultiVectorEmbedder":
        """The embedder of a late-interaction folder or hub id; other folders are an error.

        An option left at None is what the folder declares; `similarity_fn_name` is "maxsim" or
        "meanmaxsim"; the rest is as in Embedder.from_pretrained.
        """
        from polyvec.embed.formats.multi import read_multi

        parts = read_multi(
            name_or_path,
            device=device,
            dtype=dtype,
            query_length=query_length,
            document_length=document_length,
            prompts=prompts,
            similarity_fn_name=similarity_fn_name,
            layout=layout,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=token,
            trust_remote_code=trust_remote_code,
        )
        embedder = cls(**parts.keywords())
        embedder.to(parts.backbone.device, parts.backbone.model.dtype)
        if dtype == FAST:
            backbone = embedder.backbone
            backbone.compute_fast(sample_batch(embedder.text_tokenizer, backbone))
        return embedder

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that this class and sentence-transformers' MultiVectorEncoder load."""
        from polyvec.embed.formats.cards import card_of, model_card, saved_card, weights_stamp
        from polyvec.embed.formats.multi import write_multi

        folder = as_path(path, "path")
        parts = MultiParts(
            backbone=self.backbone,
            text_tokenizer=self.text_tokenizer,
            projections=tuple(self.projections),
            settings=self.late,
            prompts=self.prompt_table,
            similarity_fn_name=self.similarity_fn_name,
        )
        size, stamp = self.get_embedding_dimension(), weights_stamp([self])
        source = card_of(folder, saved=self._saved_card, loaded=self.backbone.card)
        card = model_card(self.settings(), size, source, stamp)
        write_multi(parts, folder, card=card)
        self._saved_card = saved_card(card, folder, [self])

    # ---- the flow ---------------------------------------------------------------------------

    def forward(self, batch: TokenBatch, role: str | None = None) -> tuple[Tensor, Tensor]:
        """Vectors of a batch, [B, T, E], and which of them count, [B, T]; differentiable.

        In segment 1 of the batch are the tokens of the expansion, as `tokenize` makes them.
        """
        vectors_BTE, mask_BT = self._states(batch)
        for step in self.projections:
            vectors_BTE = step(vectors_BTE)
        if self.late.skipped_ids and (role or "document") in self.late.skipped_on:
            ids_BT = runners.flags(batch.ids_T.astype(np.int64), mask_BT)
            skipped = torch.tensor(self.late.skipped_ids, device=ids_BT.device)
            mask_BT = mask_BT & ~torch.isin(ids_BT, skipped)
        return vectors_BTE, mask_BT

    def _states(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Hidden states, [B, T, D], and which are real; none sees an unattended expansion."""
        mask_BT = runners.attention_mask(batch, self.backbone.device)
        expansion = self.late.expansion
        hidden = expansion is not None and not expansion.attend and bool(batch.segments_T.any())
        if not hidden:
            return self.backbone(batch).last_BTD, mask_BT
        if self.backbone.mechanism != "native":
            spec = dataclasses.replace(self.backbone.spec, blocked=UNSEEN)
            return self.backbone(batch, attention=spec).last_BTD, mask_BT
        # The model's own attention takes a mask of keys, which says just that.
        seen_BT = mask_BT & ~runners.flags(batch.segments_T, mask_BT).bool()
        ids_BT = torch.full(mask_BT.shape, self.backbone.pad_id, device=mask_BT.device)
        ids_BT[mask_BT] = torch.from_numpy(batch.ids_T).to(ids_BT)
        model = self.backbone.model
        out = runners.call(model, frozenset(), input_ids=ids_BT, attention_mask=seen_BT.long())
        return out.last_hidden_state, mask_BT

    # ---- texts to vectors -------------------------------------------------------------------

    def encode(  # type: ignore[override]  # several arrays, not one
        self,
        inputs: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        truncate: Any = "warn",
        role: str | None = None,
    ) -> Any:
        """A float32 array [tokens, E] for each text, in order; for a single string one array.

        Tensors with `convert_to_tensor` or without `convert_to_numpy`; lengths differ, so nothing
        is stacked.
        `role` is "query" or "document"; without, no length and no expansion of a side applies.
        """
        single = isinstance(inputs, str)
        options = RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate=truncate)
        texts: Sequence[str] = [inputs] if isinstance(inputs, str) else inputs
        vectors, _ = self.encode_vectors(
            texts, options=options, prompt=prompt, prompt_name=prompt_name, role=role
        )
        found: list[Any] = [vectors[row] for row in range(len(vectors))]
        if convert_to_tensor or not convert_to_numpy:
            found = [torch.from_numpy(each) for each in found]
        return found[0] if single else found

    def encode_vectors(
        self,
        inputs: Sequence[str],
        *,
        options: RunOptions | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> tuple[MultiVectors, EncodeReport]:
        """The vectors of all tokens of the texts, in order, and a report."""
        found, report = self.prompt_table.resolve(**prompt), EncodeReport()
        run = EncodeRun(
            self._sides[found.role], found, options or RunOptions(), report, output="token states"
        )
        texts = [states.numpy() for window in run.windows(inputs) for states in window]
        return MultiVectors.of(texts, self.get_embedding_dimension()), report

    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> Iterator[np.ndarray]:
        """Raises ShapeError: a text has several vectors, which `encode_vectors` gives."""
        raise ShapeError(
            f"{type(self).__name__} gives several vectors a text, not one; use encode_vectors"
        )

    def tokenize(self, inputs: Sequence[str], **prompt: Unpack[PromptChoice]) -> list[Tokens]:
        """What the model reads of each text; TokenBatch.of makes a batch of them."""
        found = self.prompt_table.resolve(**prompt)
        side = self._sides[found.role]
        return side.text_tokenizer.encode([render(text, found) for text in inputs])

    def similarity(self, a: Any, b: Any) -> Tensor:
        """MaxSim of every text in `a` (queries) with every one in `b` (documents), [N, M]."""
        return max_similarities(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """MaxSim of each text in `a` with the one beside it in `b`, [N]."""
        return max_similarity_pairs(a, b, self.similarity_fn_name)

    # ---- what it is -------------------------------------------------------------------------

    def get_embedding_dimension(self) -> int:
        """Numbers in the vector of a token."""
        sizes = [getattr(step, "out_features", None) for step in self.projections]
        return next((size for size in reversed(sizes) if size), self.backbone.hidden_size)

    @property
    def prompts(self) -> dict[str, str]:
        """The stored prompts by name."""
        return dict(self.prompt_table.by_name)

    @property
    def max_seq_length(self) -> int | None:
        """Most tokens that are read of a text that is neither query nor document."""
        return self.text_tokenizer.max_length

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.text_tokenizer.hf

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def num_parameters(self) -> int:
        """Numbers in its weights."""
        return sum(each.numel() for each in self.parameters())

    def settings(self) -> dict[str, Any]:
        """Everything beside the weights that decides a vector, as plain values."""
        return {
            "backbone": type(self.backbone.model).__name__,
            "attention": str(self.backbone.spec),
            "late_interaction": dataclasses.asdict(self.late),
            "projections": [describing.part(step) for step in self.projections],
            "prompts": self.prompts,
            "default_prompt_name": self.prompt_table.default_name,
            "similarity_fn_name": self.similarity_fn_name,
            "lower_case": self.text_tokenizer.lower_case,
            "tokenizer_contract": self.text_tokenizer.contract.as_dict(),
        }

    def described(self) -> list[str]:
        """How the model is run, a line each, for a person."""
        backbone = self.backbone
        return [
            f"{type(backbone.model).__name__}: {backbone.num_layers} layers, a vector of "
            f"{self.get_embedding_dimension()} dimensions for each token",
            f"attention {backbone.spec}; leak probe: {backbone.verdict or 'not run'}",
            f"batches {backbone.layout} ({backbone.mechanism}: {backbone.layout_reason})",
            f"query and document: {self.late}",
        ]

    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and settings: equal if and only if vectors are."""
        tokenizer = self.tokenizer.backend_tokenizer
        return self._fingerprints.of(self.settings(), tokenizer, self.state_dict())

    def _side(self, role: str | None) -> "_Side":
        expansion = self.late.expansion if role == "query" else None
        length, own = self.late.length(role), self.text_tokenizer
        tokenizer = TextTokenizer(
            own.hf, max_length=length or own.max_length, lower_case=own.lower_case
        )
        return _Side(self, role, _Expanding(tokenizer, expansion))

    def _check_dimensions(self) -> None:
        size = self.backbone.hidden_size
        for step in self.projections:
            takes = getattr(step, "in_features", getattr(step, "dimension", size))
            if takes != size:
                raise ModelError(f"{type(step).__name__} takes {takes} dimensions, but gets {size}")
            size = getattr(step, "out_features", size)
        limit = self.backbone.max_positions
        for role in ("query", "document"):
            length = self.late.length(role)
            if length is not None and limit is not None and length > limit:
                raise InputError(f"{role}_length {length} exceeds the model's {limit} positions")


@dataclass(frozen=True, slots=True)
class _Expanding:
    """A tokenizer that fills each text up with expansion tokens."""

    base: TextTokenizer
    expansion: Expansion | None

    def word_ids(self, text: str) -> np.ndarray:
        return self.base.word_ids(text)

    def encode(self, batch: Sequence[tuple[Span, ...]], *, text_mask: bool = False) -> list[Tokens]:
        """Tokens of each text, in order; those of the expansion are in segment 1."""
        return [self._expanded(each) for each in self.base.encode(batch, text_mask=text_mask)]

    @property
    def hf(self) -> Any:
        return self.base.hf

    @property
    def contract(self) -> TokenizerContract:
        return self.base.contract

    def check_rows(self, rows: int | None) -> None:
        self.base.check_rows(rows)

    def _expanded(self, tokens: Tokens) -> Tokens:
        if self.expansion is None or len(tokens) >= self.expansion.length:
            return tokens
        count = self.expansion.length - len(tokens)

        def filled(values: np.ndarray, value: int) -> np.ndarray:
            return np.concatenate([values, np.full(count, value)]).astype(values.dtype)

        return Tokens(
            filled(tokens.ids, self.expansion.token_id),
            filled(tokens.pooled, 1),
            filled(tokens.text, 0),
            filled(tokens.segments, 1),
            tokens.full_length,
        )


class _Side:
    """One side of the embedder, as an encode run asks for it."""

    template: Template | None = None
    reads_text_mask = False
    reads_words = False
    zero_if_empty = False
    computes_side_by_side = False

    def __init__(
        self, embedder: MultiVectorEmbedder, role: str | None, text_tokenizer: _Expanding
    ) -> None:
        self.embedder, self.role, self.text_tokenizer = embedder, role, text_tokenizer

    @property
    def backbone(self) -> Backbone:
        return self.embedder.backbone

    @property
    def device(self) -> torch.device:
        return self.embedder.device

    @property
    def max_seq_length(self) -> int | None:
        return self.text_tokenizer.base.max_length

    def __call__(self, batch: TokenBatch, *, num_projections: int | None = None) -> Tensor:
        raise ShapeError("a text has several vectors here")  # the run asks for token states

    def modules(self) -> Iterator[nn.Module]:
        return self.embedder.modules()

    def eval(self) -> object:
        return self.embedder.eval()

    def rendered_inputs(self, texts: Sequence[str], prompt: Prompt) -> list[list[tuple[Span, ...]]]:
        return [[render(text, prompt)] for text in texts]

    def token_states(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self.embedder(batch, self.role)
