"""Recipes become embedders: every row of the survey's Table 4, on a tiny model of its family."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from numpy.testing import assert_allclose, assert_array_equal

from polyvec import Embedder
from polyvec.embed.compose import compose
from polyvec.embed.inputs.demonstrations import Example, nearest_examples
from polyvec.embed.sections import EMBEDDER
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import (
    CalibrationError,
    InputError,
    ModelError,
    SettingsError,
    TokenizerError,
    UntrainedAttentionWarning,
)
from polyvec.interfaces import Prompt, RunOptions
from polyvec.recipe import all_recipes, load_recipe

TABLE_4 = [recipe.key for recipe in all_recipes() if recipe.system.table == 4]
REFERENCES = {
    *(67, 149, 151, 153, 164, 165, 166, 168, 169, 170, 171, 172, 173, 174, 175, 176, 177, 178),
    *(179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193, 194, 195, 196),
    197,
}
TEXTS = ["a cat sat on the mat", "the dog looks", "two very long text of cats"]


def settings(**parts) -> EmbedderSettings:
    return EmbedderSettings(backbone=str(checkpoint(parts.pop("family", "meta-llama/"))), **parts)


def embedder_of(**parts) -> Embedder:
    return compose(settings(**parts))


def on_tiny(key: str) -> EmbedderSettings:
    """A recipe's settings at scale nano, on its own family instead of nano-lm."""
    recipe = load_recipe(key)
    parts = dataclasses.replace(
        recipe.at(EMBEDDER, "nano"), backbone=str(checkpoint(recipe[EMBEDDER].backbone))
    )
    if "top_k" in parts.pooling_settings:  # of a vocabulary of a hundred
        parts = dataclasses.replace(parts, pooling_settings={**parts.pooling_settings, "top_k": 9})
    return dataclasses.replace(parts, max_length=None)


def test_every_row_of_table_4_has_a_recipe():
    assert {load_recipe(key).system.reference for key in TABLE_4} == REFERENCES
    assert len(REFERENCES) == 37


@pytest.mark.equality
@pytest.mark.parametrize("key", TABLE_4)
def test_a_row_of_table_4_loads_encodes_saves_and_loads_again(key, tmp_path):
    model = compose(on_tiny(key))
    vectors = model.encode(TEXTS)
    documents = model.encode_document(TEXTS)
    assert vectors.shape == (3, model.get_embedding_dimension())
    assert np.isfinite(vectors).all() and np.isfinite(documents).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6
    scale = max(1.0, float(np.abs(vectors).max()))
    assert_allclose(model.encode(TEXTS[0]), vectors[0], atol=1e-5 * scale)
    model.save_pretrained(tmp_path / "model")
    again = Embedder.from_pretrained(tmp_path / "model")
    assert_array_equal(again.encode(TEXTS), vectors)
    assert_array_equal(again.encode_document(TEXTS), documents)
    assert again.fingerprint() == model.fingerprint()


# ---- templates in the flow --------------------------------------------------------------------


def tokens_of(model: Embedder, text: str, **prompt):
    (spans,) = model.rendered_inputs([text], model.prompt_for(**prompt))
    return model.text_tokenizer.encode(spans)[0]


def test_truncation_keeps_what_stands_around_the_text():
    """SILENT row 7: EOS survives, and both copies of an echo keep the same words."""
    model = embedder_of(template="echo", pooling="mean", max_length=60, prompts={"i": "cat"},
                        default_prompt="i")  # fmt: skip
    tokens = tokens_of(model, "dog " * 200)
    whole = tokens_of(model, "dog")
    assert len(tokens) <= 60 and tokens.truncated
    assert tokens.ids[-1] == model.tokenizer.eos_token_id
    dog = model.tokenizer.convert_tokens_to_ids("dog")
    copies = np.flatnonzero(tokens.ids == dog)
    assert tokens.pooled[copies].sum() * 2 == len(copies)
    assert (whole.ids == dog).sum() == 2


def test_copies_with_nothing_between_them_are_cut_alike():
    """ReBA repeats the text bare: without this the second copy, which is pooled, would go."""
    model = embedder_of(template="repeat_2", pooling="reba", max_length=21)
    tokens = tokens_of(model, "cat " * 50)
    first = tokens.ids[~tokens.pooled]
    assert len(first) == 10 and tokens.ids[tokens.pooled].tolist() == first.tolist()
    assert np.isfinite(model.encode("cat " * 50)).all()


