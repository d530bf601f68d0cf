"""The transformer of a folder; what it declares is checked."""

import importlib
import warnings
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from polyvec.embed.backbone.fast import FAST
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.devices import best_device
from polyvec.embed.formats.families import KEY_MAPPING, Family, family_config
from polyvec.embed.formats.gguf.finding import is_gguf
from polyvec.embed.formats.gguf.loading import gguf_dtype, load_gguf_config, load_gguf_model
from polyvec.embed.formats.nomic import is_nomic, nomic_config
from polyvec.embed.formats.precision import keep_stored_dtype
from polyvec.embed.formats.refusals import check_quantised, no_model
from polyvec.embed.formats.schema import POLYVEC_FILE, read_json
from polyvec.embed.formats.unused import check_unused
from polyvec.embed.formats.weights import find_weights, pickle_refusal, tell_pickled
from polyvec.errors import (
    EncoderOnlyWarning,
    HalfPrecisionWarning,
    InputError,
    ModelError,
    PolyvecError,
    SettingsError,
    known,
)

# Encoder-decoders that sentence-transformers (6.2) loads whole: it pools the last states of all.
DECODER_POOLED = {"bart", "mbart", "plbart", "led", "mvp", "bigbird_pegasus", "nllb-moe", "fsmt"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def transformer_kind(needs: Set[str]) -> str:
    """Which class of a model the side outputs of a pooling need: "body", "lm" or "both" halves."""
    if needs & {"lm_head", "generate"}:
        return "lm"
    return "both" if "decoder_start" in needs else "body"


def load_transformer(
    root: Path,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    *,
    kind: str = "body",
    family: Family | None = None,
    config_options: Mapping[str, Any] | None = None,
) -> Any:
    """The transformer; ModelError if weights are missing, which transformers would draw at random.

    `kind`: "body" is the model without heads, of an encoder-decoder the encoder only; "both" is
    encoder and decoder; "lm" the language model with its head, "seq2seq" that of an
    encoder-decoder.
    """
    if is_gguf(root):
        return load_gguf_model(root, dtype, kind=kind)
    config = load_config(root, trust_remote_code, family, **(config_options or {}))
    check_quantised(config.to_dict(), root)
    files = find_weights(root)
    if not files:
        raise ModelError(no_model(root))
    pickled = files[0].suffix != ".safetensors"
    if pickled:
        tell_pickled(files[0])
    auto = _auto_class(config, kind)
    if kind == "body" and (config.is_encoder_decoder or _only_encoder(config)):
        _tell_decoder(root, config)
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(
                root,
                config=config,
                dtype=dtype,
                use_safetensors=not pickled,
                trust_remote_code=trust_remote_code and family is None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # raised below, with the weight's name
                # Adapters are not loaded here: transformers would lose the base's loading info.
                adapter_kwargs={"subfolder": "no-adapter"},
                **({"key_mapping": KEY_MAPPING} if family is not None else {}),
            )
    except PolyvecError:
        raise
    except Exception as error:  # noqa: BLE001 - code of the folder's own and a pickle raise anything
        if pickled:
            raise ModelError(pickle_refusal(files[0], error)) from None
        raise ModelError(
            f"{root}: {' '.join(str(error).split())[:300]}{odd_keys(config, root)}"
        ) from None
    # Poolers are not used here, so a missing one changes no vector.
    missing = [
        name for name in info["missing_keys"] if "pooler" not in name and not _computed(model, name)
    ]
    if missing:
        raise ModelError(
            f"{root}: {len(missing)} weights are missing that config.json asks for, the first "
            f"{missing[0]}" + _own_code(read_json(root / "config.json"), trust_remote_code)
        )
    for name, found, wanted in info["mismatched_keys"]:
        raise ModelError(
            f"{root}: weight {name} has shape {tuple(found)}, config.json expects {tuple(wanted)}"
        )
    keep_stored_dtype(model, files[0])
    check_unused(root, model, info["unexpected_keys"], config_options or {})
    if family is not None:
        model._weight_conversions = []  # saved under the names of transformers' class
    return model.eval()


def odd_keys(config: PretrainedConfig, root: Path) -> str:
    """The end of an error: keys of config.json whose values have another type than by default."""
    default = type(config)()
    odd = [
        f"{key} {value!r}"[:60]
        for key, value in read_json(root / "config.json", {}).items()
        if (usual := getattr(default, key, None)) is not None
        and type(value) is not type(usual)
        and not (isinstance(value, int | float) and isinstance(usual, float))
        and key not in ("dtype", "torch_dtype")
    ]
    return f"; see config.json{': ' if odd else ''}{', '.join(odd[:3])}"


def outline_transformer(root: Path, *, kind: str = "body", family: Family | None = None) -> Any:
    """The transformer without its weights, on the device "meta": shapes only, read in no time."""
    config = load_config(root, family=family)
    with torch.device("meta"), quiet_transformers():
        auto = _auto_class(config, kind)
        make = auto.from_config if hasattr(auto, "from_config") else auto._from_config
        return make(config).eval()


def _auto_class(config: Any, kind: str) -> Any:
    """What reads the part of a model that `kind` names."""
    if kind == "seq2seq":
        return AutoModelForSeq2SeqLM
    if kind == "lm":
        return AutoModelForMaskedLM if is_masked(config) else AutoModelForCausalLM
    if kind == "body" and (config.is_encoder_decoder or _only_encoder(config)):
        return _encoder_class(config)
    return AutoModel


def is_masked(config: PretrainedConfig) -> bool:
    """Whether the checkpoint is a masked language model, as its architecture or family says."""
    named = " ".join(config.architectures or ())
    if "ForMaskedLM" in named:
        return True
    other = any(name in named for name in ("ForCausalLM", "LMHeadModel", "ConditionalGeneration"))
    return not other and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _tell_decoder(root: Path, config: Any) -> None:
    """Warns of a sentence-transformers folder whose vectors are of the decoder there."""
    files = [each / name for each in (root, root.parent) for name in ("modules.json", POLYVEC_FILE)]
    # sentence-transformers refuses our own saves (writing.OWN_WAY), so nothing differs.
    theirs = {path.name for path in files if path.is_file()} == {"modules.json"}
    if theirs and config.model_type in DECODER_POOLED:
        warnings.warn(
            f"{root}: sentence-transformers pools the decoder's states of a {config.model_type} "
            "model, polyvec its encoder's; their vectors differ",
            EncoderOnlyWarning,
            stacklevel=2,
        )


def _computed(model: nn.Module, name: str) -> bool:
    """Whether a weight is computed and not stored: Marian's table of sines."""
    return "Sinusoidal" in type(model.get_submodule(name.rpartition(".")[0])).__name__


def _own_code(raw: Mapping[str, Any], trusted: bool) -> str:
    """What an error says of a folder whose maker's own code was not run; "" for others."""
    if trusted or "auto_map" not in raw:
        return ""
    return (
        f"; the folder names its own code ({raw['auto_map']}): read it, then pass "
        "trust_remote_code=True"
    )


def _only_encoder(config: Any) -> bool:
    """Whether the checkpoint has only the encoder of an encoder-decoder, as T5EncoderModel."""
    return any(name.endswith(("EncoderModel", "Encoder")) for name in config.architectures or ())


def _encoder_class(config: Any) -> Any:
    """The class that reads a checkpoint's encoder; AutoModel where only the whole model can.

    AutoModelForTextEncoding does not know all families: LongT5 and Switch have such a class, and
    checkpoints of one half (SONAR's M2M100Encoder) name theirs.
    """
    module = importlib.import_module(
        type(config).__module__.replace(".configuration_", ".modeling_")
    )
    named = [name for name in config.architectures or () if name.endswith("Encoder")]
    bodies = [name for name in vars(module) if name.endswith("EncoderModel")]
    for name in named + bodies:
        if hasattr(module, name):
            config.is_encoder_decoder = False  # T5Gemma's demands it, T5's sets it itself
            return getattr(module, name)
    known_ones = AutoModelForTextEncoding._model_mapping
    return AutoModelForTextEncoding if type(config) in known_ones else AutoModel


def check_num_layers(config: PretrainedConfig, count: int | None) -> None:
    """Raises SettingsError if a model of this config does not have so many layers."""
    total = config.get_text_config().num_hidden_layers
    if count is not None and not 1 <= count <= total:
        raise SettingsError(f"[embedder] num_layers {count} is not between 1 and {total}")


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Drop the layers after the first `count`; the final norm stays (L3Prune, arXiv:2410.14578).

    The model is then no longer that of its folder, and has no name.
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    # The list of layers has no common name across families; its length identifies it.
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                setattr(parent, name, child[:count])
                config.num_hidden_layers = count
                model.name_or_path = ""
                # transformers checks that there is a type for each layer.
                if getattr(config, "layer_types", None):
                    config.layer_types = config.layer_types[:count]
                return
    raise ModelError(f"{type(model).__name__} has no list of {total} layers")


def load_config(
    root: Path, trust_remote_code: bool = False, family: Family | None = None, **options: Any
) -> PretrainedConfig:
    """The folder's configuration; ModelError if it needs code that is not trusted.

    `options` replace settings of config.json.
    """
    if is_gguf(root):
        return load_gguf_config(root)
    raw = read_json(root / "config.json")
    _check_own_classes(raw, root)
    if family is not None:
        return family_config(family, root)
    if is_nomic(raw) and not trust_remote_code:
        return nomic_config(raw, root)
    if raw.get("position_embedding_type") == "alibi" and not trust_remote_code:
        # jina-embeddings-v2 under the name of BERT, whose class has learned positions only.
        raise ModelError(
            f"{root}: ALiBi positions under model_type {raw.get('model_type')!r} need its own code "
            f"({raw.get('auto_map', 'none is named')}); read that code, then pass "
            "trust_remote_code=True"
        )
    if "auto_map" in raw and not trust_remote_code:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if raw.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(
                f"{root}: the model needs its own code ({raw['auto_map']}); "
                "read that code, then pass trust_remote_code=True"
            )
    try:
        return AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # noqa: BLE001 - code of the folder's own raises anything
        raise ModelError(f"{root}/config.json: {' '.join(str(error).split())[:300]}") from None


def _check_own_classes(raw: Any, root: Path) -> None:
    """Raises ModelError where auto_map does not name the maker's classes as transformers reads it.

    Tokenizers have two names, of which one may be null.
    """
    table = raw.get("auto_map", {}) if isinstance(raw, dict) else None
    wrong = not isinstance(table, dict) or any(
        not isinstance(name, str) or "." not in name
        for key, name in table.items()
        if key != "AutoTokenizer"
    )
    if wrong:
        what = f"auto_map is {table!r}" if isinstance(raw, dict) else "no table of settings"
        raise ModelError(
            f"{root}/config.json: {what}, expected names such as "
            "{'AutoModel': 'modeling_x.XModel'}; correct it, or remove it if there is no such code"
        )


def stored_dtype(root: Path) -> str:
    """The dtype that config.json declares, else that of most weights; float32 if neither says."""
    if is_gguf(root):
        return gguf_dtype(root)
    config = read_json(root / "config.json", {})
    declared = config.get("dtype") or config.get("torch_dtype")
    if declared is None and (root / "model.safetensors").is_file():
        with safe_open(root / "model.safetensors", framework="pt") as file:
            kinds = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        declared = names.get(kinds.most_common(1)[0][0]) if kinds else None
    name = str(declared or "float32").removeprefix("torch.")
    return name if name in DTYPES else "float32"


def chosen_dtype(asked: str | None, declared: str | None, root: Path) -> str:
    """The dtype that was asked for, else that of the folder's settings, else float32."""
    name = asked or declared or "float32"
    return stored_dtype(root) if name == "auto" else name


def check_dtype(name: str, device: str | None) -> torch.dtype:
    """The dtype; warns where half precision is emulated (SILENT row 17)."""
    on_cpu = (device or best_device()).startswith("cpu")
    if name == FAST:
        return torch.float32 if on_cpu else torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known.{known(name, [*DTYPES, 'auto', FAST])}")
    if name != "float32" and on_cpu and not _cpu_computes(name):
        warnings.warn(
            f"{name} is emulated on this processor, 80 times slower than float32 when measured, "
            "and less precise; use dtype='float32'",
            HalfPrecisionWarning,
            stacklevel=6,
        )
    return DTYPES[name]


def _cpu_computes(name: str) -> bool:
    if name == "bfloat16":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.cpu._is_amx_fp16_supported())
