"""Folders of pairs and of retrieval data: what is read, and what is an error."""

import gzip
import json

import pytest

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.errors import DataError

PAIRS = [
    {"sentence1": "a", "sentence2": "b", "score": 5},
    {"sentence1": "c\u2028d", "sentence2": "", "score": 0.25},
]
CORPUS = [
    {"_id": "d1", "title": "T", "text": "one"},
    {"_id": "d2", "text": "two"},
    {"_id": 3, "text": "", "title": "Three"},
]
QUERIES = [{"_id": "q1", "text": "one?"}, {"_id": "q2", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n"


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sts(folder, rows=PAIRS):
    folder.mkdir(exist_ok=True)
    (folder / "test.jsonl").write_text(jsonl(rows), encoding="utf-8")
    return folder


def retrieval(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(jsonl(corpus))
    (folder / "queries.jsonl").write_text(jsonl(queries))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def zip_all(folder):
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("zipped", [False, True])
def test_pairs_are_read(tmp_path, zipped):
    folder = sts(tmp_path / "pairs")
    if zipped:
        zip_all(folder)
    data = read_folder(folder)
    assert isinstance(data, StsSet)
    assert (data.name, data.split) == ("pairs", "test")
    assert data.sentences1 == ("a", "c\u2028d")
    assert data.sentences2 == ("b", "")
    assert data.scores == (5.0, 0.25)


@pytest.mark.parametrize("zipped", [False, True])
def test_retrieval_is_read(tmp_path, zipped):
    folder = retrieval(tmp_path / "beir")
    if zipped:
        zip_all(folder)
    data = read_folder(folder)
    assert isinstance(data, RetrievalSet)
    assert data.corpus == {"d1": "T one", "d2": "two", "3": "Three"}
    assert data.queries == {"q1": "one?"}
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert data.identical == frozenset()


def test_qrels_without_a_header_and_with_a_last_empty_line_are_read(tmp_path):
    data = read_folder(retrieval(tmp_path, qrels="q1\td2\t1.0\r\n\r\n"))
    assert data.qrels == {"q1": {"d2": 1}}


@pytest.mark.parametrize("between", ["\t", " "])
def test_qrels_in_trecs_four_columns_are_read(tmp_path, between):
    lines = [("q1", "0", "d2", "1"), ("q1", "0", "3", "0")]
    data = read_folder(retrieval(tmp_path, qrels="\n".join(map(between.join, lines))))
    assert data.qrels == {"q1": {"d2": 1, "3": 0}}


def test_only_a_query_with_the_words_of_its_document_is_identical(tmp_path):
    corpus = [
        {"_id": "1", "title": "T", "text": "same body"},
        {"_id": "2", "title": "T", "text": "joined"},
        {"_id": "3", "text": "it ends alike"},
        {"_id": "4", "text": "another"},
    ]
    texts = {"1": "same body", "2": "T joined", "3": "alike", "4": "a question", "5": "another"}
    queries = [{"_id": key, "text": text} for key, text in texts.items()]
    qrels = "".join(f"{key}\t1\t1\n" for key in texts)
    assert read_folder(retrieval(tmp_path, corpus, queries, qrels)).identical == {"1", "2"}


def test_the_hash_changes_with_a_byte_of_any_file_and_with_nothing_else(tmp_path):
    folder = retrieval(tmp_path / "a")
    before = read_folder(folder).sha256
    assert read_folder(retrieval(tmp_path / "b")).sha256 == before
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        path = folder / name
        old = path.read_bytes()
        path.write_bytes(old + b"\n")
        assert read_folder(folder).sha256 != before
        path.write_bytes(old)
    assert read_folder(folder).sha256 == before
    pairs = sts(tmp_path / "c")
    first = read_folder(pairs).sha256
    assert read_folder(sts(pairs, [*PAIRS, PAIRS[0]])).sha256 != first


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(sts(tmp_path / "pairs"))
    assert read_folder(".").name == "pairs"


def test_a_missing_split_names_those_there_are(tmp_path):
    folder = sts(tmp_path / "s")
    (folder / "dev.jsonl.gz").write_bytes(gzip.compress(jsonl(PAIRS).encode()))
    with pytest.raises(DataError, match=r"s: no split 'tset'. Did you mean 'test'\? Known: dev"):
        read_folder(folder, "tset")
    with pytest.raises(DataError, match=r"r: no split 'dev'. Known: test."):
        read_folder(retrieval(tmp_path / "r"), "dev")
    assert read_folder(folder, "dev").split == "dev"


def test_folders_without_a_data_set_are_named(tmp_path):
    with pytest.raises(DataError, match="gone: no such folder"):
        read_folder(tmp_path / "gone")
    with pytest.raises(DataError, match="not a data set"):
        read_folder(tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        folder = retrieval(tmp_path / name.replace("/", "-"))
        (folder / name).unlink()
        with pytest.raises(DataError, match=r"neither this file nor|not a data set"):
            read_folder(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"sentence1": "a", "score": 1},
            "test.jsonl:2: no 'sentence2'. Did you mean 'sentence1'? Known: score",
        ),
        ({"sentence1": "a", "sentence2": 1, "score": 1}, "'sentence2' is 1, not a string"),
        ({"sentence1": "a", "sentence2": "b"}, "test.jsonl:2: no 'score'"),
        ({"sentence1": "a", "sentence2": "b", "score": "4"}, "'score' is '4', not a finite"),
        ({"sentence1": "a", "sentence2": "b", "score": True}, "'score' is True, not a finite"),
        ({"sentence1": "a", "sentence2": "b", "score": float("nan")}, "'score' is nan, not"),
        ({"sentence1": "a", "sentence2": "b", "score": float("inf")}, "'score' is inf, not"),
        ({"sentence1": "a", "sentence2": "b", "score": 10**400}, "'score' is 1000"),
    ],
)
def test_a_flaw_in_a_pair_is_named(tmp_path, row, message):
    with pytest.raises(DataError) as caught:
        read_folder(sts(tmp_path, [PAIRS[0], row]))
    assert message in str(caught.value)


def test_one_pair_has_no_correlation(tmp_path):
    with pytest.raises(DataError, match="1 pair, but a correlation needs 2 or more"):
        read_folder(sts(tmp_path, PAIRS[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": [*CORPUS, CORPUS[0]]}, "corpus.jsonl: duplicate id 'd1' (lines 1 and 4)"),
        ({"queries": [*QUERIES, QUERIES[1]]}, "queries.jsonl: duplicate id 'q2' (lines 2 and 3)"),
        ({"corpus": [{"text": "a"}]}, "corpus.jsonl:1: '_id' is None, not a string or a whole"),
        ({"corpus": [{"_id": "", "text": "a"}]}, "corpus.jsonl:1: '_id' is '', not a string"),
        ({"corpus": [{"_id": "d1"}]}, "corpus.jsonl:1: 'text' is None, not a string"),
        ({"corpus": [{"_id": "d1", "text": "a", "title": 3}]}, "'title' is 3, not a string"),
        ({"queries": [{"_id": "q1", "text": " "}]}, "queries.jsonl: query 'q1' is empty"),
        ({"qrels": "q1\td1\n"}, "test.tsv:1: 2 columns, expected 3 (query, document, grade)"),
        ({"qrels": "q1\t0\td1\t1\t1\n"}, "test.tsv:1: 5 columns, expected 3"),
        ({"qrels": QRELS + "q9\td1\t1\n"}, "test.tsv:4: query 'q9' is not in queries.jsonl"),
        ({"qrels": QRELS + "q1\td9\t1\n"}, "test.tsv:4: document 'd9' is not in corpus.jsonl"),
        ({"qrels": "q1\td1\thigh\n"}, "test.tsv:1: grade 'high' is not a finite number"),
        ({"qrels": "q1\td1\t0.5\n"}, "test.tsv:1: grade 0.5 is not a whole number"),
        ({"qrels": "q1\td1\tinf\n"}, "test.tsv:1: grade 'inf' is not a finite number"),
        ({"qrels": "q1\td1\tnan\n"}, "test.tsv:1: grade 'nan' is not a finite number"),
        ({"qrels": QRELS + "q1\td1\t1\n"}, "have grade 1, but 2 on an earlier line"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, "test.tsv: no judgements"),
    ],
)
def test_a_flaw_in_retrieval_data_is_named(tmp_path, change, message):
    with pytest.raises(DataError) as caught:
        read_folder(retrieval(tmp_path, **change))
    assert message in str(caught.value)


def test_an_unjudged_query_may_be_empty(tmp_path):
    queries = [QUERIES[0], {"_id": "q2", "text": ""}]
    assert read_folder(retrieval(tmp_path, queries=queries)).queries == {"q1": "one?"}


def test_qrels_that_are_not_utf8_are_named(tmp_path):
    folder = retrieval(tmp_path)
    (folder / "qrels" / "test.tsv").write_bytes(QRELS.encode() + b"\xff\td1\t1\n")
    with pytest.raises(DataError, match=r"test.tsv:4: not UTF-8"):
        read_folder(folder)