def test_a_text_is_cut_on_the_side_that_the_settings_name(tmp_path):
    """InBedder cuts the start of a long input, here of the text alone; a saved model does, too."""
    prompt = {"prompts": {"i": "dog"}, "default_prompt": "i"}
    parts = {"template": "inbedder", "pooling": "last", "max_length": 60, **prompt}
    left = embedder_of(truncation_side="left", **parts)
    left.save_pretrained(tmp_path / "left")
    cat, dog = left.tokenizer.convert_tokens_to_ids(["cat", "dog"])
    for model, kept in (
        (left, dog),
        (Embedder.from_pretrained(tmp_path / "left"), dog),
        (embedder_of(truncation_side="right", **parts), cat),
    ):
        tokens = tokens_of(model, "cat " * 50 + "dog " * 50)
        assert set(tokens.ids[tokens.text]) == {kept}
        assert tokens.ids[~tokens.text].tolist() == tokens_of(model, "").ids.tolist()


def test_a_template_that_fills_the_model_is_refused():
    model = embedder_of(template="prompteol", pooling="last", max_length=12)
    with pytest.raises(InputError, match=r"inputs\[0\].*no text would be left"):
        model.encode(["a cat"])


def test_echo_shows_early_words_the_late_ones():
    """Editing the last word moves the pooled states of the second copy's first words."""
    model = embedder_of(template="echo_rewrite", pooling="mean")
    plain = embedder_of(pooling="mean")
    moved = []
    for each in (model, plain):
        a, b = each.encode(["dog cat mat", "dog cat two"], output_value="token_embeddings")
        at = -3 if each is model else 0
        moved.append(np.abs(a[at] - b[at]).max())
    # The two texts are different rows of one batch, which a kernel may sum up differently.
    assert moved[0] > 1e-3 and moved[1] < 1e-5


def test_eight_prompts_are_the_mean_of_eight_encodes():
    from polyvec.embed.inputs.named_templates import METAEOL

    together = embedder_of(template="metaeol", pooling="last").encode("a cat")
    alone = [
        embedder_of(template={"query": form, "pool_prompt": True}, pooling="last").encode("a cat")
        for form in METAEOL[:8]
    ]
    assert_allclose(together, np.mean(alone, axis=0), atol=1e-5)
    assert np.std(alone, axis=0).max() > 1e-3


@pytest.mark.equality
def test_the_instruction_moves_queries_and_no_documents():
    model = embedder_of(template="e5_mistral", pooling="last", prompts={"a": "cat", "b": "dog"})
    with pytest.raises(InputError, match="needs 'instruction'"):
        model.encode_query("mat")
    one, two = model.encode_query("mat", prompt_name="a"), model.encode_query("mat", prompt="dog")
    assert np.abs(one - two).max() > 1e-4
    assert_array_equal(two, model.encode_query("mat", prompt_name="b"))
    with pytest.raises(InputError, match="no slot for 'instruction'"):
        model.encode_document("mat", prompt_name="a")
    assert_array_equal(model.encode_document("mat"), model.encode("mat", role="document"))


def test_demonstrations_are_shown_to_queries():
    model = embedder_of(template="rare", pooling="last", prompts={"i": "cat"}, default_prompt="i")
    plain = model.encode_query("mat")
    shown = model.encode("mat", role="query", examples=[Example("dog", "two cats")])
    assert np.abs(plain - shown).max() > 1e-4
    pool = [Example("dog", "two cats"), Example("a mat", "very long")]
    asked = ["the mat", "dog looks"]
    own = model.encode(asked, role="query", examples=lambda text: nearest_examples(text, pool, 1))
    for row, example in ((0, pool[1]), (1, pool[0])):
        one = model.encode(asked[row], role="query", examples=[example])
        assert_allclose(own[row], one, atol=1e-5)
    with pytest.raises(InputError, match="no template"):
        embedder_of().encode("mat", examples=[Example("dog", "two")])


def test_user_text_is_data_in_a_template():
    """SILENT row 32: braces and special tokens in a text stay characters."""
    model = embedder_of(template="udever", pooling="last")
    odd = "cat [EOQ] {text} </s>"
    ids = tokens_of(model, odd).ids.tolist()
    assert ids.count(model.tokenizer.convert_tokens_to_ids("[EOQ]")) == 1
    assert model.tokenizer.eos_token_id not in ids


def test_an_empty_text_is_what_its_template_makes_of_it():
    model = embedder_of(template="echo_rewrite", pooling="mean")
    assert np.isfinite(model.encode(["", "cat"])).all()


def test_what_is_pooled_is_the_recipes_word():
    """SILENT row 12: instruction tokens pooled or not, and the two differ."""
    form = {"query": "dog mat {text}", "name": "mine"}
    pooled = embedder_of(template={**form, "pool_prompt": True}).encode("cat")
    excluded = embedder_of(template={**form, "pool_prompt": False}).encode("cat")
    assert np.abs(pooled - excluded).max() > 1e-4
    with pytest.raises(SettingsError, match="pool_prompt"):
        embedder_of(template=form)


