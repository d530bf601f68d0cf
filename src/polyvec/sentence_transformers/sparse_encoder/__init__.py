"""SparseEncoder, and the names of `sentence_transformers.sparse_encoder`."""

from polyvec.sentence_transformers.installed import names_of
from polyvec.sentence_transformers.sparse_encoder.model import SparseEncoder

__all__ = ["SparseEncoder"]
__getattr__ = names_of("sentence_transformers.sparse_encoder", classes=True)
