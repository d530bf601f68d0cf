"""Stages that change an embedder without training: "prune", "prune_introspector", "merge"."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.transformer import check_num_layers, keep_layers
from polyvec.embed.layer_probe import LayerProbe, probe_layers
from polyvec.embed.pooling.introspector import Introspector
from polyvec.errors import DataError, ModelError, SettingsError, known
from polyvec.registry import Fact, Registry
from polyvec.train import adapters

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfOutput = Annotated[Path | None, Fact("output")]


class Prune:
    """Keeps the first layers (L3Prune, Thennal et al. 2024, arXiv:2410.14578).

    num_layers: how many; or choose: "small" or "large", the depth of the lowest contrastive loss
    in the lower or the upper half, before any training. It is measured on the stage's rows, with
    in-batch negatives and each row's first negative, in `batches` batches of `batch_size`.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        num_layers: int | None = None,
        choose: Literal["small", "large"] | None = None,
        temperature: float = 0.05,
        batch_size: int = 64,
        batches: int = 100,
    ) -> None:
        _check_depth(num_layers, choose, "stage 'prune'")
        check_num_layers(embedder.backbone.model.config, num_layers)
        self.embedder, self.num_layers, self.choose = embedder, num_layers, choose
        self.temperature, self.batch_size, self.batches = temperature, batch_size, batches
        self.probe: LayerProbe | None = None

    @staticmethod
    def check(settings: Mapping[str, Any], earlier: Sequence[str], where: str) -> None:
        """Raises SettingsError unless one of num_layers and choose is given."""
        where = f"{where} stage 'prune'"
        _check_depth(settings.get("num_layers"), settings.get("choose"), where)

    def apply(self, rows: Sequence[TrainingRow]) -> Embedder:
        """The embedder with fewer layers."""
        count = self.num_layers or self.chosen(rows)
        embedder = self.embedder
        if embedder.layers is not None or embedder.routes:
            raise ModelError("stage 'prune': an embedder of weighted layers, or of several routes")
        adapters.merge(embedder)
        backbone = embedder.backbone
        keep_layers(backbone.model, count)
        pruned = Backbone(
            backbone.model,
            backbone.pad_id,
            attention=backbone.spec,
            layout=backbone.layout,
            lm=backbone.lm,
            prepending=backbone.prepending,
        )
        parts = dataclasses.replace(embedder._parts(), backbone=pruned)
        found = Embedder.from_parts(**parts.keywords())
        found.max_seq_length = embedder.max_seq_length
        return found

    def chosen(self, rows: Sequence[TrainingRow]) -> int:
        """The depth that the probe chooses."""
        needed = [row for row in rows if row.positives][: self.batch_size * self.batches]
        if len(needed) < self.batch_size:
            raise DataError(
                f"stage 'prune': {len(needed)} rows with a positive, a batch has "
                f"{self.batch_size}; give data, lower batch_size, or set num_layers"
            )
        negatives = [row.negatives[0] for row in needed if row.negatives]
        self.probe = probe_layers(
            self.embedder,
            [row.query for row in needed],
            [row.positives[0] for row in needed],
            negatives if len(negatives) == len(needed) else (),
            temperature=self.temperature,
            batch_size=self.batch_size,
        )
        return self.probe.small if self.choose == "small" else self.probe.large


def _check_depth(num_layers: int | None, choose: str | None, where: str) -> None:
    if (num_layers is None) == (choose is None):
        raise SettingsError(f"{where}: set num_layers, or choose = 'small' or 'large'")


class PruneIntrospector:
    """Keeps the first layers of an introspector (I3, Pan et al. 2024, arXiv:2308.10025).

    num_layers: how many.
    """

    def __init__(self, embedder: OfEmbedder, num_layers: int) -> None:
        module = embedder.pooling_module
        if not isinstance(module, Introspector):
            raise ModelError(
                "stage 'prune_introspector' needs [embedder] pooling = 'introspector', not "
                f"{' + '.join(embedder.pooling) or type(module).__name__}"
            )
        self.embedder, self.pruned = embedder, module.pruned(num_layers)

    def apply(self, rows: Sequence[TrainingRow]) -> Embedder:
        """The embedder with the smaller introspector."""
        if rows:
            raise SettingsError("stage 'prune_introspector' reads no data")
        parts = dataclasses.replace(self.embedder._parts(), pooling=self.pruned)
        return Embedder.from_parts(**parts.keywords())


MERGES: Registry[Callable[..., Tensor]] = Registry("method")


