"""The least that a model must be, in each form: texts as counts of their words, by hash."""

import itertools
import zlib

import numpy as np
import torch

from polyvec.index import exact
from polyvec.interfaces import EncodeReport, MultiVectors, SparseVectors, TextEncoder


class HashedWords(TextEncoder):
    """The least that a model must be: a count of words by their hash."""

    def __init__(self, dimension: int = 64) -> None:
        self.dimension = dimension

    def encode_iter(
        self, inputs, *, prompt=None, prompt_name=None, role=None, chunk_size=8, options=None,
        report=None,
    ):  # fmt: skip
        texts = iter(inputs)
        while chunk := list(itertools.islice(texts, chunk_size)):
            vectors = np.zeros((len(chunk), self.dimension), np.float32)
            for row, text in enumerate(chunk):
                for word in f"{prompt or ''} {text}".split():
                    vectors[row, zlib.crc32(word.encode()) % self.dimension] += 1
            yield vectors
            if report is not None:
                report.num_texts += len(chunk)

    def similarity(self, a, b):
        return torch.as_tensor(exact.similarity_matrix(*map(torch.as_tensor, (a, b)), "cosine"))

    def similarity_pairwise(self, a, b):
        return self.similarity(a, b).diagonal()

    def get_embedding_dimension(self):
        return self.dimension

    def fingerprint(self):
        return f"hashed words {self.dimension}"


class Sparse(HashedWords):
    def encode_vectors(self, inputs, **options):
        vectors, report = super().encode_vectors(inputs, **options)
        return SparseVectors.of(vectors.to_dense()), report


class Several(HashedWords):
    def encode_vectors(self, inputs, **options):
        parts = []
        for text in inputs:
            words = np.concatenate([*self.encode_iter(text.split() or [""])])
            parts.append(words)
        return MultiVectors.of(parts, self.dimension), EncodeReport(num_texts=len(inputs))
