"""A model's scores on a data set's folder."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polyvec.data.files import atomic_file
from polyvec.data.sets import RetrievalSet, StsSet, read_set
from polyvec.embed.encoding import EncodeReport, RunOptions
from polyvec.evaluate import measures
from polyvec.evaluate.significance import Statistic, spearman
from polyvec.index.exact import top_k
from polyvec.index.hybrid import HybridEmbedder

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

DEPTH = 1000  # documents kept a query; what trec_eval's MAP and MTEB's runs use


@dataclass(frozen=True, slots=True)
class Result:
    """Scores as fractions, with what they were measured on: the data's and the model's hash.

    `task` is the folder's name, never a benchmark's: a local copy may differ from the official set.
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

    @property
    def main_score(self) -> float:
        return self.scores[self.main_measure]


def evaluate(
    embedder: "Embedder",
    folder: str | Path,
    split: str = "test",
    *,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    data: StsSet | RetrievalSet | None = None,
) -> Result:
    """Score a model on the data set in a folder.

    Pairs with a score: Spearman and Pearson of the model's similarity. Corpus, queries and
    qrels: nDCG@10, Recall@100, MAP and MRR@10 over the 1,000 nearest documents, queries and
    documents with the model's prompts for them. Raises DataError naming file, line and id.
    """
    data = data or read_set(folder, split)
    options = RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate="silent")
    began = time.perf_counter()
    if isinstance(data, StsSet):
        kind, main, (scores, reports) = "sts", "spearman", _sts(embedder, data, options)
    else:
        kind, main, (scores, reports) = "retrieval", "ndcg@10", _retrieval(embedder, data, options)
    return Result(
        data.name,
        data.split,
        kind,
        main,
        scores,
        sum(report.num_texts for report in reports),
        sum(report.num_truncated for report in reports),
        round(time.perf_counter() - began, 1),
        data.sha256,
        embedder.fingerprint(),
    )


def item_scores(
    embedder: "Embedder", data: StsSet | RetrievalSet, *, batch_size: int | None = None
) -> tuple[np.ndarray, Statistic]:
    """What a model gets for each item, [N, 1 or 2], and the statistic that makes the task's score.

    Pairs: similarity and gold score, Spearman. Queries: nDCG@10, mean. For significance.compare.
    """
    options = RunOptions(batch_size, truncate="silent")
    if isinstance(data, StsSet):
        predicted, _ = _similarities(embedder, data, options)
        return np.stack([predicted, np.asarray(data.scores, float)], axis=1), spearman
    run, _ = _run(embedder, data, options)
    found = measures.per_query(data.qrels, run, "ndcg@10")
    return np.array([[found[query]] for query in sorted(found)]), _mean


def _mean(items: np.ndarray) -> float:
    return float(items[:, 0].mean())


def write_results(path: str | Path, model: str, results: list[Result]) -> None:
    """Results as JSON, whole or not at all."""
    with atomic_file(Path(path), "w") as file:
        json.dump({"model": model, "results": [asdict(r) for r in results]}, file, indent=2)
        file.write("\n")


def _sts(
    embedder: "Embedder", data: StsSet, options: RunOptions
) -> tuple[dict[str, float], list[EncodeReport]]:
    predicted, report = _similarities(embedder, data, options)
    return measures.correlations(predicted.tolist(), data.scores), [report]


def _similarities(
    embedder: "Embedder", data: StsSet, options: RunOptions
) -> tuple[np.ndarray, EncodeReport]:
    """The model's similarity of each pair, [N]."""
    texts = [*data.sentences1, *data.sentences2]
    vectors, report = embedder.encode_with_report(texts, options=options)
    half = len(data.scores)
    return embedder.similarity_pairwise(vectors[:half], vectors[half:]).numpy(), report


def _retrieval(
    embedder: "Embedder", data: RetrievalSet, options: RunOptions
) -> tuple[dict[str, float], list[EncodeReport]]:
    run, reports = _run(embedder, data, options)
    return measures.retrieval(data.qrels, run), reports


def _run(
    embedder: "Embedder", data: RetrievalSet, options: RunOptions
) -> tuple[dict[str, dict[str, float]], list[EncodeReport]]:
    """Each query's nearest documents and their scores."""
    documents, document_report = embedder.encode_with_report(
        list(data.corpus.values()), role="document", options=options
    )
    queries, query_report = embedder.encode_with_report(
        list(data.queries.values()), role="query", options=options
    )
    # One more than kept: a query that is itself in the corpus is taken out below.
    if isinstance(embedder, HybridEmbedder):
        scores, rows = embedder.search(queries, documents, DEPTH + 1)
    else:
        scores, rows = top_k(queries, documents, DEPTH + 1, embedder.similarity_fn_name)
    ids = list(data.corpus)
    run = {}
    for i, query in enumerate(data.queries):
        near = zip((ids[row] for row in rows[i]), scores[i].tolist(), strict=True)
        run[query] = _without_itself(query, data, dict(near))
    return run, [document_report, query_report]


def _without_itself(query: str, data: RetrievalSet, near: dict[str, float]) -> dict[str, float]:
    """The nearest documents without the query itself: ArguAna's queries are documents.

    An equal id alone does not make it the same text: numbers name queries and documents alike.
    """
    if query in data.identical:
        near.pop(query, None)
    return dict(list(near.items())[:DEPTH])
