"""Each form of training data: a row as its makers publish it, and the example that it becomes."""

import csv
import gzip
import json

import numpy as np
import pytest

from polyvec.data.training import files
from polyvec.data.training.formats import FORMATS, TARGETS
from polyvec.data.training.sources import rows_of, training_rows, training_sets
from polyvec.errors import DataError, PolyvecError, SettingsError


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read(path, **table):
    return training_rows({"path": str(path), **table})


def passage(docid, text, title=""):
    return {"docid": docid, "title": title, "text": text}


# Rows as the makers' own files and documentation have them, and the fields of the example.
PUBLISHED = {
    "tevatron": (
        {
            "query_id": "1",
            "query": "q",
            "positive_passages": [passage("a", "p", "Title")],
            "negative_passages": [passage("b", "n1"), passage("c", "n2", "Other")],
        },
        {"query": "q", "positives": ("Title p",), "negatives": ("n1", "Other n2")},
    ),
    "promptriever": (
        {
            "query_id": "1",
            "query": "q only cats",
            "only_query": "q",
            "only_instruction": "only cats",
            "has_instruction": True,
            "positive_passages": [passage("a", "p")],
            "negative_passages": [passage("b", "n")],
            "new_negatives": [passage("c", "dogs")],
        },
        {"query": "q only cats", "negatives": ("dogs", "n"), "leading": 1},
    ),
    "dpr": (
        {
            "question": "q",
            "answers": ["a"],
            "positive_ctxs": [{"title": "T", "text": "p", "passage_id": "1"}],
            "negative_ctxs": [{"title": "", "text": "n"}],
            "hard_negative_ctxs": [{"title": "", "text": "h"}],
        },
        {"query": "q", "positives": ("T p",), "negatives": ("h", "n")},
    ),
    "flag_embedding": (
        {
            "query": "q",
            "pos": ["p1", "p2"],
            "neg": ["n"],
            "pos_scores": [1, 0.9],
            "neg_scores": [0.1],
            "prompt": "Find it.",
            "type": "symmetric_sts",
        },
        {
            "positives": ("p1", "p2"),
            "negatives": ("n",),
            "teacher_scores": (1.0, 0.9, 0.1),
            "instruction": "Find it.",
            "symmetric": True,
        },
    ),
    "only_1neg": (
        {"query": "q", "pos": ["p"], "neg": ["n1", "n2"], "type": "only_1neg"},
        {"negatives": ("n1",), "symmetric": False},
    ),
    "query_pairs": ({"query": "q", "pos": ["p1", "p2"]}, {"positives": ("p1", "p2")}),
    "gritlm": (
        {"query": ["Find", "q"], "pos": [["", "p"]], "neg": [["", "n1"], ["", "n2"]]},
        {
            "query": "q",
            "instruction": "Find",
            "document_instruction": "",
            "negatives": ("n1", "n2"),
        },
    ),
    "gritlm_plain": ({"query": ["Find", "q"], "pos": ["p"], "neg": ["n"]}, {"positives": ("p",)}),
    "gritlm_chat": (
        {"text": ["hello", "hi", "how are you", "well"]},
        {"query": "hello", "turns": ("hello", "hi", "how are you", "well")},
    ),
    "gritlm_text": ({"text": "all of it"}, {"query": "all of it", "turns": ()}),
    "medi": (
        {
            "query": ["Represent the question;", "q"],
            "pos": ["Represent the document;", "p"],
            "neg": ["Represent the document;", "n"],
            "task_id": 7,
        },
        {
            "query": "q",
            "positives": ("p",),
            "negatives": ("n",),
            "instruction": "Represent the question;",
            "document_instruction": "Represent the document;",
            "dataset": "file/7",
        },
    ),
    "echo": (
        {"query": "q", "positive": "p", "negative": "n"},
        {"query": "q", "positives": ("p",), "negatives": ("n",)},
    ),
    "e5_instructions": (
        {
            "query": ["Find", "q"],
            "positive": ["", "p"],
            "negative": ["", "n"],
            "task_name": "nq",
        },
        {"instruction": "Find", "document_instruction": "", "dataset": "file/nq"},
    ),
    "simcse": (
        {"sent0": "a", "sent1": "b", "hard_neg": "c"},
        {"query": "a", "positives": ("b",), "negatives": ("c",)},
    ),
    "st_triplet": (
        {"anchor": "a", "positive": "b", "negative": "c"},
        {"query": "a", "positives": ("b",), "negatives": ("c",)},
    ),
    "st_many_negatives": (
        {"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d"},
        {"negatives": ("c", "d")},
    ),
    "st_scores": (
        {"sentence1": "a", "sentence2": "b", "score": 0.5},
        {"positives": ("b",), "score": 0.5, "label": None, "matches": False},
    ),
    "st_labels": (
        {"sentence1": "a", "sentence2": "b", "label": 1},
        {"positives": ("b",), "score": None, "label": 1, "matches": False},
    ),
    "angle": ({"text1": "a", "text2": "b", "label": 1}, {"score": 1.0, "matches": False}),
    "nli": (
        {"premise": "a", "hypothesis": "b", "label": "contradiction"},
        {"query": "a", "positives": ("b",), "label": 2, "matches": False},
    ),
    "question_answer": ({"question": "q", "answer": "a"}, {"positives": ("a",)}),
    "f2llm": (
        {"query": "q", "passage": "p", "negative_1": "n1", "negative_2": "n2"},
        {"positives": ("p",), "negatives": ("n1", "n2")},
    ),
    "nemo": (
        {"question": "q", "pos_doc": [{"text": "p"}], "neg_doc": ["n1", {"text": "n2"}]},
        {"query": "q", "positives": ("p",), "negatives": ("n1", "n2")},
    ),
    "swift": (
        {
            "messages": [{"role": "user", "content": "q"}],
            "positive_messages": [[{"role": "user", "content": "p"}]],
            "negative_messages": [[{"role": "user", "content": "n"}]],
        },
        {"query": "q", "positives": ("p",), "negatives": ("n",), "turns": ()},
    ),
    "ultrachat": ({"id": "0", "data": ["q", "a", "unanswered"]}, {"turns": ("q", "a")}),
    "query_answer": ({"query": "q", "answer": "a"}, {"positives": ("a",)}),
    "gritlm_medi": (
        {"query": ["I", "q"], "pos": [["J", "p"]], "neg": [["J", "n"]]},
        {"instruction": "I", "document_instruction": "J", "positives": ("p",)},
    ),
    "own_instructions": (
        {"query": "q", "positive": "p", "instruction": "I", "document_instruction": ""},
        {"instruction": "I", "document_instruction": ""},
    ),
    "chat": (
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"query": "Be short.\n\nq", "turns": ("Be short.\n\nq", "a")},
    ),
    "llara": (
        {"input": "a", "output_summarize": "b", "output_predict": "c"},
        {"query": "a", "positives": ("b", "c")},
    ),
    "set": ({"set": ["a", "b", "c"]}, {"query": "a", "positives": ("b", "c")}),
    "labelled_text": ({"text": "a", "label": "x"}, {"query": "a", "label": 0}),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_published_row_is_recognised_and_read(tmp_path, name, zipped):
    row, expected = PUBLISHED[name]
    path = write(tmp_path / "file.jsonl", [row, row])
    if zipped:
        (tmp_path / "file.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        path = tmp_path / "file.jsonl.gz"
    rows = read(path)
    assert len(rows) == 2
    assert {key: getattr(rows[0], key) for key in expected} == expected
    assert rows[1].place == f"{path}:2"
    assert rows[0].dataset.startswith("file")


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_of_a_large_file_are_read_again_each_time(tmp_path, name, monkeypatch):
    row, _ = PUBLISHED[name]
    path = tmp_path / "file.jsonl"
    lines = "".join(f"{json.dumps(row)}\n\n" for _ in range(30))
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    for options in ({}, {"limit": 7}, {"instruction": "Do", "skip_empty": True}):
        in_memory = training_sets({"path": str(path), **options})
        with monkeypatch.context() as patch:
            patch.setattr(files, "LARGE", 0)
            on_disk = training_sets({"path": str(path), **options})
        assert isinstance(on_disk[0].rows, files.RowsOnDisk)
        assert [(each.name, list(each.rows), each.labels) for each in on_disk] == [
            (each.name, list(each.rows), each.labels) for each in in_memory
        ]


def test_rows_on_disk_are_selected_like_those_in_memory(tmp_path, monkeypatch):
    rows = [
        {"sentence1": f"a{i}", "sentence2": "" if i % 9 == 0 else "b", "score": i % 5, "x": i % 2}
        for i in range(200)
    ]
    path = write(tmp_path / "x.jsonl", rows)
    options = {"where": {"x": 1}, "min_score": 2.0, "held_out": 0.3, "skip_empty": True}
    in_memory = training_sets({"path": str(path), **options})
    monkeypatch.setattr(files, "LARGE", 0)
    (on_disk,) = training_sets({"path": str(path), **options})
    assert list(on_disk.rows) == in_memory[0].rows
    assert on_disk.num_skipped == in_memory[0].num_skipped > 0
    assert on_disk.rows[3:5] == in_memory[0].rows[3:5]
    words = [{"text": str(i), "label": label} for i, label in enumerate("cab")]
    assert [row.label for row in read(write(tmp_path / "y.jsonl", words))] == [2, 0, 1]


def test_every_form_that_is_recognised_is_among_the_published_ones():
    """So that none of them is shadowed by one that stands before it."""
    only_by_name = {"nli_triplets", "pairs", "judged", "classes", "successive", "columns"}
    only_by_name |= {"aspects", "inverse_cloze", "crops", "repeated", "questions", "query_document"}
    found = {
        name
        for row, _ in PUBLISHED.values()
        for name in [next(n for n, form in FORMATS.items() if form.columns and form.matches(row))]
    }
    assert found == set(FORMATS) - only_by_name


def test_lists_of_texts_as_rows(tmp_path):
    """embedding-training-data: pairs, triplets."""
    rows = read(write(tmp_path / "pairs.jsonl", [["a", "b"], ["c", "d", "e"]]))
    assert [row.texts for row in rows] == [("a", "b"), ("c", "d", "e")]
    with pytest.raises(DataError, match=r"x.jsonl:2: expected a list of 2 texts"):
        read(write(tmp_path / "x.jsonl", [["a", "b"], ["c"]]))


def test_a_json_file_is_one_list(tmp_path):
    path = tmp_path / "medi-data.json"
    path.write_text(json.dumps([PUBLISHED["medi"][0]] * 3, indent=1))
    rows = read(path)
    assert [row.place for row in rows] == [f"{path} row {number}" for number in range(3)]
    path.write_text("[1]")
    with pytest.raises(DataError, match=r"row 0: int, not an object"):
        read(path)


def test_csv_tsv_and_parquet(tmp_path):
    rows = [{"sent0": 'a "b"', "sent1": "c,d", "hard_neg": "e\nf"}] * 2
    with (tmp_path / "nli.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert read(tmp_path / "nli.csv")[1].texts == ('a "b"', "c,d", "e\nf")
    (tmp_path / "sts.tsv").write_text('sentence1\tsentence2\tscore\na "\tb\t2.5\n')
    (row,) = read(tmp_path / "sts.tsv")
    assert (*row.texts, row.score) == ('a "', "b", 2.5)
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"anchor": ["a"], "positive": ["b"], "negative_1": [None]})
    parquet.write_table(table, tmp_path / "train.parquet")
    (row,) = read(tmp_path / "train.parquet")
    assert row.texts == ("a", "b")
    assert row.dataset == tmp_path.name


