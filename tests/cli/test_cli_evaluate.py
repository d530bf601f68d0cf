"""polyvec evaluate: tasks by name, published scores, pages, cached vectors."""

import json
from types import SimpleNamespace

import pytest

from polyvec.cli.evaluate import _published


def test_one_command_measures_and_compares_with_published_scores(
    run, shared_data, tiny_bert, tmp_path
):
    published = tmp_path / "published.json"
    scores = {"XQuADRetrieval": {"validation/en": 0.9}, "JSTS": {"validation/default": 0.5}}
    published.write_text(json.dumps({"scores": scores}))
    out = tmp_path / "found.json"
    done = run(
        *("evaluate", tiny_bert, "xquad", "--subset", "en", "--data", shared_data),
        *("--published", published, "-o", out, "--table", tmp_path / "table.md"),
        *("--report", tmp_path / "page.html", "--report", tmp_path / "page.md"),
    )
    assert done.status == 0, done.err
    (found,) = json.loads(out.read_text())["results"]
    assert (found["task"], found["official_task"], found["published"]) == (
        "xquad",
        "XQuADRetrieval",
        0.9,
    )
    assert "xquad" in (tmp_path / "table.md").read_text()
    for page in ("page.html", "page.md"):
        assert "xquad" in (tmp_path / page).read_text()
    header, first, *_ = (line.split("\t") for line in done.out.splitlines())
    assert header[-2:] == ["published", "difference"]
    assert float(first[-1]) == pytest.approx(float(first[4]) - 90, abs=0.011)


def pairs(folder):
    folder.mkdir()
    words = ["a cat", "the sea", "dogs", "one tree", "old men"]
    rows = [{"sentence1": a, "sentence2": b, "score": len(a + b)} for a in words for b in words]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_second_run_computes_nothing(run, tiny_bert, tmp_path):
    command = ("evaluate", tiny_bert, pairs(tmp_path / "toy"), "-o", tmp_path / "out.json")
    found = []
    for more in (("--cache", tmp_path / "kept"),) * 2 + (("--no-cache",),):
        assert run(*command, *more).status == 0
        found += json.loads((tmp_path / "out.json").read_text())["results"]
    assert [each["num_computed"] for each in found] == [5, 0, 5]
    assert found[0]["scores"] == found[1]["scores"] == found[2]["scores"]


def test_another_checkpoint_at_the_same_path_has_its_own_score(run, tiny_bert, tmp_path):
    """A cache of results by name would hand the second one the first one's score."""
    import torch

    from polyvec import Embedder

    data, found = pairs(tmp_path / "toy"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Embedder.from_pretrained(tiny_bert)
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "model")
        out = tmp_path / "out.json"
        done = run("evaluate", tmp_path / "model", data, "-o", out, "--cache", tmp_path / "kept")
        assert done.status == 0
        found += json.loads(out.read_text())["results"]
    assert found[0]["main_measure"] == "spearman"
    assert found[0]["scores"]["spearman"] != found[1]["scores"]["spearman"]
    assert found[0]["model_sha256"] != found[1]["model_sha256"]
    assert found[0]["data_sha256"] == found[1]["data_sha256"]


def test_mistakes_are_one_line_before_a_model_loads(run, tmp_path, one_line):
    data = pairs(tmp_path / "toy")
    for arguments, message in (
        ((data, "--report", tmp_path / "page.pdf"), "unknown format; expected .html or .md"),
        ((data, "--table", tmp_path / "t.md"), "give them with --published"),
        ((data, "--cache", tmp_path, "--no-cache"), "mutually exclusive"),
        ((data, "--kind", "stss"), "kind of task 'stss' is not known. Did you mean 'sts'"),
        (("sts12",), "give the folder of data sets with --data"),
        ((data, "--report", tmp_path / "gone" / "page.md"), "does not exist"),
    ):
        assert message in one_line(run("evaluate", "/no/such/model", *arguments))


def test_training_texts_in_a_test_set_are_reported(run, tiny_bert, tmp_path, one_line):
    data = pairs(tmp_path / "toy")
    train = tmp_path / "train.jsonl"
    train.write_text('{"query": "A CAT!", "passages": ["nothing", "old men"]}\n')
    page = tmp_path / "page.md"
    command = ("evaluate", tiny_bert, data, "--trained-on", train, "--report", page)
    done = run(*command)
    assert done.status == 0
    assert "trained on test texts: toy: 2 of 5 texts are in the training texts" in done.err
    assert "2 of 5 texts are in the training texts" in page.read_text()
    train.write_text('{"query": "something else entirely"}\n')
    assert "trained on test" not in run(*command).err
    assert "no such file" in one_line(run(*command[:4], tmp_path / "gone.jsonl"))


def test_no_difference_has_no_minus():
    result = SimpleNamespace(published=0.82, difference=-1e-6, main_measure="spearman")
    assert _published(result, "spearman") == ["82.00", "+0.00"]


def test_a_reranker_says_what_it_gains(run, tiny_bert, tmp_path):
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    texts = ["cats purr", "the sea is wide", "dogs bark", "a tree grows"]
    for name, rows in (("corpus", texts), ("queries", ["purring cats", "barking dogs"])):
        lines = [json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t0\t1\n1\t2\t1\n")
    command = ("evaluate", tiny_bert, folder, "--no-cache")
    kind = f"late_interaction vectors=states model={tiny_bert}"
    done = run(*command, "--rerank", kind, "--rerank-depth", "3")
    assert done.status == 0, done.err
    found = {line.split("\t")[3]: line.split("\t")[4] for line in done.out.splitlines()}
    gain = float(found["ndcg@10"]) - float(found["ndcg@10_before"])
    assert float(found["ndcg@10_gain"]) == pytest.approx(gain, abs=0.011)
    for more, says in (
        (("--rerank", "cross_encodr"), "'cross_encodr' is not known"),
        (("--rerank", "listwise windw=3"), "setting 'windw' is not known"),
        (("--rerank-depth", "3"), "--rerank-depth needs a reranker"),
    ):
        done = run(*command, *more)
        assert done.status == 2 and says in done.err
    pairs_folder = pairs(tmp_path / "pairs")
    done = run("evaluate", tiny_bert, pairs_folder, "--no-cache", "--rerank", kind)
    assert done.status == 2 and "sts is not reranked" in done.err
