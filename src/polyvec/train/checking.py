"""What of a stage can be checked before any weight loads, or an earlier stage trains for hours."""

from collections.abc import Sequence
from pathlib import Path

from transformers import SchedulerType
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from polyvec.data.training.mixing import Mixing
from polyvec.data.training.sources import source_table
from polyvec.errors import SettingsError, known
from polyvec.registry import arguments
from polyvec.settings import fill, known_keys
from polyvec.train.adapter_kinds import ADAPTERS
from polyvec.train.adapters import check_adapter
from polyvec.train.arguments import check_trainer_table
from polyvec.train.losses.matryoshka import Matryoshka
from polyvec.train.losses.terms import check_table
from polyvec.train.sections import COMMON
from polyvec.train.settings import StageSettings
from polyvec.train.tasks import TASKS

MERGE = "merge"  # of an adapter's table, for every kind


def check_stage(
    stage: StageSettings, data: Path | None, where: str, earlier: Sequence[StageSettings] = ()
) -> None:
    """Raises SettingsError or DataError for what needs neither the model nor the rows.

    Keys of the kind's own, adapters, losses, mixing, transformers' arguments, files of the data.
    earlier: the stages before it, whose weights it may read.
    """
    check_kind(stage, where, earlier)
    if stage.lr_scheduler_type not in list(SchedulerType):
        names = [each.value for each in SchedulerType]
        raise SettingsError(
            f"{where}: lr_scheduler_type {stage.lr_scheduler_type!r} is not known."
            f"{known(stage.lr_scheduler_type, names)}"
        )
    check_trainer_table(stage.trainer, f"{where} trainer")
    _check_reports(stage, f"{where} trainer")
    if stage.adapter is not None:
        table = {key: value for key, value in stage.adapter.items() if key != MERGE}
        kind = table.pop("kind", None)
        if not isinstance(kind, str):
            raise SettingsError(f"{where} adapter has no kind.{known('', ADAPTERS)}")
        check_adapter(kind, table, where)
    for place, loss in enumerate(stage.losses):
        check_table(loss, f"{where} losses[{place}]")
    Matryoshka.of(stage.matryoshka, None, f"{where} matryoshka")
    fill(Mixing, stage.mixing, f"{where} mixing")
    for place, source in enumerate(stage.data):
        source_table(source, data, f"{where} data[{place}]")


def check_kind(stage: StageSettings, where: str, earlier: Sequence[StageSettings] = ()) -> None:
    """Raises SettingsError for a key that neither every stage has nor those of its kind.

    A kind whose settings depend on each other has a static method `check` that says so.
    """
    part = TASKS.find(stage.kind, where=where)
    takes = arguments(part)
    facts = {"embedder", "stage", "output"}
    known_keys(stage.settings, COMMON | {each.name for each in takes} - facts, where)
    TASKS.check(stage.kind, stage.settings, where=where)
    if hasattr(part, "check"):
        part.check(stage.settings, [each.name or each.kind for each in earlier], where)


def _check_reports(stage: StageSettings, where: str) -> None:
    """transformers checks these names once the model is there."""
    try:
        get_reporting_integration_callbacks(stage.trainer.get("report_to", "none"))
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{where}: {' '.join(str(error).split())}") from None
