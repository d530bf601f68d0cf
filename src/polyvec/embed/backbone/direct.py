"""A backbone that computes from the weights' file, and makes transformers' model when needed.

The import of transformers' models and the making of one cost a process more than all else that
embeds its first text. Fused layers need neither. formats/direct.py says for which folders, and
has compared the vectors of both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch

from polyvec.embed.backbone import outline, runners
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.hooks import unchanged_layers
from polyvec.embed.backbone.linears import UnsuitedError
from polyvec.embed.backbone.onnx_layers import TORCH
from polyvec.embed.backbone.rotary import texts_of
from polyvec.embed.inputs.tokens import TokenBatch

if TYPE_CHECKING:
    from polyvec.embed.backbone.fused import Fused
    from polyvec.embed.backbone.states import States

NEEDS = frozenset({"all_layers"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneFacts:
    """What a whole backbone says of itself, as plain values."""

    model: dict[str, Any]  # of outline.config_facts
    spec: str
    layout_reason: str
    pad_id: int
    position_offset: int
    hidden_size: int
    max_positions: int | None
    num_rows: int | None
    fingerprints: dict[str, str]  # by the hash of settings

    @classmethod
    def of(cls, backbone: Backbone, fingerprints: dict[str, str]) -> BackboneFacts | None:
        """Those of a backbone; None for one that more is to be known of."""
        runner = backbone.runner
        plain = isinstance(runner, runners.Planned) and runner.packed and not backbone.spec.blocked
        if not plain or backbone.lm is not None or backbone.prepending is not None:
            return None
        model = outline.config_facts(backbone.model)
        if model is None:
            return None
        return cls(
            model=model,
            spec=str(backbone.spec),
            layout_reason=backbone.layout_reason,
            pad_id=backbone.pad_id,
            position_offset=backbone.position_offset,
            hidden_size=backbone.hidden_size,
            max_positions=backbone.max_positions,
            num_rows=backbone.num_rows,
            fingerprints=fingerprints,
        )


@dataclass(slots=True, eq=False)
class Direct:
    """The layers of a backbone, read at the first batch, and what loads the whole one."""

    facts: BackboneFacts
    names: frozenset[str]  # of the weights
    read: outline.Read
    load: Callable[[], Backbone]
    spec: AttentionSpec
    _fused: Fused | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def runner(self) -> runners.Planned:
        return runners.Planned(
            self.fused().model, self.facts.pad_id, packed=True, offset=self.facts.position_offset
        )

    def fused(self) -> Fused:
        if self._fused is None:
            with self._lock:
                if self._fused is None:
                    self._fused = outline.fused_layers(self.facts.model, self.names, self.read)
        return self._fused

    def serves(self, needs: frozenset[str], attention: AttentionSpec | None) -> bool:
        """Whether the layers can compute what a forward asks for, as fused.py has it."""
        return (
            torch.is_inference_mode_enabled()
            and not needs - NEEDS
            and attention in (None, self.spec)
            and unchanged_layers()
            and not torch.is_autocast_enabled("cpu")
        )


def _known(name: str, of: Callable[[BackboneFacts], Any]) -> Any:
    """A property of Backbone that is known without its model."""
    whole = getattr(Backbone, name).fget

    def get(self: DirectBackbone) -> Any:
        direct = self.__dict__.get("_direct")
        return whole(self) if direct is None else of(direct.facts)

    return property(get)


class DirectBackbone(Backbone):
    """A Backbone without its model, until something asks for it: then it becomes a plain one.

    Texts are embedded without it. Whatever reads or changes the model (`model`, parameters,
    modules, a copy, training, another device) loads it first.
    """

    family = _known("family", lambda facts: facts.model["family"])
    known_fingerprints = _known("known_fingerprints", lambda facts: facts.fingerprints)
    layout = _known("layout", lambda _: "packed")
    mechanism = _known("mechanism", lambda _: runners.Planned.name)
    position_offset = _known("position_offset", lambda facts: facts.position_offset)
    hidden_size = _known("hidden_size", lambda facts: facts.hidden_size)
    num_layers = _known("num_layers", lambda facts: facts.model["num_hidden_layers"])
    device = _known("device", lambda _: torch.device("cpu"))
    max_positions = _known("max_positions", lambda facts: facts.max_positions)
    num_rows = _known("num_rows", lambda facts: facts.num_rows)
    backend = _known("backend", lambda _: TORCH)
    computes_short_apart = _known("computes_short_apart", lambda _: False)

    def __init__(self, direct: Direct) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update(
            _direct=direct,
            training=False,
            pad_id=direct.facts.pad_id,
            prepending=None,
            lm=None,
            lm_head=None,
            spec=direct.spec,
            layout_reason=direct.facts.layout_reason,
            measured=True,
        )

    def whole(self) -> Backbone:
        """This backbone with its model."""
        direct = self.__dict__.get("_direct")
        if direct is None:
            return self
        with direct._lock:
            if "_direct" in self.__dict__:
                # A text may be what asks for it; weights made in inference mode cannot be trained.
                with torch.inference_mode(False):
                    made = direct.load().__dict__
                # Hooks that were put on the backbone itself stay.
                hooks = {k: found for k, found in self.__dict__.items() if "hooks" in k and found}
                # A Backbone is made in training mode; this one has been in evaluation mode.
                self.__dict__.update(made | hooks | {"training": False})
                object.__setattr__(self, "__class__", Backbone)
                del self.__dict__["_direct"]
        return self

    def forward(
        self,
        batch: TokenBatch,
        *,
        needs: frozenset[str] = frozenset(),
        attention: AttentionSpec | None = None,
    ) -> States:
        direct = self.__dict__.get("_direct")
        if direct is None or not direct.serves(needs, attention):
            return Backbone.forward(self.whole(), batch, needs=needs, attention=attention)
        try:
            fused, runner = direct.fused(), direct.runner()
        except (UnsuitedError, AttributeError, RuntimeError, TypeError):  # as fused.py has it
            return Backbone.forward(self.whole(), batch, needs=needs, attention=attention)
        inputs = runner.inputs(batch, direct.spec, needs)
        with texts_of(batch.lengths):
            out = runners.fused_states(fused, inputs, needs)
        return self._states(runner, batch, out, needs, attention)

    def computes_side_by_side(self, needs: frozenset[str]) -> bool:
        direct = self.__dict__.get("_direct")
        if direct is None or not direct.serves(needs, None):
            return Backbone.computes_side_by_side(self.whole(), needs)
        return True

    def prepare(self, needs: frozenset[str]) -> None:
        if needs - NEEDS:
            self.whole().prepare(needs)

    def train(self, mode: bool = True) -> Self:
        if mode:  # the other one is the one it is in
            Backbone.train(self.whole(), mode)
        return self

    @property
    def card(self) -> Any:
        return self.whole().__dict__.get("card")

    @card.setter
    def card(self, card: Any) -> None:
        self.whole().__dict__["card"] = card

    # torch reads the submodules of a module here, whatever is done with them.
    @property
    def _modules(self) -> dict[str, Any]:
        return self.whole().__dict__["_modules"]

    @_modules.setter
    def _modules(self, modules: dict[str, Any]) -> None:
        self.__dict__["_modules"] = modules

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_direct" not in self.__dict__:
            return Backbone.__getattr__(self, name)
        return getattr(self.whole(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        Backbone.__setattr__(self.whole(), name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.whole().__reduce_ex__(protocol)
