"""Which tokens an answer may consist of: constrained decoding of a local model.

A compiled schema makes one `TokenConstraint` for each answer. V: numbers in a row of logits.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from polyvec.errors import GenerationError


class TokenConstraint(Protocol):
    """What may come next in one answer.

    It is asked once before each token, in order: `new_ids` are all tokens of the answer so far,
    one more than the last time, so an automaton may move on by the last of them.
    """

    def allowed(self, new_ids: Sequence[int]) -> Tensor:
        """True where a token may come next, bool [V], on the CPU; the ends of an answer included.

        The token is the likeliest of these, or drawn among them. None allowed is an error.
        """

    def is_done(self, new_ids: Sequence[int]) -> bool:
        """Whether the answer is complete and ends here, without a token for its end."""


def compile_schema(
    schema: Mapping[str, Any], tokenizer: Any, num_logits: int, end_ids: Collection[int]
) -> Callable[[], TokenConstraint]:
    """A function that makes the constraint of one answer; called once for a call of `generate`.

    `tokenizer` is transformers', `num_logits` is V, and a token of `end_ids` ends an answer.
    Raises GenerationError for a schema that cannot be held to.
    """
    raise GenerationError(
        "a schema needs constrained decoding, which local models do not have yet; leave it out "
        "and check the answers"
    )
