"""A cross-encoder's scores of (query, document), which refuse what a search took for negatives."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polyvec.errors import MissingExtraError, ModelError, PolyvecError
from polyvec.registry import Registry

# Scores [P] of pairs (query, document); higher is more relevant.
PairScores = Callable[[Sequence[tuple[str, str]]], Any]
CROSS_ENCODERS: Registry[PairScores] = Registry("cross_encoder")


def pair_scores(name: str, *, batch_size: int | None = None, where: str = "mining") -> PairScores:
    """The function "package.module:function", or the predictions of a cross-encoder's folder or id.

    A reranker that stage "true_false" has trained, or monoT5, gives log p(true).

    Raises MissingExtraError without sentence-transformers, ModelError for what it cannot load.
    """
    if name in CROSS_ENCODERS or ":" in name:
        return CROSS_ENCODERS.find(name, where=where)
    if (reranker := _true_false(name)) is not None:
        return reranker
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise MissingExtraError(
            "sentence-transformers", "train", f"the cross-encoder {name}"
        ) from None
    try:
        model = CrossEncoder(name)
    # It raises what transformers, torch and the hub raise.
    except Exception as error:  # noqa: BLE001
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"cross-encoder {name}: cannot be loaded ({reason})") from None
    return lambda pairs: model.predict(
        list(pairs), batch_size=batch_size or 32, show_progress_bar=False
    )


def _true_false(name: str) -> PairScores | None:
    """The scores of a language model that says true or false; None of another model."""
    from polyvec.embed.formats.sources import model_folder
    from polyvec.rerank.true_false import TrueFalse, is_true_false

    try:
        folder = model_folder(name, namespace=None)
    except PolyvecError:  # the library looks for it in its own way, and says what is wrong
        return None
    return TrueFalse.load(folder).scores if is_true_false(folder) else None


def checked_scores(score: PairScores, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The scores, float32 [P]; ModelError unless there is one finite number for each pair."""
    if not pairs:
        return np.empty(0, np.float32)
    found = np.asarray(score(pairs), np.float32)
    if found.shape != (len(pairs),):
        raise ModelError(
            f"the cross-encoder gave an array of shape {found.shape} for {len(pairs)} pairs; "
            "expected one score each"
        )
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ModelError(
            f"the cross-encoder's score of query {pairs[place][0][:60]!r} is NaN or infinite"
        )
    return found
