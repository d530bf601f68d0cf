"""The training part of recipes: every row of Table 4, its stages at three scales, its figures."""

import re

import pytest

from polyvec.data.training.mixing import Mixing
from polyvec.data.training.sources import named_sets
from polyvec.data.training.table import data_table
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.evaluate.sections import EXPECT
from polyvec.recipe import PUBLISHED, SCALES, all_recipes
from polyvec.settings import fill
from polyvec.train.adapters import ADAPTERS
from polyvec.train.losses.terms import Objective
from polyvec.train.mining.settings import mining_settings
from polyvec.train.sections import STAGES
from polyvec.train.tasks import TASKS

# Rows of the survey's Table 4 that train nothing, by their references.
TRAINING_FREE = (166, 171, 172, 173, 180, 186, 187, 188)


def table_4():
    """Recipes of each row."""
    rows = {}
    for recipe in all_recipes():
        if recipe.system.table == 4:
            rows.setdefault(recipe.system.reference, []).append(recipe)
    return rows


def test_every_row_of_table_4_has_its_stages_or_is_training_free():
    rows = table_4()
    assert len(rows) == 37
    for reference, recipes in rows.items():
        trained = any(recipe[STAGES] for recipe in recipes)
        assert trained != (reference in TRAINING_FREE), recipes[0].key


def test_every_trained_recipe_of_table_4_states_what_it_reaches():
    for recipe in (each for each in staged() if each.system.table == 4):
        figures = recipe[EXPECT].get("nano", {})
        assert {"stsb test spearman", "med test ndcg@10"} <= set(figures), recipe.key
        assert all(figure.untrained is not None for figure in figures.values()), recipe.key


def staged():
    return [recipe for recipe in all_recipes() if recipe[STAGES]]


def embedders():
    return [recipe for recipe in staged() if recipe[EMBEDDER] is not None]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("recipe", staged(), ids=lambda recipe: recipe.key)
def test_stages_name_parts_and_data_that_exist(recipe, scale):
    for number, stage in enumerate(recipe.at(STAGES, scale), 1):
        where = f"{recipe.key} {number}"
        TASKS.check(stage.kind, stage.settings, where=where)
        adapter = dict(stage.adapter or {"kind": "full"})
        adapter.pop("merge", None)
        ADAPTERS.check(adapter.pop("kind"), adapter, where=where)
        if stage.losses:
            facts = {"vector_size": {"full": 768, "small": 576, "nano": 192}[scale]}
            Objective.of(stage.losses, stage.matryoshka, facts, where=where)
        fill(Mixing, dict(stage.mixing), where)
        mining_settings(stage.mining, where)
        for table in stage.data:
            found = data_table(table, where)
            assert found.hub or found.path or found.name in named_sets()
            if scale != "full" and scale in recipe.scales:
                assert found.name, f"{where}: data that are not in the folder of data sets"


@pytest.mark.medium
@pytest.mark.parametrize("recipe", embedders(), ids=lambda recipe: recipe.key)
def test_a_dry_run_makes_every_task_without_weights(recipe):
    """What only weights could show (may it look to the right, does it take masks) is not asked."""
    embedder = compose(recipe.at(EMBEDDER, "nano"), weights=False)
    for stage in recipe.at(STAGES, "nano"):
        TASKS.build(stage.kind, stage.settings, {"embedder": embedder, "stage": stage}, where="")


def test_smaller_scales_do_not_train_as_the_papers_do():
    for recipe in (each for rows in table_4().values() for each in rows):
        for scale in set(recipe.scales) - {"full"}:
            for stage in recipe.at(STAGES, scale):
                trained = stage.kind not in ("prune", "merge")
                assert not (stage.bf16 or stage.fp16 or stage.gradient_checkpointing)
                assert stage.batch_size <= 32 and stage.accumulate == 1
                assert not trained or 0 < stage.max_steps <= 200


SOURCE = re.compile(
    r"@[0-9a-f]{7}|arXiv:\d{4}\.\d{5}|MTEB results repository|model card of |doi:10\.\d+/"
)


def test_every_published_number_has_a_source():
    for recipe in all_recipes():
        for name, each in recipe[PUBLISHED].items():
            assert SOURCE.search(each.source), f"{recipe.key}: {name} from {each.source!r}"
            assert 1 < each.value < 100, f"{recipe.key}: {name} is not in percent"
