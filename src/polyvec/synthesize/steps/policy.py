"""Steps of AdaptCL's turns: a language model learns from an embedder, an embedder from its rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.errors import DataError, InputError, SettingsError
from polyvec.llm.answers import GenerationSettings
from polyvec.settings import fill
from polyvec.storage.files import atomic_folder
from polyvec.synthesize.folder import fingerprint
from polyvec.synthesize.prompt_files import prompt_file
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Asked, Step, Tools
from polyvec.synthesize.steps.generate import Generate, as_taken
from polyvec.synthesize.steps.retrieval import SelfTraining, trained_on
from polyvec.synthesize.steps.tuning import models_of
from polyvec.synthesize.tuned import (
    CHECKPOINT,
    DESCRIPTION,
    Checkpoint,
    check_name,
    counted_by,
    describe,
    local_model,
    tuning_progress,
)

if TYPE_CHECKING:
    from polyvec.llm.local import LocalLanguageModel

WANTED = ("positive", "negative")


@STEPS.register("ppo")
@dataclass(frozen=True)
class PPO(Step):
    """Optimises a language model by a reward of what it writes; "run:NAME" is the result.

    AdaptCL (Xu et al. 2024): prompts names the prompt for "positive" and "negative", of which the
    rows take turns. reward: a table with `kind` (of rewards.REWARDS, or "package.module:Class")
    and its settings. ppo: settings of PPOSettings (batch_size, steps, kl, ...). The rows stay as
    they are. An interrupted step goes on at its last checkpoint. Each
    answer is a call of the budget. Needs a local model.
    """

    prompts: Mapping[str, str]
    reward: Mapping[str, Any]
    name: str = "generator"
    ppo: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None

    def __post_init__(self) -> None:
        where = "step 'ppo'"
        check_name(self.name, where)
        self._settings()
        if not self.prompts or set(self.prompts) - set(WANTED):
            raise SettingsError(
                f"{where}: prompts has {sorted(self.prompts)}, expected 'positive', 'negative'"
            )
        for each in self.prompts.values():
            prompt_file(each, where)
        if not isinstance(self.reward.get("kind"), str):
            raise SettingsError(f"{where}: reward has no kind, such as 'adaptcl'")

    def _settings(self) -> Any:
        from polyvec.synthesize.ppo import PPOSettings

        return fill(PPOSettings, self.ppo, "step 'ppo' ppo")

    @property
    def makes(self) -> str:
        return self.name

    def uses(self, tools: Tools) -> str:
        return "language_model"

    def depends(self, tools: Tools) -> list[str]:
        from polyvec.synthesize.rewards import build_reward

        reward = build_reward(dict(self.reward), tools, "step 'ppo'")
        files = [repr(prompt_file(each, "step 'ppo'")) for each in self.prompts.values()]
        return [*super().depends(tools), *getattr(reward, "depends", []), *files]

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        from polyvec.synthesize.ppo import drawn

        settings, model = self._settings(), tools.language_model(self.model)
        asked = [as_taken(prompt, model) for _, _, prompt in self._asked(rows)]
        prompts = [
            asked[i] for step in range(settings.steps) for i in drawn(len(asked), settings, step)
        ]
        written = GenerationSettings(max_new_tokens=settings.max_new_tokens, temperature=1.0)
        return Asked(prompts, written, self.model)

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        from polyvec.llm.local import LocalLanguageModel
        from polyvec.synthesize.ppo import Policy, optimise
        from polyvec.synthesize.rewards import build_reward

        where = "step 'ppo'"
        folder = models_of(tools, where)
        model, settings = tools.language_model(self.model), self._settings()
        base = local_model(model, where)
        reward = build_reward(dict(self.reward), tools, where)
        asked, ids = self._fitting(rows, base)
        # The run's own model stays as it is.
        own = LocalLanguageModel.load(
            base.name,
            device=str(base.model.device),
            batch_size=base.batch_size,
            batch_tokens=base.batch_tokens,
        )
        policy = Policy(own, settings)
        key = fingerprint(
            self.own_settings(), self.depends(tools), [(row.id, wanted) for row, wanted, _ in asked]
        )
        checkpoint = Checkpoint(folder / f"{self.name}{CHECKPOINT}", key)

        def judge(numbers: Sequence[int], answers: Sequence[str]) -> np.ndarray:
            anchors = [asked[i][0].anchor or "" for i in numbers]
            return reward(anchors, [asked[i][1] for i in numbers], answers)  # type: ignore[misc]

        with tuning_progress("ppo", settings.steps, tools.show_progress_bar) as advance:
            curve = optimise(
                policy,
                ids,
                judge,
                checkpoint,
                take=counted_by(model),
                say=lambda point: advance(
                    f"reward {point.reward:.2f}, {point.kl:.2f} nats an answer away"
                ),
            )
        self._write(folder / self.name, policy, [(each.reward, each.kl) for each in curve])
        checkpoint.path.unlink(missing_ok=True)
        tenth = max(1, len(curve) // 10)
        first, late = curve[:tenth], curve[-tenth:]
        told = {
            "reward": f"{np.mean([p.reward for p in first]):.3f} in the first {tenth} batches, "
            f"{np.mean([p.reward for p in late]):.3f} in the last",
            "divergence, nats an answer": f"{np.mean([p.kl for p in late]):.3f} in the last "
            f"{tenth} batches",
        }
        return Changed(list(rows), notes=told)

    def _asked(self, rows: Sequence[Row]) -> list[tuple[Row, str, Any]]:
        """Each row with an anchor, what is wanted of it, and the prompt."""
        found: list[tuple[Row, str, Any]] = []
        asking = {wanted: Generate(name) for wanted, name in self.prompts.items()}
        for row in rows:
            if row.anchor is None:
                continue
            wanted = sorted(asking, reverse=True)[len(found) % len(asking)]
            try:
                found.append((row, wanted, asking[wanted].prompt_of(row)))
            except InputError:
                continue
        if not found:
            raise DataError("step 'ppo': no row has an anchor that a prompt can be made of")
        return found

    def _fitting(
        self, rows: Sequence[Row], model: "LocalLanguageModel"
    ) -> tuple[list[tuple[Row, str, Any]], list[tuple[int, ...]]]:
        """What is asked and the prompts' tokens; those that are too long are left out."""
        asked, context = self._asked(rows), model.model.context
        ids = [
            model.tokens.of_prompt(as_taken(prompt, model), f"step 'ppo' {row.id}")
            for row, _, prompt in asked
        ]
        room = None if context is None else context - self._settings().max_new_tokens
        fitting = [i for i, each in enumerate(ids) if room is None or len(each) <= room]
        if not fitting:
            raise DataError(
                f"step 'ppo': all {len(ids)} prompts have more than {room} tokens, which "
                f"{model.name} reads beside {self._settings().max_new_tokens} new ones; give "
                "shorter texts, or the first step max_words"
            )
        return [asked[i] for i in fitting], [ids[i] for i in fitting]

    def _write(self, folder: Path, policy: Any, curve: Sequence[tuple[float, float]]) -> None:
        from polyvec.embed.backbone.quiet import quiet_transformers

        with atomic_folder(folder, replaceable=DESCRIPTION) as inside, quiet_transformers():
            policy.merged().save_pretrained(inside)
            policy.model.tokens.tokenizer.save_pretrained(inside)
            describe(inside, "language_model", curve=curve)


