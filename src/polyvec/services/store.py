"""Vectors that were paid for, on disk: of one model at one server, by text and what it was for.

Texts and their roles are stored as hashes only. A reply is on disk before it is handed out, so a
run that was killed pays for the rest only; several processes may share a folder.
"""

import base64
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polyvec.errors import DataError, ServiceWarning
from polyvec.storage.files import cache_folder
from polyvec.storage.json_store import JsonStore, key_of

ENVIRONMENT = "POLYVEC_CACHE"
FORMAT = 1
FACTS = key_of("facts")


def default_folder() -> Path:
    """services/ in POLYVEC_CACHE, else in polyvec's part of the user's cache folder."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given) / "services" if given else cache_folder("services")


class VectorStore:
    """By text key: float32 vectors, and what is known of the model. Without a folder in memory."""

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.folder = None if folder is None else folder / key_of([FORMAT, identity])
        self._disk = None if self.folder is None else JsonStore(self.folder)
        self.facts: Mapping[str, object] = {}
        self.refresh()

    def refresh(self) -> None:
        """Find what other processes have added."""
        if self._disk is not None:
            self._disk.refresh()
            found = self._disk.get(FACTS)
            self.facts = found if isinstance(found, dict) else self.facts

    def remember(self, facts: Mapping[str, object]) -> None:
        """Dimension and reported name of the model."""
        self.facts = dict(facts)
        self._put(FACTS, self.facts)

    def get(self, keys: Sequence[str], dimension: int) -> dict[int, np.ndarray]:
        """Vectors by place, of those that are there."""
        found = {}
        for place, key in enumerate(keys):
            value = None if self._disk is None else self._disk.get(key)
            if isinstance(value, str):
                vector_E = np.frombuffer(base64.b64decode(value), "<f4")
                if len(vector_E) == dimension:
                    found[place] = vector_E
        return found

    def put(self, keys: Sequence[str], vectors_NE: np.ndarray) -> None:
        """Keep the vectors of a reply."""
        for key, vector_E in zip(keys, np.ascontiguousarray(vectors_NE, "<f4"), strict=True):
            self._put(key, base64.b64encode(vector_E.tobytes()).decode())

    def sync(self) -> None:
        """Have the disk itself store what was put."""
        if self._disk is not None:
            self._disk.sync()

    def _put(self, key: str, value: object) -> None:
        if self._disk is None:
            return
        try:
            self._disk.put(key, value)
        except OSError as error:  # vectors that are paid for still reach the caller
            reason = error.strerror or str(error)
            warnings.warn(
                f"{self.folder}: {reason}; going on without keeping vectors, so a run that is "
                "killed pays for all again. Set another folder with POLYVEC_CACHE",
                ServiceWarning,
                stacklevel=2,
            )
            self._disk = None


def text_key(said: object, text: str) -> str:
    """The key of a text's vector; `said` is all that a request says beside it."""
    return key_of([said, text])


def folder_of(given: str | Path | bool | None) -> Path | None:
    """The folder of the option `cache`: True or None for the default, False for none."""
    if given is False:
        return None
    folder = default_folder() if given in (None, True) else Path(str(given))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: exists and is not a folder; give another folder for the cache")
    return folder
