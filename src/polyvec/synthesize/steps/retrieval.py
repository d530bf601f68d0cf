"""Steps that search: round trip, retrieval of documents, hard negatives."""

import copy
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from polyvec.data.words import normalized
from polyvec.errors import DataError, SettingsError
from polyvec.interfaces import TextEncoder
from polyvec.settings import fill
from polyvec.synthesize.nearest import By, search
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Step, Tools


def documents_of(rows: Sequence[Row], tools: Tools, corpus: str | None) -> list[str]:
    """What is searched: the rows' positives, then the texts of the run or of a file."""
    from polyvec.train.mining.documents import corpus_texts

    more = corpus_texts(corpus) if corpus else [each.text for each in tools.texts]
    own = [row.positive for row in rows if row.positive is not None]
    return list(dict.fromkeys(text for text in (*own, *more) if text.strip()))


def _embedder(by: By, tools: Tools, model: str | None) -> TextEncoder | None:
    return tools.embedder(model) if by == "embedder" else None


@dataclass(frozen=True, slots=True)
class SelfTraining:
    """How the embedder of a round trip is trained on the rows that it then filters."""

    max_steps: int
    batch_size: int = 32
    learning_rate: float = 2e-5
    temperature: float = 0.05
    max_length: int = 128
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "learning_rate", "temperature", "max_length"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"train: {name} {getattr(self, name)} must be above 0")


