"""Where a server is, and the key it wants: checked before the first request, never shown."""

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from polyvec.errors import SettingsError

KEY_VARIABLE = "POLYVEC_API_KEY"
OPENAI_HOST = "api.openai.com"
NO_KEY = "none"  # what a server without keys is sent; the client insists on some text
HIDDEN = "[key]"
# Servers echo keys in part ("sk-abcd****wxyz"), which replacing the whole key does not find.
MASKED = re.compile(r"\bsk-[\w*.-]{4,}|[\w-]*\*{3,}[\w-]*")
MIN_ECHO = 8  # characters of the key that are hidden wherever they stand in a row


@dataclass(frozen=True, slots=True)
class Account:
    """Which servers a provider's key is meant for.

    host: the provider's own, and all below it, by https.
    key_variables: of the environment, that may hold the key.
    url_variable: names another server that gets the key, such as a proxy.
    """

    host: str
    key_variables: tuple[str, ...]
    url_variable: str

    @property
    def key_variable(self) -> str:
        """The variable that is set, else the first."""
        given = (name for name in self.key_variables if os.environ.get(name, "").strip())
        return next(given, self.key_variables[0])


OPENAI = Account(OPENAI_HOST, ("OPENAI_API_KEY",), "OPENAI_BASE_URL")


def check_url(base_url: str) -> str:
    """The URL without a slash at its end; SettingsError for one that cannot be a server's."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"server {base_url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"server {base_url!r} must be a URL like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError(
            f"server {parts.hostname}: the URL must have no user, password, query or fragment; "
            "pass a key as api_key"
        )
    return base_url.rstrip("/")


def is_local(base_url: str) -> bool:
    """Whether a host is this machine or in its own network, where servers often take no key."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost"))
    return address.is_private or address.is_loopback


def is_own(base_url: str, account: Account) -> bool:
    """Whether a server is the provider's own."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == account.host or host.endswith(f".{account.host}"))


def is_meant(base_url: str, account: Account = OPENAI) -> bool:
    """Whether the account's key is meant for this server: its own, or that of `url_variable`."""
    if is_own(base_url, account):
        return True
    try:
        named = urlsplit(os.environ.get(account.url_variable, "").strip())
    except ValueError:  # not a URL
        return False
    return named[:2] == urlsplit(base_url)[:2]


def key_variable(base_url: str, account: Account = OPENAI) -> str:
    """The environment variable with the key for this server."""
    own = account.key_variable
    if is_meant(base_url, account) and os.environ.get(own, "").strip():
        return own
    if is_own(base_url, account) and not os.environ.get(KEY_VARIABLE):
        return own
    return KEY_VARIABLE


def find_key(base_url: str, api_key: str | None, account: Account = OPENAI) -> str:
    """The key to send: the one given, else the environment's, else "none" to a local server.

    The account's key goes only to its own servers and to that of its URL's variable, so that naming
    another server does not hand it over; POLYVEC_API_KEY goes to any server.
    """
    variable = key_variable(base_url, account)
    key = (api_key or os.environ.get(variable, "")).strip()
    if not key and is_local(base_url):
        return NO_KEY
    if not key:
        hint = ""
        if os.environ.get(account.key_variable) and variable != account.key_variable:
            hint = (
                f"; {account.key_variable} goes only to {account.host} and {account.url_variable}"
            )
        raise SettingsError(
            f"{base_url} needs a key: set the environment variable {variable} or pass api_key{hint}"
        )
    check_key(key, f"the key for {base_url} (api_key or {variable})")
    return key


def check_key(key: str, what: str) -> None:
    """Raises SettingsError for a key that no header can hold."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{what} has spaces or characters that cannot be sent; copy it again")


def without_key(text: str, key: str) -> str:
    """A server's message in which the key, or a part of it, is replaced by [key]."""
    if key != NO_KEY:
        text = text.replace(key, HIDDEN)
        for start in range(len(key) - MIN_ECHO + 1):
            text = text.replace(key[start : start + MIN_ECHO], HIDDEN)
        text = re.sub(rf"\S*{re.escape(HIDDEN)}\S*", HIDDEN, text)
    return MASKED.sub(HIDDEN, text)
