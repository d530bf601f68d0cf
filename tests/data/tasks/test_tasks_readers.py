"""From files to a task: the kind by its fields, and errors by file and line."""

import gzip
import json

import pytest

from polyvec.data.tasks.folder import read_folder, read_task
from polyvec.data.tasks.kinds import KINDS, find_kind
from polyvec.data.tasks.sets import (
    BitextMiningSet,
    ClassificationSet,
    ClusteringSet,
    ConditionalStsSet,
    InstructionRetrievalSet,
    PairClassificationSet,
    RetrievalSet,
    StsSet,
    SummarizationSet,
)
from polyvec.data.tasks.source import TaskSource, subsets_of
from polyvec.errors import DataError

PAIR = {"sentence1": "a", "sentence2": "b"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({**PAIR, "score": 1}, StsSet),
        ({**PAIR, "score": 1, "condition": "c"}, ConditionalStsSet),
        ({**PAIR, "label": 1}, PairClassificationSet),
        (PAIR, BitextMiningSet),
        ({"text": "t", "label": "x"}, ClusteringSet),
        (
            {"text": "t", "human_summaries": ["h"], "machine_summaries": ["m"], "scores": [1]},
            SummarizationSet,
        ),
    ],
)
def test_the_fields_show_the_kind(tmp_path, row, kind):
    write(tmp_path / "toy" / "test.jsonl.gz", [row, row])
    found = read_folder(tmp_path / "toy")
    assert type(found) is kind
    assert (found.name, found.split) == ("toy", "test")
    assert len(found.sha256) == 64


def test_labels_with_a_training_split_are_a_classification(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "t", "label": 1}])
    write(tmp_path / "test.jsonl", [{"text": "u", "label": 0}])
    found = read_folder(tmp_path)
    assert isinstance(found, ClassificationSet)
    assert (found.train_labels, found.labels) == (("1",), ("0",))
    assert isinstance(read_folder(tmp_path, kind="clustering"), ClusteringSet)
    with pytest.raises(DataError, match="a classifier is trained on the split 'train'"):
        read_folder(tmp_path, "train")


