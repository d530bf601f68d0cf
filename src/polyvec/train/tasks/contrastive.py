"""Contrastive stages: vectors of queries and documents, compared by the stage's losses.

"scl" and "wcl" (supervised, weakly supervised): pairs and triplets. "ucl" (SimCSE, Gao et al.
2021, arXiv:2104.08821): each text is its own positive, encoded twice under dropout. "distill": a
teacher's scores of the documents. B queries, N documents, E vector size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.part import wide
from polyvec.errors import DataError, SettingsError
from polyvec.registry import Fact
from polyvec.train.compared import Compared
from polyvec.train.engine import Rows, Terms
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share, Work
from polyvec.train.tasks.encode import JOB, Read, Side, encode, pieces, read_texts
from polyvec.train.tasks.examples import demonstrations

Model = Annotated[Any, Fact("embedder")]
Stage = Annotated[Any, Fact("stage")]


@dataclass(frozen=True, slots=True)
class Facts:
    """A batch as its loss sees it, beside the vectors.

    queries, documents: places of their vectors among the results of all processes. The rest is as
    in Compared. num_duplicates: documents whose text occurs before in the batch.
    """

    queries: Tensor
    documents: Tensor
    owner_N: Tensor
    positive_N: Tensor
    known_BN: Tensor
    score_B: Tensor | None
    label_B: Tensor | None
    teacher_N: Tensor | None
    num_duplicates: int


class Contrastive:
    """The task of all contrastive stages; `own_positive` takes each text as its own positive.

    examples: the demonstrations before queries, a table of tasks/examples.py. batch_number: of
    the batch in the run, for what is drawn.
    """

    def __init__(
        self,
        embedder: Embedder,
        stage: StageSettings,
        *,
        own_positive: bool = False,
        examples: Mapping[str, Any] | None = None,
    ) -> None:
        self.embedder, self.own_positive = embedder, own_positive
        self.jobs = {JOB: encode}
        self.budget = stage.gradient_cache
        query_length = stage.query_max_length or stage.max_length
        self.query_side = Side("query", query_length)
        self.document_side = Side("document", stage.max_length)
        self.heads: nn.Module = nn.Module()
        self.examples = demonstrations(examples, embedder, stage)
        self.batch_number = 0

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Called with all rows of the stage, before the first batch."""
        if self.examples is not None:
            self.examples.prepare(rows)

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        """The batch `rows`, of which `shares[mine]` is computed here."""
        documents = [self._documents(row) for row in rows]
        sizes = [
            sum(1 + len(documents[row]) for row in range(share.start, share.stop))
            for share in shares
        ]
        share = shares[mine]
        shown = None
        if self.examples is not None:
            shown = self.examples.of(rows, share, self.batch_number)
        own = slice(share.start, share.stop)
        texts = self._read(rows[own], documents[own], shown)
        made, order, num_tokens, num_computed = pieces(self.embedder, texts, budget=self.budget)
        return Work(
            pieces=tuple(made),
            order={JOB: torch.tensor(order)},
            sizes={JOB: tuple(sizes)},
            facts=_facts(rows, documents, shares),
            num_tokens=num_tokens,
            num_computed_tokens=num_computed,
        )

    def loss(self, rows: Rows, facts: Facts) -> Terms:
        """The terms of the loss of the whole batch."""
        vectors = wide(rows[JOB])
        compared = Compared(
            vectors[facts.queries.to(vectors.device)],
            vectors[facts.documents.to(vectors.device)],
            facts.owner_N.to(vectors.device),
            facts.positive_N.to(vectors.device),
            known_BN=facts.known_BN.to(vectors.device),
        )
        return {"info_nce": info_nce(compared)}

    def _documents(self, row: TrainingRow) -> tuple[str, ...]:
        if self.own_positive:
            return (row.query,)
        if not row.positives:
            raise DataError(f"{row.place or 'row'}: no positive, which this stage needs")
        return (*row.positives, *row.negatives)

    def _read(
        self,
        rows: Sequence[TrainingRow],
        documents: Sequence[Sequence[str]],
        examples: Sequence[tuple[Example, ...]] | None = None,
    ) -> list[Read]:
        """Queries, then documents."""
        queries = read_texts(
            self.embedder,
            self.query_side,
            [row.query for row in rows],
            [row.instruction for row in rows],
            [row.place for row in rows],
            examples,
        )
        owned = [(row, text) for row, each in zip(rows, documents, strict=True) for text in each]
        found: dict[int, Read] = {}
        for side in (self.query_side, self.document_side):
            asked = side is self.query_side
            places = [i for i, (row, _) in enumerate(owned) if self._like_queries(row) == asked]
            mine = [owned[place][0] for place in places]
            read = read_texts(
                self.embedder,
                dataclasses.replace(side, max_length=self.document_side.max_length),
                [owned[place][1] for place in places],
                [row.instruction if asked else row.document_instruction for row in mine],
                [row.place for row in mine],
            )
            found.update(zip(places, read, strict=True))
        return queries + [found[place] for place in range(len(owned))]

    def _like_queries(self, row: TrainingRow) -> bool:
        """Whether documents are the same kind of text as the query."""
        return self.own_positive or row.symmetric


