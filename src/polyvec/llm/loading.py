"""A language model by its name: a server's URL, a folder, a hub id or a GGUF file."""

from typing import Any

from polyvec.llm.language_model import LanguageModel

DEFAULT_LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def load_language_model(name: str, **options: Any) -> LanguageModel:
    """A server by its URL ("http://host/v1#model"), else a local model by folder, id or GGUF file.

    Options are those of `ServerLanguageModel` or `LocalLanguageModel.load`.
    """
    if name.startswith(("http://", "https://")):
        from polyvec.llm.server import ServerLanguageModel

        url, _, model = name.partition("#")
        return ServerLanguageModel(url, model or None, **options)
    from polyvec.llm.local import LocalLanguageModel

    return LocalLanguageModel.load(name, **options)