def beir(folder, queries, qrels, **files):
    write(folder / "corpus.jsonl", [{"_id": d, "text": f"text {d}"} for d in "abc"])
    write(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("\n".join("\t".join(line) for line in qrels))
    for name, rows in files.items():
        write(folder / name / "test.jsonl", rows)
    return folder


def test_candidates_and_excluded_documents_are_read(tmp_path):
    query = {"_id": "q", "text": "?", "excluded_ids": ["c", "gone"]}
    folder = beir(
        tmp_path, [query], [("q", "a", "1")], top_ranked=[{"query-id": "q", "corpus-ids": ["a"]}]
    )
    found = read_folder(folder)
    assert isinstance(found, RetrievalSet)
    assert found.candidates == {"q": ("a",)}
    assert found.excluded == {"q": frozenset("c")}
    write(folder / "top_ranked" / "test.jsonl", [{"query-id": "q", "corpus-ids": ["x"]}])
    with pytest.raises(DataError, match=r"test.jsonl:1: document 'x' is not in corpus"):
        read_folder(folder)
    write(folder / "top_ranked" / "test.jsonl", [{"query-id": "p", "corpus-ids": ["a"]}])
    with pytest.raises(DataError, match="no documents to rank for query 'q'"):
        read_folder(folder)
    pool = {"query-id": "q", "corpus-ids": ["a"]}
    write(folder / "top_ranked" / "test.jsonl", [pool, {**pool, "corpus-ids": ["b"]}])
    with pytest.raises(DataError, match=r"duplicate query 'q' \(lines 1 and 2\)"):
        read_folder(folder)


def test_queries_under_an_original_and_a_changed_instruction(tmp_path):
    rows = [{"_id": f"7-{end}", "text": "cats", "instruction": end} for end in ("changed", "og")]
    found = read_folder(beir(tmp_path, rows, [("7-og", "a", "1"), ("7-changed", "b", "1")]))
    assert isinstance(found, InstructionRetrievalSet) and found.changed
    assert found.instructions == {"7": ("og", "changed")}
    assert found.qrels == {"7": ({"a": 1}, {"b": 1})}
    assert found.queries == {"7": "cats"}


def test_queries_under_any_number_of_instructions(tmp_path):
    rows = [
        {"_id": f"7.{i}", "query": "7", "text": "cats", "instruction": f"as {i}"} for i in range(3)
    ]
    found = read_folder(beir(tmp_path, rows, [(f"7.{i}", "a", "1") for i in range(3)]))
    assert isinstance(found, InstructionRetrievalSet) and not found.changed
    assert found.instructions == {"7": ("as 0", "as 1", "as 2")}
    rows[1]["instruction"] = None
    with pytest.raises(DataError, match=r"queries.jsonl:2: 'instruction' is None"):
        read_folder(beir(tmp_path, rows, [(f"7.{i}", "a", "1") for i in range(3)]))


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (TaskSource("pair", ("f.jsonl",)), {**PAIR, "label": 2}, r"f.jsonl:1: label '2' of a pair"),
        (
            TaskSource("pair", ("f.jsonl",)),
            {**PAIR, "label": 1.5},
            "label 1.5 is not a string",
        ),
        (
            TaskSource("sts", ("f.jsonl",)),
            {**PAIR, "score": float("nan")},
            r"f.jsonl:1: 'score' is nan",
        ),
        (TaskSource("sts", ("f.jsonl",)), PAIR, r"f.jsonl:1: no 'score'. Known: sentence1"),
        (
            TaskSource("sts", ("f.jsonl",), fields={"sentence1": "left"}),
            {**PAIR, "score": 1},
            "f.jsonl:1: no 'left'",
        ),
        (
            TaskSource("bitext", ("f.jsonl",)),
            {**PAIR, "sentence1": 1},
            "is 1, not a string",
        ),
        (
            TaskSource("bitext", ("f.jsonl",), where={"lang": "de"}),
            PAIR,
            "no rows in f.jsonl",
        ),
        (
            TaskSource("bitexts", ("f.jsonl",)),
            PAIR,
            "'bitexts' is not known. Did you mean",
        ),
        (
            TaskSource("summarization", ("f.jsonl",)),
            {"text": "t", "human_summaries": ["h"], "machine_summaries": ["m"], "scores": [1, 2]},
            "f.jsonl:1: 'scores' must be a list with one score a machine",
        ),
        (
            TaskSource("retrieval", ("f.jsonl",)),
            {"query": " ", "document": "d"},
            "f.jsonl:1: the query is empty",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path, source, row, message):
    write(tmp_path / "f.jsonl", [row])
    with pytest.raises(DataError, match=message):
        read_task(source, tmp_path, "toy")


def test_unknown_fields_are_an_error(tmp_path):
    write(tmp_path / "test.jsonl", [{"story": "x"}])
    with pytest.raises(DataError, match=r"test.jsonl:1: no kind of task has the fields story"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no split 'dev'"):
        read_folder(tmp_path, "dev")
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "gone")


def test_one_file_of_many_languages(tmp_path):
    rows = [{"lang": lang, "en": "a", lang: "b"} for lang in ("de", "fr", "de")]
    write(tmp_path / "f.jsonl", rows)
    assert subsets_of(tmp_path, "f.jsonl", "lang") == ("de", "fr")
    fields = {"sentence1": "en", "sentence2": "{subset}"}
    source = TaskSource("bitext", ("f.jsonl",), fields=fields, where={"lang": "{subset}"})
    found = [read_task(source, tmp_path, "toy", subset) for subset in ("de", "fr")]
    assert [len(each.sentences1) for each in found] == [2, 1]
    assert found[0].sha256 != found[1].sha256


def test_sentences_with_ids_and_the_pairs_among_them(tmp_path):
    write(tmp_path / "zh.jsonl", [{"id": "z1", "text": "一"}, {"id": "z2", "text": "二"}])
    write(tmp_path / "en.jsonl", [{"id": "e1", "text": "two"}, {"id": "e2", "text": "one"}])
    (tmp_path / "gold.tsv").write_text("zh\ten\nz1\te2\n")
    source = TaskSource("bitext", ("zh.jsonl", "en.jsonl"), qrels="gold.tsv")
    assert read_task(source, tmp_path, "toy").gold == ((0, 1),)
    (tmp_path / "gold.tsv").write_text("zh\ten\nz1\te3\n")
    with pytest.raises(DataError, match=r"gold.tsv:2: 'e3' is not the id"):
        read_task(source, tmp_path, "toy")


def test_equal_texts_of_pairs_are_merged(tmp_path):
    rows = [{"query": q, "document": d} for q, d in (("a", "x"), ("b", "x"), ("a", "y"))]
    write(tmp_path / "f.jsonl", rows)
    merged = read_task(TaskSource("retrieval", ("f.jsonl",)), tmp_path, "toy")
    assert (len(merged.corpus), len(merged.queries)) == (2, 2)
    assert merged.qrels == {"q0": {"d0": 1, "d2": 1}, "q1": {"d0": 1}}
    apart = read_task(TaskSource("retrieval", ("f.jsonl",), merge=False), tmp_path, "toy")
    assert (len(apart.corpus), len(apart.queries)) == (3, 3)


def test_reranking_ranks_the_judged_documents_of_a_query(tmp_path):
    folder = beir(tmp_path, [{"_id": "q", "text": "?"}], [("q", "a", "1"), ("q", "b", "0")])
    files = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    source = TaskSource("reranking", **files, only_judged=True)
    found = read_task(source, folder, "toy")
    assert found.candidates == {"q": ("a", "b")}
    assert set(found.corpus) == {"a", "b"}


def test_parts_of_a_clustering_are_consecutive(tmp_path):
    write(tmp_path / "f.jsonl", [{"text": str(i), "label": i % 2} for i in range(7)])
    source = TaskSource("clustering", ("f.jsonl",), protocol="sets", num_parts=3)
    assert read_task(source, tmp_path, "toy").parts == ((0, 1, 2), (3, 4), (5, 6))


def test_documents_start_with_their_titles_unless_switched_off(tmp_path):
    folder = beir(tmp_path, [{"_id": "q", "text": "?"}], [("q", "a", "1")])
    write(folder / "corpus.jsonl", [{"_id": "a", "title": "Head", "text": "body"}])
    files = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    found = [
        read_task(TaskSource("retrieval", **files, titles=titles), folder, "toy")
        for titles in (True, False)
    ]
    assert [each.corpus["a"] for each in found] == ["Head body", "body"]
    assert found[0].sha256 != found[1].sha256


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("pair", "pair_classification"),
        ("PairClassification", "pair_classification"),
        ("bitext", "bitext_mining"),
        ("conditional-sts", "conditional_sts"),
        ("STS", "sts"),
        ("instruction", "instruction_retrieval"),
        ("summary", "summarization"),
    ],
)
def test_earlier_and_mtebs_spellings_of_a_kind(tmp_path, spelling, name):
    assert find_kind(spelling) is KINDS[name]
    assert find_kind("sentences") is None


