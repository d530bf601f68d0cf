"""Model folders in and out: sentence-transformers' and plain Hugging Face's.

Read: modules.json with Transformer, Pooling, Dense, Normalize, LayerNorm and
WeightedLayerPooling, in the legacy and the newer schema, or a bare checkpoint.
Written: the legacy schema plus `pooling_mode`, the one that sentence-transformers,
text-embeddings-inference, vLLM and llama.cpp all read (SILENT row 10).
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

from polyvec.data.files import atomic_folder
from polyvec.embed.backbone import Backbone
from polyvec.embed.pooling import POOLINGS
from polyvec.embed.pooling_modules import WeightedLayers
from polyvec.embed.projection import Calibration, Dense, LayerNorm, Normalize
from polyvec.embed.prompts import PromptTable
from polyvec.embed.quiet import quiet_transformers
from polyvec.embed.sources import model_folder
from polyvec.embed.tokens import NO_LIMIT, TextTokenizer
from polyvec.errors import (
    HalfPrecisionWarning,
    InputError,
    ModelError,
    TokenizerError,
    UndeclaredPoolingWarning,
    known,
)

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

# sentence-transformers' names of our poolings, as legacy flag and as `pooling_mode`.
POOLING_FLAGS = {
    "first": ("pooling_mode_cls_token", "cls"),
    "max": ("pooling_mode_max_tokens", "max"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len": ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "weighted_mean": ("pooling_mode_weightedmean_tokens", "weightedmean"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}
POLYVEC_FILE = "polyvec.json"
CALIBRATION_FILE = "polyvec_calibration.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class Parts:
    """What a model folder declares, beside the transformer itself."""

    pooling: tuple[str, ...] | None = None
    pool_prompt: bool = True
    layers: WeightedLayers | None = None
    projections: list[nn.Module] = field(default_factory=list)
    transformer: Path | None = None


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
    trust_remote_code: bool = False,
    **where: Any,
) -> "Embedder":
    """See Embedder.from_pretrained."""
    from polyvec.embed.embedder import Embedder

    _check_options(where)
    folder = model_folder(name_or_path, **where)
    parts = _read_parts(folder)
    root = parts.transformer or folder
    if not (root / "config.json").is_file():
        raise ModelError(f"{root}: no config.json, so this is no model folder")
    stored = _json(folder / "config_sentence_transformers.json", {})
    bert = _json(root / "sentence_bert_config.json", {})
    model = load_transformer(root, _check_dtype(dtype, device), trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(root, trust_remote_code=trust_remote_code)
    backbone = Backbone(
        model.to(device or best_device()), tokenizer.pad_token_id or 0, layout=layout
    )
    if pooling is not None:
        parts.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    embedder = Embedder(
        backbone,
        TextTokenizer(
            tokenizer,
            max_length=_max_length(root, bert, tokenizer, backbone, max_seq_length),
            lower_case=bool(bert.get("do_lower_case", False)),
        ),
        pooling=parts.pooling or _default_pooling(folder, model.config),
        pool_prompt=parts.pool_prompt,
        layers=parts.layers,
        projections=parts.projections,
        prompts=PromptTable(
            prompts if prompts is not None else stored.get("prompts") or {},
            default_prompt_name or stored.get("default_prompt_name"),
        ),
        similarity_fn_name=similarity_fn_name or stored.get("similarity_fn_name") or "cosine",
        truncate_dim=truncate_dim or stored.get("truncate_dim"),
        calibration=_read_calibration(folder),
    )
    _check_contract(folder, embedder)
    return embedder.to(backbone.device, backbone.model.dtype)


# ---- reading ------------------------------------------------------------------------------------


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
    modules = sorted(_json(folder / "modules.json"), key=lambda module: module["idx"])
    for place, module in enumerate(modules):
        kind, inside = _module_kind(folder, module), _inside(folder, module["path"])
        if (place == 0) != (kind == "Transformer"):
            raise ModelError(
                f"{folder}/modules.json: the first module, and no other, is a Transformer"
            )
        MODULES[kind](inside, parts)
    return parts


def _module_kind(folder: Path, module: dict) -> str:
    """The class name of a module; only sentence-transformers' own are run."""
    path = str(module["type"])
    kind = path.rpartition(".")[2]
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


def _read_transformer(folder: Path, parts: Parts) -> None:
    parts.transformer = folder


