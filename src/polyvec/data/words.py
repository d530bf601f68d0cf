"""Words of a text in any script, its normal form, and its hash."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

# Scripts that write no spaces between words; every letter of theirs counts as a word.
UNSPACED_BLOCKS = (
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x1000, 0x10A0),  # Myanmar
    (0x1780, 0x1800),  # Khmer
    (0x2E80, 0x2FE0),  # radicals
    (0x3005, 0x3008),  # iteration mark, zero
    (0x3040, 0x3100),  # kana
    (0x31F0, 0x3200),
    (0x3400, 0x4DC0),  # Han
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0xFF66, 0xFF9E),  # half-width kana
    (0x20000, 0x32000),
)
HAN_AND_KANA = 0x2E80  # the first of them; Thai, Lao, Myanmar and Khmer come before


def _letter_pattern() -> re.Pattern[str]:
    """A letter of an unspaced script with the vowel signs and tones that stand on it."""
    marks = "".join(
        chr(code)
        for start, end in UNSPACED_BLOCKS
        for code in range(start, min(end, 0x3100))
        if unicodedata.category(chr(code)).startswith("M")
    )
    blocks = "".join(f"{chr(start)}-{chr(end - 1)}" for start, end in UNSPACED_BLOCKS)
    return re.compile(f"[{blocks}][{marks}]*")


UNSPACED = _letter_pattern()


def words(text: str) -> list[str]:
    """What stands between spaces; of scripts that write none, every letter with its marks.

    >>> words("two words, 二字")
    ['two', 'words,', '二', '字']
    """
    if not text.isascii() and UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text)
    return text.split()


def quarters(found: Sequence[str]) -> bytes:
    """How much of a word each of `words` is, in quarters: a letter is less than a word.

    Words of Han and kana have two letters, those of Thai and its neighbours some four.

    >>> list(quarters(["word", "字", "ก"]))
    [4, 2, 1]
    """
    joined = "".join(found)
    if joined.isascii() or not UNSPACED.search(joined):
        return b"\4" * len(found)
    return bytes(_quarters(word) for word in found)


def _quarters(word: str) -> int:
    if not UNSPACED.match(word):
        return 4
    return 2 if ord(word[0]) >= HAN_AND_KANA else 1


class _Marks(dict):
    """For str.translate: punctuation and control characters to spaces, invisible ones away."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        blank = category[0] == "P" or category in ("Sk", "Cc")
        self[code] = found = " " if blank else None if category == "Cf" else code
        return found


_MARKS = _Marks()


def spaced(text: str) -> str:
    """The text with single spaces where it has any white space, none at its ends."""
    return " ".join(text.split())


def normalized(text: str) -> str:
    """The text without case, punctuation and compatibility forms (NFKC), singly spaced.

    A text of nothing but punctuation stays as it is: "!" and "?" are not the same.

    >>> normalized("Don't   panic!")
    'don t panic'
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return spaced(plain.casefold().translate(_MARKS)) or spaced(text)


def hash64(text: str) -> int:
    """64 bits of a text, the same on every machine; a million texts share none by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
