"""The parts of an embedder, from a folder or hub id."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.formats.cards import read_card
from polyvec.embed.formats.checksums import replaced
from polyvec.embed.formats.declared import Declared
from polyvec.embed.formats.devices import check_device, device_name, dtype_name
from polyvec.embed.formats.late import check_one_vector
from polyvec.embed.formats.modules import read_modules
from polyvec.embed.formats.options import check_options
from polyvec.embed.formats.refusals import check_embedder
from polyvec.embed.formats.route import WHERE, Options, needs, read_route
from polyvec.embed.formats.schema import POLYVEC_FILE
from polyvec.embed.formats.settings import (
    excludes_instruction,
)
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.inputs.contract import check_count
from polyvec.embed.parts import build_pooling, model_facts
from polyvec.embed.pooling.steps import TokenSteps


def read_parts(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_seq_length: int | None = None,
    pooling: str | Sequence[str] | None = None,
    output: str | None = None,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    similarity_fn_name: str | None = None,
    truncate_dim: int | None = None,
    attention: str | None = None,
    layout: str = "auto",
    revision: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    base_model: str | Path | None = None,
    merge_adapters: bool = False,
    folder: Path | None = None,
) -> EmbedderParts:
    """The parts of an embedder, read from a folder or hub id; see Embedder.from_pretrained.

    `folder`: where the model is, if it has been looked up.
    """
    device, dtype = device_name(device), dtype_name(dtype)
    check_options(
        dtype=dtype,
        output=output,
        attention=attention,
        layout=layout,
        revision=revision,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        token=token,
        trust_remote_code=trust_remote_code,
        base_model=base_model,
        merge_adapters=merge_adapters,
    )
    for name, count in (("max_seq_length", max_seq_length), ("truncate_dim", truncate_dim)):
        if count is not None:
            check_count(name, count)
    if device is not None:
        check_device(device)
    hub: dict[str, Any] = {
        "cache_folder": cache_folder,
        "local_files_only": local_files_only,
        "token": token,
    }
    folder = folder or model_folder(
        name_or_path, revision=revision, trust_remote_code=trust_remote_code, **hub
    )
    check_embedder(folder, str(name_or_path))
    check_one_vector(folder)
    declared = read_modules(folder, trust_remote_code=trust_remote_code)
    # Our own save says itself whether prompts are pooled.
    own_save = (folder / POLYVEC_FILE).is_file() and not replaced(folder)
    if not own_save and declared.transformer and excludes_instruction(name_or_path, folder):
        declared.pool_prompt = False
    options = Options(
        device=device,
        dtype=dtype,
        max_seq_length=max_seq_length,
        pooling=pooling,
        output=output,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        similarity_fn_name=similarity_fn_name,
        truncate_dim=truncate_dim,
        attention=attention,
        layout=layout,
        trust_remote_code=trust_remote_code,
        base_model=base_model,
        merge_adapters=merge_adapters,
        hub=hub,
    )
    main = read_route(folder, declared, options)
    if not declared.routes:
        main.backbone.card = read_card(folder, _modules(main))
        return main
    read = [(declared, main)]
    for route in declared.routes.values():
        if all(route is not other for other, _ in read):
            read.append((route, _route_beside(read, folder, route, options)))
    routes = {
        task: next(parts for other, parts in read if other is route)
        for task, route in declared.routes.items()
    }
    modules = [each for _, parts in read for each in _modules(parts)]
    main.backbone.card = read_card(folder, modules)
    return dataclasses.replace(main, routes=routes, default_route=declared.default_route)


def _modules(parts: EmbedderParts) -> list[object]:
    return [parts.backbone, parts.pooling, parts.layers, *parts.projections]


def _route_beside(
    read: list[tuple[Declared, EmbedderParts]],
    folder: Path,
    route: Declared,
    options: Options,
) -> EmbedderParts:
    """The parts of a route, which shares the input of one that is read already, if it can."""
    for other, parts in read:
        if other.input == route.input and needs(other, {}) == needs(route, {}):
            if options.pooling is not None:
                facts = model_facts(parts.backbone.model.config, parts.text_tokenizer.hf)
                route.pool_by(build_pooling(options.pooling, {}, facts, where=WHERE))
            if isinstance(route.pooling, TokenSteps):
                vocab_size = parts.text_tokenizer.contract.vocab_size
                route.pooling.fit_to(parts.backbone.hidden_size, vocab_size)
            return dataclasses.replace(
                parts,
                pooling=route.pooling or parts.pooling,
                pool_prompt=route.pool_prompt or route.is_table,
                layers=route.pooled_layers,
                projections=tuple(route.projections),
            )
    return read_route(folder, route, options)
