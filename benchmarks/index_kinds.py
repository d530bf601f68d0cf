"""Kinds of index beside exact search: recall@10, latency, build time and disk.

    python benchmarks/index_kinds.py vectors --data DATA --folder WORK    # texts to vectors, once
    python benchmarks/index_kinds.py measure --set real --folder WORK
    python benchmarks/index_kinds.py measure --set synthetic --folder WORK
    python benchmarks/index_kinds.py million --folder WORK
    python benchmarks/index_kinds.py sizes --folder WORK
    python benchmarks/index_kinds.py appends --folder WORK

real: SciFact, NFCorpus, Cranfield, and the first 12,000 training posts of 20 Newsgroups, by
all-MiniLM-L6-v2, at most 256 tokens of a text; queries are 100 of each of the first three.
synthetic: 200,000 x 384 in 2,000 clusters of 20 groups, with a covariance of rank 48 within a
cluster; 300 queries of the same mixture. One query at a time, one thread. Results go to
docs/results/index-kinds.json, which docs/generate.py makes a table of.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "index-kinds.json"
NEWSGROUPS, QUERIES, K = 12_000, 100, 10
WIDTH, CLUSTERS, GROUPS, RANK = 384, 2_000, 20, 48
Search = Callable[[np.ndarray], list[int]]  # a query [E] to the rows of its K nearest


# ---- vectors ------------------------------------------------------------------------------------


def write_real(data: Path, folder: Path) -> None:
    """real.npy and real-queries.npy."""
    from polyvec import Embedder
    from polyvec.data.texts import read_rows, read_texts

    texts, queries = [], []
    for name in ("scifact", "nfcorpus", "cranfield"):
        texts += [record.text for record in read_texts(data / name / "corpus.jsonl.gz")]
        queries += [row["text"] for _, row in read_rows(data / name / "queries.jsonl")][:QUERIES]
    rows = read_rows(data / "newsgroups20" / "train.jsonl.gz")
    texts += [row["text"] for _, row in rows][:NEWSGROUPS]
    embedder = Embedder.from_pretrained(max_seq_length=256)
    np.save(folder / "real-queries.npy", embedder.encode(queries, truncate="silent"))
    np.save(folder / "real.npy", embedder.encode(texts, truncate="silent"))


class Mixture:
    """Draws of the synthetic distribution, unit vectors [N, E] in blocks of a fixed seed."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        groups_GE = rng.standard_normal((GROUPS, WIDTH)).astype(np.float32)
        self.group_C = rng.integers(0, GROUPS, CLUSTERS)
        own_CE = rng.standard_normal((CLUSTERS, WIDTH)).astype(np.float32)
        self.centres_CE = 0.6 * groups_GE[self.group_C] + 0.8 * own_CE
        self.bases_GRE = rng.standard_normal((GROUPS, RANK, WIDTH)).astype(np.float32) / RANK**0.5
        self.weights_C = rng.dirichlet(np.ones(CLUSTERS))

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Vectors [count, E]."""
        rng = np.random.default_rng(seed)
        cluster_N = rng.choice(CLUSTERS, count, p=self.weights_C)
        inside_NR = rng.standard_normal((count, RANK)).astype(np.float32)
        found_NE = self.centres_CE[cluster_N]
        for group in range(GROUPS):
            rows = np.flatnonzero(self.group_C[cluster_N] == group)
            found_NE[rows] += 0.9 * inside_NR[rows] @ self.bases_GRE[group]
        found_NE += 0.35 * rng.standard_normal((count, WIDTH)).astype(np.float32)
        return found_NE / np.linalg.norm(found_NE, axis=1, keepdims=True)

    def blocks(self, count: int, size: int = 8192) -> Iterator[np.ndarray]:
        """`count` vectors, `size` at a time."""
        for start in range(0, count, size):
            yield self.draw(min(size, count - start), seed=1 + start)


def load(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Documents and queries of a set."""
    if name == "real":
        return np.load(folder / "real.npy"), np.load(folder / "real-queries.npy")
    mixture = Mixture()
    return np.concatenate(list(mixture.blocks(200_000))), mixture.draw(300, seed=999_999_999)


