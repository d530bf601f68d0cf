"""Documents with questions and answers, and the sentences around an answer."""

import json

import pytest

from polyvec.data.training.corpora import WINDOW, window
from polyvec.data.training.sources import training_rows
from polyvec.errors import DataError

TEXT = "Ann lives in Dover. Her boat is blue. It is kept in Leith. Nobody knows why."


def write(folder, **query):
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "Ann#0", "title": "Ann", "text": TEXT}))
    given = {"_id": "q1", "text": "Where is it kept?", "answers": ["Leith", "in Leith", "Leith"]}
    (folder / "queries.jsonl").write_text(json.dumps({**given, **query}))
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tAnn#0\t1\n")
    return {"path": str(folder), "format": "answers", "columns": {"qrels": "qrels/test.tsv"}}


def test_a_row_is_a_document_a_question_and_its_answers(tmp_path):
    (row,) = training_rows(write(tmp_path))
    assert (row.query, row.instruction) == (TEXT, "Where is it kept?")
    assert row.positives == ("Leith", "in Leith")
    assert not row.in_batch


def test_a_query_may_name_its_documents_itself(tmp_path):
    table = write(tmp_path, positives=["Ann#0"])
    (row,) = training_rows({**table, "columns": {}})
    assert row.query == TEXT


def test_a_question_without_an_answer_is_an_error_or_left_out(tmp_path):
    table = write(tmp_path, answers=[])
    with pytest.raises(DataError, match="skip_empty"):
        training_rows(table)
    with pytest.raises(DataError, match="no rows"):
        training_rows({**table, "skip_empty": True})


def test_a_document_that_is_not_there_is_named(tmp_path):
    table = write(tmp_path, positives=["Bob#0"])
    with pytest.raises(DataError, match=r"id 'Bob#0' is not among the 1 texts"):
        training_rows({**table, "columns": {}})


def test_a_window_is_whole_sentences_around_the_answer():
    start = TEXT.index("Leith")
    assert window(TEXT, start, start + 5) == TEXT
    sentences = [f"This is sentence number {number} of a long text." for number in range(30)]
    long = " ".join(sentences)
    start = long.index("number 12")
    found = window(long, start, start + 9)
    assert "number 12 " in found and len(found) <= WINDOW
    assert found.startswith("This") and found.endswith("text.")
    assert len(found) > WINDOW - 2 * len(sentences[0])


def test_titles_are_either_trained_on_or_held_out(tmp_path):
    table = {**write(tmp_path), "format": "answer_windows"}
    parts = {}
    for split in ("train", "held_out"):
        try:
            parts[split] = training_rows({**table, "split": split})
        except DataError as error:
            assert "no rows" in str(error)
    assert len(parts) == 1
    with pytest.raises(DataError, match="is not 'train' or 'held_out'"):
        training_rows({**table, "split": "test"})


def test_squads_articles_do_not_overlap(shared_data):
    rows = {
        split: training_rows({"name": "squad_windows", "split": split}, shared_data)
        for split in ("train", "held_out")
    }
    train, held_out = ({row.query for row in found} for found in rows.values())
    assert len(rows["train"]) == 9122 and len(rows["held_out"]) == 1448
    assert not train & held_out