def test_columns_of_other_names_and_titles(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        [{"ask": "q", "title": "T", "body": "p", "bad": "n1", "worse": "n2", "id": 3}],
    )
    columns = {"query": "ask", "positive": "title+body", "negative": ["bad", "worse"]}
    (row,) = read(path, columns=columns)
    assert (row.query, row.positives, row.negatives) == ("q", ("T p",), ("n1", "n2"))
    with pytest.raises(DataError, match=r"x.jsonl:1: no column 'asks'. Did you mean 'ask'"):
        read(path, columns={**columns, "query": "asks"})


def test_two_columns_as_a_chat(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"question": "q", "answer": "a"}])
    (row,) = read(path, format="text", columns={"text": ["question", "answer"]})
    assert row.turns == ("q", "a")


# ---- several rows make one example --------------------------------------------------------------


def test_triplets_of_inference(tmp_path):
    labels = [("b", "entailment"), ("c", "neutral"), ("d", "contradiction"), ("e", "entailment")]
    rows = [{"premise": "a", "hypothesis": text, "label": label} for text, label in labels]
    rows += [{"premise": "x", "hypothesis": "y", "label": "contradiction"}]
    found = read(write(tmp_path / "x.jsonl", rows), format="nli_triplets")
    assert [row.texts for row in found] == [("a", "b", "d"), ("a", "e")]
    assert all(row.matches for row in found)
    assert {row.label for row in found} == {None}


