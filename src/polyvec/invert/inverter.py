"""Inverter: texts from the vectors of one embedder, the victim.

A folder of it: inverter.json, parts.safetensors (the maps from vectors to prefixes, and the mean
vector), writer/ and corrector/ (language models), README.md. The victim is named, not kept.
N vectors, E their size.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyvec.errors import DataError, InputError, ModelError, ShapeError
from polyvec.evaluate.measures.inputs import matrix, unit
from polyvec.interfaces import TextEncoder
from polyvec.invert.defences import build_defence
from polyvec.invert.defended import Defended
from polyvec.invert.leakage import shuffled, unit_or_zero
from polyvec.invert.settings import InverterSettings, check
from polyvec.invert.writer import VectorWriter, Written
from polyvec.recipe import plain
from polyvec.settings import fill
from polyvec.storage.files import atomic_folder

SETTINGS, PARTS = "inverter.json", "parts.safetensors"
WRITER, CORRECTOR = "writer", "corrector"
CARD = """# An inverter

Writes texts from vectors of the model named in inverter.json. Made to audit that model: load it
with `polyvec.invert.inverter.Inverter.from_pretrained(folder)`.
"""


@dataclass(frozen=True, slots=True)
class Inverted:
    """A text that was found for a vector, the cosine of its own vector with it (None without the
    victim), and that cosine after each step of correction."""

    text: str
    cosine: float | None
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """Mean cosine of found texts' vectors with the target, and with another text's vector."""

    cosine: float
    shuffled: float


class Inverter(nn.Module):
    """Writes texts from vectors of `victim`.

    victim: any TextEncoder, or None where only its dimensions and fingerprint are known: texts
    are then kept by the language model's order.
    """

    # What stages of embedders ask for, and an inverter has not.
    routes: Mapping[str, Any] = {}
    pooling_module = layers = template = None
    needs: frozenset[str] = frozenset()
    mean_E: Tensor
    victim: TextEncoder | None

    def __init__(
        self,
        settings: InverterSettings,
        writer: VectorWriter,
        corrector: VectorWriter | None,
        victim: TextEncoder | None,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.settings, self.victim_fingerprint = settings, fingerprint
        self.writer, self.corrector = writer, corrector
        self.folds = nn.ModuleList()  # writers that have not seen a part of the texts
        self.register_buffer("mean_E", torch.zeros(writer.in_features, device=writer.device))
        object.__setattr__(self, "victim", victim)  # not a part: neither trained nor saved

    @classmethod
    def untrained(cls, settings: InverterSettings, victim: TextEncoder) -> "Inverter":
        """New maps before pretrained language models."""
        if settings.defence:
            victim = Defended(victim, build_defence(settings.defence))
        size = victim.get_embedding_dimension()
        sizes = {"num_tokens": settings.num_tokens, "num_layers": settings.num_layers}
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same maps at first in every run of a recipe
            writer = VectorWriter.named(settings.model, size, **sizes)
            corrector = None
            if settings.corrector:
                corrector = VectorWriter.named(settings.model, size, num_vectors=3, **sizes)
        return cls(settings, writer, corrector, victim, victim.fingerprint())

    def with_victim(self, victim: TextEncoder) -> "Inverter":
        """A copy for another victim of as many dimensions; ShapeError for other vectors."""
        size = victim.get_embedding_dimension()
        if size != self.writer.in_features:
            raise ShapeError(
                f"the victim's vectors have {size} dimensions, the inverter takes "
                f"{self.writer.in_features}"
            )
        writer, corrector = copy.deepcopy((self.writer, self.corrector))
        found = Inverter(self.settings, writer, corrector, victim, victim.fingerprint())
        found.mean_E.copy_(self.mean_E)
        return found

    # ---- as a stage sees it -----------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.writer.device

    @property
    def tokenizer(self) -> Any:
        return self.writer.tokenizer

    @property
    def backbone(self) -> Any:
        """What a dry run estimates memory by."""
        layers = self.writer.lm.config.get_text_config().num_hidden_layers
        return SimpleNamespace(model=self.writer.lm, num_layers=layers)

    @property
    def num_parameters(self) -> int:
        return sum(each.numel() for each in self.parameters())

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The victim's vectors, of length 1; empty texts, which an attack may write, are a dot."""
        return unit("the victim's vectors", self._encoded(texts))

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        if self.victim is None:
            raise InputError("the inverter has no victim to encode texts with; pass victim=")
        given = [text if text.strip() else "." for text in texts]
        vectors, _ = self.victim.encode_vectors(given)
        found: np.ndarray = vectors.to_dense()
        return found

    def embed_found(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`, of texts that an attack wrote: where the victim knows no word, zeros."""
        return unit_or_zero(self._encoded(texts))

    # ---- inversion --------------------------------------------------------------------------

    def checked(self, vectors: Any) -> np.ndarray:
        """The vectors as float32 [N, E] of length 1; ShapeError for another dimension."""
        found_NE = matrix("vectors", vectors, at_least=1).astype(np.float32)
        if found_NE.shape[1] != self.writer.in_features:
            raise ShapeError(
                f"the vectors have {found_NE.shape[1]} dimensions, the inverter takes "
                f"{self.writer.in_features}: they are of another model, or truncated"
            )
        return unit("vectors", found_NE)

    def check_model(self, fingerprint: str) -> None:
        """Raises ModelError for vectors of another model than the victim."""
        if fingerprint != self.victim_fingerprint:
            raise ModelError(
                f"the vectors are of another model ({fingerprint[:12]}...) than the inverter's "
                f"victim ({self.victim_fingerprint[:12]}...); train an inverter for it, or map the "
                "vectors with a SpaceMap first"
            )

    @torch.no_grad()
    def invert(
        self,
        vectors: Any,
        *,
        beams: int | None = None,
        rerank: bool = True,
        steps: int = 0,
        sequence_beams: int = 1,
        batch_size: int = 32,
        **options: Any,
    ) -> list[Inverted]:
        """A text for each vector.

        Of `beams` texts the one whose own vector is nearest (rerank), else the likeliest. steps:
        of correction, on the `sequence_beams` nearest texts; a text found earlier is kept if no
        later one is nearer, so that the cosine never falls. Other options are those of
        transformers' generate.
        """
        target_NE = self.checked(vectors)
        beams = self.settings.beams if beams is None else beams
        numbers = {"beams": beams, "sequence_beams": sequence_beams, "batch_size": batch_size}
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")
        if steps < 0:
            raise InputError(f"steps is {steps}, expected at least 0")
        if steps and self.corrector is None:
            raise InputError(f"steps={steps}: the inverter has no corrector")
        if steps and not rerank:
            raise InputError("correction embeds what it finds; it needs rerank=True")
        if self.victim is None:
            rerank = False
        self.eval()
        found: list[Inverted] = []
        for start in range(0, len(target_NE), batch_size):
            part_BE = target_NE[start : start + batch_size]
            written = self.write(part_BE, beams=beams, **options)
            if not rerank:
                texts = [each[0].text for each in written]
                found += map(Inverted, texts, self._cosines(texts, part_BE))
                continue
            tried = [[each.text for each in row] for row in written]
            kept = self._nearest(part_BE, tried, sequence_beams)
            history = [[each[0][1]] for each in kept]
            for _ in range(steps):
                kept = self._corrected(part_BE, kept, beams, sequence_beams, options)
                for own, each in zip(history, kept, strict=True):
                    own.append(each[0][1])
            found += [
                Inverted(each[0][0], each[0][1], tuple(own))
                for each, own in zip(kept, history, strict=True)
            ]
        return found

    def _cosines(self, texts: Sequence[str], vectors_NE: np.ndarray) -> list[float | None]:
        if self.victim is None:
            return [None] * len(texts)
        return [*map(float, (self.embed_found(texts) * vectors_NE).sum(1))]

    def write(self, vectors_NE: np.ndarray, **options: Any) -> list[list[Written]]:
        """What the language model writes from vectors, without looking at the victim."""
        start = self.writer.start(torch.from_numpy(vectors_NE)[:, None])
        options = {"max_tokens": self.settings.max_tokens, **options}
        return self.writer.write(start, **options)

    def _nearest(
        self, vectors_NE: np.ndarray, texts: Sequence[Sequence[str]], count: int
    ) -> list[list[tuple[str, float]]]:
        """Of each row's texts the `count` nearest, without repeats, with their cosines."""
        flat = list(dict.fromkeys(text for each in texts for text in each))
        place = {text: row for row, text in enumerate(flat)}
        scores = self.embed_found(flat) @ vectors_NE.T
        found = []
        for row, own in enumerate(texts):
            ranked = sorted(dict.fromkeys(own), key=lambda text: -scores[place[text], row])
            found.append([(text, float(scores[place[text], row])) for text in ranked[:count]])
        return found

    def _corrected(
        self,
        vectors_NE: np.ndarray,
        kept: list[list[tuple[str, float]]],
        beams: int,
        count: int,
        options: Mapping[str, Any],
    ) -> list[list[tuple[str, float]]]:
        rows = np.repeat(np.arange(len(kept)), [len(each) for each in kept])
        texts = [text for each in kept for text, _ in each]
        written = self.correct(vectors_NE[rows], texts, beams=beams, **options)
        pool = [[text for text, _ in each] for each in kept]
        for row, each in zip(rows, written, strict=True):
            pool[row] += [found.text for found in each]
        # The batch that a text is encoded in changes the last digits of its vector.
        return [
            now if now[0][1] >= before[0][1] else [before[0], *now[1:]]
            for now, before in zip(self._nearest(vectors_NE, pool, count), kept, strict=True)
        ]

    def correct(
        self, vectors_NE: np.ndarray, hypotheses: Sequence[str], **options: Any
    ) -> list[list[Written]]:
        """What the corrector writes of the target vectors and hypotheses."""
        assert self.corrector is not None
        most = self.settings.max_tokens
        ids = [self.corrector.ids(text, most, end=False) for text in hypotheses]
        three = correction_inputs(vectors_NE, self.embed_found(hypotheses))
        start = self.corrector.start(three, ids)
        return self.corrector.write(start, **{"max_tokens": most, **options})

    def alone(self, count: int = 1, **options: Any) -> list[str]:
        """What is written from the mean vector of the training texts: what the language model says
        without a text's vector."""
        mean_E = self.mean_E.cpu().numpy()
        norm = float(np.linalg.norm(mean_E))
        written = self.write((mean_E / (norm or 1.0))[None].astype(np.float32), **options)
        return [written[0][0].text] * count

    def check(self, texts: Sequence[str], **options: Any) -> Checked:
        """Embed, invert, embed again: whether it works with this victim at all.

        Raises ModelError if what is found is no nearer to its own vector than to another text's.
        """
        if len(texts) < 2:
            raise InputError(f"check needs at least 2 texts, got {len(texts)}")
        target_NE = self.embed(texts)
        again_NE = self.embed_found([each.text for each in self.invert(target_NE, **options)])
        own = float((again_NE * target_NE).sum(1).mean())
        other = float((again_NE * shuffled(target_NE)).sum(1).mean())
        if own <= other:
            raise ModelError(
                f"what the inverter finds is no nearer to its own vectors (cosine {own:.3f}) than "
                f"to other texts' ({other:.3f}): it was not trained, or for another model"
            )
        return Checked(own, other)

    # ---- in and out -------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained` reads; it is there whole or not at all."""
        with atomic_folder(Path(path), replaceable=SETTINGS) as folder:
            tensors = {"mean_E": self.mean_E}
            for name, each in self._writers():
                each.lm.save_pretrained(folder / name, safe_serialization=True)
                each.tokenizer.save_pretrained(folder / name)
                tensors |= {f"{name}.{k}": v for k, v in each.prefixes.state_dict().items()}
            kept = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
            save_file(kept, folder / PARTS)
            victim = {
                "fingerprint": self.victim_fingerprint,
                "dimensions": self.writer.in_features,
                "model": getattr(self.victim, "name_or_path", "") or "",
            }
            text = json.dumps({"settings": plain(self.settings), "victim": victim}, indent=1)
            (folder / SETTINGS).write_text(text, "utf-8")
            (folder / "README.md").write_text(CARD, "utf-8")

    def _writers(self) -> list[tuple[str, VectorWriter]]:
        found = [(WRITER, self.writer)]
        return found if self.corrector is None else [*found, (CORRECTOR, self.corrector)]

    @classmethod
    def from_pretrained(cls, path: str | Path, victim: TextEncoder | None = None) -> "Inverter":
        """The inverter of a folder; DataError for a folder that is none.

        victim: the model whose vectors it inverts; ModelError for another. Without it texts are
        kept by the language model's order.
        """
        folder = Path(path)
        try:
            raw = json.loads((folder / SETTINGS).read_text("utf-8"))
            settings: InverterSettings = fill(
                InverterSettings, raw["settings"], f"{folder / SETTINGS}"
            )
            check(settings, f"{folder / SETTINGS}")
            fingerprint, size = str(raw["victim"]["fingerprint"]), int(raw["victim"]["dimensions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: not an inverter, {SETTINGS} cannot be read ({error})"
            ) from None
        if victim is not None and settings.defence:
            victim = Defended(victim, build_defence(settings.defence))
        sizes = {"num_tokens": settings.num_tokens, "num_layers": settings.num_layers}
        corrector = None
        if settings.corrector:
            corrector = VectorWriter(folder / CORRECTOR, size, num_vectors=3, **sizes)
        writer = VectorWriter(folder / WRITER, size, **sizes)
        found = cls(settings, writer, corrector, victim, fingerprint)
        if victim is not None:
            found.check_model(victim.fingerprint())
        try:
            tensors = load_file(folder / PARTS)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder / PARTS}: cannot be read ({error})") from None
        own: dict[str, Tensor] = {"mean_E": found.mean_E}
        for name, each in found._writers():
            own |= {f"{name}.{k}": v for k, v in each.prefixes.state_dict().items()}
        if {name: each.shape for name, each in own.items()} != {
            name: each.shape for name, each in tensors.items()
        }:
            raise ModelError(f"{folder / PARTS}: its weights do not fit {SETTINGS}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        return found.eval()


def correction_inputs(vectors_NE: np.ndarray, found_NE: np.ndarray) -> Tensor:
    """What a corrector reads of target and found vectors: both and their difference, [N, 3, E]."""
    target, own = torch.from_numpy(vectors_NE), torch.from_numpy(found_NE)
    return torch.stack([target, own, target - own], 1)
