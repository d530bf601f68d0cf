"""Pretrain polyvec-nano, from plain text to a Hugging Face directory with a model card.

    torchrun --nproc-per-node 2 examples/pretrain_nano.py all --threads 1 --minutes 150 \\
        --data ../shared/data --out src/polyvec/nano        # two cores: both models, figures
    python examples/pretrain_nano.py all --preset gpu \\
        --data ../shared/data --out src/polyvec/nano        # one GPU: the same, bigger
    python examples/pretrain_nano.py lm --preset smoke        # all steps, little text, seconds
    python examples/pretrain_nano.py moe --minutes 3          # a mixture-of-experts twin of the lm

One process a core (or GPU) needs no barrier inside a matrix product, so other work on the machine
costs its share of the time and not a multiple: two threads made 470 tokens a second beside busy
neighbours where two processes made about 4,000. Also `lm`, then `t5`, one at a time.

A run is prepare (read, deduplicate, drop what overlaps an evaluation, tokenize) > train > write.
Ctrl-C or SIGTERM saves, and the same command goes on from --work. Everything follows from the seed
and the number of steps; --minutes and --stop-at only choose that number while running, and the
card records it, so `--steps N` repeats a timed run. nano_corpus.py has the texts, nano_model.py
the models, losses and optimizers; eval_nano.py measures the result (its top says what it needs).

Shapes: B rows, T tokens, D states.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nano_corpus import Corpus, read_corpus
from nano_model import (
    BOS,
    BOS_ID,
    CONTEXT,
    EOS,
    EOS_ID,
    MASK,
    PAD,
    PRESETS,
    SENTINELS,
    Preset,
    causal_loss,
    corrupt,
    experts,
    llama,
    optimizers,
    place,
    rate_at,
    spectral_embedding,
    summed,
    t5,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from polyvec.nano import nano_lm, nano_lm_path

# ---- prepare ------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: any text goes in and comes out unchanged, and there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, MASK, *SENTINELS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer, kind: str) -> PreTrainedTokenizerFast:
    """The transformers tokenizer: `<s> text` for a decoder, `text </s>` for T5."""
    template, token = ("<s> $A", (BOS, BOS_ID)) if kind != "t5" else ("$A </s>", (EOS, EOS_ID))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=template, special_tokens=[token]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, mask_token=MASK,
        additional_special_tokens=SENTINELS, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """One array of ids for each document, between <s> and </s>."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array([BOS_ID, *each.ids, EOS_ID], dtype=np.uint16) for each in encoded]


def cached_corpus(work: Path, data: Path | None, *, caps: bool) -> Corpus:
    """The corpus, read and checked once for each `work` folder; its report goes to corpus.md."""
    path = work / "corpus.json"
    if not path.exists():
        corpus = read_corpus(data, caps=caps)
        print(corpus.report, file=sys.stderr)
        (work / "corpus.md").write_text(corpus.report)
        path.write_text(json.dumps(dataclasses.asdict(corpus)))
    return Corpus(**json.loads(path.read_text()))


