"""Stage "true_false": a language model learns to say whether a document answers a query.

monoT5 (Nogueira et al. 2020, arXiv:2003.06713), as InPars trains it, and FollowIR's judge (Weller
et al. 2024, arXiv:2403.15246). The embedder stays as it is: what is trained is a reranker.

B pairs of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import BATCH_TOKENS
from polyvec.embed.formats.adapters import is_adapted, merge_adapter
from polyvec.embed.inputs.tokens import TokenBatch, Tokens
from polyvec.registry import Fact
from polyvec.rerank.true_false import TrueFalse
from polyvec.train.adapter_kinds import ADAPTERS
from polyvec.train.adapters import Trained
from polyvec.train.engine import Rows, Terms
from polyvec.train.meter import Cost
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work
from polyvec.train.tasks.reranking import (
    FOLDER,
    check_reranker_stage,
    pairs_of,
    work_of_pairs,
)

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]
JOB = "answers"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a piece."""

    batch: TokenBatch
    texts: tuple[Tokens, ...]


class TrueFalseStage:
    """Mean over pairs of -log p(the right answer), in nats: "true" of positives.

    A row gives a pair for each positive and each negative. over: "vocabulary" takes the
    probability among all tokens, as monoT5's training does; "answers" among the two, as scores
    are made. model: a folder or hub id, an encoder-decoder or a decoder. prompt, answers: see
    TrueFalse; by default those of the model's reranker.json, else monoT5's. lora: settings of
    the adapter "lora", which is merged at the end; None trains all weights. The reranker is saved
    as RUN/reranker, or under `name` there.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        model: str,
        prompt: str | None = None,
        answers: Sequence[str] | None = None,
        over: Literal["vocabulary", "answers"] = "vocabulary",
        lora: Mapping[str, Any] | None = None,
        folder: str = FOLDER,
    ) -> None:
        where = stage.where
        check_reranker_stage(stage, folder)
        self.where, self.over, self.lora, self.folder = where, over, lora, folder
        self.embedder, self.budget = embedder, stage.gradient_cache
        self.reranker = TrueFalse.load(
            model,
            prompt=prompt,
            answers=answers,
            max_length=stage.max_length,
            device=str(embedder.device),
            weights=embedder.backbone.measured,  # a dry run's model has no weights
        )
        if stage.gradient_checkpointing:
            self.reranker.lm.gradient_checkpointing_enable()
        self.jobs: Mapping[str, Job] = {JOB: self._answers}
        self.heads: nn.Module = self.reranker
        self.own_tokenizer = self.reranker.words.hf  # of what a preview shows

    def trained(self) -> Trained:
        """What is trained: the reranker, nothing of the embedder."""
        self.embedder.requires_grad_(False)
        lm: Any = self.reranker.lm
        kind = "full" if self.lora is None else "lora"
        if self.lora is not None:
            lm.requires_grad_(False)
        facts = {"model": lm, "rows": [], "fresh": True}
        ADAPTERS.build(kind, self.lora or {}, facts, where=f"{self.where} lora")
        sizes = {n: each.numel() for n, each in lm.named_parameters() if each.requires_grad}
        return Trained(kind, tuple(sizes), sum(sizes.values()), lm.num_parameters())

    @property
    def cost(self) -> Cost:
        """Floating-point operations a token, by the number of weights."""
        count = 2.0 * self.reranker.lm.num_parameters(exclude_embeddings=True)
        return Cost(count * (3 if self.lora is None else 2), 0.0, count)

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        pairs = [pairs_of(row) for row in rows]
        own = rows[shares[mine].start : shares[mine].stop]
        chosen = pairs[shares[mine].start : shares[mine].stop]
        asked = [
            (row.query, text) for row, each in zip(own, chosen, strict=True) for text, _ in each
        ]
        given = [row.instruction for row, each in zip(own, chosen, strict=True) for _ in each]
        texts = self.reranker.tokens(asked, given)
        relevant = [is_positive for each in pairs for _, is_positive in each]
        return work_of_pairs(
            JOB,
            texts,
            [sum(len(each) for each in pairs[s.start : s.stop]) for s in shares],
            torch.tensor(relevant),
            self.budget or BATCH_TOKENS.get(self.reranker.device.type, 8192),
            lambda group: Pairs(TokenBatch.of(range(len(group)), group), tuple(group)),
        )

    def _answers(self, embedder: Embedder, payload: Pairs) -> Tensor:
        found: Tensor = self.reranker([text.ids for text in payload.texts])
        return found

    def loss(self, rows: Rows, facts: Tensor) -> Terms:
        """The one term, over all pairs of the batch."""
        logs_B2 = rows[JOB] if self.over == "vocabulary" else rows[JOB].log_softmax(1)
        wrong_B = (~facts).long().to(logs_B2.device)
        return {"true_false": -logs_B2.gather(1, wrong_B[:, None]).mean()}

    def save(self, output: Path) -> None:
        """The reranker, with its adapter merged, in the run's folder."""
        lm: Any = self.reranker.lm
        if is_adapted(lm):
            merge_adapter(lm)
        self.reranker.save_pretrained(output / self.folder)
