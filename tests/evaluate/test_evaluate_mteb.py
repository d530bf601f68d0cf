"""The bridge to mteb: vectors, prompts, names, local data, and the command line."""

import itertools
import json
import logging
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import (
    ClusteringSet,
    ConditionalStsSet,
    RetrievalSet,
    StsSet,
)
from polyvec.embed.inputs.named_templates import TEMPLATES
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.errors import DataError, InputError, MissingExtraError, ModelError, SettingsError

mteb = pytest.importorskip("mteb", reason="needs the extra 'mteb'")

from datasets import Dataset, disable_progress_bars  # noqa: E402
from mteb._create_dataloaders import create_dataloader  # noqa: E402
from mteb.models.abs_encoder import get_prompt_name  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from polyvec.evaluate.encoder import TaskEncoder  # noqa: E402
from polyvec.evaluate.mteb_bridge import (  # noqa: E402
    MtebEncoder,
    local_task,
    mteb_tasks,
    needs_mteb,
    register,
    run_mteb,
)
from polyvec.evaluate.mteb_bridge.__main__ import main  # noqa: E402
from polyvec.evaluate.mteb_bridge.encoder import model_name  # noqa: E402
from polyvec.evaluate.mteb_bridge.prompts import choose  # noqa: E402

# mteb takes seconds to import, and some tests start it as a program.
pytestmark = pytest.mark.medium

disable_progress_bars()
QUIET = {"show_progress_bar": False, "co2_tracker": False}
WORDS = ["cat", "dog", "river", "city", "paper", "stone", "music", "winter", "bread", "train"]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=1 + i % 17)) for i in range(40)]
PAIRS = StsSet(
    "my pairs",
    "test",
    tuple(TEXTS[:20]),
    tuple(TEXTS[20:]),
    tuple(float(i % 6) for i in range(20)),
    sha256="f" * 64,
)


@pytest.fixture(scope="module")
def tiny(tiny_bert) -> Embedder:
    return Embedder.from_pretrained(tiny_bert)


def with_(tiny: Embedder, template: str | None = None, **prompts: str) -> Embedder:
    """The tiny model with stored prompts and a template."""
    return Embedder.from_parts(
        tiny.backbone,
        tiny.text_tokenizer,
        projections=tiny.projections,
        prompts=PromptTable(prompts),
        template=TEMPLATES[template] if template else None,
    )


def encode(encoder: MtebEncoder, columns: dict, task, prompt_type=None, rows=32, **kwargs):
    """What mteb calls, with its own loader."""
    side = PromptType(prompt_type) if prompt_type else None
    loader = create_dataloader(
        Dataset.from_dict(columns),
        task_metadata=task.metadata,
        prompt_type=side,
        batch_size=rows,
    )
    return encoder.encode(
        loader,
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=side,
        **kwargs,
    )


def first(data: StsSet, num: int) -> StsSet:
    a, b, gold = data.sentences1, data.sentences2, data.scores
    return replace(data, sentences1=a[:num], sentences2=b[:num], scores=gold[:num])


def score(embedder, data, cache=None, **options) -> float:
    (result,) = run_mteb(embedder, data, cache=cache, **QUIET, **options).task_results
    return result.get_score()


# ---- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_vectors_are_the_embedders_whatever_the_batches(tiny, batch_size):
    encoder = MtebEncoder(with_(tiny, query="find: ", passage="read: "))
    task = mteb.get_task("SciFact")
    columns = {"id": [str(i) for i in range(40)], "text": TEXTS}
    for role in ("query", "document"):
        found = encode(encoder, columns, task, role, batch_size, batch_size=batch_size)
        expected = encoder.embedder.encode(TEXTS, role=role)
        assert found.dtype == np.float32 and isinstance(found, np.ndarray)
        assert_allclose(found, expected, atol=1e-6)
    assert [(use.name, use.num_texts) for use in encoder.uses] == [("query", 40), ("passage", 40)]


