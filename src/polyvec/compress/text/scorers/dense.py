"""A scorer by an embedder. U units, E numbers a vector."""

from dataclasses import dataclass

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.models import embedder
from polyvec.compress.text.scorer import SCORERS, Scorer
from polyvec.interfaces import RunOptions, TextEncoder


@SCORERS.register("dense")
@dataclass(frozen=True)
class Dense(Scorer):
    """Cosine of each unit and the question; without a question, of each unit and their mean.

    RECOMP's extractive compressor (Xu et al. 2023, arXiv:2310.04408) with any embedder;
    its own was trained on what raises a reader's likelihood of the answer.
    """

    model: str | TextEncoder | None = None

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        model = embedder(self.model)
        units_UE = _vectors(model, document.pieces(), "document")
        if asked.question is None:
            wanted_E = _unit(units_UE.mean(axis=0, keepdims=True))[0]
        else:
            wanted_E = _vectors(model, [asked.question], "query")[0]
        return np.asarray(units_UE @ wanted_E, np.float64)


def _vectors(model: TextEncoder, texts: list[str], role: str) -> np.ndarray:
    options = RunOptions(truncate="silent", show_progress_bar=False)
    found, _ = model.encode_vectors(texts, options=options, role=role)
    return _unit(found.to_dense())


def _unit(vectors_NE: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return np.asarray(vectors_NE / np.maximum(norm_N1, 1e-12), np.float32)
