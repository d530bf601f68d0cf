"""The words of a text in any script, its normalized form, and its hash."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

# Scripts without spaces between words; each of their letters counts as a word.
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
HAN_AND_KANA = 0x2E80  # first code point; the blocks of Thai, Lao, Myanmar, Khmer are below


def _letter_pattern() -> re.Pattern[str]:
    """A letter of an unspaced script with the vowel signs and tone marks that follow it."""
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
    """The text split at white space; in scripts without spaces, single letters with their marks.

    >>> words("two words, 二字")
    ['two', 'words,', '二', '字']
    """
    if not text.isascii() and UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text)
    return text.split()


def quarters(found: Sequence[str]) -> bytes:
    """The length of each item of `words` in quarters of a word, as a letter is less than a word.

    A word has about two letters in Han and kana, and about four in Thai and similar scripts.

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


class _Marks(dict[int, int | str | None]):
    """For str.translate: punctuation and control characters become spaces, format ones vanish."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        blank = category[0] == "P" or category in ("Sk", "Cc")
        self[code] = found = " " if blank else None if category == "Cf" else code
        return found


_MARKS = _Marks()


def spaced(text: str) -> str:
    """The text with runs of white space replaced by one space, and none at its ends."""
    return " ".join(text.split())


def normalized(text: str) -> str:
    """The text in NFKC, case-folded, without punctuation and repeated spaces.

    A text of punctuation alone is unchanged, so that "!" and "?" remain different.

    >>> normalized("Don't   panic!")
    'don t panic'
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return spaced(plain.casefold().translate(_MARKS)) or spaced(text)


def hash64(text: str) -> int:
    """A 64-bit hash, the same on every machine; collisions are unlikely up to 10^8 texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
