"""The kinds of tasks: one table, the only place that spells their names.

To add a kind: a file beside this one with its dataclass and the reader of its files, an entry
here, and a file in evaluate/protocols/ with the function that measures it, both of the kind's name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from polyvec.data.tasks import readers, retrieval
from polyvec.data.tasks.sets import TaskSet
from polyvec.data.tasks.source import TaskFiles
from polyvec.errors import DataError, known


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """One kind of task: how its files are read, what it is scored by, and its names.

    `main_measure` and `mteb_type` are MTEB's main score and type of task. `heading` and `items`
    (singular, plural) are for reports. A folder whose `<split>.jsonl` has all `fields` is of this
    kind; with `trains` it needs a train.jsonl, too. Ranked kinds have no `fields`, but a folder
    qrels/. `draws` means that the protocol draws samples and takes a seed. `aliases` are former
    names. `protocol` is the kind whose protocol measures this one, if it has none of its own.
    Two models can be compared item by item unless `by_item` is false.
    """

    name: str
    read: Callable[[TaskFiles], TaskSet]
    main_measure: str
    mteb_type: str
    heading: str
    items: tuple[str, str]
    fields: tuple[str, ...] = ()
    trains: bool = False
    draws: bool = False
    aliases: tuple[str, ...] = ()
    protocol: str = ""
    by_item: bool = True


PAIRS, TEXTS, QUERIES = ("pair", "pairs"), ("text", "texts"), ("query", "queries")

# Kinds with more fields come first: a folder is of the first kind whose fields it has.
KINDS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (
        TaskKind(
            name="conditional_sts",
            read=readers.conditional_sts,
            main_measure="spearman",
            mteb_type="STS",
            heading="Conditional similarity",
            items=PAIRS,
            fields=("sentence1", "sentence2", "condition", "score"),
        ),
        TaskKind(
            name="sts",
            read=readers.sts,
            main_measure="spearman",
            mteb_type="STS",
            heading="Semantic textual similarity",
            items=PAIRS,
            fields=("sentence1", "sentence2", "score"),
        ),
        TaskKind(
            name="pair_classification",
            read=readers.pair_classification,
            main_measure="max_ap",
            mteb_type="PairClassification",
            heading="Pair classification",
            items=PAIRS,
            fields=("sentence1", "sentence2", "label"),
            aliases=("pair",),
        ),
        TaskKind(
            name="bitext_mining",
            read=readers.bitext_mining,
            main_measure="f1",
            mteb_type="BitextMining",
            heading="Bitext mining",
            items=PAIRS,
            fields=("sentence1", "sentence2"),
            aliases=("bitext",),
        ),
        TaskKind(
            name="summarization",
            read=readers.summarization,
            main_measure="spearman",
            mteb_type="Summarization",
            heading="Summarization",
            items=TEXTS,
            fields=("text", "human_summaries", "machine_summaries"),
            aliases=("summary",),
        ),
        TaskKind(
            name="classification",
            read=readers.classification,
            main_measure="accuracy",
            mteb_type="Classification",
            heading="Classification",
            items=TEXTS,
            fields=("text", "label"),
            trains=True,
            draws=True,
        ),
        TaskKind(
            name="clustering",
            read=readers.clustering,
            main_measure="v_measure",
            mteb_type="Clustering",
            heading="Clustering",
            items=TEXTS,
            fields=("text", "label"),
            draws=True,
            by_item=False,
        ),
        TaskKind(
            name="retrieval",
            read=retrieval.retrieval,
            main_measure="ndcg@10",
            mteb_type="Retrieval",
            heading="Retrieval",
            items=QUERIES,
        ),
        TaskKind(
            name="reranking",
            read=retrieval.reranking,
            main_measure="map",
            mteb_type="Reranking",
            heading="Reranking",
            items=QUERIES,
        ),
        TaskKind(
            name="instruction_retrieval",
            read=retrieval.instruction_retrieval,
            main_measure="robustness@10",
            mteb_type="InstructionRetrieval",
            heading="Instruction retrieval",
            items=QUERIES,
            aliases=("instruction",),
        ),
        TaskKind(
            name="instruction_reranking",
            read=retrieval.instruction_retrieval,
            main_measure="p_mrr",
            mteb_type="InstructionReranking",
            protocol="instruction_retrieval",
            heading="Instruction reranking",
            items=QUERIES,
        ),
    )
}


def find_kind(name: str) -> TaskKind | None:
    """The kind of a name, in any spelling: "pair-classification" and "PairClassification" too."""
    plain = _plain(name)
    for kind in KINDS.values():
        if plain in map(_plain, (kind.name, *kind.aliases)):
            return kind
    return None


def task_kind(name: str, where: str) -> TaskKind:
    """The kind of a name; DataError that starts with `where` if there is none."""
    found = find_kind(name)
    if found is None:
        raise DataError(f"{where}: kind of task {name!r} is not known.{known(name, KINDS)}")
    return found


def _plain(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())
