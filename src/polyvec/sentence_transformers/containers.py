"""Modules appended to a model, as `model.append(Dense(...))`: steps after its pooling.

A model of ours is no list of modules, but its steps after the pooling are, so those can be added,
replaced and removed. D size of a vector before a step, E after.
"""

import copy
import warnings
from collections.abc import Iterable
from typing import Any, Self, cast

from torch import nn

from polyvec.embed.projection.dense import ACTIVATIONS, Dense, LayerNorm, Normalize
from polyvec.embed.projection.modules import PROJECTIONS
from polyvec.errors import InputError, PolyvecError
from polyvec.sentence_transformers.views import MODES, Projection, View, views_of

KNOWN = "Dense, LayerNorm, Normalize"
FIXED = 2  # model[0] and model[1]: transformer and pooling


def step_of(module: Any) -> nn.Module | None:
    """Our step for a module of sentence-transformers, with the same weights; None for Dropout.

    A step of ours stays as it is. Raises InputError for any other module.
    """
    if isinstance(module, Projection):
        return module.step
    kind = type(module).__name__
    if isinstance(module, View):
        raise InputError(f"a {kind} of another model cannot be added; known: {KNOWN}")
    if isinstance(module, tuple(PROJECTIONS.values())):
        return cast(nn.Module, module)
    theirs = type(module).__module__.startswith("sentence_transformers.")
    if theirs and kind == "Dense":
        return _dense(module)
    if theirs and kind == "LayerNorm":
        norm = LayerNorm(module.dimension)
        norm.norm = module.norm
        return norm
    if theirs and kind == "Normalize":
        _check_names(module)
        return Normalize()
    if theirs and kind == "Dropout":
        warnings.warn("Dropout is left out: it changes no vector after training", stacklevel=4)
        return None
    raise InputError(
        f"a {kind} cannot be added to this model, only {KNOWN}; a whole chain of "
        "sentence-transformers' modules is read by SentenceTransformer(modules=[...])"
    )


def _dense(module: Any) -> Dense:
    _check_names(module)
    activation = type(module.activation_function)
    name = activation.__name__
    if not activation.__module__.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise InputError(f"Dense: activation_function {name} is not one of torch.nn's")
    made = Dense(
        module.in_features,
        module.out_features,
        bias=module.linear.bias is not None,
        activation=name,
        use_residual=module.use_residual,
    )
    made.linear, made.activation = module.linear, module.activation_function
    if hasattr(module, "residual"):
        made.residual = module.residual
    return made


def _check_names(module: Any) -> None:
    names = {
        getattr(module, f"module_{side}_name", "sentence_embedding") for side in ("input", "output")
    }
    if names != {"sentence_embedding"}:
        raise InputError(
            f"{type(module).__name__} reads or writes {' and '.join(sorted(names))}; only steps "
            "over sentence_embedding can be added"
        )


