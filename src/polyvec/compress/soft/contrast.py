"""Contrastive conditioning (Wingate et al. 2022, arXiv:2210.03162): text that is likelier after one
prompt than after another. Prompts are texts, or compressors that have learned one (PC).

B texts, V vocabulary, N tokens of all texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.decoder import Asked, token_ids
from polyvec.compress.soft.encoding import NOTHING, Context
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.settings import ANSWER
from polyvec.compress.soft.writing import Advance, write
from polyvec.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Conditioned:
    """A decoder that reads each text after one prompt."""

    compressor: SoftCompressor
    asked: list[Asked]
    memory: MemoryBatch | None

    def begin(self) -> tuple[Tensor, Advance]:
        return self.compressor.decoder.begin(self.asked, self.memory)

    def log_probability(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Of each text after the prompt, in nats, float32 [B]; 0 of an empty one."""
        decoder = self.compressor.decoder
        given = [
            replace(each, parts=each.parts[: len(each.parts) - bool(len(ids))], target=ids)
            for each, ids in zip(self.asked, texts, strict=True)
        ]
        found = decoder.predict(given, self.memory)
        return found.per_row(decoder.log_probabilities(found), len(texts))


@torch.no_grad()
def continuations(
    compressor: SoftCompressor,
    texts: Sequence[str],
    wanted: SoftCompressor | str,
    unwanted: SoftCompressor | str,
    *,
    weight: float = 1.0,
    max_tokens: int = 32,
) -> list[str]:
    """How each text goes on by log p(x | text) + weight * log p(wanted | text, x).

    p(wanted | x) = p(x | wanted) / (p(x | wanted) + p(x | unwanted)), x being all text up to the
    token. wanted, unwanted: a prompt, or a compressor whose memory is the same for all contexts
    ("soft") with the decoder's tokens. weight 0: as the decoder goes on alone.
    """
    compressor.eval()
    ids = [token_ids(compressor.decoder.tokenizer, text) for text in texts]
    plain, *both = (conditioned(compressor, prompt, ids) for prompt in ("", wanted, unwanted))
    firsts, advances = zip(*(each.begin() for each in (plain, *both)), strict=True)
    last = [each.log_softmax(-1) for each in firsts]
    so_far = [each.log_probability(ids) for each in both]

    def logits() -> Tensor:
        plain_BV, wanted_BV, unwanted_BV = last
        gap_BV = so_far[0][:, None] + wanted_BV - so_far[1][:, None] - unwanted_BV
        return plain_BV + weight * F.logsigmoid(gap_BV)

    def advance(ids_B: Tensor) -> Tensor:
        for at in (0, 1):
            so_far[at] = so_far[at] + last[at + 1].gather(1, ids_B[:, None])[:, 0]
        last[:] = [each(ids_B).log_softmax(-1) for each in advances]
        return logits()

    return write(logits(), advance, compressor.decoder.tokenizer, max_tokens=max_tokens)


def conditioned(
    compressor: SoftCompressor, prompt: SoftCompressor | str, texts: Sequence[np.ndarray]
) -> Conditioned:
    """The texts after a prompt. InputError for a compressor with memories or tokens of its own."""
    reader, context, memory = compressor, None, None
    if isinstance(prompt, str):
        context = token_ids(compressor.decoder.tokenizer, prompt)
    else:
        if prompt.settings.memory != "soft":
            raise InputError(
                f"a prompt is a text, or a compressor of memory 'soft', not "
                f"{prompt.settings.memory!r}, whose memories differ by context"
            )
        reader = prompt.eval()
        if reader.decoder.tokenizer.get_vocab() != compressor.decoder.tokenizer.get_vocab():
            raise InputError("wanted and unwanted must have the tokens of the decoder that writes")
        memory = reader.read([Context(NOTHING)] * len(texts))
    parts = reader.asked(ANSWER).parts
    asked = [Asked((*parts, ids) if len(ids) else parts, NOTHING, context) for ids in texts]
    return Conditioned(reader, asked, memory)