# ---- kinds --------------------------------------------------------------------------------------


def plain(documents_NE: np.ndarray, folder: Path) -> Iterator[tuple[str, Search]]:
    """The plain files of `polyvec index --plain`."""
    from polyvec.index.exact import inverse_lengths, top_k

    np.save(folder / "vectors.npy", documents_NE)
    stored_NE = np.load(folder / "vectors.npy", mmap_mode="r")
    lengths_N = inverse_lengths(stored_NE)

    def search(query_E: np.ndarray) -> list[int]:
        rows_QK = top_k(query_E[None], stored_NE, K, inverse_lengths_N=lengths_N)[1]
        return rows_QK[0].tolist()

    yield "exact", search


def lance(documents_NE: np.ndarray, folder: Path) -> Iterator[tuple[str, Search]]:
    """Our engine, as `polyvec index` writes and reads it, and other settings of its index."""
    from polyvec.index.engines.interface import Description, Rows
    from polyvec.index.engines.lance import LanceEngine
    from polyvec.interfaces import DenseVectors

    engine = LanceEngine.create(
        str(folder / "index"), Description("m", "0", "cosine", {"dense": WIDTH})
    )
    with engine.writing():
        for start in range(0, len(documents_NE), 8192):
            part_NE = documents_NE[start : start + 8192]
            ids = [str(row) for row in range(start, start + len(part_NE))]
            engine.upsert(Rows(ids, ids, [{} for _ in ids], {"dense": DenseVectors(part_NE)}))
    engine.optimize()
    engine._refresh = lambda: None  # which would read the stored settings again

    def through(exact: bool, nprobes: int = 0, refine: int = 0) -> Search:
        def search(query_E: np.ndarray) -> list[int]:
            engine._stored = replace(engine._stored, nprobes=nprobes, refine=refine)
            (found,) = engine.near(DenseVectors(query_E[None]), K, exact=exact)
            return [int(each.id) for each in found]

        return search

    default = (engine._stored.nprobes, engine._stored.refine)
    name = "IVF_RQ, nprobes {}, refine {}"
    yield name.format(*default) + " (default of polyvec)", through(False, *default)
    for nprobes, refine in ((5, 5), (10, 10), (20, 10), (40, 10), (40, 20)):
        if (nprobes, refine) != default:
            yield name.format(nprobes, refine), through(False, nprobes, refine)

    def own(query_E: np.ndarray) -> list[int]:
        search = engine._table.search(query_E, vector_column_name="dense")
        found = search.distance_type("cosine").limit(K).select(["id", "_distance"]).to_arrow()
        return [int(each) for each in found.column("id").to_pylist()]

    yield "IVF_RQ, default of lancedb", own
    yield "exact", through(True)


