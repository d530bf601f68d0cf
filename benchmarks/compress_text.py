"""What compressed texts keep, what a reader makes of them, and what compression costs and saves.

    python benchmarks/compress_text.py quality --set key-value
    python benchmarks/compress_text.py quality --set squad --data DATA --classifier FOLDER
    python benchmarks/compress_text.py speed --llmlingua SITE-PACKAGES
    python benchmarks/compress_text.py cost --data DATA
    python benchmarks/compress_text.py plot

quality: the share of contexts whose answer is kept, and exact match of a fixed reader
(SmolLM2-135M-Instruct, greedy, three examples before the question) at rates 0.5, 0.25 and 0.1, by
scorer; and -log p of a token of the right answer, for a reader that is too small to give it.
speed: LLMLingua-2's selection, given each token's probability, beside the package llmlingua's own
code at the same number of tokens, in CPU seconds. cost: tokens and seconds of prefill with and
without compression, contexts of 512 to 4,096 tokens. Each figure goes to
docs/results/compress-text.json as soon as it is there, so an interrupted run goes on, and
docs/generate.py makes the tables. Settings were chosen on items of --seed 0, and are measured on
others.
"""

import argparse
import functools
import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_contexts import Item, key_values, squad
from text_plot import drawn

from polyvec.compress.text.budget import select
from polyvec.compress.text.compressor import TextCompressor
from polyvec.compress.text.document import Asked, Compressed, Document
from polyvec.compress.text.joining import Joiner
from polyvec.compress.text.scorer import Scorer, as_scorer, per_unit
from polyvec.compress.text.units import words
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL, load_language_model
from polyvec.storage.files import atomic_file

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "compress-text.json"
RATES = (0.5, 0.25, 0.1)
# Sentences for contrast: tried on key-value contexts of seed 0.
METHODS: dict[str, tuple[Any, str]] = {
    "random": ("random", "word"),
    "first words": ("position", "word"),
    "self-information": ("self_information", "word"),
    "contrastive, words": ("contrastive", "word"),
    "contrastive, sentences": (
        {"kind": "contrastive", "condition": "sentence", "how": "sum"},
        "sentence",
    ),
    "question likelihood": ("question_likelihood", "sentence"),
    "dense": ("dense", "sentence"),
    "reader's attention, tokens": ("cross_attention", "token"),
    "reader's attention": ("cross_attention", "word"),
    "oracle": ("string_inclusion", "word"),
}
SHOTS = (
    ("The old mill was built in 1821 by Jan Kord.", "Who built the old mill?", "Jan Kord"),
    ("Lena keeps two goats and a white horse.", "How many goats does Lena keep?", "two"),
    ("The river Orn rises in the hills of Talv.", "Where does the Orn rise?", "the hills of Talv"),
)


@dataclass
class Once(Scorer):
    """A scorer whose scores of the last document are kept: they do not depend on the rate."""

    scorer: Scorer
    kept: dict[Any, np.ndarray] = field(default_factory=dict)

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        key = (document.text, len(document.units), asked.question)
        if key not in self.kept:
            self.kept = {key: self.scorer.scores(document, asked)}
        return self.kept[key]

    @property
    def tokenizer(self) -> str | None:
        return DEFAULT_LANGUAGE_MODEL


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def store(path: tuple[str, ...], value: Any) -> None:
    found = stored()
    table = found
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value
    with atomic_file(RESULTS, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


# ---- quality ------------------------------------------------------------------------------------


def quality(options: argparse.Namespace) -> None:
    items = (
        key_values(options.items, options.seed)
        if options.set == "key-value"
        else squad(options.data, options.items, options.seed)
    )
    methods = dict(METHODS)
    if options.classifier:
        kind = {"kind": "token_classifier", "model": str(options.classifier)}
        methods["token classifier"] = (kind, "word")
    if options.methods:
        methods = {name: methods[name] for name in options.methods}
    read, asked = reader(options.read, options.answers), items[: options.read]
    done = stored().get("quality", {}).get(options.set, {})
    for name, texts in (
        ("whole text", ["\n\n".join(item.texts) for item in asked]),
        ("no text", ["" for _ in asked]),
    ):
        if name not in done and asked:
            said = read(texts, asked)
            store(("quality", options.set, name), {**said, "read": len(asked)})
            print(f"{options.set}: {name}: {said}", flush=True)
    for name, (scorer, unit) in methods.items():
        if name in done:
            continue
        made = TextCompressor(Once(as_scorer(scorer)), unit=unit, exact=True)
        began = time.perf_counter()
        found: dict[str, list[Compressed]] = {str(rate): [] for rate in RATES}
        for item in items:
            for rate in RATES:
                found[str(rate)].append(
                    made.compress(item.texts, item.question, rate=rate, answer=item.answers[0])
                )
        seconds = round(time.perf_counter() - began, 1)
        cell: dict[str, Any] = {"items": len(items), "read": len(asked), "s": seconds}
        for rate, shorter in found.items():
            kept = [item.kept(each.text) for item, each in zip(items, shorter, strict=True)]
            said = read([each.text for each in shorter[: len(asked)]], asked) if asked else {}
            left = round(float(np.mean([each.rate for each in shorter])), 4)
            cell[rate] = {"kept": share(kept), "rate": left, **said}
        store(("quality", options.set, name), cell)
        print(f"{options.set}: {name}: {cell}", flush=True)


def share(values: list[bool]) -> float:
    return round(float(np.mean(values)), 4)


def reader(needed: int, answers: bool) -> Callable[[list[str], list[Item]], dict[str, float]]:
    """How often SmolLM2's answer is right, word for word, and -log p of a right one, in nats."""
    model = load_language_model(DEFAULT_LANGUAGE_MODEL) if needed else None
    shots = "".join(f"Text: {t}\nQuestion: {q}\nAnswer: {a}\n\n" for t, q, a in SHOTS)

    def read(texts: list[str], items: list[Item]) -> dict[str, float]:
        assert model is not None
        prompts = [
            f"{shots}Text: {text}\nQuestion: {item.question}\nAnswer:"
            for text, item in zip(texts, items, strict=True)
        ]
        likely = model.logprobs(prompts, [f" {item.answers[0]}" for item in items])
        nats = -np.mean([each.mean() for each in likely])
        found = {"nats": round(float(nats), 3)}
        if answers:
            said = model.generate(prompts, max_new_tokens=12, stop="\n", show_progress_bar=False)
            pairs = zip(items, said, strict=True)
            right = [item.right(each.text.strip().rstrip(".")) for item, each in pairs]
            found["exact match"] = share(right)
        return found

    return read


# ---- speed --------------------------------------------------------------------------------------


class Given:
    """In place of llmlingua's model: the probabilities that a text's tokens are given."""

    config = types.SimpleNamespace(max_position_embeddings=512)
    device = "cpu"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, input_ids: Any, attention_mask: Any) -> Any:
        kept = given(input_ids)
        logits = torch.stack([torch.log1p(-kept), torch.log(kept)], -1)
        return types.SimpleNamespace(loss=None, logits=logits)


