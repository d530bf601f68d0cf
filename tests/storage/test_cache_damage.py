"""Damage of a cache of vectors: its texts have no entry, and are encoded again."""

import warnings

import numpy as np
import pytest
from damage import changed_bytes
from safetensors.numpy import load_file, save_file

from polyvec.errors import DamagedCacheWarning
from polyvec.storage.vector_cache import Entries

TEXTS = [f"text {i}" for i in range(30)]
VECTORS = np.random.default_rng(0).normal(size=(30, 24)).astype(np.float32)
CUT = np.arange(30) % 3 == 0


@pytest.fixture
def folder(tmp_path):
    entries = Entries(tmp_path / "entries", 24)
    for start in range(0, 30, 10):
        part = slice(start, start + 10)
        entries.put(TEXTS[part], VECTORS[part], CUT[part])
    return entries.folder


def found(folder):
    """Rows that were found, whose values are right, and whether something was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DamagedCacheWarning)
        hits = Entries(folder, 24).get(TEXTS)
    np.testing.assert_array_equal(hits.vectors, VECTORS[hits.rows])
    np.testing.assert_array_equal(hits.truncated, CUT[hits.rows])
    return len(hits.rows), bool(told)


def each_byte(folder, count, seed):
    noticed = 0
    for where in changed_bytes(folder, count, seed):
        rows, told = found(folder)
        assert (rows == 30) is not told, where
        noticed += told
    return noticed


def test_a_changed_byte_is_noticed(folder):
    assert found(folder) == (30, False)
    assert each_byte(folder, 40, seed=0) > 30


@pytest.mark.medium
def test_500_changed_bytes_are_noticed(folder):
    assert each_byte(folder, 500, seed=1) > 400


@pytest.mark.parametrize("change", ["swap", "nan", "sign"])
def test_changed_vectors_are_a_miss(folder, change):
    path = sorted(folder.iterdir())[0]
    raw, stored = path.read_bytes(), load_file(path)
    vectors = stored["vectors"].copy()
    if change == "swap":
        vectors[[0, 1]] = vectors[[1, 0]]
    elif change == "nan":
        vectors[0] = np.nan
    else:
        vectors.view(np.uint32)[0, 0] ^= 1 << 31
    at = raw.index(stored["vectors"].tobytes())
    path.write_bytes(raw[:at] + vectors.tobytes() + raw[at + vectors.nbytes :])
    assert found(folder) == (20, True)


@pytest.mark.parametrize("size", [0, 4, 50, 400, -1])
def test_a_shard_that_is_cut_off_is_a_miss(folder, size):
    path = sorted(folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:size])
    assert found(folder) == (20, True)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_changes_while_it_is_in_use_is_a_miss(folder, damage):
    entries = Entries(folder, 24)
    path = sorted(folder.iterdir())[1]
    if damage == "gone":
        path.unlink()
        hits = entries.get(TEXTS)
    else:
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.warns(DamagedCacheWarning, match="damaged cache file"):
            hits = entries.get(TEXTS)
    assert (len(hits.rows), len(entries)) == (20, 20)
    np.testing.assert_array_equal(hits.vectors, VECTORS[hits.rows])
    entries.put([TEXTS[row] for row in range(30)], VECTORS, CUT)
    assert len(entries.get(TEXTS).rows) == 30


def test_a_shard_without_checksums_must_be_finite(folder):
    """Shards of before there were checksums are read."""
    path = sorted(folder.iterdir())[0]
    stored = load_file(path)
    save_file(stored, path)
    assert found(folder) == (30, False)
    stored["vectors"] = stored["vectors"].copy()
    stored["vectors"][3, 3] = np.inf
    save_file(stored, path)
    assert found(folder) == (20, True)


def test_opening_reads_no_vectors(folder, monkeypatch):
    monkeypatch.setattr(Entries, "_read_vectors", lambda self, path: 1 / 0)
    entries = Entries(folder, 24)
    assert len(entries) == 30
    with pytest.raises(ZeroDivisionError):
        entries.get(TEXTS[:1])
