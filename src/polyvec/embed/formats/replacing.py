"""Which files of an existing model folder a save replaces: those of the model, and no others."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from polyvec.embed.formats.checksums import FILE, stored_checksums
from polyvec.embed.formats.schema import listed_modules, read_json
from polyvec.errors import ModelError

# What a program reads of a model's folder and of its modules': left in place, it would mix with
# the new files. Checkpoints of a training run, a repository's .git and other files stay.
READ = re.compile(
    r"(model|pytorch_model|adapter_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?|"
    r"(config|modules|generation_config|adapter_config|router_config)\.json|README\.md|"
    r"polyvec(_checksums)?\.json|"
    r"(config_sentence_transformers|(sentence_[\w-]+|\w+tokenizer|wordembedding)_config)\.json|"
    r"(cnn_config|lstm_config)\.json|(polyvec_calibration|bottleneck)\.safetensors|"
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|"
    r"vocab\.txt|(tokenizer|spiece|sentencepiece\.bpe|spm)\.model|chat_template\.jinja"
)


# Folders of adapters, tables, word vectors and Routers have no config.json.
MARKERS = ("modules.json", "adapter_config.json")
# Beside one of these, a config.json that cannot be read is a model's, too.
WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model).*\.(safetensors|bin)(\.index\.json)?")
OF_MODELS = {"model_type", "architectures", "auto_map", "hidden_size"}


def model_marker(folder: Path) -> str:
    """The file by which a folder is known as a model's, for atomic_folder.

    Many programs have a config.json: it counts beside weights, or if it describes a model.
    """
    found = next((name for name in MARKERS if (folder / name).is_file()), None)
    return found or ("config.json" if _is_model(folder / "config.json") else MARKERS[0])


def _is_model(config: Path) -> bool:
    if not config.is_file():
        return False
    if any(WEIGHTS.fullmatch(each.name) for each in config.parent.iterdir()):
        return True
    try:
        return bool(OF_MODELS & set(read_json(config)))
    except (ModelError, TypeError):
        return False


def files_of_model(folder: Path) -> Callable[[str], bool]:
    """Whether a path in a folder is of the model there: read with it, or written by polyvec."""
    places, written = {"."}, {FILE}
    try:
        places |= {str(PurePosixPath(str(each["path"]))) for each in listed_modules(folder)}
        places |= set(map(str, read_json(folder / "router_config.json", {}).get("types", ())))
        written |= set(stored_checksums(folder))
        places |= {str(PurePosixPath(name).parent) for name in written}
    except (ModelError, TypeError):
        pass  # damaged: what it lists beyond is not known, and stays

    def is_own(name: str) -> bool:
        path = PurePosixPath(name)
        return name in written or (str(path.parent) in places and bool(READ.fullmatch(path.name)))

    return is_own
