"""Our data sets as mteb's tasks, under names of their own.

A local copy may be another split, a subset, or preprocessed otherwise, so that its score is never
one of the official task (SILENT row 28): its name begins with "Local" and ends in a hash of what is
scored, its revision is the data's sha256. mteb's cache finds scores by the name, and does not look
at the revision when a score is there: an edited file must not have the old one's name.
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

from polyvec.data.tasks.sets import (
    BitextSet,
    ClassificationSet,
    ClusteringSet,
    InstructionSet,
    PairSet,
    RetrievalSet,
    StsSet,
    SummarySet,
)
from polyvec.embed.inputs.templates import ROLES
from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.mteb_bridge.instructed import changed_documents, instructed
from polyvec.evaluate.mteb_bridge.prompts import LOCAL

ENGLISH = ("eng-Latn",)


def local_task(
    data: Any,
    *,
    name: str | None = None,
    languages: Sequence[str] | None = None,
    prompt: str | Mapping[str, str] | None = None,
    adapted_from: str | None = None,
    seed: int = 42,
) -> AbsTask:
    """An mteb task of a data set of ours; official tasks' protocol, its own name and revision.

    `adapted_from` names the official task that the data is a copy of: its instruction and
    languages are taken over, and prompts that the model stores under its name. `prompt` is the
    task's instruction, for both sides or by side, `languages` mteb's codes (eng-Latn).
    Raises DataError for a set that mteb has no kind of task for.

    >>> pairs = PairSet("my-pairs", "test", ("a cat", "a cat"), ("a kitten", "a spoon"), (1, 0))
    >>> local_task(pairs).metadata.name
    'LocalMyPairs.4417eb2d'
    """
    if type(data) not in TASKS:
        names = ", ".join(sorted(each.__name__ for each in TASKS))
        raise DataError(f"mteb has no task for {type(data).__name__}. Known: {names}.")
    kind = TASKS[type(data)].of(data)
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
        type=kind.type_name,
        category="t2c" if kind.type_name in ("Classification", "Clustering") else "t2t",
        eval_splits=[data.split],
        eval_langs=_languages(languages),
        main_score=kind.main_score,
        adapted_from=[adapted_from] if adapted_from else None,
    )
    cls = type(_label(name or data.name), (kind,), {"metadata": metadata, "data": data})
    return cls(seed=seed)


class _Local(AbsTask):
    """A task whose data is at hand; `columns` says how mteb wants it."""

    data: Any
    type_name: Any
    main_score: str

    def __init__(self, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.configure()

    @classmethod
    def of(cls, data: Any) -> "type[_Local]":
        """The class for this very data."""
        return cls

    def configure(self) -> None:
        """Settings of mteb's protocol that the data decides."""

    def columns(self) -> Any:
        raise NotImplementedError

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        if self.data_loaded:
            return
        self.rng_state = random.Random(self.seed)  # each model gets the same draws
        self.dataset = self.columns()
        self.data_loaded = True


class _Sts(_Local, AbsTaskSTS):
    type_name, main_score = "STS", "spearman"

    def configure(self) -> None:
        # Only for scaling, which no correlation sees.
        self.min_score, self.max_score = min(self.data.scores), max(self.data.scores)

    def columns(self) -> Any:
        pairs = {"sentence1": self.data.sentences1, "sentence2": self.data.sentences2}
        return {self.data.split: _table(**pairs, score=self.data.scores)}


class _Pairs(_Local, AbsTaskPairClassification):
    type_name, main_score = "PairClassification", "max_ap"

    def columns(self) -> Any:
        pairs = {"sentence1": self.data.sentences1, "sentence2": self.data.sentences2}
        return {self.data.split: _table(**pairs, labels=self.data.labels)}


class _Classification(_Local, AbsTaskClassification):
    type_name, main_score = "Classification", "accuracy"

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

    type_name, main_score = "Clustering", "v_measure"

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

    type_name, main_score = "Clustering", "v_measure"

    def columns(self) -> Any:
        data = self.data
        parts = data.parts or (range(len(data.texts)),)
        sentences = [[data.texts[row] for row in part] for part in parts]
        labels = [[data.labels[row] for row in part] for part in parts]
        return {data.split: _table(sentences=sentences, labels=labels)}


