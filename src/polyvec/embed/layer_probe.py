"""How good an embedder is at every depth, before any training: which layers can go.

L3Prune (Thennal et al. 2024, arXiv:2410.14578) keeps the first layers up to the depth where the
untrained model's contrastive loss is lowest. One forward pass gives the vectors of all depths.
N texts, L layers, B texts of a batch, T tokens, D state size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.states import States
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.errors import InputError, ModelError


@dataclass(frozen=True, slots=True)
class LayerProbe:
    """The loss at each depth, from 1 layer to all, in nats, and L3Prune's two choices of it.

    `small` is the depth of the lowest loss among the lower half of the layers, `large` of the
    upper half.
    """

    losses: tuple[float, ...]

    @property
    def small(self) -> int:
        half = len(self.losses) // 2
        return int(np.argmin(self.losses[:half])) + 1

    @property
    def large(self) -> int:
        half = len(self.losses) // 2
        return int(np.argmin(self.losses[half:])) + half + 1


def depth_vectors(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    role: str | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
) -> np.ndarray:
    """Vectors of the embedder cut after 1, 2, ... all layers, float32 [N, L, D].

    As with `num_layers` in a recipe, the model's final norm is applied at each depth.
    Projections are left out. Raises ModelError for poolings that are not one function of the
    last states, and for several routes.
    """
    swept = _swept(embedder)
    vectors = swept.encode(
        list(texts),
        role=role,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )
    size = embedder.backbone.hidden_size
    return np.asarray(vectors, np.float32).reshape(len(texts), -1, size)


def probe_layers(
    embedder: Embedder,
    queries: Sequence[str],
    positives: Sequence[str],
    negatives: Sequence[str] = (),
    *,
    temperature: float = 0.05,
    batch_size: int = 64,
) -> LayerProbe:
    """The contrastive loss at each depth: in-batch negatives, and `negatives` for every query.

    Mean over batches of `batch_size` queries, a last incomplete one left out as its loss is
    lower; the released code takes 100 batches of 64 at a temperature of 1/20. Raises InputError
    for lists of different length or less than one batch.
    """
    sides = [queries, positives, *([negatives] if negatives else [])]
    if len({len(side) for side in sides}) > 1 or len(queries) < batch_size:
        raise InputError(
            f"probe_layers: {', '.join(str(len(side)) for side in sides)} queries, positives and "
            f"negatives; expected as many of each, {batch_size} or more"
        )
    roles = ("query", "document", "document")
    vectors = [
        torch.from_numpy(depth_vectors(embedder, side, role=role, show_progress_bar=False))
        for side, role in zip(sides, roles, strict=False)
    ]
    starts = range(0, len(queries) - batch_size + 1, batch_size)
    batches = [[each[start : start + batch_size] for each in vectors] for start in starts]
    losses = torch.stack([_losses(batch, temperature) for batch in batches]).mean(dim=0)
    return LayerProbe(tuple(losses.tolist()))


def _losses(sides: Sequence[Tensor], temperature: float) -> Tensor:
    """InfoNCE of one batch at each depth, [L], of sides [B, L, D]."""
    units = [nn.functional.normalize(side.float(), dim=-1) for side in sides]
    candidates_NLD = torch.cat(units[1:])
    scores_LBN = torch.einsum("bld,nld->lbn", units[0], candidates_NLD) / temperature
    targets_B = torch.arange(len(units[0]))
    return torch.stack([nn.functional.cross_entropy(each, targets_B) for each in scores_LBN])


class EachDepth(PoolingModule):
    """The pooled vector after every layer, each with the model's final norm, [B, L * D]."""

    needs = frozenset({"all_layers"})

    def __init__(self, hidden_size: int, num_layers: int, pooling: str, norm: nn.Module) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.out_features = hidden_size * num_layers
        self.pooling, self.norm = pooling, norm

    def vectors(self, states: States) -> Tensor:
        layers = states.all_layers or ()
        inner = [self.norm(layer) for layer in layers[1:-1]]  # the last one is normalised already
        pool = POOLINGS[self.pooling]
        found = [
            pool(each, states.pooling_mask_BT, states.attention_mask_BT)
            for each in (*inner, states.last_BTD)
        ]
        return torch.cat(found, dim=-1)


def _swept(embedder: Embedder) -> Embedder:
    if embedder.routes or embedder.layers is not None or len(embedder.pooling) != 1:
        raise ModelError(
            "depths can be probed of embedders with one pooling function of the last states "
            f"({', '.join(POOLINGS)}); this one has another pooling"
        )
    model = embedder.backbone.model
    num_layers = model.config.get_text_config().num_hidden_layers
    pooling = EachDepth(
        embedder.backbone.hidden_size,
        num_layers,
        embedder.pooling[0],
        final_norm(embedder.backbone),
    )
    return Embedder.from_parts(
        embedder.backbone,
        embedder.text_tokenizer,
        pooling=pooling,
        pool_prompt=embedder.pool_prompt,
        prompts=embedder.prompt_table,
        template=embedder.template,
        variants=embedder.variants,
    )


def final_norm(backbone: Backbone) -> nn.Module:
    """The module that makes the last states of those of the last layer; Identity without one.

    Found by what it does, since its name differs: "norm", "ln_f", "final_layer_norm".
    """
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs[module] = output

    children = backbone.model.children()
    handles = [
        child.register_forward_hook(keep)
        for child in children
        if not isinstance(child, nn.ModuleList)
    ]
    try:
        with torch.no_grad():
            last = backbone(TokenBatch.of_ids([np.arange(1, 6, dtype=np.int32)])).last_BTD
    finally:
        for handle in handles:
            handle.remove()
    for module, output in outputs.items():
        if output.numel() == last.numel() and torch.equal(output.flatten(), last.flatten()):
            return module
    return nn.Identity()
