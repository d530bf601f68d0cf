"""A model whose prompts tell queries from documents."""

import os

import pytest

from polyvec import Embedder

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
PROMPTS = {"query": "question: ", "document": "answer: "}


@pytest.fixture(scope="session")
def prompted(tmp_path_factory, tiny_bert):
    """A folder with a query and a document prompt."""
    folder = tmp_path_factory.mktemp("integrations") / "prompted"
    Embedder(tiny_bert, prompts=PROMPTS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(prompted):
    """sentence-transformers' vectors of the same folder: (method, texts, ...) to lists."""
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(prompted), device="cpu")
    return lambda method, texts, **options: getattr(model, method)(texts, **options).tolist()