@pytest.mark.parametrize("labels", [("1", "x"), ("x", 1), ("x", "0"), (1.0, "x")])
def test_words_and_numbers_as_labels_of_one_set_are_refused(labels):
    """The number of a word could be that of another class."""
    rows = [{"text": str(i), "label": label} for i, label in enumerate(labels)]
    with pytest.raises(DataError, match=r"row 1: 'label' is .*, but other rows have (words|numb)"):
        rows_of(rows)


def test_numbers_as_strings_have_signs(tmp_path):
    rows = [{"text": str(i), "label": label} for i, label in enumerate(["-1", "0", " +1", 2])]
    assert [row.label for row in rows_of(rows).rows] == [-1, 0, 1, 2]


@pytest.mark.filterwarnings("error")
def test_values_of_numpy_are_lists_and_numbers():
    """Rows of a parquet file by pandas."""
    row = {
        "query": "q",
        "pos": np.array(["p"], dtype=object),
        "neg": np.array(["n", "m"], dtype=object),
        "pos_scores": np.array([0.5], dtype=np.float32),
        "neg_scores": np.array([0.25, 0.0], dtype=np.float32),
    }
    (found,) = rows_of([row]).rows
    assert found.texts == ("q", "p", "n", "m")
    assert found.teacher_scores == (0.5, 0.25, 0.0)
    (found,) = rows_of([{"sentence1": "a", "sentence2": "b", "score": np.float32(0.5)}]).rows
    assert found.score == 0.5


