"""Small transformers that make a text from one vector, trained beside an embedder and dropped.

B texts, T tokens of the longest, N tokens of all texts, D state size, E vector size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import Tokens
from polyvec.errors import ModelError, SettingsError
from polyvec.train.language_head import log_probabilities

STD = 0.02  # of new weights, BERT's
POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Layers:
    """Of a decoder: so many layers, each with so many heads; dropout within them."""

    num_layers: int
    num_heads: int
    dropout: float

    def check(self, width: int, where: str) -> None:
        """Raises SettingsError for what is no transformer of this state size."""
        if self.num_layers < 1 or self.num_heads < 1 or width % self.num_heads:
            raise SettingsError(
                f"{where}: num_layers {self.num_layers} and num_heads {self.num_heads} must be 1 "
                f"or more, and the heads divide the state size {width}"
            )
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"{where}: dropout {self.dropout} is not from 0 to below 1")


class VectorDecoder(nn.Module):
    """States for the tokens of a text from its vector and from inputs that say little of them.

    A subclass has the `layers` and says how. Tokens go in by the backbone's own table of
    embeddings, which has no gradient from here, and come out by its language model's head.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, size: int, layers: Layers, where: str) -> None:
        """size: of the vectors, which a linear layer brings to the state size if it is another."""
        super().__init__()
        object.__setattr__(self, "backbone", backbone)  # the embedder's, not a part of this
        self.where, self.width = where, backbone.hidden_size
        layers.check(self.width, where)
        # BERT's embeddings know the places of tokens; a table for rotary positions does not.
        self.positions = None
        if not callable(getattr(backbone.model, "embeddings", None)):
            self.positions = nn.Embedding(POSITIONS, self.width)
        self.from_vector = nn.Identity() if size == self.width else nn.Linear(size, self.width)

    def states(self, vectors_BE: Tensor) -> Tensor:
        """The vectors as states in one place, [B, 1, D]."""
        found: Tensor = self.from_vector(vectors_BE.float())[:, None]
        return found

    def inputs(self, texts: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, T], whether each is a token of a text, and their embeddings [B, T, D]."""
        device = self.backbone.device
        longest = max(map(len, texts))
        ids_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids_BT[row, : len(text)] = torch.from_numpy(text.ids.astype("int64"))
            mask_BT[row, : len(text)] = True
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        model: Any = self.backbone.model
        if any(hasattr(each, "full_tensor") for each in model.parameters()):
            raise SettingsError(f"{self.where}: does not work under FSDP; train with DDP")
        with torch.no_grad():
            if self.positions is None:
                states_BTD = model.embeddings(input_ids=ids_BT)
            else:
                states_BTD = model.get_input_embeddings()(ids_BT)
        states_BTD = states_BTD.detach().float()
        if self.positions is not None:
            if longest > POSITIONS:
                raise ModelError(
                    f"{self.where}: a text has {longest} tokens, the decoder takes {POSITIONS}; "
                    "set max_length"
                )
            places_T = torch.arange(longest, device=device)
            states_BTD = states_BTD + self.positions(places_T)
        return ids_BT, mask_BT, states_BTD

    def nats(self, states_BTD: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Mean over all tokens of -log p(token), by the language model's head."""
        head = self.backbone.lm_head
        assert head is not None  # tasks attach it
        dtype = next(head.parameters()).dtype
        found_N = log_probabilities(self.backbone, states_BTD[mask_BT].to(dtype), ids_BT[mask_BT])
        return -found_N.mean()


class Restorer(VectorDecoder):
    """A text from its noised embeddings, all at once; the vector is what is attended to.

    DenoSent's decoder (Wang et al. 2024, arXiv:2401.13621): every layer attends to the noised
    tokens, which see each other, and to the vector. noise: share of the embeddings' numbers that
    are set to 0; the others are divided by 1 - noise.
    """

    def __init__(
        self, backbone: Backbone, size: int, layers: Layers, *, noise: float, where: str
    ) -> None:
        super().__init__(backbone, size, layers, where)
        layer = nn.TransformerDecoderLayer(
            self.width, layers.num_heads, dropout=layers.dropout, batch_first=True
        )
        self.layers = nn.TransformerDecoder(layer, layers.num_layers)
        self.noise = nn.Dropout(noise)
        self.apply(begin)

    def forward(self, vectors_BE: Tensor, texts: Sequence[Tokens]) -> Tensor:
        """Mean cross-entropy of the texts' tokens, in nats."""
        ids_BT, mask_BT, states_BTD = self.inputs(texts)
        memory_B1D = self.states(vectors_BE)
        found_BTD = self.layers(self.noise(states_BTD), memory_B1D, tgt_key_padding_mask=~mask_BT)
        return self.nats(found_BTD, ids_BT, mask_BT)


class Writer(VectorDecoder):
    """A text token by token, each from those before it and from the vector in the first place.

    The bottleneck of Ma et al. 2023 (arXiv:2308.08285): what a layer or two cannot guess from the
    words so far must be in the vector.
    """

    def __init__(self, backbone: Backbone, size: int, layers: Layers, *, where: str) -> None:
        super().__init__(backbone, size, layers, where)
        layer = nn.TransformerEncoderLayer(
            self.width,
            layers.num_heads,
            4 * self.width,
            layers.dropout,
            "gelu",
            batch_first=True,
        )
        # Nested tensors take no causal mask.
        self.layers = nn.TransformerEncoder(layer, layers.num_layers, enable_nested_tensor=False)
        self.apply(begin)

    def forward(self, vectors_BE: Tensor, texts: Sequence[Tokens]) -> Tensor:
        """Mean cross-entropy of the texts' tokens, in nats."""
        ids_BT, mask_BT, states_BTD = self.inputs(texts)
        read_BTD = torch.cat([self.states(vectors_BE), states_BTD[:, :-1]], dim=1)
        length = read_BTD.shape[1]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=read_BTD.device).triu(1)
        # Padding stands behind a text, where no token of it looks.
        return self.nats(self.layers(read_BTD, mask=causal_TT), ids_BT, mask_BT)


def begin(module: nn.Module) -> None:
    """BERT's first weights."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
