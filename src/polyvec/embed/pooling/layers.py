"""Poolings by position or layer, and from router and attention weights.

B texts, T tokens of the longest, D state size, H heads, R router weights of all layers, E vector
size.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.backbone.states import States
from polyvec.embed.part import HiddenSize, at_least, one_of, wide
from polyvec.embed.pooling.base import PoolingModule, layer_states, real
from polyvec.embed.pooling.functions import POOLINGS, last, mean
from polyvec.embed.projection.fitted import Sample, Standardize
from polyvec.errors import CalibrationError, SettingsError, ShapeError
from polyvec.registry import Fact


class LayerChoice(PoolingModule):
    """A pooling of one layer's states, [B, D]; 0 is the word embeddings, -1 the last layer.

    Token Prepending reads a layer in the middle (Fu et al. 2024, arXiv:2412.11556).
    """

    needs = frozenset({"all_layers"})

    def __init__(self, hidden_size: HiddenSize, layer: int, pooling: str = "mean") -> None:
        super().__init__()
        one_of("LayerChoice: pooling", pooling, POOLINGS)
        self.hidden_size = self.out_features = hidden_size
        self.layer, self.pooling = layer, pooling

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def vectors(self, states: States) -> Tensor:
        layer_BTD = layer_states(states, self.layer, "LayerChoice")
        return POOLINGS[self.pooling](layer_BTD, states.pooling_mask_BT, states.attention_mask_BT)


class LayerConcat(PoolingModule):
    """The pooled vectors of several layers side by side, [B, D * layers], in the order given."""

    needs = frozenset({"all_layers"})

    def __init__(
        self, hidden_size: HiddenSize, layers: Sequence[int], pooling: str = "mean"
    ) -> None:
        super().__init__()
        one_of("LayerConcat: pooling", pooling, POOLINGS)
        at_least(1, "LayerConcat", num_layers=len(layers))
        self.hidden_size, self.layers, self.pooling = hidden_size, tuple(layers), pooling
        self.out_features = hidden_size * len(layers)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        return self.layers

    def vectors(self, states: States) -> Tensor:
        chosen = [layer_states(states, layer, "LayerConcat") for layer in self.layers]
        pool = POOLINGS[self.pooling]
        return torch.cat(
            [pool(x, states.pooling_mask_BT, states.attention_mask_BT) for x in chosen], dim=-1
        )


class MaskToken(PoolingModule):
    """The state at the text's one [MASK], [B, D] (PromptBERT, Jiang et al. 2022, arXiv:2201.04337).

    Raises ShapeError if a text has none or several.
    """

    def __init__(
        self, hidden_size: HiddenSize, token_id: Annotated[int, Fact("mask_token_id")]
    ) -> None:
        super().__init__()
        self.hidden_size = self.out_features = hidden_size
        self.token_id = token_id

    def vectors(self, states: States) -> Tensor:
        found_BT = states.attention_mask_BT.bool() & (states.ids_BT == self.token_id)
        counts_B = found_BT.sum(dim=1)
        if bool((counts_B != 1).any()):
            text = int((counts_B != 1).nonzero()[0])
            raise ShapeError(
                f"MaskToken: text {text} of the batch has token {self.token_id} "
                f"{int(counts_B[text])} times, expected once"
            )
        return states.last_BTD[found_BT]  # one per text, so B rows in order


class SpecialMean(PoolingModule):
    """Mean of the states at the given token ids, [B, D], at any position.

    For slots appended to a text: Llama2Vec (Li et al. 2024, arXiv:2312.15503), ChatRetriever
    (Mao et al. 2024, arXiv:2404.13556). Raises ShapeError if a text has none of them.
    """

    def __init__(
        self,
        hidden_size: HiddenSize,
        token_ids: Annotated[Sequence[int], Fact("token_ids", of="tokens")],
    ) -> None:
        super().__init__()
        at_least(1, "SpecialMean", num_token_ids=len(token_ids))
        self.hidden_size = self.out_features = hidden_size
        self.token_ids = tuple(token_ids)

    def vectors(self, states: States) -> Tensor:
        wanted = torch.tensor(self.token_ids, device=states.ids_BT.device)
        found_BT = states.attention_mask_BT.bool() & torch.isin(states.ids_BT, wanted)
        missing_B = ~found_BT.any(dim=1)
        if bool(missing_B.any()):
            text = int(missing_B.nonzero()[0])
            raise ShapeError(
                f"SpecialMean: text {text} of the batch has none of {list(self.token_ids)}"
            )
        return mean(wide(states.last_BTD), found_BT)


class RouterWeights(PoolingModule):
    """Router weights of the last pooled token, alone or with its state, [B, E].

    `router`: the weights of all layers, [B, R = layers * experts]. `concat`: [state; weights],
    each dimension standardised by the statistics that `fit` stores (unchanged before `fit`).
    `sum`: [unit state; sqrt(alpha) * unit weights], whose dot product is cosine(states) + alpha
    * cosine(weights); all vectors have length sqrt(1 + alpha).

    `weights`: the routers' softmax, as in the paper (MoEE, Li and Zhou 2024, arXiv:2410.10814),
    or their raw logits, as in its code for OLMoE and Qwen, which standardises states and logits
    by the statistics of the batch: here by those that `fit` stores, in each mode, so that a
    vector does not depend on its neighbours. Raises CalibrationError for logits before `fit`.
    """

    needs = frozenset({"router"})

    def __init__(
        self,
        hidden_size: HiddenSize,
        num_layers: Annotated[int, Fact("num_routed_layers")],
        num_experts: Annotated[int, Fact("num_experts")],
        mode: str = "router",
        alpha: float | None = None,
        weights: str = "softmax",
    ) -> None:
        super().__init__()
        one_of("RouterWeights: mode", mode, ("router", "concat", "sum"))
        one_of("RouterWeights: weights", weights, ("softmax", "logits"))
        at_least(1, "RouterWeights", num_layers=num_layers, num_experts=num_experts)
        if (mode == "sum") != (alpha is not None) or (alpha or 0) < 0:
            raise SettingsError(
                f"RouterWeights: alpha is {alpha} in mode {mode}; mode sum needs 0 or more, other "
                "modes do not use it"
            )
        self.hidden_size, self.num_layers, self.num_experts = hidden_size, num_layers, num_experts
        self.mode, self.alpha, self.weights = mode, alpha, weights
        # On the instance: the backbone returns only what is read.
        self.needs = frozenset({"router" if weights == "softmax" else "router_logits"})
        self.out_features = num_layers * num_experts + (0 if mode == "router" else hidden_size)
        self.fits = mode == "concat" or weights == "logits"
        self.collecting = False  # whether vectors are a sample for `fit`
        if self.fits:
            self.standardize = Standardize(self.out_features)

    def vectors(self, states: States) -> Tensor:
        vectors_BE = self._weights(states)
        if self.mode != "router":
            state_BD = wide(last(states.last_BTD, states.pooling_mask_BT))
            vectors_BE = torch.cat([state_BD, vectors_BE], dim=-1)
        if self.fits and self.standardize.fitted:
            vectors_BE = self.standardize(vectors_BE)
        elif self.collecting:
            return vectors_BE
        elif self.weights == "logits":
            raise CalibrationError(
                "RouterWeights of logits are standardised by stored statistics and have none yet: "
                "call fit with a sample of texts"
            )
        if self.mode != "sum":
            return vectors_BE
        num_weights = self.num_layers * self.num_experts
        parts = vectors_BE.split([self.out_features - num_weights, num_weights], dim=-1)
        unit_BD, unit_BR = (F.normalize(part, dim=-1) for part in parts)
        return torch.cat([unit_BD, (self.alpha or 0) ** 0.5 * unit_BR], dim=-1)

    def fit(self, vectors_NE: Sample) -> "RouterWeights":
        """Store mean and standard deviation of raw [state; weights], those of `collect`, [N, E].

        Raises SettingsError if nothing is standardised, CalibrationError if it is already fitted
        or the sample is too small.
        """
        if not self.fits:
            raise SettingsError(
                f"RouterWeights: mode {self.mode} of softmax weights has nothing to fit, only "
                "concat and logits have"
            )
        if self.standardize.fitted:
            raise CalibrationError("RouterWeights is already fitted; fit a new one on raw vectors")
        self.standardize.fit(vectors_NE)
        return self

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Inside it a module that is not fitted gives raw vectors, a sample for `fit`."""
        self.collecting = True
        try:
            yield
        finally:
            self.collecting = False

    def _weights(self, states: States) -> Tensor:
        layers = (states.router if self.weights == "softmax" else states.router_logits) or ()
        sizes = [layer.shape[-1] for layer in layers]
        if sizes != [self.num_experts] * self.num_layers:
            raise ShapeError(
                f"RouterWeights expects {self.num_layers} layers of {self.num_experts} experts, "
                f"got layers of {sizes}"
            )
        return torch.cat([wide(last(layer, states.pooling_mask_BT)) for layer in layers], dim=-1)