def test_all_batches_of_a_loader_are_one_run_sorted_by_length(tiny, monkeypatch):
    runs = []
    whole = Embedder.encode_vectors

    def noted(self, texts, **options):
        runs.append((len(texts), options["options"].batch_size))
        return whole(self, texts, **options)

    monkeypatch.setattr(Embedder, "encode_vectors", noted)
    task = mteb.get_task("STS12")
    encode(MtebEncoder(tiny), {"text": TEXTS}, task, None, 3, batch_size=32)
    encode(MtebEncoder(tiny), {"text": TEXTS}, task, None, 3, batch_size=5)
    assert runs == [(40, None), (40, 5)]  # 32 is mteb's default


def test_the_encoder_is_one_and_its_similarity_the_models_own(tiny):
    dot = Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, similarity_fn_name="dot")
    encoder = MtebEncoder(dot)
    assert isinstance(encoder, mteb.EncoderProtocol)
    assert not isinstance(encoder, mteb.SearchProtocol | mteb.CrossEncoderProtocol)
    a = dot.encode(TEXTS[:3])
    assert_allclose(encoder.similarity(a, a), a @ a.T, rtol=1e-5)
    assert_allclose(encoder.similarity_pairwise(a, a), (a * a).sum(1), rtol=1e-5)
    meta = encoder.mteb_model_meta
    assert meta.similarity_fn_name.value == "dot"
    assert (meta.max_tokens, meta.embed_dim) == (tiny.max_seq_length, len(a[0]))
    assert meta.n_parameters == sum(each.numel() for each in tiny.parameters()) > 0


def test_options_that_mtebs_cache_would_not_see_are_refused(tiny):
    task = mteb.get_task("STS12")
    for option in ({"truncate_dim": 8}, {"precision": "int8"}, {"normalize_embeddings": True}):
        with pytest.raises(InputError, match=f"{next(iter(option))}=.*set it on the model"):
            encode(MtebEncoder(tiny), {"text": TEXTS}, task, **option)
    with pytest.raises(InputError, match="takes a TextEncoder, got str"):
        MtebEncoder("all-MiniLM-L6-v2")
    with pytest.raises(SettingsError, match="Did you mean 'slot'"):
        MtebEncoder(tiny, instructions="slots")
    with pytest.raises(InputError, match="STS12: has image, but no texts"):
        MtebEncoder(tiny).encode(
            [{"image": []}], task_metadata=task.metadata, hf_split="test", hf_subset="default"
        )


# ---- prompts ------------------------------------------------------------------------------------


def test_prompts_are_chosen_in_mtebs_order(tiny):
    """All 32 sets of the five names, against mteb's own function."""
    task = mteb.get_task("SciFact")
    names = ["SciFact-query", "SciFact", "Retrieval-query", "Retrieval", "query"]
    for size in range(6):
        for stored in itertools.combinations(names, size):
            prompts = {name: f"{name}: " for name in stored}
            expected = get_prompt_name(prompts, task.metadata, PromptType.query)
            found = MtebEncoder(with_(tiny, **prompts)).prompt_for(task, "query")
            assert found.name == expected
            assert found.source == ("model" if stored else "none")


@pytest.mark.parametrize(("task", "side"), [("SciFact", PromptType.document), ("STS12", None)])
def test_empty_prompts_of_a_task_are_chosen_as_in_mteb(tiny, task, side):
    """One for a task or its type is a choice: no prompt. Every set of full and empty ones."""
    task = mteb.get_task(task)
    role, kind = side and side.value, task.metadata.type
    names = [task.metadata.name, kind, *([f"{kind}-document", "document"] if side else [])]
    for texts in itertools.product((None, "", "x: "), repeat=len(names)):
        prompts = {n: n + t if t else t for n, t in zip(names, texts, strict=True) if t is not None}
        expected = get_prompt_name(prompts, task.metadata, side)
        found = MtebEncoder(with_(tiny, **prompts)).prompt_for(task, role)
        assert found.text == prompts.get(expected, ""), prompts


