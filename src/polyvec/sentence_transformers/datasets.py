"""The names of `sentence_transformers.sentence_transformer.datasets`, which take our models."""

from polyvec.sentence_transformers.installed import names_of

__getattr__ = names_of("sentence_transformers.sentence_transformer.datasets")
