"""Models given as a list of sentence-transformers' modules: read through a folder."""

from collections.abc import Mapping, Sequence

from torch import nn

from polyvec.errors import InputError
from polyvec.sentence_transformers.installed import attribute
from polyvec.sentence_transformers.views import View


def written(
    kind: str, modules: Sequence[nn.Module] | Mapping[str, nn.Module] | None, folder: str
) -> str:
    """The folder, with what sentence-transformers' class of this name writes of the modules."""
    if not modules:
        raise InputError(
            f"{kind} takes the name or folder of a model, or modules=, a list of "
            "sentence-transformers' modules"
        )
    modules = list(modules.values()) if isinstance(modules, Mapping) else modules
    if not isinstance(modules, list | tuple) or not all(
        isinstance(module, nn.Module | View) for module in modules
    ):
        raise InputError(f"modules is {str(modules)[:60]!r}, expected a list of modules")
    if any(isinstance(module, View) for module in modules):
        raise InputError("modules: parts of a polyvec model are not modules; copy.deepcopy it")
    theirs = attribute("sentence_transformers", kind)
    theirs(modules=list(modules), device="cpu").save_pretrained(folder, create_model_card=False)
    return folder
