"""Vectors into files as they come: .npy, .jsonl, .parquet, .safetensors, whole or not at all."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from polyvec.data.texts import Record
from polyvec.errors import DataError, MissingExtraError, ShapeError
from polyvec.storage.files import atomic_file, check_target

HEADER_BYTES = 1024  # room for a safetensors header that is known only at the end
SAFETENSORS_TYPES = {"float32": "F32", "int8": "I8", "uint8": "U8"}

Write = Callable[[list[Record], np.ndarray], None]
Header = Callable[[IO[bytes], int, int, np.dtype], None]


@contextlib.contextmanager
def vector_file(path: str | Path) -> Iterator[Write]:
    """A function that appends records and their vectors [n, E] to a file of the suffix's kind.

    .npy and .safetensors hold the array alone ("embeddings"), .jsonl and .parquet also ids.
    All arrays have one width and type. For no vectors at all append an array [0, E]:
    without it the width is unknown, and stored as 0.
    Nothing stands under the final name until all is written.
    """
    path = Path(path)
    kind = check_kind(path)
    with atomic_file(path) as file, WRITERS[kind](file) as write:
        yield write


def check_kind(path: str | Path) -> str:
    """The writer that a file's suffix names; DataError if there is none, or no such folder."""
    check_target(path)
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in WRITERS:
        raise DataError(
            f"{path}: a file of kind {kind!r} is not known. Known: {', '.join(WRITERS)}."
        )
    return kind


def jsonl_lines(records: list[Record], vectors: np.ndarray) -> Iterator[str]:
    """One JSON object a vector: id and embedding, floats as short as float32 allows."""
    for record, vector in zip(records, vectors, strict=True):
        numbers = vector.tolist()
        if vector.dtype == np.float32:
            # repr of a float32 is its shortest exact form; the float64 of it is twice as long.
            numbers = [float(str(x)) for x in vector]
        yield json.dumps({"id": record.id, "embedding": numbers}, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _jsonl(file: IO[bytes]) -> Iterator[Write]:
    def write(records: list[Record], vectors: np.ndarray) -> None:
        file.writelines(line.encode() for line in jsonl_lines(records, vectors))

    yield write


class _Array:
    """Rows appended to a file whose header names their number: written again at the end."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self.file, self.header, self.rows = file, header, 0
        self.kind: tuple[int, np.dtype] | None = None

    def __call__(self, records: list[Record], vectors: np.ndarray) -> None:
        kind = (vectors.shape[1], vectors.dtype)
        if self.kind is None:
            self.kind = kind
            self.header(self.file, 0, *kind)
        if kind != self.kind or len(records) != len(vectors):
            raise ShapeError(
                f"vectors {vectors.shape} {vectors.dtype} of {len(records)} records do not go "
                f"below {self.rows} of {self.kind}"
            )
        self.rows += len(vectors)
        self.file.write(vectors.tobytes())

    def close(self) -> None:
        self.file.seek(0)
        self.header(self.file, self.rows, *(self.kind or (0, np.dtype(np.float32))))


def _npy_header(file: IO[bytes], rows: int, dim: int, dtype: np.dtype) -> None:
    # numpy pads this header so that the first axis can grow to 21 digits in place.
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": (rows, dim)}
    )


def _safetensors_header(file: IO[bytes], rows: int, dim: int, dtype: np.dtype) -> None:
    size = rows * dim * dtype.itemsize
    kind = SAFETENSORS_TYPES[dtype.name]
    entry = {"dtype": kind, "shape": [rows, dim], "data_offsets": [0, size]}
    text = json.dumps({"embeddings": entry}).encode().ljust(HEADER_BYTES)
    file.write(len(text).to_bytes(8, "little") + text)


def _array(header: Header) -> Callable[[IO[bytes]], contextlib.AbstractContextManager[Write]]:
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

    def write(records: list[Record], vectors: np.ndarray) -> None:
        nonlocal writer
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = {
            "id": pa.array([record.id for record in records], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(file, table.schema)
        if len(vectors):
            writer.write_table(table)

    try:
        yield write
        if writer is None:
            fields = [("id", pa.string()), ("embedding", pa.list_(pa.float32()))]
            writer = pq.ParquetWriter(file, pa.schema(fields))
    finally:
        # Also after an error: an open writer would complain of its closed file when collected.
        if writer is not None:
            writer.close()


WRITERS = {
    "npy": _array(_npy_header),
    "jsonl": _jsonl,
    "parquet": _parquet,
    "safetensors": _array(_safetensors_header),
}
