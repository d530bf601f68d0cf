"""The same data and the same vectors, as MTEB reads and measures them."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb import abstasks
from mteb._evaluators.retrieval_metrics import evaluate_p_mrr_change, robustness_at_10
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ScoringFunction
from mteb.similarity_functions import select_pairwise_similarity, select_similarity

COUNT = itertools.count()
FUNCTIONS = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}


class Model:
    """A toy encoder behind MTEB's protocol; similarities are MTEB's own."""

    mteb_model_meta = None

    def __init__(self, encoder) -> None:
        self.encoder = encoder
        self.function = FUNCTIONS[encoder.similarity_name]

    def encode(self, inputs, *, prompt_type=None, **_: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        return self.encoder.encode(texts, prompt_type.value if prompt_type else None)

    def similarity(self, a, b):
        return select_similarity(a, b, self.function)

    def similarity_pairwise(self, a, b):
        return select_pairwise_similarity(a, b, self.function)


def evaluate(
    base: type, kind: str, dataset: Any, encoder, *, seed: int = 42, **settings: Any
) -> dict[str, Any]:
    """Scores of a task of MTEB's class `base` on a data set, with the settings it has."""
    metadata = TaskMetadata(
        name=f"Local{next(COUNT)}",
        description="synthetic",
        dataset={"path": "none", "revision": "none"},
        type=kind,
        category="t2t",
        eval_langs=["eng-Latn"],
        main_score=settings.pop("main_score", "accuracy"),
    )
    task = type(metadata.name, (base,), {"metadata": metadata, **settings})(seed=seed)
    task.dataset, task.data_loaded = dataset, True
    return task.evaluate(Model(encoder), "test", encode_kwargs={"batch_size": 16})["default"]


def sts(data, encoder) -> dict[str, Any]:
    columns = {"sentence1": data.sentences1, "sentence2": data.sentences2, "score": data.scores}
    return evaluate(
        abstasks.AbsTaskSTS, "STS", _split(columns), encoder, main_score="cosine_spearman"
    )


def pair_classification(data, encoder) -> dict[str, Any]:
    columns = {"sentence1": data.sentences1, "sentence2": data.sentences2, "labels": data.labels}
    base = abstasks.AbsTaskPairClassification
    return evaluate(base, "PairClassification", _split(columns), encoder, main_score="max_ap")


def classification(data, encoder, *, whole: bool = True, **settings: Any) -> dict[str, Any]:
    kind = int if whole else str
    train = {"text": data.train_texts, "label": [kind(label) for label in data.train_labels]}
    test = {"text": data.texts, "label": [kind(label) for label in data.labels]}
    return evaluate(
        abstasks.AbsTaskClassification,
        "Classification",
        DatasetDict(train=_rows(train), test=_rows(test)),
        encoder,
        samples_per_label=data.samples_per_label,
        **settings,
    )


def clustering(data, encoder, **settings: Any) -> dict[str, Any]:
    settings |= {
        "main_score": "v_measure",
        "max_fraction_of_documents_to_embed": data.fraction,
        "max_document_to_embed": data.max_texts,
    }
    columns = {"sentences": data.texts, "labels": data.labels}
    base = abstasks.AbsTaskClustering
    return evaluate(base, "Clustering", _split(columns), encoder, **settings)


def legacy_clustering(data, encoder, **settings: Any) -> dict[str, Any]:
    columns = {
        "sentences": [[data.texts[row] for row in part] for part in data.parts],
        "labels": [[data.labels[row] for row in part] for part in data.parts],
    }
    base = abstasks.AbsTaskClusteringLegacy
    return evaluate(
        base, "Clustering", _split(columns), encoder, main_score="v_measure", **settings
    )


def bitext(data, encoder) -> dict[str, Any]:
    """As in BUCC: the first side holds the gold pairs' sentences only."""
    columns = {
        "sentence1": [data.sentences1[row] for row, _ in data.gold],
        "sentence2": list(data.sentences2),
        "gold": list(data.gold),
    }
    base = abstasks.AbsTaskBitextMining
    return evaluate(base, "BitextMining", {"test": columns}, encoder, main_score="f1")


def summarization(data, encoder) -> dict[str, Any]:
    columns = {
        "text": data.texts,
        "human_summaries": data.human,
        "machine_summaries": data.machine,
        "relevance": data.scores,
    }
    settings = {"main_score": "cosine_spearman", "min_score": 0, "max_score": 5}
    base = abstasks.AbsTaskSummarization
    return evaluate(base, "Summarization", _split(columns), encoder, **settings)


def retrieval(data, encoder, **settings: Any) -> dict[str, Any]:
    """Titles are in the texts already, as in our sets; reranking where there are candidates."""
    split = _retrieval(data.corpus, data.queries, data.qrels, data.candidates or None)
    settings = {"main_score": "ndcg_at_10", **settings}
    base = abstasks.AbsTaskRetrieval
    return evaluate(base, "Retrieval", {"default": {"test": split}}, encoder, **settings)


def instruction(data, encoder) -> dict[str, Any]:
    """FollowIR's ids where instructions are changed, else InstructIR's; shuffled instructions."""
    names = ("-og", "-changed") if data.changed else [f"_{i}" for i in range(100)]
    runs = [(q, i) for q in data.queries for i in range(len(data.instructions[q]))]
    split = _retrieval(
        data.corpus,
        {f"{q}{names[i]}": data.queries[q] for q, i in runs},
        {f"{q}{names[i]}": data.qrels[q][i] for q, i in runs},
        {f"{q}{names[i]}": data.candidates[q] for q, i in runs} if data.candidates else None,
        [data.instructions[q][i] for q, i in runs],
    )
    fell = {
        q: [d for d, grade in data.qrels[q][0].items() if grade > data.qrels[q][1].get(d, 0)]
        for q in data.queries
        if data.changed
    }

    def specific(self, scores, qrels, results, hf_split, hf_subset):
        if data.changed:
            return evaluate_p_mrr_change(qrels, results, fell, self.k_values)
        return {"robustness_at_10": robustness_at_10(qrels, results, scores)}

    return evaluate(
        abstasks.AbsTaskRetrieval,
        "InstructionRetrieval",
        {"default": {"test": split}},
        encoder,
        main_score="ndcg_at_10",
        task_specific_scores=specific,
    )


def _retrieval(
    corpus: Mapping, queries: Mapping, qrels: Mapping, candidates, instructions=None
) -> dict:
    asked = {"id": list(queries), "text": list(queries.values())}
    if instructions is not None:
        asked["instruction"] = instructions
    return {
        "corpus": _rows({"id": list(corpus), "text": list(corpus.values())}),
        "queries": _rows(asked),
        "relevant_docs": {query: dict(judged) for query, judged in qrels.items()},
        "top_ranked": {query: list(names) for query, names in candidates.items()}
        if candidates
        else None,
    }


def _split(columns: dict[str, Any]) -> DatasetDict:
    return DatasetDict(test=_rows(columns))


def _rows(columns: dict[str, Any]) -> Dataset:
    return Dataset.from_dict({name: list(column) for name, column in columns.items()})
