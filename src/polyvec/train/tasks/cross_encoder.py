"""Stage "cross_encoder": a sequence classifier learns to score query and document together.

BERT's form of reranking (Nogueira and Cho 2019, arXiv:1901.04085), and its distillation by
margins (Hofstaetter et al. 2020, arXiv:2010.02666). The embedder stays as it is: what is trained
is a reranker.

B pairs of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import BATCH_TOKENS
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import DataError
from polyvec.registry import Fact
from polyvec.rerank.cross_encoder import CrossEncoder, PairTokens
from polyvec.train.adapters import Trained
from polyvec.train.engine import Rows, Terms
from polyvec.train.meter import Cost
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work
from polyvec.train.tasks.reranking import FOLDER, check_reranker_stage, pairs_of, work_of_pairs

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]
JOB = "logits"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a piece."""

    batch: TokenBatch
    texts: tuple[PairTokens, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the batch's pairs should score: whether each matches, the row of each, and the
    teacher's scores, all [B]."""

    relevant_B: Tensor
    rows_B: Tensor
    teacher_B: Tensor | None


class CrossEncoderStage:
    """Trains all weights of `model`, a folder or hub id, and saves it as RUN/reranker, or under
    `folder` there; a model without a head gets one that starts at random.

    A row gives a pair for each positive and each negative. loss: "bce" is the mean over pairs of
    the binary cross-entropy of the logit, in nats, where a positive weighs as much as
    `positive_weight` negatives; "margin_mse" the mean over positives and negatives of a row of
    the squared difference between the margin of the logits and that of the teacher's scores.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        model: str,
        loss: Literal["bce", "margin_mse"] = "bce",
        positive_weight: float = 1.0,
        folder: str = FOLDER,
    ) -> None:
        check_reranker_stage(stage, folder, instead="")
        self.where, self.kind, self.folder = stage.where, loss, folder
        self.positive_weight = positive_weight
        self.embedder, self.budget = embedder, stage.gradient_cache
        self.reranker = CrossEncoder.load(
            model,
            max_length=stage.max_length,
            device=str(embedder.device),
            untrained=True,
            weights=embedder.backbone.measured,  # a dry run's model has no weights
        )
        if stage.gradient_checkpointing:
            self.reranker.model.gradient_checkpointing_enable()
        self.jobs: Mapping[str, Job] = {JOB: self._logits}
        self.heads: nn.Module = self.reranker
        self.own_tokenizer = self.reranker.tokenizer  # of what a preview shows

    def trained(self) -> Trained:
        """What is trained: the reranker, nothing of the embedder."""
        self.embedder.requires_grad_(False)
        model = self.reranker.model.requires_grad_(True)
        sizes = {name: each.numel() for name, each in model.named_parameters()}
        return Trained("full", tuple(sizes), sum(sizes.values()), model.num_parameters())

    @property
    def cost(self) -> Cost:
        """Floating-point operations a token, by the number of weights."""
        count = 2.0 * self.reranker.model.num_parameters(exclude_embeddings=True)
        return Cost(count * 3, 0.0, count)

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        pairs = [pairs_of(row) for row in rows]
        own = slice(shares[mine].start, shares[mine].stop)
        asked = [
            (row.query, text)
            for row, each in zip(rows[own], pairs[own], strict=True)
            for text, _ in each
        ]
        given = [
            row.instruction for row, each in zip(rows[own], pairs[own], strict=True) for _ in each
        ]
        relevant = [is_positive for each in pairs for _, is_positive in each]
        places = [place for place, each in enumerate(pairs) for _ in each]
        facts = Wanted(torch.tensor(relevant), torch.tensor(places), self._teacher(rows, pairs))
        return work_of_pairs(
            JOB,
            self.reranker.tokens(asked, given),
            [sum(len(each) for each in pairs[s.start : s.stop]) for s in shares],
            facts,
            self.budget or BATCH_TOKENS.get(self.reranker.device.type, 8192),
            lambda group: Pairs(TokenBatch.of_ids([each.ids for each in group]), tuple(group)),
        )

    def _teacher(
        self, rows: Sequence[TrainingRow], pairs: Sequence[Sequence[tuple[str, bool]]]
    ) -> Tensor | None:
        """The teacher's scores, [B], if the loss reads them; DataError for a row without."""
        if self.kind != "margin_mse":
            return None
        for row, each in zip(rows, pairs, strict=True):
            if len(row.teacher_scores) != len(each) or not (row.positives and row.negatives):
                raise DataError(
                    f"{row.place or 'row'}: margin_mse needs a positive, a negative, and a "
                    f"teacher's score for each of the {len(each)} documents; got "
                    f"{len(row.teacher_scores)} scores"
                )
        return torch.tensor([score for row in rows for score in row.teacher_scores])

    def _logits(self, embedder: Embedder, payload: Pairs) -> Tensor:
        found: Tensor = self.reranker(payload.texts)
        return found

    def loss(self, rows: Rows, facts: Wanted) -> Terms:
        """The one term, over all pairs of the batch."""
        logits_B = rows[JOB].float()
        relevant_B = facts.relevant_B.to(logits_B.device)
        if facts.teacher_B is None:
            weight_B = torch.where(relevant_B, self.positive_weight, 1.0)
            return {
                "bce": F.binary_cross_entropy_with_logits(
                    logits_B, relevant_B.to(logits_B.dtype), weight=weight_B
                )
            }
        teacher_B, rows_B = facts.teacher_B.to(logits_B), facts.rows_B.to(logits_B.device)
        same_BB = rows_B[:, None] == rows_B[None]
        chosen_BB = same_BB & relevant_B[:, None] & ~relevant_B[None]
        margins_BB = logits_B[:, None] - logits_B[None]
        wanted_BB = teacher_B[:, None] - teacher_B[None]
        return {"margin_mse": (margins_BB - wanted_BB)[chosen_BB].square().mean()}

    def save(self, output: Path) -> None:
        """The reranker in the run's folder."""
        self.reranker.save_pretrained(output / self.folder)
