"""Scores of a model on data sets, by the protocol of their kind, and what they were measured on."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import TaskSet
from polyvec.errors import DataError
from polyvec.evaluate import protocols
from polyvec.evaluate.encoder import TaskEncoder
from polyvec.evaluate.outcome import Outcome, Statistic
from polyvec.evaluate.protocols.ranked import RERANKED
from polyvec.interfaces import RunOptions, TextEncoder
from polyvec.rerank.reranker import Reranker
from polyvec.settings import check_seed
from polyvec.storage.files import atomic_file
from polyvec.storage.vector_cache import EmbeddingCache

SAMPLE = 1000  # vectors whose geometry is measured


@dataclass(frozen=True, slots=True)
class Result:
    """Scores as fractions, with what they were measured on: the data's and the model's hash.

    `task` is the name of the local copy, which may differ from the official task's data.
    `num_computed` of `num_texts` had no vector in the cache. published.join fills in the last
    three fields: the corresponding official task, the score published for this model there, and
    why the two may differ.
    """

    task: str
    split: str
    kind: str
    main_measure: str
    scores: dict[str, float]
    num_texts: int
    num_truncated: int
    seconds: float
    data_sha256: str
    model_sha256: str
    subset: str = ""
    encode_seconds: float = 0.0
    num_computed: int = 0
    prompts: dict[str, str] = field(default_factory=dict)
    official_task: str = ""
    published: float | None = None
    known_difference: str = ""

    @property
    def main_score(self) -> float:
        return self.scores[self.main_measure]

    @property
    def note(self) -> str:
        """What a report notes on the data: why scores may differ from the official task's."""
        return self.known_difference if self.official_task else ""

    @property
    def difference(self) -> float | None:
        """Our score minus the published one."""
        return None if self.published is None else self.main_score - self.published


@dataclass(frozen=True, slots=True)
class Measured:
    """A result, what it was computed from, and the geometry of a sample of the vectors."""

    result: Result
    outcome: Outcome
    geometry: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """Measures a model on any number of tasks.

    Vectors are stored in `cache`, if there is one, by content, model and prompt. `seed` is that
    of the protocols that draw (classification, clustering); 42 is MTEB's.
    """

    def __init__(
        self,
        embedder: TextEncoder,
        *,
        cache: EmbeddingCache | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        seed: int = 42,
        geometry: bool = False,
        reranker: Reranker | None = None,
        rerank_depth: int = RERANKED,
    ) -> None:
        check_seed(seed)
        self.reranker, self.rerank_depth = reranker, rerank_depth
        self.embedder, self.cache, self.seed, self.geometry = embedder, cache, seed, geometry
        self.options = RunOptions(
            batch_size, show_progress_bar=show_progress_bar, truncate="silent"
        )
        self.model_sha256 = embedder.fingerprint()
        self.vectors_sha256 = embedder.vectors_fingerprint() if cache else ""

    def measure(
        self,
        data: TaskSet,
        *,
        subset: str = "",
        prompt_names: Sequence[str] = (),
    ) -> Measured:
        """Scores of one data set.

        A stored prompt is found by the data's name, then by `prompt_names` (such as the official
        task's name), then by MTEB's name of the kind of task. Raises DataError, naming the text,
        for vectors or scores that are not finite.
        """
        began = time.perf_counter()
        kind = KINDS[data.kind]
        encoder = TaskEncoder(
            self.embedder,
            names=(data.name, *prompt_names, kind.mteb_type),
            cache=self.cache,
            options=self.options,
            model_sha256=self.vectors_sha256,
        )
        options: dict[str, Any] = {"seed": self.seed} if kind.draws else {}
        if self.reranker is not None:
            check_reranked(data)
            options |= {"reranker": self.reranker, "rerank_depth": self.rerank_depth}
        outcome = protocols.run(encoder, data, **options)
        if not np.isfinite(outcome.main_score):
            raise DataError(f"{data.name}: {outcome.main_measure} is {outcome.main_score}")
        work = encoder.work
        result = Result(
            task=data.name,
            split=data.split,
            kind=outcome.kind,
            main_measure=outcome.main_measure,
            scores=outcome.scores,
            num_texts=work.num_texts,
            num_truncated=work.num_truncated,
            seconds=round(time.perf_counter() - began, 2),
            data_sha256=data.sha256,
            model_sha256=self.model_sha256,
            subset=subset,
            encode_seconds=round(work.encode_s, 2),
            num_computed=work.num_computed,
            prompts=work.prompts,
        )
        shape = geometry_of(np.concatenate(work.sample)) if self.geometry else {}
        return Measured(result, outcome, shape)


