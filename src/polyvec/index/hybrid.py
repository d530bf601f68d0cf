"""Several models as one ranking: each scores the documents, and the scores are fused.

N texts, M documents, E numbers a vector.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import check_texts
from polyvec.embed.formats.checksums import check_files, write_checksums
from polyvec.errors import InputError, ModelError
from polyvec.index.fusion import min_max_fusion, retrieved
from polyvec.interfaces import CHUNK_SIZE, EncodeReport, PromptChoice, RunOptions, TextEncoder
from polyvec.settings import checked
from polyvec.storage.files import atomic_file

FILE = "hybrid.json"


class HybridEmbedder(TextEncoder):
    """Models side by side: a query's scores by each are scaled to 0 ... 1, weighted and added.

    PromptReps' hybrid (Zhuang et al. 2024, arXiv:2404.18424) is a dense and a sparse embedder
    with weights of one half. A vector is the members' vectors joined, [E1 + E2 + ...]. Only
    `similarity` can score them, because a query's scores are scaled over all documents, or over
    the best `depth` of each member, as in PromptReps' code.
    """

    similarity_fn_name = "min-max"

    def __init__(
        self,
        members: Sequence[TextEncoder],
        weights: Sequence[float] | None = None,
        *,
        depth: int | None = None,
    ) -> None:
        if depth is not None and depth < 1:
            raise InputError(f"hybrid: depth must be at least 1, got {depth}")
        self.members, self.depth = tuple(members), depth
        num = len(self.members)
        self.weights = tuple([1 / max(num, 1)] * num if weights is None else map(float, weights))
        if num < 2 or len(self.weights) != num:
            raise InputError(
                f"hybrid: {num} members and {len(self.weights)} weights; "
                "expected at least 2 members and one weight for each"
            )
        for member in self.members:
            if not isinstance(member, TextEncoder):
                raise InputError(f"hybrid: a member is {type(member).__name__}, not a TextEncoder")
        if not np.isfinite(self.weights).all() or not any(self.weights):
            raise InputError(
                f"hybrid: weights are {list(self.weights)}, expected finite numbers, not all 0"
            )

    # ---- vectors ----------------------------------------------------------------------------

    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> Iterator[np.ndarray]:
        """The members' vectors joined, in chunks.

        The report has the first member's prompt, the tokens and seconds of all, and the
        truncations of the member that truncates most.
        """
        check_texts(inputs)
        # A sequence is passed on as it is: its length is known, for progress bars.
        copies: Sequence[Iterable[str]] = [inputs] * len(self.members)
        if not isinstance(inputs, Sequence):
            copies = itertools.tee(inputs, len(self.members))
        reports = [EncodeReport() for _ in self.members]
        chunks = [
            each.encode_iter(copy, chunk_size=chunk_size, options=options, report=one, **prompt)
            for each, copy, one in zip(self.members, copies, reports, strict=True)
        ]
        return _joined(chunks, reports, EncodeReport() if report is None else report)

    def get_embedding_dimension(self) -> int:
        """Numbers in a joined vector."""
        return sum(each.get_embedding_dimension() for each in self.members)

    def similarity(self, a: Any, b: Any) -> Tensor:
        """Fused scores of each a with each b, [N, M], every row scaled over all of b."""
        sides = zip(self.members, self._split(a), self._split(b), strict=True)
        scores = [np.asarray(each.similarity(one, two)) for each, one, two in sides]
        found = None if self.depth is None else self._retrieved(scores, self.depth)
        return torch.from_numpy(min_max_fusion(scores, self.weights, found))

    def _retrieved(self, scores_QN: Sequence[np.ndarray], depth: int) -> list[np.ndarray]:
        """The documents that each member retrieves, [Q, N]."""
        kinds = [getattr(each, "output_kind", "dense") for each in self.members]
        return [
            retrieved(each_QN, depth, positive=kind == "sparse")
            for each_QN, kind in zip(scores_QN, kinds, strict=True)
        ]

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Raises InputError: a single pair has nothing to be scaled over."""
        raise InputError(
            "hybrid: a pair has no score of its own, because scores are scaled over a query's "
            "documents; evaluate it on retrieval, or its members on pairs"
        )

    def _split(self, vectors: Any) -> list[np.ndarray]:
        """Each member's part of joined vectors."""
        ends = np.cumsum([each.get_embedding_dimension() for each in self.members])
        array = np.atleast_2d(np.asarray(vectors, np.float32))
        if array.shape[1] != ends[-1]:
            raise InputError(
                f"hybrid: vectors of {array.shape[1]} dimensions, expected {ends[-1]}; encode "
                "them with this model"
            )
        return np.split(array, ends[:-1], axis=1)

    # ---- what it is -------------------------------------------------------------------------

    @property
    def backbone(self) -> Any:
        """The first member's, whose leak probe `polyvec recipes check` reports."""
        first = self.members[0]
        if not isinstance(first, Embedder):
            raise ModelError(f"hybrid: a {type(first).__name__} has no backbone")
        return first.backbone

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts that every member has, by name, with the first member's text."""
        first, *others = (each.prompts for each in self.members)
        return {name: text for name, text in first.items() if all(name in each for each in others)}

    def takes_instruction(self, role: str | None = None) -> bool:
        """Whether every member has a slot for an instruction on this side."""
        return all(each.takes_instruction(role) for each in self.members)

    def takes_prompt(self, role: str | None = None) -> bool:
        """Whether every member can take a prompt on this side."""
        return all(each.takes_prompt(role) for each in self.members)

    def prompt_key(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> tuple[str | None, ...]:
        """The members' keys, one after another."""
        keys = [each.prompt_key(prompt, prompt_name, role) for each in self.members]
        return tuple(itertools.chain.from_iterable(keys))

    def described(self) -> list[str]:
        """How each member is run, a few lines each, for a person."""
        return [line for each in self.members for line in each.described()]

    def fingerprint(self) -> str:
        """sha256 over the members' fingerprints and the weights."""
        parts = [each.fingerprint() for each in self.members]
        depth = [] if self.depth is None else [self.depth]
        return hashlib.sha256(json.dumps([parts, self.weights, *depth]).encode()).hexdigest()

    def vectors_fingerprint(self) -> str:
        """sha256 over the members' own; weights decide scores, but no vector."""
        parts = [each.vectors_fingerprint() for each in self.members]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to(self, device: str) -> "HybridEmbedder":
        """Move the members that are torch modules to a device."""
        for each in self.members:
            if isinstance(each, nn.Module):
                each.to(device)
        return self

    # ---- in and out -------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder for each member, and hybrid.json with the weights.

        Raises ModelError for a member that is not an Embedder.
        """
        folder = Path(path)
        for number, each in enumerate(self.members):
            if not isinstance(each, Embedder):
                raise ModelError(
                    f"hybrid: member {number} is a {type(each).__name__}; only members of type "
                    "Embedder can be saved"
                )
            each.save_pretrained(folder / str(number))
        with atomic_file(folder / FILE, "w") as file:
            json.dump({"weights": self.weights, "fusion": "min-max", "depth": self.depth}, file)
        write_checksums(folder, [folder / FILE])

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "HybridEmbedder":
        """The model of a folder that `save_pretrained` wrote; options are Embedder's."""
        folder = Path(path)
        check_files(folder)
        where = folder / FILE
        try:
            raw = json.loads(where.read_text("utf-8"))
            weights = checked(raw["weights"], list[float], "'weights'")
            depth = checked(raw.get("depth"), int | None, "'depth'")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{where}: cannot be read ({error})") from None
        parts = [folder / str(number) for number in range(len(weights))]
        members = [Embedder.from_pretrained(part, **options) for part in parts]
        try:
            return cls(members, weights, depth=depth)
        except InputError as error:
            raise ModelError(f"{where}: {error}") from None


def _joined(
    chunks: Sequence[Iterator[np.ndarray]], reports: Sequence[EncodeReport], report: EncodeReport
) -> Iterator[np.ndarray]:
    for parts in zip(*chunks, strict=True):
        yield np.concatenate(parts, axis=1)
    # A report may already count other texts, as the members' do not.
    first, worst = reports[0], max(reports, key=lambda each: each.num_truncated)
    report.prompt = first.prompt
    report.num_texts += first.num_texts
    report.num_truncated += worst.num_truncated
    report.truncated += worst.truncated
    report.first_truncated = report.first_truncated or worst.first_truncated
    for each in reports:
        report.num_tokens += each.num_tokens
        report.num_computed_tokens += each.num_computed_tokens
        report.tokenize_s += each.tokenize_s
        report.forward_s += each.forward_s