def prepare(work: Path, corpus: Corpus, preset: Preset) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and the ids of the training documents and of those held out.

    Kept in `work`: a resumed run, and the second model, start from the same ids.
    """
    path, ids = work / "tokenizer.json", work / "ids.npz"
    if not ids.exists():
        if not path.exists():
            train_tokenizer(corpus.train, preset.vocabulary).save(str(path))
        tokenizer = Tokenizer.from_file(str(path))
        train, held_out = tokenize(tokenizer, corpus.train), tokenize(tokenizer, corpus.held_out)
        ends = np.cumsum([len(each) for each in train])
        np.savez(ids, train=np.concatenate(train), ends=ends, held_out=np.concatenate(held_out))
    saved = np.load(ids)
    train = np.split(saved["train"], saved["ends"][:-1])
    facts = {
        "train": train,
        "repeats": np.array(corpus.repeats),
        "held_out": saved["held_out"].astype(np.int64),
        "held_out_bytes": sum(len(text.encode()) for text in corpus.held_out),
        "characters": sum(map(len, corpus.train)),
        "tokens": len(saved["train"]),
        "tokens_with_repeats": int(np.diff(saved["ends"], prepend=0) @ np.array(corpus.repeats)),
    }
    return Tokenizer.from_file(str(path)), facts


class Stream:
    """Documents in a new order each epoch, end to end without padding; a place is two integers."""

    def __init__(self, documents: list[np.ndarray], repeats: np.ndarray, seed: int):
        self.documents, self.repeats, self.seed = documents, repeats, seed
        self.epoch, self.cursor, self.tokens = -1, 0, np.empty(0, np.int64)

    def seek(self, epoch: int, cursor: int) -> None:
        """Go to a place, as a resumed run does."""
        if epoch != self.epoch:
            order = np.repeat(np.arange(len(self.documents)), self.repeats)
            np.random.default_rng([self.seed, epoch]).shuffle(order)
            self.tokens = np.concatenate([self.documents[i] for i in order]).astype(np.int64)
        self.epoch, self.cursor = epoch, cursor

    def take(self, rows: int, length: int) -> Tensor:
        """The next ids, [rows, length + 1]: the last of a row is only ever a target."""
        if self.epoch < 0 or self.cursor + rows * length + 1 > len(self.tokens):
            self.seek(self.epoch + 1, 0)
        here = np.arange(rows)[:, None] * length + np.arange(length + 1) + self.cursor
        self.cursor += rows * length
        return torch.from_numpy(self.tokens[here])


# ---- training -----------------------------------------------------------------------------------


class Run:
    """One training: what a checkpoint holds, and how a step is made."""

    def __init__(
        self, kind: str, model: nn.Module, facts: dict[str, Any], preset: Preset, seed: int
    ):
        self.kind, self.preset, self.facts, self.seed = kind, preset, facts, seed
        self.model = model.to(preset.device)
        if dist.is_initialized():
            for weight in self.model.parameters():
                dist.broadcast(weight.data, 0)
        self.stream = Stream(facts["train"], facts["repeats"], seed)
        self.optimizers = optimizers(self.model, preset)
        self.step, self.seen, self.total, self.best = 0, 0, math.inf, math.inf
        self.curve: list[tuple[int, int, float]] = []
        self.signalled, self.halting = False, False
        self.body = torch.compile(self._states, dynamic=False) if preset.compiled else self._states

    def _states(self, ids_BT: Tensor) -> Tensor:
        return self.model.model(input_ids=ids_BT, use_cache=False).last_hidden_state

    def loss(self, ids_BT: Tensor, seed: tuple[int, ...]) -> tuple[Tensor, int]:
        """Summed nats of a micro-batch, and how many tokens they are of."""
        device = self.preset.device
        mixed = (
            torch.autocast(device, torch.bfloat16) if device != "cpu" else contextlib.nullcontext()
        )
        with mixed:
            if self.kind == "t5":
                inputs, targets = corrupt(ids_BT[:, :-1], seed)
                out = self.model(input_ids=inputs.to(device), labels=targets.to(device))
                return out.loss * targets.numel(), targets.numel()
            if self.kind == "moe":
                ids = ids_BT.to(device)
                out = self.model(input_ids=ids, labels=ids, output_router_logits=True)
                return out.loss * ids_BT[:, 1:].numel(), ids_BT[:, 1:].numel()
            body = self.body if torch.is_grad_enabled() else self._states  # one graph to compile
            nats = causal_loss(body, self.model.lm_head.weight, ids_BT.to(device))
            return nats, ids_BT[:, 1:].numel()

    def advance(self) -> float:
        """One optimizer step; mean nats per predicted token."""
        decaying = math.isfinite(self.total) and self.step >= self.total * (1 - self.preset.decay)
        length = CONTEXT if decaying else self.preset.context
        (rank, world), rows = place(), self.preset.rows_tokens // length
        micro = max(1, self.preset.micro_tokens // length)
        mine = self.stream.take(rows, length)[rank::world]
        sums = torch.tensor([0.0, 0.0, self.signalled])
        for i, part in enumerate(mine.split(micro)):
            loss, tokens = self.loss(part, (self.seed, self.step, rank, i))
            (loss / tokens * (len(part) / rows)).backward()
            sums += torch.tensor([float(loss.detach()), tokens, 0])
        self._update(rate_at(self.step, self.total, self.preset))
        self.step, self.seen = self.step + 1, self.seen + rows * length
        nats, count, halts = summed(sums).tolist()
        self.halting = halts > 0  # agreed: a signal reaches the processes in different steps
        return nats / count

    def _update(self, share: float) -> None:
        """Step all optimizers on the gradient of all processes, at `share` of their rates."""
        grads = [w.grad for w in self.model.parameters() if w.grad is not None]
        if dist.is_initialized():
            together = summed(torch.cat([grad.flatten() for grad in grads]))
            for grad, part in zip(grads, together.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def held_out(self, limit: int = 96) -> float:
        """Mean nats per predicted token on up to `limit` rows of held-out text."""
        length = self.preset.context
        ids = torch.from_numpy(self.facts["held_out"])
        rows = min(limit, (len(ids) - 1) // length)
        first = torch.linspace(0, len(ids) - length - 1, rows).long()  # of every source
        window = first[:, None] + torch.arange(length + 1)
        (rank, world), sums = place(), torch.zeros(2, dtype=torch.float64)
        for i, part in list(enumerate(ids[window].split(8)))[rank::world]:
            nats, count = self.loss(part, (self.seed, i))
            sums += torch.tensor([float(nats), count])
        nats, count = summed(sums).tolist()
        return nats / count

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs, whole or not at all; the first process does."""
        if place()[0]:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "place": (self.stream.epoch, self.stream.cursor), "step": self.step, "seen": self.seen,
            "total": self.total, "best": self.best, "curve": self.curve,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Go on where `save` was called."""
        state = torch.load(path, weights_only=True, map_location=self.preset.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stream.seek(*state["place"])
        for name in ("step", "seen", "total", "best", "curve"):
            setattr(self, name, state[name])


def end_by_clock(run: Run, deadline: float, seconds_per_step: float) -> float:
    """Total steps once the decay must begin to end at `deadline`; infinity before that."""
    decay_steps = run.step * run.preset.decay / (1 - run.preset.decay)
    due = torch.tensor(float(time.time() + decay_steps * seconds_per_step >= deadline))
    return round(run.step / (1 - run.preset.decay)) if summed(due) > 0 else math.inf


def train(run: Run, work: Path, *, total: float, deadline: float, halt_at: float) -> bool:
    """Steps up to the end (True) or a halt (False); the best held-out weights stay in `work`."""
    checkpoint, best = work / f"{run.kind}.pt", work / f"{run.kind}-best.safetensors"
    if checkpoint.exists():
        run.load(checkpoint)
    run.total = total if math.isfinite(total) else run.total
    peak, times = matmul_rate(run.preset.device) * place()[1], [1.0]
    work_per_token = 6 * sum(weight.numel() for weight in run.model.parameters())
    while run.step < run.total:
        if run.step >= halt_at or run.halting:
            run.save(checkpoint)
            return False
        began = time.time()
        nats = run.advance()
        times = [*times[-40:], time.time() - began]
        pace = statistics.median(times)  # a paused machine is an outlier, not a slower one
        # The first steps after a start are slow ones, and the decay cannot be taken back.
        settled = len(times) > min(20, run.preset.warmup) and run.step > run.preset.warmup
        if not math.isfinite(run.total) and settled:
            run.total = end_by_clock(run, deadline, pace)
        if not math.isfinite(run.total) and time.time() >= deadline:
            run.total = run.step  # too short a time for a warm-up: what is there counts
        show(run, nats, pace, work_per_token / peak, deadline)
        if run.step % run.preset.check_every == 0 or run.step >= run.total:
            keep_best(run, best)
            run.save(checkpoint)
    return True


@contextlib.contextmanager
def stopping(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to finish its step and save, rather than ending it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda *_: setattr(run, "signalled", True)) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def keep_best(run: Run, path: Path) -> None:
    """Held-out loss into the curve; the weights into `path` if none were better."""
    loss = run.held_out()
    run.curve.append((run.step, run.seen, loss))
    better, run.best = loss <= run.best, min(loss, run.best)
    if place()[0]:
        return
    if better:
        weights = {k: v.contiguous() for k, v in run.model.state_dict().items() if _stored(k)}
        save_file(weights, str(path))
    print(
        f"\n  step {run.step}: held-out {loss:.4f} nats/token (best {run.best:.4f})",
        file=sys.stderr,
    )


def _stored(name: str) -> bool:
    """Tied copies of the embedding are not stored twice."""
    return name not in (
        "lm_head.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    )


def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a 1024-wide matrix product: what 100 % means."""
    dtype, size = (torch.float32, 1024) if device == "cpu" else (torch.bfloat16, 8192)
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def show(run: Run, nats: float, pace: float, seconds_at_peak: float, deadline: float) -> None:
    """The progress line: redrawn on a terminal, every 20th step in a log."""
    if place()[0] or (not sys.stderr.isatty() and run.step % 20):
        return
    speed = run.seen / run.step / pace
    left = (run.total - run.step) * pace if math.isfinite(run.total) else deadline - time.time()
    share = "-" if not math.isfinite(run.total) else f"{run.step / run.total:.0%}"
    line = (
        f"{run.kind} step {run.step} ({share})  loss {nats:.3f}  {run.seen / 1e6:.2f}M tokens  "
        f"{speed:.0f} tokens/s  {speed * seconds_at_peak:.0%} of matmul peak  "
        f"{left / 60:.1f} min left"
    )
    print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


