"""What a model is called in a report: by its run, its card, or its folder."""

import json
import re
from pathlib import Path

from polyvec.embed.formats.cards import FILE
from polyvec.embed.formats.refusals import hub_id

RUN = "recipe.json"  # beside the folder "model" that polyvec train writes
# Names of folders that say nothing of the model in them, or not enough.
COMMON = frozenset({"model", "hf", "final", "best", "output", "weights", "onnx"})
NUMBERED = re.compile(r"(checkpoint-)?\d+")


def model_title(name: str, scale: str | None = None) -> str:
    """A short name of a model for people, without a path.

    Of a recipe its name and scale. Of a folder, the first that is there: the recipe of its run and
    the scale, the name in its card's model-index, its name on the hub, and its own name, or its
    parent's where it is one such as "model".

    >>> model_title("smol", "nano"), model_title("org/some-model")
    ('smol, nano', 'org/some-model')
    """
    path = Path(name)
    if path.suffix == ".toml":
        name = path.stem
    if scale:
        return f"{name}, {scale}"
    if not path.exists():
        return name
    folder = path.resolve()
    return _of_run(folder) or _of_card(folder) or hub_id(folder) or _of_folder(folder)


def _of_run(folder: Path) -> str:
    """The system and scale of the run whose result the folder is; "" if there is none."""
    try:
        run = json.loads((folder.parent / RUN).read_text("utf-8"))
        name = str(run["recipe"]["system"]["name"])
        return f"{name}, {run['scale']}" if run.get("scale") else name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _of_card(folder: Path) -> str:
    """The name in the metadata of a model card, below model-index."""
    try:
        text = (folder / FILE).read_text("utf-8", errors="replace")
    except OSError:
        return ""
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = re.search(r"^model-index:\s*\n\s*- name: *([^\n]+)", head, re.MULTILINE)
    name = found[1].strip().strip("\"'") if found else ""
    # What sentence-transformers writes where nobody gave a name.
    return "" if name.startswith("SentenceTransformer based on") else name


def _of_folder(path: Path) -> str:
    """The first name, from the path up, that says something; of a checkpoint its run's before."""
    names: list[str] = []
    for name in [each.name for each in (path, *path.parents)]:
        if name in COMMON:
            continue
        names.insert(0, name)
        if not NUMBERED.fullmatch(name):
            break
    return "/".join(filter(None, names)) or path.name
