"""Likelihoods: the contrastive loss (the survey's Eq. 1) and perplexity (Eq. 11).

Q queries, N documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures.inputs import Numbers, extra, matrix, numbers, positive

ROUNDING = 1e-4  # float32 log probabilities may exceed 0 by this much


def contrastive_nll(
    similarities: Any, temperature: float, positives: Sequence[int] | None = None
) -> float:
    """InfoNCE (Eq. 1) in nats, 0 or more; log(N) if all similarities are equal.

    Rows are queries, columns the similarities of their documents, [Q, N]. The positive is column 0
    of each row or, with `positives`, the column given for it: range(N) for in-batch negatives. The
    survey omits the temperature that every system has; its form is 1.0. Raises SettingsError for a
    temperature of 0 or less. van den Oord et al. 2018, arXiv:1807.03748.

    >>> round(contrastive_nll([[0.3, 0.3, 0.3]], 0.05), 4)  # log 3
    1.0986
    """
    logits_QN = matrix("contrastive_nll", similarities, at_least=1).astype(np.float64)
    logits_QN = logits_QN / positive("temperature", temperature)
    num_queries, num_documents = logits_QN.shape
    place_Q = np.zeros(num_queries, int) if positives is None else np.asarray(list(positives))
    if place_Q.shape != (num_queries,):
        raise ShapeError(
            f"contrastive_nll: {len(place_Q)} positives for {num_queries} queries; give one each"
        )
    if place_Q.dtype.kind not in "iu" or place_Q.min() < 0 or place_Q.max() >= num_documents:
        raise DataError(f"contrastive_nll: positives must be columns from 0 to {num_documents - 1}")
    log_sums_Q = extra("scipy.special", "the contrastive loss").logsumexp(logits_QN, axis=1)
    return float((log_sums_Q - logits_QN[np.arange(num_queries), place_Q]).mean())


def perplexity(log_probs: Numbers) -> float:
    """Perplexity of a text's tokens (Eq. 11), 1 or more: exp of the mean negative log probability.

    A uniform model over V tokens gives V. The survey's formula lacks the root of the text's length,
    without which longer texts always score worse. `log_probs` are natural logarithms, one per
    token; join several texts into one list. Raises DataError for a value above 0.

    >>> round(perplexity([-0.6931472, -2.0794415]), 4)  # of probabilities 1/2 and 1/8
    4.0
    """
    found = numbers("perplexity: log probabilities", log_probs)
    if not len(found):
        raise DataError("perplexity: no log probabilities, expected at least one")
    if found.max() > ROUNDING:
        raise DataError(
            f"perplexity: {found.max():g} at index {found.argmax()} is above 0, so not a log "
            "probability"
        )
    with np.errstate(over="ignore"):
        return float(np.exp(max(-found.mean(), 0.0)))
