"""sentence-transformers' names over polyvec: change one import, and nothing else.

    from polyvec.sentence_transformers import SentenceTransformer

Models, `util` and `SimilarityFunction` are polyvec's own and need no other package. Trainers,
losses and evaluators are those of sentence-transformers itself, which take our models as theirs;
the package is imported when such a name is first used, also by the paths of its modules
(`polyvec.sentence_transformers.base.sampler`; see paths.py). docs/sentence_transformers.md lists
what differs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyvec.sentence_transformers.installed import attribute
from polyvec.sentence_transformers.paths import install

if TYPE_CHECKING:
    from polyvec.sentence_transformers.cross_encoder.model import CrossEncoder
    from polyvec.sentence_transformers.model import SentenceTransformer
    from polyvec.sentence_transformers.sparse_encoder.model import SparseEncoder
    from polyvec.sentence_transformers.util import SimilarityFunction, quantize_embeddings

_OWN = {
    "CrossEncoder": "cross_encoder.model",
    "CrossEncoderTrainer": "trainer",
    "SentenceTransformer": "model",
    "SentenceTransformerTrainer": "trainer",
    "SimilarityFunction": "util",
    "SparseEncoder": "sparse_encoder.model",
    "SparseEncoderTrainer": "trainer",
    "quantize_embeddings": "util",
}
_MODULES = (
    *("cross_encoder", "datasets", "evaluation", "losses", "models", "readers"),
    *("sparse_encoder", "trainer", "training_args", "util"),
)
_FUNCTIONS = ("mine_hard_negatives", "resolve_ids")

__all__ = [
    "CrossEncoder",
    "SentenceTransformer",
    "SimilarityFunction",
    "SparseEncoder",
    "quantize_embeddings",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _OWN:
        return _own(name)
    if name[0].isupper() or name in _FUNCTIONS:
        return attribute("sentence_transformers", name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _own(name: str) -> Any:
    """Our class or function of this name; None if it is sentence-transformers'."""
    return getattr(import_module(f"{__name__}.{_OWN[name]}"), name) if name in _OWN else None


install(_own)
