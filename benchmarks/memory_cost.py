"""What reading a memory costs beside the whole text: prefill tokens and CPU seconds.

    python benchmarks/memory_cost.py --data DATA --lengths 512 1024 2048 4096

SmolLM2-135M reads a question after a context, and after a memory of it. Memories are untrained:
what they cost does not depend on their weights. Seconds are CPU seconds of one thread. A memory is
made once and read often: `pays after` is how many questions it takes until making and reading it
cost less than reading the text each time. Results go to docs/results/compress-text.json.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compress_text import store
from text_contexts import squad

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.memory import Memory, joined
from polyvec.compress.soft.settings import ANSWER, CompressorSettings
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings

READER = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEMORIES: Mapping[str, tuple[str, CompressorSettings]] = {
    "slots, 1 for 16 tokens": (
        READER,
        CompressorSettings(
            "slots",
            {"ratio": 16, "shared": True, "segment": 128, "combine": "independent"},
            connector="mlp",
            max_context=8192,
        ),
    ),
    "16 slots, keys and values": (
        READER,
        CompressorSettings("slots", {"num": 16}, carrier="kv", max_context=8192),
    ),
    "digest of 128": (
        READER,
        CompressorSettings("digest", {"num": 128, "num_heads": 9}, max_context=8192),
    ),
    "a vector for each passage": (
        "sentence-transformers/all-MiniLM-L6-v2",
        CompressorSettings("vector", decoder=READER, max_context=8192),
    ),
}


def timed(repeat: int, call: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    """What a call gives, and its CPU seconds, the least of `repeat`."""
    best = float("inf")
    for _ in range(repeat):
        began = time.process_time()
        found = call(*given)
        best = min(best, time.process_time() - began)
    return found, round(best, 3)


@torch.no_grad()
def prefill(model: SoftCompressor, question: str, memory: Memory | None, text: str | None) -> Any:
    asked = model.asked(ANSWER, question=question, context=text)
    batch = None if memory is None else model.batch([memory])
    return model.decoder.begin([asked], batch)


def of_length(model: SoftCompressor, length: int, pool: list[str]) -> list[str]:
    """Passages of so many tokens together, the last one cut."""
    tokenizer, found, left = model.decoder.tokenizer, [], length
    for text in pool:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:left]
        found.append(tokenizer.decode(ids))
        left -= len(ids)
        if not left:
            return found
    raise SystemExit(f"the pool has fewer than {length} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    items = squad(options.data, 40, 7, others=3)
    question = items[0].question
    pool = list(dict.fromkeys(text for each in items for text in each.texts))
    models: dict[str, SoftCompressor] = {}
    for name, (backbone, settings) in MEMORIES.items():
        models[name] = SoftCompressor(compose(EmbedderSettings(backbone)), settings).eval()
    for length in options.lengths:
        first = next(iter(models.values()))
        passages = of_length(first, length, pool)
        text = "\n\n".join(passages)
        prefill(first, question, None, "warm up")
        _, seconds = timed(options.repeat, prefill, first, question, None, text)
        read = len(first.asked(ANSWER, context=text).context)
        cell: dict[str, Any] = {"whole": {"tokens": read, "prefill s": seconds}}
        for name, model in models.items():
            several = passages if name == "a vector for each passage" else [text]
            model.compress(["warm up " * 100])
            memories, made = timed(1, model.compress, several)
            memory = joined(memories)
            repeat = max(3, options.repeat)  # it is short
            _, seconds = timed(repeat, prefill, model, question, memory, None)
            cell[name] = {"tokens": len(memory), "prefill s": seconds, "compression s": made}
        store(("memory cost", str(length)), cell)
        print(length, cell, flush=True)


if __name__ == "__main__":
    main()
