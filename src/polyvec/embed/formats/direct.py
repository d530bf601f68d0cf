"""Cold starts: a folder is embedded by its files alone, once both ways gave the same vectors.

The first process that loads a folder does it by transformers, compares weights, token ids and
vectors with those of the direct way bit for bit, and keeps what it found in the cache folder
"direct", under a hash of all that decides it: the folder's files, the versions and the processor.
Later processes that have not imported transformers take the direct way. A folder that declares
anything else than what is compared here is always loaded by transformers.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyvec.embed.assembly import EmbedderParts
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.direct import BackboneFacts, Direct, DirectBackbone
from polyvec.embed.backbone.processor import kernels
from polyvec.embed.describing import NOT_OF_VECTORS, settings_hash
from polyvec.embed.formats.checksums import READ
from polyvec.embed.formats.devices import best_device
from polyvec.embed.formats.schema import listed_modules, read_json
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.weights import find_weights
from polyvec.embed.inputs.contract import PROBES, TokenizerContract
from polyvec.embed.inputs.direct import DirectTokenizer, read_bare
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.projection.dense import Normalize
from polyvec.errors import ModelError, PolyvecError
from polyvec.storage.files import cache_folder
from polyvec.storage.hashes import file_sha256, keep

FORMAT = 1  # of what is kept: raise it when the meaning changes
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "llama", "mistral", "qwen2")
MOST_BYTES = 700_000_000  # of weights; both ways are in memory while they are compared
UNTOLD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)
# What a damaged entry, or a folder that the direct way does not read, raises.
FAILURES = (
    PolyvecError, OSError, RuntimeError, SafetensorError,
    AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
TEXTS = (*(probe for probe in PROBES if probe.strip()), "a word and 漢字, " * 600)
_watching = threading.Lock()


@dataclass(slots=True)
class ColdStart:
    """A folder that may be loaded directly; `parts` are None where nothing is known of it yet."""

    folder: Path
    key: str | None  # None: not one that may be
    parts: EmbedderParts | None = None
    comparable: bool = False  # loaded by transformers without a warning, and not yet compared


def cold_start(name_or_path: str | Path, options: Mapping[str, Any]) -> ColdStart | None:
    """The folder of a model, and its parts if they are known; None where transformers is loaded
    anyway, or an option asks for more than the folder's own way on the CPU.
    """
    asked = {key: value for key, value in options.items() if value not in (None, False)}
    if not _saves_time() or asked.pop("layout", "auto") != "auto":
        return None
    if str(asked.pop("device", "cpu")) != "cpu" or asked:
        return None
    if options.get("device") is None and best_device() != "cpu":
        return None
    folder = model_folder(name_or_path)
    found = ColdStart(folder, None)
    with contextlib.suppress(*FAILURES):
        if _may_be_direct(folder):
            before = _stamps(folder)
            found.key = _key(folder)
            found.comparable = _can_be_kept()
            known = json.loads(_entry(found.key).read_bytes())
            if known["sha256"] == _hash(known["record"]):
                found.comparable = False  # whether it may be loaded directly or not
                if known["record"] is not None:
                    parts = _parts(known["record"], folder, _Whole(folder, found.key))
                    found.parts = parts if _stamps(folder) == before else None
    return found


@contextlib.contextmanager
def first_load(start: ColdStart | None) -> Iterator[None]:
    """Inside, a folder is loaded by transformers.

    One whose load warns, or draws random numbers, always will be: the direct way does neither.
    """
    # Python keeps the filters of warnings for all threads, so only one may change them.
    if start is None or not start.comparable or not _watching.acquire(blocking=False):
        if start is not None:
            start.comparable = False
        yield
        return
    drawn, seen = torch.get_rng_state(), []
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield
    finally:
        _watching.release()
        for each in seen:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    told = [each for each in seen if not issubclass(each.category, UNTOLD)]
    start.comparable = not told and torch.equal(drawn, torch.get_rng_state())


def compare(start: ColdStart, embedder: Any, make: Callable[..., Any]) -> None:
    """Keep what the direct way needs, or that the folder cannot be loaded so.

    `make` puts an embedder together of its parts. Costs about as much as the load before it.
    """
    try:
        record = _record(start.folder, embedder)
        if record is not None:
            twin = make(**_parts(record, start.folder, _never).keywords())
            record = record if _same(embedder, twin) else None
    except FAILURES:
        record = None
    assert start.key is not None
    keep(_entry(start.key), {"sha256": _hash(record), "record": record})


def _same(embedder: Any, twin: Any) -> bool:
    """Whether two embedders give the same vectors, for several texts at a time and for one."""
    for texts in (TEXTS, TEXTS[-1:], TEXTS[:1]):
        one, two = (
            each.encode(texts, truncate="silent", show_progress_bar=False)
            for each in (embedder, twin)
        )
        if not np.array_equal(one, two):
            return False
    # Compared with the model itself, before its layers were used.
    fused = getattr(embedder.backbone.runner, "fused", None)
    checked = fused is not None and fused.accepted
    return checked and embedder.settings() == twin.settings()


def _saves_time() -> bool:
    return "transformers" not in sys.modules


def _can_be_kept() -> bool:
    """Whether an entry can be written: without, each process would compare in vain."""
    place = cache_folder("direct")
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    return os.access(place, os.W_OK)


def _may_be_direct(folder: Path) -> bool:
    """What config.json and the names of files tell, before anything is hashed."""
    config = read_json(folder / "config.json")
    sizes = [path.stat().st_size for path in find_weights(folder)]
    return (
        config.get("model_type") in MODEL_TYPES
        and "auto_map" not in config
        and (folder / "modules.json").is_file()
        and (folder / "tokenizer.json").is_file()
        and not (folder / "adapter_config.json").is_file()
        and 0 < sum(sizes) <= MOST_BYTES
    )


def _key(folder: Path) -> str:
    """A hash of all that decides how a folder is computed here."""
    inside = {folder, *(folder / str(each.get("path", "")) for each in listed_modules(folder))}
    files = [
        (path.relative_to(folder).as_posix(), file_sha256(path) if path.suffix in READ else "")
        for each in sorted(inside)
        for path in (sorted(each.iterdir()) if each.is_dir() else ())
        if path.is_file()
    ]
    packages = ("polyvec", "torch", "transformers", "tokenizers", "safetensors")
    described = [
        FORMAT,
        files,
        [(name, version(name)) for name in packages],
        # An editable installation changes without its version.
        [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(Path(__file__).parents[1].rglob("*.py"))
        ],
        sys.version_info[:2],
        kernels(),
    ]
    return _hash(described)


def _stamps(folder: Path) -> list[tuple[int, int, int]]:
    """What changes with the weights' files, of which the key is a hash and the mapping a copy."""
    found = [path.stat() for path in find_weights(folder)]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _entry(key: str) -> Path:
    return cache_folder("direct") / f"{key[:32]}.json"


