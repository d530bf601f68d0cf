"""Embedder.encode against SentenceTransformer.encode for decoders on a GPU, in bfloat16.

The same random weights of a Mistral shape (7b: 32 layers of 4,096; 135m: SmolLM2's), the same
texts of mixed length (those of encode_cpu.py), mean pooling, causal attention, alternating runs
within one process; figures are medians. Model FLOP utilisation is the useful work, real tokens
only, against the rate of an 8,192 x 8,192 x 8,192 product of the same process. The peer runs at
its default batches of 32, and of 128.

    python benchmarks/encode_gpu.py                # a minute, 30 GB of GPU memory
    python benchmarks/encode_gpu.py --shape tiny --texts 40     # where there is no GPU
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from encode_cpu import mixed_texts
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer, MistralConfig, PreTrainedModel

from polyvec import Embedder
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.interfaces import RunOptions

SHAPES = {
    "7b": (32, 4096, 14336, 32, 8),
    "135m": (30, 576, 1536, 9, 3),
    "tiny": (2, 64, 128, 4, 2),
}
QUIET = RunOptions(show_progress_bar=False, truncate="silent")


def decoder(shape: str, vocabulary: int, device: str) -> PreTrainedModel:
    layers, width, inner, heads, kinds = SHAPES[shape]
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kinds,
        head_dim=width // heads,
        sliding_window=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModel.from_config(config, dtype=torch.bfloat16).eval()


def peer(model: PreTrainedModel, tokenizer: Any) -> Any:
    """SentenceTransformer around the same weights, with its default attention."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    shared = copy.deepcopy(model, {id(p): p for p in (*model.parameters(), *model.buffers())})
    shared.set_attn_implementation("sdpa")
    small = copy.deepcopy(model.config)
    small.update({"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64})
    small.update({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16})
    with tempfile.TemporaryDirectory() as folder:
        AutoModel.from_config(small).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        first = Transformer(folder)
    holder = "model" if "model" in first._modules else "auto_model"
    setattr(first, holder, shared)
    size = model.config.hidden_size
    return SentenceTransformer(modules=[first, Pooling(size)], device=str(model.device))


def useful_flop(model: PreTrainedModel, lengths: list[int]) -> float:
    """Multiplications and additions of the layers for real tokens; a causal half of attention."""
    weights = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    return sum(2 * n * weights + 2 * n * n * width * layers for n in lengths)


def matmul_rate(device: str, side: int) -> float:
    """FLOP/s of a square product in bfloat16, the best of 10."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = min(timed(lambda: a @ b, device) for _ in range(10))
    return 2 * side**3 / best


def timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--texts", type=int, default=800)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = mixed_texts(options.texts)
    tokenizer = AutoTokenizer.from_pretrained(model_folder("polyvec/nano-lm"))
    model = decoder(options.shape, len(tokenizer), device)
    theirs = peer(model, tokenizer)
    backbone = Backbone(model, tokenizer.pad_token_id or 0)
    ours = Embedder.from_parts(backbone, TextTokenizer(tokenizer), pooling="mean").eval()
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    flop = useful_flop(model, lengths)
    rate = matmul_rate(device, 8192 if device == "cuda" else 1024)

    def padded() -> Any:
        backbone.runner.packed = False
        try:
            return ours.encode_with_report(texts, options=QUIET)[0]
        finally:
            backbone.runner.packed = True

    ways: dict[str, Callable[[], Any]] = {
        "polyvec": lambda: ours.encode_with_report(texts, options=QUIET)[0]
    }
    if backbone.mechanism == "plan":
        ways["polyvec, padded"] = padded
    for size in (32, 128):
        ways[f"sentence-transformers, batches of {size}"] = lambda size=size: theirs.encode(
            texts, batch_size=size, show_progress_bar=False
        )
    vectors = {name: np.asarray(way()).astype(np.float32) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.runs):
        for name, way in ways.items():
            times[name].append(timed(way, device))
    first = vectors["polyvec"]
    table = Table(
        "median of runs", "tokens/s", "of matmul rate", "ratio", "least cosine to polyvec"
    )
    slowest = statistics.median(times["sentence-transformers, batches of 32"])
    for name, found in times.items():
        seconds = statistics.median(found)
        norms = np.linalg.norm(vectors[name], axis=1) * np.linalg.norm(first, axis=1)
        table.add_row(
            name,
            f"{sum(lengths) / seconds:,.0f}",
            f"{flop / seconds / rate:.0%}",
            f"{slowest / seconds:.2f}",
            f"{((vectors[name] * first).sum(1) / norms).min():.4f}",
        )
    what = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    console = Console()
    console.print(table)
    console.print(
        f"{options.shape}, {len(texts)} texts, {sum(lengths):,} tokens, {backbone.layout}; {what}, "
        f"{rate / 1e12:.1f} TFLOP/s in products, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
