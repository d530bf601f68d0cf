"""Stage "deliberation": DEBATER's chain of special tokens (Ji et al. 2025, arXiv:2502.12974).

A document ends in m tokens, each a view of it. A query is compared with the best view of each
document, and the last view, the only one at test time, learns the scores of the best.
B queries, N documents, m views, E vector size.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.errors import ModelError, SettingsError
from polyvec.registry import Fact
from polyvec.train.engine import Rows, Terms
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work
from polyvec.train.tasks.contrastive import Contrastive
from polyvec.train.tasks.encode import JOB, Texts
from polyvec.train.tasks.facts import Facts


class Deliberation:
    """Documents of `views` vectors, by the slots that the embedder's template pools.

    scale: of cosines, 1 / temperature.
    """

    def __init__(
        self,
        embedder: Annotated[Embedder, Fact("embedder")],
        stage: Annotated[StageSettings, Fact("stage")],
        views: int = 8,
        scale: float = 30.0,
    ) -> None:
        if embedder.pooling != ("last",) or embedder.routes:
            raise ModelError(
                "stage 'deliberation' needs [embedder] pooling = 'last': the last token of the "
                "chain is the vector"
            )
        if views < 1 or scale <= 0:
            raise SettingsError(f"views {views} and scale {scale} must be more than 0")
        if stage.losses or stage.matryoshka:
            raise SettingsError("stage 'deliberation' has a loss of its own; leave out losses")
        self.contrastive = Contrastive(embedder, stage)
        self.views, self.scale = views, scale
        self.jobs: Mapping[str, Job] = {JOB: self.encode}
        self.heads: nn.Module = nn.Module()

    @property
    def batch_number(self) -> int:
        return self.contrastive.batch_number

    @batch_number.setter
    def batch_number(self, value: int) -> None:
        self.contrastive.batch_number = value

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        return self.contrastive.work(rows, shares, mine)

    def encode(self, embedder: Embedder, texts: Texts) -> Tensor:
        """The vectors of each text's pooled tokens, [texts, m, E]; of a query the same m times."""
        states = embedder.backbone(texts.batch)
        counts = states.pooling_mask_BT.sum(dim=1)
        wrong = [int(n) for n in counts if n not in (1, self.views)]
        if wrong:
            raise ModelError(
                f"stage 'deliberation': a text has {wrong[0]} pooled tokens, expected 1 of a query "
                f"and {self.views} of a document; use a template such as 'debater'"
            )
        rows = [
            state_TD[mask_T].expand(self.views, -1)
            for state_TD, mask_T in zip(states.last_BTD, states.pooling_mask_BT, strict=True)
        ]
        vectors = torch.cat(rows)
        for step in embedder.projections:
            vectors = step(vectors)
        return vectors.unflatten(0, (len(rows), self.views))

    def loss(self, rows: Rows, facts: Facts) -> Terms:
        """Half the best view's cross-entropy, and half the last view's from its scores."""
        vectors = nn.functional.normalize(rows[JOB].float(), dim=-1)
        queries_BE = vectors[facts.queries.to(vectors.device), -1]
        documents_NmE = vectors[facts.documents.to(vectors.device)]
        scores_BNm = self.scale * torch.einsum("be,nme->bnm", queries_BE, documents_NmE)
        first_B = _first_positives(facts).to(vectors.device)
        hidden_BN = facts.known_BN.to(vectors.device).clone()
        hidden_BN[torch.arange(len(first_B)), first_B] = False
        best_BN, last_BN = (
            scores.masked_fill(hidden_BN, torch.finfo(scores.dtype).min)
            for scores in (scores_BNm.max(dim=2).values, scores_BNm[:, :, -1])
        )
        teacher_BN = best_BN.detach().softmax(dim=1)
        distilled = -(teacher_BN * last_BN.log_softmax(dim=1)).sum(dim=1).mean()
        return {
            "best_view": nn.functional.cross_entropy(best_BN, first_B) / 2,
            "last_view": distilled / 2,
        }


def _first_positives(facts: Facts) -> Tensor:
    """Place of each query's first positive among the documents, [B]."""
    rows_B1 = torch.arange(len(facts.queries))[:, None]
    return ((facts.owner_N[None] == rows_B1) & facts.positive_N[None]).int().argmax(dim=1)
