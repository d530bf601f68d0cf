"""Where a server is, and the key it wants: checked before the first request, never shown."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from polyvec.errors import SettingsError

KEY_VARIABLE = "POLYVEC_API_KEY"
OPENAI_KEY_VARIABLE, OPENAI_URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
OPENAI_HOST = "api.openai.com"
NO_KEY = "none"  # what a server without keys is sent; the client insists on some text
HIDDEN = "[key]"
# Servers echo keys in part ("sk-abcd****wxyz"), which replacing the whole key does not find.
MASKED = re.compile(r"\bsk-[\w*.-]{4,}|[\w-]*\*{3,}[\w-]*")
MIN_ECHO = 8  # characters of the key that are hidden wherever they stand in a row


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


def is_openais(base_url: str) -> bool:
    """Whether OPENAI_API_KEY is meant for this server: OpenAI's own, or that of OPENAI_BASE_URL."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme == "https" and (host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")):
        return True
    try:
        named = urlsplit(os.environ.get(OPENAI_URL_VARIABLE, "").strip())
    except ValueError:  # not a URL
        return False
    return named[:2] == parts[:2]


def key_variable(base_url: str) -> str:
    """The environment variable with the key for this server."""
    if is_openais(base_url) and os.environ.get(OPENAI_KEY_VARIABLE, "").strip():
        return OPENAI_KEY_VARIABLE
    if urlsplit(base_url).hostname == OPENAI_HOST and not os.environ.get(KEY_VARIABLE):
        return OPENAI_KEY_VARIABLE
    return KEY_VARIABLE


def find_key(base_url: str, api_key: str | None) -> str:
    """The key to send: the one given, else the environment's, else "none" to a local server.

    OPENAI_API_KEY goes only to OpenAI and to the server of OPENAI_BASE_URL, so that naming another
    server does not hand it over; POLYVEC_API_KEY goes to any server.
    """
    variable = key_variable(base_url)
    key = (api_key or os.environ.get(variable, "")).strip()
    if not key and is_local(base_url):
        return NO_KEY
    if not key:
        hint = ""
        if os.environ.get(OPENAI_KEY_VARIABLE) and variable != OPENAI_KEY_VARIABLE:
            hint = f"; {OPENAI_KEY_VARIABLE} goes only to {OPENAI_HOST} and {OPENAI_URL_VARIABLE}"
        raise SettingsError(
            f"{base_url} needs a key: set the environment variable {variable} or pass api_key{hint}"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(
            f"the key for {base_url} (api_key or {variable}) has spaces or characters that "
            "cannot be sent; copy it again"
        )
    return key


def without_key(text: str, key: str) -> str:
    """A server's message in which the key, or a part of it, is replaced by [key]."""
    if key != NO_KEY:
        text = text.replace(key, HIDDEN)
        for start in range(len(key) - MIN_ECHO + 1):
            text = text.replace(key[start : start + MIN_ECHO], HIDDEN)
        text = re.sub(rf"\S*{re.escape(HIDDEN)}\S*", HIDDEN, text)
    return MASKED.sub(HIDDEN, text)