def test_words_for_labels_are_numbered_in_alphabetical_order(tmp_path):
    rows = [{"text": str(i), "label": label} for i, label in enumerate("cab")]
    (found,) = training_sets({"path": str(write(tmp_path / "x.jsonl", rows))})
    assert [row.label for row in found.rows] == [2, 0, 1]
    assert found.labels == ("a", "b", "c")


def test_classes_give_pairs_with_negatives_of_other_classes(tmp_path):
    rows = [{"text": f"{label}{i}", "label": label} for i in range(5) for label in "abc"]
    rows.append({"text": "single", "label": "d"})
    found = read(write(tmp_path / "x.jsonl", rows), format="classes")
    assert len(found) == 15
    for row in found:
        (positive,) = row.positives
        assert positive[0] == row.query[0]
        assert positive != row.query
        assert row.query[0] not in {text[0] for text in row.negatives}
        assert len({text[0] for text in row.negatives}) == len(row.negatives) == 3
        assert row.symmetric
        assert not row.in_batch
    assert found == read(tmp_path / "x.jsonl", format="classes")
    assert found != training_rows({"path": str(tmp_path / "x.jsonl"), "format": "classes"}, seed=1)
    same = [{"text": "a", "label": 1}] * 3
    with pytest.raises(DataError, match="all texts are of one class"):
        read(write(tmp_path / "y.jsonl", same), format="classes")


def test_judged_documents_of_one_query_become_one_row(tmp_path):
    rows = [("q", "a", 1), ("q", "b", 0), ("r", "c", 0), ("q", "d", 1)]
    names = ("query", "document", "label")
    path = write(tmp_path / "x.jsonl", [dict(zip(names, row, strict=True)) for row in rows])
    (row,) = read(path, format="judged")
    assert (row.query, row.positives, row.negatives) == ("q", ("a", "d"), ("b",))
    assert row.matches


def test_successive_texts_of_one_document(tmp_path):
    rows = [{"text": text, "book": text[0]} for text in ("a1", "a2", "a3", "b1", "b2")]
    path = write(tmp_path / "x.jsonl", rows)
    found = read(path, format="successive", columns={"document": "book"})
    assert [row.texts for row in found] == [("a1", "a2"), ("a2", "a3"), ("b1", "b2")]
    assert [row.texts for row in read(path, format="successive")][2] == ("a3", "b1")