def given(ids: Any) -> Any:
    """A probability for each token by its id and place: both sides see the same."""
    place = torch.arange(ids.shape[-1])
    return ((ids * 2654435761 + place * 40503) % 10007).float() / 10008 + 5e-5


def speed(options: argparse.Namespace) -> None:
    sys.path.append(str(options.llmlingua))
    module = importlib.import_module("llmlingua.prompt_compressor")
    from polyvec.compress.text.scorers.classifier import Classifier, TokenClassifier
    from polyvec.compress.text.tokens import TokenCounter
    from polyvec.data.docstrings import standard_library
    from polyvec.embed.formats.sources import offline_folder
    from polyvec.embed.formats.tokenizer import load_tokenizer
    from polyvec.embed.inputs.contract import bare

    root = offline_folder()
    tokenizer = load_tokenizer(root)
    encoder = bare(tokenizer)
    counter = TokenCounter.of(encoder, "all-MiniLM-L6-v2")
    theirs = object.__new__(module.PromptCompressor)
    theirs.model, theirs.tokenizer, theirs.device = Given(), tokenizer, "cpu"
    theirs.model_name = "bert-base-multilingual-cased"  # its rules for WordPiece
    theirs.max_seq_len, theirs.max_batch_size, theirs.max_force_token = 512, 50, 100
    theirs.special_tokens = set(tokenizer.all_special_tokens)
    theirs.added_tokens = []
    # Its counts are tiktoken's, which it downloads; here a word that it has seen costs nothing.
    encode = functools.lru_cache(None)(bare(tokenizer).encode)
    theirs.oai_tokenizer = types.SimpleNamespace(encode=encode)
    theirs.get_token_length = lambda text, **_: counter.count(text)

    class Probabilities(TokenClassifier):
        def __init__(self) -> None:
            self.model, self.tokenizer, self.keep, self.with_question = Given(), tokenizer, 1, False
            self.encoder, self.max_length = bare(tokenizer), 512
            self._specials, self._after = ([101], [], [102]), [102]

        def logits(self, windows: Any) -> Any:
            longest = max(len(each.ids) for each in windows)
            ids = torch.zeros(len(windows), longest, dtype=torch.long)
            for row, each in enumerate(windows):
                ids[row, : len(each.ids)] = torch.tensor(each.ids)
            return self.model(ids, None).logits

    ours = TextCompressor(Classifier(Probabilities()), tokenizer=counter)
    corpus = "\n\n".join(each.text for each in standard_library())
    for length in options.lengths:
        text = corpus[: 8 * length]
        text = text[: counter.spans(text)[length - 1][1]]
        rows = []
        for _ in range(options.repeat):
            began = time.process_time()
            them = theirs.compress_prompt_llmlingua2([text], rate=0.5)["compressed_prompt"]
            middle = time.process_time()
            found = ours.compress(text, tokens=counter.count(them))
            whole = (middle - began, time.process_time() - middle)
            rows.append((*whole, _their_selection(theirs, text), _our_selection(encoder, text)))
        other, own, other_selection, own_selection = map(min, zip(*rows, strict=True))
        cell = {
            "llmlingua s": round(other, 4),
            "polyvec s": round(own, 4),
            "ratio": round(other / own, 1),
            "llmlingua selection s": round(other_selection, 4),
            "polyvec selection s": round(own_selection, 4),
            "selection ratio": round(other_selection / own_selection, 1),
            "llmlingua tokens": counter.count(them),
            "polyvec tokens": found.num_tokens,
            "asked for": round(0.5 * length),
        }
        store(("speed", str(length)), cell)
        print(length, cell, flush=True)


