"""Rerankers by name: RERANKERS, and a table of settings as the command line reads it."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.errors import SettingsError
from polyvec.registry import Registry
from polyvec.rerank.reranker import Budgeted, Reranker


def cross_encoder(model: str, max_length: int | None = None, device: str | None = None) -> Reranker:
    """A sequence classifier, sentence-transformers' CrossEncoder: see CrossEncoder."""
    from polyvec.rerank.cross_encoder import CrossEncoder

    return CrossEncoder.load(model, max_length=max_length, device=device)


def late_interaction(
    model: str = DEFAULT_MODEL,
    factor: int = 1,
    vectors: Literal["own", "states"] = "own",
    device: str | None = None,
) -> Reranker:
    """MaxSim by a late-interaction model, or with vectors = "states" by an embedder's token
    states, which needs no training: see LateInteraction."""
    from polyvec.embed.embedder import Embedder
    from polyvec.embed.multi_vectors import MultiVectorEmbedder
    from polyvec.errors import ModelError
    from polyvec.rerank.late_interaction import LateInteraction

    if vectors == "states":
        return LateInteraction(Embedder.from_pretrained(model, device=device), factor=factor)
    try:
        multi = MultiVectorEmbedder.from_pretrained(model, device=device)
    except ModelError as error:
        raise ModelError(f"{error}; vectors=states takes any embedder's token states") from None
    return LateInteraction(multi, factor=factor)


def true_false(
    model: str,
    prompt: str | None = None,
    answers: tuple[str, ...] | None = None,
    max_length: int | None = None,
    device: str | None = None,
) -> Reranker:
    """A language model that says true or false (monoT5, FollowIR): see TrueFalse."""
    from polyvec.rerank.true_false import TrueFalse

    return TrueFalse.load(
        model, prompt=prompt, answers=answers, max_length=max_length, device=device
    )


RERANKERS: Registry[Callable[..., Reranker]] = Registry(
    "reranker",
    {
        "cross_encoder": cross_encoder,
        "late_interaction": late_interaction,
        "true_false": true_false,
    },
    elsewhere={
        "listwise": "polyvec.llm.rerankers:listwise",
        "query_likelihood": "polyvec.llm.rerankers:query_likelihood",
    },
)


def load_reranker(table: Mapping[str, Any], *, where: str = "--rerank") -> Reranker:
    """The reranker of {"kind": name, setting: value ...}; `seconds` is a setting of every kind.

    seconds: the time of one query, after which the rest keeps its order (`Budgeted`). Raises
    SettingsError for an unknown kind or setting, before any weight loads.

    >>> load_reranker({"kind": "true_false", "model": "polyvec/nano-t5"}).rank("a", ["b"])[0][0]
    0
    """
    if not isinstance(table.get("kind"), str):
        raise SettingsError(f"{where}: no kind of reranker. Known: {', '.join(names())}.")
    settings = dict(table)
    kind, seconds = settings.pop("kind"), settings.pop("seconds", None)
    if seconds is not None and (type(seconds) not in (int, float) or not seconds > 0):
        raise SettingsError(f"{where}: seconds is {seconds!r}, expected a number above 0")
    found: Reranker = RERANKERS.build(kind, settings, where=where)
    return found if seconds is None else Budgeted(found, float(seconds))


def names() -> list[str]:
    """The kinds of rerankers."""
    return sorted({*RERANKERS, *RERANKERS.elsewhere})