def test_inverse_cloze(tmp_path):
    texts = [f"One is {i}. Two is {i}! Three?" for i in range(300)] + ["Only one sentence."]
    path = write(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    found = read(path, format="inverse_cloze")
    assert len(found) == 300
    kept = sum(row.query in row.positives[0] for row in found)
    assert 15 < kept < 50  # a tenth of the passages keep the sentence
    assert len({row.query.split()[0] for row in found}) == 3


def test_crops(tmp_path):
    text = " ".join(map(str, range(100)))
    path = write(tmp_path / "x.jsonl", [{"text": text}] * 200 + [{"text": "too short"}])
    found = read(path, format="crops")
    assert len(found) == 200
    sizes = [len(part.split()) for row in found for part in row.texts]
    assert 5 <= min(sizes) < 15
    assert 40 < max(sizes) <= 50
    for part in found[0].texts:
        numbers = list(map(int, part.split()))
        assert numbers == sorted(numbers)
    assert len({row.query for row in found}) > 150


def test_repeated_words(tmp_path):
    texts = [" ".join(map(str, range(10))), "one", "two words"]
    path = write(tmp_path / "x.jsonl", [{"text": text} for text in texts * 100])
    found = read(path, format="repeated")
    assert [row.query for row in found] == texts * 100
    added = [len(row.positives[0].split()) - len(row.query.split()) for row in found]
    assert set(added[0::3]) == {0, 1, 2, 3}  # of ten words at most max(2, 3.2)
    assert set(added[1::3]) == {0, 1} and set(added[2::3]) == {0, 1, 2}
    for row in found:
        kept = dict.fromkeys(row.positives[0].split())
        assert list(kept) == row.query.split()
        assert row.symmetric


# ---- what is wrong is said with the place -------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "table", "message"),
    [
        ([], {}, r"x.jsonl: no rows to train on: it is empty"),
        ([{"a": "b"}], {}, r"x.jsonl:1: no form of training data has the columns a"),
        (
            [{"query": "q", "positive": "p"}, {"query": "q", "positives": "p"}],
            {"format": "pairs"},
            r"x.jsonl:2: no column 'positive'. Did you mean 'positives'",
        ),
        (
            [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": "  "}],
            {},
            r"x.jsonl:2: 'positive' is empty. Correct the file, or leave such rows out with "
            r"skip_empty = true",
        ),
        ([{"anchor": "a", "positive": 3}], {}, r"x.jsonl:1: 'positive' is 3, not a string"),
        ([{"anchor": None, "positive": "a"}], {"format": "triplets"}, r"'anchor' is null"),
        ([{"query": "q", "pos": {"a": 1}}], {}, r"x.jsonl:1: 'pos' is dict, not a list"),
        ([{"query": "q", "pos": [["a", "b", "c"]]}], {}, r"'pos' is neither a text nor"),
        (
            [{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1]}],
            {},
            r"x.jsonl:1: 1 pos_scores and neg_scores for 2 pos and neg",
        ),
        (
            [{"query": ["i", "q"], "pos": [["j", "p"], ["k", "n"]]}],
            {},
            r"x.jsonl:1: the documents have different instructions",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "score": "high"}],
            {},
            r"x.jsonl:1: 'score' is 'high', not a finite number",
        ),
        ([{"text": ["a", "b", "c"]}], {}, r"x.jsonl:1: a chat of 3 turns"),
        ([{"set": ["a"]}], {}, r"x.jsonl:1: 'set' has 1 texts, expected 2 or more"),
        (
            [{"premise": "a", "hypothesis": "b", "label": 5}],
            {"format": "nli_triplets"},
            r"x.jsonl:1: label 5 is not one of NLI's",
        ),
        ([{"text": "\ud800"}], {}, r"x.jsonl:1: 'text' has a lone surrogate at character 0"),
        (
            [{"query": "q", "positive_passages": "p"}],
            {},
            r"x.jsonl:1: 'positive_passages' is 'p', not a list",
        ),
        ([{"query": "q", "pos": []}], {}, r"x.jsonl:1: no positive"),
    ],
)
def test_what_is_wrong_is_said_with_the_place(tmp_path, rows, table, message):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        read(path, **table)


