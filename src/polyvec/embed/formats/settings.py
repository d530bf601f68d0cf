"""Settings of a sentence-transformers folder that decide vectors: obeyed, or refused by name.

sentence_bert_config.json and its older names, and `requirements` and prompts of
config_sentence_transformers.json, as sentence-transformers 6.2 reads them (SILENT rows 13, 37).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvec.embed.formats.schema import read_json
from polyvec.errors import ModelError, SkippedSettingWarning, known

# The first that is not empty counts, in sentence-transformers' order.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
RENAMED = {
    "model_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
    # Names that sentence-transformers' own arguments have had.
    "tokenizer_kwargs": "processor_kwargs",
}
# How a model runs, not what it computes; places and credentials are the caller's.
HARMLESS_MODEL_KWARGS = {
    "torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage",
    "use_safetensors", "add_pooling_layer", "trust_remote_code", "token", "cache_dir",
    "revision", "code_revision", "local_files_only", "subfolder", "use_memory_efficient_attention",
    "unpad_inputs", "export", "provider", "use_flash_attn", "max_memory", "weights_only",
}  # fmt: skip
DTYPE_KEYS = ("dtype", "torch_dtype")  # of both, transformers takes the first
DTYPES = ("float32", "bfloat16", "float16", "auto")
HUB_KWARGS = {"trust_remote_code", "token", "cache_dir", "revision", "code_revision"}
HUB_KWARGS |= {"local_files_only", "subfolder"}
HARMLESS_PROCESSING = {
    "padding", "pad_to_multiple_of", "padding_side", "return_tensors", "return_token_type_ids",
    "return_attention_mask", "return_length", "verbose",
}  # fmt: skip
RUNS_ANYHOW = {"unpad_inputs", "backend", "cache_dir", "query_expansion"}
SIDES = ("query_length", "document_length", "query_expansion")  # of late interaction
TASKS = ("feature-extraction", "fill-mask")
OTHER_TASKS = {
    "sequence-classification": "a cross-encoder",
    "text-generation": "a reranker",
    "any-to-any": "a reranker",
    "retrieval": "a model of images and texts",
}


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """What sentence_bert_config.json and its kin say.

    max_length: most tokens; None if it is not set there.
    tokenizer, config: options of the tokenizer's and the config's from_pretrained.
    dtype: that of the weights, "auto" for what they are stored in; None if it is not set there.
    """

    max_length: int | None = None
    lower_case: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None


def read_transformer_settings(root: Path, *, late: bool = False) -> TransformerSettings:
    """The settings beside a transformer; ModelError names a key that is not known or not obeyed.

    A late-interaction model has lengths of its own for queries and documents.
    """
    found = ((root / name, read_json(root / name, {})) for name in TRANSFORMER_FILES)
    path, raw = next(((p, r) for p, r in found if r), (root / TRANSFORMER_FILES[0], {}))
    _check_table(raw, path)
    if not raw and (root / "sentence_mpnet_config.json").is_file():
        warnings.warn(
            f"{root / 'sentence_mpnet_config.json'} is not read, by sentence-transformers "
            "neither; rename it to sentence_bert_config.json if its settings are meant",
            SkippedSettingWarning,
            stacklevel=4,
        )
    raw = {RENAMED.get(key, key): value for key, value in raw.items()}
    if late:
        raw = {key: value for key, value in raw.items() if key not in SIDES}
        if raw.get("processing_kwargs"):
            raise ModelError(f"{path}: processing_kwargs is not supported in late interaction")
    for key in raw:
        if key not in READERS and key not in RUNS_ANYHOW:
            raise ModelError(f"{path}: key {key!r} is not known.{known(key, READERS)}")
    settings: dict[str, Any] = {}
    for key, read in READERS.items():  # in this order: later lengths replace earlier ones
        if raw.get(key) is not None:
            settings |= read(raw[key], path)
    return TransformerSettings(**settings)


def _length(value: Any, path: Path, key: str = "max_seq_length") -> dict[str, Any]:
    if type(value) is not int or value < 1:
        raise ModelError(f"{path}: {key} {value!r} is not a positive number of tokens")
    return {"max_length": value}


def _lower_case(value: Any, path: Path) -> dict[str, Any]:
    if type(value) is not bool:
        raise ModelError(f"{path}: do_lower_case {value!r} is neither true nor false")
    return {"lower_case": value}


def _processor(value: Any, path: Path) -> dict[str, Any]:
    options = _without_hub(value, path)
    length = options.pop("model_max_length", None)
    return {
        "tokenizer": options,
        **(_length(length, path, "model_max_length") if length is not None else {}),
    }


def _config(value: Any, path: Path) -> dict[str, Any]:
    options = _without_hub(value, path)
    return {"config": options, **_dtype(options, "config_kwargs", path)}


def _dtype(options: Mapping[str, Any], where: str, path: Path) -> dict[str, Any]:
    """The dtype among the options of a from_pretrained."""
    found = next((options[key] for key in DTYPE_KEYS if options.get(key) is not None), None)
    if found is None:
        return {}
    name = found.removeprefix("torch.") if isinstance(found, str) else found
    if name not in DTYPES:
        raise ModelError(f"{path}: {where} dtype {found!r} is not known.{known(str(name), DTYPES)}")
    return {"dtype": name}


def _model(value: Any, path: Path) -> dict[str, Any]:
    _check_table(value, path)
    for key in value:
        if key not in HARMLESS_MODEL_KWARGS:
            raise ModelError(
                f"{path}: model_kwargs {key!r} is not supported."
                + known(key, HARMLESS_MODEL_KWARGS)
            )
    return _dtype(value, "model_kwargs", path)


def _processing(value: Any, path: Path) -> dict[str, Any]:
    """Options of each call of the tokenizer; sentence-transformers lets them win."""
    _check_table(value, path)
    found: dict[str, Any] = {}
    for part in ("common", "text"):
        options = value.get(part) or {}
        _check_table(options, path)
        for key, option in options.items():
            harmless = key in HARMLESS_PROCESSING or option is None
            harmless |= key == "truncation" and option not in (False, "do_not_truncate")
            harmless |= key == "add_special_tokens" and option is True
            if key == "max_length" and option is not None:
                found |= _length(option, path, key)
            elif not harmless:
                raise ModelError(f"{path}: processing_kwargs {key}={option!r} is not supported")
    return found


def _modalities(value: Any, path: Path) -> dict[str, Any]:
    _check_table(value, path)
    if "message" in value:
        raise ModelError(
            f"{path}: modality_config 'message' puts texts into a chat template, which is not "
            "supported; use sentence-transformers"
        )
    if "text" not in value:
        raise ModelError(f"{path}: modality_config has {sorted(value)}: the model reads no texts")
    _check_table(value["text"], path)
    method, output = (value["text"].get(k) for k in ("method", "method_output_name"))
    if method != "forward" or output not in ("last_hidden_state", "logits"):
        raise ModelError(
            f"{path}: modality_config text: method {method!r} with output {output!r} is not "
            "supported. Known: 'forward' with 'last_hidden_state'."
        )
    return {}


def _task(value: Any, path: Path) -> dict[str, Any]:
    if value in OTHER_TASKS:
        raise ModelError(
            f"{path}: transformer_task {value!r}: this is {OTHER_TASKS[value]}, not an embedder"
        )
    if value not in TASKS:
        raise ModelError(
            f"{path}: transformer_task {value!r} is not known.{known(str(value), TASKS)}"
        )
    return {}


def _output_name(value: Any, path: Path) -> dict[str, Any]:
    if value != "token_embeddings":
        raise ModelError(
            f"{path}: module_output_name {value!r} is not supported. Known: 'token_embeddings'."
        )
    return {}


def _side_length(value: Any, path: Path) -> dict[str, Any]:
    raise ModelError(
        f"{path}: query_length and document_length ({value!r}) are not supported for an embedder "
        "of one vector a text; set max_seq_length"
    )


def _other_tokenizer(value: Any, path: Path) -> dict[str, Any]:
    raise ModelError(
        f"{path}: tokenizer_name_or_path {value!r} is another model's; copy its tokenizer files "
        "into the folder and remove the key"
    )


READERS = {
    "max_seq_length": _length,
    "processor_kwargs": _processor,
    "processing_kwargs": _processing,
    "do_lower_case": _lower_case,
    "config_kwargs": _config,
    "model_kwargs": _model,
    "modality_config": _modalities,
    "transformer_task": _task,
    "module_output_name": _output_name,
    "query_length": _side_length,
    "document_length": _side_length,
    "tokenizer_name_or_path": _other_tokenizer,
}


def _check_table(value: Any, path: Path) -> None:
    if not isinstance(value, Mapping):
        raise ModelError(f"{path}: expected a table, got {type(value).__name__}")


def _without_hub(value: Any, path: Path) -> dict[str, Any]:
    _check_table(value, path)
    return {key: each for key, each in value.items() if key not in HUB_KWARGS}


def check_requirements(stored: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError, naming all, for package versions that the folder needs and are not here.

    A requirement that cannot be read is a warning, as in sentence-transformers.
    """
    required = stored.get("requirements")
    if not required:
        return
    if not isinstance(required, Mapping):
        _skipped(f"{path}: requirements is no table of version specifiers; ignored")
        return
    unmet, installs = [], []
    for name, value in required.items():
        package = "torch" if name == "pytorch" else str(name)
        specifier = value.get("specifier", "") if isinstance(value, Mapping) else value
        reason = value.get("reason", "") if isinstance(value, Mapping) else ""
        try:
            found = _unmet_version(package, specifier)
        except ValueError as error:
            _skipped(f"{path}: requirement {package} {specifier!r} cannot be read ({error})")
            continue
        if found is not None:
            unmet.append(f"{package}{specifier} ({found}{f'; {reason}' if reason else ''})")
            installs += [f"'{package}{specifier}'"] if package != "python" else []
    if unmet:
        pip = f"; install: pip install -U {' '.join(installs)}" if installs else ""
        raise ModelError(f"{path}: the model requires {', '.join(unmet)}{pip}")


def _unmet_version(package: str, specifier: Any) -> str | None:
    """What is installed instead of the required version; None if that is met."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    if not isinstance(specifier, str):
        raise ValueError("expected a string")
    wanted = SpecifierSet(specifier, prereleases=True)
    try:
        found = platform.python_version() if package == "python" else version(package)
    except PackageNotFoundError:
        return "not installed"
    return None if wanted.contains(Version(found)) else f"{found} is installed"


def _skipped(message: str) -> None:
    warnings.warn(message, SkippedSettingWarning, stacklevel=5)


def excludes_instruction(name_or_path: str | Path, root: Path) -> bool:
    """Whether this is INSTRUCTOR, whose folders do not say that prompts are not pooled.

    sentence-transformers knows it by the three ids; copies are known by their name, too.
    """
    name = Path(name_or_path).name.lower()
    if not name.startswith(("instructor-", "hkunlp--instructor-", "hkunlp_instructor-")) and not (
        root.parent.parent.name.lower().startswith("models--hkunlp--instructor-")
    ):
        return False
    return bool(read_json(root / "config.json", {}).get("model_type") == "t5")
