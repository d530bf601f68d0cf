"""Experiments of training_effects.py about what stands around the text: examples, instructions.

The functions take the classes Arm and Experiment, so that training_effects may import this file.
BGE-ICL and RARe: the same stage with and without demonstrations, each model measured with and
without them. Promptriever: the same subjects without instructions, with them, and with negatives
that are wrong under the instruction only. `sets.folder` is the folder of data sets.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruction_following import held_out, measured

from polyvec import Embedder
from polyvec.data.tasks.sets import RetrievalSet
from polyvec.data.training.instructions import stored_instruction
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import training_sets
from polyvec.embed.inputs.demonstrations import Example, ExamplePool
from polyvec.evaluate.measures.ranking import per_query
from polyvec.train.settings import StageSettings
from polyvec.train.tasks.examples import demonstrations

Table = Mapping[str, Any]
Choose = Callable[[str], Sequence[Example]]
INFO_NCE = [{"kind": "info_nce", "temperature": 0.05}]
# Without SciFact, which is measured as a task that training does not have.
ASKED = (
    {"name": "snli", "limit": 8_000, "instructed": True},
    {"name": "quora_pairs", "limit": 8_000, "instructed": True},
    {"name": "squad_qg_pairs", "instructed": True},
    {"name": "medquad", "limit": 8_000, "instructed": True},
)
K = 3
SHORT = {"query_length": 32, "document_length": 48, "total_length": 200}
QUERY_LENGTH = 256
# Shown at measuring: as many sets of K fixed examples, whose scores are averaged.
NUM_DRAWS = 3


def scl(**more: Any) -> Table:
    return {
        "kind": "scl",
        "data": ASKED,
        "losses": INFO_NCE,
        # Rows with equal texts (a subject's aspects) would end up in batches of one.
        "mixing": {"drop_last": True},
        "batch_size": 64,
        "max_length": 128,
        "query_max_length": QUERY_LENGTH,
        "warmup_steps": 0.1,
        **more,
    }


# ---- demonstrations -----------------------------------------------------------------------------


def bge_icl(arm: Any, experiment: Any) -> Any:
    """Examples drawn from the batch; at measuring the same few for all queries of a task."""
    shown = {"kind": "in_batch", "k": K, **SHORT}
    return experiment(
        "BGE-ICL, arXiv:2409.15700",
        _with_and_without(arm, "bge-icl", shown, fixed),
        _claims("a few fixed ones"),
        columns=("stsb test", "med"),
    )


def rare(arm: Any, experiment: Any) -> Any:
    """Examples nearest by BM25, in training and at measuring; a third of the queries has none."""
    shown = {"kind": "nearest", "k": K, "without": 0.3, **SHORT}
    return experiment(
        "RARe, arXiv:2410.20088",
        _with_and_without(arm, "rare", shown, nearest),
        _claims("the nearest"),
        columns=("stsb test", "med"),
    )


def _with_and_without(arm: Any, recipe: str, shown: Table, choose: Any) -> dict[str, Any]:
    measure = functools.partial(examples_effect, choose=choose)
    return {
        "untrained": arm(recipe, {}, (), measure),
        "trained without examples": arm(recipe, {}, [scl()], measure),
        "trained with examples": arm(recipe, {}, [scl(examples=shown)], measure),
    }


def _claims(which: str) -> Sequence[tuple[Any, ...]]:
    return (
        (
            "trained with examples",
            "trained without examples",
            f"shown examples ({which}) help a model that was trained with them",
            (", gain",),
        ),
        ("trained with examples", "untrained", "training helps"),
    )


def examples_effect(model: Any, sets: Any, *, choose: Any) -> dict[str, float]:
    """nDCG@10 of two tasks with and without examples, and the gain.

    SciFact is a task that training does not have (its training claims are the examples); of
    MedQuAD other questions were seen.
    """
    tasks = {
        "scifact": (sets.tasks["scifact"], "scifact"),
        "medquad": (
            medquad_questions(sets.folder, *((1000, 300) if sets.large else (300, 100))),
            "medquad",
        ),
    }
    found = {}
    for column, (task, name) in tasks.items():
        pool = examples_of(name, task, sets.folder)
        instruction = stored_instruction(name).instruction
        without, shown = retrieval_scores(model, task, instruction, choose(pool))
        found |= {column: without, f"{column}, with examples": shown}
        found[f"{column}, gain"] = shown - without
    return found


def examples_of(name: str, task: RetrievalSet, folder: Path) -> list[Example]:
    """The training rows of a named set as examples, but none with a document that is asked for."""
    relevant = {
        task.corpus[number]
        for query in task.queries
        for number, grade in task.qrels[query].items()
        if grade > 0 and number in task.corpus
    }
    (found,) = training_sets({"name": name}, folder)
    return [
        Example(row.query, row.positives[0])
        for row in found.rows
        if row.positives[0] not in relevant
    ]


def fixed(pool: Sequence[Example]) -> list[Choose]:
    """Several draws of K examples, each the same for all queries of the task."""
    chosen = [random.Random(draw).sample(list(pool), K) for draw in range(NUM_DRAWS)]
    return [lambda text, examples=tuple(each): examples for each in chosen]


def nearest(pool: Sequence[Example]) -> list[Choose]:
    """The K examples that BM25 finds for a query, the nearest last."""
    searched = ExamplePool(pool)
    return [lambda text: searched.nearest(text, K)]


def retrieval_scores(
    model: Embedder, task: RetrievalSet, instruction: str, choices: Sequence[Choose]
) -> tuple[float, float]:
    """nDCG@10 without examples, and the mean over ways of choosing them."""
    documents = model.encode(
        list(task.corpus.values()), role="document", truncate="silent", show_progress_bar=False
    )
    texts = list(task.queries.values())
    scores = []
    # Cut and left out as while training.
    stage = StageSettings("scl", query_max_length=QUERY_LENGTH)
    shown = demonstrations({"kind": "in_batch", **SHORT}, model, stage)
    fitting = [
        lambda text, choose=choose: shown.fitting(
            [shown.cut(each) for each in choose(text)], instruction
        )
        for choose in choices
    ]
    for examples in ((), *fitting):
        queries = model.encode(
            texts,
            role="query",
            prompt=instruction,
            examples=examples,
            truncate="silent",
            show_progress_bar=False,
        )
        similar = model.similarity(queries, documents).numpy()
        run = {
            query: dict(zip(task.corpus, row.tolist(), strict=True))
            for query, row in zip(task.queries, similar, strict=True)
        }
        by_query = per_query(task.qrels, run, "ndcg@10")
        scores.append(sum(by_query.values()) / len(by_query))
    return scores[0], sum(scores[1:]) / len(choices)


def medquad_questions(folder: Path, num_documents: int, num_queries: int) -> Any:
    """Questions that training leaves out, and their answers."""
    (found,) = training_sets({"name": "medquad", "part": "held_out"}, folder)
    rows: list[TrainingRow] = sorted(found.rows, key=lambda row: row.place)
    rows = random.Random(0).sample(rows, min(num_documents, len(rows)))
    ids: dict[str, str] = {}
    for row in rows:
        ids.setdefault(row.positives[0], f"d{len(ids)}")
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows[:num_queries]):
        queries[f"q{number}"] = row.query
        qrels[f"q{number}"] = {
            ids[each.positives[0]]: 1 for each in rows if each.query == row.query
        }
    corpus = {number: text for text, number in ids.items()}
    return RetrievalSet("medquad", "held_out", corpus, queries, qrels)


FOLLOWS = ("right aspect", "p-MRR")

# ---- instructions -------------------------------------------------------------------------------


def promptriever(arm: Any, experiment: Any) -> Any:
    """The same subjects and answers; what differs is the instruction and its negatives."""
    subjects = {"name": "medquad_instructions"}
    alone = {**subjects, "instruction": "", "num_negatives": 0}
    stages = {
        "no instructions": scl(data=(alone,)),
        "instructions": scl(data=({**subjects, "num_negatives": 0},)),
        "instructions and their negatives": scl(data=({**subjects, "num_negatives": 3},)),
    }
    arms = {"untrained": arm("promptriever", {}, (), following)}
    arms |= {name: arm("promptriever", {}, [stage], following) for name, stage in stages.items()}
    return experiment(
        "Promptriever, arXiv:2409.11136",
        arms,
        (
            (
                "instructions and their negatives",
                "instructions",
                "negatives under the instruction teach the model to follow it",
                FOLLOWS,
            ),
            ("instructions", "no instructions", "instructions alone teach a part of it", FOLLOWS),
            ("no instructions", "untrained", "training alone finds the subject", ("nDCG@10",)),
        ),
        columns=("stsb test", "med"),
    )


def following(model: Any, sets: Any) -> dict[str, float]:
    """How the model follows instructions about subjects that no stage saw."""
    return measured(model, held_out(sets.folder, None if sets.large else 40))
