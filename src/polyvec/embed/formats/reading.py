"""An embedder from a folder or hub id."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.prepending import TokenPrepending
from polyvec.embed.formats.schema import (
    CALIBRATION_FILE,
    OWN_WAY,
    POLYVEC_FILE,
    POOLING_FLAGS,
    read_json,
)
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.static import read_static
from polyvec.embed.formats.transformer import (
    best_device,
    check_dtype,
    load_tokenizer,
    load_transformer,
    transformer_kind,
)
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import NO_LIMIT, TextTokenizer, read_contract
from polyvec.embed.parts import PROJECTIONS, make
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.modules import POOLING_MODULES, WeightedLayers
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.embed.projection.quantization import Calibration
from polyvec.embed.variants import TextVariants
from polyvec.errors import (
    InputError,
    ModelError,
    TokenizerError,
    UndeclaredPoolingWarning,
    UntrainedAttentionWarning,
    known,
)

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder


@dataclass(slots=True)
class Parts:
    """What a model folder declares, beside the transformer itself."""

    pooling: tuple[str, ...] | None = None
    pooling_module: PoolingModule | None = None
    pool_prompt: bool = True
    layers: WeightedLayers | None = None
    projections: list[nn.Module] = field(default_factory=list)
    transformer: Path | None = None
    static: Path | None = None


def read_embedder(
    name_or_path: str | Path,
    *,
    device: str | None = None,
    dtype: str = "float32",
    max_seq_length: int | None = None,
    pooling: str | tuple[str, ...] | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    similarity_fn_name: str | None = None,
    truncate_dim: int | None = None,
    layout: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
    **where: Any,
) -> "Embedder":
    """See Embedder.from_pretrained."""
    from polyvec.embed.embedder import Embedder

    _check_options(where)
    folder = model_folder(name_or_path, **where)
    parts = _read_parts(folder)
    root = parts.transformer or folder
    if not (root / "config.json").is_file() and parts.static is None:
        raise ModelError(f"{root}: no config.json, so this is no model folder")
    stored = read_json(folder / "config_sentence_transformers.json", {})
    bert = read_json(root / "sentence_bert_config.json", {})
    own = read_json(folder / POLYVEC_FILE, {})
    if pooling is not None:
        parts.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        parts.pooling_module = None
    kind = transformer_kind(_needs(parts, own))
    model: Any
    tokenizer: Any
    if parts.static is not None:
        model, tokenizer = read_static(parts.static)
        model = model.to(check_dtype(dtype, device))
    else:
        tokenizer = load_tokenizer(root, trust_remote_code)
        read_contract(tokenizer, None)  # a doubled EOS is told before any weight loads
        model = load_transformer(root, check_dtype(dtype, device), trust_remote_code, kind=kind)
    model = model.to(device or best_device())
    backbone = Backbone(
        model.base_model if kind == "lm" else model,
        tokenizer.pad_token_id or 0,
        attention=_attention(folder, model, own, attention),
        layout=layout,
        lm=model if kind == "lm" else None,
        prepending=TokenPrepending(**own["prepending"]) if "prepending" in own else None,
    )
    embedder = Embedder(
        backbone,
        TextTokenizer(
            tokenizer,
            max_length=_max_length(root, bert, tokenizer, backbone, max_seq_length),
            lower_case=bool(bert.get("do_lower_case", False)),
        ),
        pooling=parts.pooling_module or parts.pooling or _default_pooling(folder, model.config),
        pool_prompt=parts.pool_prompt,
        layers=parts.layers,
        projections=parts.projections,
        prompts=PromptTable(
            prompts if prompts is not None else stored.get("prompts") or {},
            default_prompt_name or stored.get("default_prompt_name"),
        ),
        template=Template.from_dict(own["template"]) if "template" in own else None,
        variants=TextVariants(backbone, tokenizer, **own["variants"])
        if "variants" in own
        else None,
        similarity_fn_name=similarity_fn_name or stored.get("similarity_fn_name") or "cosine",
        truncate_dim=truncate_dim or stored.get("truncate_dim"),
        calibration=_read_calibration(folder),
    )
    _check_contract(folder, embedder)
    return embedder.to(backbone.device, backbone.model.dtype)


def _needs(parts: Parts, own: Mapping[str, Any]) -> frozenset[str]:
    module = parts.pooling_module
    needs = frozenset() if module is None else module.needs
    return needs | {"lm_head"} if "variants" in own else needs


def _attention(
    folder: Path, model: Any, own: Mapping[str, Any], asked: str | None
) -> AttentionSpec:
    """What was asked for, else what the folder says.

    Warns of an untrained conversion: a causal checkpoint whose states never looked ahead
    gives worse vectors when they suddenly do (BehnamGhader et al. 2024, arXiv:2404.05961).
    """
    blocked = tuple((int(a), int(b)) for a, b in own.get("blocked", ()))
    stored = AttentionSpec.parse(own.get("attention", "native"), blocked)
    if asked is None:
        return stored
    spec = AttentionSpec.parse(asked, blocked)
    causal = getattr(model.config.get_text_config(), "is_causal", True) is not False
    decoder = any(getattr(module, "is_causal", False) for module in model.modules())
    if decoder and causal and spec not in (stored, AttentionSpec("causal"), AttentionSpec()):
        warnings.warn(
            f"{folder} was trained causal and is made {asked!r} without training: expect worse "
            "vectors until it has learned to use what it now sees",
            UntrainedAttentionWarning,
            stacklevel=4,
        )
    return spec


def _check_options(where: dict) -> None:
    allowed = ("revision", "cache_folder", "local_files_only", "token")
    for name in where:
        if name not in allowed:
            options = [*allowed, *(read_embedder.__kwdefaults__ or {})]
            raise InputError(
                f"from_pretrained: option {name!r} is not known.{known(name, options)}"
            )


def _read_parts(folder: Path) -> Parts:
    parts = Parts()
    if not (folder / "modules.json").is_file():
        return parts
    listed = read_json(folder / "modules.json")
    keys = {"idx", "path", "type"}
    if not isinstance(listed, list) or not all(
        isinstance(m, dict) and keys <= set(m) for m in listed
    ):
        raise ModelError(f"{folder}/modules.json: not a list of modules with idx, path and type")
    modules = sorted(listed, key=lambda module: module["idx"])
    for place, module in enumerate(modules):
        kind, inside = _module_kind(folder, module), _inside(folder, module["path"])
        if kind.startswith("polyvec."):
            _read_own(kind, inside, parts)
            continue
        if (place == 0) != (kind in ("Transformer", "StaticEmbedding")):
            raise ModelError(
                f"{folder}/modules.json: the first module, and no other, is a Transformer "
                "or a StaticEmbedding"
            )
        try:
            MODULES[kind](inside, parts)
        except KeyError as error:
            raise ModelError(f"{inside}/config.json: key {error} is missing") from None
    return parts


def _module_kind(folder: Path, module: dict) -> str:
    """The class name of a module; only sentence-transformers' own are run."""
    path = str(module["type"])
    kind = path.rpartition(".")[2]
    if path.startswith("polyvec."):
        return path
    if not path.startswith("sentence_transformers."):
        raise ModelError(f"{folder}/modules.json: {path} is the model's own code, which is not run")
    if kind not in MODULES:
        raise ModelError(
            f"{folder}/modules.json: module {kind!r} is not supported.{known(kind, MODULES)}"
        )
    return kind


