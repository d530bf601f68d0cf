"""Contrastive stages: vectors of queries and documents, compared by the stage's losses.

"scl" and "wcl" (supervised, weakly supervised): pairs and triplets. "ucl" (SimCSE, Gao et al.
2021, arXiv:2104.08821): each text is its own positive, encoded twice under dropout. "distill": a
teacher's scores of the documents. B queries, N documents, E vector size.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.part import wide
from polyvec.embed.projection.trained import SparseAutoencoder
from polyvec.errors import DataError, SettingsError, known
from polyvec.registry import Fact
from polyvec.train.compared import Compared
from polyvec.train.engine import Rows, Terms
from polyvec.train.losses.adaptation import FlowNLL
from polyvec.train.losses.sparse import CSR
from polyvec.train.losses.terms import Objective, Term
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work
from polyvec.train.tasks.dynamic import DynamicNegatives, dynamic_of
from polyvec.train.tasks.encode import (
    JOB,
    Read,
    Side,
    encode,
    encode_layers,
    pieces,
    read_texts,
)
from polyvec.train.tasks.examples import demonstrations
from polyvec.train.tasks.facts import Facts, check_given, column, known_matches, numbered, places
from polyvec.train.tasks.momentum import MomentumEncoder, momentum_of
from polyvec.train.tasks.other_models import OtherModel
from polyvec.train.tasks.projected import BothSides, num_fixed

Model = Annotated[Any, Fact("embedder")]
Stage = Annotated[Any, Fact("stage")]
# Fields of Compared that say whether a pair matches, or stand for it.
JUDGEMENTS = {"score_B", "label_B", "teacher_N", "teacher_query_BS"}
DEFAULT_LOSSES: tuple[Mapping[str, Any], ...] = ({"kind": "info_nce", "temperature": 0.05},)


class Contrastive:
    """The task of all contrastive stages; `own_positive` takes each text as its own positive.

    guide, teacher: folders or hub ids of other embedders, for losses that need their vectors, or
    a teacher's scores where the data have none. examples: the demonstrations before queries, a
    table of tasks/examples.py. batch_number: of the batch in the run, for what is drawn.
    """

    def __init__(
        self,
        embedder: Embedder,
        stage: StageSettings,
        *,
        own_positive: bool = False,
        guide: str | None = None,
        teacher: str | None = None,
        examples: Mapping[str, Any] | None = None,
        dynamic: DynamicNegatives | None = None,
    ) -> None:
        self.embedder, self.own_positive, self.where = embedder, own_positive, stage.where
        self.budget, self.accumulate = stage.gradient_cache, stage.accumulate
        query_length = stage.query_max_length or stage.max_length
        self.query_side = Side("query", query_length)
        self.document_side = Side("document", stage.max_length)
        self.objective = Objective.of(
            stage.losses or DEFAULT_LOSSES,
            stage.matryoshka,
            {
                "vector_size": embedder.full_dimension,
                "autoencoder": _autoencoder(embedder),
                "flow": next(iter(reversed(embedder.projections)), None),
            },
            where=stage.where,
            loss=stage.wording.loss,
        )
        # A momentum encoder reads a text otherwise, so that its two vectors differ without; a
        # likelihood does not compare them.
        terms = cast(Iterable[Term], self.objective.terms)
        compared = [term for term in terms if not isinstance(term.loss, FlowNLL)]
        self.needs_dropout = own_positive and bool(compared) and momentum_of(self.objective) is None
        needs = self.objective.needs
        # Terms that read the judgement of a pair, or do without it.
        self.judging = {
            term.name
            for term in cast(Iterable[Term], self.objective.terms)
            if term.reads or not JUDGEMENTS.isdisjoint(term.needs)
        }
        self.guide = _other(stage.where, "guide", guide, "guide_query_BG" in needs)
        by_teacher = {"teacher_query_BS", "teacher_N"} & needs
        self.teacher = _other(
            stage.where, "teacher", teacher, "teacher_query_BS" in needs, bool(by_teacher)
        )
        self.scores_are_mined = bool(stage.mining.get("output_scores"))
        self.layers = "layer_query_BLE" in needs
        self.based = "base_query_BE" in needs
        self.jobs: Mapping[str, Job] = {JOB: self._job()}
        self.heads: nn.Module = self.objective
        self.momentum_encoder: MomentumEncoder | None = None
        self.examples = demonstrations(examples, embedder, stage)
        self.dynamic = dynamic
        self.batch_number = 0

    def prepare(self, rows: Sequence[TrainingRow], without: frozenset[str] = frozenset()) -> None:
        """Called with all rows of the stage, before the first batch.

        without: data sets whose rows are not compared.
        """
        if isinstance(rows, TrainingData):
            self._check_datasets({each.name for each in rows.sets})
            # Which a teacher or mining give, mining not in a dry run.
            filled = {"teacher_N"} if self.teacher or self.scores_are_mined else set()
            compared = [each for each in rows.sets if each.name not in without]
            check_given(cast(Iterable[Term], self.objective.terms), compared, filled, self.where)
        if self.examples is not None:
            self.examples.prepare(rows)
        if self.dynamic is not None:
            self.dynamic.prepare(rows)
            self.heads.add_module("dynamic_negatives", self.dynamic)
        momentum = momentum_of(self.objective)
        if momentum is not None and self.momentum_encoder is None:
            self.momentum_encoder = MomentumEncoder(self.embedder, momentum)
            self.heads.add_module("momentum_encoder", self.momentum_encoder)

    def _job(self) -> Job:
        """What computes vectors: by layers, or before the autoencoder where the losses read those.

        Raises SettingsError for other losses beside those of an autoencoder.
        """
        terms = cast(Iterable[Term], self.objective.terms)
        by_autoencoder = [isinstance(term.loss, CSR) for term in terms]
        if self.based and (self.layers or any(by_autoencoder)):
            raise SettingsError(
                f"{self.where}: a loss reads vectors before a projection, which neither goes "
                "with 'csr' nor with layers in matryoshka"
            )
        if self.based:
            return BothSides(num_fixed(self.embedder, self.where), keep=not self.needs_dropout)
        if not any(by_autoencoder):
            return encode_layers if self.layers else encode
        if not all(by_autoencoder):
            raise SettingsError(
                f"{self.where}: the loss 'csr' reads vectors before the autoencoder, and has its "
                "own contrastive part: give it alone"
            )
        kinds = [isinstance(each, SparseAutoencoder) for each in self.embedder.projections]
        return functools.partial(encode, num_projections=kinds.index(True))

    def _check_datasets(self, names: set[str]) -> None:
        """Raises SettingsError for a loss over a data set that the stage does not have."""
        for term in cast(Iterable[Term], self.objective.terms):
            for name in term.datasets:
                if name not in names:
                    place = f"{self.where} loss {term.name!r}"
                    raise SettingsError(f"{place}: no data set {name!r}.{known(name, names)}")

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        """The batch `rows`, of which `shares[mine]` is computed here."""
        if self.dynamic is not None and self.objective.training and self._begins_step:
            self.dynamic.check(self.batch_number // self.accumulate)
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
        cut = [text.truncated for text in texts]
        if self.own_positive:  # both readings are of one text
            half = len(cut) // 2
            cut = [one or other for one, other in zip(cut[:half], cut[half:], strict=True)]
        facts = self._facts(rows, documents, shares)
        if self.momentum_encoder is not None:
            fields = {**facts.fields, "key_NE": self._keys(rows, documents)}
            facts = dataclasses.replace(facts, fields=fields)
        return Work(
            pieces=tuple(made),
            order={JOB: torch.tensor(order)},
            sizes={JOB: tuple(sizes)},
            facts=facts,
            num_tokens=num_tokens,
            num_computed_tokens=num_computed,
            num_texts=len(cut),
            num_cut=sum(cut),
        )

    @property
    def _begins_step(self) -> bool:
        return self.batch_number % self.accumulate == 0

    def _keys(self, rows: Sequence[TrainingRow], documents: Sequence[Sequence[str]]) -> Tensor:
        """Documents of the whole batch by the momentum encoder, after it has followed a step."""
        assert self.momentum_encoder is not None
        if self.objective.training and self._begins_step:
            self.momentum_encoder.follow(self.embedder)
        texts = self._read(rows, documents)[len(rows) :]
        return self.momentum_encoder.keys(texts, self.budget)

    def loss(self, rows: Rows, facts: Facts) -> Terms:
        """The terms of the loss of the whole batch."""
        batch = self.compared(rows, facts)
        if self.dynamic is not None and self.objective.training:
            self.dynamic.record(batch, facts.numbers)
        terms: Terms = self.objective(batch)
        return terms

    def compared(self, rows: Rows, facts: Facts) -> Compared:
        """What the losses see."""
        vectors = wide(rows[JOB])
        device = vectors.device
        queries, documents = vectors[facts.queries.to(device)], vectors[facts.documents.to(device)]
        more: dict[str, Any] = {name: each.to(device) for name, each in facts.fields.items()}
        if self.layers:
            more |= {"layer_query_BLE": queries[:, :-1], "layer_document_NLE": documents[:, :-1]}
            queries, documents = queries[:, -1], documents[:, -1]
        if self.based:
            more |= {"base_query_BE": queries[:, 0], "base_document_NE": documents[:, 0]}
            queries, documents = queries[:, 1], documents[:, 1]
        return Compared(
            queries,
            documents,
            facts.owner_N.to(device),
            facts.positive_N.to(device),
            known_BN=facts.known_BN.to(device),
            datasets=facts.datasets,
            step=self.batch_number // self.accumulate,
            **more,
        )

    def _facts(
        self,
        rows: Sequence[TrainingRow],
        documents: Sequence[Sequence[str]],
        shares: Sequence[Share],
    ) -> Facts:
        texts = [text for each in documents for text in each]
        queries = [row.query for row in rows]
        positive = [
            place < max(1, len(row.positives))
            for row, each in zip(rows, documents, strict=True)
            for place in range(len(each))
        ]
        owner_N = torch.tensor([row for row, each in enumerate(documents) for _ in each])
        fields = {
            **numbered(queries, texts),
            **column("score_B", [row.score for row in rows]),
            **column("label_B", [row.label for row in rows]),
            **column("teacher_N", [x for row in rows for x in row.teacher_scores], len(texts)),
        }
        for name, other in (("guide", self.guide), ("teacher", self.teacher)):
            if other is not None:
                letter = "G" if name == "guide" else "S"
                fields[f"{name}_query_B{letter}"] = other.vectors(queries, "query")
                fields[f"{name}_document_N{letter}"] = other.vectors(texts, "document")
        if self.teacher is not None and "teacher_N" not in fields:
            asked, given = fields["teacher_query_BS"], fields["teacher_document_NS"]
            fields["teacher_N"] = self.teacher.pair_scores(asked[owner_N], given)
        at = places(documents, shares)
        return Facts(
            *at,
            owner_N=owner_N,
            positive_N=torch.tensor(positive),
            known_BN=known_matches(rows, documents, texts),
            num_duplicates=len(texts) - len(set(texts)),
            datasets=tuple(row.dataset for row in rows),
            fields=fields,
            numbers=() if self.dynamic is None else self.dynamic.numbers(rows),
        )

    def _documents(self, row: TrainingRow) -> tuple[str, ...]:
        if self.own_positive:
            return (row.query,)
        if not row.positives:
            raise DataError(f"{row.place or 'row'}: no positive, which this stage needs")
        if not row.matches:
            self._check_judged(row)
        negatives = row.negatives if self.dynamic is None else self.dynamic.of(row)
        return (*row.positives, *negatives)

    def _check_judged(self, row: TrainingRow) -> None:
        """Raises DataError if no loss of the row reads whether its texts match."""
        names = [
            str(term.name)
            for term in cast(Iterable[Term], self.objective.terms)
            if not term.datasets or row.dataset in term.datasets
        ]
        if names and self.judging.isdisjoint(names):
            what = "class" if row.score is None else f"score ({row.score:g})"
            raise DataError(
                f"{row.place or 'row'}: the pair has a {what} that no loss reads "
                f"({', '.join(names)}), so it would count as a match. Take a loss that reads it "
                "(cosent, softmax_nli), or make matches with min_score, or format 'judged' or "
                "'nli_triplets'."
            )

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


def _autoencoder(embedder: Embedder) -> SparseAutoencoder | None:
    """The embedder's projection "csr"."""
    return next(
        (each for each in embedder.projections if isinstance(each, SparseAutoencoder)), None
    )


