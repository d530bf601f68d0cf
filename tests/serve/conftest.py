"""A model and an index that the servers of these tests have."""

import pytest


@pytest.fixture(scope="module")
def embedder(tiny_bert):
    from polyvec import Embedder

    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def indexes(embedder, tmp_path_factory):
    pytest.importorskip("lancedb", reason="needs the extra 'index'")
    from polyvec.data.texts import Record
    from polyvec.index.store import Index

    kinds = ("cat", "river")
    records = [
        Record(f"t{n}", f"a {kinds[n % 2]} {n}", {"kind": kinds[n % 2], "year": 2000 + n})
        for n in range(9)
    ]
    index, _ = Index.build(tmp_path_factory.mktemp("served") / "texts", records, embedder)
    return {"texts": (index, embedder)}