class ReBA(PoolingModule):
    """States averaged with symmetrised attention weights, then last or mean pooling, [B, D].

    A is the largest of (A_h + A_h^T) / 2 over layers and heads; token t becomes
    sum_j A[t, j] h_j / sum_j A[t, j] over real tokens j. No training; the paper repeats the
    text in the input (Duan et al. 2025, arXiv:2502.20726).
    """

    needs = frozenset({"attentions"})

    def __init__(self, hidden_size: HiddenSize, pooling: str = "last") -> None:
        super().__init__()
        one_of("ReBA: pooling", pooling, ("last", "mean"))
        self.hidden_size = self.out_features = hidden_size
        self.pooling = pooling

    def vectors(self, states: States) -> Tensor:
        weights_BTT = self._weights(states)
        total_BT1 = weights_BTT.sum(dim=-1, keepdim=True)
        mixed_BTD = weights_BTT @ real(states.last_BTD, states.attention_mask_BT)
        # Rows of padding have weight 0; 0 / 0 would make all gradients NaN.
        mixed_BTD = mixed_BTD / torch.where(total_BT1 > 0, total_BT1, 1)
        return POOLINGS[self.pooling](mixed_BTD, states.pooling_mask_BT)

    def _weights(self, states: States) -> Tensor:
        attention_mask_BT = states.attention_mask_BT.bool()
        pairs_BTT = attention_mask_BT[:, :, None] & attention_mask_BT[:, None, :]
        strongest = None
        for layer_BHTT in states.attentions or ():
            both_BHTT = (wide(layer_BHTT) + wide(layer_BHTT).mT) / 2
            # Layer by layer: all layers in one tensor would not fit for long texts.
            both_BTT = both_BHTT.amax(dim=1)
            strongest = both_BTT if strongest is None else torch.maximum(strongest, both_BTT)
        if strongest is None or strongest.shape != pairs_BTT.shape:
            shape = None if strongest is None else tuple(strongest.shape)
            raise ShapeError(f"ReBA: attention {shape} for tokens {tuple(pairs_BTT.shape)}")
        return torch.where(pairs_BTT, strongest, 0)