def test_rows_with_an_empty_text_can_be_left_out(tmp_path):
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "", "positive": "b"}]
    path = write(tmp_path / "x.jsonl", rows)
    (found,) = training_sets({"path": str(path), "skip_empty": True})
    assert (len(found.rows), found.num_skipped) == (1, 1)
    with pytest.raises(DataError, match=r"no rows to train on \(1 rows had an empty text\)"):
        read(write(path, rows[1:]), skip_empty=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "name the data with path, name or hub"),
        ({"path": "a", "hub": "b"}, "path and hub cannot both be given"),
        ({"path": "a", "colums": {}}, "key 'colums' is not known. Did you mean 'columns'"),
        ({"path": "a", "num_negatives": -1}, "'num_negatives' is -1, expected at least 0"),
        ({"path": "a", "held_out": 1.5}, "'held_out' is 1.5"),
        ({"path": "a", "part": "test"}, "'part' is 'test', not 'train' or 'held_out'"),
        ({"path": "a", "part": "held_out"}, "needs held_out"),
        ({"path": "a", "weight": 0.0}, "'weight' is 0.0"),
        ({"path": "x.jsonl", "format": "tevatrom"}, "format 'tevatrom' is not known. Did you mean"),
        ({"name": "stsbb"}, "no training set 'stsbb'. Did you mean 'stsb'"),
        ({"name": "stsb"}, "training set 'stsb' needs the folder of data sets"),
        ({"path": __file__}, "unknown file type 'py'"),
        ({"path": "missing.jsonl"}, "missing.jsonl: no such file"),
    ],
)
def test_a_table_that_says_nothing_is_refused(table, message):
    with pytest.raises(PolyvecError, match=message):
        training_rows(table)


# ---- in memory ----------------------------------------------------------------------------------


def test_dicts_in_memory_are_read_by_the_order_of_their_columns():
    """sentence-transformers: the order counts, not the names; score and label are reserved."""
    found = rows_of([{"frage": "q", "antwort": "a", "falsch": "n"}], name="mine")
    assert found.rows[0].texts == ("q", "a", "n")
    assert found.rows[0].dataset == "mine"
    assert found.rows[0].matches
    (row,) = rows_of([{"a": "x", "b": "y", "label": 0.5}]).rows
    assert (row.texts, row.score, row.label) == (("x", "y"), 0.5, None)
    (row,) = rows_of([{"a": "x", "b": "y", "label": 2}]).rows
    assert (row.score, row.label, row.matches) == (None, 2, False)
    # margin-MSE: one score for each document
    (row,) = rows_of([{"a": "x", "b": "y", "c": "z", "scores": [3.0, 1.0]}]).rows
    assert (row.teacher_scores, row.matches) == ((3.0, 1.0), True)
    with pytest.raises(DataError, match="the data set is empty"):
        rows_of([])


def test_columns_of_targets_are_those_of_sentence_transformers():
    collator = pytest.importorskip("sentence_transformers.base.data_collator")
    assert list(TARGETS) == list(collator.DEFAULT_LABEL_COLUMNS)


def test_a_hugging_face_dataset():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"one": ["a", "b"], "two": ["c", "d"]})
    assert [row.texts for row in rows_of(data, name="hf").rows] == [("a", "c"), ("b", "d")]