def _read_pooling(folder: Path, parts: Parts) -> None:
    """Poolings by legacy flags or `pooling_mode`; both may stand there if they agree."""
    path = folder / "config.json"
    config = _json(path)
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
    config = _json(folder / "config.json")
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
    norm = LayerNorm(_json(folder / "config.json")["dimension"])
    parts.projections.append(_with_weights(norm, folder))


def _read_normalize(folder: Path, parts: Parts) -> None:
    config = _json(folder / "config.json", {})
    if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ModelError(f"{folder}/config.json: token-wise Normalize is not supported")
    parts.projections.append(Normalize())


def _read_weighted_layers(folder: Path, parts: Parts) -> None:
    config = _json(folder / "config.json")
    layers = WeightedLayers(config["num_hidden_layers"], config["layer_start"])
    parts.layers = _with_weights(layers, folder)


MODULES: dict[str, Callable[[Path, Parts], None]] = {
    "Transformer": _read_transformer,
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


def load_transformer(
    root: Path, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
):
    """The transformer, without its heads; refuses weights that would be made up at random."""
    config = _config(root, trust_remote_code)
    if not any(root.glob("*.safetensors")):
        raise ModelError(f"{root}: holds no safetensors file, the only weights that are read")
    auto = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(
                root,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with the weight's name
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{root}: {' '.join(str(error).split())[:300]}") from None
    # A pooler is not used here, so its absence changes no vector.
    missing = [name for name in info["missing_keys"] if "pooler" not in name]
    if missing:
        raise ModelError(f"{root}: {len(missing)} weights are missing, the first {missing[0]}")
    for name, found, wanted in info["mismatched_keys"]:
        raise ModelError(
            f"{root}: weight {name} has shape {tuple(found)}, its config.json says {tuple(wanted)}"
        )
    return model.eval()


def _config(root: Path, trust_remote_code: bool):
    raw = _json(root / "config.json")
    if "auto_map" in raw and not trust_remote_code:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if raw.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(
                f"{root}: the model runs code of its own ({raw['auto_map']}); "
                "read that code, then pass trust_remote_code=True"
            )
    try:
        return AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{root}/config.json: {' '.join(str(error).split())[:300]}") from None


def _check_dtype(name: str, device: str | None) -> torch.dtype:
    """The dtype; warns where half precision is emulated, slower and coarser (SILENT row 17)."""
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known.{known(name, DTYPES)}")
    on_cpu = (device or best_device()).startswith("cpu")
    if name != "float32" and on_cpu and not _cpu_computes(name):
        warnings.warn(
            f"{name} is emulated on this processor: matrix products measured up to 80 times slower "
            "than float32, and vectors differ by up to 1e-2; leave dtype='float32'",
            HalfPrecisionWarning,
            stacklevel=4,
        )
    return DTYPES[name]


def _cpu_computes(name: str) -> bool:
    if name == "bfloat16":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.cpu._is_amx_fp16_supported())


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
    num_texts = _json(folder / POLYVEC_FILE)["calibration_texts"]
    return Calibration(load_file(path)["ranges"].numpy(), num_texts)


def _check_contract(folder: Path, embedder: "Embedder") -> None:
    """The tokenizer must still do what it did when the model was saved (SILENT row 7)."""
    stored = _json(folder / POLYVEC_FILE, {}).get("tokenizer_contract", {})
    now = embedder.text_tokenizer.contract.as_dict()
    for key in ("prefix", "suffix", "pad_id", "vocab_size"):
        if key in stored and stored[key] != now[key]:
            raise TokenizerError(
                f"{folder}: its tokenizer was saved with {key} {stored[key]}, "
                f"this one gives {now[key]}"
            )


def _json(path: Path, default: Any = None) -> Any:
    if not path.is_file():
        if default is not None:
            return default
        raise ModelError(f"{path}: missing")
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error})") from None


# ---- writing ------------------------------------------------------------------------------------


def write_embedder(embedder: "Embedder", path: Path) -> None:
    """See Embedder.save_pretrained."""
    with atomic_folder(path, replaceable="config.json") as folder:
        _write_transformer(embedder, folder)
        modules = [("", "Transformer")]
        if embedder.layers is not None:
            modules.append(_write_weighted_layers(embedder, folder, len(modules)))
        modules.append(_write_pooling(embedder, folder, len(modules)))
        for step in embedder.projections:
            modules.append(_write_projection(step, folder, len(modules)))
        types = [
            {
                "idx": i,
                "name": str(i),
                "path": place,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, (place, kind) in enumerate(modules)
        ]
        _write_json(folder / "modules.json", types)
        _write_settings(embedder, folder)


def _write_transformer(embedder: "Embedder", folder: Path) -> None:
    model = embedder.backbone.model
    if embedder.layers is not None:
        # sentence-transformers hands layers on only if the config asks for them.
        model.config.output_hidden_states = True
    with quiet_transformers():
        model.save_pretrained(folder)
        embedder.tokenizer.save_pretrained(folder)
    length = embedder.max_seq_length
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": length, "do_lower_case": embedder.text_tokenizer.lower_case},
    )
    # Newer readers take the length from here.
    tokenizer_config = _json(folder / "tokenizer_config.json")
    if length is not None:
        _write_json(
            folder / "tokenizer_config.json", {**tokenizer_config, "model_max_length": length}
        )