def lance_hnsw(documents_NE: np.ndarray, folder: Path) -> Iterator[tuple[str, Search]]:
    """LanceDB's graph within partitions, of 8-bit numbers."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import HnswSq

    flat = pa.FixedSizeListArray.from_arrays(pa.array(documents_NE.ravel()), WIDTH)
    table = lancedb.connect(str(folder)).create_table(
        "t", pa.table({"row": pa.array(np.arange(len(documents_NE))), "dense": flat})
    )
    table.create_index("dense", config=HnswSq(distance_type="cosine"))

    def search(query_E: np.ndarray) -> list[int]:
        asked = table.search(query_E, vector_column_name="dense").distance_type("cosine").limit(K)
        found = asked.ef(200).refine_factor(5).select(["row", "_distance"]).to_arrow()
        return list(found.column("row").to_pylist())

    yield "IVF_HNSW_SQ, ef 200, refine 5", search


def faiss_kind(text: str, settings: Mapping[str, tuple[str, Any]], refine: int = 0) -> Any:
    """An index of faiss in memory, by its factory string; of `refine` * K floats decide."""

    def build(documents_NE: np.ndarray, folder: Path) -> Iterator[tuple[str, Search]]:
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.index_factory(WIDTH, text, faiss.METRIC_INNER_PRODUCT)
        index.train(documents_NE)
        index.add(documents_NE)
        faiss.write_index(index, str(folder / "index.faiss"))
        for name, (setting, value) in settings.items():
            if setting:
                faiss.ParameterSpace().set_index_parameter(index, setting, value)

            def search(query_E: np.ndarray) -> list[int]:
                rows = index.search(query_E[None], max(refine, 1) * K)[1][0]
                return rescored(documents_NE, query_E, rows) if refine else rows.tolist()

            yield name, search

    return build


def binary(documents_NE: np.ndarray, folder: Path) -> Iterator[tuple[str, Search]]:
    """Signs of the numbers, by `quantize`, compared by faiss; floats decide among the best."""
    import faiss

    from polyvec import quantize

    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(WIDTH)
    index.add(quantize(documents_NE, "ubinary"))
    faiss.write_index_binary(index, str(folder / "index.faiss"))
    for factor in (10, 40):

        def search(query_E: np.ndarray, factor: int = factor) -> list[int]:
            rows = index.search(quantize(query_E[None], "ubinary"), factor * K)[1][0]
            return rescored(documents_NE, query_E, rows)

        yield f"best {factor * K} rescored by floats", search


def rescored(documents_NE: np.ndarray, query_E: np.ndarray, rows: np.ndarray) -> list[int]:
    """The K best of these rows by their float vectors."""
    rows = rows[rows >= 0]
    order = np.argsort(-(documents_NE[rows] @ query_E), kind="stable")[:K]
    return rows[order].tolist()


KINDS: Mapping[str, Callable[[np.ndarray, Path], Iterator[tuple[str, Search]]]] = {
    "plain files": plain,
    "LanceDB": lance,
    "LanceDB HNSW": lance_hnsw,
    "faiss Flat": faiss_kind("Flat", {"exact": ("", None)}),
    "faiss int8": faiss_kind("SQ8", {"best 40 rescored by floats": ("", None)}, refine=4),
    "faiss binary": binary,
    "faiss IVF,SQ8": faiss_kind(
        "IVF1024,SQ8", {"nprobe 8": ("nprobe", 8), "nprobe 64": ("nprobe", 64)}
    ),
    "faiss HNSW32": faiss_kind("HNSW32", {"ef 64": ("efSearch", 64), "ef 256": ("efSearch", 256)}),
}


# ---- measure ------------------------------------------------------------------------------------


def measured(
    build: Callable[[np.ndarray, Path], Iterator[tuple[str, Search]]],
    documents_NE: np.ndarray,
    queries_QE: np.ndarray,
    exact_QK: np.ndarray,
    folder: Path,
) -> list[dict[str, Any]]:
    """A row for each setting of a kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began, rows = (time.perf_counter(), time.process_time()), []
    build_s = build_cpu_s = disk = None
    for name, search in build(documents_NE, folder):
        if build_s is None:
            build_s = time.perf_counter() - began[0]
            build_cpu_s = time.process_time() - began[1]
            disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for query_E in queries_QE[:20]:
            search(query_E)
        seconds, hits = [], 0
        for query_E, exact_K in zip(queries_QE, exact_QK, strict=True):
            at = time.perf_counter()
            found = search(query_E)
            seconds.append(time.perf_counter() - at)
            hits += len(set(found) & set(exact_K.tolist()))
        rows.append(
            {
                "setting": name,
                "recall": hits / exact_QK.size,
                "p50_ms": 1000 * float(np.percentile(seconds, 50)),
                "p95_ms": 1000 * float(np.percentile(seconds, 95)),
                "build_s": build_s,
                "build_cpu_s": build_cpu_s,
                "disk_mb": (disk or 0) / 2**20,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def measure(name: str, folder: Path, kinds: list[str]) -> None:
    """Every kind on one set; what was measured before of others stays."""
    import torch

    from polyvec.index.exact import top_k

    torch.set_num_threads(1)
    documents_NE, queries_QE = load(name, folder)
    exact_QK = top_k(queries_QE, documents_NE, K)[1]
    for kind in kinds:
        print(name, kind, flush=True)
        rows = measured(KINDS[kind], documents_NE, queries_QE, exact_QK, folder / "work")
        store(
            name,
            {
                "shape": list(documents_NE.shape),
                "num_queries": len(queries_QE),
                "kinds": {kind: rows},
            },
        )


def million(folder: Path) -> None:
    """A million synthetic vectors through the engine."""
    store("million", built(1_000_000, folder))


def sizes(folder: Path, counts: list[int], kinds: list[str]) -> None:
    """Fewer and as many vectors: the engine and the graph; what was measured before stays."""
    for kind in kinds:
        for count in counts:
            found = SIZED[kind](count, folder)
            print(kind, count, json.dumps(found), flush=True)
            before = json.loads(RESULTS.read_text()).get("sizes", {})
            store("sizes", {**before, kind: {**before.get(kind, {}), str(count): found}})


def built(count: int, folder: Path) -> dict[str, Any]:
    """Vectors through the engine, drawn block by block, in bounded memory, and 25 queries.

    CPU times are those of all threads; no figure includes the drawing of vectors.
    """
    from polyvec.index.engines.interface import Description, Rows
    from polyvec.index.engines.lance import LanceEngine
    from polyvec.interfaces import DenseVectors

    mixture, work = Mixture(), folder / f"built-{count}"
    shutil.rmtree(work, ignore_errors=True)
    build_s = build_cpu_s = 0.0
    start = 0
    engine = LanceEngine.create(str(work), Description("m", "0", "cosine", {"dense": WIDTH}))
    with engine.writing():
        for part_NE in mixture.blocks(count):
            began = (time.perf_counter(), time.process_time())
            ids = [str(row) for row in range(start, start + len(part_NE))]
            engine.upsert(Rows(ids, ids, [{} for _ in ids], {"dense": DenseVectors(part_NE)}))
            start += len(part_NE)
            build_s += time.perf_counter() - began[0]
            build_cpu_s += time.process_time() - began[1]
        began = (time.perf_counter(), time.process_time())
    engine.optimize()
    build_s += time.perf_counter() - began[0]
    build_cpu_s += time.process_time() - began[1]
    queries, seconds, cpu_seconds, hits = mixture.draw(25, seed=999_999_999), [], [], 0
    engine.near(DenseVectors(queries[:1]), K)  # opens the index
    for query_E in queries:
        asked = DenseVectors(query_E[None])
        began = (time.perf_counter(), time.process_time())
        (found,) = engine.near(asked, K)
        seconds.append(time.perf_counter() - began[0])
        cpu_seconds.append(time.process_time() - began[1])
        (exact,) = engine.near(asked, K, exact=True)
        hits += len({each.id for each in found} & {each.id for each in exact})
    disk = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    shutil.rmtree(work)
    return {
        "shape": [count, WIDTH],
        "num_queries": len(queries),
        "recall": hits / (K * len(queries)),
        "p50_ms": 1000 * float(np.percentile(seconds, 50)),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        "query_cpu_ms": 1000 * float(np.mean(cpu_seconds)),
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "disk_mb": disk / 2**20,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def graph(count: int, folder: Path) -> dict[str, Any]:
    """HNSW of faiss with m = 16 and ef 128, as the engines on servers have it, on one thread."""
    import faiss

    from polyvec.index.exact import top_k

    faiss.omp_set_num_threads(1)
    mixture, index = Mixture(), faiss.index_factory(WIDTH, "HNSW16", faiss.METRIC_INNER_PRODUCT)
    faiss.ParameterSpace().set_index_parameter(index, "efConstruction", 128)
    documents_NE = np.concatenate(list(mixture.blocks(count)))
    began = time.process_time()
    index.add(documents_NE)
    build_cpu_s = time.process_time() - began
    faiss.ParameterSpace().set_index_parameter(index, "efSearch", 128)
    queries_QE = mixture.draw(300, seed=999_999_999)
    exact_QK = top_k(queries_QE, documents_NE, K)[1]
    began = time.process_time()
    found_QK = np.stack([index.search(query_E[None], K)[1][0] for query_E in queries_QE])
    query_cpu_ms = 1000 * (time.process_time() - began) / len(queries_QE)
    hits = sum(len({*a} & {*b}) for a, b in zip(found_QK.tolist(), exact_QK.tolist(), strict=True))
    faiss.write_index(index, str(folder / "graph.faiss"))
    size = (folder / "graph.faiss").stat().st_size
    (folder / "graph.faiss").unlink()
    return {
        "shape": [count, WIDTH],
        "recall": hits / exact_QK.size,
        "query_cpu_ms": query_cpu_ms,
        "build_cpu_s": build_cpu_s,
        "bytes_beside_vectors": (size - documents_NE.nbytes) / count,
    }


def appends(folder: Path) -> None:
    """500 writes of one row to an index of 25,000: the query's latency before and in between."""
    from polyvec.index.engines.interface import Description, Rows
    from polyvec.index.engines.lance import LanceEngine
    from polyvec.interfaces import DenseVectors

    mixture, work = Mixture(), folder / "appends"
    shutil.rmtree(work, ignore_errors=True)
    engine = LanceEngine.create(str(work), Description("m", "0", "cosine", {"dense": WIDTH}))

    def write(values_NE: np.ndarray, start: int) -> None:
        ids = [str(row) for row in range(start, start + len(values_NE))]
        engine.upsert(Rows(ids, ids, [{} for _ in ids], {"dense": DenseVectors(values_NE)}))

    write(mixture.draw(25_000, seed=1), 0)
    engine.optimize()
    queries = mixture.draw(20, seed=2)

    def latency() -> float:
        seconds = []  # CPU's: wall time on a crowded machine says more of the others
        for query_E in queries:
            at = time.process_time()
            engine.near(DenseVectors(query_E[None]), K)
            seconds.append(time.process_time() - at)
        return 1000 * float(np.median(seconds))

    latency()
    before, during, writes = latency(), [], []
    for number in range(500):
        at = time.perf_counter()
        write(mixture.draw(1, seed=10 + number), 25_000 + number)
        writes.append(1000 * (time.perf_counter() - at))
        if number % 10 == 9:
            during.append(latency())
    store(
        "appends",
        {
            "before_ms": before,
            "worst_ms": max(during),
            "after_ms": latency(),
            "write_p50_ms": float(np.percentile(writes, 50)),
            "write_p99_ms": float(np.percentile(writes, 99)),
            "files": sum(path.is_file() for path in work.rglob("*")),
        },
    )
    shutil.rmtree(work)


SIZED = {"folder": built, "graph": graph}


def store(name: str, found: dict[str, Any]) -> None:
    """Put a measurement into the results, beside those of other kinds."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    old = results.get(name, {})
    results[name] = {**found, "cpu": cpu(), "threads": int(os.environ.get("OMP_NUM_THREADS", 0))}
    if "kinds" in found:
        results[name]["kinds"] = {**old.get("kinds", {}), **found["kinds"]}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("vectors", "measure", "million", "sizes", "appends"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--set", choices=("real", "synthetic"), default="synthetic")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sized", nargs="+", choices=list(SIZED), default=list(SIZED))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "vectors":
        write_real(options.data, options.folder)
    elif options.what == "measure":
        measure(options.set, options.folder, options.kinds)
    elif options.what == "sizes":
        sizes(options.folder, options.rows, options.sized)
    else:
        {"million": million, "appends": appends}[options.what](options.folder)


if __name__ == "__main__":
    main()