@pytest.mark.parametrize("side", ["passage", "corpus"])
def test_passage_and_corpus_prompts_of_a_task_are_those_of_documents(tiny, side):
    """mteb reads no such names; in mteb's order they stand with "-document"."""
    task = mteb.get_task("SciFact")
    for name, less in [(f"SciFact-{side}", "SciFact"), (f"Retrieval-{side}", "Retrieval")]:
        model = with_(tiny, **{name: "read: ", less: "any: ", "document": "other: "})
        assert MtebEncoder(model).prompt_for(task, "document").name == name
        assert MtebEncoder(model).prompt_for(task, "query").name == less
        both = with_(tiny, **{name: "read: ", name.replace(side, "document"): "first: "})
        assert MtebEncoder(both).prompt_for(task, "document").text == "first: "
        encoder = TaskEncoder(model, names=("SciFact", "Retrieval"))
        expected = model.encode(["a text"], prompt="read: ")
        assert_allclose(encoder.encode(["a text"], "document"), expected, atol=1e-6)
        assert encoder.work.prompts == {"document": "read: "}


def test_an_empty_prompt_is_not_set(tiny):
    """SILENT row 13: sentence-transformers' empty "document" hides no "passage"."""
    encoder = MtebEncoder(with_(tiny, document="", passage="read: "))
    assert encoder.prompt_for(mteb.get_task("SciFact"), "document").text == "read: "


def test_a_template_reads_the_tasks_instruction_where_it_has_a_slot(tiny):
    model = with_(tiny, "e5_instruct")
    encoder, task = MtebEncoder(model), mteb.get_task("SciFact")
    told = task.metadata.prompt["query"]
    columns = {"id": [str(i) for i in range(40)], "text": TEXTS}
    found = encode(encoder, columns, task, "query")
    assert_allclose(found, model.encode(TEXTS, prompt=told, role="query"), atol=1e-6)
    documents = encode(encoder, columns, task, "document")
    assert_allclose(documents, model.encode(TEXTS, role="document"), atol=1e-6)
    assert np.abs(found - documents).max() > 1e-2
    used = [(use.task, use.role, use.source, use.text) for use in encoder.uses]
    assert used == [
        ("SciFact", "query", "task", told),
        ("SciFact", "document", "none", ""),
    ]


def test_what_an_instruction_is_taken_from(tiny):
    task, plain = mteb.get_task("SciFact"), mteb.get_task("STS12")
    assert plain.metadata.prompt is None
    kind = choose(with_(tiny, "e5_instruct"), plain.metadata, None)
    assert (kind.source, kind.text) == ("kind of task", "Retrieve semantically similar text.")
    stored = choose(with_(tiny, "e5_instruct", SciFact="mine"), task.metadata, "query")
    assert (stored.source, stored.text) == ("model", "mine")
    # A side without a slot takes none, not even a stored one: encode would refuse it.
    nothing = choose(with_(tiny, "e5_instruct", SciFact="mine"), task.metadata, "document")
    assert (nothing.source, nothing.text) == ("none", "")
    # Both sides have a slot, and the task says nothing about documents.
    other = choose(with_(tiny, "inbedder"), task.metadata, "document")
    assert (other.source, other.text) == ("kind of task", "Retrieve text based on user query.")
    default = replace(TEMPLATES["inbedder"], defaults={"instruction": "its own"})
    model = Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, template=default)
    assert choose(model, plain.metadata, None).source == "template"


def test_instructions_of_the_data_go_to_the_templates_slot(tiny):
    task = mteb.get_task("Core17InstructionRetrieval")
    texts, told = TEXTS[:6], ["short ones", "long ones", ""] * 2
    columns = {"id": list("abcdef"), "text": texts, "instruction": told}
    model = with_(tiny, "e5_instruct")
    encoder = MtebEncoder(model)
    found = encode(encoder, columns, task, "query", 4)
    kind = "Retrieve text based on user query."
    for row, (text, instruction) in enumerate(zip(texts, told, strict=True)):
        expected = model.encode(text, prompt=instruction or kind, role="query")
        assert_allclose(found[row], expected, atol=1e-6)
    assert [(use.source, use.text) for use in encoder.uses] == [("data", "3 instructions")]

    joined = [f"{text} {instruction}" for text, instruction in zip(texts, told, strict=True)]
    behind = MtebEncoder(model, instructions="text")
    expected = model.encode(joined, prompt=kind, role="query")
    assert_allclose(encode(behind, columns, task, "query"), expected, atol=1e-6)
    names = [each.mteb_model_meta.experiment_name for each in (encoder, behind)]
    assert names == [None, "instructions_text"]  # two folders in mteb's cache
    without = MtebEncoder(tiny)
    assert_allclose(encode(without, columns, task, "query"), tiny.encode(joined), atol=1e-6)


