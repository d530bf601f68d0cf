"""A sequence classifier that reads query and document together and gives one score.

B pairs of a batch, P pairs, T tokens of the longest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec import __version__
from polyvec.embed.formats.devices import best_device, check_device
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.inputs.contract import NO_LIMIT, bare, check_count
from polyvec.errors import ModelError
from polyvec.rerank.batches import batched_scores
from polyvec.rerank.classifier import (
    SETTINGS,
    load_classifier,
    outline_classifier,
    write_classifier,
)
from polyvec.rerank.reranker import Reranker, instructed
from polyvec.storage.files import atomic_folder

__all__ = ["CrossEncoder", "PairTokens"]


@dataclass(frozen=True, slots=True)
class PairTokens:
    """What the model reads of a pair: ids, the number of the text each is of, and whether more
    was cut."""

    ids: np.ndarray
    types: np.ndarray
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


class CrossEncoder(nn.Module, Reranker):
    """The logit of a pair by BERT's form of reranking (Nogueira and Cho 2019, arXiv:1901.04085).

    Reads the folders of sentence-transformers' CrossEncoder with one label; a sigmoid of the logit
    is its score there. Of a pair that is too long the end of the longer text is cut.

    >>> reranker = CrossEncoder.load("cross-encoder/ms-marco-MiniLM-L6-v2")    # doctest: +SKIP
    >>> reranker.rank("a question", documents)                                 # doctest: +SKIP
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int | None = None) -> None:
        super().__init__()
        if model.config.num_labels != 1:
            raise ModelError(
                f"cross-encoder: a classifier of {model.config.num_labels} labels has no order of "
                "documents; expected one label"
            )
        self.model, self.tokenizer = model, tokenizer
        if max_length is not None:
            check_count("max_length", max_length)
        limit = getattr(model.config, "max_position_embeddings", None)
        own = tokenizer.model_max_length
        lengths = [each for each in (max_length, limit, own) if each and each < NO_LIMIT]
        self.max_length = min(lengths, default=512)
        self._encoder = bare(tokenizer)
        self._encoder.enable_truncation(self.max_length, strategy="longest_first")

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        device: str | None = None,
        untrained: bool = False,
        weights: bool = True,
        trust_remote_code: bool = False,
        **hub: Any,
    ) -> "CrossEncoder":
        """The classifier of a folder or hub id, in float32.

        untrained: whether a checkpoint without a head may be one, whose scores are random until
        it is trained. weights: False makes an outline without them, for a dry run. Raises
        ModelError for another kind of model, or one of several labels.
        """
        folder = model_folder(
            name, namespace="cross-encoder", trust_remote_code=trust_remote_code, **hub
        )
        settings = {"num_labels": 1} if untrained else {}
        if not weights:
            return cls(*outline_classifier(folder, settings), max_length=max_length)
        model, tokenizer = load_classifier(
            folder, settings, torch.float32, trust_remote_code, untrained=untrained
        )
        model = model.to(check_device(device or best_device()))
        return cls(model.eval(), tokenizer, max_length=max_length)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that this class and sentence-transformers' CrossEncoder read."""
        settings = {
            "model_type": "CrossEncoder",
            "__version__": {"polyvec": __version__},
            "prompts": {},
            "default_prompt_name": None,
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
        }
        length = self.tokenizer.model_max_length
        with atomic_folder(Path(folder), replaceable=SETTINGS) as path:
            self.tokenizer.model_max_length = self.max_length
            try:
                write_classifier(path, self.model, self.tokenizer, settings)
            finally:
                self.tokenizer.model_max_length = length

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """The logit of each pair, float32 [P]; an instruction stands behind the query."""
        texts = self.tokens(pairs, instructions)
        return batched_scores(self, texts, self, device=self.device, max_length=self.max_length)

    def tokens(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> list[PairTokens]:
        """What the model reads of each pair. Raises InputError, naming it, for what is no text."""
        read = self._encoder.encode_batch(instructed(pairs, instructions))
        return [
            PairTokens(
                np.asarray(each.ids, np.int64),
                np.asarray(each.type_ids, np.int64),
                bool(each.overflowing),
            )
            for each in read
        ]

    def forward(self, texts: Sequence[PairTokens]) -> Tensor:
        """Logits, float32 [B]; differentiable."""
        lengths = [len(text) for text in texts]
        shape = (len(texts), max(lengths))
        ids_BT = torch.full(shape, self.tokenizer.pad_token_id or 0, dtype=torch.long)
        types_BT, mask_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
        for row, text in enumerate(texts):
            ids_BT[row, : len(text)] = torch.from_numpy(text.ids)
            types_BT[row, : len(text)] = torch.from_numpy(text.types)
            mask_BT[row, : len(text)] = 1
        inputs: Mapping[str, Tensor] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs = {**inputs, "token_type_ids": types_BT}
        inputs = {name: each.to(self.device) for name, each in inputs.items()}
        logits_B: Tensor = self.model(**inputs).logits.float().squeeze(-1)
        return logits_B