def test_a_given_kind_must_fit_the_folder(tmp_path):
    folder = beir(tmp_path / "r", [{"_id": "q", "text": "?"}], [("q", "a", "1"), ("q", "b", "0")])
    assert read_folder(folder).kind == "retrieval"
    assert read_folder(folder, kind="reranking").candidates == {"q": ("a", "b")}
    write(folder / "top_ranked" / "test.jsonl", [{"query-id": "q", "corpus-ids": ["c"]}])
    assert read_folder(folder).candidates == {"q": ("c",)}
    assert read_folder(folder, kind="retrieval").candidates == {}
    with pytest.raises(DataError, match="has qrels/, so it cannot be read as sts"):
        read_folder(folder, kind="sts")
    write(tmp_path / "p" / "test.jsonl", [{**PAIR, "score": 1}] * 2)
    with pytest.raises(DataError, match="no qrels/, which retrieval needs"):
        read_folder(tmp_path / "p", kind="retrieval")


def test_a_classification_without_training_files_is_an_error(tmp_path):
    write(tmp_path / "f.jsonl", [{"text": "t", "label": 1}])
    with pytest.raises(DataError, match="toy has no rows"):
        read_task(TaskSource("classification", ("f.jsonl",)), tmp_path, "toy")


def test_duplicate_ids_of_sentences_are_named_with_their_lines(tmp_path):
    write(tmp_path / "zh.jsonl", [{"id": "z1", "text": "a"}] * 2)
    (tmp_path / "gold.tsv").write_text("zh\ten\nz1\tz1\n")
    source = TaskSource("bitext", ("zh.jsonl", "zh.jsonl"), qrels="gold.tsv")
    with pytest.raises(DataError, match=r"zh.jsonl: duplicate id 'z1' \(lines 1 and 2\)"):
        read_task(source, tmp_path, "toy")
