"""polyvec index and search: metadata, filters, words, explanations, the interactive mode."""

import json
import re

import numpy as np
import pytest

from polyvec import Embedder, Index
from polyvec.data.texts import Record
from polyvec.embed.late_chunking import late_chunk_vectors
from polyvec.errors import InputError

pytest.importorskip("lancedb")

ROWS = [
    {"id": "cat", "text": "A cat sleeps on the warm mat.", "year": 2001, "lang": "en"},
    {"id": "dog", "text": "A dog barks at the postman.", "year": 2010, "lang": "en"},
    {
        "id": "river",
        "text": "The river crosses ten borders on its way.",
        "year": 2020,
        "lang": "de",
    },
]


@pytest.fixture
def folder(run, tiny_bert, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    done = run("index", tmp_path / "index", file, "--model", tiny_bert)
    assert done.status == 0, done.err
    return tmp_path / "index"


def found(done):
    assert done.status == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_metadata_is_kept_and_filters(run, one_line, folder):
    rows = found(run("search", folder, "a", "--json", "--filter", 'year >= 2010 and lang = "en"'))
    assert [(row["id"], row["metadata"]) for row in rows] == [("dog", {"year": 2010, "lang": "en"})]
    error = one_line(run("search", folder, "a", "--filter", "yaer > 1"))
    assert "the index has no field 'yaer'. Did you mean 'year'?" in error
    assert "expected" in one_line(run("search", folder, "a", "--filter", "year >"))


def test_words_hybrid_and_why(run, folder):
    done = run("search", folder, "the rivers", "--words")
    (line,) = done.out.splitlines()
    assert line.split(maxsplit=1)[1] == "river  The river crosses ten borders on its way."
    rows = found(run("search", folder, "cat postman", "--hybrid", "--explain", "--json", "-k", 2))
    names = [each["name"] for each in rows[0]["explanation"]["components"]]
    assert names == ["dense", "words", "fused"]
    printed = run("search", folder, "cat", "--hybrid", "--explain").out
    assert "(rank 1)" in printed and "words: cat " in printed and "dense, " in printed


def test_the_shares_of_a_mean_add_up_to_its_score(run, folder):
    (row,) = found(run("search", folder, "cat", "--explain", "--json", "-k", 1))
    why = row["explanation"]
    assert why["method"] == "token states"
    total = sum(each["score"] for each in why["shares"]) + why["rest"]
    assert total == pytest.approx(row["score"], abs=2e-3)
    assert [each["text"] for each in why["shares"]] == row["text"].replace(".", "").split()


def test_a_reranker_orders_the_best(run, one_line, folder, tiny_bert):
    kind = f"late_interaction vectors=states model={tiny_bert}"
    rows = found(run("search", folder, "a cat", "--rerank", kind, "--explain", "--json"))
    last = [row["explanation"]["components"][-1] for row in rows]
    assert [each["name"] for each in last] == ["reranked"] * 3
    assert [each["rank"] for each in last] == [1, 2, 3]
    assert [row["score"] for row in rows] == [each["score"] for each in last]
    error = one_line(run("search", folder, "a", "--rerank", "cross_encodr"))
    assert "'cross_encodr' is not known" in error


def test_add_delete_compact(run, one_line, folder, tmp_path):
    (tmp_path / "more.txt").write_text("a violin\na dog\n")
    assert "5 texts, 2 newly embedded" in run("index", folder, tmp_path / "more.txt", "--add").err
    assert "5 texts, 0 newly embedded" in run("index", folder, tmp_path / "more.txt", "--add").err
    assert "4 texts, 1 deleted" in run("index", folder, "--delete", "0", "nope").err
    assert "4 texts" in run("index", folder, "--compact").err
    assert "reads no FILE" in one_line(run("index", folder, tmp_path / "more.txt", "--compact"))
    assert "leave out --prompt" in one_line(run("index", folder, "--add", "--prompt", "x"))
    error = one_line(run("index", tmp_path / "none", tmp_path / "more.txt", "--add"))
    assert "contains no index" in error
    (tmp_path / "bad.jsonl").write_text('{"id": "x", "text": "y", "year": "late"}')
    error = one_line(run("index", folder, tmp_path / "bad.jsonl", "--add"))
    assert "text 'x': field 'year' is 'late', but int in this index" in error
    assert "4 texts" in run("index", folder, "--compact").err


def test_several_files_have_ids_of_their_own(run, one_line, tiny_bert, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}\n")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert "2 texts" in run("index", tmp_path / "i", *files, "--model", tiny_bert).err
    rows = found(run("search", tmp_path / "i", "a", "--json"))
    assert {row["id"] for row in rows} == {"a.txt:0", "b.txt:0"}
    error = one_line(run("index", tmp_path / "i", files[0], files[0], "--model", tiny_bert))
    assert "two FILEs have one name" in error


def test_chunks_name_their_document_and_characters(run, one_line, tiny_bert, tmp_path):
    text = "The cat sleeps. The dog barks loudly at night. The river flows to the sea."
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "book", "text": text, "year": 1}))
    cut = ("--chunk", "sentence size=8")
    done = run("index", tmp_path / "i", tmp_path / "long.jsonl", "--model", tiny_bert, *cut)
    assert done.status == 0, done.err
    for row in found(run("search", tmp_path / "i", "river", "--json")):
        held = row["metadata"]
        assert (held["document"], held["year"]) == ("book", 1)
        assert text[held["start"] : held["end"]] == row["text"]
    (line, *_) = run("search", tmp_path / "i", "river sea", "--words").out.splitlines()
    assert f"book [{text.index('The river')}:{len(text)}]" in line
    many = len(found(run("search", tmp_path / "i", "river", "--json", "-k", 50)))
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "book", "text": text[:15], "year": 1}))
    done = run("index", tmp_path / "i", tmp_path / "long.jsonl", "--add")
    assert f"1 texts, 0 newly embedded, {many - 1} deleted" in done.err
    error = one_line(
        run("index", tmp_path / "i", tmp_path / "long.jsonl", "--add", "--chunk", "fixed")
    )
    assert "built with --chunk 'sentence" in error
    assert "0 texts, 1 deleted" in run("index", tmp_path / "i", "--delete", "book").err


