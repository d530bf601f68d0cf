"""Stages that compare vectors and predict tokens with the same weights.

"multi_task": GritLM (Muennighoff et al. 2024, arXiv:2402.09906). "grl": ULLME (Man et al. 2024,
arXiv:2408.03402). "csit": ChatRetriever (Mao et al. 2024, arXiv:2404.13556). Vectors are made
under the embedder's own attention, tokens are predicted under a causal one. "scl_mlm", CLEAR and
DeCLUTR, predicts masked tokens under the embedder's own.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.transformer import is_masked
from polyvec.embed.inputs.tokens import Tokens
from polyvec.errors import DataError, ModelError, SettingsError
from polyvec.registry import Fact
from polyvec.train.engine import Rows, Terms
from polyvec.train.predicting import JOB, Predicted
from polyvec.train.preferences import PREFERENCES, alignment
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work
from polyvec.train.tasks import encode
from polyvec.train.tasks.contrastive import Contrastive
from polyvec.train.tasks.language import (
    MaskedLanguageModel,
    MaskedNextToken,
    NextToken,
    PredictTokens,
    reduced,
)

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]
TemplateName = str | Mapping[str, Any] | None
ROLES = ("query", "document")
SESSION, VECTOR, RESPONSE = 0, 1, 2  # segments of ChatRetriever's input


class MultiTask:
    """Vectors compared by the stage's losses, and tokens predicted: both of one batch.

    generation: names of the data sets whose rows are prompts (query) and answers (first positive)
    to be predicted; rows of the others are compared. Without names every row is both. weight: of
    the loss of the predicted tokens. template, answer, end, reduction, group: see NextToken.
    """

    needs_head = True
    term = "generation"
    generation: frozenset[str] = frozenset()

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        generation: Sequence[str] = (),
        weight: float = 1.0,
        template: TemplateName = None,
        answer: str = "",
        end: bool = True,
        reduction: Literal["token", "sample", "mixed", "sum"] = "token",
        group: int = 1,
    ) -> None:
        self.contrastive = Contrastive(embedder, stage)
        self.language: PredictTokens = NextToken(
            embedder, stage, template, answer, end, reduction, group
        )
        self.generation, self.weight = frozenset(generation), weight
        self.reduction, self.group = reduction, group
        self.jobs: Mapping[str, Job] = {**self.contrastive.jobs, **self.language.jobs}
        self.heads: nn.Module = self.contrastive.heads

    @property
    def batch_number(self) -> int:
        return self.language.batch_number

    @batch_number.setter
    def batch_number(self, value: int) -> None:
        self.language.batch_number = self.contrastive.batch_number = value

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Called with all rows of the stage, before the first batch."""
        self.contrastive.prepare(rows, without=self.generation)

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        compared, predicted = self.divided(rows)
        works = []
        for task, chosen in ((self.contrastive, compared), (self.language, predicted)):
            if chosen:
                works.append(task.work(chosen, even_shares(len(chosen), len(shares)), mine))
        facts = works[0].facts if compared else None
        return joined(works, facts)

    def divided(self, rows: Sequence[TrainingRow]) -> tuple[list[TrainingRow], list[TrainingRow]]:
        """The rows that are compared, and those with an answer that is predicted."""
        if not self.generation:
            return list(rows), [first_positive(row) for row in rows]
        chosen = [row for row in rows if row.dataset in self.generation]
        return [row for row in rows if row.dataset not in self.generation], [
            first_positive(row) for row in chosen
        ]

    def loss(self, rows: Rows, facts: Any) -> Terms:
        terms: Terms = {}
        if facts is not None:
            terms |= self.contrastive.loss(rows, facts)
        if JOB in rows:
            terms[self.term] = self.weight * reduced(rows[JOB], self.reduction, self.group)
        return terms


class ContrastiveMasked(MultiTask):
    """The stage's losses + weight * cross-entropy of masked tokens of the same queries, in nats.

    CLEAR (Wu et al. 2020, arXiv:2012.15466) and DeCLUTR (Giorgi et al. 2021, arXiv:2006.03659):
    the rows are two views of a text. Queries are read once more, masked; the second term is the
    mean over all masked tokens, each predicted from its own state by a masked language model, from
    the one before by others. probability, mask, replace: see MaskedTokens.
    """

    term = "masked"

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        weight: float = 1.0,
        probability: float = 0.15,
        mask: str | None = None,
        replace: Literal["mask", "bert"] = "bert",
    ) -> None:
        if not weight > 0:
            raise SettingsError(f"{stage.where}: weight is {weight}, expected more than 0")
        masked = is_masked(embedder.backbone.model.config)
        kind = MaskedLanguageModel if masked else MaskedNextToken
        self.contrastive = Contrastive(embedder, stage)
        self.language = kind(embedder, stage, probability, mask, replace)
        self.weight, self.reduction, self.group = weight, "token", 1
        self.jobs = {**self.contrastive.jobs, **self.language.jobs}
        self.heads = self.contrastive.heads

    def divided(self, rows: Sequence[TrainingRow]) -> tuple[list[TrainingRow], list[TrainingRow]]:
        """All rows, for both."""
        return list(rows), list(rows)


