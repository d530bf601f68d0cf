"""What evaluating costs beyond encoding: all English STS sets, SciFact and NFCorpus.

    python benchmarks/evaluate_cpu.py --data DATA             (about 10 minutes, two cores)

Each set is encoded alone (every text that the protocol needs, one call per role) and evaluated
without a vector cache, in alternating order. The ratio is that of the total times, wall and CPU;
neither includes reading the files.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from polyvec import Embedder
from polyvec.data.tasks.named import named_task
from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.evaluate.tasks import Evaluator
from polyvec.interfaces import RunOptions

TASKS = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sick-r", "scifact", "nfcorpus")
LIMIT = 1.15


def encode_alone(embedder: Embedder, data: StsSet | RetrievalSet) -> None:
    options = RunOptions(truncate="silent", show_progress_bar=False)
    if isinstance(data, StsSet):
        embedder.encode_with_report([*data.sentences1, *data.sentences2], options=options)
        return
    embedder.encode_with_report(list(data.corpus.values()), role="document", options=options)
    embedder.encode_with_report(list(data.queries.values()), role="query", options=options)


def timed(call) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    options = parser.parse_args()
    embedder = Embedder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
    evaluator = Evaluator(embedder, show_progress_bar=False)
    ratios = []
    for run in range(options.runs):
        alone, whole = [0.0, 0.0], [0.0, 0.0]
        for number, name in enumerate(options.tasks):
            data = named_task(name, options.data).read()
            jobs = [
                (alone, lambda data=data: encode_alone(embedder, data)),
                (whole, lambda data=data: evaluator.measure(data)),
            ]
            found = {}
            for total, job in jobs if (run + number) % 2 else reversed(jobs):
                wall, cpu = timed(job)
                total[0], total[1] = total[0] + wall, total[1] + cpu
                found[id(total)] = wall, cpu
            ratio = [b / a for a, b in zip(found[id(alone)], found[id(whole)], strict=True)]
            print(f"{name:10} encoding {found[id(alone)][0]:6.1f} s, evaluating "
                  f"{found[id(whole)][0]:6.1f} s: {ratio[0]:.3f} by wall, {ratio[1]:.3f} by CPU",
                  flush=True)  # fmt: skip
        ratios.append((whole[0] / alone[0], whole[1] / alone[1]))
        print(f"run {run + 1}: {ratios[-1][0]:.3f} by wall, {ratios[-1][1]:.3f} by CPU time")
    wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(
        f"evaluating takes {wall:.3f} times as long as encoding alone ({cpu:.3f} by CPU time); "
        f"at most {LIMIT} wanted; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
