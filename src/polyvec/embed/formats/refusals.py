"""What a folder is that is no embedder: each kind is refused with a line that says what to do."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyvec.embed.formats.schema import listed_modules, read_json
from polyvec.errors import ModelError

RERANKER = re.compile(r"rerank|cross-?encoder", re.I)
TEXT_RANKING = re.compile(
    r"^pipeline_tag:\s*text-ranking|^\s*-\s*(text-ranking|cross-encoder|reranker)\s*$", re.M
)
# Models of images or sound; a text tower of its own name (clip_text_model) is not among them.
OTHER_MODELS = {
    **dict.fromkeys(
        ("clip", "chinese_clip", "altclip", "siglip", "siglip2", "align", "groupvit", "metaclip_2",
         "vision-text-dual-encoder", "blip", "flava", "bridgetower", "vilt"),
        "a model of images and texts (CLIP or its kin)",
    ),
    **dict.fromkeys(("vit", "dinov2", "swin", "convnext", "resnet", "beit"), "a model of images"),
    **dict.fromkeys(("whisper", "wav2vec2", "hubert", "clap", "wavlm"), "a model of sound"),
}  # fmt: skip
# What quantised checkpoints need: the module that is imported, and the package of pip.
QUANTISERS = {
    "gptq": ("gptqmodel", "gptqmodel optimum"),
    "awq": ("gptqmodel", "gptqmodel optimum"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes accelerate"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "torchao": ("torchao", "torchao"),
    "aqlm": ("aqlm", "aqlm"),
    "eetq": ("eetq", "kernels"),
    "fbgemm_fp8": ("fbgemm_gpu", "fbgemm-gpu"),
    "higgs": ("flute", "flute-kernel"),
    "quark": ("quark", "amd-quark"),
    "spqr": ("spqr_quant", "spqr_quant"),
    "vptq": ("vptq", "vptq"),
    "auto-round": ("auto_round", "auto-round"),
}


def check_embedder(folder: Path, name: str) -> None:
    """Raises ModelError for a cross-encoder, a reranker, or a model of other things than texts.

    `name` is what the user called it.
    """
    stored = read_json(folder / "config_sentence_transformers.json", {})
    listed = listed_modules(folder)
    types = [str(m.get("type", "")) for m in listed if isinstance(m, Mapping)]
    kinds = [each.rpartition(".")[2] for each in types]
    if _get(stored, "model_type") == "CrossEncoder" or any("cross_encoder" in t for t in types):
        raise ModelError(_cross_encoder(folder, "model_type CrossEncoder"))
    if "CLIPModel" in kinds:
        raise ModelError(f"{folder}: a model of images and texts (CLIP), {_USE_ST}")
    config = read_json(folder / "config.json", {})
    model_type = str(_get(config, "model_type"))
    if model_type in OTHER_MODELS:
        raise ModelError(
            f"{folder}: model_type {model_type!r} is {OTHER_MODELS[model_type]}, {_USE_ST}"
        )
    architectures = " ".join(map(str, _get(config, "architectures") or ()))
    if listed:
        return  # a list of modules says that this is an embedder, whatever the body came from
    if "ForSequenceClassification" in architectures or "ForMultipleChoice" in architectures:
        raise ModelError(_cross_encoder(folder, architectures))
    named = next((n for n in (Path(name).name, hub_id(folder)) if RERANKER.search(n)), None)
    if config and (named or _tagged(folder)):
        raise ModelError(_cross_encoder(folder, f"its name {named}" if named else "its README.md"))


_USE_ST = "not an embedder of texts; use sentence-transformers or transformers"


def _get(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, Mapping) else None


def _cross_encoder(folder: Path, evidence: str) -> str:
    return (
        f"{folder}: a cross-encoder, reranker or classifier ({evidence}), not an embedder: it "
        "scores pairs of texts; use sentence_transformers.CrossEncoder"
    )


def hub_id(folder: Path) -> str:
    """The repository's name, of a snapshot in the hub's cache."""
    holder = folder.parent.parent.name
    return holder.rpartition("--")[2] if holder.startswith("models--") else ""


def _tagged(folder: Path) -> bool:
    """Whether the card's metadata say that the model ranks texts."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    text = card.read_text("utf-8", errors="replace")
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return TEXT_RANKING.search(head) is not None


