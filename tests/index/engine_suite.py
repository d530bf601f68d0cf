"""What every engine does, as tests: a test file per engine inherits from EngineSuite."""

import itertools

import numpy as np
import pytest

from polyvec.errors import IndexStoreError
from polyvec.index.engines.interface import Description, Engine, Rows
from polyvec.index.filters import In, Not, matches, read_filter
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors

WIDTH = 8
FIELDS = {"lang": "text", "year": "int", "weight": "float", "draft": "bool"}
FILTERS = (
    'lang = "en"',
    'lang != "en"',
    'not lang = "en"',
    "year >= 2003 and year < 2007",
    "year in (2001, 2004, 1999)",
    'lang not in ("en", "de")',
    "weight > 0.45",
    "weight <= 1",
    "year > 2003.5",
    "draft = true",
    "draft != true",
    "not draft exists",
    'lang = "en" or (year = 2002 and not draft = false)',
    """lang = "it's \\"odd\\" %_\\\\ æ\"""",
)
WORDS = ("kitten", "engine", "river", "violin", "granite", "lantern")


def rows_of(numbers, width=WIDTH, forms=("dense",), seed=0):
    """Rows that differ by number: some lack some fields, some texts are odd."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((1000, width)).astype(np.float32)[list(numbers)]
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    metadata = []
    for number in numbers:
        row = {"lang": ("en", "de", 'it\'s "odd" %_\\ æ')[number % 3], "year": 2000 + number % 10}
        if number % 2:
            row["weight"] = number % 10 / 10
        if number % 5 < 2:
            row["draft"] = number % 5 == 0
        metadata.append(row)
    texts = [f"number {n} of {WORDS[n % len(WORDS)]}, 'quoted' \"text\"\n日本 {n}" for n in numbers]
    vectors = {}
    if "dense" in forms:
        vectors["dense"] = DenseVectors(dense)
    if "sparse" in forms:
        vectors["sparse"] = SparseVectors.of(np.where(dense > 0.2, dense, 0))
    if "multi" in forms:
        tokens = [
            np.stack([row, np.roll(row, 1), np.roll(row, 2)])[: 1 + i % 3]
            for i, row in enumerate(dense)
        ]
        vectors["multi"] = MultiVectors.of(tokens, width)
    return Rows([f"id/{n} é" for n in numbers], texts, metadata, vectors)


class EngineSuite:
    """Inherited by a class with the fixtures `kind` (a subclass of Engine) and `where`."""

    @pytest.fixture
    def engine(self, kind, where):
        engine = kind.create(where, self.description(("dense",)))
        yield engine
        engine.close()

    @staticmethod
    def description(forms, similarity="cosine"):
        return Description(
            "a-model", "0" * 64, similarity, dict.fromkeys(forms, WIDTH), fields=FIELDS
        )

    def test_rows_come_back_as_they_were_written(self, engine: Engine):
        rows = rows_of(range(30))
        engine.upsert(rows)
        found = engine.get([rows.ids[7], "absent", rows.ids[3]], vectors=True)
        assert list(found.ids) == [rows.ids[7], rows.ids[3]]
        assert list(found.texts) == [rows.texts[7], rows.texts[3]]
        assert [dict(each) for each in found.metadata] == [rows.metadata[7], rows.metadata[3]]
        np.testing.assert_allclose(
            found.vectors["dense"].values_NE, rows.vectors["dense"].values_NE[[7, 3]], atol=1e-6
        )
        assert engine.count() == 30

    def test_an_id_that_is_written_again_replaces_its_row(self, engine: Engine):
        engine.upsert(rows_of(range(10)))
        again = rows_of([3, 11])
        engine.upsert(
            Rows(["id/3 é", "id/11 é"], ["new", "newer"], [{}, {"year": 1}], again.vectors)
        )
        found = engine.get(["id/3 é", "id/11 é"])
        assert engine.count() == 11
        assert list(found.texts) == ["new", "newer"]
        assert [dict(each) for each in found.metadata] == [{}, {"year": 1}]

    def test_deleted_rows_are_gone(self, engine: Engine):
        rows = rows_of(range(10))
        engine.upsert(rows)
        assert engine.delete([rows.ids[2], rows.ids[5], "absent"]) == 2
        assert engine.count() == 8
        assert len(engine.get([rows.ids[2]])) == 0
        (found,) = engine.near(DenseVectors(rows.vectors["dense"].values_NE[2:3]), 10)
        assert len(found) == 8
        assert not {rows.ids[2], rows.ids[5]} & {each.id for each in found}

    @pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
    def test_the_nearest_come_first_with_their_similarity(self, kind, where, similarity):
        engine = kind.create(where, self.description(("dense",), similarity))
        rows = rows_of(range(50))
        # Lengths that differ, so that the three similarities order differently.
        values = (
            rows.vectors["dense"].values_NE * np.linspace(0.5, 2, 50, dtype=np.float32)[:, None]
        )
        engine.upsert(Rows(rows.ids, rows.texts, rows.metadata, {"dense": DenseVectors(values)}))
        queries = rows_of([60, 61, 62]).vectors["dense"].values_NE
        scores = {
            "cosine": queries @ (values / np.linalg.norm(values, axis=1, keepdims=True)).T,
            "dot": queries @ values.T,
            "euclidean": -np.linalg.norm(queries[:, None] - values[None], axis=2),
        }[similarity]
        for exact in (False, True):
            found = engine.near(DenseVectors(queries), 5, exact=exact)
            for one, row in zip(found, scores, strict=True):
                best = np.argsort(-row)[:5]
                assert [each.id for each in one] == [rows.ids[i] for i in best]
                np.testing.assert_allclose([each.score for each in one], row[best], atol=1e-4)
                assert [each.text for each in one] == [rows.texts[i] for i in best]
                assert dict(one[0].metadata) == rows.metadata[best[0]]
        engine.close()

    @pytest.mark.parametrize("text", FILTERS)
    def test_a_filter_lets_through_what_matches_says(self, engine: Engine, text):
        rows = rows_of(range(60))
        engine.upsert(rows)
        asked = read_filter(text)
        expected = {
            each for each, row in zip(rows.ids, rows.metadata, strict=True) if matches(asked, row)
        }
        assert engine.count(asked) == len(expected)
        (found,) = engine.near(rows_of([70]).vectors["dense"], 100, filter=asked)
        assert {each.id for each in found} == expected
        if engine.has_words:
            (found,) = engine.words(["kitten"], 100, filter=asked)
            held = {each for each in rows.ids if WORDS[int(each[3:-2]) % 6] == "kitten"}
            assert {each.id for each in found} == expected & held

    @pytest.mark.parametrize("negated", [False, True])
    def test_a_filter_has_very_many_values(self, engine: Engine, negated):
        if engine.name in ("qdrant", "milvus"):
            pytest.skip("its client in this process compares value by value, in Python")
        engine.upsert(rows_of(range(30)))
        many = In("year", (*range(10_000, 80_000), 2004.0, 2004.5, 2007))
        assert engine.count(Not(many) if negated else many) == (24 if negated else 6)

    def test_a_filter_changes_no_score_of_words(self, engine: Engine):
        if not engine.has_words:
            pytest.skip(f"{engine.name} ranks no words")
        if engine.name == "milvus":
            pytest.skip("in a file a word is as rare as in its segment, among what passes")
        engine.upsert(rows_of(range(60)))
        engine.upsert(rows_of(range(60, 64)))
        whole, some = (
            {each.id: each.score for each in engine.words(["violin river 9"], 64, filter=one)[0]}
            for one in (None, read_filter("year >= 2000 and year < 2004"))
        )
        assert 5 < len(some) < len(whole)
        assert some == pytest.approx({name: whole[name] for name in some}, rel=1e-5)
        terms = engine.term_scores(["violin", "river", "9"], list(some))
        for name, scores in zip(some, terms, strict=True):
            assert not scores or sum(scores.values()) == pytest.approx(some[name], rel=1e-5)

    def test_words_find_texts_that_hold_them(self, engine: Engine):
        if not engine.has_words:
            pytest.skip(f"{engine.name} ranks no words")
        rows = rows_of(range(12))
        engine.upsert(rows)
        found, none = engine.words(["violin river", "absent-word"], 10)
        assert {each.id for each in found} == {rows.ids[i] for i in (2, 3, 8, 9)}
        assert all(a.score >= b.score for a, b in itertools.pairwise(found))
        assert none == []
        engine.upsert(Rows([rows.ids[2]], ["nothing of it"], [{}], rows_of([2]).vectors))
        assert rows.ids[2] not in {each.id for each in engine.words(["river"], 10)[0]}

    def test_scan_gives_each_row_once(self, engine: Engine):
        rows = rows_of(range(40))
        engine.upsert(rows)
        engine.delete([rows.ids[4]])
        engine.upsert(rows_of([9, 41]))
        parts = list(engine.scan(batch_size=7))
        ids = [each for part in parts for each in part.ids]
        assert sorted(ids) == sorted({*rows.ids, "id/41 é"} - {rows.ids[4]})
        assert max(map(len, parts)) <= 7
        place = ids.index(rows.ids[20])
        dense = np.concatenate([part.vectors["dense"].values_NE for part in parts])
        np.testing.assert_allclose(dense[place], rows.vectors["dense"].values_NE[20], atol=1e-6)

    def test_what_is_there_is_there_when_it_is_opened_again(self, kind, where):
        engine = kind.create(where, self.description(("dense",)))
        engine.upsert(rows_of(range(20)))
        described = engine.description
        engine.close()
        assert kind.exists(where)
        with pytest.raises(IndexStoreError):
            kind.create(where, self.description(("dense",)))
        engine = kind.open(where)
        assert engine.description == described
        assert engine.count() == 20
        engine.optimize()
        assert engine.count() == 20
        engine.close()

    def test_a_place_without_an_index_is_an_error(self, kind, where):
        assert not kind.exists(where)
        with pytest.raises(IndexStoreError):
            kind.open(where)

    def test_sparse_vectors_are_found_by_their_product(self, kind, where):
        if "sparse" not in kind.forms:
            pytest.skip(f"{kind.name} stores no sparse vectors")
        engine = kind.create(where, self.description(("sparse",), "dot"))
        rows, query = rows_of(range(30), forms=("sparse",)), rows_of([40], forms=("sparse",))
        engine.upsert(rows)
        scores = query.vectors["sparse"].to_dense()[0] @ rows.vectors["sparse"].to_dense().T
        (found,) = engine.near(query.vectors["sparse"], 5)
        best = np.argsort(-scores)[:5]
        assert [each.id for each in found] == [rows.ids[i] for i in best if scores[i] > 0]
        np.testing.assert_allclose(
            [each.score for each in found], scores[best][: len(found)], atol=1e-4
        )
        engine.close()

    def test_multi_vectors_are_found_by_late_interaction(self, kind, where):
        if "multi" not in kind.forms:
            pytest.skip(f"{kind.name} stores no multi-vectors")
        engine = kind.create(where, self.description(("multi",)))
        rows, query = rows_of(range(30), forms=("multi",)), rows_of([41], forms=("multi",))
        engine.upsert(rows)
        asked, stored = query.vectors["multi"], rows.vectors["multi"]
        scores = np.array([(asked[0] @ stored[i].T).max(axis=1).sum() for i in range(30)])
        (found,) = engine.near(asked, 5)
        best = np.argsort(-scores)[:5]
        assert [each.id for each in found] == [rows.ids[i] for i in best]
        np.testing.assert_allclose([each.score for each in found], scores[best], atol=1e-3)
        engine.close()
