"""The named sets, how their texts are rendered, and whether test texts are among them."""

import gzip
import json
from pathlib import Path

import pytest

from polyvec.data.overlap.contamination import contaminated
from polyvec.data.tasks.named import named_task
from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.data.training.corpora import CORPUS_FORMATS
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.formats import FORMATS
from polyvec.data.training.instructions import (
    Side,
    document_side,
    query_side,
    stored_instructions,
)
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet, named_sets, preset, training_sets
from polyvec.data.training.summary import summaries
from polyvec.data.training.table import data_table
from polyvec.errors import DataError, SettingsError


@pytest.mark.parametrize("name", named_sets())
def test_a_named_set_is_a_table_of_a_training_split(name):
    table = data_table(preset({"name": name}, "/data", "data"))
    assert table.path.startswith("/data/")
    assert table.format in {*FORMATS, *CORPUS_FORMATS}
    assert table.split == "train"
    files = [table.path, *map(str, table.columns.values())]
    # SQuAD's training articles are in the file that Du et al. call "test"; of its development split
    # some articles are held out by their titles.
    known = name in ("squad_qg_pairs", "squad_windows")
    assert known or not any("test" in Path(file).name for file in files)


@pytest.mark.parametrize("name", named_sets())
def test_a_named_set_of_pairs_has_an_instruction(name):
    table = data_table(preset({"name": name}, "/data", "data"))
    # Rows of the last three have an instruction, or a question, of their own.
    if table.format in ("text", "successive", "aspects", "answers", "answer_windows"):
        assert name not in stored_instructions()
    else:
        assert stored_instructions()[name].instruction


def test_a_table_overrides_what_is_stored_for_its_name(tmp_path):
    folder = tmp_path / "quora_pairs"
    folder.mkdir()
    rows = [{"question1": f"a{i}", "question2": f"b{i}"} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (found,) = training_sets({"name": "quora_pairs", "limit": 5, "instructed": True}, tmp_path)
    assert (found.name, len(found.rows)) == ("quora_pairs", 5)
    row = found.rows[0]
    assert row.symmetric
    assert row.instruction.startswith("Given a question, retrieve questions")
    (found,) = training_sets({"name": "quora_pairs", "symmetric": False}, tmp_path)
    assert not found.rows[0].symmetric
    with pytest.raises(DataError, match=r"stsb/train.jsonl: no such file"):
        training_sets({"name": "stsb"}, tmp_path)


def test_documents_of_a_symmetric_set_take_the_side_of_the_query():
    row = TrainingRow("q", ("d",), instruction="Find", document_instruction="Passage")
    assert query_side(row) == Side("query", "Find")
    assert document_side(row) == Side("document", "Passage")
    alike = TrainingRow("q", ("d",), instruction="Find", symmetric=True)
    assert document_side(alike) == Side("query", "Find")
    assert document_side(TrainingRow("q", ("d",), symmetric=True)) == Side("query", None)


def test_texts_of_a_test_set_among_the_training_texts_are_counted():
    rows = [
        TrainingRow("A man is eating food.", ("nothing",), ("A girl plays.",)),
        TrainingRow("hello", turns=("hello", "The answer is 42")),
    ]
    data = TrainingData([TrainingSet("x", rows)])
    sts = StsSet(
        "sts", "test", ("a man is eating food", "new"), ("A girl plays", "too"), (1.0, 2.0)
    )
    ranked = RetrievalSet(
        "ranked", "test", {"d": "nothing"}, {"q": "the answer is 42", "r": "other"}, {"q": {"d": 1}}
    )
    first, second = contaminated([sts, ranked], data.all_texts())
    assert (first.num_same, first.num_texts) == (2, 4)
    assert (second.num_same, second.num_texts) == (1, 2)  # a corpus may be known, queries not
    assert str(first).startswith("2 of 4 texts are in the training texts")


def test_what_a_stage_is_trained_on_in_figures():
    rows = [
        TrainingRow("ab", ("cd",), ("ab", "efgh"), score=1.0),
        TrainingRow("abcd", ("cd",), label=2),
        TrainingRow("abcd", ("cd",), label=2),
    ]
    data = TrainingData(
        [TrainingSet("x", rows, num_skipped=4), TrainingSet("y", [TrainingRow("a")])]
    )
    first, second = summaries(data)
    assert (first.num_rows, first.num_positives, first.num_negatives) == (3, 3, 2)
    assert (first.num_scored, first.num_labelled, first.num_repeated) == (1, 2, 1)
    assert first.num_contradictory == 1
    assert (first.query_length, first.document_length) == (10 / 3, (3 * 2 + 2 + 4) / 5)
    assert str(first) == (
        "x: 3 rows, 2 negatives, 1 with a score, 2 with a label, 1 repeated, 1 with a negative "
        "that is their query or a positive, 4 left out for an empty text; 3 and 2 characters a text"
    )
    assert str(second) == "y: 1 rows; 1 characters a text"


# ---- on the data themselves ---------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("name", named_sets())
def test_a_named_set_is_read(name, shared_data):
    for found in training_sets({"name": name}, shared_data):
        assert len(found.rows) > 50
        if found.table.format != "text":
            assert all(row.positives for row in found.rows)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "task", "most"),
    [
        ("scifact", "scifact", 0.01),
        ("nfcorpus", "nfcorpus", 0.05),
        ("arguana", "arguana", 0.0),
        ("trec", "trec", 0.03),
        ("banking77", "banking77", 0.01),
        ("stsb", "stsb", 0.1),
    ],
)
def test_few_test_texts_are_in_the_training_set_of_the_same_name(name, task, most, shared_data):
    """Measured; the rest are texts that both splits have."""
    data = TrainingData(training_sets({"name": name}, shared_data))
    queries = (row.query for each in data.sets for row in each.rows)
    (found,) = contaminated([named_task(task, shared_data).read()], queries)
    assert found.num_same <= most * found.num_texts


def test_a_split_of_a_file_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"anchor": "a cat", "positive": "a kitten"}\n')
    with pytest.raises(SettingsError, match=r"pairs\.jsonl: has no splits; split 'dev'"):
        training_sets({"path": str(path), "split": "dev"})
