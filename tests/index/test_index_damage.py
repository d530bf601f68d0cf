"""Damage of an index is noticed, and never reaches the next one."""

import json
import shutil
import warnings

import numpy as np
import pytest
from damage import changed_bytes

from polyvec import Embedder
from polyvec.data.texts import Record
from polyvec.errors import DamagedCacheWarning, IndexStoreError
from polyvec.index import rows
from polyvec.index.plain import PlainIndex

TEXTS = [f"text number {i}" for i in range(40)]
RECORDS = [Record(f"id-{i}", text) for i, text in enumerate(TEXTS)]
QUERIES = ["a text", "number 7"]
BLOCK = 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", BLOCK)


@pytest.fixture(scope="module")
def embedder(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture
def folder(tmp_path, embedder):
    PlainIndex.build(tmp_path / "index", RECORDS, embedder, show_progress_bar=False)
    return tmp_path / "index"


def rebuilt(folder, embedder):
    """The vectors of a rebuild, how many were embedded, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DamagedCacheWarning)
        index, report = PlainIndex.build(folder, RECORDS, embedder, show_progress_bar=False)
    assert PlainIndex.open(folder).items == RECORDS
    return np.array(index.vectors_NE), report.num_embedded, [str(each.message) for each in told]


def each_byte(folder, embedder, count, seed):
    """How many of `count` changed bytes were noticed; the rest changed nothing."""
    expected = PlainIndex.open(folder).search(QUERIES, embedder)
    right, noticed = np.array(PlainIndex.open(folder).vectors_NE), 0
    for where in changed_bytes(folder, count, seed):
        try:
            found = PlainIndex.open(folder)
            hits = found.search(QUERIES, embedder)
        except IndexStoreError:
            noticed += 1
        else:
            assert hits == expected and found.items == RECORDS, where
            np.testing.assert_array_equal(found.vectors_NE, right, err_msg=where)
        vectors, _, _ = rebuilt(folder, embedder)
        np.testing.assert_allclose(vectors, right, atol=1e-6, err_msg=where)
    return noticed


def test_a_changed_byte_is_noticed(folder, embedder):
    assert each_byte(folder, embedder, 20, seed=0) > 12


@pytest.mark.medium
def test_200_changed_bytes_are_noticed(folder, embedder):
    assert each_byte(folder, embedder, 200, seed=1) > 150


def vectors_of(folder):
    (path,) = folder.glob("vectors-*.npy")
    return path, np.load(path)


def swap(vectors):
    vectors[[3, 20]] = vectors[[20, 3]]


def shift(vectors):
    vectors[:] = np.roll(vectors, 1, axis=0)


def nan(vectors):
    vectors[5] = np.nan


def sign(vectors):
    vectors.view(np.uint32)[39, 31] ^= 1 << 31


def other(vectors):
    vectors[:] = np.random.default_rng(0).normal(size=vectors.shape)


@pytest.mark.parametrize("change", [swap, shift, nan, sign, other])
def test_changed_vectors_are_refused_and_not_reused(folder, embedder, change):
    path, right = vectors_of(folder)
    vectors = right.copy()
    change(vectors)
    np.save(path, vectors)
    index = PlainIndex.open(folder)
    with pytest.raises(IndexStoreError, match=r"the vectors in rows \d+ to \d+ are damaged"):
        index.search("a text", embedder)
    with pytest.raises(IndexStoreError, match="are damaged; build the index again"):
        _ = index.vectors_NE
    again, embedded, told = rebuilt(folder, embedder)
    np.testing.assert_allclose(again, right, atol=1e-6)
    starts = range(0, len(TEXTS), BLOCK)
    touched = [
        b for b in starts if not np.array_equal(vectors[b : b + BLOCK], right[b : b + BLOCK])
    ]
    assert embedded == sum(min(BLOCK, len(TEXTS) - start) for start in touched), "only those"
    assert len(told) == len(touched) and "embedded again" in told[0]


def test_items_in_another_order_are_refused(folder, embedder):
    (path,) = folder.glob("items-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[::-1]))
    with pytest.raises(IndexStoreError, match=r"items-.*damaged \(checksum"):
        PlainIndex.open(folder)
    _, right = vectors_of(folder)
    again, embedded, told = rebuilt(folder, embedder)
    np.testing.assert_allclose(again, right, atol=1e-6)
    assert embedded == len(TEXTS) and len(told) == 1


def test_blocks_are_read_once_and_only_where_needed(folder, monkeypatch):
    read = []
    real = rows.crc32
    monkeypatch.setattr(rows, "crc32", lambda data: read.append(len(data)) or real(data))
    index = PlainIndex.open(folder)
    assert not read, "opening reads no vectors"
    _ = index.rows_NE[20:30]
    assert read == [16]
    _ = index.vectors_NE, index.vectors_NE
    assert read == [16, 16, 8]


def test_an_index_without_checksums_is_searched_but_not_reused(folder, embedder):
    """Format 1, of before there were checksums."""
    path = folder / "manifest.json"
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if "crc32" not in k}
    path.write_text(json.dumps({**manifest, "format": 1}))
    assert PlainIndex.open(folder).search("number 7", embedder)[0]
    _, embedded, told = rebuilt(folder, embedder)
    assert embedded == len(TEXTS) and "no checksums" in told[0]
    assert rebuilt(folder, embedder)[1:] == (0, [])


def test_a_copy_of_an_index_is_whole(folder, tmp_path, embedder):
    shutil.copytree(folder, tmp_path / "copy")
    assert len(PlainIndex.open(tmp_path / "copy").vectors_NE) == len(TEXTS)
