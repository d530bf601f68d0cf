"""The names of `sentence_transformers.sparse_encoder.evaluation`, which take our models."""

from polyvec.sentence_transformers.installed import names_of

__getattr__ = names_of("sentence_transformers.sparse_encoder.evaluation")