def trained_on(
    embedder: TextEncoder, rows: Sequence[Row], settings: SelfTraining, where: str
) -> Any:
    """A copy of the embedder, trained on the rows' pairs with the negatives of the batch, and
    where every row has one, with the first of its own."""
    from polyvec.embed.embedder import Embedder
    from polyvec.train.front import Trainer, TrainingArguments

    if not isinstance(embedder, Embedder):
        raise SettingsError(f"{where}: train needs an Embedder, not another kind of model")
    trained = copy.deepcopy(embedder)
    pairs = [{"anchor": row.anchor, "positive": row.positive} for row in rows]
    if all(row.negatives for row in rows):
        pairs = [{**p, "negative": r.negatives[0]} for p, r in zip(pairs, rows, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=settings.max_steps,
            per_device_train_batch_size=min(settings.batch_size, len(pairs)),
            learning_rate=settings.learning_rate,
            max_length=settings.max_length,
            seed=settings.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        loss = {"kind": "info_nce", "temperature": settings.temperature}
        Trainer(trained, arguments, pairs, loss=loss).train()
    return trained.eval()


@STEPS.register("round_trip")
@dataclass(frozen=True)
class RoundTrip(Step):
    """Rows whose anchor finds its own positive among the `k` nearest of all documents.

    Promptagator's consistency (arXiv:2209.11755) with the embedder, k = 1; SPTAR's filter
    (arXiv:2307.08303) with by = "bm25", k = 30 or 70. Documents with equal texts, but for case and
    punctuation, count as one. corpus: a file that is searched in place of the run's texts.
    train: max_steps, and optionally batch_size, learning_rate, temperature and max_length (of
    texts in tokens, 128): the embedder is first trained on all the rows, as the paper's retriever
    is; the run's own stays as it is.
    """

    k: int = 1
    train: Mapping[str, Any] = field(default_factory=dict)
    by: By = "embedder"
    model: str | None = None
    corpus: str | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingsError(f"step 'round_trip': k {self.k} must be 1 or more")
        if self.train:
            if self.by != "embedder":
                raise SettingsError("step 'round_trip': train needs by = 'embedder'")
            fill(SelfTraining, self.train, "step 'round_trip' train")

    def uses(self, tools: Tools) -> str | None:
        return "embedder" if self.by == "embedder" else None

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found = Changed()
        whole = [row for row in rows if row.anchor is not None and row.positive is not None]
        documents = documents_of(rows, tools, self.corpus)
        if whole:
            ranks = iter(self._ranks(whole, documents, tools))
        for row in rows:
            if row.anchor is None or row.positive is None:
                found.reject(row, "no anchor or no positive")
                continue
            rank = next(ranks)
            if rank is None:
                found.reject(row, f"its positive is not among the {self.k} nearest")
            else:
                found.keep(row.with_meta(round_trip_rank=rank))
        found.notes["documents searched"] = f"{len(documents):,}"
        return found

    def _ranks(
        self, rows: Sequence[Row], documents: Sequence[str], tools: Tools
    ) -> list[int | None]:
        """The rank of each positive from 1, by distinct texts; None beyond k."""
        groups = [normalized(text) for text in documents]
        distinct = {group: place for place, group in reversed(list(enumerate(groups)))}
        kept = sorted(distinct.values())
        queries = [(row.anchor or "", row.instruction) for row in rows]
        embedder = _embedder(self.by, tools, self.model)
        if embedder is not None and self.train:
            settings = fill(SelfTraining, self.train, "step 'round_trip' train")
            pairs = [dataclasses.replace(row, negatives=()) for row in rows]
            embedder = trained_on(embedder, pairs, settings, "step 'round_trip'")
        hits = search(queries, [documents[place] for place in kept], self.k, self.by, embedder)
        ranks: list[int | None] = []
        for row, nearest in zip(rows, hits.rows_QK.tolist(), strict=True):
            own = normalized(row.positive or "")
            texts = [groups[kept[place]] for place in nearest if place >= 0]
            ranks.append(texts.index(own) + 1 if own in texts else None)
        return ranks


@STEPS.register("retrieve")
@dataclass(frozen=True)
class Retrieve(Step):
    """The documents nearest to each anchor, with their scores, in meta.retrieved and meta.scores.

    to: also writes the best of them that is not the anchor itself as its positive.
    """

    k: int = 10
    by: By = "embedder"
    model: str | None = None
    corpus: str | None = None
    to: Literal["positive"] | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingsError(f"step 'retrieve': k {self.k} must be 1 or more")

    def uses(self, tools: Tools) -> str | None:
        return "embedder" if self.by == "embedder" else None

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        """With as many documents as are retrieved, of which a later step may ask."""
        found = []
        for row in rows:
            text = row.positive or row.anchor or ""
            found.append(row.with_meta(retrieved=[f"{text} {i}" for i in range(self.k)]))
        return found

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found = Changed()
        documents = documents_of(rows, tools, self.corpus)
        if not documents:
            raise DataError("step 'retrieve': there are no documents to search; give a corpus")
        whole = [row for row in rows if row.anchor is not None]
        queries = [(row.anchor or "", row.instruction) for row in whole]
        embedder = _embedder(self.by, tools, self.model)
        hits = search(queries, documents, self.k + 1, self.by, embedder) if whole else None
        number = 0
        for row in rows:
            if row.anchor is None or hits is None:
                found.reject(row, "no anchor")
                continue
            pairs = zip(hits.rows_QK[number].tolist(), hits.scores_QK[number].tolist(), strict=True)
            number += 1
            own = normalized(row.anchor)
            near = [(documents[place], score) for place, score in pairs if place >= 0]
            near = [each for each in near if normalized(each[0]) != own][: self.k]
            if not near:
                found.reject(row, "nothing was retrieved")
                continue
            texts, scores = zip(*near, strict=True)
            made = row.with_meta(retrieved=list(texts), scores=list(scores))
            found.keep(dataclasses.replace(made, positive=texts[0]) if self.to else made)
        return found


@STEPS.register("mine")
@dataclass(frozen=True)
class Mine(Step):
    """Hard negatives for each row, by a stage's `mining` table (docs/mining.md).

    corpus: a file that is searched; default: the texts of the run. keep_short: whether rows with
    fewer negatives than wanted stay.
    """

    mining: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    corpus: str | None = None
    keep_short: bool = True

    def __post_init__(self) -> None:
        from polyvec.train.mining.settings import mining_settings

        for name in ("model", "corpus", "sets", "refresh_epochs"):
            if name in self.mining:
                raise SettingsError(f"step 'mine': mining has no {name!r} here")
        mining_settings(self.mining, "step 'mine' mining")

    def uses(self, tools: Tools) -> str | None:
        return "embedder" if self.mining.get("candidates", "embedder") == "embedder" else None

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        from polyvec.data.training.rows import TrainingRow
        from polyvec.data.training.sources import TrainingSet
        from polyvec.train.mining.candidates import Tools as SearchTools
        from polyvec.train.mining.miner import mine
        from polyvec.train.mining.report import facts
        from polyvec.train.mining.settings import mining_settings

        settings = mining_settings(self.mining, "step 'mine' mining")
        found = Changed()
        whole = [row for row in rows if row.anchor is not None and row.positive is not None]
        if not whole:
            for row in rows:
                found.reject(row, "no anchor or no positive")
            return found
        own = [
            TrainingRow(r.anchor or "", (r.positive or "",), r.negatives, instruction=r.instruction)
            for r in whole
        ]
        embedder = None if settings.candidates == "bm25" else tools.embedder(self.model)
        score = None
        if settings.cross_encoder is not None:
            score = tools.cross_encoder(settings.cross_encoder)
        mined = mine(
            TrainingSet("the rows", own),
            settings,
            tools=SearchTools(embedder),
            corpus=documents_of(rows, tools, self.corpus),
            cross_encoder=score,
        )
        rest = iter(mined.mined_rows())
        for row in rows:
            if row.anchor is None or row.positive is None:
                found.reject(row, "no anchor or no positive")
                continue
            made = next(rest)
            kept = dataclasses.replace(row, negatives=made.negatives)
            num = len(made.negatives) - (len(row.negatives) if settings.keep_negatives else 0)
            if num < settings.num_negatives and not self.keep_short:
                found.reject(kept, f"fewer than {settings.num_negatives} negatives")
            else:
                found.keep(kept)
        found.notes |= facts(mined)
        return found