def _record(folder: Path, embedder: Any) -> dict[str, Any] | None:
    """What the direct way needs to know of a loaded embedder; None for one that has more."""
    backbone, tokens = embedder.backbone, embedder.text_tokenizer
    hidden = embedder.template, embedder.variants, embedder.layers, embedder.pooling_module
    own_class = type(tokens) is TextTokenizer and not (tokens.lower_case or tokens.parses_texts)
    normalised = all(type(step) is Normalize for step in embedder.projections)
    plain = own_class and normalised and tokens.hf.truncation_side == "right"
    if not plain or embedder.routes or embedder.calibration or any(hidden):
        return None
    whole = embedder.settings()
    of_vectors = {key: value for key, value in whole.items() if key not in NOT_OF_VECTORS}
    fingerprints = {
        settings_hash(whole): embedder.fingerprint(),
        settings_hash(of_vectors): embedder.vectors_fingerprint(),
    }
    facts = BackboneFacts.of(backbone, fingerprints)
    weights = _weights(folder, backbone.model)
    if facts is None or weights is None:
        return None
    if read_bare(folder / "tokenizer.json").to_str() != tokens._markup.to_str():
        return None
    return {
        "backbone": asdict(facts),
        "weights": weights,
        "contract": tokens.contract.as_dict(),
        "parts": {
            "pooling": list(embedder.pooling),
            "pool_prompt": embedder.pool_prompt,
            "similarity_fn_name": embedder.similarity_fn_name,
            "truncate_dim": embedder.truncate_dim,
        },
        "num_normalize": len(embedder.projections),
        "prompts": dict(embedder.prompt_table.by_name),
        "default_prompt_name": embedder.prompt_table.default_name,
    }


