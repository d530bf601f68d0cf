"""Where a server is, and the key it wants: checked before the first request, never shown."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from polyvec.errors import SettingsError

KEY_VARIABLE = "OPENAI_API_KEY"
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


def find_key(base_url: str, api_key: str | None) -> str:
    """The key to send: the one given, else OPENAI_API_KEY, else "none" to a local server."""
    key = (api_key or os.environ.get(KEY_VARIABLE, "")).strip()
    if not key and is_local(base_url):
        return NO_KEY
    if not key:
        raise SettingsError(
            f"{base_url} needs a key: set the environment variable {KEY_VARIABLE} or pass api_key"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(
            f"the key for {base_url} (api_key or {KEY_VARIABLE}) has spaces or characters that "
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
