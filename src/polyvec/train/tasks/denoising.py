"""Stage "denosent": contrastive, and a decoder that restores a sentence from its vector.

DenoSent (Wang et al. 2024, arXiv:2401.13621). Discrete noise: a sentence's positive is the sentence
written anew (by a language model, or translated there and back). Continuous noise: dropout of
most of the positive's embeddings. The decoder reads those and the sentence's vector, and says
every token of the positive.

B texts, E vector size.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.inputs.tokens import Tokens
from polyvec.embed.part import wide
from polyvec.errors import SettingsError
from polyvec.train.compared import Compared
from polyvec.train.engine import Rows, Terms
from polyvec.train.language_head import attach_head
from polyvec.train.task import Share, Work
from polyvec.train.tasks.contrastive import Contrastive, Model, Stage
from polyvec.train.tasks.encode import JOB
from polyvec.train.tasks.facts import Facts
from polyvec.train.tasks.replaced import seed_of
from polyvec.train.tasks.vector_decoders import STD, Layers, Restorer


@dataclass(frozen=True, slots=True)
class RestoredFacts(Facts):
    """A batch with the tokens that are restored: of each row's first positive."""

    restored: tuple[Tokens, ...] = ()


class DenoSent(Contrastive):
    """The stage's losses + weight * cross-entropy of the restored tokens, in nats.

    Both read the vectors after a linear layer that is dropped after the stage. The losses are by
    default InfoNCE with temperature 0.05; the second term is the mean over all tokens of the first
    positives as the encoder reads them, template included, given the vectors of the queries.

    own_positive: each text is its own positive, under dropout; no discrete noise.
    num_layers, num_heads, dropout: of the decoder. noise: share of the numbers in the embeddings
    that are set to 0.
    """

    needs_head = True

    def __init__(
        self,
        embedder: Model,
        stage: Stage,
        weight: float = 1.0,
        noise: float = 0.825,
        num_layers: int = 16,
        num_heads: int = 1,
        dropout: float = 0.1,
        own_positive: bool = False,
    ) -> None:
        super().__init__(embedder, stage, own_positive=own_positive)
        where = stage.where
        if not weight > 0:
            raise SettingsError(f"{where}: weight is {weight}, expected more than 0; or kind 'scl'")
        if not 0 <= noise <= 1:
            raise SettingsError(f"{where}: noise {noise} is not between 0 and 1")
        if self.layers or embedder.routes or embedder.variants is not None:
            raise SettingsError(
                f"{where}: takes one vector a text, not matryoshka layers, routes or variants"
            )
        attach_head(embedder)
        self.weight, self.seed = weight, stage.seed
        self.half = torch.bfloat16 if stage.bf16 else torch.float16 if stage.fp16 else None
        size = embedder.full_dimension
        self.projector = nn.Linear(size, size)
        nn.init.normal_(self.projector.weight, std=STD)
        nn.init.zeros_(self.projector.bias)
        self.decoder = Restorer(
            embedder.backbone,
            size,
            Layers(num_layers, num_heads, dropout),
            noise=noise,
            where=where,
        )
        self.heads = nn.ModuleDict(
            {"objective": self.objective, "projector": self.projector, "decoder": self.decoder}
        )

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        found = super().work(rows, shares, mine)
        firsts = [(self._documents(row)[0],) for row in rows]
        restored = tuple(read.inputs[0] for read in self._read(rows, firsts)[len(rows) :])
        facts = {each.name: getattr(found.facts, each.name) for each in fields(Facts)}
        return replace(found, facts=RestoredFacts(**facts, restored=restored))

    def compared(self, rows: Rows, facts: Facts) -> Compared:
        """What the losses see: vectors after the projector."""
        return super().compared({**rows, JOB: self.projector(wide(rows[JOB]))}, facts)

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """The terms of the losses, and "restored"."""
        batch = self.compared(rows, facts)
        terms: Terms = self.objective(batch)
        return {**terms, "restored": self.weight * self.restored(batch.query_BE, facts.restored)}

    def restored(self, vectors_BE: Tensor, texts: Sequence[Tokens]) -> Tensor:
        """Mean over all tokens of their cross-entropy, in nats.

        Each process computes it of the whole batch, so noise is drawn by the batch's number.
        """
        context: Any = contextlib.nullcontext()
        if self.half is not None:
            context = torch.autocast(vectors_BE.device.type, self.half)
        with torch.random.fork_rng(), context:
            torch.manual_seed(seed_of(self.seed, self.batch_number))
            found: Tensor = self.decoder(vectors_BE, texts)
        return found
