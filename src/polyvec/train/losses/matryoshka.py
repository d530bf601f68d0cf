"""Nested vectors: a loss summed over the first dimensions of vectors, and over earlier layers.

L earlier layers, E vector size.
"""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.errors import SettingsError
from polyvec.settings import fill
from polyvec.train.compared import Compared

Loss = Callable[[Compared], Tensor]


@dataclass(frozen=True, slots=True)
class Matryoshka:
    """Sum of weight * loss(first dimensions), of length 1 again (Kusupati et al. 2022, 2205.13147).

    dimensions: () leaves a loss as it is, and {d} changes nothing of a loss by cosine.
    weights: one for each dimension; 1 by default.
    dimensions_per_step: so many, drawn anew in each step; 0: all.
    normalize: makes truncated vectors' length 1, as they will be used.

    With `layers` (2-D, Li et al. 2024, arXiv:2402.14776; sentence-transformers' AdaptiveLayerLoss)
    last_layer_weight * loss(last layer)
      + sum over earlier layers of layer weight * prior_layers_weight * loss(layer) / number
      + kl_weight * kl_temperature * KL(softmax(last / kl_temperature) || softmax(layer / ...)),
    the last layer's vectors, over their dimensions, being the fixed teacher. The batch must hold
    layer_query_BLE and layer_document_NLE: vectors by the same pooling, projections included, of
    the hidden states of each earlier layer, the first layer first.
    layers_per_step: so many, drawn anew in each step; 0: all.
    layer_weighting: "uniform" 1, "log" 1 / (1 + log(1 + l)), "linear" 1 / (1 + l) for layer l.
    """

    dimensions: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    dimensions_per_step: int = 0
    normalize: bool = True
    layers: bool = False
    layers_per_step: int = 1
    last_layer_weight: float = 1.0
    prior_layers_weight: float = 1.0
    layer_weighting: Literal["uniform", "log", "linear"] = "uniform"
    kl_weight: float = 1.0
    kl_temperature: float = 0.3
    seed: int = 0

    @classmethod
    def of(cls, raw: Mapping[str, Any], vector_size: int | None, where: str) -> "Matryoshka":
        """From a table; raises SettingsError for dimensions that the vectors do not have.

        vector_size: None where it is not known yet.
        """
        found: Matryoshka = fill(cls, raw, where)
        weights = found.weights or (1.0,) * len(found.dimensions)
        if raw and not found.dimensions and not found.layers:
            raise SettingsError(f"{where}: neither dimensions nor layers are given")
        if len(weights) != len(found.dimensions):
            raise SettingsError(
                f"{where}: {len(weights)} weights for {len(found.dimensions)} dimensions"
            )
        most = max(found.dimensions, default=0)
        if min(found.dimensions, default=1) < 1 or (vector_size and most > vector_size):
            size = "the size of the vectors"
            size = f"{vector_size}, {size}" if vector_size else size
            raise SettingsError(
                f"{where}: dimensions {list(found.dimensions)} are not all between 1 and {size}"
            )
        if found.dimensions and vector_size and vector_size not in found.dimensions:
            warnings.warn(
                f"{where}: dimensions lack {vector_size}, the size of the vectors: whole vectors "
                "are not trained",
                stacklevel=2,
            )
        return replace(found, weights=weights)

    @property
    def needs(self) -> frozenset[str]:
        drawn = self.dimensions_per_step or (self.layers and self.layers_per_step)
        return frozenset({"layer_query_BLE"} if self.layers else ()) | (
            {"step"} if drawn else set()
        )

    def __call__(self, loss: Loss, batch: Compared) -> Tensor:
        query_BLE, document_NLE = batch.layer_query_BLE, batch.layer_document_NLE
        if not self.layers or query_BLE is None or document_NLE is None:
            return self._nested(loss, batch)
        batch = replace(batch, layer_query_BLE=None, layer_document_NLE=None)
        total = self.last_layer_weight * self._nested(loss, batch)
        layers = self._drawn(range(query_BLE.shape[1]), self.layers_per_step, batch.step)
        for layer in layers:
            earlier = replace(
                batch, query_BE=query_BLE[:, layer], document_NE=document_NLE[:, layer]
            )
            weight = self.prior_layers_weight * self._layer_weight(layer) / len(layers)
            total = total + weight * self._nested(loss, earlier)
            if self.kl_weight:
                total = total + self.kl_weight * self.kl_temperature * self._kl(batch, earlier)
        return total

    def _nested(self, loss: Loss, batch: Compared) -> Tensor:
        if not self.dimensions:
            return loss(batch)
        places = self._drawn(range(len(self.dimensions)), self.dimensions_per_step, batch.step)
        terms = [
            self.weights[place]
            * loss(batch.truncated(self.dimensions[place], normalize=self.normalize))
            for place in places
        ]
        return torch.stack(terms).sum()

    def _drawn(self, places: Sequence[int], number: int, step: int | None) -> Sequence[int]:
        """Some of the places: the same in all processes, and again after a resumption."""
        if not number or number >= len(places):
            return places
        return sorted(random.Random(f"{self.seed} {step}").sample(places, number))

    def _layer_weight(self, layer: int) -> float:
        if self.layer_weighting == "log":
            return 1 / (1 + math.log(1 + layer))
        return 1 / (1 + layer) if self.layer_weighting == "linear" else 1.0

    def _kl(self, last: Compared, earlier: Compared) -> Tensor:
        teacher = torch.cat([last.query_BE, last.document_NE]).detach() / self.kl_temperature
        student = torch.cat([earlier.query_BE, earlier.document_NE]) / self.kl_temperature
        log_student, log_teacher = (each.float().log_softmax(-1) for each in (student, teacher))
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