# ---- names and the cache ------------------------------------------------------------------------


def other_checkpoint(folder: Path, seed: int) -> None:
    """A model with other weights at the folder."""
    import torch

    model = Embedder.from_pretrained(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)


def test_two_checkpoints_at_one_path_have_two_scores(tiny, tmp_path):
    """SILENT row 27; and that mteb's own wrapper of a folder falls into it."""
    from sentence_transformers import SentenceTransformer

    folder, task = tmp_path / "model", local_task(PAIRS)
    tiny.save_pretrained(folder)
    ours, theirs, truth = [], [], []
    for seed in (1, 2):
        ours.append(score(Embedder.from_pretrained(folder), task, tmp_path / "a", name=folder))
        truth.append(score(Embedder.from_pretrained(folder), task))
        model = SentenceTransformer(str(folder))
        cache = mteb.ResultCache(tmp_path / "b")
        (result,) = mteb.evaluate(model, task, cache=cache, **QUIET).task_results
        theirs.append(result.get_score())
        other_checkpoint(folder, seed)
    assert ours == truth and abs(ours[0] - ours[1]) > 1e-3
    assert theirs == pytest.approx([ours[0]] * 2, abs=1e-5)  # the second is the first's
    kept = sorted(path.parent.name for path in (tmp_path / "a").rglob("Local*.json"))
    assert len(kept) == 2 and all(len(revision) == 64 for revision in kept)


def test_a_model_that_is_trained_in_place_gets_another_revision(tiny, tmp_path):
    import torch

    tiny.save_pretrained(tmp_path / "copy")
    model = Embedder.from_pretrained(tmp_path / "copy")
    encoder = MtebEncoder(model)
    revisions = {encoder.revision, encoder.revision, encoder.mteb_model_meta.revision}
    assert revisions == {model.fingerprint()}
    largest = max(model.parameters(), key=torch.Tensor.numel)
    with torch.no_grad():
        largest.add_(1)
    revisions.add(encoder.revision)
    largest.data.add_(1)  # as fused optimizers, without counting the version up
    revisions.add(encoder.revision)
    model.truncate_dim = 8
    revisions.add(encoder.revision)
    assert len(revisions) == 4 and encoder.revision == model.fingerprint()


def test_the_name_is_a_label_without_the_path(tmp_path):
    folder = tmp_path / "my model"
    folder.mkdir()
    assert model_name(folder) == model_name(str(folder)) == "polyvec/my_model"
    assert model_name("intfloat/e5-small-v2") == "intfloat/e5-small-v2"
    assert model_name(None) == "polyvec/embedder"
    assert model_name("mine") == "polyvec/mine"


def test_mteb_finds_a_registered_model(tiny):
    name = register(tiny, "tiny-one")
    assert name == register(tiny, "tiny-one") == "polyvec/tiny-one"
    model = mteb.get_model(name, device="cpu")
    assert model.mteb_model_meta.revision == tiny.fingerprint()
    assert mteb.get_model_meta(name).revision == tiny.fingerprint()
    with pytest.raises(InputError, match="embed_dim: set it on the model"):
        mteb.get_model(name, embed_dim=32)
    with pytest.raises(SettingsError, match=r"one of mteb's own models.*polyvec/all-MiniLM-L6-v2"):
        register(tiny, "sentence-transformers/all-MiniLM-L6-v2")


# ---- local data ---------------------------------------------------------------------------------


