"""Packed against padded batches of a decoder, made bidirectional, on the CPU: times and vectors.

    python benchmarks/packing_cpu.py            (about 2 minutes, two cores)

A small Llama with random weights (256 wide, 4 layers) reads 64 texts of log-normal lengths.
Padded: one batch through transformers' own sdpa attention. Packed: the same texts
concatenated, through polyvec's attention. Runs alternate, medians are compared, and the states
must agree to 1e-5.
"""

import argparse
import copy
import statistics
import sys
import time

import torch
from transformers import AutoModel, LlamaConfig, PreTrainedModel

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.runners import Native
from polyvec.embed.inputs.tokens import TokenBatch

CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048,
)  # fmt: skip
# Share of padding, and the speedup required of packing at that share.
WANTED = {0.60: 2.1, 0.79: 3.5}
LONGEST = 512


def lengths(share: float, count: int = 64) -> list[int]:
    """Lengths of texts of which `share` of the padded batch is padding."""
    draw = torch.randn(count, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, 8.0
    for _ in range(40):
        mean = (low + high) / 2
        found = (draw * 0.9 + mean).exp().clamp(8, LONGEST).long()
        found[0] = LONGEST
        low, high = (mean, high) if found.float().mean() < (1 - share) * LONGEST else (low, mean)
    return found.tolist()


def model() -> PreTrainedModel:
    return AutoModel.from_config(copy.deepcopy(CONFIG), attn_implementation="sdpa").eval()


def seconds(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(share: float, runs: int) -> tuple[float, float, float]:
    """Padding share, ratio of median times, and the largest difference of states."""
    torch.manual_seed(0)
    texts = [torch.randint(5, 97, (n,)).numpy() for n in sorted(lengths(share), reverse=True)]
    batch = TokenBatch.of_ids(texts)
    packed = Backbone(model(), attention="bidirectional")
    theirs = model()
    theirs.load_state_dict(packed.model.state_dict())
    theirs.config.is_causal = False
    padded = Native(theirs, 0)
    spec = AttentionSpec("bidirectional")
    ours = lambda: packed(batch).last_BTD  # noqa: E731
    native = lambda: padded.run(batch, spec, frozenset()).last_hidden_state  # noqa: E731
    with torch.inference_mode():
        a, b = ours(), native()
        seen = packed(batch).attention_mask_BT
        error = float((a[seen] - b[seen]).abs().max())
        times = [(seconds(ours), seconds(native)) for _ in range(runs)]
    ratio = statistics.median(n for _, n in times) / statistics.median(o for o, _ in times)
    return 1 - len(batch.ids_T) / seen.numel(), ratio, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    failed = False
    print("padding\tpacked is faster by\twanted\tlargest difference")
    for share, wanted in WANTED.items():
        padding, ratio, error = compare(share, options.runs)
        failed |= ratio < wanted or error > 1e-5
        print(f"{padding:.0%}\t{ratio:.2f}\t{wanted}\t{error:.1e}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
