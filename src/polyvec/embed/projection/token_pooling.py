"""Fewer vectors a text: similar tokens are averaged.

T tokens of a text, E numbers a vector.
"""

import numpy as np

from polyvec.errors import MissingExtraError, SettingsError


def pool_tokens(vectors_TE: np.ndarray, factor: int) -> np.ndarray:
    """At most T / factor vectors (at least 1), each the mean of a cluster of tokens, float32.

    Clusters are those of Ward's method on the vectors at length 1, in the order of their first
    tokens (Clavié et al. 2024, arXiv:2409.14683, which found that factor 2 costs ColBERT almost
    nothing). A mean keeps its length, which is below 1 where a cluster's vectors differ. Raises
    SettingsError for a factor below 1, MissingExtraError without scipy.
    """
    if factor < 1:
        raise SettingsError(f"token pooling: factor is {factor}, expected a whole number from 1")
    num = len(vectors_TE)
    if factor == 1 or num < 2:
        return vectors_TE
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
    except ImportError:
        raise MissingExtraError("scipy", "evaluate", "pooling of tokens") from None
    lengths_T1 = np.linalg.norm(vectors_TE, axis=1, keepdims=True)
    units_TE = vectors_TE / np.where(lengths_T1 > 0, lengths_T1, 1)
    labels_T = fcluster(linkage(units_TE, "ward"), max(num // factor, 1), criterion="maxclust")
    _, firsts, clusters_T = np.unique(labels_T, return_index=True, return_inverse=True)
    place_of = np.argsort(np.argsort(firsts))  # of each cluster, by its first token
    pooled = np.zeros((len(firsts), vectors_TE.shape[1]), np.float32)
    np.add.at(pooled, place_of[clusters_T], vectors_TE)
    counts = np.bincount(place_of[clusters_T], minlength=len(firsts))
    means: np.ndarray = (pooled / counts[:, None]).astype(np.float32)
    return means
