"""MoEE with raw router logits: similarities of the released code, and stored statistics.

The values were computed once by `MOEE.encode` of tianyi-lab/MoE-Embedding (moee.py, embed_method
"prompteol", all four texts in one batch) over the tiny OLMoE of tests/support/checkpoints.py. Its
statistics are those of the batch, so `fit` gets the same texts here.
"""

import numpy as np
import pytest
from checkpoints import checkpoint

from polyvec.embed.compose import compose
from polyvec.embed.embedder import Embedder
from polyvec.embed.settings import EmbedderSettings

TEXTS = [
    "a cat sleeps on the mat.",
    "rivers flow to the sea.",
    "the dog runs.",
    "two plus two is four.",
]
# Cosines of texts (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2); in mode sum both cosines added.
RELEASED = {
    "concat": [-0.40235, -0.46825, -0.15732, -0.30485, -0.23934, -0.40008],
    "router": [-0.31733, -0.54772, -0.15961, -0.31556, -0.35578, -0.27924],
    "sum": [-0.78706, -0.9572, -0.31534, -0.61247, -0.50661, -0.76556],
}


@pytest.mark.equality
@pytest.mark.parametrize("mode", RELEASED)
def test_similarities_of_the_released_code(mode, tmp_path):
    settings = {"mode": mode, "weights": "logits", **({"alpha": 1.0} if mode == "sum" else {})}
    embedder = compose(
        EmbedderSettings(
            backbone=str(checkpoint("allenai/OLMoE")),
            template="prompteol",
            pooling="route_weights",
            pooling_settings=settings,
        )
    )
    embedder.fit(TEXTS)
    vectors = embedder.encode(TEXTS)
    if mode != "sum":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = (vectors @ vectors.T)[np.tril_indices(4, -1)]
    np.testing.assert_allclose(found, RELEASED[mode], atol=2e-5)
    # The statistics are saved with the model, and a text's vector is its own.
    embedder.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    # Standardised weights: rounding is divided by their spread, on some CPUs to 6e-6.
    np.testing.assert_allclose(again.encode(TEXTS[2]), embedder.encode(TEXTS)[2], atol=2e-5)
