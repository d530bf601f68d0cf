"""Index over the engine in a folder: what goes in is found, in every way, and nothing is lost."""

import json

import numpy as np
import pytest
from hashed_words import HashedWords, Several, Sparse

from polyvec import Index
from polyvec.data.texts import Record
from polyvec.errors import DataError, IndexStoreError, InputError, ModelError
from polyvec.index import adding
from polyvec.index.plain import PlainIndex
from polyvec.interfaces import DenseVectors
from polyvec.rerank.reranker import Reranker

pytest.importorskip("lancedb")
TEXTS = {
    "a": "cat boat",
    "b": "dog boat river",
    "c": "moon bread",
    "d": "stone river code",
    "e": "cat boat",
}


class Counting(HashedWords):
    """Counts the texts that it encodes."""

    seen = 0

    def encode_iter(self, inputs, **options):
        inputs = list(inputs)
        if options.get("role") == "document":
            self.seen += len(inputs)
        return super().encode_iter(inputs, **options)


def records(names=TEXTS, **metadata):
    return [
        Record(name, TEXTS[name], {"place": place, **metadata}) for place, name in enumerate(names)
    ]


@pytest.fixture
def model():
    return Counting()


@pytest.fixture
def index(tmp_path, model):
    with Index.create(tmp_path / "index", model, model="hashed") as index:
        index.add(records(), show_progress_bar=False)
        yield index


def ids(hits):
    return [hit.id for hit in hits]


def test_what_is_added_is_there_and_is_found(tmp_path, model, index):
    assert len(index) == 5
    assert {record.id: record.text for record in index} == TEXTS
    assert index.get(["c", "x", "a"]) == [records()[2], records()[0]]
    (hits,) = index.search("cat boat", top_k=2)
    assert set(ids(hits)) == {"a", "e"}
    assert hits[0].score == pytest.approx(1)
    assert hits[0].metadata in ({"place": 0}, {"place": 4})
    opened = Index.open(tmp_path / "index", model)
    assert opened.search(["cat boat", "moon"], top_k=2) == index.search(
        ["cat boat", "moon"], top_k=2
    )
    assert opened.description == index.description


def test_equal_texts_are_encoded_once_and_known_ones_never(index, model):
    assert model.seen == 4
    report = index.add([Record("f", "moon bread"), Record("g", "new text"), *records("ab")])
    assert (report.num_texts, report.num_embedded, report.num_written) == (4, 1, 2)
    assert model.seen == 5
    report = index.add(records("ab", year=7))
    assert (report.num_embedded, report.num_written) == (0, 2)
    assert index.get(["a"])[0].metadata == {"place": 0, "year": 7}
    vectors = {record.id: row for record, row in zip(index, index.vectors_NE, strict=True)}
    np.testing.assert_array_equal(vectors["f"], vectors["c"])


def test_vectors_that_were_made_elsewhere(index, model):
    vectors = DenseVectors(model.encode(["zebra", "lion"]))
    seen = model.seen
    with pytest.raises(InputError, match="2 vectors for 1 records"):
        index.add([Record("z", "a text")], vectors=vectors)
    index.add([Record("z", "a text", {"new": 1}), Record("l", "a text")], vectors=vectors)
    assert model.seen == seen
    assert ids(index.search("zebra", top_k=1)[0]) == ["z"]
    with pytest.raises(DataError, match="'y' holds NaN"):
        index.add([Record("y", "t")], vectors=DenseVectors(np.full((1, 64), np.nan, np.float32)))
    assert len(index) == 7


def test_a_chunk_is_read_with_its_header_and_reused_only_with_it(index, model):
    chunk = {"document": "book", "start": 0, "end": 9}
    index.add([Record("book#0", "moon bread", {**chunk, "header": "stone"})])
    assert index.get(["book#0"])[0].text == "moon bread"
    (hits,) = index.search("stone moon bread", top_k=1)
    assert (hits[0].id, hits[0].score) == ("book#0", pytest.approx(1))
    report = index.add([Record("x#0", "moon bread", {**chunk, "header": "stone"})])
    assert report.num_embedded == 0
    report = index.add([Record("y#0", "moon bread", {**chunk, "header": "river"})])
    assert report.num_embedded == 1


def test_update_and_delete(index):
    with pytest.raises(DataError, match="no text 'x' to update"):
        index.update([Record("a", "new"), Record("x", "y")])
    assert index.get(["a"])[0].text == "cat boat"
    index.update([Record("a", "violin")])
    assert ids(index.search("violin", top_k=1)[0]) == ["a"]
    assert index.delete(["a", "x"]) == 1
    assert len(index) == 4
    assert "a" not in ids(index.search("violin", top_k=9)[0])


@pytest.mark.parametrize("kind", [HashedWords, Sparse, Several])
def test_each_form_is_stored_and_found(tmp_path, kind):
    model = kind()
    with Index.create(tmp_path / "index", model) as index:
        index.add(records(), show_progress_bar=False)
        index.add(records("ab", again=True))
        (hits,) = index.search(["river stone"], top_k=1)
        assert ids(hits) == ["d"]


