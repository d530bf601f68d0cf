"""Which folders are of late-interaction models, by the files of each library."""

from pathlib import Path
from typing import Any

from polyvec.embed.formats.schema import listed_modules, read_json
from polyvec.errors import ModelError

SETTINGS = "config_sentence_transformers.json"
COLBERT_HEAD = "colbert_linear.pt"
# PyLate's settings that no dense model has.
PYLATE_KEYS = ("query_prefix", "document_prefix", "do_query_expansion", "skiplist_words")


def late_kind(folder: Path) -> str | None:
    """Whose late-interaction model it is: "stanford", "modules" (PyLate, MultiVectorEncoder), None.

    bge-m3's folder is one of a dense model, whose ColBERT head is read on request.
    """
    stored = read_json(folder / SETTINGS, {})
    listed = listed_modules(folder)
    types = [str(module.get("type", "")) for module in listed if isinstance(module, dict)]
    if stored.get("model_type") in ("ColBERT", "MultiVectorEncoder"):
        return "modules"
    if any(kind.startswith("pylate.") or kind.endswith(".MultiVectorMask") for kind in types):
        return "modules"
    if listed and any(stored.get(key) for key in PYLATE_KEYS):
        return "modules"
    config: dict[str, Any] = read_json(folder / "config.json", {})
    named = config.get("architectures") or []
    if "HF_ColBERT" not in named:
        return None
    return "modules" if listed else "stanford"


def check_one_vector(folder: Path) -> None:
    """Raises ModelError for a folder whose model gives several vectors a text."""
    if late_kind(folder) is not None:
        raise ModelError(
            f"{folder} is a late-interaction (ColBERT) model with a vector for each token, not "
            "one for each text; load it with: polyvec.MultiVectorEmbedder.from_pretrained"
        )
    check_reads_texts(folder)


def check_reads_texts(folder: Path) -> None:
    """Raises ModelError for ColPali and its kin, whose documents are images."""
    config: dict[str, Any] = read_json(folder / "config.json", {})
    named = [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("ForRetrieval") for name in named):
        raise ModelError(
            f"{folder}: {named[0]} is a late-interaction model of images of pages (ColPali), not "
            "of texts; use sentence-transformers' MultiVectorEncoder"
        )
