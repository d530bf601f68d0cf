"""An index on disk: one folder of plain files, searched exactly.

    manifest.json               what it is: model, prompt, dimension, and the names of the two files
    vectors-<generation>.npy    float32 [N, E]
    items-<generation>.jsonl    id and text of each row
    pending/                    vectors of a build that was interrupted, kept for the next try
    .polyvec-index              the lock of a running build; says that the folder is ours

A build writes a new generation beside the old one and then replaces the manifest, so that
whoever kills it at whatever moment leaves the old index or the new one. The manifest also
keeps vectors of different models, prompts or dimensions apart (SILENT row 30).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.data.texts import Record
from polyvec.embed.encoding import EncodeReport, RunOptions
from polyvec.errors import DataError, IndexStoreError
from polyvec.index.exact import top_k
from polyvec.storage.files import atomic_file

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

FORMAT = 1
CHUNK = 1024  # texts whose vectors are kept together while a build runs
HASH_BYTES = 32
LOCK = ".polyvec-index"
GENERATION = re.compile(r"(vectors|items)-[0-9a-f]{16}\.(npy|jsonl)")
TEMPORARY = re.compile(r"\.(vectors-|items-|manifest\.).*\.tmp")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index holds; stored as manifest.json."""

    format: int
    model: str
    model_sha256: str
    prompt: str
    similarity: str
    dimension: int
    count: int
    vectors: str
    items: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A found text: its id, similarity and the text itself."""

    id: str
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: texts in all, those embedded now (the rest had been), the encode run."""

    num_texts: int
    num_embedded: int
    encode: EncodeReport


