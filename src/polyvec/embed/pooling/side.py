"""Poolings of states beyond the text's own: the decoder's, those of a generated answer.

B texts, D state size, N generated tokens.
"""

from torch import Tensor

from polyvec.embed.backbone.states import States
from polyvec.embed.part import HiddenSize, at_least, one_of
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import mean


class DecoderStart(PoolingModule):
    """An encoder-decoder's decoder state at its start token, [B, D].

    The third variant of Sentence-T5 (Ni et al. 2021, arXiv:2108.08877).
    """

    needs = frozenset({"decoder_start"})

    def __init__(self, hidden_size: HiddenSize) -> None:
        super().__init__()
        self.hidden_size = self.out_features = hidden_size

    def vectors(self, states: States) -> Tensor:
        assert states.decoder_start is not None  # forward has checked
        return states.decoder_start


class Generated(PoolingModule):
    """States that predict the tokens of the answer, [B, D]: the first one, or the mean.

    InBedder (Peng et al. 2024, arXiv:2402.09642): the prompt asks about the text, and up to
    `num_tokens` tokens of the answer are generated greedily, until an end token.
    """

    needs = frozenset({"generate", "lm_head"})

    def __init__(self, hidden_size: HiddenSize, over: str = "first", num_tokens: int = 3) -> None:
        super().__init__()
        one_of("Generated: over", over, ("first", "mean"))
        at_least(1, "Generated", num_tokens=num_tokens)
        self.hidden_size = self.out_features = hidden_size
        self.over, self.num_tokens = over, num_tokens

    def vectors(self, states: States) -> Tensor:
        assert states.generate is not None  # forward has checked
        chosen_BND, real_BN = states.generate(1 if self.over == "first" else self.num_tokens)
        return mean(chosen_BND, real_BN)
