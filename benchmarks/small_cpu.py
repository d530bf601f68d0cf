"""Tokens a second of SmolLM2-135M on the CPU: encoding, writing and a LoRA step, beside peers.

Encoding beside sentence-transformers, writing beside transformers' generate, a contrastive LoRA
step on packed batches beside the same step on padded ones. The same weights, texts and threads, in
alternating runs within one process; medians of wall time, and of CPU time where the machine is
shared. Tokens are real ones: padding does not count.

    python benchmarks/small_cpu.py                       # float32, about 6 minutes on two cores
    python benchmarks/small_cpu.py --dtype bfloat16      # for processors with bfloat16 products
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from encode_cpu import mixed_texts
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from polyvec import Embedder, load_language_model
from polyvec.embed.encoding import tokenize
from polyvec.embed.formats.small import SMALL_MODEL
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.interfaces import Prompt

RUNS = 3
PAIRS = 8
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def alternating(ways: dict[str, Callable[[], int]]) -> None:
    """Runs each way in turn and prints tokens a second; the first way is ours."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    tokens = {}
    for _ in range(RUNS):
        for name, way in ways.items():
            began, spent = time.perf_counter(), time.process_time()
            tokens[name] = way()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - spent)
    rates = {name: tokens[name] / statistics.median(wall[name]) for name in ways}
    costs = {name: tokens[name] / statistics.median(cpu[name]) for name in ways}
    ours = next(iter(ways))
    for name in ways:
        ratio = "" if name == ours else f"   ours {rates[ours] / rates[name]:.2f} times as fast"
        print(f"  {name:34} {rates[name]:8.1f} tokens/s {costs[name]:8.1f} /CPU-s{ratio}")


def encoding(folder: str, dtype: str, count: int) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    texts = mixed_texts(count)
    ours = Embedder.from_pretrained(folder, pooling="mean", dtype=dtype, max_seq_length=512)
    body = Transformer(
        folder,
        model_kwargs={"dtype": getattr(torch, dtype)},
        # Else the peer puts each text into the tokenizer's chat format.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    peer = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), "mean")])
    peer.max_seq_length = 512
    num = sum(len(ids) for ids in ours.tokenizer(texts).input_ids)
    a, b = ours.encode(texts[:8]), peer.encode(texts[:8])
    difference = float(abs(a - b).max() / abs(b).max())
    if difference > (1e-4 if dtype == "float32" else 3e-2):
        raise SystemExit(f"vectors differ by {difference:.1e} of the largest number: not the same")
    print(f"encoding {count} texts, {num} tokens; vectors differ by at most {difference:.1e}")

    def run(model: Any) -> int:
        model.encode(texts, show_progress_bar=False)
        return num

    alternating({"polyvec": lambda: run(ours), "sentence-transformers": lambda: run(peer)})


def writing(folder: str, dtype: str) -> None:
    model: Any = load_language_model(folder, dtype=dtype)
    tokenizer, peer = model.tokens.tokenizer, model.model.lm
    end = tokenizer.eos_token_id
    words = " ".join(mixed_texts(40)).split()
    draw = random.Random(0)

    def prompts(count: int) -> list[str]:
        starts = [draw.randrange(len(words) - 150) for _ in range(count)]
        return [" ".join(words[start : start + draw.randint(60, 120)]) for start in starts]

    for count in (1, 8, 32):
        asked = prompts(count)
        lengths = [len(ids) for ids in tokenizer(asked).input_ids]
        print(f"writing 32 tokens after {count} prompts of {min(lengths)} to {max(lengths)} tokens")
        padded = tokenizer(asked, return_tensors="pt", padding=True, padding_side="left")

        def ours(asked: Sequence[str] = asked) -> int:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # answers are cut at 32 tokens on purpose
                found = model.generate(asked, max_new_tokens=32)
            return sum(each.answer.new_tokens for each in found)

        def theirs(padded: Any = padded) -> int:
            with torch.no_grad():
                out = peer.generate(**padded, max_new_tokens=32, do_sample=False, pad_token_id=end)
            new = out[:, padded["input_ids"].shape[1] :]
            ended = (new == end).cumsum(dim=1).clamp(max=1)
            return int((1 - ended).sum() + ended.any(dim=1).sum())

        alternating({"polyvec": ours, "transformers generate": theirs})


def training(folder: str, dtype: str) -> None:
    """One step: 8 pairs of mixed length, InfoNCE, backward through LoRA on all matrices.

    A step in one pass keeps about 3 MB a token in float32, so a larger batch needs a cache.
    """
    embedder = Embedder.from_pretrained(folder, pooling="mean", dtype=dtype, max_seq_length=256)
    inject_adapter_in_model(LoraConfig(**LORA), embedder.backbone.model)
    trained = [p for name, p in embedder.named_parameters() if "lora" in name]
    embedder.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    texts = mixed_texts(2 * PAIRS)
    tokens = [each for (each,) in tokenize(embedder, texts, Prompt())]
    num = sum(map(len, tokens))

    def step(vectors: Sequence[Tensor]) -> int:
        a, b = (torch.nn.functional.normalize(x.float(), dim=-1) for x in vectors)
        loss = torch.nn.functional.cross_entropy(a @ b.T / 0.05, torch.arange(len(a)))
        loss.backward()
        for parameter in (*trained, *padded_embedder.parameters()):
            parameter.grad = None
        return num

    halves = [TokenBatch.of(range(start, start + PAIRS), tokens) for start in (0, PAIRS)]
    print(f"a LoRA step on {PAIRS} pairs, {num} tokens")

    def packed() -> int:
        return step([embedder(half) for half in halves])

    padded_embedder = Embedder.from_pretrained(
        folder, pooling="mean", dtype=dtype, max_seq_length=256, layout="padded"
    )
    inject_adapter_in_model(LoraConfig(**LORA), padded_embedder.backbone.model)
    padded_embedder.requires_grad_(False)
    for name, parameter in padded_embedder.named_parameters():
        parameter.requires_grad_("lora" in name)

    def padded() -> int:
        return step([padded_embedder(half) for half in halves])

    alternating({"packed": packed, "padded": padded})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--only", choices=("encode", "write", "train"))
    options = parser.parse_args()
    folder = str(model_folder(SMALL_MODEL))
    print(f"SmolLM2-135M in {options.dtype}, {torch.get_num_threads()} threads")
    if options.only in (None, "encode"):
        encoding(folder, options.dtype, options.texts)
    if options.only in (None, "write"):
        writing(folder, options.dtype)
    if options.only in (None, "train"):
        training(folder, options.dtype)


if __name__ == "__main__":
    main()