class Index:
    """Texts and their vectors in a folder.

    >>> index, report = Index.build("my-index", records, embedder)     # doctest: +SKIP
    >>> Index.open("my-index").search(["a question"], embedder, top_k=3)    # doctest: +SKIP
    """

    def __init__(
        self, folder: Path, manifest: Manifest, vectors: np.ndarray, items: list[Record]
    ) -> None:
        self.folder, self.manifest, self.vectors_NE, self.items = folder, manifest, vectors, items

    def __len__(self) -> int:
        return self.manifest.count

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """The index in a folder; IndexStoreError if there is none or its files do not fit."""
        folder = Path(folder)
        manifest = _read_manifest(folder)
        while manifest is not None:
            try:
                return cls(folder, manifest, *_read_generation(folder, manifest))
            except FileNotFoundError as error:
                # A build may have replaced the generation between our two reads.
                before, manifest = manifest, _read_manifest(folder)
                if manifest == before:
                    raise IndexStoreError(
                        f"{folder}: {Path(error.filename).name} is missing; "
                        "make the index again with polyvec index"
                    ) from None
        raise IndexStoreError(
            f"{folder}: no index there; make one with: polyvec index {folder} FILE"
        )

    @classmethod
    def build(
        cls,
        folder: str | Path,
        records: Iterable[Record],
        embedder: "Embedder",
        *,
        model: str = "",
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> tuple["Index", BuildReport]:
        """Make the index of these records, in place of the folder's old one.

        Texts that the old index, or an interrupted build, holds vectors of are not embedded
        again. Raises DataError for an id that comes twice, IndexStoreError if the folder
        holds something else or another build is writing to it.
        """
        folder = Path(folder)
        items = list(records)
        _check_ids(items)
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        options = RunOptions(batch_size, show_progress_bar=show_progress_bar)
        with _locked(folder):
            build = _Build(folder, embedder, options)
            vectors, report = build.vectors(items)
            index = cls(folder, build.commit(model, items, vectors), vectors, items)
        return index, report

    def search(
        self, queries: Sequence[str], embedder: "Embedder", *, top_k: int = 10
    ) -> list[list[Hit]]:
        """The nearest texts of each query, best first, exactly.

        Raises IndexStoreError if the embedder is not the one that made the index.
        """
        self.check(embedder)
        if not self.items:
            return [[] for _ in queries]
        vectors = embedder.encode_query(list(queries))
        return [
            [Hit(self.items[row].id, score, self.items[row].text) for score, row in found]
            for found in self._near(vectors, top_k)
        ]

    def check(self, embedder: "Embedder") -> None:
        """Raises IndexStoreError unless this embedder made the index's vectors."""
        if embedder.fingerprint() != self.manifest.model_sha256:
            raise IndexStoreError(
                f"{self.folder}: made with another model ({self.manifest.model or 'unnamed'}) or "
                "with other settings of it; vectors of two models cannot be compared"
            )

    def _near(self, vectors: np.ndarray, k: int) -> list[list[tuple[float, int]]]:
        scores, rows = top_k(vectors, self.vectors_NE, k, self.manifest.similarity)
        return [
            list(zip(s.tolist(), r.tolist(), strict=True))
            for s, r in zip(scores, rows, strict=True)
        ]


class _Build:
    """One build: what is known already, what is computed, and the switch to the new generation."""

    def __init__(self, folder: Path, embedder: "Embedder", options: RunOptions) -> None:
        self.folder, self.embedder, self.options = folder, embedder, options
        self.prompt = embedder.prompt_table.resolve(role="document")
        self.model_sha256 = embedder.fingerprint()
        key = hashlib.sha256(f"{self.model_sha256}{self.prompt.text}".encode()).hexdigest()
        self.pending = folder / "pending" / key[:16]

    def vectors(self, items: list[Record]) -> tuple[np.ndarray, BuildReport]:
        """Vectors of all items, [N, E]; those not known are computed and kept chunk by chunk."""
        vector_of = dict(self._known())
        todo = list(dict.fromkeys(r.text for r in items if _digest(r.text) not in vector_of))
        report = EncodeReport()
        chunks = self.embedder.encode_iter(
            todo,
            role="document",
            chunk_size=CHUNK,
            options=self.options,
            report=report,
        )
        self.pending.mkdir(parents=True, exist_ok=True)
        for number, chunk in enumerate(chunks):
            digests = [_digest(text) for text in todo[number * CHUNK : number * CHUNK + len(chunk)]]
            self._keep(digests, chunk)
            vector_of.update(zip(digests, chunk, strict=True))
        dimension = self.embedder.get_embedding_dimension()
        out = np.empty((len(items), dimension), np.float32)
        for row, record in enumerate(items):
            out[row] = vector_of[_digest(record.text)]
        return out, BuildReport(len(items), len(todo), report)

    def commit(self, model: str, items: list[Record], vectors: np.ndarray) -> Manifest:
        """Write the new generation, switch the manifest to it, then clear what is left over."""
        generation = secrets.token_hex(8)
        manifest = Manifest(
            FORMAT,
            model,
            self.model_sha256,
            self.prompt.text,
            self.embedder.similarity_fn_name,
            self.embedder.get_embedding_dimension(),
            len(items),
            f"vectors-{generation}.npy",
            f"items-{generation}.jsonl",
        )
        with atomic_file(self.folder / manifest.vectors) as file:
            # Not np.save: its error on a full disk names neither reason nor file.
            np.lib.format.write_array_header_1_0(
                file, np.lib.format.header_data_from_array_1_0(vectors)
            )
            file.write(np.ascontiguousarray(vectors).data)
        with atomic_file(self.folder / manifest.items, "w") as file:
            file.writelines(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
        with atomic_file(self.folder / "manifest.json", "w") as file:
            json.dump(asdict(manifest), file, indent=2)
        _clear(self.folder, manifest)
        return manifest

    def _known(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """Vectors by their text's digest. What is damaged gives nothing, and prevents nothing."""
        with contextlib.suppress(FileNotFoundError, IndexStoreError):
            manifest = _read_manifest(self.folder)
            if manifest is not None and self._made(manifest):
                vectors, items = _read_generation(self.folder, manifest)
                yield from zip((_digest(item.text) for item in items), vectors, strict=True)
        for path in sorted(self.pending.glob("*.npz")):
            with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as kept:
                digests, vectors = kept["digests"], kept["vectors"]
                if vectors.shape[1:] == (self.embedder.get_embedding_dimension(),):
                    yield from zip((bytes(d) for d in digests), vectors, strict=False)

    def _made(self, manifest: Manifest) -> bool:
        return (manifest.model_sha256, manifest.prompt) == (self.model_sha256, self.prompt.text)

    def _keep(self, digests: list[bytes], vectors: np.ndarray) -> None:
        raw = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, HASH_BYTES)
        with atomic_file(self.pending / f"{secrets.token_hex(8)}.npz") as file:
            np.savez(file, digests=raw, vectors=vectors)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _check_ids(items: list[Record]) -> None:
    """Each id is text, and comes once."""
    place_of: dict[str, int] = {}
    for place, item in enumerate(items, start=1):
        # isprintable is quick, and False for the lone surrogates that no file can hold.
        if not isinstance(item.id, str) or (not item.id.isprintable() and not _is_text(item.id)):
            raise DataError(f"text {place} has the id {item.id!r}, which is no text")
        first = place_of.setdefault(item.id, place)
        if first != place:
            raise DataError(f"text {place} has the same id as text {first}: {item.id!r}")


def _is_text(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text


def _check_folder(folder: Path) -> None:
    """Only an empty folder or an index is written to, so that a wrong path costs nothing."""
    if folder.exists() and not folder.is_dir():
        raise IndexStoreError(f"{folder}: a file is in the way of the index's folder")
    if not folder.is_dir() or (folder / LOCK).is_file() or not any(folder.iterdir()):
        return
    # A copy of an index may lack the hidden lock; another program's manifest.json is an error.
    if _read_manifest(folder) is None:
        raise IndexStoreError(f"{folder}: holds other files and no index, so none is made there")


def _read_manifest(folder: Path) -> Manifest | None:
    path = folder / "manifest.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if raw.get("format") != FORMAT:
            raise IndexStoreError(
                f"{path}: format {raw.get('format')!r}, this version reads {FORMAT}"
            )
        manifest = Manifest(**raw)
        types = Manifest.__annotations__
        wrong = [key for key, value in raw.items() if type(value) is not types[key]]
        if wrong:
            raise ValueError(f"{wrong[0]} is {raw[wrong[0]]!r}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IndexStoreError(f"{path}: damaged ({error})") from None
    for name in (manifest.vectors, manifest.items):
        if not GENERATION.fullmatch(name):
            raise IndexStoreError(f"{path}: {name!r} is not the name of an index's file")
    return manifest


def _read_generation(folder: Path, manifest: Manifest) -> tuple[np.ndarray, list[Record]]:
    """Vectors, left on the disk until they are used, and texts; FileNotFoundError if gone."""
    path = folder / manifest.vectors
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        path = folder / manifest.items
        with path.open(encoding="utf-8", newline="\n") as file:
            items = [Record(**json.loads(line)) for line in file]
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 - numpy and json raise a dozen kinds for damage
        raise IndexStoreError(f"{path}: damaged ({error}); make the index again") from None
    found = (vectors.shape, vectors.dtype, len(items))
    if found != ((manifest.count, manifest.dimension), np.float32, manifest.count):
        raise IndexStoreError(
            f"{folder}: damaged (manifest.json says {manifest.count} x {manifest.dimension}, "
            f"there are vectors {found[0]} {found[1]} and {found[2]} texts); make the index again"
        )
    return vectors, items


def _clear(folder: Path, manifest: Manifest) -> None:
    """Remove other generations, half-written files and the vectors kept for a next try."""
    for path in folder.iterdir():
        ours = GENERATION.fullmatch(path.name) or TEMPORARY.fullmatch(path.name)
        if ours and path.name not in (manifest.vectors, manifest.items):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "pending", ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time; the lock falls with its process, however that ends."""
    handle = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexStoreError(f"{folder}: another process is building this index") from None
        yield
    finally:
        os.close(handle)