def _write_pooling(embedder: "Embedder", folder: Path, place: int) -> tuple[str, str]:
    modes = [POOLING_FLAGS[name][1] for name in embedder.pooling]
    config: dict[str, Any] = {"word_embedding_dimension": embedder.backbone.hidden_size}
    config |= {flag: name in embedder.pooling for name, (flag, _) in POOLING_FLAGS.items()}
    config |= {"include_prompt": embedder.pool_prompt}
    config |= {"pooling_mode": modes[0] if len(modes) == 1 else modes}
    inside = folder / f"{place}_Pooling"
    inside.mkdir()
    _write_json(inside / "config.json", config)
    return inside.name, "Pooling"


def _write_weighted_layers(embedder: "Embedder", folder: Path, place: int) -> tuple[str, str]:
    layers = embedder.layers
    assert layers is not None
    config = {
        "word_embedding_dimension": embedder.backbone.hidden_size,
        "layer_start": layers.layer_start,
        "num_hidden_layers": layers.num_hidden_layers,
    }
    return _write_module(layers, "WeightedLayerPooling", config, folder, place)


def _write_projection(step: nn.Module, folder: Path, place: int) -> tuple[str, str]:
    if isinstance(step, Dense):
        config = {
            "in_features": step.in_features,
            "out_features": step.out_features,
            "bias": step.linear.bias is not None,
            "activation_function": f"{type(step.activation).__module__}.{step.activation_name}",
        }
        if step.use_residual:
            config["use_residual"] = True
        return _write_module(step, "Dense", config, folder, place)
    if isinstance(step, LayerNorm):
        return _write_module(step, "LayerNorm", {"dimension": step.dimension}, folder, place)
    if isinstance(step, Normalize):
        (folder / f"{place}_Normalize").mkdir()
        return f"{place}_Normalize", "Normalize"
    raise ModelError(f"{type(step).__name__} has no form that sentence-transformers reads")


def _write_module(
    module: nn.Module, kind: str, config: dict, folder: Path, place: int
) -> tuple[str, str]:
    inside = folder / f"{place}_{kind}"
    inside.mkdir()
    _write_json(inside / "config.json", config)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, inside / "model.safetensors")
    return inside.name, kind


def _write_settings(embedder: "Embedder", folder: Path) -> None:
    from polyvec import __version__

    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "__version__": {"polyvec": __version__, "pytorch": torch.__version__},
        "prompts": embedder.prompts,
        "default_prompt_name": embedder.prompt_table.default_name,
        "similarity_fn_name": embedder.similarity_fn_name,
    }
    if embedder.truncate_dim is not None:
        settings["truncate_dim"] = embedder.truncate_dim
    _write_json(folder / "config_sentence_transformers.json", settings)
    own: dict[str, Any] = {
        "format": 1,
        "tokenizer_contract": embedder.text_tokenizer.contract.as_dict(),
    }
    if embedder.calibration is not None:
        own["calibration_texts"] = embedder.calibration.num_texts
        ranges = torch.from_numpy(embedder.calibration.ranges_2E)
        save_file({"ranges": ranges.contiguous()}, folder / CALIBRATION_FILE)
    _write_json(folder / POLYVEC_FILE, own)
    (folder / "README.md").write_text(_model_card(embedder), "utf-8")


def _model_card(embedder: "Embedder") -> str:
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, polyvec]",
        "---",
        "",
        f"An embedding model of {embedder.get_embedding_dimension()} dimensions, by polyvec.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {key} | `{json.dumps(value)}` |" for key, value in embedder.settings().items()),
        "",
    ]
    return "\n".join(lines)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def upload_embedder(
    embedder: "Embedder", repo_id: str, *, private: bool = False, **options: Any
) -> str:
    """See Embedder.push_to_hub."""
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_embedder(embedder, Path(folder) / "model")
        return str(api.upload_folder(repo_id=repo, folder_path=Path(folder) / "model", **options))
