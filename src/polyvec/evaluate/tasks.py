"""A model's scores on data sets: by the protocol of their kind, with what they were measured on."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.data.tasks.readers import TaskSet, read_folder
from polyvec.embed.encoding import RunOptions
from polyvec.errors import DataError
from polyvec.evaluate import protocols
from polyvec.evaluate.encoder import TaskEncoder, vector_fingerprint
from polyvec.evaluate.outcome import Outcome, Statistic
from polyvec.storage.files import atomic_file
from polyvec.storage.vector_cache import EmbeddingCache

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

SAMPLE = 1000  # vectors whose geometry is looked at


@dataclass(frozen=True, slots=True)
class Result:
    """Scores as fractions, with what they were measured on: the data's and the model's hash.

    `task` is the local copy's name, never a benchmark's: a copy may differ from the official set.
    `official_task` names the official one that it corresponds to, `published` what was published
    of this model there, `cause` why the two may differ. `num_computed` of `num_texts` had no
    vector in the cache.
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
        """What a report says of the data: why it may differ from the official task."""
        return self.known_difference if self.official_task else ""

    @property
    def difference(self) -> float | None:
        """Ours less what was published."""
        return None if self.published is None else self.main_score - self.published


@dataclass(frozen=True, slots=True)
class Measured:
    """A result, what it was made of, and the geometry of a sample of the vectors."""

    result: Result
    outcome: Outcome
    geometry: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """A model, ready to be measured on any number of tasks.

    Vectors are kept in `cache`, if there is one, by content, model and prompt.
    """

    def __init__(
        self,
        embedder: "Embedder",
        *,
        cache: EmbeddingCache | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        seed: int = 42,
        geometry: bool = False,
    ) -> None:
        self.embedder, self.cache, self.seed, self.geometry = embedder, cache, seed, geometry
        self.options = RunOptions(
            batch_size, show_progress_bar=show_progress_bar, truncate="silent"
        )
        self.model_sha256 = embedder.fingerprint()
        self.vectors_sha256 = vector_fingerprint(embedder) if cache else ""

    def measure(
        self,
        data: TaskSet,
        *,
        subset: str = "",
        official_task: str = "",
        published: float | None = None,
        known_difference: str = "",
    ) -> Measured:
        """Scores of one data set; the official task's name is one that a prompt may go by.

        Raises DataError, naming the text, for vectors or scores that are not finite.
        """
        began = time.perf_counter()
        encoder = TaskEncoder(
            self.embedder,
            names=(data.name, official_task, mteb_type(data)),
            cache=self.cache,
            options=self.options,
            model_sha256=self.vectors_sha256,
        )
        outcome = protocols.run(encoder, data, seed=self.seed)
        if not np.isfinite(outcome.main_score):
            raise DataError(f"{data.name}: {outcome.main_measure} is {outcome.main_score}")
        work = encoder.work
        result = Result(
            data.name,
            data.split,
            outcome.kind,
            outcome.main_measure,
            outcome.scores,
            work.num_texts,
            work.num_truncated,
            round(time.perf_counter() - began, 2),
            data.sha256,
            self.model_sha256,
            subset,
            round(work.encode_s, 2),
            work.num_computed,
            work.prompts,
            official_task,
            published,
            known_difference,
        )
        shape = geometry_of(np.concatenate(work.sample)) if self.geometry else {}
        return Measured(result, outcome, shape)


def evaluate(
    embedder: "Embedder",
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
    embedder: "Embedder", data: TaskSet, *, batch_size: int | None = None
) -> tuple[np.ndarray, Statistic]:
    """What a model gets for each item, [N, 1 or 2], and the statistic that makes the task's score.

    For significance.compare. Raises DataError for tasks whose score is not made of items.
    """
    return paired(Evaluator(embedder, batch_size=batch_size).measure(data).outcome, data.name)


def paired(outcome: Outcome, task: str) -> tuple[np.ndarray, Statistic]:
    """The items of an outcome and their statistic; DataError where it has none."""
    if outcome.paired is None or outcome.statistic is None:
        raise DataError(
            f"{task}: {outcome.main_measure} of {outcome.kind} is no score of single items, "
            "so two models cannot be compared item by item"
        )
    return outcome.paired, outcome.statistic


def write_results(path: str | Path, model: str, results: Sequence[Result], **facts: Any) -> None:
    """Results as JSON, whole or not at all; `facts` of the whole run stand before them."""
    with atomic_file(Path(path), "w") as file:
        rows = [asdict(result) for result in results]
        json.dump({"model": model, **facts, "results": rows}, file, indent=2, ensure_ascii=False)
        file.write("\n")


def mteb_type(data: TaskSet) -> str:
    """What mteb calls the kind of a task."""
    name = type(data).__name__.removesuffix("Set")
    if name == "Retrieval":
        return "Reranking" if getattr(data, "candidates", None) else "Retrieval"
    types = {"ConditionalSts": "STS", "Sts": "STS", "Pair": "PairClassification"}
    types |= {"Bitext": "BitextMining", "Summary": "Summarization"}
    types |= {"Instruction": "InstructionRetrieval"}
    return types.get(name, name)


def geometry_of(vectors_NE: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How a sample of at most 1,000 vectors fills its space; empty for fewer than 10."""
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