# ---- writing ------------------------------------------------------------------------------------


def write(run: Run, tokenizer: Tokenizer, work: Path, out: Path, command: str) -> None:
    """The Hugging Face directory: bfloat16 safetensors, tokenizer, configuration, model card."""
    weights = load_file(str(work / f"{run.kind}-best.safetensors"))
    run.model.load_state_dict(weights, strict=False)
    run.model.tie_weights()
    run.model.to("cpu", torch.bfloat16).save_pretrained(out)
    wrap_tokenizer(tokenizer, run.kind).save_pretrained(out)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "model.safetensors").chmod(0o644)  # a wheel keeps the mode, and others must read it
    (out / "README.md").write_text(card(run, work, digest, command))


def card(run: Run, work: Path, digest: str, command: str) -> str:
    """The model card: what it is, what it saw and under which licences, how to repeat it."""
    facts, parameters = run.facts, sum(w.numel() for w in run.model.parameters())
    bits = run.best / math.log(2) * len(facts["held_out"]) / facts["held_out_bytes"]
    curve = "\n".join(
        f"| {step} | {seen / 1e6:.2f} | {loss:.4f} |" for step, seen, loss in run.curve
    )
    names = {"lm": "nano-lm", "t5": "nano-t5", "moe": "nano-moe"}
    about = {
        "lm": f"A Llama-style causal language model, held-out {bits:.3f} bits per byte of its mix",
        "t5": f"A T5 1.1-style encoder-decoder, held-out {run.best:.3f} nats per span token",
        "moe": f"nano-lm with four experts a layer, held-out loss {run.best:.3f} with balancing",
    }
    vocabulary = len(run.model.get_input_embeddings().weight)
    return f"""---
language: en
library_name: transformers
license: other
---
# polyvec {names[run.kind]}

{about[run.kind]}. {parameters:,} parameters, context {CONTEXT}, byte-level BPE of
{vocabulary:,}. A test instrument: it makes the effects of prompts, pooling, attention and training
visible on two cores. It knows nothing; do not ask it facts.

sha256 of model.safetensors: `{digest}`

Made by `{command}`
(torch {torch.__version__}): {run.seen:,} tokens read, of a corpus of {facts["characters"]:,}
characters and {facts["tokens"]:,} tokens ({facts["tokens_with_repeats"]:,} with its repeats);
{run.seen / parameters:.1f} tokens per parameter. The weights kept are the best by held-out loss.
Figures: docs/nano.md of the project.

## What it saw, and licences

The weights are statistics of the texts below; no text is shipped. Some of them may be used for
research or non-commercially only (see the column): whether that binds weights is not settled law,
so treat these weights as for research and tests, and train your own for anything else.

{(work / "corpus.md").read_text()}
## Settings

```json
{json.dumps(dataclasses.asdict(run.preset), indent=1)}
```

| step | million tokens | held-out nats per token |
| --- | --- | --- |
{curve}
"""


