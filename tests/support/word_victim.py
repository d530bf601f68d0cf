"""A victim without weights, and a family of texts, for tests of inversion."""

import numpy as np
import torch

from polyvec.interfaces import TextEncoder

COLOURS, ANIMALS = ("red", "blue", "green", "black"), ("cat", "dog", "horse", "bird")
PLACES = ("house", "river", "garden", "road")
TEXTS = [f"The {c} {a} is in the {p}." for c in COLOURS for a in ANIMALS for p in PLACES]
UNSEEN = TEXTS[5::9]
SEEN = [text for text in TEXTS if text not in UNSEEN]


class Words(TextEncoder):
    """A victim of no weights: sums of a random direction for each word."""

    def __init__(self, size=24, seed=0):
        self.size, self.seed = size, seed

    def encode_iter(self, inputs, *, chunk_size=8, options=None, report=None, **prompt):
        yield np.stack([self.vector(text) for text in inputs])

    def vector(self, text):
        found = np.full(self.size, 0.01)
        for word in text.lower().strip(". ").split():
            key = [self.seed, *word.encode()]
            found += np.random.default_rng(key).standard_normal(self.size)
        return (found / np.linalg.norm(found)).astype(np.float32)

    def similarity(self, a, b):
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a, b):
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)

    def get_embedding_dimension(self):
        return self.size

    def fingerprint(self):
        return f"words of {self.size} and {self.seed}"