@MERGES.register("linear")
def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean (model soups, Wortsman et al. 2022, arXiv:2203.05482)."""
    total = torch.tensor(weights, dtype=torch.float64)
    total = total / total.sum()
    return torch.stack([w * each.double() for w, each in zip(total, tensors, strict=True)]).sum(0)


@MERGES.register("slerp")
def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The point between two tensors on the arc from one's direction to the other's (Shoemake 1985).

    Lengths are interpolated with it. Where they are parallel, or zero, it is the weighted mean.
    """
    one, other = (each.double() for each in tensors)
    share = weights[1] / (weights[0] + weights[1])
    cosine = (one * other).sum() / (one.norm() * other.norm()).clamp(min=1e-300)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if not torch.sin(angle) > 1e-6:
        return linear(tensors, weights)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(
        angle
    )


class Merge:
    """Weights averaged, or interpolated, with those of other embedders of the same shape.

    others: folders of embedders, or names of earlier stages of this run. weights: of the embedder
    itself, then of each of the others; equal by default. method: "linear", or "slerp" of two.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        others: Sequence[str],
        output: OfOutput = None,
        weights: Sequence[float] = (),
        method: str = "linear",
    ) -> None:
        self.embedder, self.others, self.output = embedder, tuple(others), output
        self.weights = _weights(others, weights, method, "stage 'merge'")
        self.method = MERGES.find(method, where="stage 'merge'")

    @staticmethod
    def check(settings: Mapping[str, Any], earlier: Sequence[str], where: str) -> None:
        """Raises SettingsError for others that are neither folders nor earlier stages, and
        for weights or a method that do not fit their number.
        """
        where = f"{where} stage 'merge'"
        others = settings["others"]
        _weights(others, settings.get("weights", ()), settings.get("method", "linear"), where)
        for name in others:
            if name not in earlier and not Path(name).is_dir():
                raise SettingsError(
                    f"{where}: {name!r} is no folder and no earlier stage.{known(name, earlier)}"
                )

    def apply(self, rows: Sequence[TrainingRow]) -> Embedder:
        """The embedder with merged weights."""
        if rows:
            raise SettingsError("stage 'merge' reads no data")
        adapters.merge(self.embedder)
        mine = self.embedder.state_dict()
        theirs = [self.read(name, mine) for name in self.others]
        merged = {}
        for key, value in mine.items():
            if value.is_floating_point():
                tensors = [value, *(each.get(key, value).to(value.device) for each in theirs)]
                merged[key] = self.method(tensors, self.weights).to(value.dtype)
        self.embedder.load_state_dict(merged, strict=False)
        self.embedder.backbone.model.name_or_path = ""
        return self.embedder

    def read(self, name: str, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by their names in the embedder; of a stage those that it trained."""
        stages = [] if self.output is None else sorted(self.output.glob(f"stages/*-{name}/final"))
        if stages:
            found = {
                key.removeprefix("embedder."): value
                for key, value in load_file(stages[-1] / "model.safetensors").items()
            }
        elif Path(name).is_dir():
            found = Embedder.from_pretrained(name, merge_adapters=True).state_dict()
        else:
            folders = [] if self.output is None else sorted(self.output.glob("stages/*/final"))
            names = [each.parent.name.partition("-")[2] for each in folders]
            raise SettingsError(
                f"stage 'merge': {name!r} is no folder and no earlier stage.{known(name, names)}"
            )
        for key, value in found.items():
            if key not in mine or mine[key].shape != value.shape:
                here = tuple(mine[key].shape) if key in mine else "none"
                adapter = "; merge its adapter at its end: merge = true" if "lora" in key else ""
                raise ModelError(
                    f"stage 'merge': {name}: weight {key} has shape {tuple(value.shape)}, here "
                    f"{here}{adapter}"
                )
        missing = [] if stages else [key for key in mine if key not in found]
        if missing and not all(key.startswith("backbone.lm_head") for key in missing):
            raise ModelError(f"stage 'merge': {name} has no weight {missing[0]}")
        return found


def _weights(
    others: Sequence[str], weights: Sequence[float], method: str, where: str
) -> tuple[float, ...]:
    """Of the embedder itself and the others, checked."""
    found = tuple(weights) or (1.0,) * (len(others) + 1)
    if not others or len(found) != len(others) + 1 or not sum(found) > 0:
        raise SettingsError(
            f"{where}: {len(found)} weights for the embedder and {len(others)} others; expected "
            "one each, with a sum above 0"
        )
    MERGES.find(method, where=where)
    if method == "slerp" and len(others) != 1:
        raise SettingsError(f"{where}: slerp is between two, not {len(others) + 1}")
    return found