def build(kind: str, preset: Preset, facts: dict[str, Any], work: Path, seed: int) -> nn.Module:
    """The untrained model of a kind; t5 and moe begin from what the lm in `work` learned.

    Without one in `work` the twin begins from the lm inside the package.
    """
    torch.manual_seed(seed)
    trained = work / "lm-best.safetensors"
    if kind == "lm":
        model = llama(preset, preset.vocabulary)
        if place()[0] == 0 and not (work / "lm.pt").exists():  # others are sent these weights
            start = spectral_embedding(facts["train"], preset.vocabulary, preset.hidden)
            model.model.embed_tokens.weight.data.copy_(start)
        return model
    if not trained.exists() and kind == "moe":
        return experts(nano_lm()[0].train(), seed)
    if not trained.exists():
        raise SystemExit(
            f"pretrain_nano: {kind} begins from the lm: run `lm` with --work {work} first"
        )
    if kind == "t5":
        model = t5(preset, preset.vocabulary)
        model.shared.weight.data.copy_(load_file(str(trained))["model.embed_tokens.weight"])
        model.shared.weight.data.mul_(1 / model.shared.weight.data.std())  # T5 expects spread 1
        return model
    model = llama(preset, preset.vocabulary)
    model.load_state_dict(load_file(str(trained)), strict=False)
    model.tie_weights()
    return experts(model, seed)