# ---- parts ------------------------------------------------------------------------------------


@pytest.mark.equality
def test_prepending_shows_early_tokens_the_end_and_nothing_where_start_is_stop():
    parts = {"template": "token_prepending", "pooling": "mean"}
    plain = embedder_of(**parts)
    same = embedder_of(**parts, prepending={"start": 2, "stop": 2})
    changed = embedder_of(**parts, prepending={"start": 1, "stop": 3})
    assert_array_equal(plain.encode(TEXTS), same.encode(TEXTS))
    pair = ["dog cat mat", "dog cat two"]
    first_moved = []
    for each in (plain, changed):
        a, b = each.encode(pair, output_value="token_embeddings")
        moved = np.abs(a - b).max(axis=1) > 1e-5  # less is rounding: a and b share a batch
        first_moved.append(int(np.flatnonzero(moved)[0]))
    assert first_moved[1] < first_moved[0]


@pytest.mark.equality
def test_variants_of_none_are_the_text_itself_and_a_seed_is_kept(tmp_path):
    plain = embedder_of(template="prompteol_ke", pooling="last")
    none = embedder_of(template="prompteol_ke", pooling="last", variants={"num_variants": 0})
    assert_array_equal(plain.encode(TEXTS), none.encode(TEXTS))
    some = embedder_of(pooling="mean", variants={"num_variants": 2, "max_new_tokens": 4})
    one = some.encode(TEXTS)
    assert_allclose(some.encode(TEXTS[1]), one[1], atol=1e-5)
    assert np.abs(one - embedder_of(pooling="mean").encode(TEXTS)).max() > 1e-5


def test_only_the_words_of_the_text_are_in_a_text_only_sparse_vector():
    model = embedder_of(
        template="promptreps",
        pooling="lexical",
        pooling_settings={"over": "last", "top_k": 3, "text_only": True},
    )
    (vector,) = model.encode(["cat dog mat two very"])
    own = set(model.tokenizer("cat dog mat two very", add_special_tokens=False)["input_ids"])
    assert 0 < (vector > 0).sum() <= 3
    assert set(np.flatnonzero(vector).tolist()) <= own


@pytest.mark.equality
def test_whitening_is_fitted_once_and_saved(tmp_path):
    model = embedder_of(projections=({"kind": "whiten", "k": 4},))
    with pytest.raises(CalibrationError):
        model.encode(TEXTS)
    sample = [f"{a} {b} mat" for a in ("cat", "dog", "two", "very") for b in ("sat", "on", "text")]
    model.fit(sample)
    vectors = model.encode(TEXTS)
    assert vectors.shape == (3, 4)
    # One row and three go through different kernels, which round differently.
    assert_allclose(vectors[:1], model.encode(TEXTS[:1]), atol=1e-5)
    model.save_pretrained(tmp_path / "model")
    assert_array_equal(Embedder.from_pretrained(tmp_path / "model").encode(TEXTS), vectors)
    with pytest.raises(ModelError, match="nothing to fit"):
        model.fit(sample)


def test_batch_statistics_are_in_no_vector():
    """SILENT row 15: MoEE's z-scores come from a sample that is stored, not from the batch."""
    parts = {
        "family": "allenai/OLMoE",
        "pooling": "route_weights",
        "pooling_settings": {"mode": "concat"},
    }
    model = embedder_of(**parts)
    sample = [f"{a} {b}" for a in ("cat", "dog", "two", "very") for b in ("sat", "on", "text")]
    model.fit(sample)
    together = model.encode([*TEXTS, *sample])
    assert_allclose(together[1], model.encode(TEXTS[1]), atol=1e-5 * np.abs(together).max())


def test_a_first_token_that_drowns_the_text_must_be_said():
    """SILENT row 8: max pooling in vocabulary space without a word on BOS."""
    with pytest.raises(SettingsError, match="skip_first"):
        embedder_of(pooling="lexical", pooling_settings={"over": "max"})


def test_padding_is_never_read_from_ids():
    """SILENT row 9: a real token with the padding's id counts like any other."""
    model = embedder_of()
    model.backbone.pad_id = model.backbone.runner.pad_id = int(tokens_of(model, "cat").ids[0])
    before = embedder_of().encode(["cat sat", "a very long text of two cats"])
    assert_allclose(model.encode(["cat sat", "a very long text of two cats"]), before, atol=1e-5)


def test_a_template_and_training_cannot_drift_apart(tmp_path):
    """SILENT row 25: the template is saved with the model and read from there."""
    model = embedder_of(
        template="bge_icl", pooling="last", prompts={"i": "cat"}, default_prompt="i"
    )
    model.save_pretrained(tmp_path / "model")
    again = Embedder.from_pretrained(tmp_path / "model")
    assert again.template == model.template
    assert (
        again.text_tokenizer.hf.convert_tokens_to_ids("<response>") != again.tokenizer.unk_token_id
    )


