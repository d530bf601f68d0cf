"""Local data in mteb's tasks and in our own protocols: the same numbers."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import (
    BitextMiningSet,
    ClassificationSet,
    ClusteringSet,
    InstructionRetrievalSet,
    PairClassificationSet,
    RetrievalSet,
    StsSet,
    SummarizationSet,
)
from polyvec.data.texts import find_file, read_jsonl
from polyvec.evaluate import protocols
from polyvec.evaluate.encoder import TaskEncoder

pytest.importorskip("mteb", reason="needs the extra 'mteb'")

from datasets import disable_progress_bars

from polyvec.evaluate.mteb_bridge import local_task, run_mteb
from polyvec.evaluate.mteb_bridge.local import TASKS

# Each test evaluates twice, once by mteb.
pytestmark = pytest.mark.medium

disable_progress_bars()
QUIET = {"show_progress_bar": False, "co2_tracker": False}


def rows(folder: Path, name: str, **where) -> list[dict]:
    found = (row for _, row in read_jsonl(find_file(folder, f"{name}.jsonl")))
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def part(data: RetrievalSet, num_queries: int, num_others: int) -> RetrievalSet:
    """The first queries, what is relevant to them, and some other documents."""
    queries = dict(itertools.islice(data.queries.items(), num_queries))
    qrels = {query: data.qrels[query] for query in queries}
    keep = {name for judged in qrels.values() for name in judged} | data.identical & set(queries)
    keep |= set(itertools.islice(data.corpus, num_others))
    corpus = {name: text for name, text in data.corpus.items() if name in keep}
    identical = data.identical & set(queries)
    return replace(data, corpus=corpus, queries=queries, qrels=qrels, identical=identical)


def sts(data: Path) -> StsSet:
    whole = read_folder(data / "sts12")
    a, b, gold = whole.sentences1[:80], whole.sentences2[:80], whole.scores[:80]
    return replace(whole, sentences1=a, sentences2=b, scores=gold)


def retrieval(data: Path) -> RetrievalSet:
    return part(read_folder(data / "scifact"), 20, 80)


def queries_that_are_documents(data: Path) -> RetrievalSet:
    """And one whose id is by chance that of another text, of all texts the one it should find."""
    found = part(read_folder(data / "arguana"), 8, 30)
    query, *_ = found.identical
    (other,) = found.qrels[query]
    found.queries[other], found.qrels[other] = found.queries[query], found.qrels.pop(query)
    del found.queries[query]
    return replace(found, identical=found.identical - {query})


def excluded(data: Path) -> RetrievalSet:
    found = part(read_folder(data / "scifact"), 8, 60)
    some = frozenset(itertools.islice(found.corpus, 20))
    return replace(found, excluded=dict.fromkeys(found.queries, some))


def reranking(data: Path) -> RetrievalSet:
    found = part(read_folder(data / "birco" / "wtb"), 5, 0)
    near = {q: tuple(sorted(d, key=d.get, reverse=True)[:20]) for q, d in found.qrels.items()}
    return replace(found, candidates=near)


def classification(data: Path) -> ClassificationSet:
    folder = data / "banking77"
    labels = sorted({row["label"] for row in rows(folder, "test")})[:5]
    kept = {
        split: [row for row in rows(folder, split) if row["label"] in labels][::step]
        for split, step in (("train", 5), ("test", 3))
    }
    columns = [tuple(r[key] for r in kept[s]) for s in kept for key in ("text", "label")]
    return ClassificationSet("banking77", "test", *columns)


def two_labels(data: Path) -> ClassificationSet:
    kept = rows(data / "amazon_counterfactual", "en_test")[:120]
    texts = tuple(row["text"] for row in kept)
    labels = tuple(str(row["label"]) for row in kept)
    return ClassificationSet("acf", "test", texts[:60], labels[:60], texts[60:], labels[60:])


def clustering(data: Path) -> ClusteringSet:
    kept = rows(data / "short_text_clustering", "searchsnippets")[::80]
    texts, labels = (tuple(str(row[key]) for row in kept) for key in ("text", "label"))
    return ClusteringSet("snippets", "test", texts, labels, max_texts=120)


def clustering_in_sets(data: Path) -> ClusteringSet:
    found = clustering(data)
    parts = tuple(tuple(range(start, start + 40)) for start in (0, 40, 80))
    return replace(found, protocol="sets", parts=parts, max_texts=None)


def pairs(data: Path) -> PairClassificationSet:
    kept = rows(data / "pawsx", "test", lang="en")[:70]
    columns = [tuple(row[key] for row in kept) for key in ("sentence1", "sentence2", "label")]
    return PairClassificationSet("pawsx", "test", *columns)


def bitext(data: Path) -> BitextMiningSet:
    kept = rows(data / "tatoeba", "test", lang="fra")[:70]
    first, second = (tuple(row[key] for row in kept) for key in ("sentence1", "sentence2"))
    gold = tuple((row, row) for row in range(5, 70, 2))
    return BitextMiningSet("tatoeba", "test", first, second, gold)


def summaries(data: Path) -> SummarizationSet:
    kept = rows(data / "summeval", "test")[:3]
    machine = tuple(tuple(s["summary"] for s in row["machine_summaries"]) for row in kept)
    scores = tuple(tuple(s["relevance"] for s in row["machine_summaries"]) for row in kept)
    texts = tuple(row["source"] for row in kept)
    human = tuple(tuple(row["references"]) for row in kept)
    return SummarizationSet("summeval", "test", texts, human, machine, scores)


def short_queries(data: RetrievalSet) -> dict[str, str]:
    """So short that the instruction behind them is read, too."""
    return {query: " ".join(text.split()[:4]) for query, text in data.queries.items()}


def narrowed(data: Path) -> InstructionRetrievalSet:
    """FollowIR's kind: the second instruction makes documents less relevant, or not at all."""
    found = reranking(data)
    told = dict.fromkeys(found.queries, ("Any book that fits.", "No sequels, no book for boys!"))
    qrels = {}
    for query, judged in found.qrels.items():
        before = {name: i % 3 for i, name in enumerate(judged)}
        after = {name: max(0, grade - i % 2) for i, (name, grade) in enumerate(before.items())}
        qrels[query] = before, {name: grade for name, grade in after.items() if grade}
    return InstructionRetrievalSet(
        "follow",
        "test",
        found.corpus,
        short_queries(found),
        told,
        qrels,
        found.candidates,
        changed=True,
    )


