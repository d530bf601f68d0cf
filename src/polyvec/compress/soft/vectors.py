"""Memories for which nothing is read: trained vectors, and embeddings from elsewhere.

B contexts, I embeddings, E their size, M vectors, C input size of the decoder.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import nn

from polyvec.compress.soft.encoding import Context, Decoded, Encoder
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.prefix import VectorPrefix, like_tokens
from polyvec.registry import Fact


class Soft(nn.Module):
    """The same trained vectors whatever the context is: prompt tuning (arXiv:2104.08691).

    Trained to give what one hard prompt gives, prompt compression (PC, arXiv:2210.03162).
    """

    def __init__(self, decoder_table: Decoded, num: int = 8) -> None:
        super().__init__()
        self.vectors_MC = nn.Parameter(like_tokens(num, decoder_table))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        states_BMC = self.vectors_MC.expand(len(contexts), -1, -1)
        real_BM = torch.ones(states_BMC.shape[:2], dtype=torch.bool, device=states_BMC.device)
        return encoder.of_states(states_BMC, real_BM, [len(c.ids) for c in contexts], raw=True)


class Vector(nn.Module):
    """Off-the-shelf embeddings of the context, each as `num` input embeddings: xRAG, PE-Rank, ELM.

    num_layers: of the map; 1 is linear.
    """

    def __init__(
        self,
        vector_size: Annotated[int, Fact("vector_size")],
        decoder_table: Decoded,
        num: int = 1,
        num_layers: int = 2,
        hidden: int | None = None,
        matched: bool = True,
    ) -> None:
        super().__init__()
        self.prefix = VectorPrefix(
            vector_size,
            decoder_table.shape[1],
            num,
            num_layers=num_layers,
            hidden=hidden,
            like=decoder_table if matched else None,
        )

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        vectors = [each.vectors_IE for each in contexts]
        assert all(each is not None for each in vectors)
        counts = [len(each) for each in vectors if each is not None]
        padded_BIE = nn.utils.rnn.pad_sequence([v for v in vectors if v is not None], True)
        # Of inference mode, in which embedders compute.
        states_BMC = self.prefix(padded_BIE.to(encoder.device).clone())
        most = states_BMC.shape[1]
        counts_B = torch.tensor(counts, device=states_BMC.device) * self.prefix.num_tokens
        real_BM = torch.arange(most, device=states_BMC.device)[None] < counts_B[:, None]
        return encoder.of_states(states_BMC, real_BM, [len(c.ids) for c in contexts], raw=True)
