"""Our data sets as mteb's tasks, under names of their own.

A local copy may have another split, fewer rows or other preprocessing, so its score is never that
of the official task (SILENT row 28): its name starts with "Local" and ends in a hash of what is
scored, its revision is the data's sha256. mteb's cache looks up scores by name and ignores the
revision, so an edited file must get another name.
"""

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from datasets import Dataset
from mteb._evaluators import retrieval_metrics
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskClusteringLegacy,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
    AbsTaskSummarization,
)
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import get_task
from mteb.languages import check_language_code

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import ClusteringSet, TaskSet
from polyvec.embed.inputs.templates import ROLES
from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.mteb_bridge.instructed import changed_documents, instructed
from polyvec.evaluate.mteb_bridge.prompts import LOCAL

ENGLISH = ("eng-Latn",)


def local_task(
    data: TaskSet,
    *,
    name: str | None = None,
    languages: Sequence[str] | None = None,
    prompt: str | Mapping[str, str] | None = None,
    adapted_from: str | None = None,
    seed: int = 42,
) -> AbsTask:
    """An mteb task for a data set of ours: mteb's protocol, with its own name and revision.

    `adapted_from` names the official task that the data is a copy of: the copy takes its
    instruction and languages, and the prompts that the model stores under its name. `prompt` is
    the task's instruction, for both sides or by side, `languages` are mteb's codes (eng-Latn).
    Raises DataError for a kind of task that mteb does not have.

    >>> from polyvec.data.tasks.sets import StsSet
    >>> pairs = StsSet("my-pairs", "test", ("a cat", "a cat"), ("a kitten", "a spoon"), (1.0, 0.0))
    >>> local_task(pairs).metadata.name
    'LocalMyPairs.5048bef6'
    """
    if data.kind not in TASKS:
        raise DataError(f"mteb has no task of kind {data.kind!r}.{known(data.kind, TASKS)}")
    base, kind = TASKS[data.kind].of(data), KINDS[data.kind]
    official: Any = _official(adapted_from) if adapted_from else None
    if official is not None:
        prompt = official.prompt if prompt is None else prompt
        languages = official.bcp47_codes if languages is None else languages
    digest = _digest(data, prompt, adapted_from, seed)
    label = _label(name or data.name) + "." + digest[:8]
    metadata = TaskMetadata(
        name=label,
        description=f"{data.name}, split {data.split}: a local data set, not an official task.",
        dataset={"path": LOCAL + label, "revision": data.sha256 or digest},
        prompt=_prompt(prompt),
        type=kind.mteb_type,  # type: ignore[arg-type]
        category="t2c" if kind.name in ("classification", "clustering") else "t2t",
        eval_splits=[data.split],
        eval_langs=_languages(languages),
        main_score=mteb_measure(kind.main_measure),
        adapted_from=[adapted_from] if adapted_from else None,
    )
    cls = type(_label(name or data.name), (base,), {"metadata": metadata, "data": data})
    task: AbsTask = cls(seed=seed)
    return task


