"""Which weights a stage trains: the backbone's own, an adapter's beside them, the parts around it.

An adapter is mostly one of the peft package (adapter_kinds.py), put into the backbone's model in
place, and kept by `Embedder.save_pretrained` as adapter_config.json and
adapter_model.safetensors. A stage that would train nothing is an error.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.adapters import NAME, is_adapted, merge_adapter
from polyvec.embed.formats.schema import read_json
from polyvec.embed.part import one_of
from polyvec.errors import ModelError, SettingsError, known
from polyvec.registry import arguments
from polyvec.settings import known_keys
from polyvec.train.adapter_kinds import ADAPTERS
from polyvec.train.four_bits import in_four_bits

UNMERGED = ("qlora", "bottleneck")  # what these add cannot be added to the weights
COUNTS = ("rank", "num_tokens", "size")
PARTS = ("pooling", "projections", "new_tokens")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a stage trains.

    names: of the trained parameters in the embedder. num_trained, num_parameters: numbers in
    them, and in the whole embedder. kind: of the adapter.
    """

    kind: str
    names: tuple[str, ...]
    num_trained: int
    num_parameters: int

    def __str__(self) -> str:
        share = 100 * self.num_trained / self.num_parameters
        return (
            f"adapter {self.kind}: {self.num_trained:,} of {self.num_parameters:,} parameters "
            f"({share:.3g} %)"
        )


def prepare(
    embedder: Embedder,
    adapter: Mapping[str, Any] | None = None,
    train: Sequence[str] = PARTS,
    *,
    before: Mapping[str, Any] | None = None,
    head: bool = False,
    where: str = "[[stage]]",
) -> Trained:
    """Make the embedder ready for a stage: `requires_grad` of each parameter, adapters in place.

    adapter: the stage's own table; an earlier adapter is then merged into the weights first
    (LLM2Vec merges MNTP's before SimCSE). None goes on with `before`, the table of the last
    stage that had one; without either, a loaded adapter is trained, else everything ("full").
    head: whether the stage's loss reads the language model's head, which "full" then trains.

    Raises SettingsError for a setting or target that is not known, ModelError where nothing
    would be trained.
    """
    table = dict(adapter if adapter is not None else before or {"kind": "full"})
    if adapter is None and before is None and is_adapted(carrier(embedder)):
        table = {"kind": "kept"}
    kind = table.pop("kind", None)
    if not isinstance(kind, str):
        raise SettingsError(f"{where} adapter has no kind.{known('', ADAPTERS)}")
    for part in train:
        one_of(f"{where} train", part, PARTS)
    merged = table.pop("merge", False)
    if type(merged) is not bool or (merged and kind in UNMERGED):
        raise SettingsError(
            f"{where} adapter: setting 'merge' is {merged!r}, expected true or false"
            f"{f', of {kind} false' if kind in UNMERGED else ''}"
        )
    check_adapter(kind, table, where)
    if embedder.routes and kind not in ("full", "frozen"):
        raise ModelError(
            f"{where}: adapter {kind!r} on an embedder whose queries and documents take routes of "
            "their own is not supported; train with adapter 'full'"
        )
    if adapter is not None:
        merge(embedder)
    for parameter in embedder.parameters():
        parameter.requires_grad_(False)
    for each in {id(route): route for route in (embedder, *embedder.routes.values())}.values():
        model = carrier(each)
        facts = {
            "embedder": each,
            "model": model,
            "rows": new_rows(each) if "new_tokens" in train else [],
            # What a stage between has merged begins anew.
            "fresh": adapter is not None or before is None or not is_adapted(model),
        }
        with quiet_transformers():
            ADAPTERS.build(kind, table, facts, where=where)
        _train_parts(each, train)
        if each.backbone.lm_head is not None and (head or "lm_head" in each.needs):
            # Tied weights are the embedding table's, which is trained already, or frozen.
            each.backbone.lm_head.requires_grad_(kind == "full")
    _name_base(embedder)
    return _counted(embedder, kind, where)


def check_adapter(kind: str, table: Mapping[str, Any], where: str) -> None:
    """Raises SettingsError for a kind or setting that is not known, or a number out of range."""
    takes = arguments(ADAPTERS.find(kind, where=where))
    own = {each.name for each in takes if each.fact is None}
    known_keys(table, own, f"{where} adapter {kind!r}")
    ADAPTERS.check(kind, table, where=where)
    for name, value in table.items():
        if name in COUNTS and value < 1:
            raise SettingsError(f"{where} adapter {kind!r}: {name} is {value}, expected 1 or more")
        if name == "alpha" and not 0 < value < math.inf:
            raise SettingsError(f"{where} adapter {kind!r}: alpha is {value}, expected more than 0")
        if name == "dropout" and not 0 <= value < 1:
            raise SettingsError(
                f"{where} adapter {kind!r}: dropout {value} is not at least 0 and less than 1"
            )


