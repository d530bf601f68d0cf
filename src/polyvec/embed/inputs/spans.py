"""Spans: what the model reads of a text, before it is tokens.

They keep literal text and user text apart until token ids are made. Without numpy, since reading
the named templates must cost nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of what the model reads.

    `pooled` says whether its states enter the vector; `markup` whether special-token strings
    in it are special tokens (in a prompt they are, in a text never); `fixed` that truncation
    leaves it whole; `segment` is its number for masks between segments of an input; `cut` that
    a new string begins with it, so that no token crosses its beginning. A first span that is
    `counted` has as many tokens of the whole as it has alone.
    """

    text: str
    pooled: bool = True
    markup: bool = False
    fixed: bool = False
    segment: int = 0
    cut: bool = False
    counted: bool = False