def keep_memory() -> None:
    """Let glibc keep freed buffers: giving each step's back to the kernel costs 14-25 % of it."""
    with contextlib.suppress(OSError, AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-3, 1 << 30), (-1, 1 << 30), (-2, 256 << 20)):
            mallopt(option, value)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=("lm", "t5", "moe", "all"))
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--data", type=Path, help="folder of the data sets (else: docstrings only)")
    parser.add_argument(
        "--work", type=Path, default=Path("nano-work"), help="checkpoints, token ids"
    )
    parser.add_argument("--out", type=Path, help="where nano-lm/ ... go (default: --work)")
    parser.add_argument("--no-caps", action="store_true", help="all of every source, first run")
    parser.add_argument("--lmplz", default="lmplz", help="KenLM's program, for `all`")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the preset's epochs)")
    parser.add_argument("--minutes", type=float, help="end about that long from now")
    parser.add_argument("--stop-at", metavar="HH:MM", help="end about then, UTC")
    parser.add_argument(
        "--halt-at-step", type=float, default=math.inf, help="save there; resume later"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def deadline_of(options: argparse.Namespace) -> float:
    """When to end, in seconds since the epoch; infinity without --minutes and --stop-at."""
    if options.minutes:
        return time.time() + 60 * options.minutes
    if options.stop_at:
        hours, minutes = map(int, options.stop_at.split(":"))
        today = time.time() // 86400 * 86400
        return today + hours * 3600 + minutes * 60
    return math.inf


def prepared(options: argparse.Namespace) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and the ids; the first process makes the files, the others wait for them."""
    preset = PRESETS[options.preset]
    caps = preset.caps and not options.no_caps
    if place()[0] == 0:
        prepare(options.work, cached_corpus(options.work, options.data, caps=caps), preset)
    summed(torch.zeros(1, device=preset.device))
    return prepare(options.work, cached_corpus(options.work, options.data, caps=caps), preset)


def make(kind: str, options: argparse.Namespace, deadline: float) -> Path | None:
    """Train one kind and write it; the directory, or None if halted before the end."""
    preset = PRESETS[options.preset]
    words = options.work / "tokenizer.json"
    if kind == "moe" and not (options.work / "lm-best.safetensors").exists():
        words.write_bytes((nano_lm_path() / "tokenizer.json").read_bytes())
    tokenizer, facts = prepared(options)
    model = build(kind, preset, facts, options.work, options.seed)
    run = Run(kind, model, facts, preset, options.seed)
    epochs = math.ceil(facts["tokens_with_repeats"] * preset.epochs / preset.rows_tokens)
    total = options.steps or (epochs if math.isinf(deadline) else math.inf)
    with stopping(run):
        halt_at = options.halt_at_step
        done = train(run, options.work, total=total, deadline=deadline, halt_at=halt_at)
    out = (options.out or options.work) / f"nano-{kind}"
    if done and place()[0] == 0:
        command = f"pretrain_nano.py {kind} --preset {options.preset} --steps {run.step}"
        command += f" --seed {options.seed} ({place()[1]} processes)"
        write(run, tokenizer, options.work, out, command)
    return out if done else None


def make_all(options: argparse.Namespace, deadline: float) -> Path | None:
    """The lm in three quarters of the time, t5 in the rest; then the page of figures."""
    now = time.time()
    if make("lm", options, now + 0.75 * (deadline - now)) is None:
        return None
    out = make("t5", options, deadline)
    if out and options.data and place()[0] == 0:
        import eval_nano

        folders = ["--models", str(out.parent), "--work", str(options.work)]
        eval_nano.main([*folders, "--data", str(options.data), "--lmplz", options.lmplz])
    return out.parent if out else None


def main(argv: list[str] | None = None) -> Path | None:
    """Prepare, train, write; the directory written, or None if halted before the end."""
    options = arguments(argv)
    keep_memory()
    deadline = deadline_of(options)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if "WORLD_SIZE" in os.environ:  # torchrun started us
        dist.init_process_group()
        if PRESETS[options.preset].device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if options.kind == "all":
        return make_all(options, deadline)
    return make(options.kind, options, deadline)


if __name__ == "__main__":
    main()
