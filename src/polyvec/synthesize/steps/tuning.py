"""Steps that tune a language model for the steps behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.errors import DataError, InputError, SettingsError
from polyvec.llm.answers import GenerationSettings
from polyvec.llm.prompts import Prompt
from polyvec.settings import check_seed, fill
from polyvec.storage.files import atomic_folder
from polyvec.synthesize.folder import fingerprint
from polyvec.synthesize.prompt_files import prompt_file
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Asked, Step, Tools
from polyvec.synthesize.steps.generate import as_taken
from polyvec.synthesize.steps.pairs import Pairs
from polyvec.synthesize.tuned import (
    CHECKPOINT,
    DESCRIPTION,
    SOFT_PROMPT,
    Checkpoint,
    check_name,
    counted_by,
    describe,
    local_model,
    tuning_progress,
)

if TYPE_CHECKING:
    from polyvec.llm.local import LocalLanguageModel
    from polyvec.synthesize.soft_prompts import Example, Reader

SHOWN = "shown"  # the field of meta with the demonstrations
PAIR = "Document: {} \n Relevant Query: {} \n "  # one of them, as SPTAR's code has it


@STEPS.register("soft_prompt")
@dataclass(frozen=True)
class SoftPrompt(Step):
    """Tunes a soft prompt on few gold pairs, and chooses the demonstrations by its loss.

    SPTAR (arXiv:2307.08303): num_tokens vectors, begun as the tokens of `begin`, are trained to
    write the query of a document after num_demonstrations other pairs, drawn for each; the model
    stays as it is. Then `groups` groups of so many pairs are drawn, and the one with the least
    held-out loss is written to meta.shown of every row. "run:NAME" is the model with the soft
    prompt. data: a stage's table; num_pairs of its pairs are trained on, the next num_held_out
    measured. tuning: learning_rate, epochs, patience, batch_size. Each text that is
    read is a call of the budget. Needs a local model.
    """

    data: Mapping[str, Any]
    name: str = "soft-prompt"
    prompt: str = "sptar"
    num_tokens: int = 50
    begin: str = "please generate query for this document"
    num_pairs: int = 50
    num_held_out: int = 50
    num_demonstrations: int = 2
    groups: int = 50
    tuning: Mapping[str, Any] = field(default_factory=dict)
    max_words: int | None = None
    seed: int = 0
    model: str | None = None

    def __post_init__(self) -> None:
        where = "step 'soft_prompt'"
        check_name(self.name, where)
        check_seed(self.seed)
        self._tuning()
        _ = self._pairs
        slots = prompt_file(self.prompt, where).slots
        if {SHOWN, "document"} - set(slots):
            raise SettingsError(
                f"{where}: prompt {self.prompt!r} needs the slots {SHOWN!r} and 'document'"
            )
        least = (self.num_tokens, self.num_pairs, self.num_held_out, self.groups)
        if min(least) < 1 or not 0 <= self.num_demonstrations < self.num_pairs:
            raise SettingsError(
                f"{where}: num_tokens, num_pairs, num_held_out and groups must be 1 or more, and "
                f"num_demonstrations {self.num_demonstrations} less than num_pairs {self.num_pairs}"
            )

    def _tuning(self) -> Any:
        from polyvec.synthesize.soft_prompts import Tuning

        return fill(Tuning, {"seed": self.seed, **self.tuning}, "step 'soft_prompt' tuning")

    @property
    def _pairs(self) -> Pairs:
        return Pairs(self.data, limit=self.num_pairs + self.num_held_out, seed=self.seed)

    @property
    def makes(self) -> str:
        return self.name

    def uses(self, tools: Tools) -> str:
        return "language_model"

    def depends(self, tools: Tools) -> list[str]:
        file = repr(prompt_file(self.prompt, "step 'soft_prompt'"))
        return [*super().depends(tools), *self._pairs.depends(tools), file]

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        model = tools.language_model(self.model)
        pairs, held_out = self._split()
        each, measured = (
            [as_taken(self._prompt(row, self._drawn(pairs, i)), model) for i, row in part.items()]
            for part in (pairs, held_out)
        )
        epochs = self._tuning().epochs
        prompts = [*each * epochs, *measured * (2 + epochs + self.groups)]
        return Asked(prompts, GenerationSettings(max_new_tokens=1), self.model, ("",))

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        text = " ".join(["word"] * 100 * self.num_demonstrations)
        return [row.with_meta(**{SHOWN: text}) for row in rows]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        from polyvec.llm.soft_prompt import begun_as
        from polyvec.synthesize.soft_prompts import Reader, tune

        folder = models_of(tools, "step 'soft_prompt'")
        asked = tools.language_model(self.model)
        model, take = local_model(asked, "step 'soft_prompt'"), counted_by(asked)
        pairs, held_out = self._split()
        reader, settings = Reader(model), self._tuning()
        examples = [self._example(model, each, self._drawn(pairs, i)) for i, each in pairs.items()]
        measured = [
            self._example(model, each, self._drawn(pairs, i)) for i, each in held_out.items()
        ]
        key = fingerprint(self.own_settings(), self.depends(tools))
        checkpoint = Checkpoint(folder / f"{self.name}{CHECKPOINT}", key)
        begun_PD = begun_as(model, self.begin, self.num_tokens)
        take(2 * len(measured))
        before = [reader.mean_loss(each, measured, 1) for each in (None, begun_PD)]
        with tuning_progress("soft prompt", settings.epochs, tools.show_progress_bar) as advance:
            tuned = tune(
                reader,
                begun_PD,
                examples,
                measured,
                settings,
                checkpoint,
                take=take,
                say=lambda epoch, *losses: advance("loss {:.3f}, held out {:.3f}".format(*losses)),
            )
        take(self.groups * len(measured))
        chosen, losses = self._chosen(model, reader, tuned.prompt_PD, pairs, held_out)
        self._write(folder / self.name, tuned.prompt_PD, model.name)
        checkpoint.path.unlink(missing_ok=True)
        told = {
            "held-out loss, nats a token": f"{before[0]:.3f} without a soft prompt, "
            f"{before[1]:.3f} as it began, {min(b for _, b in tuned.curve):.3f} tuned "
            f"({len(tuned.curve)} epochs)",
            "demonstrations": f"{min(losses):.3f} with those chosen, {max(losses):.3f} with the "
            f"worst of {len(losses)} groups",
        }
        return Changed([row.with_meta(**{SHOWN: chosen}) for row in rows], notes=told)

    def _split(self) -> tuple[dict[int, Row], dict[int, Row]]:
        rows = self._pairs.run([], Tools()).kept
        needed = self.num_demonstrations + 2
        if len(rows) < needed:
            raise DataError(
                f"step 'soft_prompt': {len(rows)} gold pairs, {needed} are needed at least"
            )
        order = np.random.default_rng(self.seed).permutation(len(rows)).tolist()
        num = min(self.num_pairs, max(needed - 1, len(rows) // 2))
        pairs, held_out = order[:num], order[num : num + self.num_held_out]
        return {i: rows[i] for i in pairs}, {i: rows[i] for i in held_out}

    def _drawn(self, pairs: Mapping[int, Row], number: int) -> list[Row]:
        """Demonstrations for a pair, never itself."""
        others = [i for i in pairs if i != number]
        draw = np.random.default_rng([self.seed, number])
        return [pairs[others[i]] for i in draw.permutation(len(others))[: self.num_demonstrations]]

    def _example(self, model: "LocalLanguageModel", row: Row, shown: Sequence[Row]) -> "Example":
        from polyvec.synthesize.soft_prompts import Example

        tokens = model.tokens
        target = tokens.of_text(row.anchor or "")
        end = tokens.tokenizer.eos_token_id
        if not target:
            raise InputError(f"step 'soft_prompt': the query of {row.id} has no tokens")
        ids = tokens.of_prompt(as_taken(self._prompt(row, shown), model), row.id)
        return Example(ids, target if end is None else (*target, end))

    def _prompt(self, row: Row, shown: Sequence[Row]) -> Prompt:
        values = {SHOWN: self._shown(shown), "document": self._cut(row.positive or "")}
        return prompt_file(self.prompt, "step 'soft_prompt'").asked(values, ())

    def _shown(self, pairs: Sequence[Row]) -> str:
        return "".join(PAIR.format(self._cut(p.positive or ""), p.anchor) for p in pairs)

    def _cut(self, text: str) -> str:
        return text if self.max_words is None else " ".join(text.split()[: self.max_words])

    def _chosen(
        self,
        model: "LocalLanguageModel",
        reader: "Reader",
        prompt_PD: Any,
        pairs: Mapping[int, Row],
        held_out: Mapping[int, Row],
    ) -> tuple[str, list[float]]:
        """The demonstrations with the least loss, as text, and the losses of all groups."""
        prompt_PD = prompt_PD.to(reader.device)
        best, losses = "", list[float]()
        for group in self._groups(list(pairs)):
            shown = [pairs[i] for i in group]
            measured = [self._example(model, each, shown) for each in held_out.values()]
            losses.append(reader.mean_loss(prompt_PD, measured, 1))
            if losses[-1] == min(losses):
                best = self._shown(shown)
        return best, losses

    def _groups(self, numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Different groups of pairs, drawn by seed; at most as many as there are."""
        draw, seen = np.random.default_rng([self.seed, 1]), set[tuple[int, ...]]()
        for _ in range(20 * self.groups):
            order = draw.permutation(len(numbers))[: self.num_demonstrations]
            group = tuple(numbers[i] for i in order.tolist())
            if group not in seen and len(seen) < self.groups:
                seen.add(group)
                yield group

    def _write(self, folder: Path, prompt_PD: Any, base: str) -> None:
        from safetensors.torch import save_file

        with atomic_folder(folder, replaceable=DESCRIPTION) as inside:
            save_file({"prompt_PD": prompt_PD.contiguous()}, inside / SOFT_PROMPT)
            describe(inside, "soft_prompt", base=base)


def models_of(tools: Tools, where: str) -> Path:
    """The folder for models that steps make."""
    if tools.models is None:
        raise SettingsError(f"{where}: makes a model, and there is no folder of a run for it")
    tools.models.mkdir(parents=True, exist_ok=True)
    return tools.models
