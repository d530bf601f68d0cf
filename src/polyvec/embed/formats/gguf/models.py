"""The model in a GGUF file: transformers' configuration, and the weights under its names.

A key of the architecture that is not known is refused, since a rotary scaling or a soft cap that
is left out changes every vector; so is a tensor without a place, or a weight without a tensor.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTextEncoding,
    PretrainedConfig,
)

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.gguf.architectures import ARCHITECTURES, Architecture
from polyvec.embed.formats.gguf.file import GgufFile, library
from polyvec.embed.formats.gguf.settings import COMMON, DENSE, TRY
from polyvec.errors import ModelError, known

# Read by the settings, not as weights.
ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


def model_config(file: GgufFile) -> PretrainedConfig:
    """transformers' configuration of the file's model; ModelError for one that is not read."""
    architecture = find(file)
    values = architecture.config(file)
    values |= _token_ids(file)
    cls = CONFIG_MAPPING[values.pop("model_type", architecture.kind)]
    with _as_settings(file):
        config = cls(**values)
    config.architectures = [model_class(config, architecture.decoder).__name__]
    if architecture.decoder and not file.of("attention.causal", bool, architecture.causal):
        config.is_causal = False
        if getattr(config, "sliding_window", None) is not None:
            raise ModelError(f"{file.path}: a sliding window without a causal mask; {TRY}")
        if set(getattr(config, "layer_types", None) or ()) & {"conv", "linear_attention"}:
            raise ModelError(
                f"{file.path}: {file.architecture} without a causal mask is not read; {TRY}"
            )
    return config


@contextlib.contextmanager
def _as_settings(file: GgufFile) -> Iterator[None]:
    """What transformers raises of its settings, as a ModelError."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # noqa: BLE001 - its validators and layers raise their own kinds
        raise ModelError(
            f"{file.path}: transformers refuses the settings of the metadata "
            f"({' '.join(str(error).split())[:200]})"
        ) from None


def model_class(config: PretrainedConfig, head: bool) -> Any:
    """transformers' class: the language model, the body, or only the encoder of T5."""
    if "T5" in type(config).__name__:
        return AutoModelForTextEncoding._model_mapping[type(config)]
    auto: Any = AutoModelForCausalLM if head else AutoModel
    return auto._model_mapping[type(config)]


def find(file: GgufFile) -> Architecture:
    """The file's architecture; ModelError if it, or a key of its metadata, is not known."""
    kind = file.get("general.type", str, "model")
    if kind != "model":
        raise ModelError(f"{file.path}: a GGUF file of type {kind[:40]!r}, not a model")
    name = file.architecture
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: GGUF architecture {name!r} is not read.{known(name, ARCHITECTURES)} "
            f"{TRY[0].upper()}{TRY[1:]}"
        )
    found = ARCHITECTURES[name]
    start = f"{name}."
    for key in file.metadata:
        inner = key.removeprefix(start)
        if inner != key and inner not in found.keys | COMMON:
            raise ModelError(
                f"{file.path}: {key[:60]!r} ({str(file.metadata[key])[:40]!r}) is not known, and "
                f"may change the vectors; {TRY}"
            )
    return found


def weights(
    file: GgufFile, config: PretrainedConfig, dtype: torch.dtype, *, head: bool
) -> dict[str, Tensor]:
    """The weights by transformers' names; ModelError for one that is missing or left over.

    `head`: with the language model's.
    """
    architecture = find(file)
    with _as_settings(file), torch.device("meta"):
        model = model_class(config, architecture.decoder)(config)
    # The file holds no pooler, and none is used here.
    shapes = model.state_dict().items()
    wanted = {name: tuple(each.shape) for name, each in shapes if "pooler." not in name}
    gguf = library()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    # Once for all weights: the table holds every name of every layer, and takes long to make.
    table = gguf.get_tensor_name_map(kinds[file.architecture], config.num_hidden_layers)
    names = {name: architecture.name(name) or (_stored_name(table, name),) for name in wanted}
    if "output.weight" not in file.tensors:
        names = {key: each for key, each in names.items() if each != ("output.weight",)}
    found: dict[str, Tensor] = {}
    if "token_types.weight" not in file.tensors:  # DistilBERT's has none
        types = [key for key, each in names.items() if each == ("token_types.weight",)]
        found = {key: torch.zeros(wanted[key], dtype=dtype) for key in types if names.pop(key)}
    parts = [(name, key) for key, each in names.items() for name in each]
    missing = [f"{name} ({key})" for name, key in parts if name not in file.tensors]
    if missing:
        raise ModelError(
            f"{file.path}: {len(missing)} weights are missing, the first {missing[0]}; {TRY}"
        )
    dense = {f"{name}.weight" for name in DENSE if f"{name}_feat_in" in architecture.keys}
    left = sorted(set(file.tensors) - {name for name, _ in parts} - ROPE_TENSORS - dense)
    unused = architecture.unused(file)
    left = [name for name in left if not name.startswith(unused)]
    if left:
        raise ModelError(
            f"{file.path}: {len(left)} tensors have no place in {type(model).__name__}, the first "
            f"{left[0][:60]!r}{_ranks(left)}; {TRY}"
        )
    for key, each in names.items():
        if each == ("output.weight",) and not head:
            continue
        stored = _joined(file, each)
        try:
            tensor = architecture.undo(key, stored, config)
        except (RuntimeError, IndexError):  # a shape that has no heads, or no three parts
            tensor = None
        if tensor is None or tuple(tensor.shape) != wanted[key]:
            shape = tuple((stored if tensor is None else tensor).shape)
            raise ModelError(
                f"{file.path}: tensor {' and '.join(each)} has shape {shape}, the metadata expect "
                f"{wanted[key]}"
            )
        found[key] = tensor.to(dtype, copy=True)  # the file's own bytes are read-only
    return found


def _joined(file: GgufFile, names: tuple[str, ...]) -> Tensor:
    """The tensor, or all of them as one; ModelError if they do not fit."""
    found = [file.tensor(name) for name in names]
    if len(found) == 1:
        return found[0]
    if len({tensor.shape for tensor in found}) > 1 or found[0].ndim < 2:
        raise ModelError(f"{file.path}: tensors {' and '.join(names)} do not have the same shape")
    return torch.cat(found, dim=1)


def _ranks(names: list[str]) -> str:
    return " (a reranker's or classifier's head)" if any(n.startswith("cls") for n in names) else ""


def _stored_name(table: Any, key: str) -> str:
    """The file's name of a weight of transformers, by the package's table of names."""
    inner, _, end = key.rpartition(".")
    found = table.get_name(inner) or table.get_name(inner.removeprefix("transformer."))
    if found is None and key == "lm_head.weight":
        found = "output"
    return f"{found or '?'}.{end}"


def _token_ids(file: GgufFile) -> dict[str, Any]:
    return {
        f"{ours}_token_id": file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
