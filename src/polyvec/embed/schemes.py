"""Models that are not on this machine, by the scheme of their names: "openai:NAME", "http://...".

What loads them is in rooms that this one may not import, so it is imported when it is used.
"""

from collections.abc import Callable
from pathlib import Path

from polyvec.interfaces import TextEncoder
from polyvec.registry import Registry

Load = Callable[..., TextEncoder]
APIS = ("openai", "google", "amazon", "alibaba", "voyage", "cohere", "http", "https")
SCHEMES: Registry[Load] = Registry(
    "scheme", elsewhere=dict.fromkeys(APIS, "polyvec.services.loading:load_service")
)


def scheme_of(name_or_path: object) -> str | None:
    """The scheme of a name; None for a folder, a file or a hub id."""
    if not isinstance(name_or_path, str):
        return None
    scheme, colon, _ = name_or_path.partition(":")
    is_known = scheme in SCHEMES or scheme in SCHEMES.elsewhere
    return scheme if colon and is_known and not Path(name_or_path).exists() else None


def loader_of(name_or_path: object) -> Load | None:
    """What loads a name with a scheme; None for a model of this machine or the hub."""
    scheme = scheme_of(name_or_path)
    return None if scheme is None else SCHEMES.find(scheme, where=str(name_or_path))