def test_words_and_both(index):
    assert ids(index.search("code", mode="words")[0]) == ["d"]
    assert index.search("zebra", mode="words") == [[]]
    (hits,) = index.search("river boat", mode="hybrid", explain=True)
    assert hits[0].id == "b"
    why = {each.name: each for each in hits[0].explanation.components}
    assert why["dense"].rank == why["words"].rank == why["fused"].rank == 1
    assert hits[0].score == why["fused"].score == pytest.approx(2 / 61)
    assert hits[0].explanation.terms == pytest.approx(
        {"river": why["words"].score / 2, "boat": why["words"].score / 2}, rel=0.4
    )
    assert sum(hits[0].explanation.terms.values()) == pytest.approx(why["words"].score, abs=1e-3)
    (by_score,) = index.search("river boat", mode="hybrid", fusion="score", weights=(0.5, 0.5))
    assert by_score[0].id == "b" and by_score[0].score == pytest.approx(1)


def test_words_that_are_left_out_are_those_that_carry_a_score(index):
    (hits,) = index.search("river", top_k=1, explain=True)
    why = hits[0].explanation
    assert why.method == "left out"
    best = max(why.shares, key=lambda each: each.score)
    assert (best.text, hits[0].text[best.start : best.end]) == ("river", "river")


def test_filters(index):
    assert ids(index.search("cat boat", filter="place > 1", top_k=1)[0]) == ["e"]
    assert index.count({"place": {"$lte": 1}}) == 2
    for call in (index.search, lambda query, filter: index.count(filter)):
        with pytest.raises(
            InputError, match=r"the index has no field 'plac'\. Did you mean 'place'"
        ):
            call("cat", filter="plac = 1")


def test_a_field_of_another_kind_is_one_error_and_nothing_is_written(index):
    with pytest.raises(DataError, match="text 'y': field 'place' is 'x', but int in this index"):
        index.add([Record("x", "fine"), Record("y", "text", {"place": "x"})])
    assert len(index) == 5
    with pytest.raises(DataError, match="'a-b' is not a field's name"):
        index.add([Record("x", "fine", {"a-b": 1})])
    index.add([Record("x", "fine", {"size": 1}), Record("y", "good", {"size": 0.5})])
    assert index.description.fields["size"] == "float"


class Longest(Reranker):
    def scores(self, pairs, instructions=None):
        return np.array([len(document) for _, document in pairs], np.float32)


def test_a_reranker_orders_the_best_anew(index):
    (hits,) = index.search(
        "cat boat river", rerank=Longest(), rerank_depth=3, top_k=2, explain=True
    )
    assert hits[0].id == "b"
    assert hits[0].explanation.components[-1].name == "reranked"
    assert hits[0].score == len(TEXTS["b"])


def test_build_makes_it_hold_exactly_these(tmp_path, model):
    where = tmp_path / "index"
    index, report = Index.build(where, records("abc"), model, model="m")
    assert (report.num_embedded, report.num_deleted, len(index)) == (3, 0, 3)
    index, report = Index.build(where, records("bcd"), model, model="other name")
    assert (report.num_embedded, report.num_deleted, len(index)) == (1, 1, 3)
    assert index.description.model == "other name"
    assert {record.id for record in Index.open(where)} == set("bcd")


def test_another_model_is_refused_and_a_build_with_it_replaces_the_index(tmp_path, index, model):
    other = Counting(32)
    for call in (index.search, lambda text, model: index.add([Record("x", text)], model)):
        with pytest.raises(IndexStoreError, match=r"built with another model \(hashed\)"):
            call("a", other)
    with pytest.raises(IndexStoreError, match="another model"):
        Index.open(tmp_path / "index", other)
    reader = Index.open(tmp_path / "index")
    built, report = Index.build(tmp_path / "index", records("ab"), other)
    assert (report.num_embedded, len(built)) == (2, 2)
    assert built.description.dimensions == {"dense": 32}
    assert len(list((tmp_path / "index").glob("texts-*"))) == 1
    assert len(reader) == 2, "an index that is open follows"


def test_a_build_that_fails_leaves_the_old_index_and_is_taken_up(tmp_path, index, monkeypatch):
    where, other = tmp_path / "index", Counting(32)
    encode = HashedWords.encode_iter

    def broken(self, inputs, **options):
        for number, chunk in enumerate(encode(self, inputs, **{**options, "chunk_size": 1})):
            yield chunk if number != 2 else np.full_like(chunk, np.nan)

    monkeypatch.setattr(adding, "CHUNK", 1)  # texts that are stored at a time
    monkeypatch.setattr(HashedWords, "encode_iter", broken)
    with pytest.raises(ModelError, match="the vector of text 'c' holds NaN"):
        Index.build(where, records(), other)
    monkeypatch.undo()
    assert len(Index.open(where)) == 5
    assert Index.open(where).description.dimensions == {"dense": 64}
    _, report = Index.build(where, records(), other)
    assert report.num_embedded == 4 - 2