def test_sentence_transformers_refuses_what_it_cannot_do(tmp_path):
    """A folder whose template decides vectors is an error there, not another vector."""
    from sentence_transformers import SentenceTransformer

    embedder_of(template="prompteol", pooling="last").save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match=r"polyvec|own_way"):
        SentenceTransformer(str(tmp_path / "model"), device="cpu")


def test_sentence_transformers_gives_a_bidirectional_decoder_the_same_vectors(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = embedder_of(attention="bidirectional")
    model.save_pretrained(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert_allclose(theirs.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    again = Embedder.from_pretrained(tmp_path / "model")
    assert str(again.backbone.spec) == "bidirectional"
    assert "bidirectional from the first" in str(again.backbone.verdict)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "message"), [
    ({"template": {"query": "no slot", "pool_prompt": True}}, r"no \{text\}"),
    ({"template": "promteol"}, "Did you mean 'prompteol'"),
    ({"pooling": "route_weights"}, "needs router, but a llama model .* has no experts"),
    ({"pooling": "decoder_start"}, "has no decoder"),
    ({"pooling": "lexical", "pooling_settings": {"ovr": "max"}}, "'ovr' is not known. Did you"),
    ({"pooling": "mean", "pooling_settings": {"k": 1}}, "do nothing for pooling 'mean'"),
    ({"projections": ({"kind": "whitn"},)}, "Did you mean 'whiten'"),
    ({"prepending": {"start": 1, "stop": 2}}, "needs a template with the placeholder <PST>"),
    ({"truncation_side": "lft"}, "truncation_side 'lft' is not known. Did you mean 'left'"),
    ({"attention": "bidirectinal"}, "Did you mean 'bidirectional'"),
    ({"template": "prompteol", "pool_prompt": True, "prompts": {"a": "b"}}, "with a template"),
    ({"fields": {"domain": "x"}}, "fields do nothing without a template"),
    ({"num_layers": 99}, "num_layers 99 is not between 1 and 6"),
    ({"family": "google-t5/", "pooling": "generated"}, "no head that writes|needs"),
])  # fmt: skip
def test_bad_settings_are_one_line(parts, message):
    with pytest.raises(SettingsError, match=message) as error:
        embedder_of(**parts)
    assert "\n" not in str(error.value)


def test_settings_fail_before_any_weight_loads(monkeypatch):
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", lambda *a, **k: 1 / 0)
    with pytest.raises(SettingsError, match="no experts"):
        embedder_of(pooling="route_weights")
    with pytest.raises(SettingsError, match=r"no \{text\}"):
        embedder_of(template={"query": "none", "pool_prompt": True})


def test_a_second_eos_is_refused():
    parts = settings(family="google-t5/", template={"query": "{text}</s>", "pool_prompt": True})
    with pytest.raises(TokenizerError, match="EOS occurs twice, once in the template"):
        compose(parts)


def test_a_doubled_eos_is_told_before_any_weight_loads(tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(checkpoint("google-t5/"), tmp_path / "model")
    words = json.loads((folder / "tokenizer.json").read_text())
    end = words["post_processor"]["single"][-1]
    words["post_processor"]["single"].append(end)
    (folder / "tokenizer.json").write_text(json.dumps(words))
    loads = lambda *a, **k: pytest.fail("loads weights")  # noqa: E731
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", loads)
    monkeypatch.setattr("polyvec.embed.formats.route.load_transformer", loads)
    with pytest.raises(TokenizerError, match="adds EOS 2 times"):
        compose(EmbedderSettings(str(folder)))
    with pytest.raises(TokenizerError, match="adds EOS 2 times"):
        Embedder.from_pretrained(folder)


def test_an_untrained_conversion_warns():
    folder = checkpoint("meta-llama/")
    with pytest.warns(UntrainedAttentionWarning, match="expect worse"):
        Embedder.from_pretrained(folder, attention="bidirectional", pooling="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedAttentionWarning)
        Embedder.from_pretrained(folder, attention="causal", pooling="mean")


def test_a_text_in_several_forms_has_no_token_states():
    model = embedder_of(template="metaeol", pooling="last")
    with pytest.raises(InputError, match="read in several forms"):
        model.encode(["cat"], output_value="token_embeddings")


def test_a_bare_model_reads_the_text_alone():
    model = embedder_of()
    assert [span.text for span in model.rendered_inputs(["cat"], Prompt())[0][0]] == ["cat"]
    assert RunOptions().truncate == "warn"
    assert torch.is_tensor(model.similarity(model.encode(TEXTS), model.encode(TEXTS)))
