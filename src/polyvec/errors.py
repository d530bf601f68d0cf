"""The tree of errors: each says in one line where, what came, what is known and what to try.

Everything a user can cause is a PolyvecError; the command line prints it as one line
and exits with status 2. A bare AssertionError or TypeError is our own mistake.
"""

import difflib
from collections.abc import Iterable


class PolyvecError(Exception):
    """Base of all errors that a user's input, files or settings can cause."""


class InputError(PolyvecError, ValueError):
    """A text, or an argument beside it, cannot be embedded; the message names its index."""


class SettingsError(PolyvecError, ValueError):
    """A recipe or an option has an unknown key, a wrong type or an impossible value."""


class DataError(PolyvecError, ValueError):
    """A data file is missing or malformed; the message names file and line."""


class ModelError(PolyvecError):
    """A model directory cannot be read as what it says it is."""


class UnknownModelError(ModelError):
    """No folder has this name, and the hub has no such model, or cannot be reached."""


class TokenizerError(ModelError):
    """The tokenizer does not do what the model was trained with (BOS, EOS, padding, length)."""


class CalibrationError(PolyvecError):
    """Integer quantisation was asked for without stored ranges, or with ranges of other vectors."""


class IndexStoreError(PolyvecError):
    """An index on disk is missing, damaged or belongs to another model, prompt or dimension."""


class ShapeError(PolyvecError, ValueError):
    """Arrays that belong together have shapes that do not fit."""


class GenerationError(PolyvecError):
    """A language model gave no answer; the message says which, and whose fault it is."""


class ServiceError(PolyvecError):
    """A model behind an API gave no vectors; the message says why, and what is kept."""


class TrainingError(PolyvecError):
    """Training cannot go on: a loss that is not a number, a checkpoint that cannot be written."""


class MissingExtraError(PolyvecError, ImportError):
    """An optional dependency is needed; the message names the pip command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}. Install it: pip install 'polyvec[{extra}]'"
        )


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads; the message counts them."""


class AnswerWarning(UserWarning):
    """Answers of a language model were cut, refused, empty or missing; the message counts them."""


class ServiceWarning(UserWarning):
    """A model behind an API does not say what its answers cost, or they cannot be kept."""


class DamagedCacheWarning(UserWarning):
    """A file of a cache was unreadable in part; its texts are encoded, or asked, again."""


class CompactionWarning(UserWarning):
    """An index holds what was written, but could not be compacted."""


class SkippedColumnWarning(UserWarning):
    """A column of a data file cannot be metadata, and is left out."""


class HalfPrecisionWarning(UserWarning):
    """Half precision was asked for on a processor that only emulates it."""


class SlowPathWarning(UserWarning):
    """Faster computation was asked for, and this model or processor has none."""


class UndeclaredPoolingWarning(UserWarning):
    """A checkpoint does not say how it is pooled, so a default was taken."""


class OwnCodeWarning(UserWarning):
    """A checkpoint names its maker's own code, and transformers' class is used instead."""


class EncoderOnlyWarning(UserWarning):
    """sentence-transformers pools the decoder's states of this model, polyvec the encoder's."""


class UntrainedAttentionWarning(UserWarning):
    """A model was given another attention than it was trained with."""


class SkippedSettingWarning(UserWarning):
    """A setting of a model folder is not read."""


class ChangedFileWarning(UserWarning):
    """A file of a model folder is not what save_pretrained wrote: edited, or damaged."""


class UnusedWeightsWarning(UserWarning):
    """A folder has weights, or rows of token embeddings, that its model does not use."""


class PickledWeightsWarning(UserWarning):
    """Weights were read from a pickle, by torch's loader that runs no code."""


def known(word: object, choices: Iterable[str]) -> str:
    """The tail of an error about an unknown `word`: a suggestion and what is known."""
    choices = sorted(choices)
    if not choices:
        return " None is known."
    close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(choices)}."
