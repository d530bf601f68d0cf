"""Adapters of the peft package: found, loaded on their base model, merged, and written again.

An adapter folder has adapter_config.json and adapter_model.safetensors. Its base model is beside
it or named in adapter_config.json; where the base is itself an adapter without a model (LLM2Vec's
second stage), that one is merged first.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.checksums import check_files
from polyvec.embed.formats.schema import read_json, write_json
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.weights import check_whole
from polyvec.errors import InputError, MissingExtraError, ModelError, known

CONFIG, NAME = "adapter_config.json", "default"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Adapters of adapters: LLM2Vec has two; more is a circle of names.
MOST = 4
# Heads that an embedder does not load; an adapter may have trained them all the same.
HEADS = re.compile(r"(^|\.)(lm_head|embed_out|score|classifier|cls|ranknet|classification_head)\.")


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """The folder of a base model's configuration and weights, and the adapters on top, in order.

    `base` names what the last adapter was trained on; `beside`: the base is in the adapter's own
    folder, so it is saved with it.
    """

    body: Path
    base: str
    folders: tuple[Path, ...]
    beside: bool = False


def find_adapters(
    root: Path, base_model: str | Path | None = None, **hub: Any
) -> AdaptedModel | None:
    """The base model and adapters of a folder; None if it holds no adapter.

    `base_model` replaces the base that adapter_config.json names; `hub` are options of
    `model_folder`. Raises ModelError, naming adapter and base, if the base is not found.
    """
    if not (root / CONFIG).is_file():
        if base_model is not None:
            raise InputError(f"base_model does nothing: {root} has no {CONFIG}")
        return None
    found = _find(root, base_model, hub, MOST)
    for folder in found.folders:
        _peft_config(folder)  # what it refuses, before any weight loads
    return found


def _find(
    root: Path, base_model: str | Path | None, hub: Mapping[str, Any], most: int
) -> AdaptedModel:
    config = read_adapter_config(root)
    named = config.get("base_model_name_or_path")
    if (root / "embedding" / "emb.pth").is_file() or (root / "emb.pth").is_file():
        raise ModelError(
            f"{root}: token embeddings in emb.pth are part of this adapter's model and are not "
            "read; merge both with the script of its authors (FlagEmbedding)"
        )
    if base_model is None and _has_weights(root) and (root / "config.json").is_file():
        return AdaptedModel(root, str(named or root), (root,), beside=True)
    if base_model is None and not named:
        raise ModelError(f"{root}/{CONFIG}: names no base model. Pass base_model=FOLDER")
    base = _base_folder(root, str(base_model or named), config, hub)
    if base_model is None and not (base / CONFIG).is_file():
        base = _first_stage(root, str(named), hub) or base
    if base.samefile(root) or not most:
        raise ModelError(f"{root}: the adapter names itself as its base. Pass base_model=FOLDER")
    name = str(base_model or named)
    name = str(base.resolve()) if _is_path(root, name) else name
    if (base / CONFIG).is_file() and not _has_weights(base):
        below = _find(base, None, hub, most - 1)
        return AdaptedModel(below.body, name, (*below.folders, root), beside=True)
    return AdaptedModel(base, name, (root,))


def read_adapter_config(root: Path) -> dict[str, Any]:
    """The content of adapter_config.json; ModelError for a kind that is not an adapter's."""
    config = read_json(root / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelError(f"{root / CONFIG}: no peft_type; only adapters of the peft package load")
    return config


def _has_weights(folder: Path) -> bool:
    """Whether a folder has a model's weights beside an adapter's."""
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return any(not path.name.startswith("adapter_model") for path in files)


def _is_path(root: Path, name: str) -> bool:
    return (root / name).is_dir() or Path(name).is_dir()


def _base_folder(root: Path, name: str, config: Mapping[str, Any], hub: Mapping[str, Any]) -> Path:
    """The folder of a base: a path from the adapter's folder, from here, or a hub id."""
    for path in (root / name, Path(name)):  # an absolute name is itself either way
        if path.is_dir():
            check_files(path)
            return path
    options = {**hub, "revision": config.get("revision")}  # of the base; hub's is the adapter's
    try:
        return model_folder(name, namespace=None, **options)
    except ModelError as error:
        reason = str(error).partition(": ")[2]
        raise ModelError(
            f"{root}: an adapter on {name!r}, and that base model is not available ({reason}). "
            "Pass base_model=FOLDER"
        ) from None


def _first_stage(root: Path, named: str, hub: Mapping[str, Any]) -> Path | None:
    """The adapter below LLM2Vec's second one, whose config names the base of both.

    LLM2Vec merges the "-mntp" adapter into the base and trains the second on the result
    (BehnamGhader et al. 2024, arXiv:2404.05961); without the first, vectors are wrong.
    """
    at_hub = root.parent.name == "snapshots"
    repo = root.parent.parent.name.rpartition("--")[2] if at_hub else root.name
    found = re.fullmatch(r"(LLM2Vec-.+-mntp)-.+", repo)
    if found and (root.parent / found[1] / CONFIG).is_file():
        return root.parent / found[1]
    if found:
        return _base_folder(root, f"McGill-NLP/{found[1]}", {}, hub)
    if (root / "llm2vec_config.json").is_file() and not repo.endswith("-mntp"):
        raise ModelError(
            f"{root}: an adapter of LLM2Vec, trained on {named} after a first adapter (-mntp) "
            f"that {CONFIG} does not name. Pass base_model=FOLDER of the first adapter, or "
            f"base_model={named!r} if there was none"
        )
    return None


def load_adapters(model: PreTrainedModel, found: AdaptedModel, *, merge: bool = False) -> None:
    """Put the adapters on the model, in order: the last one is kept unless `merge`.

    Raises ModelError if an adapter has a weight that the model does not take, or lacks one.
    """
    # transformers (5.23) replaces them by the adapter's, and save_pretrained would apply those.
    conversions: Any = getattr(model, "_weight_conversions", [])
    for folder in found.folders:
        _load(model, folder)
        if merge or folder != found.folders[-1]:
            merge_adapter(model)
            model._weight_conversions = conversions
    if not merge:
        model.peft_config[NAME].base_model_name_or_path = found.base
    # What save_pretrained compares: the base of an adapter alone is loaded from where it was.
    model.name_or_path = "" if found.beside else found.base


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "peft", f"a model with an adapter ({CONFIG})") from None
    return peft


