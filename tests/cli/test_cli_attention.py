"""--attention, --role, --scale and --verbose, with a tiny causal checkpoint."""

import json

import numpy as np
import pytest
from checkpoints import checkpoint
from own_modules import POOLING, own

from polyvec import Embedder
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings


@pytest.fixture
def causal():
    return "--model", checkpoint("meta-llama/")


@pytest.mark.filterwarnings("ignore::polyvec.errors.UndeclaredPoolingWarning")
def test_an_untrained_conversion_warns_and_the_probe_speaks(run, causal):
    options = ("--attention", "bidirectional", "--verbose")
    done = run("embed", *causal, *options, stdin=b"a cat sat\n")
    assert done.status == 0
    assert "was trained with causal attention; with 'bidirectional' attention" in done.err
    assert "leak probe: bidirectional from the first of 6 layers" in done.err
    assert "batches packed (plan: probe: packed equals alone)" in done.err
    model = Embedder.from_pretrained(causal[1], attention="bidirectional")
    found = json.loads(done.out)["embedding"]
    np.testing.assert_allclose(found, model.encode("a cat sat"), atol=1e-5)


@pytest.mark.filterwarnings("ignore::polyvec.errors.UndeclaredPoolingWarning")
def test_verbose_names_a_causal_model(run, causal):
    done = run("embed", *causal, "--verbose", stdin=b"a cat\n")
    assert "attention native; leak probe: causal in all 6 layers" in done.err


def test_an_unknown_attention_is_one_line(run, causal):
    done = run("embed", *causal, "--attention", "bidirectionl", stdin=b"a cat\n")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("polyvec: attention 'bidirectionl' is not known. Did you mean")


def test_the_role_reads_its_side_of_the_template(run, tmp_path):
    folder = tmp_path / "model"
    backbone = str(checkpoint("meta-llama/"))
    compose(EmbedderSettings(backbone, template="query_passage", pooling="last")).save_pretrained(
        folder
    )
    model = Embedder.from_pretrained(folder)
    for role in ("query", "document"):
        done = run("embed", "--model", folder, "--role", role, stdin=b"cat\n")
        found = json.loads(done.out)["embedding"]
        np.testing.assert_allclose(found, model.encode("cat", role=role), atol=1e-5)


def test_scale_is_for_recipes(run, causal):
    done = run("embed", *causal, "--scale", "nano", stdin=b"a cat\n")
    assert done.status == 2 and "only recipes have scales" in done.err


def test_the_folders_own_code_runs_if_it_is_trusted(run, tmp_path):
    own(tmp_path, POOLING, "sentence_transformers.models.Transformer", "custom_st.Middle")
    refused = run("embed", "--model", tmp_path, stdin=b"a cat\n")
    assert refused.status == 2 and "--trust-remote-code" in refused.err
    done = run("embed", "--model", tmp_path, "--trust-remote-code", stdin=b"a cat\n")
    model = Embedder.from_pretrained(tmp_path, trust_remote_code=True)
    np.testing.assert_allclose(json.loads(done.out)["embedding"], model.encode("a cat"), atol=1e-5)
