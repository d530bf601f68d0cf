"""Which files of a public data set are its rows, its corpus, its queries and its judgements."""

import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from polyvec.data.importing.tables import first_columns
from polyvec.data.texts import kind_of
from polyvec.errors import DataError
from polyvec.storage.files import files_below

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Words in names of files, and our name of the split.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "devel", "validation", "valid", "val", "trial"), "dev"),
    "test": "test",
}
# Of one part of many ("-00000-of-00002", and a hash behind it).
SHARD = re.compile(r"-\d+-of-(\d+)(-[0-9a-f]{16})?(?=\.)|(?<=/)\d{4}(?=\.parquet)")
QRELS = (("query-id", "corpus-id"), ("qid", "pid"), ("query_id", "corpus_id"))
LFS = b"version https://git-lfs"
CANDIDATES = ("query-id", "corpus-ids")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a data set: `rows` by split, or a corpus with queries and qrels by split.

    unread: tables and lists that are none of these.
    """

    rows: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    corpus: Sequence[Path] = ()
    queries: Sequence[Path] = ()
    qrels: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    candidates: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    unread: Sequence[str] = ()


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The source, or a temporary folder with what its archive holds."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.is_dir() or not source.name.lower().endswith(ARCHIVES):
        yield source
        return
    with TemporaryDirectory(prefix="polyvec-import-") as folder:
        try:
            if source.name.lower().endswith(".zip"):
                with zipfile.ZipFile(source) as archive:
                    _check_names(source, archive.namelist())
                    archive.extractall(folder)
            else:
                with tarfile.open(source) as tar:
                    tar.extractall(folder, filter="data")
        except DataError:
            raise
        # OSError: names that exclude each other or are too long
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{source}: cannot be unpacked ({reason})") from None
        # RuntimeError: a password; zlib.error and EOFError: damaged; NotImplementedError: deflate64
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{source}: cannot be unpacked ({reason})") from None
        except (zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{source}: damaged archive ({error})") from None
        yield Path(folder)


def _check_names(source: Path, names: Sequence[str]) -> None:
    """Raises DataError if an archive has two files of a name: one would replace the other."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{source}: holds more than one file {twice[0]!r}")


def find_layout(source: Path, *, split: str | None = None, only: str | None = None) -> Layout:
    """What the files of a folder, or one file, are.

    split: of a file whose name tells none (default: test). only: leaves out files without this
    text in their path. Raises DataError if no file, or more than one, can be what is looked for.
    """
    root = source if source.is_dir() else source.parent
    files = [source] if source.is_file() else files_below(source)
    files = [path for path in files if path.is_file() or (path.is_symlink() and not path.exists())]
    names = {path: path.relative_to(root).as_posix() for path in files}
    data = [p for p in files if kind_of(p) in KINDS and not _is_hidden(names[p])]
    data = [path for path in data if only is None or only in names[path]]
    if not data:
        told = f" whose path contains {only!r}" if only else ""
        raise DataError(
            f"{source}: no file{told} of these types: {', '.join(KINDS)}; or give an archive: "
            f"{', '.join(ARCHIVES)}"
        )
    _check_stored(data)
    corpus = [path for path in data if "corpus" in _words(names[path])]
    if corpus:
        return _ranked(source, data, names, split)
    qrels = [path for path in data if "qrels" in _words(names[path])]
    if qrels:
        raise DataError(f"{source}: {names[qrels[0]]} are judgements, but there is no corpus")
    if source.is_file():
        return Layout(rows={split or split_of(source.name) or "test": data})
    rows: dict[str, list[Path]] = {}
    named = [path for path in data if split_of(names[path]) and first_columns(path)]
    tables = [path for path in data if kind_of(path) != "txt"]
    if not named and len(tables) == 1:
        return Layout(rows={split or "test": tables}, unread=_others(names, data, tables))
    for path in named:
        rows.setdefault(split_of(names[path]), []).append(path)
    if not rows:
        if empty := [names[path] for path in data if split_of(names[path])]:
            raise DataError(f"{source}: no rows in {_listed(empty)}")
        raise DataError(
            f"{source}: no name says train, dev or test: {_listed(names.values())}. Give one file, "
            "with --split"
        )
    if split is not None:
        if split not in rows:
            raise DataError(f"{source}: no file of split {split!r}. Known: {', '.join(rows)}.")
        rows = {split: rows[split]}
    for name, paths in rows.items():
        _check_parts(source, f"split {name!r}", paths, names)
    return Layout(rows=rows, unread=_others(names, data, named))