def _load(model: PreTrainedModel, folder: Path) -> None:
    config, weights = _peft_config(folder), _read_weights(folder)
    _fit_rows(model, weights)
    try:
        with quiet_transformers():
            info = model.load_adapter(
                adapter_name=NAME,
                peft_config=config,
                adapter_state_dict=weights,
                ignore_mismatched_sizes=True,  # raised below, with the weight's name
            )
    except Exception as error:  # noqa: BLE001 - peft raises a dozen kinds, all mean "does not fit"
        raise ModelError(f"{folder}: {' '.join(str(error).split())[:300]}") from None
    model.eval()
    unknown = [key for key in sorted(info.unexpected_keys) if not HEADS.search(key)]
    for what, keys in (("matches nothing in", unknown), ("is missing for", info.missing_keys)):
        if keys:
            raise ModelError(
                f"{folder}: weight {min(keys)} {what} {type(model).__name__} "
                f"({len(keys)} such weights), so the adapter was made for another model"
            )
    for key, found, wanted in info.mismatched_keys:
        raise ModelError(
            f"{folder}: weight {key} has shape {tuple(found)}, the model expects {tuple(wanted)}"
        )


def _peft_config(folder: Path) -> Any:
    """The adapter's settings; ModelError for a kind or key that this peft does not know."""
    peft, raw = _peft(), read_adapter_config(folder)
    kind, version = raw["peft_type"], peft.__version__
    kinds = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    if kind not in kinds:
        raise ModelError(
            f"{folder / CONFIG}: peft_type {kind!r} is not known to peft {version}."
            f"{known(kind, [each.value for each in kinds])} Newer kinds: pip install -U peft"
        )
    if issubclass(kinds[kind], peft.PromptLearningConfig):
        raise ModelError(
            f"{folder / CONFIG}: peft_type {kind!r} adds virtual tokens, which an embedder has no "
            "place for; only adapters of weights load"
        )
    fields = kinds[kind].__dataclass_fields__
    for key, value in raw.items():
        if key not in fields and value not in (None, False, {}, [], ""):
            raise ModelError(
                f"{folder / CONFIG}: key {key!r} is not known to peft {version}, and without it "
                "vectors could differ. Try: pip install -U peft"
            )
    try:
        return kinds[kind](**{key: value for key, value in raw.items() if key in fields})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG}: {' '.join(str(error).split())[:300]}") from None


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    for path in (folder / name for name in WEIGHTS):
        if path.is_file():
            check_whole(path)
            try:
                safe = path.suffix == ".safetensors"
                found = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
            except (SafetensorError, UnpicklingError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ModelError(f"{path}: not the weights of an adapter ({reason})") from None
            for key, each in found.items():
                if each.is_floating_point() and not bool(each.isfinite().all()):
                    raise ModelError(f"{path}: weight {key} is not finite; the file is damaged")
            # As peft does and transformers (5.23) does not: DoRA's vectors have become modules.
            return {re.sub("magnitude_vector$", r"\g<0>.weight", k): v for k, v in found.items()}
    raise ModelError(f"{folder}: {CONFIG} without {' or '.join(WEIGHTS)}")


def _fit_rows(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """As many token embeddings as the adapter was saved with (added tokens)."""
    table: Any = model.get_input_embeddings()
    name = next(key for key, module in model.named_modules() if module is table)
    for key, value in weights.items():
        rows = len(value) if value.ndim == 2 else 0
        if re.search(rf"{re.escape(name)}(\.base_layer|\.modules_to_save)?\.weight$", key) and (
            rows != table.weight.shape[0]
        ):
            model.resize_token_embeddings(rows, mean_resizing=False)
            return


def merge_adapter(model: PreTrainedModel) -> None:
    """Add the adapter's weights to the model's own, and forget the adapter.

    Raises ModelError if its kind cannot be merged.
    """
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    adapted = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    }
    for name, module in adapted.items():
        if any(name.startswith(f"{outer}.") for outer in adapted):
            continue  # part of one that is replaced as a whole
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _merged(module))
    del model.peft_config
    model._hf_peft_config_loaded = False


