"""Speed on the CPU beside peers on the same weights: mixed texts, short queries, cold start.

Each library runs in a process of its own, in turns, so that all see the same load of the machine.
CPU-seconds are the main figure, wall time the second. A peer in another environment is
given by its Python and a folder with its form of the weights. Figures are medians; they are
added to docs/results/encode-cpu.json, of which docs/generate.py makes the tables of docs/speed.md.

    python benchmarks/speed_cpu.py minilm --texts 400 --rounds 3
    python benchmarks/speed_cpu.py minilm --fast --onnx --peer onnx PYTHON FOLDER \
        --peer openvino-int8 PYTHON FOLDER
    python benchmarks/speed_cpu.py nano-lm
    python benchmarks/speed_cpu.py smollm2 --texts 60
    python benchmarks/speed_cpu.py start
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from encode_cpu import mixed_texts
from transformers import AutoConfig, AutoTokenizer

from polyvec.embed.formats.small import SMALL_MODEL
from polyvec.embed.formats.sources import model_folder, offline_folder
from polyvec.storage.files import atomic_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "encode-cpu.json"
WORKER = Path(__file__).with_name("speed_worker.py")
# Batches of the peers: their default, and one that is often their fastest.
BATCHES = (32, 8)
QUERY_WORDS = (6, 12)
TOLERANCE = 1e-4
# Libraries that compute in fewer bits: how near they are is a figure, not a condition.
FEWER_BITS = ("polyvec-fast", "onnx-int8", "openvino-int8", "openvino-bfloat16")
QUERIES_ALONE = "polyvec-onnx"  # its batches are polyvec's
TASKS = {
    "minilm": (lambda: offline_folder(), None, 256),
    "nano-lm": (lambda: model_folder("polyvec/nano-lm"), "mean", 256),
    "smollm2": (lambda: model_folder(SMALL_MODEL), "mean", 256),
}


class Worker:
    """A library in its own process; `ask` gives its answer to a question."""

    def __init__(self, command: list[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def flop_of(config: Any, lengths: list[int]) -> float:
    """Multiplications and additions in the products that the texts need, without padding."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    kept = (getattr(config, "num_key_value_heads", None) or heads) * head
    gated = 3 if config.model_type == "llama" else 2
    per_token = 2 * (2 * width * heads * head + 2 * width * kept + gated * width * inner)
    return float(layers * sum(n * per_token + 4 * n * n * heads * head for n in lengths))


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of every library on one model."""
    folder_of, pooling, longest = TASKS[options.task]
    folder = str(folder_of())
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    mixed = mixed_texts(options.texts, words=(3, 200))
    queries = mixed_texts(options.queries, seed=1, words=QUERY_WORDS)
    encoded = tokenizer(mixed, truncation=True, max_length=longest)["input_ids"]
    lengths = [len(ids) for ids in encoded]
    texts = {
        "mixed": mixed, "queries": queries, "checked": mixed[:16], "max_seq_length": longest
    }  # fmt: skip
    options_of = {"polyvec-fast": options.fast, QUERIES_ALONE: options.onnx}
    own = [kind for kind, wanted in options_of.items() if wanted]
    commands = {
        "polyvec": (sys.executable, folder),
        **dict.fromkeys(own, (sys.executable, folder)),
        "sentence-transformers": (sys.executable, folder),
        **{kind: (python, where) for kind, python, where in options.peer},
    }
    ways: list[tuple[str, int | None]] = []
    for kind in commands:
        if kind == QUERIES_ALONE:
            continue
        ways += [(kind, None)] if kind.startswith("polyvec") else [(kind, b) for b in BATCHES]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        file = Path(temporary) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        workers = {}
        for kind, (python, where) in commands.items():
            command = [python, str(WORKER), kind, where, str(file)]
            command += ["--threads", str(options.threads)]
            worker = Worker(command + (["--pooling", pooling] if pooling else []), options.threads)
            workers[kind] = worker
            stack.callback(worker.close)
        errors, cosines = _check(workers)
        figures: dict[tuple[str, int | None], list[Any]] = {way: [] for way in ways}
        asked: dict[str, list[Any]] = {kind: [] for kind in workers}
        rates = []
        for round_ in range(options.rounds):
            sizes = config.hidden_size, config.intermediate_size
            asked_rates = [worker.ask(do="rate", sizes=sizes) for worker in workers.values()]
            rates.append(statistics.median(asked_rates))
            for way in ways:
                figures[way].append(workers[way[0]].ask(do="batch", batch_size=way[1]))
                print(round_, way, figures[way][-1], file=sys.stderr, flush=True)
            for kind, worker in workers.items():
                asked[kind].append(worker.ask(do="queries"))
    flop = flop_of(config, lengths)
    return {
        "texts": len(mixed), "tokens": sum(lengths), "queries": len(queries),
        "query_tokens": [min(n), max(n)] if (n := _lengths(tokenizer, queries)) else [],
        "threads": options.threads, "rounds": options.rounds,
        "matmul_gflop_per_cpu_s": statistics.median(rates), "processor": processor(),
        "differences": errors, "cosines": cosines,
        "batches": [_batch(way, runs, len(mixed), flop, rates) for way, runs in figures.items()],
        "single": {kind: _single(rounds) for kind, rounds in asked.items()},
    }  # fmt: skip


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts)["input_ids"]]


def _check(workers: dict[str, Worker]) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference from our vectors, relative to the largest number, of each library.

    And the mean cosine with them, of those that compute in fewer bits.
    """
    found = {kind: np.array(worker.ask(do="vectors")) for kind, worker in workers.items()}
    ours = found["polyvec"]
    cosines = {kind: _cosine(found.pop(kind), ours) for kind in FEWER_BITS if kind in found}
    errors = {
        kind: float(abs(vectors - ours).max() / abs(ours).max()) for kind, vectors in found.items()
    }
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(f"vectors differ, so that times cannot be compared: {errors}")
    return errors, cosines


