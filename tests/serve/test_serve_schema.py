"""schemathesis, which makes requests after the server's own OpenAPI document."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

import httpx
from test_serve_http import running

KEY = "the-key-of-tests"
PROGRAM = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which(
    "schemathesis"
)
# Not checked: that whatever fits the document is accepted. It cannot say which models are sparse,
# how many dimensions one has, or which fields an index has.
SECONDS = 180  # of generating cases; a busy machine makes fewer
SKIPPED = "positive_data_acceptance"


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs the extra 'fuzz'")
@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["open", "keys"])
def test_answers_are_those_of_the_document(embedder, indexes, keys, tmp_path):
    with running({"tiny": embedder}, indexes=indexes, api_keys=keys) as address:
        done = subprocess.run(
            [
                *(PROGRAM, "run", f"{address}/openapi.json", "--exclude-checks", SKIPPED),
                *("--max-examples", "30", "--generation-deterministic", "--continue-on-failure"),
                *("--phases", "coverage,fuzzing", "--request-timeout", "60", "--no-color"),
                *("--max-time", str(SECONDS)),
                *("--header", f"Authorization: Bearer {KEY}")[: 2 * len(keys)],
            ],
            cwd=tmp_path,  # it keeps what it found in the folder it runs in
            capture_output=True,
            text=True,
            timeout=3 * SECONDS,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "12 passed" in done.stdout


def test_every_answer_to_a_good_request_fits_the_document(embedder, indexes):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra 'llm'")
    with running({"tiny": embedder}, indexes=indexes, api_keys=(KEY,)) as address:
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"})
        document = httpx.get(f"{address}/openapi.json").json()
        asked = {
            ("POST", "/v1/embeddings"): {"input": ["a", "b"], "encoding_format": "base64"},
            ("POST", "/v1/rerank"): {"query": "a", "documents": ["b"], "return_documents": True},
            ("POST", "/tokenize"): {"input": "a"},
            ("POST", "/v1/search"): {"query": "cat", "explain": True, "filter": "year > 2001"},
            ("POST", "/v1/sparse"): {"input": "a"},  # 400: the model is dense
            ("GET", "/v1/models"): None,
            ("GET", "/v1/models/tiny"): None,
            ("GET", "/v1/indexes"): None,
            ("GET", "/v1/map"): None,
        }
        for (method, path), body in asked.items():
            answer = client.request(method, path, json=body, timeout=60)
            described = document["paths"][path.replace("tiny", "{name}")][method.lower()]
            assert described["security"] == [{"key": []}]
            assert answer.status_code == (400 if path == "/v1/sparse" else 200), answer.text
            kind = described["responses"][str(answer.status_code)]["content"]["application/json"]
            schema = {**kind["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.json())
        assert "security" not in document["paths"]["/health"]["get"]
