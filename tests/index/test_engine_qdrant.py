"""The engine in Qdrant: in a folder, and over HTTP in front of the same local mode.

No server of Qdrant's own can be had where tests run.
"""

import dataclasses
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from engine_suite import EngineSuite, rows_of

from polyvec.errors import DataError, IndexStoreError, InputError
from polyvec.index.engines.interface import Rows
from polyvec.index.filters import read_filter
from polyvec.interfaces import DenseVectors, MultiVectors

pytest.importorskip("qdrant_client", reason="needs the extra 'qdrant'")
import qdrant_server
from qdrant_client import QdrantClient

qdrant = pytest.importorskip("polyvec.index.engines.qdrant", reason="needs 'qdrant'")
QdrantEngine = qdrant.QdrantEngine
DESCRIPTION = EngineSuite.description(("dense",))


@pytest.fixture
def folder():
    """In memory where it can be: the local mode writes to the disk once for each point."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def server():
    handler, port, stop = qdrant_server.start()
    yield handler, port
    stop()


@pytest.fixture
def url(server):
    handler, port = server
    for each in handler.local.get_collections().collections:
        handler.local.delete_collection(each.name)
    return f"qdrant://127.0.0.1:{port}/texts"


class TestQdrantFolder(EngineSuite):
    @pytest.fixture
    def kind(self):
        return QdrantEngine

    @pytest.fixture
    def where(self, folder):
        return f"qdrant://{folder}/qdrant/texts"


class TestQdrantOverHttp(EngineSuite):
    @pytest.fixture
    def kind(self):
        return QdrantEngine

    @pytest.fixture
    def where(self, url):
        return url


def test_lengths_that_qdrant_does_not_keep_come_back(folder):
    engine = QdrantEngine.create(
        f"qdrant://{folder}/texts", EngineSuite.description(("dense", "multi"))
    )
    rows = rows_of(range(6), forms=("dense", "multi"))
    dense = rows.vectors["dense"].values_NE * np.arange(6, dtype=np.float32)[:, None]  # one is 0
    tokens = [rows.vectors["multi"][row] * (row + 1) for row in range(5)] + [np.empty((0, 8))]
    vectors = {"dense": DenseVectors(dense), "multi": MultiVectors.of(tokens, 8)}
    engine.upsert(Rows(rows.ids, rows.texts, rows.metadata, vectors))
    for _ in range(2):
        found = engine.get(rows.ids, vectors=True)
        np.testing.assert_allclose(found.vectors["dense"].values_NE, dense, atol=1e-5)
        for row in range(6):
            np.testing.assert_allclose(found.vectors["multi"][row], tokens[row], atol=1e-5)
        engine.close()
        engine = QdrantEngine.open(f"qdrant://{folder}/texts")
    engine.close()


@pytest.mark.medium
def test_a_batch_is_whole_after_a_kill(folder):
    """8 kills at random moments; without the journal, most of them leave half a batch."""
    where, told = f"qdrant://{folder}/texts", folder / "acknowledged"
    QdrantEngine.create(where, DESCRIPTION).close()
    rng, halves = random.Random(0), 0
    for turn in range(8):
        told.write_text("-1")
        pid = os.fork()
        if pid == 0:
            engine = QdrantEngine.open(where)
            for number in range(50):
                engine.upsert(rows_of(range(40 * number, 40 * number + 40)[: 1000 - 40 * number]))
                told.write_text(str(number))
            os._exit(1)
        while told.read_text() in ("-1", ""):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        last = int(told.read_text() or 0)
        halves += (folder / "texts.polyvec.json").exists()
        engine = QdrantEngine.open(where)
        ids = {each for rows in engine.scan() for each in rows.ids}
        for number in range(25):
            batch = {f"id/{n} é" for n in range(40 * number, 40 * number + 40)}
            assert len(batch & ids) in (0, 40)
            assert batch <= ids or number > last, f"kill {turn}: batch {number} of {last} is lost"
        engine.delete(sorted(ids))
        engine.close()
    assert halves, "no kill came within a write"


def test_a_busy_server_is_asked_again(server, url, monkeypatch):
    handler, _ = server
    monkeypatch.setattr(qdrant, "WRITE_S", 5.0)
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    engine = QdrantEngine.create(url, DESCRIPTION)
    handler.failures[:] = [503, 429]
    engine.upsert(rows_of(range(5)))
    assert engine.count() == 5
    assert "sesame" in handler.keys
    handler.failures[:] = [401]
    with pytest.raises(IndexStoreError, match="refused the key; set QDRANT_API_KEY"):
        engine.count()
    handler.failures[:] = [400]
    with pytest.raises(IndexStoreError, match=r"refused with status 400: .*told to fail"):
        engine.count()
    engine.close()


def test_a_large_upsert_is_sent_in_parts(server, url, monkeypatch):
    engine = QdrantEngine.create(url, DESCRIPTION)
    monkeypatch.setattr(qdrant.convert, "REQUEST_BYTES", 2000)
    engine.upsert(rows_of(range(30)))
    assert engine.count() == 30


def test_words_in_any_script_and_rare_ones_first(url):
    engine = QdrantEngine.create(url, DESCRIPTION)
    texts = ["the cat and dog", "The Dog!", "the bird", "東京の猫", "Straße"]
    rows = rows_of(range(5))
    engine.upsert(Rows(rows.ids, texts, rows.metadata, rows.vectors))
    found = engine.words(["the DOG", "猫", "STRASSE", "... !"], 5)
    assert [[texts[int(each.id[3])] for each in one] for one in found] == [
        ["The Dog!", "the cat and dog", "the bird"],
        ["東京の猫"],
        ["Straße"],
        [],
    ]


def test_numbers_of_64_bits(url):
    engine = QdrantEngine.create(url, DESCRIPTION)
    rows = rows_of(range(2))
    metadata = [{"year": 2**62 + 1}, {"year": 2**62}]
    engine.upsert(Rows(rows.ids, rows.texts, metadata, rows.vectors))
    assert engine.count(read_filter(f"year = {2**62}")) == 1
    assert engine.count(read_filter("year = 1e300")) == 0
    assert [dict(each) for each in engine.get(rows.ids).metadata] == metadata
    with pytest.raises(InputError, match="Qdrant compares texts by ="):
        engine.count(read_filter("lang > 'a'"))


def test_places_that_are_wrong(server, url, folder):
    handler, _ = server
    base = url.removesuffix("texts")
    with pytest.raises(IndexStoreError, match=r"texts: the server has no such collection"):
        QdrantEngine.open(url)
    handler.local.create_collection("other", vectors_config={})
    with pytest.raises(IndexStoreError, match="another program"):
        QdrantEngine.open(base + "other")
    QdrantEngine.create(url, DESCRIPTION).close()
    handler.local.update_collection("texts", metadata={"polyvec": json.dumps({"format": 99})})
    with pytest.raises(IndexStoreError, match="index format 99"):
        QdrantEngine.open(url)
    start = time.monotonic()
    with pytest.raises(IndexStoreError, match=r"^qdrant://127.0.0.1:9/x: cannot be reached"):
        QdrantEngine.open("qdrant://127.0.0.1:9/x")
    assert time.monotonic() - start < 15
    for given in ("qdrant://:sesame@h/x", "qdrant://h/x?api_key=sesame", "qdrant://u:a/b@sesame/x"):
        with pytest.raises(InputError, match=r"QDRANT_API_KEY|not a URL") as caught:
            QdrantEngine.open(given)
        assert "sesame" not in str(caught.value).replace("@sesame/x", "")
    for given in ("qdrant://h/../../x y", "qdrant://h/", "qdrant://h/a?quantisation=int8"):
        with pytest.raises(InputError, match=r"is not a name of a collection|is not known"):
            QdrantEngine.open(given)
    where = f"qdrant://{folder}/texts"
    engine = QdrantEngine.create(where, DESCRIPTION)
    with pytest.raises(IndexStoreError, match="another process has the folder open"):
        QdrantEngine.open(where)
    engine.close()
    with pytest.raises(IndexStoreError, match="no such collection"):
        QdrantEngine.open(f"qdrant://{folder}/others")


def test_rows_that_cannot_be_stored_change_nothing(url):
    engine = QdrantEngine.create(url, DESCRIPTION)
    rows = rows_of(range(2))
    for texts in (["a", "\ud800"], ["a", "\0"]):
        with pytest.raises(DataError, match=r"'id/1 é': .*lone surrogate"):
            engine.upsert(Rows(rows.ids, texts, rows.metadata, rows.vectors))
    with pytest.raises(IndexStoreError, match="of 4 dimensions"):
        engine.upsert(rows_of(range(2), width=4))
    assert engine.count() == 0
    assert len(engine.get(["\ud800", "absent"])) == 0
    assert engine.delete(["\ud800"]) == 0


def test_quantization_is_asked_for_when_a_collection_is_made(folder):
    where = f"qdrant://{folder}/texts"
    for name in ("int8", "binary"):
        engine = QdrantEngine.create(f"qdrant://{folder}/{name}?quantization={name}", DESCRIPTION)
        made = engine._quantization()
        assert (made.scalar if name == "int8" else made.binary).always_ram
        engine.close()
    with pytest.raises(InputError, match=r"quantization='int9' is not known. Did you mean 'int8'"):
        QdrantEngine.create(f"{where}?quantization=int9", DESCRIPTION)
    euclidean = dataclasses.replace(EngineSuite.description(("multi",)), similarity="euclidean")
    with pytest.raises(InputError, match="of dense vectors only"):
        QdrantEngine.create(where, euclidean)
    QdrantClient(path=str(folder)).close()  # no lock is left
