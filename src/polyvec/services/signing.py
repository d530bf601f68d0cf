"""AWS Signature Version 4 of one request, by hmac; and where the credentials come from.

docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from polyvec.errors import SettingsError
from polyvec.llm.server.address import check_key

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of an AWS account; the token is that of temporary ones."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> "Credentials":
        """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.

        Profiles and roles of the machine are not read: `aws configure export-credentials --format
        env` prints these variables for them.
        """
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        found = [os.environ.get(name, "").strip() for name in names]
        missing = [name for name, value in zip(names[:2], found, strict=False) if not value]
        if missing:
            raise SettingsError(
                f"Amazon Bedrock needs credentials: set {' and '.join(missing)} (aws configure "
                "export-credentials --format env prints them), or AWS_BEARER_TOKEN_BEDROCK"
            )
        for name, value in zip(names, found, strict=True):
            if value:
                check_key(value, name)
        return cls(*found)


def region_from_environment() -> str:
    """AWS_REGION or AWS_DEFAULT_REGION; SettingsError if neither is set."""
    names = ("AWS_REGION", "AWS_DEFAULT_REGION")
    found = next((value for name in names if (value := os.environ.get(name, "").strip())), "")
    if not found.replace("-", "").isalnum():
        raise SettingsError(
            f"Amazon Bedrock needs a region: set AWS_REGION, such as us-east-1; got {found!r}"
        )
    return found


def signed(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    credentials: Credentials,
    *,
    region: str,
    service: str,
    now: datetime | None = None,
) -> dict[str, str]:
    """The headers with x-amz-date and Authorization; all that are given are signed.

    The URL has no query, and its path is encoded as it is sent.
    """
    parts = urlsplit(url)
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    all_headers = {**headers, "x-amz-date": moment}
    if credentials.token:
        all_headers["x-amz-security-token"] = credentials.token
    # The client writes the host itself, without the scheme's own port.
    named = {"host": parts.netloc, **{name.lower(): value for name, value in all_headers.items()}}
    names = sorted(named)
    canonical = [
        method,
        # Services other than S3 sign the path encoded once more than it is sent.
        quote(parts.path or "/", safe="/-_.~"),
        "",
        *(f"{name}:{' '.join(named[name].split())}" for name in names),
        "",
        ";".join(names),
        hashlib.sha256(body).hexdigest(),
    ]
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    to_sign = "\n".join([ALGORITHM, moment, scope, digest]).encode()
    signature = hmac.new(key, to_sign, hashlib.sha256).hexdigest()
    all_headers["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return all_headers