def _their_selection(theirs: Any, text: str) -> float:
    """CPU seconds of llmlingua from tokens and probabilities to the kept words of a text."""
    ids = theirs.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    kept = given(torch.tensor(ids)).numpy()
    tokens = theirs.tokenizer.convert_ids_to_tokens(ids)
    began = time.process_time()
    merged, of_words, _ = theirs._PromptCompressor__merge_token_to_word(
        tokens, list(kept), [], {}, False
    )
    of_word = theirs._PromptCompressor__token_prob_to_word_prob(of_words)
    # As it stands in its __compress.
    of_tokens: list[float] = []
    for word, probability in zip(merged, of_word, strict=True):
        count = len(theirs.oai_tokenizer.encode(word))
        of_tokens.extend([probability for _ in range(count)])
    threshold = np.percentile(of_tokens, 51)
    chosen = [word for word, p in zip(merged, of_word, strict=True) if p > threshold]
    theirs.tokenizer.convert_tokens_to_string(chosen)
    return time.process_time() - began


def _our_selection(encoder: Any, text: str) -> float:
    """CPU seconds from tokens and probabilities to the kept words, with the tokens' own count."""
    found = encoder.encode(text, add_special_tokens=False)
    encoded, kept = found.offsets, given(torch.tensor(found.ids)).numpy()
    ends = np.array([end for _, end in encoded])
    began = time.process_time()
    units = tuple(words(text))
    scores = per_unit(encoded, kept, units)
    place = np.searchsorted([start for start, _ in units], ends - 1, side="right") - 1
    costs = np.maximum(np.bincount(place, minlength=len(units)), 1)
    chosen = select(scores, costs, len(encoded) // 2, lambda kept_U: int(costs[kept_U].sum()))
    Joiner(Document(text, ((0, len(text)),), units)).join(chosen)
    return time.process_time() - began


# ---- cost ---------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> None:
    """CPU seconds of SmolLM2's prefill of a context, and of a shorter one and what shortens it."""
    model = load_language_model(DEFAULT_LANGUAGE_MODEL)
    item_texts = squad(options.data, 40, 7, others=3)
    for length in options.lengths:
        item = item_texts[0]
        pool = [text for each in item_texts for text in each.texts]
        counter = TextCompressor("random").counter
        texts: list[str] = list(item.texts)
        while counter.count("\n\n".join(texts)) < length:
            texts.append(pool[len(texts)])
        cell: dict[str, Any] = {"whole": _prefill(model, "\n\n".join(texts), options.repeat)}
        for name in ("dense", "self-information", "random"):
            scorer, unit = METHODS[name]
            made = TextCompressor(scorer, unit=unit, exact=True)
            made.compress(texts[:1], item.question, rate=0.5)  # the model loads
            for rate in (0.5, 0.25):
                began = time.process_time()
                found = made.compress(texts, item.question, tokens=round(rate * length))
                spent = round(time.process_time() - began, 3)
                after = _prefill(model, found.text, options.repeat)
                cell[f"{name} {rate}"] = {**after, "compression s": spent}
        store(("cost", str(length)), cell)
        print(length, cell, flush=True)


def _prefill(model: Any, text: str, repeat: int) -> dict[str, Any]:
    ids = model.tokens.of_text(text)
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        model.model.read([list(ids)])
        seconds.append(time.process_time() - began)
    return {"tokens": len(ids), "prefill s": round(min(seconds), 3)}


def plot(options: argparse.Namespace) -> None:
    """docs/results/compress-text.svg from the figures that are stored."""
    with atomic_file(RESULTS.with_suffix(".svg"), "w") as file:
        file.write(drawn(stored()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("quality", "speed", "cost", "plot"))
    parser.add_argument("--set", choices=("key-value", "squad"), default="key-value")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--read", type=int, default=40, help="items that the reader answers")
    parser.add_argument("--no-answers", dest="answers", action="store_false", help="nats alone")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--llmlingua", type=Path, help="folder with the package llmlingua")
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    {"quality": quality, "speed": speed, "cost": cost, "plot": plot}[options.what](options)


if __name__ == "__main__":
    main()