def instructed(data: Path) -> InstructionRetrievalSet:
    """InstructIR's kind: each instruction has judgements of its own, all documents are ranked."""
    found = part(read_folder(data / "scifact"), 8, 60)
    told = dict.fromkeys(found.queries, ("for children", "for a doctor", "in short"))
    qrels = {
        query: (judged, {**judged, name: 2}, judged)
        for name, (query, judged) in zip(found.corpus, found.qrels.items(), strict=False)
    }
    return InstructionRetrievalSet(
        "instruct", "test", found.corpus, short_queries(found), told, qrels
    )


KINDS = {
    sts: 6,
    retrieval: 40,
    queries_that_are_documents: 40,
    excluded: 40,
    reranking: 40,
    classification: 7,
    two_labels: 9,
    clustering: 4,
    clustering_in_sets: 2,
    pairs: 30,
    bitext: 4,
    summaries: 6,
    narrowed: 40,
    instructed: 40,
}
OTHER_NAMES = {"p_mrr": "p-MRR", "robustness@10": "robustness_at_10"}


@pytest.fixture(scope="module")
def short(minilm_folder) -> Embedder:
    """MiniLM on the first words of each text: the scores of both paths are of the same vectors."""
    return Embedder.from_pretrained(minilm_folder, max_seq_length=16)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_mteb_and_our_path_find_the_same(make, short, minilm_folder, shared_data):
    data = make(shared_data)
    if make in (sts, pairs, summaries):
        # Texts that are equal once truncated tie, and rounding would order them: read more.
        short = Embedder.from_pretrained(minilm_folder, max_seq_length=96)
    task = local_task(data)
    options = {}
    if make is clustering:  # mteb's 16,384 draws take minutes
        task.max_documents_per_cluster, options = 512, {"draw_size": 512}
    outcome = protocols.run(TaskEncoder(short), data, **options)
    assert outcome.main_score != 0
    (result,) = run_mteb(short, task, **QUIET).task_results
    (theirs,) = result.scores[data.split]
    ours = {OTHER_NAMES.get(k, k.replace("@", "_at_")): v for k, v in outcome.scores.items()}
    ours = {("hit_rate" + k[8:] if k.startswith("accuracy_at") else k): v for k, v in ours.items()}
    both = sorted(ours.keys() & theirs.keys())
    assert len(both) >= KINDS[make]
    found = [[scores[name] for name in both] for scores in (ours, theirs)]
    assert_allclose(*found, atol=1e-4, err_msg=" ".join(both))
    assert_allclose(outcome.main_score, result.get_score(), atol=1e-4)


def test_every_kind_of_local_task_is_compared(shared_data):
    assert {make(shared_data).kind for make in KINDS} == set(TASKS)
