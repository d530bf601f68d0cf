"""The table of synthesis_effects.py: each recipe of Table 3 with its own steps and stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effects import Experiment
from synthesis_arms import COMMON, INFO_NCE, STEPS, Arm, Base, Table
from synthesis_claims import following
from synthesis_making import Making, is_filter, step_tables
from synthesis_sources import of_recipe

from polyvec.recipe import all_recipes, load_recipe, plain
from polyvec.train.sections import STAGES

# I3's introspector does nothing to a query without an instruction.
ASKED = "Find abstracts that support or refute the claim."
TOLD = {"i3": {"prompts": {"search": ASKED}, "default_prompt": "search"}}
TRIPLETS = {"name": "snli"}
# Of each recipe: texts, gold data (a stage's `data` table and losses), and what is measured.
SIMILAR = ("wiki", ({**TRIPLETS},), INFO_NCE, ("stsb test", "sick test"))
SEARCH = ("scifact", ({"name": "scifact"},), INFO_NCE, ("scifact",))
STSB = [{"kind": "cosent", "temperature": 0.05}]
RowFacts = tuple[str | None, Sequence[Table], Sequence[Table], tuple[str, ...]]
# Where it is not as for the others of its task.
ROWS: Mapping[str, RowFacts] = {
    "syncse-scratch": (None, *SIMILAR[1:]),
    "angle-llm": (None, ({"name": "stsb"},), STSB, SIMILAR[3]),
    "claif": ("wiki", ({"name": "stsb"},), STSB, SIMILAR[3]),
    "clhaif": (None, ({"name": "cad_nli", "num_negatives": 0},), INFO_NCE, SIMILAR[3]),
    "gecko": SEARCH,
    "i3": (None, ({"name": "scifact", "instruction": ASKED},), INFO_NCE, ("scifact",)),
    "nv-retriever": (None, (), (), ("scifact",)),
    "promptriever-data": (
        None,
        ({"name": "medquad_instructions", "num_negatives": 3},),
        INFO_NCE,
        ("scifact",),
    ),
    "e5-mistral-data": (None, (), (), ("stsb test", "scifact")),
}
RERANKERS = ("followir",)  # train no embedder
UNTRAINED, UNFILTERED, FILTERED, GOLD = "base", "unfiltered", "filtered", "gold"


def table_keys() -> list[str]:
    """The recipes of the survey's Table 3, in its order."""
    recipes = [each for each in all_recipes() if 3 in (each.system.table, *each.system.also)]
    ordered = sorted(recipes, key=lambda each: (each.system.reference or 0, each.key))
    return [each.key for each in ordered if each.key not in RERANKERS]


def row_facts(key: str) -> RowFacts:
    similar = "similarity" in load_recipe(key).system.tasks
    return ROWS.get(key, SIMILAR if similar else SEARCH)


def row_of_table(key: str, scale: str) -> Experiment:
    """A recipe's stages on as many unfiltered, filtered and gold rows."""
    recipe = load_recipe(key)
    # Rerankers are trained beside the embedder, which is what is measured.
    stages = [plain(each) for each in recipe.at(STAGES, scale) if each.kind != "true_false"]
    _, gold, losses, columns = row_facts(key)
    base = Base(scale, key, TOLD.get(key, {}))
    measure = following if key == "promptriever-data" else None
    arms = {UNTRAINED: Arm(base, (), measure)}
    if key == "nv-retriever":
        naive = [{**s, "mining": _naive(s.get("mining", {}))} for s in stages]
        arms[UNFILTERED] = Arm(base, [_own(s, scale) for s in naive])
        arms[FILTERED] = Arm(base, [_own(s, scale) for s in stages])
    else:
        files = [f"table {key}/filtered", f"table {key}/unfiltered"]
        filtered_only = _unfiltered_is_the_same(key, scale)
        for name, file in zip((FILTERED, UNFILTERED), files, strict=True):
            if name == UNFILTERED and filtered_only:
                continue
            rows = files[:1] if filtered_only else files
            arms[name] = Arm(base, [_on(s, scale, file, rows) for s in stages], measure)
        if gold:
            tables = [{**each, "rows_of": files[:1]} for each in gold]
            stage = {**stages[0], "kind": "scl", "settings": {}, "losses": list(losses)}
            stage = {key: value for key, value in stage.items() if key != "guide"}
            arms[GOLD] = Arm(base, [{**_own(stage, scale), "data": tables}], measure)
    claims = [
        (FILTERED, UNTRAINED, "the rows train it"),
        (FILTERED, UNFILTERED, "filtered rows beat as many unfiltered ones"),
        (GOLD, FILTERED, "gold rows beat them"),
    ]
    name = f"{recipe.system.name} [{recipe.system.reference}]"
    return Experiment(name, arms, claims, columns)


def _unfiltered_is_the_same(key: str, scale: str) -> bool:
    return not any(is_filter(table) for table in step_tables(key, scale))


def _naive(mining: Table) -> Table:
    margins = ("relative_margin", "absolute_margin", "max_score")
    return {key: value for key, value in mining.items() if key not in margins}


def _own(stage: Table, scale: str) -> Table:
    """The recipe's stage, with the steps and the learning rate of all of them here."""
    if not stage.get("data"):
        return stage  # changes the embedder without training
    more = {**COMMON[scale], "batch_size": 32, "max_steps": STEPS[scale]}
    if stage.get("adapter", {}).get("kind") == "frozen":  # what is trained beside it has its rate
        more |= {key: stage[key] for key in ("adapter", "learning_rate")}
    return {**stage, **more, "trainer": {}}


def _on(stage: Table, scale: str, file: str, rows: Sequence[str]) -> Table:
    data = []
    for table in stage.get("data", ()):
        if "path" not in table:
            data.append(table)
            continue
        whole = str(table["path"]).endswith("rows.jsonl")  # with all that is known of a row
        own = {key: value for key, value in table.items() if key != "path"}
        source = f"{file}/rows" if whole else file
        data.append({**own, "source": source, "rows_of": list(rows)})
    return {**_own(stage, scale), "data": data} if data else stage


def sources_of_table(scale: str) -> Mapping[str, Callable[[Making], dict[str, Any]]]:
    return {
        f"table {key}": of_recipe(key, row_facts(key)[0], scale)
        for key in table_keys()
        if key != "nv-retriever"
    }
