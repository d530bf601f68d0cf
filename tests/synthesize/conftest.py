"""Runs of steps with a function as the language model."""

import pytest

from polyvec.data.texts import Record
from polyvec.llm.function import FunctionLanguageModel
from polyvec.synthesize.models import Models
from polyvec.synthesize.run import build_steps, run_steps
from polyvec.synthesize.sections import StepSettings


class Runs:
    """`runs(steps, texts, write=function)` runs steps into a folder; its models are in `models`."""

    def __init__(self, folder):
        self.folder = folder
        self.models = None

    def __call__(self, steps, texts=(), write=str, budget=None, output="out", **prices):
        self.models = Models(self.folder / output, "model", None, budget, **prices)
        model = write if not callable(write) else FunctionLanguageModel(write, "rule")
        self.models.loaded["model"] = self.models.wrapped(model)
        records = [Record(f"t{i}", text) for i, text in enumerate(texts)]
        made = build_steps([StepSettings(each.pop("kind"), each) for each in map(dict, steps)], "r")
        tools = self.models.tools(records)
        return run_steps(made, tools, self.folder / output, usage=lambda: self.models.usage)


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)
