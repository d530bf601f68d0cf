"""Vectors on a plane, for maps. N texts, E dimensions."""

import importlib.util
from typing import Literal

import numpy as np

from polyvec.evaluate.measures.inputs import extra

FIT_UP_TO = 20_000  # vectors from which the axes are found
Method = Literal["UMAP", "PCA"]


def plane(
    vectors_NE: np.ndarray, seed: int = 0, method: str | None = None
) -> tuple[np.ndarray, str]:
    """Places in a square from 0 to 1, float32 [N, 2], and "UMAP" or "PCA", which made them.

    UMAP (McInnes et al. 2018, arXiv:1802.03426) where umap-learn is installed, else the two first
    principal components.
    """
    chosen = method or ("UMAP" if importlib.util.find_spec("umap") else "PCA")
    if chosen == "UMAP" and len(vectors_NE) > 3:
        umap = importlib.import_module("umap")
        model = umap.UMAP(
            n_components=2,
            metric="cosine",
            n_neighbors=min(15, len(vectors_NE) - 1),
            random_state=seed,
            n_jobs=1,  # what a seed implies; named, so that it does not warn
        )
        found = model.fit_transform(vectors_NE)
    else:
        chosen = "PCA"
        draw = np.random.default_rng(seed)
        rows = draw.permutation(len(vectors_NE))[:FIT_UP_TO]
        num = min(2, *vectors_NE.shape)
        model = extra("sklearn.decomposition", "maps").PCA(num, random_state=seed)
        found = model.fit(vectors_NE[rows]).transform(vectors_NE)
        found = np.pad(found, ((0, 0), (0, 2 - num)))
    low, high = found.min(0), found.max(0)
    return ((found - low) / np.where(high > low, high - low, 1)).astype(np.float32), chosen
