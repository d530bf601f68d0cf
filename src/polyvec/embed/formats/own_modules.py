"""Modules of a folder's own code in modules.json, run as sentence-transformers runs them.

Such a module takes and returns a table of features (input_ids, attention_mask, token_embeddings,
sentence_embedding). One that replaces the transformer becomes the backbone; of one behind it, the
whole chain behind the transformer is run by sentence-transformers' modules.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import BaseModelOutput

from polyvec.embed.backbone.states import States
from polyvec.embed.formats.routing import Module
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.part import wide
from polyvec.embed.pooling.base import PoolingModule
from polyvec.errors import ModelError

HUB = {"token": None, "cache_folder": None, "revision": None, "local_files_only": False}
KWARGS = {"model_kwargs": "model_args", "processor_kwargs": "tokenizer_args"}
KWARGS |= {"config_kwargs": "config_args"}  # as modules of before sentence-transformers 5.4 say


def is_own(kind: str) -> bool:
    """Whether a module's class is the folder's own code."""
    return not kind.startswith(("sentence_transformers.", "polyvec.")) and ":" not in kind


class OwnTransformer(PreTrainedModel):
    """A module that replaces the transformer, as a model: ids to token_embeddings, [B, T, D]."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.auto_model.config)  # type: ignore[arg-type,union-attr]
        self.module = module

    @property
    def max_seq_length(self) -> int | None:
        """Most tokens that the module reads, where it says so."""
        found = getattr(self.module, "max_seq_length", None)
        return found if isinstance(found, int) else None

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.module.auto_model.get_input_embeddings()  # type: ignore[operator,union-attr]
        return table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        out = self.module({"input_ids": input_ids, "attention_mask": attention_mask})
        return BaseModelOutput(last_hidden_state=out["token_embeddings"])


class OwnChain(PoolingModule):
    """The modules behind the transformer, [B, T, D] -> [B, E], in float32 or wider."""

    def __init__(self, chain: Sequence[nn.Module], names: Sequence[str], where: Path) -> None:
        super().__init__()
        self.chain, self.names, self.where = nn.ModuleList(chain), tuple(names), where

    @property
    def pool_prompt(self) -> bool:
        """Whether prompts are pooled: modules say so as sentence-transformers' Pooling does."""
        return all(getattr(module, "include_prompt", True) for module in self.chain)

    def settings(self) -> dict[str, Any]:
        """The modules' classes and configurations, for descriptions and fingerprints."""
        own = [_config(module) for module in self.chain]
        return {"modules": [list(pair) for pair in zip(self.names, own, strict=True)]}

    def check_saving(self) -> None:
        raise ModelError(
            f"{self.where}: modules of the model's own code ({', '.join(self.names)}) are not "
            "saved; save with sentence-transformers"
        )

    def fit_to(self, hidden_size: int) -> None:
        """Take states of this size; ModelError where the modules do not give vectors of them."""
        mask_BT = torch.ones(1, 2, dtype=torch.bool)
        states_BTD = torch.zeros(1, 2, hidden_size)
        with torch.inference_mode():
            states = States(states_BTD, mask_BT, mask_BT, mask_BT, mask_BT.long())
            vectors_BE = self.vectors(states)
        self.out_features = vectors_BE.shape[-1]

    def vectors(self, states: States) -> Tensor:
        features: dict[str, Any] = {
            "input_ids": states.ids_BT,
            "attention_mask": states.attention_mask_BT.long(),
            "token_embeddings": wide(
                states.last_BTD.masked_fill(~states.attention_mask_BT[..., None], 0)
            ),
        }
        left_out_BT = states.attention_mask_BT & ~states.pooling_mask_BT
        if bool(left_out_BT.any()):
            features["prompt_length"] = int(left_out_BT.sum(dim=1).max())
        for module, name in zip(self.chain, self.names, strict=True):
            try:
                features = module(features)
            except Exception as error:  # noqa: BLE001 - code of the folder's own raises anything
                raise _failed(self.where, name, "cannot be run", error) from None
        vectors_BE = features.get("sentence_embedding")
        shape = tuple(getattr(vectors_BE, "shape", ()))
        if not isinstance(vectors_BE, Tensor) or len(shape) != 2:
            raise ModelError(
                f"{self.where}: the modules {', '.join(self.names)} give no sentence_embedding of "
                f"shape [texts, size] (got {shape}); use sentence-transformers"
            )
        return vectors_BE


