"""What decoders write after memories, token by token. B rows, V vocabulary."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyvec.errors import InputError

Advance = Callable[[Tensor], Tensor]  # the tokens just written [B] to the next one's logits [B, V]


def never(text: str) -> bool:
    return False


@torch.no_grad()
def write(
    first_BV: Tensor,
    advance: Advance,
    tokenizer: Any,
    *,
    max_tokens: int,
    stop: Callable[[str], bool] = never,
) -> list[str]:
    """The most likely continuation of each row, up to the end token or where `stop` says.

    Nothing is sampled, so that a memory gives the same text everywhere.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected at least 1")
    end, decode = tokenizer.eos_token_id, tokenizer.decode
    written: list[list[int]] = [[] for _ in first_BV]
    open_rows = set(range(len(written)))
    logits_BV = first_BV
    for step in range(max_tokens):
        ids_B = logits_BV.argmax(-1)
        for row, token in enumerate(ids_B.tolist()):
            if row not in open_rows:
                continue
            if token != end:
                written[row].append(token)
            if token == end or stop(decode(written[row])):
                open_rows.discard(row)
        if not open_rows or step == max_tokens - 1:
            break
        logits_BV = advance(ids_B)
    return [decode(ids, skip_special_tokens=True) for ids in written]
