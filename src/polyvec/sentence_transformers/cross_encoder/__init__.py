"""CrossEncoder, and the names of `sentence_transformers.cross_encoder`."""

from polyvec.sentence_transformers.cross_encoder.model import CrossEncoder
from polyvec.sentence_transformers.installed import names_of

__all__ = ["CrossEncoder"]
__getattr__ = names_of("sentence_transformers.cross_encoder", classes=True)
