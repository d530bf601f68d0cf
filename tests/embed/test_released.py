"""Recipes read what the authors' code reads, pool where it pools and give its vectors.

The values in released/ were computed once by the authors' functions, on the tiny tokenizers and
weights of support/checkpoints.py. A case has "text", "role" and "instruction", then as far as they
were compared "ids" and "pooled" (positions), one list a form of the template, and "vector". The
file's "settings" replace those of the recipe that tiny weights cannot have, such as layer 27. A
case may have "examples", pairs of a query and a document.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import checkpoint

from polyvec.embed.compose import compose
from polyvec.embed.inputs.demonstrations import Example
from polyvec.embed.sections import EMBEDDER, RELEASED
from polyvec.recipe import all_recipes

VALUES = {path.stem: path for path in sorted((Path(__file__).parent / "released").glob("*.json"))}
RECIPES = {recipe.key: recipe for recipe in all_recipes()}
# Poolings, and settings of theirs, that read the last pooled token alone.
LAST = {"last", "last_token", "reba", "generated", "route_weights"}


def build(key, monkeypatch, changed):
    """The recipe at scale full, with a tiny checkpoint of its backbone's family."""
    monkeypatch.setattr("polyvec.embed.compose.model_folder", lambda name, **_: checkpoint(name))
    return compose(dataclasses.replace(RECIPES[key][EMBEDDER], **changed))


def pooled(settings, tokens):
    """The positions whose states enter the vector."""
    found = np.flatnonzero(tokens.pooled).tolist()
    how = {settings.pooling, *map(str, settings.pooling_settings.values())}
    if settings.pooling == "first":
        return found[:1]
    return found[-1:] if how & LAST else found


@pytest.mark.parametrize("key", VALUES)
def test_a_recipe_equals_the_released_code(key, monkeypatch):
    found = json.loads(VALUES[key].read_text("utf-8"))
    embedder = build(key, monkeypatch, found.get("settings", {}))
    for case in found["cases"]:
        prompt = {name: case[name] for name in ("role", "prompt", "prompt_name") if name in case}
        if case.get("instruction") is not None:
            prompt["prompt"] = case["instruction"]
        if "examples" in case:
            prompt["examples"] = [Example(*each) for each in case["examples"]]
        (forms,) = embedder.tokenize([case["text"]], **prompt)
        if "ids" in case:
            assert [each.ids.tolist() for each in forms] == case["ids"]
        if "pooled" in case:
            assert [pooled(RECIPES[key][EMBEDDER], each) for each in forms] == case["pooled"]
        if "vector" in case:
            ours = embedder.encode(case["text"], truncate="silent", **prompt)
            np.testing.assert_allclose(ours, case["vector"], atol=1e-5, rtol=1e-5)


def test_a_recipe_says_what_it_was_compared_with():
    for key, recipe in RECIPES.items():
        released = recipe[RELEASED]
        if recipe.system.table != 4 or released is None:
            continue
        assert (key in VALUES) == bool(released.compared), key
        if key in VALUES:
            cases = json.loads(VALUES[key].read_text("utf-8"))["cases"]
            names = {"ids": "ids", "pooled": "pooled", "vectors": "vector"}
            for what in released.compared:
                assert all(names[what] in case for case in cases), (key, what)