def test_a_set_of_the_hub_without_a_connection():
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"hub nobody/nothing: could not load .*name its files"):
        training_rows({"hub": "nobody/nothing"})


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.table(columns), path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """datasets reads a folder of the working directory as if it were a data set of the hub."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.medium
def test_splits_of_the_hub_are_data_sets_of_their_own(hub):
    parquet(hub / "cfli/data/data/eli5-00000-of-00001.parquet", query=["q"], pos=[["p"]])
    parquet(hub / "cfli/data/data/nq-00000-of-00001.parquet", query=["r"] * 2, pos=[["s"]] * 2)
    found = training_sets({"hub": "cfli/data", "split": "*"})
    assert {each.name: len(each.rows) for each in found} == {"cfli/data/eli5": 1, "cfli/data/nq": 2}
    assert [row.place for row in found[1].rows] == [f"cfli/data/nq row {i}" for i in range(2)]
    (one,) = training_sets({"hub": "cfli/data", "split": "nq", "name": "mine"})
    assert (one.name, one.rows[0].dataset) == ("mine", "mine")
    with pytest.raises(DataError, match="could not load the data set's split 'train'"):
        training_rows({"hub": "cfli/data"})


@pytest.mark.medium
def test_data_sets_of_sentence_transformers_go_by_the_order_of_their_columns(hub):
    parquet(hub / "sentence-transformers/x/train.parquet", title1=["a"], title2=["b"])
    parquet(hub / "other/x/train.parquet", title1=["a"], title2=["b"])
    (row,) = training_rows({"hub": "sentence-transformers/x"})
    assert row.texts == ("a", "b")
    with pytest.raises(DataError, match="no form of training data has the columns title1, title2"):
        training_rows({"hub": "other/x"})


def test_files_of_a_repository_of_the_hub(tmp_path, monkeypatch):
    """Found in the hub's cache, in its layout."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "datasets--GritLM--MEDI"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in ("a", "b"):
        write(snapshot / f"{name}.jsonl", [PUBLISHED["gritlm_medi"][0]])
    (snapshot / "wiki.txt").write_text("one\ntwo\n")
    found = training_sets({"hub": "GritLM/MEDI", "files": "*.jsonl", "format": "medi"})
    assert [each.name for each in found] == ["a", "b"]
    assert [row.query for row in training_rows({"hub": "GritLM/MEDI", "files": ["wiki.txt"]})] == [
        "one",
        "two",
    ]
    with pytest.raises(DataError, match="no data file matches"):
        training_rows({"hub": "GritLM/MEDI", "files": "*.csv"})
    with pytest.raises(DataError, match="could not load the data set's files"):
        training_rows({"hub": "nobody/nothing", "files": "*.csv"})


def test_options_of_a_table(tmp_path):
    rows = [{"query": f"q{i}", "positive": "p", "lang": "en" if i % 2 else "de"} for i in range(40)]
    path = write(tmp_path / "x.jsonl", rows)
    assert {int(row.query[1:]) % 2 for row in read(path, where={"lang": "en"})} == {1}
    assert len(read(path, where={"lang": ["en", "de"]})) == 40
    limited = read(path, limit=10)
    assert len(limited) == 10
    assert [row.query for row in limited] != [f"q{i}" for i in range(10)]
    assert limited == read(path, limit=10)
    (row, *_) = read(path, instruction="Find", document_instruction="", symmetric=True)
    assert (row.instruction, row.document_instruction, row.symmetric) == ("Find", "", True)
    assert read(path, instructions={"x": "By name"})[0].instruction == "By name"
    assert not read(path, in_batch=False)[0].in_batch


def test_pairs_above_a_score_become_positives(tmp_path):
    rows = [{"sentence1": str(i), "sentence2": "b", "score": float(i)} for i in range(5)]
    found = read(write(tmp_path / "x.jsonl", rows), min_score=3.0)
    assert [(row.query, row.score) for row in found] == [("3", None), ("4", None)]
    assert all(row.matches for row in found)


def test_the_held_out_part_and_the_training_part_share_no_query(tmp_path):
    rows = [{"query": f"q{i % 300}", "positive": f"p{i}"} for i in range(600)]
    path = write(tmp_path / "x.jsonl", rows)
    train, rest = read(path, held_out=0.2), read(path, held_out=0.2, part="held_out")
    assert len(train) + len(rest) == 600
    assert not {row.query for row in train} & {row.query for row in rest}
    assert 60 < len(rest) < 180
    with pytest.raises(SettingsError, match=r"'held_out' is -0\.1"):
        read(path, held_out=-0.1)


def test_a_text_that_is_held_out_is_no_document_of_another(tmp_path):
    rows = [{"text": f"{label}{i}", "label": label} for i in range(50) for label in "abc"]
    path = write(tmp_path / "x.jsonl", rows)
    train = read(path, format="classes", held_out=0.3)
    rest = read(path, format="classes", held_out=0.3, part="held_out")
    assert len(train) + len(rest) == 150
    texts = [{text for row in part for text in row.texts} for part in (train, rest)]
    assert not texts[0] & texts[1]
    with pytest.raises(SettingsError, match="of successive texts none can be held out"):
        read(path, format="successive", held_out=0.3)


