"""Demonstrations that a stage shows before its queries, as models are trained to read them.

A stage's `examples` table names a kind in EXAMPLES and its settings. What is shown is rendered by
the embedder's template, as `encode(examples=...)` does it.
"""

import abc
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, cast

import numpy as np

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.demonstrations import Example, ExamplePool
from polyvec.errors import DataError, SettingsError
from polyvec.registry import Fact, Registry
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]


class Demonstrations(abc.ABC):
    """Examples for each query of a batch; a subclass says which, in `chosen`.

    query_length, document_length: tokens after which an example's texts are cut. total_length:
    most tokens of all examples of a query; those that do not fit are left out. None: half of
    what is read of a query.
    """

    # Which examples stay if not all fit.
    keeps_last = False

    def __init__(
        self,
        embedder: Embedder,
        stage: StageSettings,
        query_length: int,
        document_length: int,
        total_length: int | None,
    ) -> None:
        self.model = cast(Embedder, embedder.for_role("query")) if embedder.routes else embedder
        template = self.model.template
        if template is None or "examples" not in template.slots("query"):
            raise SettingsError(
                "[[stage]] examples: the model's template does not show examples; use one with an "
                "{examples} slot, such as bge_icl or rare"
            )
        for name, value in (
            ("query_length", query_length),
            ("document_length", document_length),
            ("total_length", total_length),
        ):
            if value is not None and value < 1:
                raise SettingsError(f"[[stage]] examples: {name} is {value}, expected 1 or more")
        named = {piece.value for piece in template.example_form if piece.kind == "slot"}
        self.shows_instruction = "instruction" in named
        self.seed = stage.seed
        self.lengths = query_length, document_length
        lengths = (stage.query_max_length, stage.max_length, self.model.max_seq_length)
        longest = next((length for length in lengths if length is not None), None)
        self.total_length = total_length or (None if longest is None else longest // 2)
        # One example is shown before many queries.
        self.cut = functools.lru_cache(maxsize=8192)(self._cut)
        self.num_tokens = functools.lru_cache(maxsize=8192)(self._num_tokens)

    @abc.abstractmethod
    def chosen(
        self, rows: Sequence[TrainingRow], place: int, draw: np.random.Generator
    ) -> Sequence[Example]:
        """The examples of the query `rows[place]`, in the order in which they are shown."""

    def prepare(self, rows: Sequence[TrainingRow]) -> None:  # noqa: B027 - optional
        """Called once with all rows of the stage, before the first batch."""

    def of(
        self, rows: Sequence[TrainingRow], share: Share, batch_number: int
    ) -> list[tuple[Example, ...]]:
        """The examples of each query of the share.

        A function of the batch, its number, the seed and the query's place: not of processes.
        """
        found = []
        for place in range(share.start, share.stop):
            draw = np.random.default_rng([self.seed, batch_number, place])
            chosen = [self.cut(each) for each in self.chosen(rows, place, draw)]
            found.append(self.fitting(chosen, rows[place].instruction))
        return found

    def fitting(self, examples: Sequence[Example], instruction: str | None) -> tuple[Example, ...]:
        """The examples that fit into `total_length`: the first, or the last of them."""
        if self.total_length is None:
            return tuple(examples)
        kept: list[Example] = []
        left = self.total_length
        for example in reversed(examples) if self.keeps_last else examples:
            left -= self.num_tokens(example, instruction)
            if left < 0:
                break
            kept.append(example)
        return tuple(reversed(kept) if self.keeps_last else kept)

    def _cut(self, example: Example) -> Example:
        """The example with its texts cut after so many tokens."""
        most_query, most_document = self.lengths
        return Example(
            self._first_tokens(example.query, most_query),
            self._first_tokens(example.document, most_document),
            example.instruction,
        )

    def _first_tokens(self, text: str, most: int) -> str:
        found = self._encoding(text)
        return text if len(found.ids) <= most else text[: found.offsets[most - 1][1]]

    def _num_tokens(self, example: Example, instruction: str | None) -> int:
        """Tokens that the example adds to a query."""
        with_example, without = (
            self.model.rendered_inputs(
                [""], self.model.prompt_for(instruction, role="query", examples=shown)
            )[0][0]
            for shown in ((example,), ())
        )
        counts = [
            len(self._encoding("".join(span.text for span in spans)).ids)
            for spans in (with_example, without)
        ]
        return counts[0] - counts[1]

    def _encoding(self, text: str) -> Any:
        return self.model.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)