def evaluate(
    embedder: TextEncoder,
    folder: str | Path,
    split: str = "test",
    *,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    data: TaskSet | None = None,
) -> Result:
    """Score a model on the data set in a folder, by the protocol of its kind (MTEB's).

    Sentence pairs with a score: Spearman. Corpus, queries and qrels: nDCG@10 over the 1,000
    nearest documents, queries and documents with the model's prompts for them. Texts with
    labels: a classifier's accuracy, or V-measure without a training split. Raises DataError
    naming file, line and id.
    """
    evaluator = Evaluator(embedder, batch_size=batch_size, show_progress_bar=show_progress_bar)
    return evaluator.measure(data or read_folder(folder, split)).result


def item_scores(
    embedder: TextEncoder, data: TaskSet, *, batch_size: int | None = None
) -> tuple[np.ndarray, Statistic]:
    """The model's value of each item, [N, 1 or 2], and the statistic that gives the task's score.

    For significance.compare. Raises DataError for tasks whose score is not a statistic of items.
    """
    return paired(Evaluator(embedder, batch_size=batch_size).measure(data).outcome, data.name)


def check_scorable(data: TaskSet) -> None:
    """Raises DataError, before texts are embedded, for labels or scores of which no score comes."""
    scores = getattr(data, "scores", ()) if data.kind in ("sts", "conditional_sts") else ()
    if scores and len(set(scores)) == 1:
        raise DataError(f"{data.name}: all {len(scores)} scores are equal, so nothing correlates")
    if data.kind in ("classification", "clustering", "pair_classification"):
        labels = getattr(data, "train_labels", None) or getattr(data, "labels", ())
        if labels and len(set(labels)) == 1:
            raise DataError(f"{data.name}: only one label, {labels[0]!r}; expected 2 or more")


def check_reranked(data: TaskSet) -> None:
    """Raises DataError for a task that has no ranking of documents to be ordered anew."""
    if "reranker" not in protocols.options_of(protocols.PROTOCOLS[data.kind]):
        kinds = [
            name
            for name, protocol in protocols.PROTOCOLS.items()
            if "reranker" in protocols.options_of(protocol)
        ]
        raise DataError(
            f"{data.name}: a task of kind {data.kind} is not reranked; leave out --rerank, or give "
            f"tasks of kind {' or '.join(kinds)}"
        )


def check_by_item(data: TaskSet) -> None:
    """Raises DataError for a task on which two models cannot be compared, before it is measured."""
    if not KINDS[data.kind].by_item:
        raise _not_by_item(data.name, data.kind)


def _not_by_item(task: str, kind: str) -> DataError:
    return DataError(
        f"{task}: {KINDS[kind].main_measure} of {kind} is not a statistic of items, so two models "
        "cannot be compared item by item; compare the scores of polyvec evaluate"
    )


def paired(outcome: Outcome, task: str) -> tuple[np.ndarray, Statistic]:
    """The items of an outcome and their statistic; DataError if it has none."""
    if outcome.paired is None or outcome.statistic is None:
        raise _not_by_item(task, outcome.kind)
    return outcome.paired, outcome.statistic


def write_results(path: str | Path, model: str, results: Sequence[Result], **facts: Any) -> None:
    """Results as JSON, written atomically; `facts` of the whole run come before them."""
    with atomic_file(Path(path), "w") as file:
        rows = [asdict(result) for result in results]
        json.dump({"model": model, **facts, "results": rows}, file, indent=2, ensure_ascii=False)
        file.write("\n")


def geometry_of(vectors_NE: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Geometry of a sample of at most 1,000 vectors; empty for fewer than 10."""
    from polyvec.evaluate.measures import geometry, neighbours

    vectors_NE = np.unique(vectors_NE, axis=0)
    if len(vectors_NE) < 10:
        return {}
    rows = np.random.default_rng(seed).permutation(len(vectors_NE))[:SAMPLE]
    sample = vectors_NE[rows]
    return {
        "mean_cosine": geometry.mean_cosine(sample),
        "isotropy": geometry.isotropy(sample),
        "isoscore": geometry.isoscore(sample),
        "effective_rank": geometry.effective_rank(sample),
        "uniformity": geometry.uniformity(sample),
        "hubness": neighbours.hubness(sample),
    }