class Container:
    """nn.Sequential's methods, over the steps after the pooling."""

    projections: nn.ModuleList
    routes: Any

    def __len__(self) -> int:
        return len(views_of(self))

    def __getitem__(self, place: Any) -> Any:
        try:
            return views_of(self)[place]
        except (IndexError, TypeError):
            raise _no_place(place, len(self)) from None

    def __iter__(self) -> Any:
        return iter(views_of(self))

    def _first_module(self) -> View:
        return views_of(self)[0]

    def _last_module(self) -> View:
        return views_of(self)[-1]

    def append(self, module: Any) -> Self:
        """Add a step after the last one; returns the model."""
        return self.insert(len(self), module)

    def extend(self, modules: Iterable[Any]) -> Self:
        """Add several steps; returns the model."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Any) -> Self:
        """Add a step before the one at this place; returns the model."""
        place = _place(index, len(self), stop=len(self) + 1)
        if place < FIXED:
            raise InputError(
                f"insert({index}): a model starts with its transformer and pooling; steps begin "
                f"at {FIXED}"
            )
        step = self._own(module)
        if step is not None:
            steps = list(self.projections)
            self._replace([*steps[: place - FIXED], step, *steps[place - FIXED :]])
        return self

    def add_module(self, name: str, module: Any) -> None:
        """Add a step, or replace the one of this name or at this place, as "2"."""
        named = self.__dict__.setdefault("_named_steps", {})
        places = [at for at, step in enumerate(self.projections) if step is named.get(name)]
        if places:
            self[places[0] + FIXED] = module
        elif name.isdigit() and int(name) < len(self):
            self[int(name)] = module
            return
        else:
            self.append(module)
        if len(self) > FIXED:
            named[name] = self.projections[places[0] if places else -1]

    register_module = add_module

    def __getattr__(self, name: str) -> Any:
        step = self.__dict__.get("_named_steps", {}).get(name)
        if step is not None:
            return Projection(self, step)
        return super().__getattr__(name)  # type: ignore[misc]

    def pop(self, key: int) -> View:
        """Remove the step at this place, and return it."""
        found = views_of(self)[_place(key, len(self))]
        del self[key]
        return found

    def __delitem__(self, key: int) -> None:
        place = _place(key, len(self))
        if place < FIXED:
            raise InputError(
                f"model[{place}] cannot be removed; build the model anew with "
                "SentenceTransformer(modules=[...])"
            )
        steps = list(self.projections)
        self._replace([*steps[: place - FIXED], *steps[place - FIXED + 1 :]])

    def __setitem__(self, key: int, module: Any) -> None:
        place = _place(key, len(self))
        if place == 0:
            raise InputError(
                "model[0] is the transformer, which cannot be replaced; build the model anew with "
                "SentenceTransformer(modules=[...])"
            )
        if place == 1:
            self._pool_by(module)
            return
        step, steps = self._own(module), list(self.projections)
        steps[place - FIXED : place - FIXED + 1] = [] if step is None else [step]
        self._replace(steps)

    def _pool_by(self, module: Any) -> None:
        """Pool as sentence-transformers' Pooling says."""
        modes = {theirs: ours for ours, theirs in MODES.items()}
        mode = getattr(module, "pooling_mode", None)
        names = (mode,) if isinstance(mode, str) else tuple(mode or ())
        if isinstance(module, View) or not names or any(name not in modes for name in names):
            raise InputError(f"model[1] is the pooling; a {type(module).__name__} is none")
        before = self.pooling  # type: ignore[has-type]
        self.pooling = [modes[name] for name in names]
        try:
            self._check_dimensions()
        except PolyvecError:
            self.pooling = before
            raise
        self.pool_prompt = module.include_prompt

    def _own(self, module: Any) -> nn.Module | None:
        if self.routes:
            raise InputError("this model has routes of its own for queries and documents")
        step = step_of(module)
        model: Any = self
        return None if step is None else step.to(model.device, model.dtype).train(model.training)

    def _replace(self, steps: list[Any]) -> None:
        """Take these steps; ModelError, with the former ones kept, where they do not fit."""
        before = self.projections
        self.projections = nn.ModuleList(steps)
        try:
            self._check_dimensions()
        except PolyvecError:
            self.projections = before
            raise

    def __add__(self, other: Any) -> Any:
        found = copy.deepcopy(self)
        return found.extend(other)

    def __iadd__(self, other: Any) -> Self:
        return self.extend(other)


def _place(index: Any, count: int, stop: int | None = None) -> int:
    """The place as a number from 0; InputError for one that there is not."""
    stop = count if stop is None else stop
    if not isinstance(index, int) or isinstance(index, bool) or not -count <= index < stop:
        raise _no_place(index, count)
    return index + count if index < 0 else index


def _no_place(index: Any, count: int) -> Exception:
    return NoPlaceError(f"there is no module {index!r}; this model has {count}, from 0")


class NoPlaceError(InputError, IndexError):
    """There is no module at this place; also an IndexError, which loops over a model end with."""
