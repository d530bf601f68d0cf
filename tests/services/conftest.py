"""No key of the person who runs the tests, and a cache of each test's own."""

import pytest

VARIABLES = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "POLYVEC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    *("GOOGLE_GEMINI_BASE_URL", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "DASHSCOPE_API_KEY", "DASHSCOPE_BASE_URL", "VOYAGE_API_KEY"),
    *("VOYAGE_BASE_URL", "COHERE_API_KEY", "CO_API_KEY", "CO_API_URL"),
    *("POLYVEC_MAX_COST", "POLYVEC_MAX_TOKENS"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POLYVEC_CACHE", str(tmp_path / "cache"))
    # Waits between attempts are a hundredth.
    monkeypatch.setattr("polyvec.llm.server.retries.FIRST_WAIT_S", 0.005)
