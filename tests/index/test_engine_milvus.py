"""The engine in Milvus, with milvus-lite, which keeps a collection in a file."""

import os
import signal
import time

import numpy as np
import pytest
from engine_suite import EngineSuite, rows_of

from polyvec.errors import DataError, IndexStoreError, InputError
from polyvec.index.engines.interface import Rows
from polyvec.interfaces import SparseVectors

pytest.importorskip("pymilvus", reason="needs the extra 'milvus'")
pytest.importorskip("milvus_lite", reason="needs the extra 'milvus'")
MilvusEngine = pytest.importorskip("polyvec.index.engines.milvus").MilvusEngine

pytestmark = pytest.mark.medium


@pytest.fixture(autouse=True)
def short_sleeps(monkeypatch):
    """The client sleeps half a second for each index that is made at once."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture
def where(tmp_path):
    return f"milvus://{tmp_path}/milvus.db#texts"


class TestMilvus(EngineSuite):
    @pytest.fixture
    def kind(self):
        return MilvusEngine

    @pytest.fixture
    def where(self, where):
        return where


def test_sparse_vectors_come_back_with_their_lengths(where):
    engine = MilvusEngine.create(where, EngineSuite.description(("sparse",)))
    rows = rows_of(range(5), forms=("sparse",))
    dense = rows.vectors["sparse"].to_dense() * 3
    dense[2] = 0
    engine.upsert(Rows(rows.ids, rows.texts, rows.metadata, {"sparse": SparseVectors.of(dense)}))
    found = engine.get(rows.ids, vectors=True).vectors["sparse"]
    np.testing.assert_allclose(found.to_dense(), dense, atol=1e-5)
    (best,) = engine.near(SparseVectors.of(dense[:1]), 10)
    assert best[0].id == rows.ids[0]
    assert best[0].score == pytest.approx(1, abs=1e-5)
    assert rows.ids[2] not in {each.id for each in best}
    engine.close()


def test_a_batch_is_whole_after_a_kill(where, tmp_path):
    told = tmp_path / "acknowledged"
    pid = os.fork()
    if pid == 0:
        engine = MilvusEngine.create(where, EngineSuite.description(("dense",)))
        for number in range(25):
            engine.upsert(rows_of(range(40 * number, 40 * number + 40)))
            told.write_text(str(number))
        os._exit(1)
    while not told.exists() or int(told.read_text() or 0) < 8:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    last = int(told.read_text() or 0)
    engine = MilvusEngine.open(where)
    ids = {each for rows in engine.scan() for each in rows.ids}
    for number in range(25):
        batch = {f"id/{n} é" for n in range(40 * number, 40 * number + 40)}
        assert len(batch & ids) in (0, 40)
        assert batch <= ids or number > last
    engine.close()


def test_places_that_are_wrong(where, tmp_path):
    engine = MilvusEngine.create(where, EngineSuite.description(("dense",)))
    engine._client.alter_collection_properties("texts", {"polyvec": '{"format": 99}'})
    with pytest.raises(IndexStoreError, match="index format 99"):
        MilvusEngine.open(where)
    engine._client.drop_collection("texts")
    engine._client.create_collection("texts", dimension=4)
    with pytest.raises(IndexStoreError, match="another program"):
        MilvusEngine.open(where)
    engine.close()
    with pytest.raises(IndexStoreError, match="no such collection"):
        MilvusEngine.open(where.replace("#texts", "#others"))
    for given, told in (
        ("milvus://h:1#a-b", "no hyphen"),
        ("milvus:///x/y#texts", r"ends in \.db"),
        ("milvus://h#", "is not a name"),
        ("milvus://u:sesame@h#texts", r"^milvus://u:\*\*\*@h#texts: .*MILVUS_TOKEN"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            MilvusEngine.open(given)
        assert "sesame" not in str(caught.value)
    with pytest.raises(IndexStoreError, match=r"^milvus://127.0.0.1:9#x: cannot be reached"):
        MilvusEngine.open("milvus://127.0.0.1:9#x")
    with pytest.raises(InputError, match="no multi-vectors"):
        MilvusEngine.create(where, EngineSuite.description(("multi",)))


def test_texts_that_are_too_long(where):
    engine = MilvusEngine.create(where, EngineSuite.description(("dense",)))
    rows = rows_of(range(2))
    with pytest.raises(DataError, match=r"'id/1 é': .* split it into chunks"):
        engine.upsert(Rows(rows.ids, ["a", "é" * 40_000], rows.metadata, rows.vectors))
    assert engine.count() == 0
    engine.close()
