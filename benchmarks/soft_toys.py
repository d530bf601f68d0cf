"""The orderings of soft compression on a language model that is trained in a minute.

It has 2 layers of 96 dimensions and 512 pieces of words, and learns captions of pictures (Multi30k)
before compressors do. A toy is a compressor, its stages and a measure.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from soft_arms import BATCH, Held, Table, best, rolled, token_accuracy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.memory import Memory
from polyvec.compress.soft.settings import ANSWER, AUTOENCODE, CONTINUE
from polyvec.data.training.sources import training_rows
from polyvec.data.words import hash64
from polyvec.evaluate.measures.text import exact_match

LENGTH = 8  # tokens that are written again
WIDTH, LAYERS, VOCABULARY = 96, 2, 512
TOKENS_A_FACT = 3  # "Ann", " red" and "." are tokens of the small tokenizer
FULL: Table = {"kind": "full"}
LORA: Table = {"kind": "lora", "rank": 64, "dropout": 0.0}  # nearly all of 96 dimensions
# What language models learn: their texts, the deviation of their first weights, and steps. From
# deviations of 0.02, which is usual for wide models, 3,000 steps do not teach this narrow one to
# look up a name in its text; from 1/√96 half of them do.
LANGUAGES: Mapping[str, tuple[float, int]] = {"captions": (0.02, 500), "repeated": (0.1, 1500)}
LANGUAGE: Table = {
    "kind": "ntp",
    "adapter": FULL,
    "batch_size": 32,
    "max_length": 48,
    "learning_rate": 3e-3,
    "warmup_steps": 0.1,
}
WRITES: Table = {
    "kind": "compress",
    "data": "first",
    "objectives": {"autoencode": 1.0},
    "end": False,
    "adapter": FULL,
    "batch_size": 32,
    "learning_rate": 4e-3,
    "warmup_steps": 0.1,
    "max_steps": 700,
}


@dataclass(frozen=True)
class Toy:
    """A compressor on the small language model. measure: a function in MEASURES.

    language: the texts that the language model has learned before.
    """

    compressor: Table
    measure: str
    stages: Sequence[Table]
    attention: str = "native"
    language: str = "captions"


def writing(carrier: str, num: int, decoder: str) -> Toy:
    """Captions of 8 tokens, written again from `num` vectors."""
    settings = {
        "memory": "slots",
        "memory_settings": {"num": num},
        "carrier": carrier,
        "decoder": decoder,
        "connector": "linear" if carrier == "hidden" else "none",
        "max_context": LENGTH,
        "max_target": LENGTH,
    }
    adapter = FULL if decoder == "same" else LORA
    return Toy(settings, "written", ({**WRITES, "adapter": adapter},))


def continuing(memory: str, settings: Table) -> Toy:
    """A third caption of a picture, after the memory of two others."""
    found = {
        "memory": memory,
        "memory_settings": settings,
        "connector": "linear",
        "max_context": 48,
        "max_target": 24,
    }
    stage = {**WRITES, "objectives": {"continue": 1.0}, "data": "third", "max_steps": 350}
    return Toy(found, "continued", (stage,))


def keyed() -> Toy:
    """Colours of people, asked for by name, through n-grams of two facts weighted by the question.

    The language model has learned to repeat what a text says of a name.
    """
    found = {
        "memory": "pooled",
        "memory_settings": {
            "size": 2 * TOKENS_A_FACT,
            "weights": "query",
            "num_heads": 4,
            "review": 0,
        },
        "connector": "linear",
        "query_aware": True,
        "max_context": 24,
        "prompts": {ANSWER: "{memory}{question}"},
    }
    stage = {**WRITES, "objectives": {"answer": 1.0}, "data": "facts"}
    stage |= {"learning_rate": 2e-3, "max_steps": 1000}
    return Toy(found, "keyed", (stage,), attention="bidirectional", language="repeated")


KEYED = "colours, n-grams"
TOYS: Mapping[str, Toy] = {
    **{f"hidden, m={m}, trained": writing("hidden", m, "same") for m in (1, 2, 8)},
    **{f"kv, m={m}, trained": writing("kv", m, "same") for m in (1, 2, 8)},
    **{f"{c}, m=2, frozen": writing(c, 2, "frozen") for c in ("hidden", "kv")},
    "third caption, accumulated": continuing(
        "slots", {"num": 4, "segment": 16, "combine": "accumulate"}
    ),
    "third caption, strided": continuing("strided", {"stride": 4, "segment": 24}),
    KEYED: keyed(),
}

# Each claim: an arm's column over another arm's (or another column of its own), and what is said.
Claim = tuple[str, str, str, str, str]
ACCUMULATED = "third caption, accumulated"
CLAIMS: Sequence[Claim] = (
    *(
        (f"{c}, m={more}, trained", "memory", f"{c}, m={less}, trained", "memory",
         "more vectors help")
        for c in ("hidden", "kv")
        for less, more in ((1, 2), (2, 8))
    ),
    *(
        (f"kv, m={m}, {d}", "memory", f"hidden, m={m}, {d}", "memory", "keys and values hold more")
        for m, d in ((1, "trained"), (2, "trained"), (8, "trained"), (2, "frozen"))
    ),
    *(
        (f"{c}, m=2, trained", "memory", f"{c}, m=2, frozen", "memory", "a trained decoder helps")
        for c in ("hidden", "kv")
    ),
    *(
        (arm, "memory", arm, "LM alone", "better than the language model alone")
        for arm in ("hidden, m=1, trained", "hidden, m=2, frozen", "kv, m=2, frozen")
    ),
    *(
        (arm, "LM alone", arm, "shuffled",
         "another's memory is no better than the language model alone")
        for arm in ("hidden, m=2, trained", "kv, m=2, trained", "hidden, m=2, frozen")
    ),
    *(
        (arm, other, arm, "memory", says)
        for arm in (ACCUMULATED, "third caption, strided")
        for other, says in (
            ("LM alone", "perplexity falls with a memory"),
            ("shuffled", "perplexity is higher with another's memory"),
        )
    ),
    (KEYED, "weight, asked", KEYED, "weight, neighbour asked",
     "an n-gram's weight moves to the fact that is asked for"),
    (KEYED, "em, memory", KEYED, "em, shuffled", "answers come from the memory"),
)  # fmt: skip


# ---- data ---------------------------------------------------------------------------------------


def write_data(folder: Path, data: Path) -> dict[str, Path]:
    """The toys' texts, as files that stages read; the same in every process."""
    found = {}
    for part in ("train", "test"):
        pictures = captions(data, part)
        training = part == "train"
        for name, rows in {
            "captions": [{"text": " ".join(each[:3])} for each in pictures],
            "first": [{"text": f"{each[0]} {each[1]}"[:48]} for each in pictures],
            "third": [{"query": f"{a} {b}", "positive": c} for a, b, c, *_ in pictures],
            "facts": asked_facts(12_000 if training else 200, part),
            "again": again(6_000 if training else 200, part),
            "repeated": repeated(20_000 if training else 200, part),
        }.items():
            path = folder / f"{name}-{part}.jsonl"
            found[f"{name}-{part}"] = path
            if not path.exists():
                partial = path.with_suffix(f".{random.SystemRandom().getrandbits(32)}")
                partial.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
                partial.replace(path)
    return found