def check_quantised(config: Mapping[str, Any], root: Path) -> None:
    """Raises ModelError, naming the package, if quantised weights need one that is not here."""
    method = str(_get(_get(config, "quantization_config"), "quant_method") or "").lower()
    if not method and (root / "quantize_config.json").is_file():
        method = "gptq"
    if method not in QUANTISERS:
        return
    module, packages = QUANTISERS[method]
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ModelError(
            f"{root}: weights quantised with {method}, which needs a package that is not "
            f"installed: pip install {packages}. Or load the unquantised model"
        )


def no_model(folder: Path) -> str:
    """The line about a folder without config.json or without weights: what it is instead."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    has = {name.lower() for name in names}
    for test, line in _KINDS:
        said = line(folder, names) if test(has) else None
        if said:
            return f"{folder}: {said}"
    if "config.json" in has:
        return f"{folder}: config.json but no weights (no model.safetensors); {_AGAIN}"
    held = f"; it holds {', '.join(names[:5])}" if names else "; it is empty"
    return f"{folder}: not a model folder (no config.json){held}"


_AGAIN = "download the model again"


def _ends(*suffixes: str) -> Any:
    return lambda has: any(name.endswith(suffixes) for name in has)


def _training_run(folder: Path, names: list[str]) -> str | None:
    found = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if not found:
        return None
    last = max(found, key=lambda name: int(name.rpartition("-")[2]))
    return f"the folder of a training run, not a model; give one of its checkpoints, such as {last}"


def _tokenizer_only(folder: Path, names: list[str]) -> str | None:
    if "config.json" in names or "modules.json" in names:
        return None
    return (
        "holds a tokenizer, but no model (no config.json and no weights); give the model's folder"
    )


def _models_inside(folder: Path, names: list[str]) -> str | None:
    if {"config.json", "modules.json"} & set(names):
        return None
    found = [
        name
        for name in names
        if any((folder / name / f).is_file() for f in ("modules.json", "config.json"))
    ]
    return f"holds models, but is none itself; give one of them: {found[0]}" if found else None


def _cache(folder: Path, names: list[str]) -> str | None:
    found = sorted(path.name for path in (folder / "snapshots").iterdir())
    inside = f"snapshots/{found[0]}" if found else "a snapshot, of which there is none"
    return f"a repository in the hub's cache; give its id, or {inside}"


def _line(text: str) -> Any:
    return lambda folder, names: text


_EXPORT = "which is not read; give the original model's folder, with safetensors"
# In this order: the first that fits is said.
_KINDS: tuple[tuple[Any, Any], ...] = (
    (lambda has: {"snapshots", "refs"} <= has, _cache),
    (_ends(".gguf"), _line("settings without weights, and GGUF; give the path of the .gguf file")),
    (lambda has: any(re.fullmatch(r"checkpoint-\d+", name) for name in has), _training_run),
    (
        lambda has: bool({"trainer_state.json", "optimizer.pt", "training_args.bin"} & has),
        _line("a checkpoint of a training run without the model's weights; save the model"),
    ),
    (_ends(".onnx"), _line(f"an ONNX export, {_EXPORT}")),
    (lambda has: "onnx" in has, _line(f"an ONNX export only (onnx/), {_EXPORT}")),
    (
        lambda has: "openvino" in has or any(name.startswith("openvino_") for name in has),
        _line(f"an OpenVINO export, {_EXPORT}"),
    ),
    (
        lambda has: bool({"tf_model.h5", "saved_model.pb", "keras_metadata.pb"} & has)
        or any(name.endswith((".keras", ".h5")) or name.startswith("tf_model") for name in has),
        _line(
            "TensorFlow or Keras weights, which transformers 5 does not read; convert them with "
            "transformers 4 (from_tf=True) and save them as safetensors"
        ),
    ),
    (
        lambda has: any(name.startswith("flax_model") or name.endswith(".msgpack") for name in has),
        _line(
            "Flax weights, which transformers 5 does not read; convert them with transformers 4 "
            "(from_flax=True) and save them as safetensors"
        ),
    ),
    (_ends(".ckpt.index", ".ckpt", ".mlmodel", ".mlpackage", ".tflite"), _line(
        f"weights of another framework, {_EXPORT}"
    )),
    (
        lambda has: "config.json" not in has
        and any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in has),
        _line("weights but no config.json, which says what model they are; add the model's"),
    ),
    (lambda has: True, _models_inside),
    (
        lambda has: any(
            name in has for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
        ),
        _tokenizer_only,
    ),
)  # fmt: skip