@STEPS.register("train_embedder")
@dataclass(frozen=True)
class TrainEmbedder(Step):
    """Trains a copy of an embedder on the rows; "run:NAME" is the result, for steps behind.

    train: as that of round_trip. Rows with negatives train with their first one. clear: fields that
    the rows then lose, so that another turn writes them anew. model: another embedder than the
    run's.
    """

    train: Mapping[str, Any]
    name: str = "encoder"
    clear: tuple[str, ...] = ()
    model: str | None = None

    def __post_init__(self) -> None:
        where = "step 'train_embedder'"
        check_name(self.name, where)
        fill(SelfTraining, self.train, f"{where} train")
        for each in self.clear:
            if each not in ("positive", "negatives"):
                raise SettingsError(f"{where}: clear has {each!r}, not 'positive' or 'negatives'")

    @property
    def makes(self) -> str:
        return self.name

    def uses(self, tools: Tools) -> str:
        return "embedder"

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        return [self._cleared(row) for row in rows]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        where = "step 'train_embedder'"
        folder = models_of(tools, where)
        whole = [row for row in rows if row.anchor is not None and row.positive is not None]
        if len(whole) < 2:
            raise DataError(f"{where}: {len(whole)} rows have an anchor and a positive, not 2")
        settings = fill(SelfTraining, self.train, f"{where} train")
        trained = trained_on(tools.embedder(self.model), whole, settings, where)
        with atomic_folder(folder / self.name, replaceable=DESCRIPTION) as inside:
            trained.save_pretrained(inside)
            describe(inside, "embedder")
        told = {"trained on": f"{len(whole):,} rows"}
        return Changed([self._cleared(row) for row in rows], notes=told)

    def _cleared(self, row: Row) -> Row:
        empty: dict[str, Any] = {"positive": None, "negatives": ()}
        return dataclasses.replace(row, **{name: empty[name] for name in self.clear})
