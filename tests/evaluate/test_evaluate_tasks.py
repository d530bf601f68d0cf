"""Tasks: scores of a real model equal what numpy and scipy make of its vectors."""

import json

import numpy as np
import pytest
from scipy import stats

from polyvec import Embedder
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.errors import DataError, PolyvecError
from polyvec.evaluate import measures
from polyvec.evaluate.check import check_recipe, invariants
from polyvec.evaluate.sections import EXPECT, Expectation
from polyvec.evaluate.tasks import evaluate, write_results
from polyvec.recipe import load_recipe

WORDS = ["cat", "dog", "boat", "river", "code", "moon", "bread", "stone"]
PROMPTS = {"query": "seek: ", "document": "read: ", "plain": "say: "}


@pytest.fixture
def embedder(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sentences(num, seed):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, 4)) for _ in range(num)]


@pytest.fixture
def pairs(tmp_path):
    gold = np.random.default_rng(5).random(30).round(2).tolist()
    rows = zip(sentences(30, 1), sentences(30, 2), gold, strict=True)
    write(
        tmp_path / "pairs" / "test.jsonl",
        [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in rows],
    )
    return tmp_path / "pairs"


@pytest.fixture
def beir(tmp_path):
    """Three queries; "1" is itself document 1, "2" shares only its number with a document."""
    folder = tmp_path / "beir"
    corpus = [
        {"_id": str(i), "title": f"No {i}", "text": text} for i, text in enumerate(sentences(40, 3))
    ]
    queries = [
        {"_id": "1", "text": corpus[1]["text"]},
        {"_id": "2", "text": corpus[7]["text"]},
        {"_id": "q", "text": "cat boat"},
        {"_id": "unjudged", "text": "never asked"},
    ]
    write(folder / "corpus.jsonl", corpus)
    write(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    judged = [("1", "5", 1), ("1", "9", 2), ("2", "2", 1), ("2", "7", 1), ("q", "0", 1)]
    lines = [f"{query}\t{document}\t{grade}\n" for query, document, grade in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def test_pairs_score_as_numpy_and_scipy_compute_them(pairs, embedder):
    rows = [json.loads(line) for line in (pairs / "test.jsonl").open()]
    a = embedder.encode([row["sentence1"] for row in rows]).astype(float)
    b = embedder.encode([row["sentence2"] for row in rows]).astype(float)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    gold = [row["score"] for row in rows]
    found = evaluate(embedder, pairs)
    expected = {
        "spearman": stats.spearmanr(cosine, gold).statistic,
        "pearson": stats.pearsonr(cosine, gold).statistic,
    }
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert found.main_score == found.scores["spearman"]
    facts = (found.task, found.split, found.kind, found.num_texts, found.num_truncated)
    assert facts == ("pairs", "test", "sts", 60, 0)
    assert found.model_sha256 == embedder.fingerprint()


def test_pairs_are_compared_by_the_models_own_similarity(pairs, embedder):
    embedder.similarity_fn_name = "manhattan"
    rows = [json.loads(line) for line in (pairs / "test.jsonl").open()]
    a = embedder.encode([row["sentence1"] for row in rows])
    b = embedder.encode([row["sentence2"] for row in rows])
    gold = [row["score"] for row in rows]
    expected = stats.spearmanr(-np.abs(a - b).sum(1), gold).statistic
    assert evaluate(embedder, pairs).main_score == pytest.approx(expected, abs=1e-4)


def expected_run(folder, embedder, *, without):
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").open()][:3]
    table = embedder.prompts
    read = [f"{table.get('document', '')}{row['title']} {row['text']}" for row in corpus]
    seek = [f"{table.get('query', '')}{row['text']}" for row in queries]
    scores = embedder.encode(seek) @ embedder.encode(read).T
    run = {}
    for query, row in zip(queries, scores, strict=True):
        run[query["_id"]] = {
            document["_id"]: float(score)
            for document, score in zip(corpus, row, strict=True)
            if (query["_id"], document["_id"]) not in without
        }
    return run


@pytest.mark.parametrize("prompts", [{}, PROMPTS])
def test_retrieval_uses_titles_prompts_and_leaves_out_the_query_itself(beir, embedder, prompts):
    embedder.prompt_table = PromptTable(prompts)
    run = expected_run(beir, embedder, without={("1", "1")})
    qrels = {"1": {"5": 1, "9": 2}, "2": {"2": 1, "7": 1}, "q": {"0": 1}}
    expected = measures.retrieval(qrels, run)
    found = evaluate(embedder, beir)
    for ours, name in (("ndcg@10", "ndcg@10"), ("map@1000", "map"), ("mrr@10", "mrr@10")):
        assert found.scores[ours] == pytest.approx(expected[name], abs=1e-6), name
    assert (found.kind, found.main_measure, found.num_texts) == ("retrieval", "ndcg@10", 43)
    # The rule matters here: with no exclusion, or with that of equal ids alone, scores differ.
    for without in () if prompts else (set(), {("1", "1"), ("2", "2")}):
        other = measures.retrieval(qrels, expected_run(beir, embedder, without=without))
        assert other != pytest.approx(expected, abs=1e-6)


def test_the_datas_hash_and_the_cut_texts_are_in_the_result(pairs, embedder):
    before = evaluate(embedder, pairs)
    rows = [json.loads(line) for line in (pairs / "test.jsonl").open()]
    rows[0]["sentence1"] = "word " * 200
    write(pairs / "test.jsonl", rows)
    after = evaluate(embedder, pairs)
    assert before.data_sha256 != after.data_sha256
    assert (before.num_truncated, after.num_truncated) == (0, 1)


def test_a_constant_model_has_no_correlation(pairs, embedder):
    import torch

    with torch.no_grad():
        for parameter in embedder.backbone.parameters():
            parameter.zero_()
    with pytest.raises(DataError, match="all 30 predicted scores are equal"):
        evaluate(embedder, pairs)


def test_results_are_written_whole(pairs, embedder, tmp_path):
    result = evaluate(embedder, pairs)
    write_results(tmp_path / "scores.json", "tiny", [result, result])
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["model"] == "tiny"
    assert len(found["results"]) == 2
    assert found["results"][0]["scores"] == result.scores
    assert found["results"][0]["data_sha256"] == result.data_sha256
    with pytest.raises(DataError, match=r"the folder .* does not exist"):
        write_results(tmp_path / "gone" / "scores.json", "tiny", [result])


@pytest.mark.equality
def test_invariants_hold_for_a_real_model_and_fail_for_one_that_they_catch(embedder, monkeypatch):
    assert [line.ok for line in invariants(embedder)] == [True, True, True]
    encode = Embedder.encode

    def depends_on_the_batch(self, texts, *args, **options):
        vectors = encode(self, texts, *args, **options)
        return vectors if isinstance(texts, str) else vectors + vectors.mean(0)

    monkeypatch.setattr(Embedder, "encode", depends_on_the_batch)
    assert not next(iter(invariants(embedder))).ok


@pytest.mark.medium
def test_a_recipes_figures_are_measured_again(pairs, tiny_bert, tmp_path):
    path = tmp_path / "tiny.toml"

    def recipe(measure, at_least):
        path.write_text(
            f'[system]\nname = "Tiny"\npaper = "none"\ntasks = ["test"]\n'
            f'[embedder]\nbackbone = "{tiny_bert}"\npooling = "mean"\nnormalize = true\n'
            f'[expect.nano."pairs test {measure}"]\nat_least = {at_least}\nmeasured = 0.5\n'
        )
        return load_recipe(path)

    assert recipe("spearman", -1.0)[EXPECT]["nano"]["pairs test spearman"] == Expectation(-1.0, 0.5)
    assert all(line.ok for line in check_recipe(recipe("spearman", -1.0), "nano", pairs.parent))
    last = list(check_recipe(recipe("spearman", 1.5), "nano", pairs.parent))[-1]
    assert not last.ok
    with pytest.raises(PolyvecError, match=r"'spearmen' is not measured on pairs. Did you"):
        list(check_recipe(recipe("spearmen", 0.1), "nano", pairs.parent))


# What MTEB publishes for all-MiniLM-L6-v2, times 100.
PUBLISHED = {
    "sts12": 72.37,
    "sts13": 80.60,
    "sts14": 75.59,
    "sts15": 85.39,
    "sts16": 78.99,
    "scifact": 64.51,
}


@pytest.mark.medium
def test_the_default_model_has_its_published_score(minilm, shared_data):
    assert evaluate(minilm, shared_data / "stsb").main_score * 100 == pytest.approx(82.03, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_default_model_has_all_its_published_scores(minilm, shared_data, name):
    found = evaluate(minilm, shared_data / name).main_score * 100
    assert found == pytest.approx(PUBLISHED[name], abs=0.1)