def captions(data: Path, part: str) -> list[Sequence[str]]:
    """The captions of each picture, of at least three."""
    file = {"train": "captions_train", "test": "captions_test_2016"}[part]
    table = {"path": str(data / f"multi30k/{file}.jsonl"), "format": "equivalents"}
    rows = training_rows({**table, "columns": {"set": "captions"}})
    texts = [(row.query, *row.positives[:2]) for row in rows]
    texts = [each for each in texts if len(each) == 3 and len(" ".join(each[:2])) > 80]
    return list(texts[:12000] if part == "train" else texts[:300])


NAMES = (
    *("Ann", "Bob", "Carl", "Dora", "Emma", "Fred", "Gina", "Hans", "Ida", "John"),
    *("Kate", "Leo", "Mary", "Nina", "Olaf", "Paul", "Rosa", "Sam", "Tina", "Walt"),
)
COLOURS = (
    *("red", "blue", "green", "black", "white", "brown", "pink", "grey"),
    *("gold", "silver", "purple", "orange", "yellow"),
)


def facts(rng: random.Random, part: str) -> list[str]:
    """Two people with a colour each; no two facts of "test" are together in "train"."""
    while True:
        pairs = zip(rng.sample(NAMES, 2), rng.sample(COLOURS, 2), strict=True)
        said = [f"{name} {colour}." for name, colour in pairs]
        if (hash64(" ".join(sorted(said))) % 5 == 0) == (part == "test"):
            return said


def asked_facts(count: int, part: str) -> list[Table]:
    """Two facts, and a question about one of them: "asked", a place among them."""
    rng = random.Random(part)
    found = []
    for _ in range(count):
        said, asked = facts(rng, part), rng.randrange(2)
        name, colour = said[asked].removesuffix(".").split()
        found.append(
            {"query": " ".join(said), "instruction": f" {name}", "positive": colour, "asked": asked}
        )
    return found