def test_a_local_copy_never_has_the_official_name(tiny, shared_data, tmp_path):
    """SILENT row 28."""
    data = read_folder(shared_data / "sts12")
    few = replace(
        data, **{f: getattr(data, f)[:30] for f in ("sentences1", "sentences2", "scores")}
    )
    official = mteb.get_task("STS12").metadata
    tasks = [local_task(data), local_task(few), local_task(few, name="STS12")]
    tasks += [local_task(few, adapted_from="STS12"), local_task(few, prompt="Compare")]
    names = [task.metadata.name for task in tasks]
    assert all(name.startswith(("LocalSts12.", "LocalSTS12.")) for name in names)
    # A part of the file, another instruction: mteb's cache must not take one for another.
    hashes = [name.split(".")[1] for name in names]
    assert len(set(hashes)) == 4 and hashes[1] == hashes[2]
    assert {task.metadata.revision for task in tasks} == {data.sha256}
    assert data.sha256 != official.revision
    score(tiny, few, tmp_path)
    (kept,) = tmp_path.rglob("LocalSts12*.json")
    result = json.loads(kept.read_text())
    assert result["task_name"] == names[1] and result["dataset_revision"] == data.sha256
    # No official task's name begins like ours.
    assert not [t for t in mteb.get_tasks() if t.metadata.name.startswith("Local")]


def test_edited_data_is_scored_anew(tiny, tmp_path):
    """mteb looks at a task's name, not at its revision, when a score is there."""
    edited = replace(PAIRS, scores=PAIRS.scores[::-1], sha256="e" * 64)
    found = [score(tiny, data, tmp_path) for data in (PAIRS, edited, PAIRS)]
    assert found[0] == pytest.approx(found[2], abs=1e-6)  # kept with six digits
    assert abs(found[0] - found[1]) > 1e-3
    assert found[1] == score(tiny, edited)


def test_a_local_copy_takes_over_the_official_instruction(tiny):
    model = with_(tiny, "e5_instruct")
    data = RetrievalSet("claims", "test", {"d": "a cat"}, {"q": "cats"}, {"q": {"d": 1}})
    task = local_task(data, adapted_from="SciFact")
    told = mteb.get_task("SciFact").metadata.prompt["query"]
    assert MtebEncoder(model).prompt_for(task, "query").text == told
    stored = with_(tiny, **{"SciFact-query": "claim: "})
    assert MtebEncoder(stored).prompt_for(task, "query").name == "SciFact-query"
    # An official task that was adapted from another is not that other.
    nano = mteb.get_task("NanoSciFactRetrieval")
    assert MtebEncoder(stored).prompt_for(nano, "query").source == "none"
    with pytest.raises(SettingsError, match=r"'SciFac' not found. Did you mean: 'SciFact'"):
        local_task(data, adapted_from="SciFac")


def test_the_same_task_object_draws_the_same_for_each_model(tiny):
    labels = tuple(str(i % 4) for i in range(40))
    task = local_task(ClusteringSet("draws", "test", tuple(TEXTS), labels, fraction=0.5))
    task.max_documents_per_cluster = 64
    assert score(tiny, task) == score(tiny, task)


def test_wrong_settings_of_a_local_task_are_errors(tiny):
    with pytest.raises(SettingsError, match=r"side 'passage' is not known. Known: document, query"):
        local_task(PAIRS, prompt={"passage": "x"})
    with pytest.raises(SettingsError, match="such as eng-Latn"):
        local_task(PAIRS, languages=["english"])
    conditional = ConditionalStsSet("c", "test", ("a",), ("b",), ("c",), (1.0,))
    with pytest.raises(DataError, match="no task of kind 'conditional_sts'"):
        local_task(conditional)


# ---- api ----------------------------------------------------------------------------------------


def folder_of_pairs(place: Path) -> Path:
    place.mkdir()
    lines = zip(PAIRS.sentences1, PAIRS.sentences2, PAIRS.scores, strict=True)
    keys = ("sentence1", "sentence2", "score")
    text = "".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines)
    (place / "test.jsonl").write_text(text)
    return place


