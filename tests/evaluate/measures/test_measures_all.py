"""All measures: the examples in their docstrings, and packages that are missing."""

import doctest
import importlib
import pkgutil
import sys

import numpy as np
import pytest

from polyvec.errors import MissingExtraError
from polyvec.evaluate import measures

TOPICS = [topic.name for topic in pkgutil.iter_modules(measures.__path__)]
MISSING = {
    "pearson": ("scipy", lambda: measures.pearson([1, 2], [1, 2])),
    "spearman": ("scipy", lambda: measures.spearman([1, 2], [1, 2])),
    "isotropy": ("scipy", lambda: measures.isotropy([[1.0, 0.0]])),
    "uniformity": ("scipy", lambda: measures.uniformity(np.eye(3))),
    "contrastive_nll": ("scipy", lambda: measures.contrastive_nll([[1.0, 0.0]], 1.0)),
    "retrieval": ("ir-measures", lambda: measures.retrieval({"q": {"a": 1}}, {})),
    "v_measure": ("scikit-learn", lambda: measures.v_measure([0], [0])),
    "nmi": ("scikit-learn", lambda: measures.nmi([0], [0])),
    "ari": ("scikit-learn", lambda: measures.ari([0], [0])),
    "clustering_accuracy": ("scipy", lambda: measures.clustering_accuracy([0], [0])),
    "average_precision": ("scikit-learn", lambda: measures.average_precision([0, 1], [0, 1])),
    "f1": ("scikit-learn", lambda: measures.f1([0], [0])),
    "rouge_l": ("rouge-score", lambda: measures.rouge_l(["a"], ["a"])),
    "rouge_n": ("rouge-score", lambda: measures.rouge_n(["a"], ["a"])),
    "bleu": ("sacrebleu", lambda: measures.bleu(["a"], ["a"])),
}


@pytest.mark.parametrize("name", TOPICS)
def test_examples_in_docstrings_are_right(name):
    module = importlib.import_module(f"polyvec.evaluate.measures.{name}")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    assert found.attempted or name == "inputs"


def test_every_measure_is_named_and_says_what_comes_out():
    assert measures.__all__ == sorted(measures.__all__)
    for name in measures.__all__:
        value = getattr(measures, name)
        if callable(value):
            assert value.__doc__.split("\n")[0].endswith((".", "?")), name


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_named_with_its_pip_command(name, monkeypatch):
    package, call = MISSING[name]
    call()
    module = {"ir-measures": "ir_measures", "scikit-learn": "sklearn", "rouge-score": "rouge_score"}
    top = module.get(package, package)
    for loaded in [key for key in sys.modules if key == top or key.startswith(f"{top}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, top, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'.*polyvec\[eval"):
        call()


def test_what_needs_no_package_runs_without(monkeypatch):
    """Those of exponential gain, too."""
    for top in ("scipy", "sklearn", "ir_measures", "sacrebleu", "rouge_score"):
        monkeypatch.setitem(sys.modules, top, None)
    assert measures.dcg_at_k({"q": {"a": 1}}, {"q": {"a": 1.0}}, 10) == 1
    assert measures.ndcg_at_k({"q": {"a": 1}}, {"q": {"a": 1.0}}, gain="exponential") == 1
    assert measures.isoscore(np.eye(3)) == pytest.approx(0.5)
    assert measures.token_overlap(["cat"], ["cat"]).f == measures.purity([0], [0]) == 1
