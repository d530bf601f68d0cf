"""Stage "bottleneck": a small decoder writes a document's query from the document's one vector.

Pre-training by document expansion (Ma et al. 2023, arXiv:2308.08285): a language model has written
the queries, or they are spans of the documents; the encoder also predicts masked tokens.

B rows, E vector size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.transformer import is_masked
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tokens import Tokens
from polyvec.errors import DataError, SettingsError
from polyvec.registry import Fact
from polyvec.train.engine import Rows, Terms
from polyvec.train.language_head import attach_head
from polyvec.train.predicting import limited
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work
from polyvec.train.tasks.encode import JOB, Side, encode, pieces, read_texts
from polyvec.train.tasks.language import MaskedLanguageModel, MaskedNextToken, reduced
from polyvec.train.tasks.multi_task import even_shares, joined
from polyvec.train.tasks.replaced import seed_of
from polyvec.train.tasks.vector_decoders import Layers, Writer

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]


class Bottleneck:
    """Cross-entropy of the query's tokens + weight * that of the document's masked ones, in nats.

    A row's first positive is the document; its query is written by a causal decoder of
    `num_layers` from the document's vector and the tokens so far, and ends with EOS if the
    tokenizer has one. Only the encoder stays. weight: 0 predicts no masked tokens. probability,
    mask, replace: of those, see MaskedTokens; a model that is not a masked one predicts each from
    the state before it.
    """

    needs_head = True

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        num_layers: int = 1,
        num_heads: int = 12,
        dropout: float = 0.1,
        weight: float = 1.0,
        probability: float = 0.15,
        mask: str | None = None,
        replace: Literal["mask", "bert"] = "bert",
    ) -> None:
        where = stage.where
        if not weight >= 0:
            raise SettingsError(f"{where}: weight {weight} is below 0")
        if stage.losses:
            raise SettingsError(f"{where}: no loss compares vectors; losses would do nothing")
        if embedder.routes or embedder.variants is not None:
            raise SettingsError(f"{where}: takes one vector a text, not routes or variants")
        attach_head(embedder)
        self.embedder, self.budget, self.weight = embedder, stage.gradient_cache, weight
        self.seed = stage.seed
        self.side = Side("document", stage.max_length)
        length = stage.query_max_length or stage.max_length
        self.tokenizer = limited(embedder.text_tokenizer, length)
        self.decoder = Writer(
            embedder.backbone,
            embedder.full_dimension,
            Layers(num_layers, num_heads, dropout),
            where=where,
        )
        self.heads: nn.Module = self.decoder
        self.language: MaskedLanguageModel | MaskedNextToken | None = None
        if weight:
            masked = is_masked(embedder.backbone.model.config)
            kind = MaskedLanguageModel if masked else MaskedNextToken
            self.language = kind(embedder, stage, probability, mask, replace)
        others = {} if self.language is None else self.language.jobs
        self.jobs: Mapping[str, Job] = {JOB: encode, **others}
        self._batch_number = 0

    @property
    def batch_number(self) -> int:
        return self._batch_number

    @batch_number.setter
    def batch_number(self, value: int) -> None:
        self._batch_number = value
        if self.language is not None:
            self.language.batch_number = value

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        shares = even_shares(len(rows), len(shares))
        documents = [_document(row) for row in rows]
        works = [self._encoded(rows, documents, shares, mine)]
        if self.language is not None:
            alone = [replace(row, query=text) for row, text in zip(rows, documents, strict=True)]
            works.append(self.language.work(alone, shares, mine))
        return joined(works, tuple(self.query(row) for row in rows))

    def _encoded(
        self,
        rows: Sequence[TrainingRow],
        documents: Sequence[str],
        shares: Sequence[Share],
        mine: int,
    ) -> Work:
        own = rows[shares[mine].start : shares[mine].stop]
        texts = read_texts(
            self.embedder,
            self.side,
            documents[shares[mine].start : shares[mine].stop],
            [row.document_instruction for row in own],
            [row.place for row in own],
        )
        made, order, num_tokens, num_computed = pieces(self.embedder, texts, budget=self.budget)
        return Work(
            tuple(made),
            {JOB: torch.tensor(order)},
            {JOB: tuple(each.stop - each.start for each in shares)},
            None,
            num_tokens,
            num_computed,
            num_texts=len(texts),
            num_cut=sum(text.truncated for text in texts),
        )

    def query(self, row: TrainingRow) -> Tokens:
        """The tokens that are written: those of the bare query, without BOS."""
        (found,) = self.tokenizer.encode([(Span(row.query),)])
        num_before = len(self.tokenizer.contract.prefix)
        kept = slice(num_before, None)
        ids = found.ids[kept]
        eos = self.tokenizer.hf.eos_token_id
        if eos is not None and (not len(ids) or ids[-1] != eos):
            ids = np.append(ids, np.int32(eos))
        if not len(ids):
            raise DataError(f"{row.place or 'row'}: the query is empty for this tokenizer")
        blank = np.zeros(len(ids), bool)
        return Tokens(ids, blank, blank, np.zeros(len(ids), np.int8), len(ids))

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """ "written", and "masked" if weight is above 0."""
        # Each process computes it of the whole batch, so dropout is drawn by the batch's number.
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, self.batch_number))
            terms: Terms = {"written": self.decoder(rows[JOB], facts)}
        if self.language is not None:
            predicted = rows[next(iter(self.language.jobs))]
            terms["masked"] = self.weight * reduced(predicted, "token")
        return terms


def _document(row: TrainingRow) -> str:
    if not row.positives:
        raise DataError(f"{row.place or 'row'}: no positive, which is the document here")
    return row.positives[0]