def test_tasks_by_name_folder_and_data(tmp_path, monkeypatch):
    folder = folder_of_pairs(tmp_path / "STS12")
    monkeypatch.chdir(tmp_path)
    given = ["STS12", "./STS12", folder, PAIRS, mteb.get_task("SciFact")]
    names = [task.metadata.name.split(".")[0] for task in mteb_tasks(given)]
    assert names == ["STS12", "LocalSTS12", "LocalSTS12", "LocalMyPairs", "SciFact"]
    assert [task.metadata.name for task in mteb_tasks("STS12")] == ["STS12"]


def test_unknown_tasks_are_errors(tmp_path):
    with pytest.raises(SettingsError, match=r"'STS121' not found. Did you mean: 'STS12'"):
        mteb_tasks("STS121")
    with pytest.raises(SettingsError, match=r"No subsets were found for STS12.*deu"):
        mteb_tasks("STS12", languages=["deu"])  # mteb.get_tasks would leave it out
    with pytest.raises(DataError, match="no such folder"):
        mteb_tasks(tmp_path / "none")
    with pytest.raises(InputError, match="int is not a task"):
        mteb_tasks([3])


@pytest.mark.parametrize("name", ["STS12", "SciFact"])
def test_official_data_out_of_reach_is_one_line(tiny, name):
    with pytest.raises(DataError, match=r"Couldn't reach 'mteb/.*local copy") as caught:
        run_mteb(tiny, name, **QUIET)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def test_a_missing_mteb_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[mteb\]'"):
        needs_mteb()


def test_importing_polyvec_imports_no_mteb():
    code = (
        "import sys, polyvec.evaluate.mteb_bridge as b; b.needs_mteb; exit('mteb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the command line ---------------------------------------------------------------------------


def test_mtebs_command_line_scores_a_folder(tiny_bert, tiny, tmp_path):
    """As a user runs it, offline."""
    folder = folder_of_pairs(tmp_path / "pairs")
    command = [sys.executable, "-m", "polyvec.evaluate.mteb_bridge", "run", "-m", str(tiny_bert),
               "-t", str(folder), "--output-folder", str(tmp_path / "out"), "--batch-size", "4",
               "-v", "0", "--no-co2-tracker"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, split, measure, shown = done.stdout.split()
    expected = score(tiny, folder)
    assert (split, measure, float(shown)) == ("test", "spearman", round(100 * expected, 2))
    place = tmp_path / "out" / "results" / "polyvec__tiny-bert" / tiny.fingerprint()
    assert json.loads((place / f"{name}.json").read_text())["scores"]["test"][0]["main_score"]


def test_mtebs_command_line_finds_the_model_in_its_registry(tiny_bert, tmp_path, monkeypatch):
    """`mock-run`: all of mteb's small tasks of text, among them two that bring instructions."""
    monkeypatch.chdir(tmp_path)
    assert main(["mock-run", "-m", str(tiny_bert), "-v", "0"]) == 0
    table = (tmp_path / "mteb_mock_run_results.md").read_text()
    assert "✗" not in table and table.count("| text | ✓ |") >= 25
    assert "| MockInstructionReranking | text | ✓ |" in table


def test_mistakes_on_the_command_line_are_one_line(tiny_bert, capsys):
    logging.getLogger("mteb").setLevel(logging.CRITICAL)
    for arguments, told in (
        (["run", "-m", str(tiny_bert), "-t", "STS12", "-v", "0"], "Couldn't reach 'mteb/sts12"),
        (["run", "-m", str(tiny_bert), "-t", "STS121"], "Did you mean: 'STS12'"),
        (["run", "-m", "/no/such/folder", "-t", "STS12"], "/no/such/folder"),
    ):
        assert main([*arguments, "--no-co2-tracker"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "polyvec:" in line]
        assert told in line


def test_a_bare_embedder_is_refused_with_the_class_to_use(minilm):
    with pytest.raises(ModelError, match=r"mteb takes MtebEncoder\(embedder\)"):
        _ = minilm.mteb_model_meta
