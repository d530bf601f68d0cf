"""Similarity under a condition: "a ball" and "a planet" are alike in shape, not in size."""

import numpy as np

from polyvec.data.tasks.sets import ConditionalStsSet
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols.sts import correlated, pairs_outcome
from polyvec.evaluate.protocols.vectors import (
    encode_instructed,
    encode_pairs,
    equal_lengths,
    side,
    varied,
)


def conditional_sts(encoder: Encoder, data: ConditionalStsSet, *, joined: bool = False) -> Outcome:
    """Spearman's and Pearson's correlation of similarity under the condition and gold score.

    Deshpande et al. 2023 (arXiv:2305.15093). Both sentences are encoded with the condition as
    their instruction, or with `joined` appended to the text. "unconditional_spearman" is the same
    without a condition: a model that is no better than that does not use the condition.
    """
    columns = data.sentences1, data.sentences2, data.conditions
    num_pairs = equal_lengths(
        data.name,
        pairs=data.sentences1,
        sentences2=data.sentences2,
        conditions=data.conditions,
        scores=data.scores,
    )
    vectors = encode_instructed(
        encoder,
        [*data.sentences1, *data.sentences2],
        data.conditions * 2,
        data.name,
        name=side(num_pairs),
        joined=joined,
    )
    own = np.asarray(encoder.similarity_pairwise(vectors[:num_pairs], vectors[num_pairs:]))
    varied(data.name, own)
    scores = correlated(data.name, own, data.scores)
    plain = encode_pairs(encoder, data.sentences1, data.sentences2, data.name)
    without = np.asarray(encoder.similarity_pairwise(*plain))
    if np.ptp(without) > 0:  # else there is no correlation to report
        each = correlated(data.name, without, data.scores)
        scores |= {f"unconditional_{measure}": value for measure, value in each.items()}
    return pairs_outcome(data.kind, scores, own, data.scores, columns)
