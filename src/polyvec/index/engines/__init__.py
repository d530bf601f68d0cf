"""Where an index is kept, one file per engine; `interface` says what each of them does."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.errors import InputError, known

if TYPE_CHECKING:
    from polyvec.index.engines.interface import Engine

# The scheme of a place (of "qdrant://host:6333/texts": qdrant) with its "module:Class".
ENGINES: Mapping[str, str] = {
    "folder": "polyvec.index.engines.lance:LanceEngine",
    "plain": "polyvec.index.engines.plain:PlainEngine",
    "qdrant": "polyvec.index.engines.qdrant:QdrantEngine",
    "qdrant+https": "polyvec.index.engines.qdrant:QdrantEngine",
    "postgresql": "polyvec.index.engines.postgres:PostgresEngine",
    "postgres": "polyvec.index.engines.postgres:PostgresEngine",
    "milvus": "polyvec.index.engines.milvus:MilvusEngine",
    "milvus+https": "polyvec.index.engines.milvus:MilvusEngine",
}


def engine_of(where: str | Path) -> "type[Engine]":
    """The engine of a place: a URL's by its scheme, a folder's by what it holds.

    Raises InputError for an unknown scheme, MissingExtraError for a package that is missing.
    """
    from polyvec.index.folder import MANIFEST
    from polyvec.storage.files import as_path

    scheme, colon, _ = str(where).partition("://")
    if not colon:
        plain = (as_path(where, "folder") / MANIFEST).is_file()
        scheme = "plain" if plain else "folder"
    elif scheme not in ENGINES or scheme in ("folder", "plain"):
        schemes = [each for each in ENGINES if each not in ("folder", "plain")]
        from polyvec.index.engines.places import shown

        raise InputError(f"{shown(str(where))}: no engine for {scheme!r}.{known(scheme, schemes)}")
    module, _, name = ENGINES[scheme].partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), name)
    return found
