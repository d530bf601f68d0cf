"""A model behind an API by its name."""

import inspect
from typing import Any

from polyvec.errors import SettingsError, known
from polyvec.services.embedder import ServiceEmbedder
from polyvec.services.providers import ANY_SERVER, PROVIDERS


def load_service(name: str, **options: Any) -> ServiceEmbedder:
    """The model of "openai:NAME" or another provider, or of "http://host:port/v1#NAME".

    Options are those of ServiceEmbedder; others that are None or False are left out. Nothing is
    sent. Raises SettingsError for an unknown provider or option, or if there is no key.
    """
    takes = [each for each in inspect.signature(ServiceEmbedder).parameters if each != "self"][2:]
    options = {key: value for key, value in options.items() if key in takes or value}
    for key in options:
        if key not in takes:
            raise SettingsError(
                f"{name}: option {key!r} is not for a model behind an API.{known(key, takes)}"
            )
    scheme, _, model = name.partition(":")
    if scheme in PROVIDERS:
        if not model.strip():
            raise SettingsError(f"{name!r} names no model; write {scheme}:NAME")
        return ServiceEmbedder(PROVIDERS[scheme], model.strip(), **options)
    if scheme not in ("http", "https"):
        raise SettingsError(f"provider {scheme!r} is not known.{known(scheme, PROVIDERS)}")
    url, _, model = name.partition("#")
    if not model:
        raise SettingsError(f"{name}: which of the server's models? Write {url}#NAME")
    return ServiceEmbedder(ANY_SERVER, model, base_url=url, **options)
