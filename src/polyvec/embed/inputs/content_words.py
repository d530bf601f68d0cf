"""The words of a text that carry content: PromptReps' side of exact term matching.

Words are split as in the Penn Treebank ("don't" is "do" and "n't"), in lower case; English stop
words (NLTK's list of 179) and single punctuation marks are left out.
"""

import re
import string

_STOP = """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself
    yourselves he him his himself she she's her hers herself it it's its itself they them their
    theirs themselves what which who whom this that that'll these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of
    at by for with about against between into through during before after above below to from up
    down in out on off over under again further then once here there when where why how all any
    both each few more most other some such no nor not only own same so than too very s t can will
    just don don't should should've now d ll m o re ve y ain aren aren't couldn couldn't didn
    didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn
    mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn
    wouldn't
"""
STOP_WORDS = frozenset(_STOP.split())
# Contractions before words, so that "n't" is not part of the word before it.
_WORD = re.compile(
    r"""
    \d+(?:[,:]\d+)+(?:\.\d+)?                       # 1,000 and 10:30
    | (?:\w\.){2,}(?!\w|\s*$)                       # u.s., but not at the end of a text
    | can(?=not\b)
    | (?:(?!n't\b)[\w])+(?:[-./](?:(?!n't\b)\w)+)*   # a word: also well-known, 3.5, and/or
    | n't\b | '(?:s|m|d|ll|re|ve)\b                # contractions
    | ``|''|--|\.\.\.                              # marks of several characters
    | \S
    """,
    re.VERBOSE,
)
_OPENING = re.compile(r'(^|[\s(\[{<])"')


def content_words(text: str) -> list[str]:
    """The content words of a text, in order, repeats included.

    >>> content_words("The cat doesn't see the well-known dog.")
    ['cat', "n't", 'see', 'well-known', 'dog']
    """
    plain = _OPENING.sub(r"\1``", text.lower()).replace('"', "''")
    words: list[str] = _WORD.findall(plain)
    return [word for word in words if word not in STOP_WORDS and word not in string.punctuation]
