"""Mining within a run: before a stage, and every few epochs with what has been trained so far.

STAGE/mined/N.jsonl holds the negatives of the Nth mining, a line for each row: a run that is
resumed reads them instead of mining with other weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polyvec.data.texts import json_line, read_jsonl
from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.embed.embedder import Embedder
from polyvec.errors import DataError, SettingsError, known
from polyvec.storage.files import atomic_file
from polyvec.train.exchange import Exchange
from polyvec.train.mining.candidates import Tools
from polyvec.train.mining.miner import Mined, mine
from polyvec.train.mining.report import facts
from polyvec.train.mining.settings import MiningSettings, mining_settings
from polyvec.train.settings import StageSettings

EPSILON = 1e-6  # of an epoch: transformers counts them as a float


class StageMining(TrainerCallback):
    """The negatives of a stage's rows, put into its batches at the beginning of an epoch.

    `trained` gives the embedder as it is; it is asked in every process, and the first one mines.
    """

    def __init__(
        self,
        stage: StageSettings,
        batches: Batches,
        folder: Path,
        trained: Callable[[], Embedder],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings: MiningSettings = mining_settings(stage.mining)
        self.batches, self.folder, self.trained, self.say = batches, folder / "mined", trained, say
        self.own = batches.data.sets  # as they were read: each mining begins with these
        self.seed = batches.data.seed
        self.number: int | None = None
        names = [each.name for each in self.own]
        for name in self.settings.sets:
            if name not in names:
                raise SettingsError(f"mining sets: no data set {name!r}.{known(name, names)}")

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.begin(int((state.epoch or 0.0) + EPSILON))

    def begin(self, epoch: int) -> None:
        """Take the negatives of an epoch: stored ones, or mined now."""
        every = self.settings.refresh_epochs
        number = epoch // every if every else 0
        if number == self.number:
            return
        exchange, path = Exchange.here(), self.folder / f"{number}.jsonl"
        # Asked before anyone waits: a file that the first process writes below is not there yet.
        is_new = not path.is_file()
        exchange.wait()
        if is_new:
            embedder = self.trained()
            if exchange.rank == 0:
                self._mine(embedder, path)
            exchange.wait()
        self.batches.use(TrainingData(self._stored(path), seed=self.seed))
        self.number = number

    def _mine(self, embedder: Embedder, path: Path) -> None:
        if self.settings.model is not None:
            embedder = Embedder.from_pretrained(self.settings.model, device=str(embedder.device))
        was_training = embedder.training
        embedder.eval()
        chosen = self.settings.sets or tuple(each.name for each in self.own)
        tools = Tools(embedder)
        sets: list[TrainingSet] = []
        for each in self.own:
            mined = mine(each, self.settings, tools=tools) if each.name in chosen else None
            if mined is not None:
                self.say(summary(mined))
            sets.append(each if mined is None else replace(each, rows=list(mined.mined_rows())))
        embedder.train(was_training)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            for row in (row for each in sets for row in each.rows):
                scores = {"teacher_scores": row.teacher_scores} if row.teacher_scores else {}
                file.write(json_line({"query": row.query, "negatives": row.negatives, **scores}))

    def _stored(self, path: Path) -> Iterator[TrainingSet]:
        """The data sets with the negatives of a file. Raises DataError if it is of other rows."""
        lines = read_jsonl(path)
        for each in self.own:
            yield replace(each, rows=[_with(row, lines, path) for row in each.rows])
        if next(lines, None) is not None:
            raise DataError(f"{path}: has more rows than the data of the stage; delete it")


def _with(
    row: TrainingRow, lines: Iterator[tuple[int, Mapping[str, Any]]], path: Path
) -> TrainingRow:
    number, line = next(lines, (0, {}))
    if line.get("query") != row.query:
        raise DataError(
            f"{path}:{number}: the query is not that of the data's row {row.place or row.query!r}; "
            "have the data changed? Delete the file to mine again"
        )
    scores: Sequence[float] = line.get("teacher_scores", row.teacher_scores)
    return replace(row, negatives=tuple(line["negatives"]), teacher_scores=tuple(scores))


def summary(mined: Mined) -> str:
    """One line of what was mined, for a run."""
    return f"mined {mined.texts.name}: " + ", ".join(
        f"{name} {value}" for name, value in facts(mined).items()
    )
