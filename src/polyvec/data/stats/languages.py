"""Scripts and languages of texts.

Languages are identified by py3langid (extra "data"); without it, only scripts are reported.
"""

import functools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from polyvec.errors import InputError, MissingExtraError, known

MIN_CONFIDENCE = 0.5  # at least as likely as all other languages together
UNKNOWN = "und"  # ISO 639: undetermined
GUESSED_CHARACTERS = 500  # at the start of a text; more changes the result rarely
KANA_SHARE = 0.1  # of kana among kana and Han, above which a text is Japanese


@functools.cache
def _script_of(character: str) -> str | None:
    """The first word of a letter's Unicode name: "Latin", "Cyrillic", "Han"."""
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").split()
    while name and name[0] in ("FULLWIDTH", "HALFWIDTH", "MODIFIER"):
        del name[0]
    first = name[0] if name else "unknown"
    return {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}.get(first, first.capitalize())


def script(text: str) -> str:
    """The script of most letters; "Kana" for Japanese, "none" for a text without letters.

    >>> script("Übermut 42"), script("漢字とかな"), script("1 + 1")
    ('Latin', 'Kana', 'none')
    """
    found = Counter(filter(None, map(_script_of, text[:GUESSED_CHARACTERS])))
    if not found:
        return "none"
    if found["Kana"] >= KANA_SHARE * (found["Kana"] + found["Han"]) > 0:
        found["Kana"] += found.pop("Han", 0)
    return found.most_common(1)[0][0]


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingExtraError("py3langid", "data", "identifying languages") from None
    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE
    )


def language(text: str) -> str:
    """The most likely of 139 languages (ISO 639), "zxx" for no language, "und" if uncertain.

    Lui and Baldwin 2012 (langid.py), as retrained by py3langid.
    Raises MissingExtraError without that package.
    """
    return _identifier().classify(text[:GUESSED_CHARACTERS])[0]


GUESSES: dict[str, Callable[[str], str]] = {"language": language, "script": script}


def guesser(name: str | None = None) -> str:
    """The name in GUESSES to use: the given one, else "language" if py3langid is installed.

    Raises InputError for an unknown name, MissingExtraError if its package is missing.
    """
    if name is not None:
        if name not in GUESSES:
            raise InputError(f"guess {name!r} is not known.{known(name, GUESSES)}")
        GUESSES[name]("")
        return name
    try:
        _identifier()
    except MissingExtraError:
        return "script"
    return "language"


def shares(texts: Iterable[str], guess: str) -> dict[str, float]:
    """The share of texts in each language or script, the largest first."""
    counts = Counter(GUESSES[guess](text) for text in texts)
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: count / total for name, count in ordered}