def _cosine(a_NE: np.ndarray, b_NE: np.ndarray) -> float:
    sizes = np.linalg.norm(a_NE, axis=1) * np.linalg.norm(b_NE, axis=1)
    return float(((a_NE * b_NE).sum(axis=1) / sizes).mean())


def _batch(
    way: tuple[str, int | None], runs: list[Any], texts: int, flop: float, rates: list[float]
) -> dict[str, Any]:
    """Medians over the rounds; the share of the products' rate within each round."""
    wall, cpu = (statistics.median(run[place] for run in runs) for place in (0, 1))
    shares = [flop / run[1] / 1e9 / rate for run, rate in zip(runs, rates, strict=True)]
    return {
        "library": way[0], "batch_size": way[1], "cpu_s": cpu, "wall_s": wall,
        "texts_per_cpu_s": texts / cpu, "of_matmul_rate": statistics.median(shares),
        "runs": [{"wall_s": wall, "cpu_s": cpu} for wall, cpu in runs],
    }  # fmt: skip


def _single(rounds: list[Any]) -> dict[str, float]:
    """Milliseconds a query, medians over the rounds."""
    found = {}
    for place, name in ((0, "wall"), (1, "cpu")):
        for percent in (50, 99):
            each = [np.percentile([run[place] for run in runs], percent) for runs in rounds]
            found[f"{name}_p{percent}_ms"] = 1000 * statistics.median(map(float, each))
    return found


FIRST = "polyvec, first start with a model"
START = {
    "polyvec": "from polyvec.cli import main; main(['embed'])",
    FIRST: "from polyvec.cli import main; main(['embed'])",
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer as S; import sys; "
        "S({folder!r}, device='cpu').encode([sys.stdin.read()]).tolist()"
    ),
    "import of sentence-transformers": "import sentence_transformers",
    "import of tokenizers and safetensors": "import tokenizers, safetensors",
    "import of torch": "import torch",
    "import of torch and polyvec's embedder": "import polyvec.embed.embedder",
    "import of transformers": "import transformers",
    "import of transformers' model": "from transformers import BertModel, AutoTokenizer",
}


def start(options: argparse.Namespace) -> dict[str, Any]:
    """CPU-seconds of a process that embeds one text, medians.

    The first run of each is not counted: it compiles modules, and polyvec compares its two ways.
    """
    folder = str(offline_folder())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as in an installation
    found: dict[str, list[float]] = {name: [] for name in START}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.rounds + 1):
            for name, code in START.items():
                cache = Path(temporary, str(number) if name == FIRST else "known")
                with children_cpu() as spent:
                    command = [sys.executable, "-c", code.format(folder=folder)]
                    subprocess.run(
                        command, input="a cat", text=True, check=True, stdout=subprocess.DEVNULL,
                        env={**environment, "XDG_CACHE_HOME": str(cache)},
                    )  # fmt: skip
                found[name] += spent if number else []
                print(number, name, spent, file=sys.stderr, flush=True)
    return {
        "cpu_s": {name: statistics.median(each) for name, each in found.items()},
        "rounds": options.rounds, "processor": processor(),
    }  # fmt: skip


@contextlib.contextmanager
def children_cpu() -> Iterator[list[float]]:
    """The CPU-seconds of the processes that end inside, in the list."""
    spent: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield spent
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def processor() -> str:
    """Its name, and the widest instructions that torch uses."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=[*TASKS, "start"])
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="dtype='fast', too")
    parser.add_argument("--onnx", action="store_true", help="backend='onnx', too, for queries")
    parser.add_argument("--peer", nargs=3, action="append", default=[])
    options = parser.parse_args()
    found = start(options) if options.task == "start" else compared(options)
    # Figures of several processors stay beside each other.
    key = f"{options.task}-{options.threads}-{found['processor'].split('(')[0].split()[0]}"
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    known[key] = found
    with atomic_file(RESULTS, "w") as file:
        file.write(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