def _inside(folder: Path, path: str) -> Path:
    """A module's folder; modules.json may not point out of its own."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ModelError(f"{folder}/modules.json: path {path!r} leaves the model's folder")
    return folder / path


def _read_own(kind: str, folder: Path, parts: Parts) -> None:
    """A part of ours by its name in the tables; nothing else is looked up, let alone run."""
    name = kind.removeprefix("polyvec.")
    if kind == OWN_WAY:
        return
    if name not in POOLING_MODULES and name not in PROJECTIONS:
        names = [*POOLING_MODULES, *PROJECTIONS]
        raise ModelError(f"{folder}: part {name!r} is not known.{known(name, names)}")
    table: Mapping[str, Any] = POOLING_MODULES if name in POOLING_MODULES else PROJECTIONS
    settings = read_json(folder / "config.json", {})
    part = make(table[name], {}, settings, f"{folder}/config.json")
    if part.state_dict():
        _with_weights(part, folder)
    if name in POOLING_MODULES:
        parts.pooling_module = part
    else:
        parts.projections.append(part)


def _read_transformer(folder: Path, parts: Parts) -> None:
    parts.transformer = folder


def _read_static(folder: Path, parts: Parts) -> None:
    """A table is its own mean: no pooling module follows."""
    parts.static, parts.pooling = folder, ("mean",)


def _read_pooling(folder: Path, parts: Parts) -> None:
    """Poolings by legacy flags or `pooling_mode`; both may stand there if they agree."""
    path = folder / "config.json"
    config = read_json(path)
    flags = {flag: name for name, (flag, _) in POOLING_FLAGS.items()}
    modes = {mode: name for name, (_, mode) in POOLING_FLAGS.items()}
    other = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
    for key in config:
        if key not in flags and key not in other:
            raise ModelError(f"{path}: key {key!r} is not known.{known(key, [*flags, *other])}")
    by_flag = tuple(name for flag, name in flags.items() if config.get(flag))
    mode = config.get("pooling_mode", ())
    mode = (mode,) if isinstance(mode, str) else tuple(mode)
    for name in mode:
        if name not in modes:
            raise ModelError(f"{path}: pooling_mode {name!r} is not known.{known(name, modes)}")
    by_mode = tuple(modes[name] for name in mode)
    if by_flag and by_mode and sorted(by_flag) != sorted(by_mode):
        raise ModelError(f"{path}: its flags say {by_flag}, its pooling_mode says {by_mode}")
    parts.pooling = by_mode or by_flag
    if not parts.pooling:
        raise ModelError(f"{path}: declares no pooling at all. Known: {', '.join(POOLINGS)}.")
    parts.pool_prompt = bool(config.get("include_prompt", True))


def _read_dense(folder: Path, parts: Parts) -> None:
    config = read_json(folder / "config.json")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(f"{folder}/config.json: {key} {config[key]!r} is not supported")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not name.startswith("torch.nn."):
        raise ModelError(
            f"{folder}/config.json: activation {name} is the model's own code, not run"
        )
    dense = Dense(
        config["in_features"],
        config["out_features"],
        bias=config.get("bias", True),
        activation=name.rpartition(".")[2],
        use_residual=config.get("use_residual", False),
    )
    parts.projections.append(_with_weights(dense, folder))


def _read_layer_norm(folder: Path, parts: Parts) -> None:
    norm = LayerNorm(read_json(folder / "config.json")["dimension"])
    parts.projections.append(_with_weights(norm, folder))


def _read_normalize(folder: Path, parts: Parts) -> None:
    config = read_json(folder / "config.json", {})
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ModelError(f"{folder}/config.json: token-wise Normalize is not supported")
    parts.projections.append(Normalize())


def _read_weighted_layers(folder: Path, parts: Parts) -> None:
    config = read_json(folder / "config.json")
    layers = WeightedLayers(config["num_hidden_layers"], config["layer_start"])
    parts.layers = _with_weights(layers, folder)


MODULES: dict[str, Callable[[Path, Parts], None]] = {
    "Transformer": _read_transformer,
    "StaticEmbedding": _read_static,
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
    "WeightedLayerPooling": _read_weighted_layers,
}


def _with_weights(module: Any, folder: Path) -> Any:
    path = folder / "model.safetensors"
    if not path.is_file():
        found = (
            "; pytorch_model.bin can run code and is not read, convert it"
            if any(folder.glob("*.bin"))
            else ""
        )
        raise ModelError(f"{path}: missing{found}")
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: does not fit its config.json: {reason}") from None
    return module


def _default_pooling(folder: Path, config: Any) -> str:
    """For bare checkpoints: last token for causal models, else mean, and say so."""
    architectures = config.architectures or [""]
    causal = architectures[0].endswith("ForCausalLM") and getattr(config, "is_causal", True)
    name = "last" if causal else "mean"
    warnings.warn(
        f"{folder} does not say how its states are pooled (no modules.json): {name!r} is taken; "
        "pass pooling= to choose",
        UndeclaredPoolingWarning,
        stacklevel=4,
    )
    return name


def _max_length(
    root: Path, bert: dict, tokenizer, backbone: Backbone, asked: int | None
) -> int | None:
    """The declared length, capped by the position table, beyond which a model has no states."""
    declared = asked or bert.get("max_seq_length") or tokenizer.model_max_length
    declared = None if declared is None or declared > NO_LIMIT else int(declared)
    limit = backbone.max_positions
    if declared is None or limit is None or declared <= limit:
        return declared or limit
    if asked:
        raise InputError(f"max_seq_length {asked} is beyond the model's {limit} positions")
    warnings.warn(
        f"{root}: max_seq_length {declared} is cut to its {limit} positions", stacklevel=4
    )
    return limit


def _read_calibration(folder: Path) -> Calibration | None:
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return None
    num_texts = read_json(folder / POLYVEC_FILE).get("calibration_texts", 0)
    return Calibration(load_file(path)["ranges"].numpy(), num_texts)


def _check_contract(folder: Path, embedder: "Embedder") -> None:
    """The tokenizer must still do what it did when the model was saved (SILENT row 7)."""
    stored = read_json(folder / POLYVEC_FILE, {}).get("tokenizer_contract", {})
    now = embedder.text_tokenizer.contract.as_dict()
    for key in ("prefix", "suffix", "pad_id", "vocab_size"):
        if key in stored and stored[key] != now[key]:
            raise TokenizerError(
                f"{folder}: its tokenizer was saved with {key} {stored[key]}, "
                f"this one gives {now[key]}"
            )