class _Bitext(_Local, AbsTaskBitextMining):
    type_name, main_score = "BitextMining", "f1"

    def columns(self) -> Any:
        """As BUCC's: of the first side the sentences that have a translation, in gold's order."""
        data = self.data
        first = [data.sentences1[row] for row, _ in data.gold]
        gold = list(data.gold)
        return {data.split: {"sentence1": first, "sentence2": list(data.sentences2), "gold": gold}}


class _Summarization(_Local, AbsTaskSummarization):
    type_name, main_score = "Summarization", "spearman"

    def configure(self) -> None:
        scores = [score for each in self.data.scores for score in each]
        self.min_score, self.max_score = min(scores), max(scores)

    def columns(self) -> Any:
        data = self.data
        summaries = {"human_summaries": data.human, "machine_summaries": data.machine}
        return {data.split: _table(text=data.texts, **summaries, relevance=data.scores)}


class _Ranking(_Local, AbsTaskRetrieval):
    def _split(self, corpus: dict, queries: dict, qrels: dict, candidates: dict | None) -> Any:
        split = {
            "corpus": _table(id=corpus.keys(), text=corpus.values()),
            "queries": _table(**queries),
            "relevant_docs": {query: dict(judged) for query, judged in qrels.items()},
            "top_ranked": candidates,
        }
        return {"default": {self.data.split: split}}


class _Retrieval(_Ranking):
    type_name, main_score = "Retrieval", "ndcg_at_10"

    @classmethod
    def of(cls, data: RetrievalSet) -> type[_Local]:
        return _Reranking if data.candidates else cls

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
        """mteb leaves out documents with the query's id; most of the time that is another text."""
        chance = query in self.data.corpus and query not in self.data.identical
        return f"query {query}" if chance else query

    def _candidates(self, ids: dict[str, str]) -> Any:
        """Documents to rank by query; None: all of them."""
        data = self.data
        if not data.candidates and not data.excluded:
            return None
        found = {}
        for query, new in ids.items():
            near = data.candidates.get(query, ()) if data.candidates else data.corpus
            left_out = data.excluded.get(query, frozenset())
            found[new] = [document for document in dict.fromkeys(near) if document not in left_out]
        return found


class _Reranking(_Retrieval):
    """Retrieval among the candidates of each query."""

    type_name, main_score = "Reranking", "map_at_1000"


class _Instructed(_Ranking):
    """Queries under instructions: InstructIR's robustness@10, or FollowIR's p-MRR."""

    type_name, main_score = "InstructionRetrieval", "robustness_at_10"

    @classmethod
    def of(cls, data: InstructionSet) -> type[_Local]:
        return _Narrowed if data.changed else cls

    def columns(self) -> Any:
        queries, qrels, candidates = instructed(self.data)
        return self._split(self.data.corpus, queries, qrels, candidates)

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> Any:
        return {"robustness_at_10": retrieval_metrics.robustness_at_10(qrels, results, scores)}


class _Narrowed(_Instructed):
    type_name, main_score = "InstructionReranking", "p-MRR"

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> Any:
        changed = changed_documents(self.data)
        return retrieval_metrics.evaluate_p_mrr_change(qrels, results, changed, self.k_values)


TASKS: dict[type, type[_Local]] = {
    StsSet: _Sts,
    RetrievalSet: _Retrieval,
    ClassificationSet: _Classification,
    ClusteringSet: _Clustering,
    PairSet: _Pairs,
    BitextSet: _Bitext,
    SummarySet: _Summarization,
    InstructionSet: _Instructed,
}


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
            raise SettingsError(f"languages: {error} mteb's codes are like eng-Latn.") from None
    return codes


def _label(name: str) -> str:
    """A class name that begins with "Local": no official task's does.

    >>> _label("sts12"), _label("LocalSTS12"), _label("my pairs/v2")
    ('LocalSts12', 'LocalSTS12', 'LocalMyPairsV2')
    """
    words = re.split(r"[\W_]+", name.removeprefix("Local"))
    return "Local" + "".join(word[:1].upper() + word[1:] for word in words)


def _digest(data: Any, *settings: Any) -> str:
    """Hash of all that decides a score here; a subset of a file keeps the file's sha256."""
    content = {f.name: getattr(data, f.name) for f in fields(data) if f.name != "name"}
    plain = json.dumps([type(data).__name__, content, settings], default=sorted)
    return hashlib.sha256(plain.encode()).hexdigest()
