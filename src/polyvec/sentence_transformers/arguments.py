"""The constructor's arguments in sentence-transformers' form, as the options of Embedder."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from polyvec.embed.formats.devices import best_device
from polyvec.embed.inputs.contract import check_count
from polyvec.errors import InputError, known

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "kernels")
# Options of the weights' loading that change no vector here.
NO_EFFECT = ("low_cpu_mem_usage", "use_safetensors", "attn_implementation", "device_map")
TOKENIZER = ("model_max_length", "padding_side", "truncation_side", "use_fast")


def check_backend(backend: str, supported: Sequence[str] = ("torch",)) -> None:
    """Raises InputError for another backend than those that are supported."""
    if backend not in supported:
        names = " and ".join(map(repr, supported))
        raise InputError(f"backend {backend!r} is not supported; polyvec runs {names}")


def model_options(
    model_kwargs: Mapping[str, Any] | None,
    processor_kwargs: Mapping[str, Any] | None,
    config_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """dtype, device and max_seq_length of the keyword tables.

    Raises InputError for an option that has no meaning here.
    """
    model, words = table("model_kwargs", model_kwargs), table("processor_kwargs", processor_kwargs)
    found: dict[str, Any] = {}
    for name in ("torch_dtype", "dtype"):
        dtype = model.pop(name, None)
        if dtype is not None and not isinstance(dtype, str | torch.dtype):
            raise InputError(f"model_kwargs {name!r} is {dtype!r}, expected a dtype or its name")
        found["dtype"] = found.get("dtype") if dtype is None else dtype
    attention = model.pop("attn_implementation", None)
    if attention is not None and attention not in ATTENTION:
        raise InputError(
            f"attn_implementation {attention!r} is not known.{known(attention, ATTENTION)}"
        )
    device = model.pop("device_map", None)
    if isinstance(device, str | torch.device):
        found["device"] = best_device() if str(device) == "auto" else device
    elif device is not None:
        raise InputError("device_map: polyvec keeps a model on one device; give its name")
    for name in ("revision", "token", "trust_remote_code", "local_files_only"):
        if name in model:
            found[name] = model.pop(name)
    for name in ("low_cpu_mem_usage", "use_safetensors"):
        model.pop(name, None)
    _refuse("model_kwargs", model, ("dtype", "torch_dtype", *NO_EFFECT))
    if words.get("model_max_length") is not None:
        check_count("model_max_length", words["model_max_length"])
        found["max_seq_length"] = words["model_max_length"]
    for name in ("truncation_side", "padding_side"):
        if words.get(name) not in (None, "left", "right"):
            raise InputError(f"processor_kwargs {name!r} is {words[name]!r}, not 'left' or 'right'")
    found["truncation_side"] = words.get("truncation_side")
    _refuse("processor_kwargs", {k: v for k, v in words.items() if k not in TOKENIZER}, TOKENIZER)
    _refuse("config_kwargs", table("config_kwargs", config_kwargs), ())
    return {name: value for name, value in found.items() if value is not None}


def table(name: str, value: Any) -> dict[str, Any]:
    """A copy of a table of settings, empty for None; InputError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} is {str(value)[:60]!r}, expected a table of names and values")
    return dict(value)


def _refuse(where: str, left: Mapping[str, Any], choices: tuple[str, ...]) -> None:
    for name in left:
        raise InputError(f"{where} {name!r} has no effect in polyvec.{known(name, choices)}")


def old_name(old: Any, new: Any, names: str) -> Any:
    """The value given under an argument's older name, with a FutureWarning, else under its own."""
    if old is None:
        return new
    before, after = names.split(":")
    if new is not None:
        raise InputError(f"give {after} or its older name {before}, not both")
    warnings.warn(f"{before} is now {after}", FutureWarning, stacklevel=4)
    return old


def older_names(given: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Arguments given under older names, by their names of today, with a FutureWarning each."""
    no_others(where, {name: value for name, value in given.items() if name not in names})
    for name in given:
        warnings.warn(f"{name} is now {names[name]}", FutureWarning, stacklevel=4)
    return {names[name]: value for name, value in given.items()}


def only_one(**given: Any) -> Any:
    """The argument that was given under one of several names."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(found) != 1:
        names = ", ".join(given)
        raise InputError(f"give the inputs once, as one of {names}; got {len(found)}")
    return next(iter(found.values()))


def no_others(where: str, given: Mapping[str, Any]) -> None:
    """Raises InputError for keyword arguments that a method doesn't have."""
    for name in given:
        raise InputError(
            f"{where}() has been called with additional keyword arguments that this model does "
            f"not use: [{name!r}]"
        )


def per_call(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with `processing_kwargs={"text": {"max_length": n}}`: at most n tokens are read.

    Of that table nothing else has a meaning here; InputError for other entries.
    """

    @functools.wraps(method)
    def called(self: Any, *positional: Any, processing_kwargs: Any = None, **options: Any) -> Any:
        most = _max_length(processing_kwargs)
        if most is None:
            return method(self, *positional, **options)
        if options.get("pool") is not None or isinstance(options.get("device"), list | tuple):
            raise InputError("processing_kwargs: set model.max_seq_length for several processes")
        before, self.max_seq_length = self.max_seq_length, most
        try:
            return method(self, *positional, **options)
        finally:
            self.max_seq_length = before

    return called


def _max_length(processing_kwargs: Any) -> int | None:
    given = table("processing_kwargs", processing_kwargs)
    text = table("processing_kwargs 'text'", given.pop("text", None))
    length = text.pop("max_length", None)
    if text.pop("truncation", True) not in (True, "longest_first"):
        text["truncation"] = False
    _refuse("processing_kwargs", {**given, **text}, ("text", "max_length"))
    if length is not None:
        check_count("max_length", length)
    return length
