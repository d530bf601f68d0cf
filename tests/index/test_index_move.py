"""An index moved from engine to engine, interrupted, and compared."""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from engine_suite import EngineSuite, rows_of

from polyvec.errors import IndexStoreError, InputError
from polyvec.index.engines.interface import Rows
from polyvec.index.move import move
from polyvec.interfaces import DenseVectors

pytest.importorskip("lancedb", reason="needs the extra 'index'")
pytest.importorskip("qdrant_client", reason="needs the extra 'qdrant'")
from polyvec.index.engines.lance import LanceEngine
from polyvec.index.engines.qdrant import QdrantEngine

pytestmark = pytest.mark.medium
FORMS = ("dense", "sparse", "multi")


@pytest.fixture
def folder():
    shm = Path("/dev/shm")  # Qdrant's local mode writes to the disk once for each point
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as made:
        yield Path(made)


def filled(folder, forms=FORMS, count=100):
    engine = LanceEngine.create(str(folder / "source"), EngineSuite.description(forms))
    rows = rows_of(range(count), forms=forms)
    # Vectors that are not of length 1, a text without tokens, one without terms.
    scale = np.linspace(0.1, 3, count, dtype=np.float32)[:, None]
    dense = DenseVectors(rows.vectors["dense"].values_NE * scale)
    engine.upsert(Rows(rows.ids, rows.texts, rows.metadata, {**rows.vectors, "dense": dense}))
    engine.close()
    return str(folder / "source")


def test_a_move_there_and_back_changes_nothing(folder):
    source, there, back = filled(folder), f"qdrant://{folder}/texts", str(folder / "back")
    moved = move(source, there, batch_size=30)
    assert (moved.num_texts, moved.num_sent, moved.num_there) == (100, 100, 0)
    assert moved.num_searched == 20
    assert moved.agreement == 1
    again = move(source, there)
    assert (again.num_sent, again.num_there) == (0, 100)
    assert move(there, back).num_sent == 100
    one, two = LanceEngine.open(source), LanceEngine.open(back)
    assert one.description == two.description
    ids = [each for rows in one.scan() for each in rows.ids]
    a, b = one.get(ids, vectors=True), two.get(ids, vectors=True)
    assert (a.texts, a.metadata) == (b.texts, b.metadata)
    np.testing.assert_allclose(a.vectors["dense"].values_NE, b.vectors["dense"].values_NE, 1e-5)
    np.testing.assert_allclose(a.vectors["multi"].values_TE, b.vectors["multi"].values_TE, 1e-5)
    np.testing.assert_allclose(a.vectors["sparse"].to_dense(), b.vectors["sparse"].to_dense(), 1e-5)


def test_an_interrupted_move_goes_on(folder, monkeypatch):
    source, there = filled(folder, ("dense",)), f"qdrant://{folder}/texts"
    upsert, calls = QdrantEngine.upsert, []

    def failing(engine, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        upsert(engine, rows)

    monkeypatch.setattr(QdrantEngine, "upsert", failing)
    with pytest.raises(KeyboardInterrupt):
        move(source, there, batch_size=30)
    moved = move(source, there, batch_size=30)
    assert (moved.num_sent, moved.num_there) == (40, 60)
    assert calls == [30, 30, 30, 30, 10]


def test_what_differs_is_sent_again_and_what_is_lost_is_told(folder, monkeypatch):
    source, there = filled(folder, ("dense",)), f"qdrant://{folder}/texts"
    move(source, there)
    engine = QdrantEngine.open(there)
    rows = rows_of([3, 4])
    engine.upsert(Rows(rows.ids, ["new", rows.texts[1]], rows.metadata, rows.vectors))
    engine.close()
    assert move(source, there).num_sent == 2
    engine = QdrantEngine.open(there)
    engine.delete([rows.ids[0]])
    engine.close()
    monkeypatch.setattr(QdrantEngine, "upsert", lambda engine, rows: None)
    with pytest.raises(IndexStoreError, match="text 'id/3 é' is missing there or differs"):
        move(source, there)


def test_targets_that_hold_something_else(folder):
    source = filled(folder, ("dense",))
    other = f"qdrant://{folder}/other"
    made = dataclasses.replace(EngineSuite.description(("dense",)), model_sha256="1" * 64)
    QdrantEngine.create(other, made).close()
    with pytest.raises(IndexStoreError, match="holds another index, of another model_sha256"):
        move(source, other)
    more = f"qdrant://{folder}/more"
    engine = QdrantEngine.create(more, EngineSuite.description(("dense",)))
    engine.upsert(rows_of([500]))
    engine.close()
    with pytest.raises(IndexStoreError, match=r"texts that the source does not have .*'id/500 é'"):
        move(source, more)
    with pytest.raises(InputError, match="one place"):
        move(source, source)
    with pytest.raises(IndexStoreError, match="no index"):
        move(str(folder / "absent"), more)


def test_vectors_that_the_target_does_not_store(folder):
    pytest.importorskip("pymilvus", reason="needs the extra 'milvus'")
    source = filled(folder)
    with pytest.raises(InputError, match="milvus stores no multi vectors"):
        move(source, f"milvus://{folder}/x.db#texts")
    assert not (folder / "x.db").exists()