def _train_parts(embedder: Embedder, train: Sequence[str]) -> None:
    if "pooling" in train:
        for part in (embedder.pooling_module, embedder.layers):
            if part is not None:
                part.requires_grad_(True)
    if "projections" in train:
        embedder.projections.requires_grad_(True)


def _counted(embedder: Embedder, kind: str, where: str) -> Trained:
    named = {name: each for name, each in embedder.named_parameters() if each.requires_grad}
    if not named:
        raise ModelError(
            f"{where} trains nothing: adapter {kind!r}, and the embedder has no pooling or "
            "projection with weights that `train` names"
        )
    return Trained(
        kind, tuple(named), sum(each.numel() for each in named.values()), embedder.num_parameters
    )


def merge(embedder: Embedder) -> None:
    """Add the adapter to the backbone's weights, if it has one; the one on disk differs then."""
    model = carrier(embedder)
    if is_adapted(model):
        if in_four_bits(model):
            raise ModelError(
                "an adapter of kind 'qlora' cannot be merged into weights of four bits: save the "
                "embedder, and load it with merge_adapters=True"
            )
        merge_adapter(model)
        model.name_or_path = embedder.backbone.model.name_or_path = ""


def carrier(embedder: Embedder) -> Any:
    """The model that an adapter is part of: the body, or the language model it was loaded on."""
    lm = embedder.backbone.lm
    return lm if lm is not None and is_adapted(lm) else embedder.backbone.model


def finish(embedder: Embedder, adapter: Mapping[str, Any] | None) -> None:
    """After a stage: add its adapter to the weights where its table says `merge = true`."""
    if adapter is not None and adapter.get("merge", False):
        merge(embedder)


def _name_base(embedder: Embedder) -> None:
    """Name the base that a saved adapter is loaded on; "" saves the base beside the adapter.

    The latter where weights of its own are trained, or where it has other rows than on disk.
    """
    model = carrier(embedder)
    if not is_adapted(model) or not model.name_or_path:
        return
    folder = Path(model.name_or_path)
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    changed = any(NAME not in name.split(".") for name in names)
    # A hub's cache is on this machine only.
    cached = re.search(r"models--([^/]+)--([^/]+)/snapshots/[^/]+/?$", folder.as_posix())
    name = f"{cached[1]}/{cached[2]}" if cached else model.name_or_path
    if folder.is_dir():
        stored = read_json(folder / "config.json", {})
        trained = any("trainable_tokens" in each for each in names)
        changed |= bool(new_rows(embedder) and not trained)
        if stored.get("vocab_size") != embedder.backbone.num_rows:
            changed, name = True, ""
    model.name_or_path = "" if changed else name
    model.peft_config[NAME].base_model_name_or_path = name


def new_rows(embedder: Embedder) -> list[int]:
    """Ids of the tokens that the embedder's template adds."""
    added = embedder.template.added_tokens if embedder.template is not None else ()
    return sorted(set(embedder.tokenizer.convert_tokens_to_ids(list(added))))


def adapter_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained weights of adapters, by name."""
    for name, each in module.named_parameters():
        if each.requires_grad and NAME in name.split("."):
            yield name, each


def has_gradient(module: nn.Module) -> bool:
    """Whether the last backward pass moves any trained weight."""
    trained = [each for each in module.parameters() if each.requires_grad]
    return any(each.grad is not None and bool((each.grad != 0).any()) for each in trained)


def check_gradients(module: nn.Module) -> None:
    """Raises ModelError after a first backward pass that leaves an adapter where it is.

    Every weight of an adapter must have a gradient, and no tensor that starts at zero (LoRA's B)
    may have one of zeros: it would stay zero (SILENT row 22).
    """
    if not has_gradient(module):
        raise ModelError(
            "no trained weight has a gradient after the first batches. Does the loss have anything "
            "to compare: negatives, other rows in the batch, pairs with other scores?"
        )
    for name, each in adapter_parameters(module):
        if each.grad is None:
            raise ModelError(f"adapter weight {name} has no gradient after the first batch")
    stuck = [
        name
        for name, each in adapter_parameters(module)
        if not bool(torch.any(each != 0)) and not bool((each.grad != 0).any())  # type: ignore[union-attr]
    ]
    if stuck:
        raise ModelError(
            f"adapter weight {stuck[0]} ({len(stuck)} such weights) is zero and its gradient, too, "
            "after the first batch: it would stay so"
        )
