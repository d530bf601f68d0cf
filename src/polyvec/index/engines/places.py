"""Where an engine is, by URL, without secrets; and calls over a network that are tried again."""

import random
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from polyvec.errors import DataError, InputError, known
from polyvec.index.engines.interface import Rows

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z_][\w-]{0,62}", re.ASCII)  # of a collection or a table, in every engine
SECRETS = ("password", "sslpassword", "passwd", "api_key", "api-key", "apikey", "token")
OPEN_S = 3.0  # tries to reach a server end after so many seconds
WRITE_S = 60.0  # and tries to write, where it answers that it is busy
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0


@dataclass(frozen=True, slots=True)
class Place:
    """A collection of a server, or of files on this machine (`host` is "")."""

    url: str
    scheme: str
    user: str
    host: str
    port: int | None
    path: str  # without the name
    name: str
    options: Mapping[str, str]

    @classmethod
    def read(cls, where: str, variable: str, *, example: str, named_by: str = "#") -> "Place":
        """The parts of a URL whose collection is its fragment, or the end of its path for "/".

        Raises InputError for a URL that holds a password, which belongs into the environment
        `variable`, and for a name that is missing or not of letters, digits, _ and -.
        """
        url = shown(where)
        try:
            parts = urlsplit(where)
            port, password = parts.port, parts.password
        except ValueError:
            raise InputError(f"{url}: not a URL; expected {example}") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if password or any(name.lower() in SECRETS for name in options):
            raise InputError(
                f"{url}: a password in a URL is kept by shells and logs; put it into the "
                f"environment variable {variable}"
            )
        path, name = parts.path, parts.fragment
        if named_by == "/":
            path, _, name = parts.path.rstrip("/").rpartition("/")
        if not NAME.fullmatch(unquote(name)):
            raise InputError(
                f"{url}: {unquote(name)!r} is not a name of a collection (a letter or _, then "
                f"letters, digits, _ and -, at most 63); expected {example}"
            )
        return cls(
            url,
            parts.scheme,
            unquote(parts.username or ""),
            parts.hostname or "",
            port,
            unquote(path),
            name,
            options,
        )

    def check_options(self, allowed: Collection[str]) -> None:
        """Raises InputError for an option of the URL that means nothing here."""
        for name in self.options:
            if name not in allowed:
                raise InputError(f"{self.url}: option {name!r} is not known.{known(name, allowed)}")

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """An option of the URL; InputError for a value that is not among the choices."""
        value = self.options.get(name, default)
        if value not in choices:
            raise InputError(f"{self.url}: {name}={value!r} is not known.{known(value, choices)}")
        return value


def shown(where: str) -> str:
    """A URL for messages, with *** in the place of what may be a secret."""
    url = re.sub(r"(://[^:/@?#]*):.*@", r"\1:***@", str(where), flags=re.DOTALL)
    secrets = "|".join(map(re.escape, SECRETS))
    return re.sub(rf"([?&](?:{secrets})=)[^&#]*", r"\1***", url, flags=re.IGNORECASE)


def one_line(told: object) -> str:
    """What a library says, for a message; the name of an error that says nothing."""
    return " ".join(str(told).split())[:300] or type(told).__name__


def retried(
    call: Callable[[], T],
    is_passing: Callable[[Exception], bool],
    within_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `call` gives, tried again after errors that pass, with pauses that double.

    The last error is raised once another pause would end after `within_s` seconds. Pauses are
    0.75 to 1.25 times their length, so that clients do not come back all at once.
    """
    start, pause_s = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Exception as error:
            left_s = within_s - (time.monotonic() - start)
            if not is_passing(error) or pause_s > left_s:
                raise
        sleep(pause_s * random.uniform(0.75, 1.25))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


# ---- texts that a server takes -------------------------------------------------------------------


def check_storable(rows: Rows, engine: str) -> None:
    """Raises DataError for null characters and lone surrogates, which are not text to a server."""
    for name, text, metadata in zip(rows.ids, rows.texts, rows.metadata, strict=True):
        held = [name, text, *(each for each in metadata.values() if isinstance(each, str))]
        if len(storable(held)) < len(held):
            raise DataError(
                f"text {name!r}: it, its id or its metadata hold a null character or a lone "
                f"surrogate, which {engine} cannot store; remove it"
            )


def storable(texts: Sequence[str]) -> list[str]:
    """Those of the texts that a server can hold; no other one is there, so none is found."""
    return [each for each in texts if _is_storable(each)]


def _is_storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