def test_stored_instructions(tmp_path):
    """The Echo collection: a folder of files, each with its own instruction."""
    for name in ("nq", "quora_duplicates_split1"):
        write(tmp_path / f"{name}.jsonl", [{"query": "q", "positive": "p", "negative": "n"}])
    nq, quora = training_sets({"path": str(tmp_path), "instructed": True})
    assert (nq.name, quora.name) == ("nq", "quora_duplicates_split1")
    assert nq.rows[0].instruction == (
        "Given a question, retrieve Wikipedia passages that answer the question"
    )
    assert not nq.rows[0].symmetric
    assert quora.rows[0].symmetric
    write(tmp_path / "squadd.jsonl", [{"query": "q", "positive": "p"}])
    with pytest.raises(
        DataError, match=r"no stored instruction for 'squadd'. Did you mean 'squad'"
    ):
        training_sets({"path": str(tmp_path), "instructed": True})


# ---- folders ------------------------------------------------------------------------------------


def test_a_folder_of_files_is_a_data_set_each(tmp_path):
    for name in ("a", "b-no_in_batch_neg"):
        write(tmp_path / f"{name}.jsonl", [{"query": "q", "pos": ["p"], "neg": []}])
    (tmp_path / "README.md").write_text("not data")
    found = training_sets({"path": str(tmp_path)})
    assert [each.name for each in found] == ["a", "b-no_in_batch_neg"]
    assert [each.rows[0].in_batch for each in found] == [True, False]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no data files"):
        read(tmp_path / "empty")


def test_tasks_of_one_file_are_data_sets_of_their_own(tmp_path):
    rows = [{**PUBLISHED["medi"][0], "task_id": number % 2} for number in range(6)]
    found = training_sets({"path": str(write(tmp_path / "medi.jsonl", rows))})
    assert {each.name: len(each.rows) for each in found} == {"medi/0": 3, "medi/1": 3}


def beir(folder):
    (folder / "qrels").mkdir()
    write(
        folder / "corpus.jsonl",
        [
            {"_id": "d1", "title": "T", "text": "one"},
            {"_id": "d2", "title": "", "text": "two"},
            {"_id": "d3", "text": "three"},
        ],
    )
    write(
        folder / "queries.jsonl",
        [
            {"_id": "q1", "text": "1?", "lang": "en"},
            {"_id": "q2", "text": "2?", "lang": "de"},
            {"_id": "q3", "text": "test?", "lang": "en"},
        ],
    )
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td2\t1\nq1\td1\t2\nq1\td3\t0\nq2\td3\t1\n"
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t1\n")
    return folder


def test_beirs_training_split(tmp_path):
    first, second = read(beir(tmp_path))
    assert first.texts == ("1?", "T one", "two", "three")
    assert first.positives == ("T one", "two")  # the higher grade first
    assert second.texts == ("2?", "three")
    assert [row.query for row in read(tmp_path, where={"lang": "en"})] == ["1?"]
    assert [row.positives for row in read(tmp_path, min_score=2.0)] == [("T one",)]
    (tmp_path / "qrels" / "train.tsv").write_text("q1\td9\t1\n")
    with pytest.raises(DataError, match=r"train.tsv:1: id 'd9' is not among the 3 texts"):
        read(tmp_path)


def test_documents_by_id_beside_a_corpus(tmp_path):
    corpus = write(
        tmp_path / "corpus.jsonl", [{"docid": str(i), "text": f"d{i}"} for i in range(4)]
    )
    path = write(
        tmp_path / "train.jsonl",
        [
            {
                "query_id": "1",
                "query_text": "q",
                "positive_document_ids": ["2"],
                "negative_document_ids": ["0", "3"],
            }
        ],
    )
    (row,) = read(path, corpus=str(corpus))
    assert row.texts == ("q", "d2", "d0", "d3")
    with pytest.raises(DataError, match="documents are named by id; give their file with corpus"):
        read(path, format="tevatron_ids")
    with pytest.raises(DataError, match="documents are named by id; give their file with corpus"):
        read(path)
