"""AWS' signature: its published test vectors, and botocore's for Bedrock's request."""

from datetime import UTC, datetime

import pytest

from polyvec.errors import SettingsError
from polyvec.services.signing import Credentials, signed

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TITAN = (
    "https://bedrock-runtime.us-east-1.amazonaws.com/model/amazon.titan-embed-text-v2%3A0/invoke"
)


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        # get-vanilla and post-vanilla of the AWS Signature Version 4 test suite.
        ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ],
)
def test_the_suite_of_aws(method, signature):
    found = signed(
        method,
        "https://example.amazonaws.com/",
        b"",
        {},
        Credentials("AKIDEXAMPLE", SECRET),
        region="us-east-1",
        service="service",
        now=datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
    )
    assert found == {
        "x-amz-date": "20150830T123600Z",
        "authorization": "AWS4-HMAC-SHA256 "
        "Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}",
    }


@pytest.mark.parametrize(
    ("token", "names", "signature"),
    [
        (
            "",
            "content-type;host;x-amz-date",
            "c0f721bc50cbd42cd36f04f3d17474b6f5d3dcb6f9b7819ac2d39c89888d4db0",
        ),
        (
            "TOKEN/+=",
            "content-type;host;x-amz-date;x-amz-security-token",
            "b6ec603bfa00c437f27636110bcd899505471e4b02dfcaf111bd78f6edb6234e",
        ),
    ],
)
def test_as_botocore_signs_bedrock(token, names, signature):
    """By botocore 1.44.8's SigV4Auth, with a colon in the path and with temporary credentials."""
    found = signed(
        "POST",
        TITAN,
        b'{"inputText": "a cat"}',
        {"content-type": "application/json"},
        Credentials("AKIDEXAMPLE", SECRET, token),
        region="us-east-1",
        service="bedrock",
        now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    assert found["authorization"].endswith(f"SignedHeaders={names}, Signature={signature}")
    assert found.get("x-amz-security-token", "") == token


def test_a_secret_is_not_shown(monkeypatch):
    assert SECRET not in repr(Credentials("AKIDEXAMPLE", SECRET))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}\nx")
    with pytest.raises(SettingsError) as caught:
        Credentials.from_environment()
    assert SECRET not in str(caught.value)