def _weights(folder: Path, model: Any) -> dict[str, tuple[str, str]] | None:
    """The file and name of each weight, by its name in the model; None if one is another."""
    if model.device.type != "cpu" or any(p.dtype != torch.float32 for p in model.parameters()):
        return None
    stored = {}
    for path in find_weights(folder):
        with safe_open(path, framework="pt") as file:
            stored.update(dict.fromkeys(file.keys(), path.name))
    found = {}
    for name, _ in model.named_parameters():
        names = [each for each in (name, f"{model.base_model_prefix}.{name}") if each in stored]
        if name.startswith("pooler."):
            continue  # not used
        if len(names) != 1:
            return None
        found[name] = stored[names[0]], names[0]
    read = _Reader(folder, found)
    same = all(torch.equal(read(name), model.get_parameter(name)) for name in found)
    return found if same else None


class _Reader:
    """Weights in float32 by their names in the model, from files that are mapped, not copied."""

    def __init__(self, folder: Path, places: Mapping[str, tuple[str, str]]) -> None:
        self.places = places
        # At once: a file that replaces one of these later is not read.
        self._open: dict[str, Any] = {
            file: safe_open(folder / file, framework="pt") for file, _ in places.values()
        }

    def __call__(self, name: str) -> Tensor:
        file, stored = self.places[name]
        found: Tensor = self._open[file].get_tensor(stored).float()
        return found


class _Whole:
    """What transformers makes of a folder, read once."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._lock = threading.Lock()
        self._parts: EmbedderParts | None = None

    def __call__(self) -> EmbedderParts:
        from polyvec.embed.formats.reading import read_parts

        with self._lock:
            if self._parts is None:
                if _key(self.folder) != self.key:
                    raise ModelError(f"{self.folder}: changed since it was loaded; load it again")
                self._parts = read_parts(self.folder, device="cpu")
            return self._parts


def _never() -> EmbedderParts:
    raise ModelError("the direct way needs the model itself")


def _parts(
    record: Mapping[str, Any], folder: Path, whole: Callable[[], EmbedderParts]
) -> EmbedderParts:
    """The parts of an embedder that reads weights when it embeds, and the rest when asked."""
    facts = BackboneFacts(**record["backbone"])
    places = record["weights"]
    read = _Reader(folder, places)
    spec = AttentionSpec.parse(facts.spec)
    backbone = DirectBackbone(
        Direct(facts, frozenset(places), read, lambda: whole().backbone, spec)
    )
    stored = record["contract"]
    ends = {name: tuple(stored[name]) for name in ("prefix", "suffix")}

    def tokenizer() -> TextTokenizer:
        # Whoever has the tokenizer may change it, so known fingerprints no longer hold.
        DirectBackbone.whole(backbone)
        return whole().text_tokenizer

    return EmbedderParts(
        backbone=backbone,
        text_tokenizer=DirectTokenizer(
            folder / "tokenizer.json",
            TokenizerContract(**stored | ends),
            facts.num_rows,
            tokenizer,
        ),
        projections=tuple(Normalize() for _ in range(record["num_normalize"])),
        prompts=PromptTable(record["prompts"], record["default_prompt_name"]),
        **record["parts"],
    )