class InBatch(Demonstrations):
    """0 to k other rows of the batch, of the same data set: how many and which is drawn.

    As BGE-ICL was trained (Li et al. 2024, arXiv:2409.15700; FlagEmbedding, whose script cuts
    the texts after 256 tokens). A row with the same query is never shown.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        k: int = 5,
        query_length: int = 256,
        document_length: int = 256,
        total_length: int | None = None,
    ) -> None:
        super().__init__(embedder, stage, query_length, document_length, total_length)
        _check_k(k)
        self.k = k

    def chosen(
        self, rows: Sequence[TrainingRow], place: int, draw: np.random.Generator
    ) -> Sequence[Example]:
        own = rows[place]
        others = [
            row
            for row in rows
            if row.dataset == own.dataset and row.positives and row.query != own.query
        ]
        count = min(int(draw.integers(self.k + 1)), len(others))
        drawn = draw.permutation(len(others))[:count].tolist()
        return [self._example(others[number]) for number in drawn]

    def _example(self, row: TrainingRow) -> Example:
        instruction = row.instruction if self.shows_instruction else None
        return Example(row.query, row.positives[0], instruction)


class Nearest(Demonstrations):
    """The k rows of the same data set whose queries are nearest by BM25, the nearest last.

    As RARe was trained (Tejaswi et al. 2024, arXiv:2410.20088). `without` is the share of queries
    that are shown none. Rows with the same query or the same positive, which would be the answer,
    are never shown; RARe leaves out the former only.
    """

    keeps_last = True

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        k: int = 5,
        query_length: int = 256,
        document_length: int = 256,
        total_length: int | None = None,
        without: float = 0.0,
    ) -> None:
        super().__init__(embedder, stage, query_length, document_length, total_length)
        _check_k(k)
        if not 0 <= without < 1:
            raise SettingsError(f"[[stage]] examples: without is {without}, expected 0 to below 1")
        self.k, self.without = k, without
        self.pools: dict[str, tuple[ExamplePool, Counter[str]]] = {}

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Index the queries of each data set."""
        of_set: dict[str, list[Example]] = {}
        for row in rows:
            if row.positives:
                of_set.setdefault(row.dataset, []).append(Example(row.query, row.positives[0]))
        self.pools = {
            name: (ExamplePool(examples), Counter(each.document for each in examples))
            for name, examples in of_set.items()
        }

    def chosen(
        self, rows: Sequence[TrainingRow], place: int, draw: np.random.Generator
    ) -> Sequence[Example]:
        row = rows[place]
        if draw.random() < self.without:
            return ()
        if row.dataset not in self.pools:
            raise DataError(f"{row.place or 'row'}: no examples of the data set {row.dataset!r}")
        pool, documents = self.pools[row.dataset]
        most = self.k + sum(documents[text] for text in row.positives)
        found = [
            each for each in pool.nearest(row.query, most) if each.document not in row.positives
        ]
        return found[-self.k :] if self.k else ()


def _check_k(k: int) -> None:
    if k < 1:
        raise SettingsError(f"[[stage]] examples: k is {k}, expected 1 or more")


EXAMPLES: Registry[Callable[..., Demonstrations]] = Registry(
    "examples", {"in_batch": InBatch, "nearest": Nearest}
)


def demonstrations(
    table: Mapping[str, Any] | None, embedder: Embedder, stage: StageSettings
) -> Demonstrations | None:
    """What an `examples` table says; None without one."""
    if table is None:
        return None
    where = "[[stage]] examples"
    settings = dict(table)
    if "kind" not in settings:
        raise SettingsError(f"{where}: kind is missing. Known: {', '.join(EXAMPLES)}.")
    kind = settings.pop("kind")
    facts = {"embedder": embedder, "stage": stage}
    return cast(Demonstrations, EXAMPLES.build(kind, settings, facts, where=where))