def load_chain(folder: Path, modules: Sequence[Module]) -> OwnChain:
    """The modules behind the transformer; ModelError for one that cannot be loaded."""
    chain = [load_module(folder, module) for module in modules]
    return OwnChain(chain, [module.kind for module in modules], folder)


def load_own_transformer(folder: Path, module: Module, dtype: torch.dtype) -> OwnTransformer:
    """The module that replaces the transformer; ModelError for one without auto_model."""
    found = load_module(folder, module)
    config = getattr(getattr(found, "auto_model", None), "config", None)
    if config is None:
        raise ModelError(
            f"{folder}/modules.json: {module.kind} replaces the transformer but has no auto_model "
            "of transformers, which is not supported; use sentence-transformers"
        )
    model: Any = OwnTransformer(found)
    return model.to(dtype).eval()


def check_tokens(module: OwnTransformer, tokenizer: TextTokenizer, folder: Path) -> None:
    """Raises ModelError where the module's own tokenizing gives other ids than the tokenizer."""
    texts = ["A text.", "two Words, and 3 more"]
    inner: Any = module.module
    read = getattr(inner, "preprocess", None) or getattr(inner, "tokenize", None)
    if read is None:
        return
    try:
        if tokenizer.max_length is not None:
            inner.max_seq_length = tokenizer.max_length  # the caller's, in place of the module's
        found = [read([text])["input_ids"][0].tolist() for text in texts]
    except Exception as error:  # noqa: BLE001 - code of the folder's own raises anything
        raise _failed(folder, type(inner).__name__, "cannot tokenize", error) from None
    if found != [each.ids.tolist() for each in tokenizer.encode([(Span(t),) for t in texts])]:
        raise ModelError(
            f"{folder}/modules.json: {type(inner).__name__} tokenizes in its own way, which is not "
            "supported; use sentence-transformers"
        )


def load_module(folder: Path, module: Module) -> nn.Module:
    """A module by its class's own `load`, as sentence-transformers 6.2 calls it."""
    try:
        kind = _class(folder, module.kind)
        place = module.folder.relative_to(folder).as_posix()
        loaded = _load(kind, folder, "" if place == "." else place)
    except Exception as error:  # noqa: BLE001 - code of the folder's own raises anything
        raise _failed(folder, module.kind, "cannot be loaded", error) from None
    if not isinstance(loaded, nn.Module):
        raise ModelError(f"{folder}/modules.json: {module.kind} is no torch module")
    return loaded.eval()


def _class(folder: Path, kind: str) -> Any:
    if is_own(kind):
        try:
            return get_class_from_dynamic_module(kind, str(folder))
        except (OSError, ValueError):  # no such file here: a class of an installed package
            if "--" in kind:
                raise
    place, _, name = kind.rpartition(".")
    return getattr(importlib.import_module(place), name)


def _load(kind: Any, folder: Path, place: str) -> Any:
    options: dict[str, Any] = {**HUB, "trust_remote_code": True, "backend": "torch"}
    options |= dict.fromkeys(KWARGS)
    if len(inspect.signature(kind.load).parameters) > 1:
        return kind.load(str(folder), subfolder=place, **options)
    takes = set(inspect.signature(kind.__init__).parameters)
    old = takes & set(KWARGS.values())
    new = {"model_kwargs", "config_kwargs"} <= takes
    if not old and not new:
        return kind.load(str(folder / place))
    transformer: Any = importlib.import_module("sentence_transformers.base.modules.transformer")
    settings = transformer.Transformer._load_init_kwargs(str(folder), subfolder=place, **options)
    names = KWARGS if old and not new else {}
    settings = {names.get(key, key): value for key, value in settings.items()}
    for key in ("modality_config", "module_output_name"):  # of newer modules
        if key not in takes:
            settings.pop(key, None)
    return kind(str(folder), **settings)


def _config(module: nn.Module) -> Mapping[str, Any]:
    """What the module says of itself as JSON values; nothing if it does not."""
    get: Any = getattr(module, "get_config_dict", None)
    found = get() if callable(get) else {}
    return {key: str(value) for key, value in found.items()}


def _failed(folder: Path, kind: str, what: str, error: Exception) -> ModelError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    hint = ""
    if isinstance(error, ImportError):
        hint = f"; install {error.name}" if error.name else "; install what it imports"
    return ModelError(
        f"{folder}/modules.json: {kind}, the model's own code, {what} ({reason})"
        f"{hint or '; try sentence-transformers'}"
    )
