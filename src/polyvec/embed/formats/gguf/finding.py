"""Which file of a folder is a model in GGUF."""

from pathlib import Path

from polyvec.embed.formats.gguf.file import MAGIC, PART, parts_of
from polyvec.errors import ModelError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def is_gguf(path: Path) -> bool:
    """Whether this is a file, no folder, in GGUF; by its bytes if it has another suffix."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:  # Ollama names its files by their hash
        return file.read(len(MAGIC)) == MAGIC


def gguf_inside(folder: Path) -> Path | None:
    """The GGUF file of a folder without other weights; None if there is none.

    Raises ModelError if there are several, of which none is meant more than the others.
    """
    found = sorted(
        path
        for path in folder.glob("*")
        if path.suffix.lower() == ".gguf" and "mmproj" not in path.name.lower()
    )
    other = any(next(folder.glob(pattern), None) for pattern in WEIGHTS)
    if not found or other or (folder / "modules.json").is_file():
        return None
    # Of a split model one part, which need not be the first: it may be missing.
    models = {(PART.sub(r"\1 \3", path.name)): path for path in reversed(found)}
    found = sorted(models.values())
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise ModelError(
            f"{folder}: {len(found)} models in GGUF ({names}); give one of them, such as {found[0]}"
        )
    return parts_of(found[0])[0]