def test_late_chunks_have_the_vectors_of_the_function(run, one_line, tiny_bert, tmp_path):
    texts = {
        "book": "The cat sleeps. The dog barks loudly at night. The river flows to the sea.",
        "page": "The cat sleeps. A boat is on the river.",  # its first chunk's text is the same
    }
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    cut = ("--chunk", "late by=sentence size=8")
    done = run("index", tmp_path / "i", tmp_path / "two.jsonl", "--model", tiny_bert, *cut)
    assert done.status == 0, done.err
    embedder = Embedder.from_pretrained(tiny_bert)
    with Index.open(tmp_path / "i", embedder) as index:
        records, vectors_NE = list(index), index.vectors_NE
    for name, text in texts.items():
        own = [row for row, each in enumerate(records) if each.metadata["document"] == name]
        places = [(records[row].metadata["start"], records[row].metadata["end"]) for row in own]
        assert [text[start:end] for start, end in places] == [records[row].text for row in own]
        (expected,) = late_chunk_vectors(embedder, [text], [places])
        np.testing.assert_allclose(vectors_NE[own], expected, atol=1e-6)
    alone = embedder.encode_document([each.text for each in records])
    assert np.abs(vectors_NE - alone).max() > 1e-3, "the chunks were embedded by themselves"
    (row, *_) = found(run("search", tmp_path / "i", "boat river", "--hybrid", "--json"))
    held = row["metadata"]
    assert texts[held["document"]][held["start"] : held["end"]] == row["text"]
    # Nothing changed: nothing is read. A longer end of a document changes all of its chunks.
    again = run("index", tmp_path / "i", tmp_path / "two.jsonl", "--add")
    assert f"{len(records)} texts, 0 newly embedded" in again.err
    (tmp_path / "one.jsonl").write_text(
        json.dumps({"id": "page", "text": texts["page"] + " The dog swims to the boat."})
    )
    again = run("index", tmp_path / "i", tmp_path / "one.jsonl", "--add")
    assert f"{len(records) + 1} texts, 3 newly embedded" in again.err
    with Index.open(tmp_path / "i", embedder) as index, pytest.raises(InputError, match="late="):
        index.add([Record("book#0", "alone")])
    error = one_line(run("index", tmp_path / "j", "--chunk", "late header=title", stdin=b"a"))
    assert "late chunks have no header" in error


def test_interactive(run, one_line, folder):
    lines = [
        "cat", ":words", "river", ":filter lang = 'en'", "river", ":filter yaer = 1", ":filter",
        ":k 1", ":hybrid", "dog", ":explain", "dog", ":explain", "dog", ":nope", ":k x", "",
        ":help", ":quit", "cat",
    ]  # fmt: skip
    done = run("search", folder, "-i", "--json", stdin="\n".join(lines).encode())
    rows = found(done)
    queries = [row["query"] for row in rows]
    assert queries == ["cat"] * 3 + ["river"] + ["dog"] * 3
    assert ["explanation" in row for row in rows[-3:]] == [False, True, False]
    errors = [line for line in done.err.splitlines() if "polyvec: " in line]
    assert len(errors) == 3 and "no field 'yaer'" in errors[0]
    assert ":hybrid" in done.err
    assert run("search", folder, "--interactive", stdin=b"cat\n").status == 0
    assert "leave out QUERY" in one_line(run("search", folder, "-i", "cat"))
    assert "no query" in one_line(run("search", folder))
    for words in (["--top-k", 1, "cat"], ["cat", "-k", 1], ["-k", 1, "cat", "--json", "dog"]):
        done = run("search", folder, *words)
        assert (done.status, len(done.out.splitlines())) == (0, 1 + ("dog" in words)), words
    assert "unrecognized arguments: --nope" in one_line(run("search", folder, "cat", "--nope", "a"))


def test_on_a_terminal_it_is_a_table(run, folder, monkeypatch, capsys):
    import sys

    from polyvec.cli import search_output
    from polyvec.index.records import Component, Explanation, Hit

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    chunk = {"document": "book", "start": 5, "end": 25}
    why = Explanation((Component("dense", 1, 0.5),), terms={"kitten": 1.5})
    search_output.show([Hit("book#0", 0.5, "two kittens sleep", chunk, why)], "kitten")
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "book [5:25]" in printed and "two kittens sleep" in printed
    assert "dense 0.500 (rank 1)" in printed and "kitten 1.50" in printed


def test_without_the_package_it_says_what_to_do(run, one_line, tmp_path, tiny_bert, monkeypatch):
    import sys

    for name in [each for each in sys.modules if each.startswith("polyvec.index.engines.lance")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    error = one_line(run("index", tmp_path / "i", "--model", tiny_bert, stdin=b"a\n"))
    assert "pip install 'polyvec[index]'" in error and "--plain" in error
    done = run("index", tmp_path / "i", "--plain", "--model", tiny_bert, stdin=b"a\n")
    assert done.status == 0
    assert run("search", tmp_path / "i", "a").out.endswith("  0  a\n")
