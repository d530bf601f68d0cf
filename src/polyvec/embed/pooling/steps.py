"""Steps between the backbone and the pooling, token by token: sentence-transformers' CNN, LSTM,
WordWeights, and Dense and Normalize of token embeddings.

B texts, T tokens of the longest, D state size before a step, E after it.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from polyvec.embed.backbone.states import States
from polyvec.embed.part import wide
from polyvec.embed.pooling.base import PoolingModule, real
from polyvec.embed.pooling.functions import MEANS, POOLINGS
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.projection.dense import Dense, Normalize
from polyvec.errors import InputError, ModelError

# sentence-transformers divides by at least this, so that a text without weights has zeros.
LEAST_WEIGHT = 1e-9


class CNN(nn.Module):
    """Convolutions of several widths side by side, [B, T, D] -> [B, T', E].

    A text's states are those it has alone: what follows its last token counts as zeros. In
    sentence-transformers a shorter text of a batch sees the states of its padding.
    """

    def __init__(
        self,
        in_embedding_dimension: int,
        out_channels: int = 256,
        kernel_sizes: Sequence[int] = (1, 3, 5),
        stride_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_channels = in_embedding_dimension, out_channels
        self.kernel_sizes = list(kernel_sizes)
        self.stride_sizes = list(stride_sizes or [1] * len(self.kernel_sizes))
        # Outputs are joined by position, so they must be of one length.
        if len(set(self.stride_sizes)) > 1 or len({size % 2 for size in self.kernel_sizes}) > 1:
            raise ModelError(
                f"CNN: kernel_sizes {self.kernel_sizes} with stride_sizes {self.stride_sizes} "
                "give outputs of different lengths"
            )
        self.out_features = out_channels * len(self.kernel_sizes)
        self.convs = nn.ModuleList(
            nn.Conv1d(self.in_features, out_channels, size, stride, padding=(size - 1) // 2)
            for size, stride in zip(self.kernel_sizes, self.stride_sizes, strict=True)
        )

    def settings(self) -> dict[str, Any]:
        """sentence-transformers' configuration of this module, which all its versions read."""
        return {
            "in_word_embedding_dimension": self.in_features,
            "out_channels": self.out_channels,
            "kernel_sizes": self.kernel_sizes,
            "stride_sizes": self.stride_sizes,
        }

    def forward(self, states: States) -> States:
        lengths_B = states.attention_mask_BT.sum(dim=1)
        if self.kernel_sizes[0] % 2 == 0 and int(lengths_B.min()) < 2:
            raise InputError(
                f"CNN with kernel_sizes {self.kernel_sizes}: a text has one token only"
            )
        states_BDT = real(states.last_BTD, states.attention_mask_BT).transpose(1, 2)
        out_BTE = torch.cat([conv(states_BDT) for conv in self.convs], dim=1).transpose(1, 2)
        if out_BTE.shape[1] == states_BDT.shape[2]:
            return dataclasses.replace(states, last_BTD=out_BTE)
        # Fewer positions than tokens: no mask fits, and sentence-transformers pools all of them.
        odd, stride = self.kernel_sizes[0] % 2, self.stride_sizes[0]
        left_B = (lengths_B - (1 if odd else 2)).div(stride, rounding_mode="floor") + 1
        mask_BT = torch.arange(out_BTE.shape[1], device=left_B.device)[None] < left_B[:, None]
        return dataclasses.replace(
            states,
            last_BTD=out_BTE,
            attention_mask_BT=mask_BT,
            pooling_mask_BT=mask_BT & states.pooling_mask_BT.any(dim=1, keepdim=True),
            text_mask_BT=mask_BT,
            ids_BT=torch.zeros_like(mask_BT, dtype=states.ids_BT.dtype),
        )


class LSTM(nn.Module):
    """An LSTM over the tokens of each text, [B, T, D] -> [B, T, E]."""

    def __init__(
        self,
        embedding_dimension: int,
        hidden_dim: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.in_features, self.hidden_dim, self.num_layers = (
            embedding_dimension,
            hidden_dim,
            num_layers,
        )
        self.dropout, self.bidirectional = dropout, bidirectional
        self.out_features = hidden_dim * (2 if bidirectional else 1)
        self.encoder = nn.LSTM(
            embedding_dimension,
            hidden_dim,
            num_layers=num_layers,
            dropout=dropout,
            bidirectional=bidirectional,
            batch_first=True,
        )

    def settings(self) -> dict[str, Any]:
        """sentence-transformers' configuration of this module, which all its versions read."""
        return {
            "word_embedding_dimension": self.in_features,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
        }

    def forward(self, states: States) -> States:
        packed = pack_padded_sequence(
            states.last_BTD,
            states.attention_mask_BT.sum(dim=1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        out_BTE, _ = pad_packed_sequence(
            self.encoder(packed)[0], batch_first=True, total_length=states.last_BTD.shape[1]
        )
        return dataclasses.replace(states, last_BTD=out_BTE)


class WordWeights(nn.Module):
    """States times a weight of their word; means are then divided by the sum of the weights."""

    def __init__(
        self,
        vocab: Sequence[str],
        word_weights: Mapping[str, float],
        unknown_word_weight: float = 1,
    ) -> None:
        super().__init__()
        self.vocab, self.word_weights = list(vocab), dict(word_weights)
        self.unknown_word_weight = unknown_word_weight
        self.emb_layer = nn.Embedding(len(self.vocab), 1)

    def settings(self) -> dict[str, Any]:
        """sentence-transformers' configuration of this module, which all its versions read."""
        return {
            "vocab": self.vocab,
            "word_weights": self.word_weights,
            "unknown_word_weight": self.unknown_word_weight,
        }

    def weights(self, states: States) -> Tensor:
        """The weight of each token, [B, T]; zero for padding."""
        weights_BT = self.emb_layer(states.ids_BT)[..., 0]
        return torch.where(states.attention_mask_BT.bool(), weights_BT, 0)

    def forward(self, states: States) -> States:
        weights_BT = self.weights(states)
        return dataclasses.replace(states, last_BTD=states.last_BTD * weights_BT[..., None])


class TokenSteps(PoolingModule):
    """Steps over the states of the tokens, then pooling functions side by side, [B, E].

    With `layers` the steps start from a weighted mean over layers.
    """

    def __init__(
        self,
        steps: Sequence[nn.Module],
        pooling: Sequence[str],
        layers: WeightedLayers | None = None,
    ) -> None:
        super().__init__()
        self.pooling, self.layers = tuple(pooling), layers
        self.zero_if_empty = MEANS.issuperset(self.pooling)
        self.steps = nn.ModuleList(steps)
        self.needs = frozenset({"all_layers"} if layers is not None else ())
        sizes = [step for step in self.steps if hasattr(step, "in_features")]
        for before, step in itertools.pairwise(sizes):
            if before.out_features != step.in_features:
                raise ModelError(
                    f"{type(step).__name__} takes {step.in_features} dimensions, but gets "
                    f"{before.out_features}"
                )
        # None: whatever the backbone's states have.
        self.hidden_size = int(sizes[0].in_features) if sizes else None  # type: ignore[arg-type]
        self.token_size = int(sizes[-1].out_features) if sizes else None  # type: ignore[arg-type]

    def fit_to(self, hidden_size: int, vocab_size: int) -> None:
        """Take states of this size; ModelError for steps of another, or of fewer words."""
        if self.hidden_size not in (None, hidden_size):
            raise ModelError(
                f"{type(self.steps[0]).__name__} takes {self.hidden_size} dimensions, but gets "
                f"{hidden_size}"
            )
        for step in self.steps:
            if isinstance(step, WordWeights) and len(step.vocab) < vocab_size:
                raise ModelError(
                    f"WordWeights has {len(step.vocab)} words, the tokenizer {vocab_size}"
                )
        self.out_features = (self.token_size or hidden_size) * len(self.pooling)

    def settings(self) -> dict[str, Any]:
        """The steps and poolings by name, for descriptions and fingerprints."""
        steps = []
        for step in self.steps:
            describe = getattr(step, "settings", None)
            own = describe() if callable(describe) else {}
            kept = {k: v for k, v in own.items() if k not in ("vocab", "word_weights")}  # long
            steps.append({type(step).__name__: kept})
        start = self.layers.layer_start if self.layers else None
        return {"steps": steps, "pooling": list(self.pooling), "layer_start": start}

    def token_states(self, states: States) -> States:
        """The states after all steps, in float32 or wider."""
        if self.layers is not None and states.all_layers is not None:
            states = dataclasses.replace(states, last_BTD=self.layers(states.all_layers))
        states = dataclasses.replace(states, last_BTD=wide(states.last_BTD))
        for step in self.steps:
            if isinstance(step, Dense | Normalize):
                states = dataclasses.replace(states, last_BTD=step(states.last_BTD))
            else:
                states = step(states)
        return states

    def vectors(self, states: States) -> Tensor:
        after = self.token_states(states)
        weighting = [step for step in self.steps if isinstance(step, WordWeights)]
        total_B1 = weighting[-1].weights(states).sum(1, keepdim=True) if weighting else None
        return torch.cat([self._pooled(name, after, total_B1) for name in self.pooling], dim=-1)

    def _pooled(self, name: str, states: States, total_B1: Tensor | None) -> Tensor:
        masks = states.pooling_mask_BT, states.attention_mask_BT
        if total_B1 is None or name not in MEANS:
            return POOLINGS.find(name)(states.last_BTD, *masks)
        least_B1 = total_B1.clamp(min=LEAST_WEIGHT)
        states_BTD = real(states.last_BTD, masks[0])
        if name == "weighted_mean":
            states_BTD = states_BTD * masks[1].cumsum(dim=1)[..., None]
        return states_BTD.sum(dim=1) / (least_B1.sqrt() if name == "mean_sqrt_len" else least_B1)


class WordCounts(PoolingModule):
    """How often each word of the vocabulary occurs, times its weight, [B, V].

    The states are the weights, [B, T, 1]. Without `cumulative` a word counts once.
    """

    def __init__(self, vocab_size: int, cumulative: bool = True) -> None:
        super().__init__()
        self.hidden_size, self.out_features = 1, vocab_size
        self.vocab_size, self.cumulative = vocab_size, cumulative
        self.zero_if_empty = True

    def vectors(self, states: States) -> Tensor:
        weights_BT = real(states.last_BTD, states.pooling_mask_BT)[..., 0]
        out_BV = weights_BT.new_zeros(len(weights_BT), self.vocab_size)
        if self.cumulative:
            return out_BV.scatter_add(1, states.ids_BT, weights_BT)
        # Tokens that do not count are sent to a column of their own, which is dropped.
        ids_BT = torch.where(states.pooling_mask_BT.bool(), states.ids_BT, self.vocab_size)
        wide_BV = torch.cat([out_BV, out_BV[:, :1]], dim=1)
        return wide_BV.scatter(1, ids_BT, weights_BT)[:, : self.vocab_size]
