"""What the three adapters share: an embedder by name, and vectors as lists of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

from polyvec.embed.embedder import Embedder
from polyvec.errors import InputError, MissingExtraError, known

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