def test_a_prompt_of_its_own_is_kept(tmp_path, model):
    index = Index.create(tmp_path / "index", model, prompt="boat")
    index.add([Record("a", "cat")])
    (hits,) = index.search("cat boat", model, top_k=1, prompt="")
    assert hits[0].score == pytest.approx(1)
    assert json.loads(index.description.asked) == {"prompt": "boat"}


def test_two_writers(tmp_path, index, model):
    other = Index.open(tmp_path / "index", model)
    with index.engine.writing():
        for write in (
            lambda: other.add([Record("x", "y")]),
            lambda: other.delete(["a"]),
            other.compact,
            lambda: Index.build(tmp_path / "index", records("a"), model),
        ):
            with pytest.raises(IndexStoreError, match="another process is writing this index"):
                write()
        assert len(other) == 5, "readers need no lock"
    other.delete(["a"])
    assert len(index) == 4


def test_a_newer_format_is_refused(tmp_path, index, model):
    path = tmp_path / "index" / "polyvec.json"
    stored = json.loads(path.read_text())
    stored["description"] |= {"format": 4, "new key": 1}
    path.write_text(json.dumps(stored))
    with pytest.raises(IndexStoreError, match="index format 4, this version reads 3"):
        Index.open(tmp_path / "index")
    path.write_text(path.read_text().replace('"format": 4', '"format": 3'))
    with pytest.raises(IndexStoreError, match="damaged"):
        Index.open(tmp_path / "index")


def test_a_folder_of_other_files_is_not_touched(tmp_path, model):
    (tmp_path / "mine.txt").write_text("mine")
    for make in (Index.create, lambda where, model: Index.build(where, records(), model)):
        with pytest.raises(IndexStoreError, match="contains other files and no index"):
            make(tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_plain_folder_stays_one(tmp_path, model):
    PlainIndex.build(tmp_path / "plain", records("abc"), model)
    _, report = Index.build(tmp_path / "plain", records("bcd"), model)
    assert report.num_embedded == 1
    assert (tmp_path / "plain" / "manifest.json").is_file()
    opened = Index.open(tmp_path / "plain", model)
    assert list(opened) == records("bcd") == PlainIndex.open(tmp_path / "plain").items
    assert ids(opened.search("river", filter="place < 2", top_k=1)[0]) == ["b"]
    with pytest.raises(IndexStoreError, match="is built as a whole"):
        opened.add(records("a"))
    with pytest.raises(InputError, match="ranks no words"):
        opened.search("river", mode="words")


def test_an_index_is_not_made_one_of_plain_files(tmp_path, index, model):
    with pytest.raises(IndexStoreError, match="not of plain files; leave out --plain"):
        PlainIndex.build(tmp_path / "index", records(), model)
    with pytest.raises(IndexStoreError, match="contains an index already"):
        Index.create(tmp_path / "index", model)
    assert len(index) == 5


def test_places(tmp_path, model):
    with pytest.raises(InputError, match="no engine for 'ftp'"):
        Index.open("ftp://host/texts")
    with pytest.raises(InputError, match="mode 'both' is not known"):
        Index.create(tmp_path / "index", model).search("a", mode="both")


def test_an_addition_is_one_write(index, monkeypatch):
    """A kill between the known texts and the new ones would leave a part of an addition."""
    written = []
    upsert = type(index.engine).upsert

    def counted(engine, rows):
        written.append(rows.ids)
        upsert(engine, rows)

    monkeypatch.setattr(type(index.engine), "upsert", counted)
    (known, *_) = [record.text for record in index]
    report = index.add([Record("again", known), Record("new", "a text that is new")])
    assert [sorted(ids) for ids in written] == [["again", "new"]]
    assert report.num_embedded == 1 and report.num_written == 2
    assert {record.id for record in index.get(["again", "new"])} == {"again", "new"}


def test_what_no_engine_can_take_is_told_before_it_is_asked(tmp_path, model):
    with Index.create(tmp_path / "own", model) as index:
        index.add([Record("a", "a cat", {"lang": "en"})])
        broken = "\ud800"
        for call in (
            lambda: index.search([broken], mode="words"),
            lambda: index.get([broken]),
            lambda: index.delete(["a", broken]),
            lambda: index.count({"lang": broken}),
        ):
            with pytest.raises(InputError, match="not valid"):
                call()
        with pytest.raises(InputError, match=r"expected DenseVectors\(array\)"):
            index.add([Record("b", "b")], vectors=index.vectors_NE)
        assert [record.id for record in index] == ["a"]
        for mode in ("dense", "words", "hybrid"):
            (hits,) = index.search(["cat"], mode=mode, top_k=10**12)
            assert [hit.id for hit in hits] == ["a"]