def info_nce(compared: Compared, temperature: float = 0.05) -> Tensor:
    """InfoNCE over the batch, in nats: the mean over own positives."""
    queries = nn.functional.normalize(compared.query_BE, dim=-1)
    documents = nn.functional.normalize(compared.document_NE, dim=-1)
    scores_BN = queries @ documents.T / temperature
    own_BN = compared.own_positives
    others_BN = scores_BN.masked_fill(compared.no_negatives, -torch.inf)
    rows, columns = own_BN.nonzero(as_tuple=True)
    positive = scores_BN[rows, columns]
    total = torch.logaddexp(positive, others_BN.logsumexp(dim=1)[rows])
    return (total - positive).mean()


def _facts(
    rows: Sequence[TrainingRow], documents: Sequence[Sequence[str]], shares: Sequence[Share]
) -> Facts:
    queries: list[int] = []
    places: list[int] = []
    start = 0
    for share in shares:
        stop = start + share.stop - share.start
        queries += range(start, stop)
        count = sum(len(documents[row]) for row in range(share.start, share.stop))
        places += range(stop, stop + count)
        start = stop + count
    owners = [row for row, each in enumerate(documents) for _ in each]
    texts = [text for each in documents for text in each]
    positive = [
        place < max(1, len(row.positives))
        for row, each in zip(rows, documents, strict=True)
        for place in range(len(each))
    ]
    return Facts(
        queries=torch.tensor(queries),
        documents=torch.tensor(places),
        owner_N=torch.tensor(owners),
        positive_N=torch.tensor(positive),
        known_BN=_known(rows, documents, texts),
        score_B=_column([row.score for row in rows]),
        label_B=_column([row.label for row in rows]),
        teacher_N=_column([score for row in rows for score in row.teacher_scores], len(texts)),
        num_duplicates=len(texts) - len(set(texts)),
    )


def _known(
    rows: Sequence[TrainingRow], documents: Sequence[Sequence[str]], texts: Sequence[str]
) -> Tensor:
    """Which documents are no negatives of a query: equal to it, or to one of its positives.

    Of a row whose `in_batch` is false, the documents of all other rows.
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    known = torch.zeros(len(rows), len(texts), dtype=torch.bool)
    start = 0
    for number, (row, each) in enumerate(zip(rows, documents, strict=True)):
        for text in {row.query, *each[: max(1, len(row.positives))]}:
            known[number, places.get(text, [])] = True
        if not row.in_batch:
            known[number, :start] = True
            known[number, start + len(each) :] = True
        start += len(each)
    return known


def _column(values: Sequence[float | int | None], length: int | None = None) -> Tensor | None:
    """The values as a tensor; None unless every one is given."""
    if not values or None in values or (length is not None and len(values) != length):
        return None
    return torch.tensor(values)


def contrastive(
    embedder: Model, stage: Stage, examples: Mapping[str, Any] | None = None
) -> Contrastive:
    """Pairs and triplets, supervised or weakly supervised; `examples` shows demonstrations."""
    return Contrastive(embedder, stage, examples=examples)


def unsupervised(embedder: Model, stage: Stage) -> Contrastive:
    """Each text is its own positive, encoded twice under dropout (SimCSE, arXiv:2104.08821)."""
    return Contrastive(embedder, stage, own_positive=True)


def distill(
    embedder: Model, stage: Stage, examples: Mapping[str, Any] | None = None
) -> Contrastive:
    """A teacher's scores; the stage's losses say how they are followed."""
    if not stage.losses:
        raise SettingsError("[[stage]] 'distill' needs losses, such as { kind = \"kl\" }")
    return Contrastive(embedder, stage, examples=examples)
