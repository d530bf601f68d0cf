"""An inverter trained in one call, by the stage of a recipe."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyvec.errors import DataError
from polyvec.interfaces import TextEncoder
from polyvec.invert.defended import Defended, MappedBack
from polyvec.invert.inverter import Inverter
from polyvec.invert.settings import InverterSettings
from polyvec.invert.space_map import SpaceMap
from polyvec.recipe import plain
from polyvec.settings import check_seed
from polyvec.storage.files import atomic_file
from polyvec.train.output import RECIPE
from polyvec.train.run import Run, run
from polyvec.train.settings import StageSettings

# Of small models, others 3e-4; at 3e-3 nano-t5 learns to ignore its encoder.
RATE = {"polyvec/nano-lm": 3e-3, "polyvec/nano-t5": 1e-3}


def train_inverter(
    victim: TextEncoder,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    folder: Path,
    *,
    settings: InverterSettings | None = None,
    steps: int = 400,
    batch_size: int = 32,
    seed: int = 42,
    start: Inverter | None = None,
    say: Callable[[str], None] = lambda line: None,
    **stage_settings: Any,
) -> Inverter:
    """An inverter of `victim`, trained on texts; `folder` holds the run, and RUN/model the result.

    Of one with a corrector first two writers of folds, then the writer, then the corrector, each
    for `steps`. start: an inverter whose writer trains on, in place of a new one; it is changed.
    Other settings are those of stage "invert", such as noise. A folder with a run that was stopped
    goes on with it; SettingsError if that was of other texts or settings. texts: or pairs, of which
    the second is written from the first one's vector. Raises DataError for no texts.
    """
    check_seed(seed)
    settings = settings or InverterSettings("polyvec/nano-lm", num_tokens=8, max_tokens=24)
    settings = start.settings if start is not None else settings
    pairs = [(each, each) if isinstance(each, str) else each for each in dict.fromkeys(texts)]
    pairs = [pair for pair in pairs if all(text.strip() for text in pair)]
    if not pairs:
        raise DataError("no text to train an inverter on")
    source: dict[str, Any] = {"path": str(folder / "texts.jsonl")}
    rows: list[dict[str, str]] = [{"text": text} for text, _ in pairs]
    if any(text != written for text, written in pairs):
        rows = [{"query": text, "positive": written} for text, written in pairs]
        source["format"] = "pairs"
        stage_settings["writes"] = "positive"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "texts.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    common = StageSettings(
        "invert",
        data=(source,),
        batch_size=min(batch_size, len(pairs)),
        learning_rate=RATE.get(settings.model, 3e-4),
        warmup_steps=0.05,
        max_steps=steps,
        seed=seed,
        # A run that is stopped repeats at most a fifth.
        trainer={
            "save_steps": max(1, min(200, steps // 5)),
            "save_total_limit": 1,
            "logging_steps": 50,
        },
        settings=stage_settings,
    )
    stages = [common]
    if settings.corrector and start is None:
        folds = [
            replace(common, name=f"fold-{number}", settings={**stage_settings, "fold": number})
            for number in (0, 1)
        ]
        stages = [*folds, common, replace(common, kind="correct", settings={})]
    place = folder / "run"
    inverter = start or Inverter.untrained(settings, victim)
    # What a finished run in the folder must have been trained with, to be taken for this one.
    facts = {
        "victim": victim.fingerprint(),
        "texts": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16],
        "inverter": plain(settings),
        "start": None if start is None else _digest(start),
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "stage": stage_settings,
    }
    plan = Run(stages, place, say=say, settings=facts)
    found = run(plan, inverter, resume=(place / RECIPE).is_file())  # type: ignore[arg-type]
    (folder / "texts.jsonl").unlink()  # the user's texts lie where they were, and nowhere else
    assert isinstance(found, Inverter)
    return found


def _digest(inverter: Inverter) -> str:
    found = hashlib.sha256()
    for name, each in sorted(inverter.writer.state_dict().items()):
        found.update(name.encode() + each.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()[:16]


def retrain_inverter(
    inverter: Inverter, defended: Defended, texts: Sequence[str], folder: Path, **options: Any
) -> tuple[Inverter, SpaceMap]:
    """The inverter after more training on defended vectors, and the map that it reads them through.

    The map (ridge) leads defended vectors of `texts` back into the undefended space, so that the
    inverter begins where it is and a defence may change the number of dimensions. The result is a
    copy. It ranks texts by the undefended model: who has the noise of a defence needs no attack.
    Options are those of `train_inverter`.
    """
    plain = Defended(defended.model, memo=defended.memo)
    back = SpaceMap.fit("ridge", defended.encode(list(texts)), plain.encode(list(texts)))
    read = Defended(defended.model, MappedBack(defended.defence, back), defended.memo)
    start = inverter.with_victim(read)
    found = train_inverter(read, texts, folder, start=start, **options)
    return found.with_victim(plain), back