def _merged(module: Any) -> torch.nn.Module:
    """The plain module that computes what an adapted one does."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    try:
        if isinstance(module, AuxiliaryTrainingWrapper):
            found: torch.nn.Module = module.unload_and_optionally_merge_module(
                merge=True, safe_merge=True, adapter_names=[NAME]
            )
            return found
        inside: Any = module
        # One is in another where experts have two tensors.
        while isinstance(inside, BaseTunerLayer):
            inside.merge(safe_merge=True, adapter_names=[NAME])
            inside = getattr(inside, "base_layer")  # noqa: B009 - peft does not declare it
        base: torch.nn.Module = inside
        return base
    except (AttributeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{type(module).__name__} cannot be merged ({reason}); pass merge_adapters=False"
        ) from None


def is_adapted(model: Any) -> bool:
    """Whether a model has an adapter of its own beside its weights."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def write_adapted(
    model: PreTrainedModel,
    folder: Path,
    target: Path | None = None,
    whole: PreTrainedModel | None = None,
) -> bool:
    """The adapter as transformers writes it; returns whether its base was written beside it.

    That is so unless the base can be loaded from where adapter_config.json says. `target` is
    the folder that will be replaced: an adapter in its base's own place would lose the base.
    `whole` is the language model whose body is `model`, written as the base with its head.
    """
    names = list(model.peft_config)
    if len(names) != 1 or names != list(model.active_adapters()):
        raise ModelError(f"one active adapter can be saved, this model has {names}; merge the rest")
    base = model.peft_config[names[0]].base_model_name_or_path
    beside = not base or base != model.name_or_path
    beside = beside or bool(
        target and target.exists() and Path(str(base)).exists() and target.samefile(str(base))
    )
    if beside:
        _bare(model if whole is None else whole, names[0]).save_pretrained(folder)
    model.save_pretrained(folder)
    if not base:
        # sentence-transformers reads the base's config.json from where this says.
        config = read_json(folder / CONFIG)
        write_json(
            folder / CONFIG,
            {**config, "base_model_name_or_path": str((target or folder).resolve())},
        )
    if getattr(model.peft_config[names[0]], "use_dora", False):
        save_file(_read_weights(folder), folder / WEIGHTS[0])  # names that transformers reads
    return beside


def _bare(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model without its adapter, sharing its weights."""
    with torch.device("meta"):
        bare = type(model)(model.config)
    wanted = set(bare.state_dict())
    state = {
        re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", key): value
        for key, value in model.state_dict().items()
        if f".{adapter}" not in key
    }
    bare.load_state_dict({key: state[key] for key in wanted}, assign=True)
    bare.tie_weights()
    return bare
