"""What the three adapters share: an embedder or an index by name, vectors as lists of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

from polyvec.embed.embedder import Embedder
from polyvec.errors import InputError, MissingExtraError, known
from polyvec.index.engines import engine_of
from polyvec.index.store import Index

FORMS = ("output_value", "convert_to_numpy", "convert_to_tensor")  # options of encode


def missing(package: str, name: str) -> MissingExtraError:
    """The error for a package that isn't installed."""
    return MissingExtraError(package, "integrations", name)


def table(name: str, value: Any) -> dict[str, Any]:
    """A copy of a table of options, empty for None; InputError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} is {str(value)[:60]!r}, expected a table of names and values")
    return dict(value)


def embedder_of(model: str | Path | Embedder, options: Mapping[str, Any]) -> Embedder:
    """The embedder itself, or that of a folder or hub id, loaded with the options.

    Raises InputError for anything else, and for options of an embedder that is already loaded.
    """
    if isinstance(model, str | Path):
        return Embedder(model, **options)
    if not isinstance(model, Embedder):
        raise InputError(
            f"model is {type(model).__name__}, expected a folder, a hub id or an Embedder"
        )
    if options:
        raise InputError(f"{sorted(options)}: options of loading, but the embedder is loaded")
    return model


def query_vector(embedder: Embedder, text: str, options: Mapping[str, Any]) -> list[float]:
    """The vector of a text as a query."""
    if not isinstance(text, str):
        raise InputError(f"the query is {type(text).__name__}, expected a text")
    chosen = _quiet(options)
    return cast(list[float], embedder.encode_query(text, **chosen).tolist())


def document_vectors(
    embedder: Embedder, texts: Sequence[str], options: Mapping[str, Any]
) -> list[list[float]]:
    """The vectors of texts as documents, in their order."""
    if isinstance(texts, str):
        raise InputError("the documents are one text, expected a list of texts")
    if not isinstance(texts, Iterable):
        raise InputError(f"the documents are {type(texts).__name__}, expected a list of texts")
    chosen = _quiet(options)
    found = embedder.encode_document(list(texts), **chosen)
    return cast(list[list[float]], found.tolist())


def _quiet(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `encode`, without a progress bar unless they ask for one.

    Raises InputError for options that it does not have, and for those that make something else
    than a vector of each text.
    """
    allowed = signature(Embedder.encode).parameters.keys() - {"self", "inputs", *FORMS}
    for name in options:
        if name in FORMS:
            raise InputError(f"option {name!r} of encode: vectors come out as lists; leave it out")
        if name not in allowed:
            raise InputError(f"encode has no option {name!r}.{known(name, allowed)}")
    return {"show_progress_bar": False, **options}


# ---- indexes ------------------------------------------------------------------------------------


def index_of(
    index: str | Path | Index, model: str | Path | Embedder | None, **options: Any
) -> Index:
    """The index itself, or that of a folder or a URL, with the model that its texts are read by.

    Without a model it is the one that the index names. A place that has no index gets a new one,
    if there is a model. Raises InputError for an index without a model, IndexStoreError for
    another model than the one that made it.
    """
    if isinstance(index, Index):
        if model is not None:
            index.embedder = embedder_of(model, options)
            index.check(index.embedder)
        if index.embedder is None:
            raise InputError("the index was opened without an embedder; give one as `model`")
        return index
    if not isinstance(index, str | Path):
        raise InputError(f"index is {type(index).__name__}, expected an Index, a folder or a URL")
    if model is not None and not engine_of(index).exists(str(index)):
        name = str(model) if isinstance(model, str | Path) else ""
        return Index.create(index, embedder_of(model, options), model=name)
    found = Index.open(index)
    made = found.description
    if model is None and (made.scale or made.options or not made.model):
        raise InputError(f"{index}: built with {made.built_with or 'a model'}; give it as `model`")
    found.embedder = embedder_of(made.model if model is None else model, options)
    found.check(found.embedder)
    return found