def _other(
    where: str, what: str, name: str | None, required: bool, used: bool | None = None
) -> OtherModel | None:
    """A second model; SettingsError if losses need one that is not named, or need none."""
    if name is None and required:
        raise SettingsError(
            f"{where}: losses need vectors of a {what}: set {what} to a folder or hub id"
        )
    if name is None:
        return None
    if not (required if used is None else used):
        raise SettingsError(f"{where}: {what} does nothing: no loss needs it")
    return OtherModel(name)


def contrastive(
    embedder: Model,
    stage: Stage,
    examples: Mapping[str, Any] | None = None,
    guide: str | None = None,
    teacher: str | None = None,
    dynamic_negatives: Mapping[str, Any] | None = None,
) -> Contrastive:
    """Pairs and triplets, supervised or weakly supervised; `examples` shows demonstrations.

    dynamic_negatives: a table of tasks/dynamic.py: negatives are replaced when they become easy.
    """
    return Contrastive(
        embedder,
        stage,
        examples=examples,
        guide=guide,
        teacher=teacher,
        dynamic=dynamic_of(dynamic_negatives, stage),
    )


def unsupervised(embedder: Model, stage: Stage) -> Contrastive:
    """Each text is its own positive, encoded twice under dropout (SimCSE, arXiv:2104.08821)."""
    return Contrastive(embedder, stage, own_positive=True)


def distill(
    embedder: Model,
    stage: Stage,
    examples: Mapping[str, Any] | None = None,
    guide: str | None = None,
    teacher: str | None = None,
) -> Contrastive:
    """A teacher's scores or vectors; the stage's losses say how they are followed."""
    if not stage.losses:
        raise SettingsError(f"{stage.where}: distillation needs losses, such as 'kl_rank'")
    return Contrastive(embedder, stage, examples=examples, guide=guide, teacher=teacher)