class _Local(AbsTask):
    """A task whose data is in memory; `columns` returns it in mteb's form."""

    data: Any

    def __init__(self, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.configure()

    @classmethod
    def of(cls, data: Any) -> "type[_Local]":
        """The class for the data: itself, unless the kind has several protocols."""
        return cls

    def configure(self) -> None:
        """Sets what mteb's protocol reads from the task and the data decides."""

    def columns(self) -> Any:
        raise NotImplementedError

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        if self.data_loaded:
            return
        self.rng_state = random.Random(self.seed)  # the same draws for each model
        self.dataset = self.columns()
        self.data_loaded = True


class _Sts(_Local, AbsTaskSTS):
    def configure(self) -> None:
        # mteb only scales by these, which does not change a correlation.
        self.min_score, self.max_score = min(self.data.scores), max(self.data.scores)

    def columns(self) -> Any:
        pairs = {"sentence1": self.data.sentences1, "sentence2": self.data.sentences2}
        return {self.data.split: _table(**pairs, score=self.data.scores)}


class _Pairs(_Local, AbsTaskPairClassification):
    def columns(self) -> Any:
        pairs = {"sentence1": self.data.sentences1, "sentence2": self.data.sentences2}
        return {self.data.split: _table(**pairs, labels=self.data.labels)}


class _Classification(_Local, AbsTaskClassification):
    def configure(self) -> None:
        self.samples_per_label = self.data.samples_per_label
        self.train_split = "train" if self.data.split != "train" else "train part"

    def columns(self) -> Any:
        found = {*self.data.train_labels, *self.data.labels}
        whole = all(re.fullmatch(r"-?\d+", label) for label in found)
        code = {label: i for i, label in enumerate(sorted(found, key=int if whole else str))}
        parts = {
            self.train_split: (self.data.train_texts, self.data.train_labels),
            self.data.split: (self.data.texts, self.data.labels),
        }
        return {
            split: _table(text=texts, label=[code[label] for label in labels])
            for split, (texts, labels) in parts.items()
        }


class _Clustering(_Local, AbsTaskClustering):
    """`protocol` "bootstrap": MTEB's fast clustering."""

    @classmethod
    def of(cls, data: ClusteringSet) -> type[_Local]:
        kinds: dict[str, type[_Local]] = {"bootstrap": cls, "sets": _ClusteringSets}
        if data.protocol not in kinds:
            raise SettingsError(
                f"{data.name}: protocol {data.protocol!r} is not known."
                + known(data.protocol, kinds)
            )
        return kinds[data.protocol]

    def configure(self) -> None:
        self.max_document_to_embed = self.data.max_texts
        self.max_fraction_of_documents_to_embed = self.data.fraction

    def columns(self) -> Any:
        return {self.data.split: _table(sentences=self.data.texts, labels=self.data.labels)}


class _ClusteringSets(_Local, AbsTaskClusteringLegacy):
    """`protocol` "sets": MTEB's first version."""

    def columns(self) -> Any:
        data = self.data
        parts = data.parts or (range(len(data.texts)),)
        sentences = [[data.texts[row] for row in part] for part in parts]
        labels = [[data.labels[row] for row in part] for part in parts]
        return {data.split: _table(sentences=sentences, labels=labels)}


class _Bitext(_Local, AbsTaskBitextMining):
    def columns(self) -> Any:
        """As in BUCC: the first side has only sentences with a gold pair, in that order."""
        data = self.data
        first = [data.sentences1[row] for row, _ in data.gold]
        gold = list(data.gold)
        return {data.split: {"sentence1": first, "sentence2": list(data.sentences2), "gold": gold}}


class _Summarization(_Local, AbsTaskSummarization):
    def configure(self) -> None:
        scores = [score for each in self.data.scores for score in each]
        self.min_score, self.max_score = min(scores), max(scores)

    def columns(self) -> Any:
        data = self.data
        summaries = {"human_summaries": data.human, "machine_summaries": data.machine}
        return {data.split: _table(text=data.texts, **summaries, relevance=data.scores)}


class _Ranking(_Local, AbsTaskRetrieval):
    def _split(
        self,
        corpus: Mapping[str, str],
        queries: Mapping[str, Any],
        qrels: Mapping[str, Mapping[str, int]],
        candidates: Mapping[str, Sequence[str]] | None,
    ) -> Any:
        split = {
            "corpus": _table(id=corpus.keys(), text=corpus.values()),
            "queries": _table(**queries),
            "relevant_docs": {query: dict(judged) for query, judged in qrels.items()},
            "top_ranked": candidates,
        }
        return {"default": {self.data.split: split}}


class _Retrieval(_Ranking):
    """All documents are ranked, or only the candidates of each query (reranking)."""

    def configure(self) -> None:
        self.ignore_identical_ids = bool(self.data.identical)

    def columns(self) -> Any:
        data, corpus = self.data, self.data.corpus
        ids = {query: self._query_id(query) for query in data.queries}
        candidates = self._candidates(ids)
        if data.candidates:
            needed = {document for documents in candidates.values() for document in documents}
            corpus = {key: text for key, text in corpus.items() if key in needed}
        queries = {"id": ids.values(), "text": data.queries.values()}
        qrels = {ids[query]: judged for query, judged in data.qrels.items()}
        return self._split(corpus, queries, qrels, candidates)

    def _query_id(self, query: str) -> str:
        """The id for mteb, which drops documents with the query's id, usually other texts."""
        clash = query in self.data.corpus and query not in self.data.identical
        return f"query {query}" if clash else query

    def _candidates(self, ids: dict[str, str]) -> Any:
        """Documents to rank for each query; None for all documents."""
        data = self.data
        if not data.candidates and not data.excluded:
            return None
        found = {}
        for query, new in ids.items():
            near = data.candidates.get(query, ()) if data.candidates else data.corpus
            excluded = data.excluded.get(query, frozenset())
            found[new] = [document for document in dict.fromkeys(near) if document not in excluded]
        return found


class _Instructed(_Ranking):
    """Queries under instructions, measured by InstructIR's robustness@10."""

    def columns(self) -> Any:
        queries, qrels, candidates = instructed(self.data)
        return self._split(self.data.corpus, queries, qrels, candidates)

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> Any:
        return {"robustness_at_10": retrieval_metrics.robustness_at_10(qrels, results, scores)}


class _Narrowed(_Instructed):
    """Queries under an instruction and a narrower one, measured by FollowIR's p-MRR."""

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> Any:
        changed = changed_documents(self.data)
        return retrieval_metrics.evaluate_p_mrr_change(qrels, results, changed, self.k_values)


# By the kind's name in data/tasks/kinds.py; conditional_sts has no counterpart in mteb.
TASKS: dict[str, type[_Local]] = {
    "sts": _Sts,
    "pair_classification": _Pairs,
    "bitext_mining": _Bitext,
    "summarization": _Summarization,
    "classification": _Classification,
    "clustering": _Clustering,
    "retrieval": _Retrieval,
    "reranking": _Retrieval,
    "instruction_retrieval": _Instructed,
    "instruction_reranking": _Narrowed,
}


def mteb_measure(name: str) -> str:
    """What mteb calls a main measure of ours.

    >>> mteb_measure("ndcg@10"), mteb_measure("map")
    ('ndcg_at_10', 'map_at_1000')
    """
    return {"map": "map_at_1000", "p_mrr": "p-MRR"}.get(name, name.replace("@", "_at_"))


def _table(**columns: Any) -> Dataset:
    return Dataset.from_dict({name: list(values) for name, values in columns.items()})


def _official(name: str) -> TaskMetadata:
    try:
        return get_task(name).metadata
    except KeyError as error:
        reason = str(error.args[0]).removeprefix("KeyError: ")
        raise SettingsError(f"adapted_from: mteb task {reason}") from None


def _prompt(words: str | Mapping[str, str] | None) -> Any:
    if words is None or isinstance(words, str):
        return words
    for side in words:
        if side not in ROLES:
            raise SettingsError(f"prompt: side {side!r} is not known.{known(side, ROLES)}")
    return dict(words)


def _languages(codes: Sequence[str] | None) -> list[str]:
    codes = [codes] if isinstance(codes, str) else list(codes or ENGLISH)
    for code in codes:
        try:
            check_language_code(code)
        except ValueError as error:
            raise SettingsError(
                f"languages: {error} Expected mteb's codes, such as eng-Latn."
            ) from None
    return codes


def _label(name: str) -> str:
    """A class name that starts with "Local", as that of no official task does.

    >>> _label("sts12"), _label("LocalSTS12"), _label("my pairs/v2")
    ('LocalSts12', 'LocalSTS12', 'LocalMyPairsV2')
    """
    words = re.split(r"[\W_]+", name.removeprefix("Local"))
    return "Local" + "".join(word[:1].upper() + word[1:] for word in words)


def _digest(data: TaskSet, *settings: Any) -> str:
    """Hash of everything that decides the score; `sha256` alone is that of the whole file."""
    names = sorted({f.name for f in fields(data)} - {"name"})
    content = {name: getattr(data, name) for name in names}
    plain = json.dumps([data.kind, content, settings], default=sorted)
    return hashlib.sha256(plain.encode()).hexdigest()