class GenerationAligned(MultiTask):
    """ULLME's GRL: a query's passages are compared, written after it, and both brought to agree.

    preference: None predicts the first positive (SFT); a name in PREFERENCES ("dpo", "hinge",
    "ipo", "kto") prefers it to the first negative, without a reference model. alignment: weight
    of the KL divergence of the passages' softmax of cosines (by `temperature`) from that of their
    mean log-probability a token. Both are learnt from rows that have negatives.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        preference: str | None = "dpo",
        beta: float = 0.1,
        weight: float = 1.0,
        alignment: float = 1.0,
        temperature: float = 0.05,
        template: TemplateName = None,
        answer: str = "\n",
        end: bool = True,
    ) -> None:
        super().__init__(embedder, stage, (), weight, template, answer, end)
        if preference is not None:
            PREFERENCES.find(preference, where="[[stage]] 'grl'")
        if beta <= 0 or temperature <= 0:
            raise SettingsError(f"beta {beta} and temperature {temperature} must be more than 0")
        self.preference, self.beta = preference, beta
        self.alignment, self.temperature = alignment, temperature

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        compared = self.contrastive.work(rows, shares, mine)
        candidates = [self.candidates(row) for row in rows]
        ends = [0, *itertools.accumulate(map(len, candidates))]
        flat = [each for group in candidates for each in group]
        cut = [Share(ends[share.start], ends[share.stop]) for share in shares]
        counts = torch.tensor(list(map(len, candidates)))
        predicted = self.language.work(flat, cut, mine)
        return joined([compared, predicted], (compared.facts, counts))

    def candidates(self, row: TrainingRow) -> list[TrainingRow]:
        """The query with each text that is written after it: positives, then negatives."""
        if self.preference is None and not self.alignment:
            return [first_positive(row)]
        if not row.negatives:
            raise DataError(f"{row.place or 'row'}: no negative, which this stage needs")
        return [_answer(row, text) for text in (*row.positives, *row.negatives)]

    def loss(self, rows: Rows, facts: Any) -> Terms:
        compared, counts_B = facts
        terms = self.contrastive.loss(rows, compared)
        found_N2 = rows[JOB]
        firsts_B = (counts_B.cumsum(0) - counts_B).to(found_N2.device)
        if self.preference is None:
            generation = reduced(found_N2[firsts_B], "token")
        else:
            generation = self.preferred(found_N2, firsts_B, compared).mean()
        terms["generation"] = self.weight * generation
        if self.alignment:
            terms["alignment"] = self.alignment * self.aligned(rows, compared)
        return terms

    def preferred(self, found_N2: Tensor, firsts_B: Tensor, compared: Any) -> Tensor:
        """The loss of each query's first positive and first negative, [B]."""
        positive_N = compared.positive_N.to(found_N2.device)
        owner_N = compared.owner_N.to(found_N2.device)
        sums_N, counts_N = found_N2.unbind(1)
        values_N = sums_N / counts_N.clamp(min=1) if self.preference == "ipo" else sums_N
        positives_B = torch.zeros_like(firsts_B).index_add(0, owner_N, positive_N.long())
        loss = PREFERENCES[str(self.preference)]
        return loss(values_N[firsts_B], values_N[firsts_B + positives_B], self.beta)

    def aligned(self, rows: Rows, facts: Any) -> Tensor:
        compared = self.contrastive.compared(rows, facts)
        queries_NE = compared.query_BE[compared.owner_N]
        scores_N = F.cosine_similarity(queries_NE, compared.document_NE) / self.temperature
        sums_N, counts_N = rows[JOB].unbind(1)
        means_N = sums_N / counts_N.clamp(min=1)
        return alignment(scores_N, means_N, compared.owner_N, len(compared.query_BE))


