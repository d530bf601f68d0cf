"""Vector files: streamed in pieces they equal what numpy and others write and read at once."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from polyvec.errors import DataError, ShapeError
from polyvec.storage.vector_files import WRITERS, check_kind, vector_file

DTYPES = ("float32", "int8", "uint8")


def array(rows: int, dtype: str, dim: int = 7) -> np.ndarray:
    generator = np.random.default_rng(rows)
    if dtype == "float32":
        return generator.standard_normal((rows, dim)).astype(np.float32)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, (rows, dim), dtype, endpoint=True)


def names(rows: int) -> list[str]:
    return [f"ïd {i}" for i in range(rows)]


def write(path, vectors, sizes) -> None:
    """The vectors in pieces of these sizes."""
    named = names(len(vectors))
    with vector_file(path) as append:
        start = 0
        for size in sizes:
            append(named[start : start + size], vectors[start : start + size])
            start += size
    assert start == len(vectors)


def read_npy(path):
    return None, np.load(path)


def read_safetensors(path):
    return None, load_file(path)["embeddings"]


def read_parquet(path):
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    column = table["embedding"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return table["id"].to_pylist(), flat.reshape(len(table), column.type.list_size)


def read_jsonl(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row["id"] for row in rows], np.array([row["embedding"] for row in rows])


# Ids, None where the format has none, and vectors, as another library reads them: add yours here.
READERS = {
    "npy": read_npy,
    "safetensors": read_safetensors,
    "parquet": read_parquet,
    "jsonl": read_jsonl,
}


def load(path) -> tuple[list[str] | None, np.ndarray]:
    return READERS[path.suffix.removeprefix(".")](path)


def test_every_format_is_read_back_here():
    assert READERS.keys() == WRITERS.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", WRITERS)
def test_pieces_equal_the_whole(tmp_path, kind, dtype):
    vectors = array(30, dtype)
    path = tmp_path / f"x.{kind}"
    write(path, vectors, [0, 1, 0, 20, 9])
    ids, found = load(path)
    np.testing.assert_array_equal(found.astype(dtype), vectors)
    assert kind == "jsonl" or found.dtype == dtype
    assert ids in (None, names(30))


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_is_the_very_file_that_numpy_writes(tmp_path, dtype):
    vectors = array(30, dtype)
    write(tmp_path / "x.npy", vectors, [10, 20])
    np.save(tmp_path / "y.npy", vectors)
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped[17], vectors[17])


def test_jsonl_numbers_are_the_shortest_that_are_exact(tmp_path):
    vectors = np.array([[0.1, 1e-30, -3.4028235e38, 16777216.0]], np.float32)
    write(tmp_path / "x.jsonl", vectors, [1])
    line = (tmp_path / "x.jsonl").read_text("utf-8")
    assert line == '{"id": "ïd 0", "embedding": [0.1, 1e-30, -3.4028235e+38, 16777216.0]}\n'


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", WRITERS)
def test_no_vectors_keep_their_width_and_type(tmp_path, kind, dtype):
    path = tmp_path / f"x.{kind}"
    write(path, array(0, dtype), [0])
    ids, found = load(path)
    assert ids in (None, [])
    if kind != "jsonl":
        assert (found.shape, found.dtype) == ((0, 7), np.dtype(dtype))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_was_given_nothing_is_readable(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    with vector_file(path):
        pass
    if kind == "parquet":
        assert len(pytest.importorskip("pyarrow.parquet").read_table(path)) == 0
    else:
        assert len(load(path)[1]) == 0


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("second", [array(2, "float32", dim=6), array(2, "int8")])
def test_vectors_of_another_width_or_type_are_refused(tmp_path, kind, second):
    with (
        pytest.raises(ShapeError, match="cannot append"),
        vector_file(tmp_path / f"x.{kind}") as append,
    ):
        append(names(2), array(2, "float32"))
        append(names(2), second)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_an_error_on_the_way_leaves_the_old_file_and_no_other(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), vector_file(path) as append:
        append(names(5), array(5, "float32"))
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("error")  # an unfinished writer complains when it is collected
@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path, kind, small_files):
    path = tmp_path / f"x.{kind}"
    with (
        small_files(65_536),
        pytest.raises(OSError, match="File too large") as caught,
        vector_file(path) as append,
    ):
        for _ in range(100):
            append(names(50), array(50, "float32", dim=64))
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_every_vector_needs_an_id(tmp_path, kind):
    with pytest.raises(ShapeError, match="1 ids and 2"), vector_file(tmp_path / f"x.{kind}") as add:
        add(names(1), array(2, "float32"))


def test_an_unknown_kind_or_folder_is_refused_before_anything_is_written(tmp_path):
    known = f"Known: {', '.join(WRITERS)}."
    for name in ("x.txt", "x", "x.npy.gz"):
        with pytest.raises(DataError, match=f"is not known. {known}"):
            check_kind(tmp_path / name)
    with pytest.raises(DataError, match=r"the folder .*gone does not exist"):
        check_kind(tmp_path / "gone" / "x.npy")
    assert check_kind(tmp_path / "x.NPY") == "npy"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_a_row_of_parquet_takes_its_numbers_and_little_more(tmp_path, dtype):
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    draw, path = np.random.default_rng(0), tmp_path / "v.parquet"
    vectors_NE = draw.standard_normal((4096, 64), np.float32)
    if dtype != "float32":
        vectors_NE = (40 * vectors_NE + 100).clip(0, 127).astype(dtype)
    with vector_file(path) as write:
        write([f"texts.txt:{row}" for row in range(4096)], vectors_NE)
    assert path.stat().st_size / 4096 < vectors_NE[0].nbytes + 16
