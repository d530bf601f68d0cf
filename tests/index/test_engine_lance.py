"""The engine in a folder: what all engines do, and what a folder can be asked."""

import random
from dataclasses import replace

import numpy as np
import pytest
from engine_suite import WIDTH, EngineSuite, rows_of

from polyvec.errors import CompactionWarning, DataError, IndexStoreError, InputError
from polyvec.index.engines.interface import Rows
from polyvec.index.filters import Compare, Or, read_filter
from polyvec.interfaces import DenseVectors

lance = pytest.importorskip("polyvec.index.engines.lance")


class TestLance(EngineSuite):
    @pytest.fixture
    def kind(self):
        return lance.LanceEngine

    @pytest.fixture
    def where(self, tmp_path):
        return str(tmp_path / "index")

    def test_a_long_chain_of_conditions_is_a_shallow_tree(self):
        """Of a chain of 50,000 Lance's parser overflowed its stack, which ended the process."""
        parts = tuple(Compare("year", "=", year) for year in range(50_000))
        text, depth = lance.arrow.sql(Or(parts), {"year": "int"}), 0
        most = max(depth := depth + (each == "(") - (each == ")") for each in text)
        assert text.count(" OR ") == 49_999
        assert most < 20

    def test_the_least_whole_number_can_be_asked_for(self, engine):
        rows = rows_of([1])
        engine.upsert(Rows(rows.ids, rows.texts, [{"year": -(2**63)}], rows.vectors))
        assert engine.count(read_filter({"year": -(2**63)})) == 1
        assert engine.count(read_filter({"year": {"$in": [-(2**63), 1]}})) == 1
        assert engine.count(read_filter({"year": {"$gt": -(2**63)}})) == 0

    @pytest.mark.medium
    def test_200_writes_of_a_row_leave_few_files(self, engine, monkeypatch):
        """Each adds a file that queries read; compaction, without being asked, joins them."""
        monkeypatch.setattr(lance, "KEPT_S", 0)
        most = 0
        for number in range(200):
            engine.upsert(rows_of([number]))
            most = max(most, engine._table.stats()["fragment_stats"]["num_fragments"])
        assert engine.count() == 200
        assert lance.MAX_FRAGMENTS <= most <= lance.MAX_FRAGMENTS + 1
        files = [path for path in engine.folder.rglob("*") if path.is_file()]
        assert len(files) < 10 * lance.MAX_FRAGMENTS, "of versions that nobody reads"

    def test_many_writes_within_one_are_compacted_at_its_end(self, engine):
        with engine.writing():
            for number in range(30):
                engine.upsert(rows_of([number]))
            assert engine._table.stats()["fragment_stats"]["num_fragments"] == 30
        assert engine._table.stats()["fragment_stats"]["num_fragments"] == 1

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            (lambda v: np.where(np.arange(WIDTH) == 2, np.nan, v), DataError, "'id/7 é' holds NaN"),
            (lambda v: np.where(np.arange(WIDTH) == 2, np.inf, v), DataError, "'id/7 é' holds NaN"),
            (lambda v: v[:, :5], IndexStoreError, r"5 dimensions \(first: id 'id/7 é'\), the ind"),
        ],
    )
    def test_bad_vectors_are_refused_by_id_before_anything_is_written(
        self, engine, change, error, words
    ):
        engine.upsert(rows_of(range(5)))
        rows = rows_of([7, 8])
        bad = DenseVectors(change(rows.vectors["dense"].values_NE).astype(np.float32))
        with pytest.raises(error, match=words):
            engine.upsert(replace(rows, vectors={"dense": bad}))
        with pytest.raises((InputError, IndexStoreError)):
            engine.near(bad, 3)
        assert engine.count() == 5

    def test_a_field_that_comes_later(self, engine):
        engine.upsert(rows_of(range(5)))
        made = engine.description
        engine.describe(replace(made, fields={**made.fields, "Year": "text"}))
        new = replace(rows_of([9]), metadata=[{"Year": "'70s", "year": 1970}])
        engine.upsert(new)
        assert engine.count(read_filter("""Year = "'70s" and year = 1970""")) == 1
        assert engine.get([*new.ids, "id/1 é"]).metadata == [
            {"Year": "'70s", "year": 1970},
            rows_of([1]).metadata[0],
        ]

    def test_a_changed_byte_gives_an_error_and_no_wrong_row(self, engine):
        rows, query = rows_of(range(40)), rows_of([70]).vectors["dense"]
        engine.upsert(rows)
        expected = engine.near(query, 40)
        (path,) = engine.folder.glob("*.lance/data/*.lance")
        whole, chance, noticed = path.read_bytes(), random.Random(0), 0
        for _ in range(40):
            place = chance.randrange(len(whole))
            changed = bytes([whole[place] ^ (1 << chance.randrange(8))])
            path.write_bytes(whole[:place] + changed + whole[place + 1 :])
            try:
                assert lance.LanceEngine.open(str(engine.folder)).near(query, 40) == expected
            except IndexStoreError:
                noticed += 1
        assert noticed > 15

    @pytest.mark.medium
    @pytest.mark.parametrize("width", [WIDTH, 64])
    def test_an_index_of_many_vectors_is_approximate_and_near_exact(
        self, kind, where, monkeypatch, width
    ):
        monkeypatch.setattr(lance, "ANN_ROWS", 2000)
        made = replace(self.description(("dense",)), dimensions={"dense": width})
        engine = kind.create(where, made)
        rng = np.random.default_rng(0)
        values = rng.standard_normal((4000, width)).astype(np.float32)
        for start in range(0, 4000, 1000):
            ids = [str(row) for row in range(start, start + 1000)]
            metadata = [{"year": row % 7} for row in range(start, start + 1000)]
            vectors = {"dense": DenseVectors(values[start : start + 1000])}
            engine.upsert(Rows(ids, ids, metadata, vectors))
        assert engine._num_indexed() >= 2000 and engine._stored.nprobes
        queries = DenseVectors(rng.standard_normal((30, width)).astype(np.float32))
        for asked in (None, read_filter("year = 3")):
            found = engine.near(queries, 10, filter=asked)
            exact = engine.near(queries, 10, filter=asked, exact=True)
            hits = [
                len({each.id for each in one} & {each.id for each in other})
                for one, other in zip(found, exact, strict=True)
            ]
            assert sum(hits) / 300 >= 0.98
        engine.delete([exact[0][0].id])
        assert exact[0][0].id not in {e.id for e in engine.near(queries, 10)[0]}
        engine.close()

    def test_a_compaction_that_fails_is_a_warning(self, engine, monkeypatch):
        monkeypatch.setattr(lance, "MAX_FRAGMENTS", 3)

        def full(self, kept):
            raise IndexStoreError("the disk is full")

        monkeypatch.setattr(lance.LanceEngine, "_optimize", full)
        for number in range(3):
            engine.upsert(rows_of([number]))
        with pytest.warns(CompactionWarning, match="the disk is full .*all is written"):
            engine.upsert(rows_of([3]))
        assert engine.count() == 4

    def test_a_full_disk_loses_nothing(self, engine, small_files):
        engine.upsert(rows_of(range(20)))
        with (
            small_files(2000),
            pytest.raises(
                IndexStoreError, match="the disk is full; what was stored before is there"
            ),
        ):
            engine.upsert(rows_of(range(20, 400)))
        for each in (engine, lance.LanceEngine.open(str(engine.folder))):
            assert each.count() == 20
            assert len(each.near(rows_of([3]).vectors["dense"], 50)[0]) == 20
        engine.upsert(rows_of(range(20, 400)))
        assert engine.count() == 400


def test_a_large_addition_leaves_no_rows_outside_the_index_of_words(tmp_path):
    made = EngineSuite.description(("dense",))
    engine = lance.LanceEngine.create(str(tmp_path / "index"), made)
    with engine.writing():
        for start in range(0, 1000, 250):
            engine.upsert(rows_of(range(start, start + 250)))
    assert engine._table.index_stats("text_idx").num_unindexed_rows == 0
    assert len(engine.words(["violin"], 1000)[0]) == 167
    engine.close()