class SessionMasked(PredictTokens):
    """ChatRetriever's answers: predicted from the session's special tokens alone.

    The session is read as a query of the embedder, whose last `num_tokens` tokens are the special
    ones; the answer as a document. It sees these and itself, not the session.
    """

    def __init__(self, embedder: Embedder, stage: StageSettings, num_tokens: int) -> None:
        super().__init__(embedder, stage)
        if embedder.backbone.measured and embedder.backbone.mechanism != "plan":
            raise ModelError(
                f"stage 'csit': {type(embedder.backbone.model).__name__} takes no masks between "
                f"segments ({embedder.backbone.layout_reason})"
            )
        self.attention = AttentionSpec("causal", blocked=((RESPONSE, SESSION),))
        self.embedder, self.num_tokens = embedder, num_tokens
        lengths = stage.query_max_length or stage.max_length, stage.max_length
        self.sides = [encode.Side(role, n) for role, n in zip(ROLES, lengths, strict=True)]

    def example(self, row: TrainingRow, draw: np.random.Generator) -> Predicted:
        session, answer = (
            encode.read_texts(self.embedder, side, [text], [instruction], [row.place])[0].inputs[0]
            for side, text, instruction in zip(
                self.sides,
                (row.query, row.positives[0]),
                (row.instruction, row.document_instruction),
                strict=True,
            )
        )
        if len(session) <= self.num_tokens:
            raise SettingsError(
                f"{row.place}: the session has {len(session)} tokens, num_tokens is "
                f"{self.num_tokens}: the embedder's template must end in special tokens"
            )
        begins = len(self.tokenizer.contract.prefix)  # the answer is no text of its own
        most = self.tokenizer.max_length or len(session) + len(answer)
        ids = answer.ids[begins:][: max(0, most - len(session))]
        segments = np.full(len(session) + len(ids), RESPONSE, np.int8)
        segments[: len(session)] = SESSION
        segments[len(session) - self.num_tokens : len(session)] = VECTOR
        places = np.arange(len(session), len(segments))
        if not len(places):
            raise DataError(f"{row.place or 'row'}: the session leaves no room for its answer")
        whole = np.concatenate([session.ids, ids])
        yes = np.ones(len(whole), bool)
        full = session.full_length + max(0, answer.full_length - begins)
        return Predicted(Tokens(whole, yes, yes, segments, full), places - 1, ids)


class SessionTuned(MultiTask):
    """ChatRetriever's contrastive session-masked instruction tuning.

    num_tokens: special tokens at the end of the embedder's query template. weight: of the
    answers' loss. smoothing: of its labels (0.1 in the released code). generation: as in
    MultiTask. The released code lets the answer's first token see the session; here, as in the
    paper, none does.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        generation: Sequence[str] = (),
        num_tokens: int = 3,
        weight: float = 1.0,
        smoothing: float = 0.1,
    ) -> None:
        if num_tokens < 1 or not 0 <= smoothing < 1:
            raise SettingsError(f"num_tokens {num_tokens} and smoothing {smoothing} do not fit")
        super().__init__(embedder, stage, generation, weight)
        self.language = SessionMasked(embedder, stage, num_tokens)
        self.language.smoothing = smoothing


def first_positive(row: TrainingRow) -> TrainingRow:
    """The row as a prompt and one answer."""
    if not row.positives:
        raise DataError(f"{row.place or 'row'}: no positive, which this stage predicts")
    return _answer(row, row.positives[0])


def _answer(row: TrainingRow, text: str) -> TrainingRow:
    return TrainingRow(
        row.query,
        (text,),
        instruction=row.instruction,
        document_instruction=row.document_instruction,
        dataset=row.dataset,
        place=row.place,
    )


def even_shares(count: int, processes: int) -> list[Share]:
    """`count` rows for so many processes; DataError where one would have none."""
    if count < processes:
        raise DataError(
            f"a batch has {count} rows of a kind (compared, or predicted) for {processes} "
            "processes; make batches larger, or start fewer"
        )
    ends = [count * each // processes for each in range(processes + 1)]
    return [Share(start, stop) for start, stop in itertools.pairwise(ends)]


def joined(works: Sequence[Work], facts: Any) -> Work:
    """The work of several tasks, whose jobs have different names."""
    return Work(
        tuple(piece for work in works for piece in work.pieces),
        {job: order for work in works for job, order in work.order.items()},
        {job: sizes for work in works for job, sizes in work.sizes.items()},
        facts,
        sum(work.num_tokens for work in works),
        sum(work.num_computed_tokens for work in works),
        num_texts=sum(work.num_texts for work in works),
        num_cut=sum(work.num_cut for work in works),
    )