def _ranked(source: Path, data: list[Path], names: Mapping[Path, str], split: str | None) -> Layout:
    corpus, queries, unread = list[Path](), list[Path](), list[str]()
    qrels, candidates = dict[str, list[Path]](), dict[str, list[Path]]()
    for path in data:
        words, columns = _words(names[path]), first_columns(path)
        found = split_of(names[path]) or "test"
        if "qrels" in words or any(columns >= set(each) for each in QRELS):
            qrels.setdefault(found, []).append(path)
        elif columns >= set(CANDIDATES):
            candidates.setdefault(found, []).append(path)
        elif "corpus" in words:
            corpus.append(path)
        elif "queries" in words or "query" in words:
            queries.append(path)
        else:
            unread.append(names[path])
    if split is not None:
        qrels = {name: paths for name, paths in qrels.items() if name == split}
    for what, paths in (("queries", queries), ("qrels", list(qrels.values()))):
        if not paths:
            told = f" of split {split!r}" if split and what == "qrels" else ""
            raise DataError(f"{source}: has a corpus, but no {what}{told}")
    several = {"corpus": corpus, "queries": queries}
    several |= {f"qrels of split {name!r}": paths for name, paths in qrels.items()}
    for what, paths in several.items():
        _check_parts(source, what, paths, names, splits=what in ("corpus", "queries"))
    candidates = {name: paths for name, paths in candidates.items() if name in qrels}
    return Layout({}, corpus, queries, qrels, candidates, unread)


def _check_stored(data: Sequence[Path]) -> None:
    """Raises DataError for links to nothing and pointers of git-lfs."""
    for path in data:
        if not path.exists():
            raise DataError(f"{path}: a link to a file that is not there; get the data set anew")
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise DataError(
                    f"{path}: a pointer of git-lfs, not the file itself; run 'git lfs pull' there"
                )


def split_of(name: str) -> str:
    """Our name of the split that a path tells last, or ""."""
    return next((SPLITS[word] for word in reversed(_words(name)) if word in SPLITS), "")


def _check_parts(
    source: Path,
    what: str,
    paths: Sequence[Path],
    names: Mapping[Path, str],
    *,
    splits: bool = False,
) -> None:
    """Raises DataError unless the files are all parts of one: shards, or its splits."""
    for path in paths:
        shard = SHARD.search(names[path])
        if shard and shard[1]:
            start = names[path][: shard.start()]
            there = sum(names[each].startswith(f"{start}-") for each in paths)
            if there < int(shard[1]):
                raise DataError(
                    f"{source}: {names[path]} is one of {int(shard[1])} parts, but {there} "
                    f"{'is' if there == 1 else 'are'} there; get the others"
                )
    plain = {SHARD.sub("", names[path]) for path in paths}
    if splits:
        plain = {re.sub(rf"\b({'|'.join(SPLITS)})\b", "", name) for name in plain}
    if len(plain) > 1:
        shown = _listed(names[path] for path in paths)
        raise DataError(
            f"{source}: {len(plain)} files can be the {what}: {shown}. Choose with --only TEXT, a "
            "part of the path"
        )


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[^A-Za-z]+", name) if word]


def _others(names: Mapping[Path, str], data: list[Path], read: list[Path]) -> list[str]:
    return [names[path] for path in data if path not in read and kind_of(path) != "txt"]


def _is_hidden(name: str) -> bool:
    """Also what macOS puts into zip files."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _listed(names: Iterable[str], most: int = 6) -> str:
    each = list(names)
    return ", ".join(each[:most]) + (", ..." if len(each) > most else "")
