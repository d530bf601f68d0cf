"""polyvec: texts to vectors with language models.

Public names are loaded on first use, so `import polyvec` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyvec.compress.text.compressor import TextCompressor
    from polyvec.embed.embedder import Embedder
    from polyvec.embed.multi_vectors import MultiVectorEmbedder
    from polyvec.embed.projection.quantization import Calibration, quantize
    from polyvec.errors import PolyvecError
    from polyvec.index.store import Index
    from polyvec.interfaces import EncodeReport
    from polyvec.llm.loading import load_language_model
    from polyvec.nano import nano_lm, nano_t5
    from polyvec.recipe import Recipe, load_recipe
    from polyvec.train.front import Trainer, TrainingArguments

__version__ = "0.1.0"

# Name by module; __getattr__ imports the module when the name is first used.
_HOMES = {
    "Calibration": "polyvec.embed.projection.quantization",
    "Embedder": "polyvec.embed.embedder",
    "EncodeReport": "polyvec.interfaces",
    "Index": "polyvec.index.store",
    "MultiVectorEmbedder": "polyvec.embed.multi_vectors",
    "PolyvecError": "polyvec.errors",
    "Recipe": "polyvec.recipe",
    "TextCompressor": "polyvec.compress.text.compressor",
    "Trainer": "polyvec.train.front",
    "TrainingArguments": "polyvec.train.front",
    "load_language_model": "polyvec.llm.loading",
    "load_recipe": "polyvec.recipe",
    "nano_lm": "polyvec.nano",
    "nano_t5": "polyvec.nano",
    "quantize": "polyvec.embed.projection.quantization",
}

__all__ = [
    "Calibration",
    "Embedder",
    "EncodeReport",
    "Index",
    "MultiVectorEmbedder",
    "PolyvecError",
    "Recipe",
    "TextCompressor",
    "Trainer",
    "TrainingArguments",
    "__version__",
    "load_language_model",
    "load_recipe",
    "nano_lm",
    "nano_t5",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyvec' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # so that __getattr__ is not called again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
