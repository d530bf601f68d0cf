"""Vectors in .npy, .jsonl, .parquet or .safetensors: written in chunks and atomically, and read.

N vectors, E numbers each. A format is a context manager from an open binary file to a `Write`,
and its line in `WRITERS`, under the suffix of its files.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from polyvec.errors import DataError, MissingExtraError, ShapeError
from polyvec.storage.files import atomic_file, check_target

HEADER_BYTES = 1024  # space for the safetensors header, which is final only after the last row
SAFETENSORS_TYPES = {"float32": "F32", "int8": "I8", "uint8": "U8"}

Write = Callable[[Sequence[str], np.ndarray], None]
Writer = Callable[[IO[bytes]], contextlib.AbstractContextManager[Write]]
Header = Callable[[IO[bytes], int, int, np.dtype[Any]], None]


@contextlib.contextmanager
def vector_file(path: str | Path) -> Iterator[Write]:
    """A function that appends ids and their vectors, [N, E], to a file; the suffix is the format.

    .npy and .safetensors hold the array alone ("embeddings"), .jsonl and .parquet also the ids.
    All arrays must have the same width and dtype. To write no vectors, append an array [0, E]:
    otherwise the width is unknown and stored as 0.
    The file appears under its final name only when it is complete.
    """
    path = Path(path)
    kind = check_kind(path)
    with atomic_file(path) as file, WRITERS[kind](file) as write:
        yield write


def check_kind(path: str | Path) -> str:
    """The format of a file by its suffix; DataError if it is unknown or cannot be written."""
    check_target(path)
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in WRITERS:
        raise DataError(
            f"{path}: vector format {kind!r} is not known. Known: {', '.join(WRITERS)}."
        )
    return kind


def jsonl_lines(ids: Sequence[str], vectors_NE: np.ndarray) -> Iterator[str]:
    """One JSON object per vector: id and embedding, floats in their shortest exact form."""
    for identifier, vector in zip(ids, vectors_NE, strict=True):
        numbers = vector.tolist()
        if vector.dtype == np.float32:
            # str of a float32 is its shortest exact form; json would print twice as many digits.
            numbers = [float(str(x)) for x in vector]
        yield json.dumps({"id": identifier, "embedding": numbers}, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _jsonl(file: IO[bytes]) -> Iterator[Write]:
    def write(ids: Sequence[str], vectors_NE: np.ndarray) -> None:
        file.writelines(line.encode() for line in jsonl_lines(ids, vectors_NE))

    yield write


class _Array:
    """Appends rows after a header that holds their number, so it is rewritten at the end."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self.file, self.header, self.rows = file, header, 0
        self.kind: tuple[int, np.dtype[Any]] | None = None

    def __call__(self, ids: Sequence[str], vectors_NE: np.ndarray) -> None:
        kind = (vectors_NE.shape[1], vectors_NE.dtype)
        if self.kind is None:
            self.kind = kind
            self.header(self.file, 0, *kind)
        if len(ids) != len(vectors_NE):
            raise ShapeError(f"{len(ids)} ids and {len(vectors_NE)} vectors; give one id a vector")
        if kind != self.kind:
            raise ShapeError(
                f"cannot append {kind[1]} vectors of {kind[0]} dimensions to {self.rows} "
                f"{self.kind[1]} vectors of {self.kind[0]} dimensions; write them to another file"
            )
        self.rows += len(vectors_NE)
        self.file.write(vectors_NE.tobytes())

    def close(self) -> None:
        self.file.seek(0)
        self.header(self.file, self.rows, *(self.kind or (0, np.dtype(np.float32))))


def _npy_header(file: IO[bytes], rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    # numpy pads this header: the number of rows can grow to 21 digits without moving the data.
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": (rows, dim)}
    )


def _safetensors_header(file: IO[bytes], rows: int, dim: int, dtype: np.dtype[Any]) -> None:
    size = rows * dim * dtype.itemsize
    kind = SAFETENSORS_TYPES[dtype.name]
    entry = {"dtype": kind, "shape": [rows, dim], "data_offsets": [0, size]}
    text = json.dumps({"embeddings": entry}).encode().ljust(HEADER_BYTES)
    file.write(len(text).to_bytes(8, "little") + text)


def _array(header: Header) -> Writer:
    @contextlib.contextmanager
    def writer(file: IO[bytes]) -> Iterator[Write]:
        array = _Array(file, header)
        yield array
        array.close()

    return writer


@contextlib.contextmanager
def _parquet(file: IO[bytes]) -> Iterator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "writing Parquet") from None
    writer: Any = None

    def write(ids: Sequence[str], vectors_NE: np.ndarray) -> None:
        nonlocal writer
        flat = pa.array(np.ascontiguousarray(vectors_NE).reshape(-1))
        columns = {
            "id": pa.array(list(ids), pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors_NE.shape[1]),
        }
        table = pa.table(columns)
        # A dictionary of floats, which hardly repeat, takes half as much as the floats themselves;
        # one of integers is how Parquet stores them in a byte each.
        kinds = [] if vectors_NE.dtype.kind == "f" else ["embedding.list.element"]
        writer = writer or pq.ParquetWriter(file, table.schema, use_dictionary=kinds)
        if len(vectors_NE):
            writer.write_table(table)

    try:
        yield write
        if writer is None:
            fields = [("id", pa.string()), ("embedding", pa.list_(pa.float32()))]
            writer = pq.ParquetWriter(file, pa.schema(fields))
    finally:
        # Also after an error: a writer left open fails in its finalizer, once the file is closed.
        if writer is not None:
            writer.close()


WRITERS: dict[str, Writer] = {
    "npy": _array(_npy_header),
    "jsonl": _jsonl,
    "parquet": _parquet,
    "safetensors": _array(_safetensors_header),
}


# ---- reading ------------------------------------------------------------------------------------


def read_vectors(path: str | Path) -> np.ndarray:
    """The float vectors of a file that `vector_file` wrote, float32 [N, E].

    Raises DataError for a file that cannot be read as one, or whose vectors are quantised: they
    are no numbers to compute with before they are dequantised.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in READERS:
        raise DataError(
            f"{path}: vector format {kind!r} is not known. Known: {', '.join(READERS)}."
        )
    try:
        found = READERS[kind](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a file of vectors ({reason})") from None
    if found.ndim != 2:
        raise DataError(f"{path}: expected vectors [N, E], got shape {found.shape}")
    if found.dtype.kind != "f":
        raise DataError(
            f"{path}: vectors are {found.dtype}, quantised; write them as float32, or dequantise "
            "them with polyvec.embed.projection.quantization.dequantize"
        )
    return found.astype(np.float32, copy=False)


def _read_npy(path: Path) -> np.ndarray:
    found: np.ndarray = np.load(path, allow_pickle=False)
    return found


def _read_safetensors(path: Path) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)["embeddings"]
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _read_jsonl(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line)["embedding"] for line in file if line.strip()]
    return np.array(rows, np.float32)


def _read_parquet(path: Path) -> np.ndarray:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "reading Parquet") from None
    return np.array(pq.read_table(path, columns=["embedding"])["embedding"].to_pylist(), np.float32)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "npy": _read_npy,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "safetensors": _read_safetensors,
}