def repeated(count: int, part: str) -> list[Table]:
    """Two facts, and both again in any order."""
    rng = random.Random(f"repeated {part}")
    drawn = (facts(rng, part) for _ in range(count))
    return [{"text": " ".join([*said, *rng.sample(said, 2)])} for said in drawn]


def again(count: int, part: str) -> list[Table]:
    """Two facts, and the same in any order."""
    rng = random.Random(f"again {part}")
    drawn = [facts(rng, part) for _ in range(count)]
    return [{"query": " ".join(said), "positive": " ".join(rng.sample(said, 2))} for said in drawn]


def language_model(folder: Path, texts: Path, deviation: float, seed: int = 0) -> Path:
    """A folder with an untrained Llama, and byte-level BPE of the texts.

    deviation: of its first weights.
    """
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{random.SystemRandom().getrandbits(32)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = texts.read_text("utf-8").splitlines()
    tokenizer.train_from_iterator([json.loads(line)["text"] for line in lines], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    found.save_pretrained(partial)
    config = LlamaConfig(
        vocab_size=len(found),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=deviation,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(partial)
    partial.replace(folder)
    return folder


# ---- measures -----------------------------------------------------------------------------------


def written(model: SoftCompressor, held: Held) -> dict[str, float]:
    """Token accuracy of writing a caption again."""
    texts = [row["text"] for row in held.read("first")]
    memories = model.compress(texts, batch_size=BATCH)
    return {
        "memory": token_accuracy(model, AUTOENCODE, texts, memories, end=False),
        "shuffled": token_accuracy(model, AUTOENCODE, texts, rolled(memories), end=False),
    }


def written_alone(model: SoftCompressor, held: Held) -> float:
    texts = [row["text"] for row in held.read("first")]
    return token_accuracy(model, AUTOENCODE, texts, None, [""] * len(texts), end=False)


def continued(model: SoftCompressor, held: Held) -> dict[str, float]:
    """Perplexity of a third caption."""
    rows = held.read("third")
    memories = model.compress([row["query"] for row in rows], batch_size=BATCH)
    return {
        "memory": perplexity(model, rows, memories),
        "shuffled": perplexity(model, rows, rolled(memories)),
    }


def continued_alone(model: SoftCompressor, held: Held) -> float:
    return perplexity(model, held.read("third"), None)


def perplexity(
    model: SoftCompressor, rows: Sequence[Table], memories: Sequence[Memory] | None
) -> float:
    """Of the third captions, after memories or after nothing."""
    nats = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        mine = None if memories is None else memories[start : start + BATCH]
        nothing = [""] * len(some) if memories is None else None
        targets = [f" {row['positive']}" for row in some]
        nats.append(-model.score(CONTINUE, targets, mine, contexts=nothing, end=False)[0])
    return float(torch.cat(nats).mean().exp())


def keyed_measure(model: SoftCompressor, held: Held) -> dict[str, float]:
    """The share of an n-gram's weight that its asked fact has, and answers.

    neighbour asked: the share of the same fact when the n-gram's other fact is asked for.
    """
    rows = held.read("facts")
    texts, questions = [row["query"] for row in rows], [row["instruction"] for row in rows]
    beside = [f" {row['query'].split()[2 * (row['asked'] ^ 1)]}" for row in rows]
    memories = model.compress(texts, questions, batch_size=BATCH)
    golds = [[row["positive"]] for row in rows]

    def answered(given: Sequence[Memory]) -> float:
        return best(exact_match, model.generate(questions, given, max_tokens=1), golds)

    return {
        "weight, asked": weight(model, rows, questions),
        "weight, neighbour asked": weight(model, rows, beside),
        "em, memory": answered(memories),
        "em, shuffled": answered(rolled(memories)),
    }


@torch.no_grad()
def weight(model: SoftCompressor, rows: Sequence[Table], questions: Sequence[str]) -> float:
    """Of the asked fact's tokens in their n-gram, the mean over rows."""
    model.eval()
    memory, reader, found = model.memory, model.reader(), 0.0
    for row, question in zip(rows, questions, strict=True):
        context = model.context(row["query"], question)
        if len(context.ids) != 2 * TOKENS_A_FACT:
            raise ValueError(f"not {TOKENS_A_FACT} tokens a fact: {row['query']}")
        (weights_G,) = memory.weights(reader, [context])[0]
        found += float(weights_G[row["asked"] * TOKENS_A_FACT :][:TOKENS_A_FACT].sum())
    return found / len(rows)


MEASURES: Mapping[str, Any] = {"written": written, "continued": continued, "keyed": keyed_measure}
# The same of the language model before it learns to read memories.
ALONE: Mapping[str, Any] = {"written": written_alone, "continued": continued_alone}
