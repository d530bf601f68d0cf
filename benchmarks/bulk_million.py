"""A million rows from texts to vectors: uninterrupted, killed ten times, on Ray; and its memory.

    python benchmarks/bulk_million.py texts --data DATA --folder WORK
    python benchmarks/bulk_million.py whole --model MODEL --folder WORK
    python benchmarks/bulk_million.py killed --model MODEL --folder WORK
    python benchmarks/bulk_million.py ray --model MODEL --folder WORK
    python benchmarks/bulk_million.py blocks --model MODEL --folder WORK
    python benchmarks/bulk_million.py memory --model MODEL --folder WORK
    python benchmarks/bulk_million.py sizes --model MODEL --folder WORK

texts: short texts from the sentences of wiki_sentences, each the beginning of one and the end of
another, the same at each run: folders of a .txt, a .jsonl and a .parquet file, and one file.
killed: two processes share the job; ten times one of them, drawn at random, gets SIGKILL after a
random number of shards and is started again. ray: a cluster of two nodes with a worker each, one
of which gets SIGKILL. Both must end with the manifest (rows, bytes and checksum of each shard) of
`whole`, whose files are read again. blocks: what a shard costs Ray's driver. memory: peaks of
`polyvec embed` on 10,000 and 1,000,000 texts, from a file to a file. sizes: seconds of one
process for 10,000 and 100,000 rows. Results go to docs/results/bulk-million.json.

MODEL was potion-base-2M, whose vectors are means of token vectors: the pipeline's own cost shows.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "bulk-million.json"
MILLION, SHARD_ROWS, NUM_KILLS = 1_000_000, 10_000, 10
SIZES = (10_000, 100_000, MILLION)
PORT = 6399  # of Ray's head node: none that other clusters of this machine use
POLYVEC = (sys.executable, "-m", "polyvec")


# ---- texts --------------------------------------------------------------------------------------


def short_texts(data: Path, count: int) -> Iterator[str]:
    """The beginning of one sentence and the end of another, about 20 words; all are distinct."""
    from polyvec.data.texts import read_texts

    source = data / "wiki_sentences" / "sentences.jsonl.gz"
    sentences = [record.text.split()[:24] for record in read_texts(source)]
    draw = np.random.default_rng(0)
    for number in range(count):
        first, second = draw.integers(0, len(sentences), 2)
        head, tail = sentences[first], sentences[second]
        text = " ".join([*head[: len(head) // 2 + 1], *tail[len(tail) // 2 :]])
        yield f"{text} {number}"  # a number, too: pairs may be drawn twice


def write_texts(data: Path, folder: Path) -> None:
    """For each size a file texts-N.txt, and a folder texts-N/ of three files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for count in SIZES:
        texts = list(short_texts(data, count))
        (folder / f"texts-{count}.txt").write_text("".join(f"{each}\n" for each in texts), "utf-8")
        parts = folder / f"texts-{count}"
        parts.mkdir(parents=True, exist_ok=True)
        lines, rows = texts[: count * 4 // 10], texts[count * 4 // 10 : count * 7 // 10]
        (parts / "a.txt").write_text("".join(f"{each}\n" for each in lines), "utf-8")
        with (parts / "b.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"id": f"b{n}", "text": each}) + "\n" for n, each in enumerate(rows)
            )
        rest = texts[count * 7 // 10 :]
        table = {"id": [f"c{n}" for n in range(len(rest))], "text": rest}
        pq.write_table(pa.table(table), parts / "c.parquet", row_group_size=50_000)


# ---- runs ---------------------------------------------------------------------------------------


@dataclass
class Ended:
    """A process that ended: its status, seconds, CPU-seconds and peak memory."""

    status: int
    seconds: float
    cpu_s: float
    peak_mb: float


def ended(command: list[str]) -> Ended:
    """Run a command and wait for it; its own peak, not that of all children before it."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(
        process.returncode,
        time.perf_counter() - began,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1024,
    )


def embed_command(options: argparse.Namespace, source: Path, output: str) -> list[str]:
    return [*POLYVEC, "embed", str(source), "--model", str(options.model), "-o", output]


def job(options: argparse.Namespace, count: int, name: str) -> tuple[list[str], Path]:
    """The command of a job on the folder of `count` texts, and its new output folder."""
    out = options.folder / f"{name}-{count}"
    shutil.rmtree(out, ignore_errors=True)
    source = options.folder / f"texts-{count}"
    command = embed_command(options, source, f"{out}/")
    return [*command, "--shard-rows", str(SHARD_ROWS)], out


def shards_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text())["shards"]
    return found


def compared(folder: Path, whole: Path) -> dict[str, Any]:
    """What a job's folder holds, its files read again, against that of the uninterrupted run.

    Raises SystemExit if a row is missing or there twice, or a byte differs.
    """
    import pyarrow.parquet as pq

    from polyvec.bulk.verify import verify
    from polyvec.storage.checksums import file_crc32

    report = verify(folder)
    ids: list[str] = []
    for each in shards_of(whole):
        path = folder / each["name"]
        ids += pq.read_table(path, columns=["id"])["id"].to_pylist()
        if file_crc32(path) != each["crc32"]:
            raise SystemExit(f"{path}: other bytes than those of the uninterrupted run")
    a, b = MILLION * 4 // 10, MILLION * 3 // 10
    expected = [f"a.txt:{n}" for n in range(a)] + [f"b.jsonl:b{n}" for n in range(b)]
    expected += [f"c.parquet:c{n}" for n in range(MILLION - a - b)]
    if report.problems or ids != expected or shards_of(folder) != shards_of(whole):
        raise SystemExit(f"{folder}: differs from {whole}: {report.problems[:3]}")
    return {"rows": len(ids), "distinct_ids": len(set(ids)), "shards_equal": len(shards_of(whole))}


def whole(options: argparse.Namespace) -> None:
    """One process, never interrupted."""
    command, out = job(options, MILLION, "whole")
    run = ended(command)
    if run.status:
        raise SystemExit(f"{command}: status {run.status}")
    tokens = json.loads((out / "manifest.json").read_text())["tokens"]
    found = {**compared(out, out), **figures(run, MILLION)}
    store("whole", {**found, "tokens": tokens, "bytes": stored(out)})


def figures(run: Ended, rows: int) -> dict[str, float]:
    return {
        "seconds": run.seconds,
        "cpu_s": run.cpu_s,
        "rows_per_s": rows / run.seconds,
        "rows_per_cpu_s": rows / run.cpu_s,
        "peak_mb": run.peak_mb,
    }


def killed(options: argparse.Namespace) -> None:
    """Two processes that share a job; ten times one of them is killed at a random moment."""
    command, out = job(options, MILLION, "killed")
    draw = random.Random(0)
    # Moments by what is done: by the clock, all kills come early on a machine that is slow today.
    moments = sorted(draw.sample(range(1, MILLION // SHARD_ROWS - 5), NUM_KILLS))
    began = time.perf_counter()
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    started = [began, began]
    kills: list[dict[str, float]] = []
    while any(each.poll() is None for each in running):
        time.sleep(draw.uniform(0.5, 3))
        place, done = draw.randrange(2), len(list((out / "done").glob("*.json")))
        # One that has just been started has made nothing yet that a kill could cost.
        is_working = running[place].poll() is None and time.perf_counter() - started[place] > 20
        if not moments or done < moments[0] or not is_working:
            continue
        del moments[0]
        running[place].send_signal(signal.SIGKILL)
        running[place].wait()
        kills.append({"at_s": time.perf_counter() - began, "shards_done": done})
        print(kills[-1], flush=True)
        running[place] = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        started[place] = time.perf_counter()
    seconds = time.perf_counter() - began
    if any(each.returncode for each in running):
        raise SystemExit(f"{command}: {[each.returncode for each in running]}")
    if len(kills) < NUM_KILLS:
        raise SystemExit(f"only {len(kills)} kills before the job had ended; kill faster")
    found = compared(out, options.folder / f"whole-{MILLION}")
    store("killed", {**found, "seconds": seconds, "kills": kills})


def on_ray(options: argparse.Namespace) -> None:
    """A cluster of two nodes, an actor on each, one of which is killed after ten shards."""
    command, out = job(options, MILLION, "ray")
    with cluster():
        began = time.perf_counter()
        process = subprocess.Popen([*command, "--ray", f"127.0.0.1:{PORT}"])
        while process.poll() is None and len(list((out / "done").glob("*.json"))) < 10:
            time.sleep(0.2)
        actors = ray_actors()
        if len(actors) != 2:
            raise SystemExit(f"expected two actors of Ray, found {len(actors)}")
        os.kill(actors[0].pid, signal.SIGKILL)
        at = time.perf_counter() - began
        status = process.wait()
        seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command}: status {status}")
    found = compared(out, options.folder / f"whole-{MILLION}")
    store("ray", {**found, "seconds": seconds, "killed_at_s": at, "actors": len(actors)})


def blocks(options: argparse.Namespace) -> None:
    """What a block costs the driver of Ray, in CPU seconds: jobs of 20 and 220 shards of a row."""
    found: dict[str, dict[str, float]] = {}
    with cluster():
        for count in (20, 220):
            source, out = options.folder / f"lines-{count}.txt", options.folder / f"blocks-{count}"
            source.write_text("".join(f"line {n}\n" for n in range(count)), "utf-8")
            shutil.rmtree(out, ignore_errors=True)
            command = embed_command(options, source, f"{out}/")
            run = ended([*command, "--shard-rows", "1", "--ray", f"127.0.0.1:{PORT}"])
            if run.status:
                raise SystemExit(f"{command}: status {run.status}")
            found[str(count)] = {"seconds": run.seconds, "cpu_s": run.cpu_s}
            print(count, run, flush=True)
    cpu_s = (found["220"]["cpu_s"] - found["20"]["cpu_s"]) / 200
    store("blocks", {"jobs": found, "cpu_s_per_block": cpu_s})


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Two nodes of Ray; three cores in all, so that two embed and one is the driver's."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # nothing but this machine reaches these nodes
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    common = ["--node-ip-address=127.0.0.1", f"--object-store-memory={200 << 20}"]
    head = ["--head", f"--port={PORT}", "--include-dashboard=false", "--num-cpus=2"]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for more in (head, [f"--address=127.0.0.1:{PORT}", "--num-cpus=1"]):
            nodes.append(node([*start, *common, *more]))
        yield
    finally:
        for each in reversed(nodes):
            each.terminate()
            each.wait(60)


def node(command: list[str], tries: int = 5) -> "subprocess.Popen[bytes]":
    """A node of Ray that runs; on a busy machine its parts time out on each other."""
    for _ in range(tries):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if any(b"runtime started" in line for line in process.stdout):
            return process
        process.wait()
    raise SystemExit(f"{command}: did not start in {tries} tries")


def ray_actors() -> list[psutil.Process]:
    """Processes of our cluster that embed."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        title = " ".join(each.info["cmdline"] or ())
        parents = [" ".join(parent.cmdline()) for parent in each.parents()]
        if "MapWorker" in title and any(f":{PORT}" in parent for parent in parents):
            found.append(each)
    return found


# ---- memory and time by size --------------------------------------------------------------------


def memory(options: argparse.Namespace) -> None:
    """Peaks by size from file to file; those from folder to folder are in `sizes`."""
    found: dict[str, dict[str, float]] = {}
    for name in ("vectors.npy", "vectors.parquet"):
        found[name] = {}
        for count in (SIZES[0], MILLION):
            out = options.folder / f"{count}-{name}"
            command = embed_command(options, options.folder / f"texts-{count}.txt", str(out))
            run = ended(command)
            if run.status:
                raise SystemExit(f"{command}: status {run.status}")
            found[name][str(count)] = run.peak_mb
            print(name, count, run, flush=True)
            out.unlink()
        store("memory", found)


def sizes(options: argparse.Namespace) -> None:
    """One process on smaller jobs, beside the one of `whole`."""
    found = {str(MILLION): json.loads(RESULTS.read_text())["whole"]}
    for count in SIZES[:-1]:
        command, out = job(options, count, "sizes")
        run = ended(command)
        found[str(count)] = {**figures(run, count), "bytes": stored(out)}
        print(count, found[str(count)], flush=True)
        shutil.rmtree(out)
    store("sizes", {rows: found[rows] for rows in map(str, SIZES)})


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


def store(name: str, found: dict[str, Any]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {**found, "cpu": processor(), "threads": os.environ.get("OMP_NUM_THREADS")}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(name, json.dumps(found)[:600], flush=True)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))


RUNS = {
    "whole": whole,
    "killed": killed,
    "ray": on_ray,
    "blocks": blocks,
    "memory": memory,
    "sizes": sizes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("texts", *RUNS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "texts":
        write_texts(options.data, options.folder)
    else:
        RUNS[options.what](options)


if __name__ == "__main__":
    main()
