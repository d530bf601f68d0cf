"""sentence-transformers' Router (once Asym): which modules a query and a document go through.

A folder with a Router is as many chains of modules as it has routes for text. Routes for images
only are left out.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvec.embed.formats.schema import module_folder, read_json
from polyvec.errors import ModelError

ROUTERS = ("Router", "Asym")
CONFIGS = ("router_config.json", "config.json")  # since sentence-transformers 5, and before
MODALITY = "text"
TASKS = ("query", "document")  # of encode_query and encode_document


@dataclass(frozen=True, slots=True)
class Module:
    """A line of modules.json: its class, and its folder."""

    kind: str
    folder: Path

    @property
    def is_router(self) -> bool:
        ours = self.kind.startswith("sentence_transformers.")
        return ours and self.kind.rpartition(".")[2] in ROUTERS


@dataclass(frozen=True, slots=True)
class Routing:
    """The modules of each route, and the route of each task.

    `main` is the route of calls without a task, if there is a `default`, which names it.
    """

    chains: Mapping[str, list[Module]]
    tasks: Mapping[str, str]
    main: str
    default: str | None


def read_routing(folder: Path, modules: Sequence[Module]) -> Routing | None:
    """The routes of a folder's Router; None if it has none."""
    places = [place for place, module in enumerate(modules) if module.is_router]
    if not places:
        return None
    if len(places) > 1:
        raise ModelError(f"{folder}/modules.json: more than one Router is not supported")
    before, router, after = modules[: places[0]], modules[places[0]], modules[places[0] + 1 :]
    path = next(
        (p for p in (router.folder / name for name in CONFIGS) if p.is_file()),
        router.folder / CONFIGS[0],
    )
    config = read_json(path)
    try:
        types, structure = dict(config["types"]), dict(config["structure"])
        parameters = dict(config.get("parameters") or {})
        routes = {
            name: [Module(str(types[m]), module_folder(router.folder, m)) for m in listed]
            for name, listed in structure.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: expected types, structure and parameters of a Router ({error})"
        ) from None
    if not routes:
        raise ModelError(f"{path}: the Router has no routes")
    if any(module.is_router for route in routes.values() for module in route):
        raise ModelError(f"{path}: a Router inside a Router is not supported")
    tasks, default = _resolved(routes, parameters, path)
    # Routes of the same modules are one, so that they share all parts.
    first: dict[tuple[Module, ...], str] = {}
    same = {name: first.setdefault(tuple(listed), name) for name, listed in routes.items()}
    tasks = {task: same[name] for task, name in tasks.items()}
    main = next(iter(tasks.values())) if default is None else same[default]
    used = dict.fromkeys([main, *tasks.values()])
    chains = {name: [*before, *routes[name], *after] for name in used}
    return Routing(chains, tasks, main, default)


def _resolved(
    routes: Mapping[str, Any], parameters: Mapping[str, Any], path: Path
) -> tuple[dict[str, str], str | None]:
    """The route of each task that has one, and the default."""
    mappings = _mappings(parameters.get("route_mappings") or {}, path)
    default = parameters.get("default_route")
    if default is None and parameters.get("allow_empty_key", True):
        default = next(iter(routes))
    for name in (*mappings.values(), *([default] if default else [])):
        if name not in routes:
            raise ModelError(f"{path}: route {name!r} is not among {', '.join(routes)}")
    names = dict.fromkeys((*TASKS, *routes, *(task for task, _ in mappings if task)))
    found = {task: _route(task, routes, mappings) for task in names}
    tasks = {task: name for task, name in found.items() if name is not None}
    return tasks, _route(None, routes, mappings) or default


def _route(task: str | None, routes: Mapping[str, Any], mappings: Mapping[Any, str]) -> str | None:
    """The route of a task for texts, by sentence-transformers' order of precedence."""
    for key in ((task, MODALITY), (task, None), (None, MODALITY), (None, None)):
        if key in mappings:
            return mappings[key]
    if task is not None:
        # A modality's name is a route for calls of every task, but not a task.
        return task if task in routes else MODALITY if MODALITY in routes else None
    return MODALITY if MODALITY in routes else None


def _mappings(stored: Mapping[str, str], path: Path) -> dict[Any, str]:
    """The mappings by (task, modality), which JSON has as Python's text of the pair."""
    found = {}
    for key, name in stored.items():
        try:
            task, modality = ast.literal_eval(key)
        except (ValueError, SyntaxError, TypeError):
            raise ModelError(
                f"{path}: route_mappings key {key!r} is not a pair of task and modality"
            ) from None
        found[task, modality] = name
    return found
