"""The folders that people load, as tiny replicas with the real configuration files.

A function under `@layout` writes one replica and returns what must come of it: `Equal`, with
vectors by an independent implementation, or `Refused`, with what the one-line error says. The
files of this folder register theirs; `python tests/layouts/measure.py` writes the table of
docs/models.md from them. No file may have the name of a package that others look for among
imported modules: `sparse` is one.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TEXTS = ("a cat sat on the mat", "the dog", "two very long text : nobody looks while a cat sat")


@dataclass(frozen=True)
class Equal:
    """The folder loads, and its vectors are those of `reference`, [N, E] or a list of [T, E].

    `load` are options of `Embedder.from_pretrained`, `encode` those of `encode`. `kind` names
    what is loaded where it is not one dense vector a text; `folder` is another one to load.
    """

    reference: Callable[[Sequence[str]], Any]
    load: Mapping[str, Any] = field(default_factory=dict)
    encode: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[str] = TEXTS
    kind: str = "dense"
    folder: Path | None = None
    bfloat16: bool = True  # False where the layout has no half precision (adapters in 8 bits)


@dataclass(frozen=True)
class Refused:
    """The folder is refused by an error of one line that matches `message`."""

    message: str
    load: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A replica: its name, the models that have this layout, and who gives the right vectors."""

    name: str
    like: tuple[str, ...]
    answer: str
    make: Callable[[Path], Equal | Refused]


LAYOUTS: dict[str, Layout] = {}


def layout(name: str, *, like: Sequence[str], answer: str = "") -> Callable[[Any], Any]:
    """Registers a function that writes a replica into a folder."""

    def add(make: Callable[[Path], Equal | Refused]) -> Callable[[Path], Equal | Refused]:
        if name in LAYOUTS:
            raise ValueError(f"layout {name!r} is registered twice")
        LAYOUTS[name] = Layout(name, tuple(like), answer, make)
        return make

    return add


def all_layouts() -> list[Layout]:
    """Every layout of this folder's files, by name."""
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in ("layouts", "measure") and not path.stem.startswith("test_"):
            importlib.import_module(path.stem)
    return [LAYOUTS[name] for name in sorted(LAYOUTS)]


def sentence_transformers(folder: Path, **options: Any) -> Callable[[Sequence[str]], np.ndarray]:
    """Vectors by sentence-transformers; `method` names one of its encode methods."""
    method = options.pop("method", "encode")
    encode = options.pop("encode", {})

    def vectors(texts: Sequence[str]) -> np.ndarray:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", **options)
        return getattr(model, method)(list(texts), **encode)

    return vectors


def rows(vectors: Any) -> Iterator[np.ndarray]:
    """The vectors of each text, [E] or [T, E]."""
    for each in vectors:
        yield np.asarray(each, np.float32)
