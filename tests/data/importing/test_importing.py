"""Public data sets in the layouts in which they are published, imported as tasks."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from polyvec.cli import main
from polyvec.data.importing.folder import import_data
from polyvec.data.tasks.folder import read_folder
from polyvec.errors import DataError

# Lines of Stsbenchmark.tar.gz: no header, quotation marks that are text, two more cells in some.
STSB = (
    "main-captions\tMSRvid\t2012test\t0024\t2.500\tA girl styles her hair.\tA girl brushes it.\n"
    'main-news\theadlines\t2016\t0001\t5.000\t"Yes" he said.\tHe said "yes.\tsource\tsource\n'
)
CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "They sleep.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "The Danube flows."},
]
QUERIES = [{"_id": "q1", "text": "Who sleeps?"}, {"_id": "q2", "text": "What flows?"}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def archive(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def table(path, rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def test_sts_benchmark_as_its_authors_publish_it(tmp_path):
    source = tmp_path / "Stsbenchmark.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name, text in {
            "stsbenchmark/sts-test.csv": STSB,
            "stsbenchmark/sts-dev.csv": STSB,
            "stsbenchmark/readme.txt": "\n\t\t STS Benchmark: Main English dataset\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    found = import_data(source, tmp_path / "DATA" / "stsb")
    assert found.files == {"dev.jsonl": 2, "test.jsonl": 2}
    assert (found.kind, found.task, found.unread) == ("sts", "stsb", [])
    read = read_folder(tmp_path / "DATA" / "stsb")
    assert read.scores == (2.5, 5.0)
    assert read.sentences1 == ("A girl styles her hair.", '"Yes" he said.')
    assert read.sentences2 == ("A girl brushes it.", 'He said "yes.')


def test_glue_and_sick_have_headers(tmp_path):
    head = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    )
    glue = tmp_path / "STS-B" / "dev.tsv"
    glue.parent.mkdir()
    glue.write_text(head + '0\tg\tf\t2012\t1\tnone\tnone\tA "man.\tA woman.\t1.75\n' * 2)
    assert import_data(glue.parent, tmp_path / "glue").splits == ("dev",)
    assert read_folder(tmp_path / "glue", "dev").sentences1 == ('A "man.',) * 2
    sick = tmp_path / "SICK_test_annotated.txt"
    sick.write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        + "6\tA cat\tA dog\t3.3\tNEUTRAL\n" * 2
    )
    import_data(sick, tmp_path / "sick")
    read = read_folder(tmp_path / "sick")
    assert (read.sentences1[0], read.sentences2[0], read.scores[0]) == ("A cat", "A dog", 3.3)


def beir():
    return {
        "scifact/corpus.jsonl": lines(CORPUS),
        "scifact/queries.jsonl": lines(QUERIES),
        "scifact/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
        "scifact/qrels/train.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t1\n",
        "__MACOSX/scifact/._corpus.jsonl": "x",
    }


def test_beirs_archives(tmp_path):
    found = import_data(archive(tmp_path / "scifact.zip", beir()), tmp_path / "scifact")
    assert (found.kind, found.task, set(found.splits)) == (
        "retrieval",
        "scifact",
        {"test", "train"},
    )
    read = read_folder(tmp_path / "scifact")
    assert read.corpus == {"d1": "Cats They sleep.", "d2": "The Danube flows."}
    assert read.qrels == {"q1": {"d1": 1}}


def hub(folder, corpus=CORPUS, ids=("query-id", "corpus-id", "score")):
    """MTEB's retrieval sets on the hub: a configuration each of corpus, queries and judgements."""
    plain = [{key: row[key] for key in ("_id", "title", "text")} for row in corpus]
    for split in ("dev", "test"):
        table(folder / "corpus" / f"{split}-00000-of-00002.parquet", plain[:1])
        table(folder / "corpus" / f"{split}-00001-of-00002.parquet", plain[1:])
    table(folder / "queries" / "queries-00000-of-00001.parquet", QUERIES)
    judged = [dict(zip(ids, ("q1", "d2", 2.0), strict=True))]
    table(folder / "data" / "test-00000-of-00001.parquet", judged)


def test_mtebs_retrieval_sets_on_the_hub(tmp_path):
    hub(tmp_path / "set")
    found = import_data(tmp_path / "set", tmp_path / "out")
    assert found.files == {"corpus.jsonl": 2, "queries.jsonl": 2, "qrels/test.tsv": 1}
    assert read_folder(tmp_path / "out").qrels == {"q1": {"d2": 2}}


def test_candidates_to_rank_and_judgements_as_rows(tmp_path):
    source = tmp_path / "set"
    source.mkdir()
    (source / "corpus.jsonl").write_text(lines(CORPUS))
    (source / "queries.jsonl").write_text(lines(QUERIES))
    judged = {"query-id": "q1", "corpus-id": "d1", "score": 1}
    (source / "qrels.jsonl").write_text(lines([judged]))
    (source / "top_ranked.jsonl").write_text(
        lines([{"query-id": "q1", "corpus-ids": ["d1", "d2"]}])
    )
    assert import_data(source, tmp_path / "out").kind == "reranking"
    assert read_folder(tmp_path / "out").candidates == {"q1": ("d1", "d2")}


def test_mtebs_rows_on_the_hub(tmp_path):
    sts = tmp_path / "stsbenchmark-sts"
    sts.mkdir()
    row = {"split": "test", "score": 2.5, "sentence1": "a", "sentence2": "b"}
    with gzip.open(sts / "test.jsonl.gz", "wt") as file:
        file.write(lines([row, {**row, "score": 3}]))
    import_data(sts, tmp_path / "sts")
    assert read_folder(tmp_path / "sts").scores == (2.5, 3.0)
    pairs = tmp_path / "twittersemeval2015" / "test.json"  # all of a split in one row
    pairs.parent.mkdir()
    pairs.write_text(lines([{"sent1": ["a", "c"], "sent2": ["b", "d"], "labels": [0, 1]}]))
    assert import_data(pairs.parent, tmp_path / "pairs").kind == "pair_classification"
    assert read_folder(tmp_path / "pairs").labels == (0, 1)
    rows = [{"text": "late", "label": 0, "label_text": "bad"}] * 2
    for split in ("train", "test"):
        table(tmp_path / "bank" / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet", rows)
    found = import_data(tmp_path / "bank", tmp_path / "banking")
    assert (found.kind, found.files) == ("classification", {"test.jsonl": 2, "train.jsonl": 2})
    assert read_folder(tmp_path / "banking").labels == ("0", "0")


def test_a_fraction_as_label_is_a_score(tmp_path):
    pairs = {"sentence1": "a", "sentence2": "b"}
    table(
        tmp_path / "glue" / "stsb" / "validation-00000-of-00001.parquet",
        [{**pairs, "label": 1.0}, {**pairs, "label": 2.5}],
    )
    found = import_data(tmp_path / "glue", tmp_path / "out")
    assert (found.kind, found.splits) == ("sts", ("dev",))
    assert read_folder(tmp_path / "out", "dev").scores == (1.0, 2.5)


def test_columns_are_named_where_names_do_not_tell(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("4.5\tA cat.\tA kitten.\n1\tA cat.\tA spoon.\n")
    columns = ["--columns", "score=1", "sentence1=2", "sentence2=3"]
    assert main(["data", "import", str(file), str(tmp_path / "out"), *columns]) == 0
    assert read_folder(tmp_path / "out").scores == (4.5, 1.0)
    assert main(["data", "import", str(file), str(tmp_path / "new"), "--columns", "score"]) == 2


def test_the_command_line_says_how_to_score(tmp_path, capsys):
    source = archive(tmp_path / "scifact.zip", beir())
    assert main(["data", "import", str(source), str(tmp_path / "DATA" / "scifact")]) == 0
    done = capsys.readouterr()
    assert done.out.splitlines()[1] == "corpus.jsonl\t2"
    assert f"polyvec evaluate MODEL scifact --data {tmp_path}/DATA\n" in done.err


def refused(tmp_path, source, match, **options):
    with pytest.raises(DataError, match=match) as caught:
        import_data(source, tmp_path / "refused", **options)
    assert "\n" not in str(caught.value)
    assert "polyvec-import-" not in str(caught.value)
    assert not (tmp_path / "refused").exists()


def test_what_is_ambiguous_is_refused_and_chosen_by_a_part_of_its_path(tmp_path):
    two = {
        name.replace("scifact", f"cqadupstack/{part}"): content
        for part in ("android", "gis")
        for name, content in beir().items()
    }
    source = archive(tmp_path / "cqadupstack.zip", two)
    refused(tmp_path, source, r"2 files can be the corpus: cqadupstack/android/.*--only TEXT")
    assert import_data(source, tmp_path / "gis", only="/gis/").kind == "retrieval"
    languages = tmp_path / "languages"
    languages.mkdir()
    for language in ("de", "en"):
        (languages / f"sts-{language}-test.csv").write_text(STSB)
    refused(tmp_path, languages, "2 files can be the split 'test'")
    assert import_data(languages, tmp_path / "en", only="-en-").files == {"test.jsonl": 2}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"notes.md": "x"}, "no file of these types"),
        ({"a.csv": "x,y\n1,2\n", "b.csv": "x,y\n1,2\n"}, "no name says train, dev or test"),
        ({"test.jsonl": '{"premise": "a", "other": 1}\n'}, "no kind of task.*--columns"),
        (
            {"test.jsonl": '{"sentence1": "a", "sentence2": "b", "score": "x"}\n'},
            "'x' is not a fin",
        ),
        ({"test.jsonl": "{}x\n"}, "not JSON"),
        ({"test.jsonl": ""}, "no file of these types|no name says|no rows"),
        ({"corpus.jsonl": lines(CORPUS), "queries.jsonl": lines(QUERIES)}, "but no qrels"),
        ({**beir(), "scifact/qrels/test.tsv": "q1\td9\t1\n"}, "'d9' is not in corpus"),
        (
            {**beir(), "scifact/corpus.jsonl": lines([CORPUS[0], {"_id": "d1", "text": "other"}])},
            "id 'd1' has another text",
        ),
        ({**beir(), "scifact/corpus.jsonl": lines([{"text": "other"}])}, "no id. Known: _id"),
        ({"sts-test.csv": STSB + "too\tfew\n"}, ":3: expected 7 columns, got 2"),
    ],
)
def test_one_line_says_why_a_data_set_is_not_imported(tmp_path, files, match):
    refused(tmp_path, archive(tmp_path / "set.zip", files), match)


def test_damaged_archives_and_full_folders(tmp_path):
    whole = archive(tmp_path / "scifact.zip", beir())
    content = bytearray(whole.read_bytes())
    content[60] ^= 0xFF
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)
    refused(tmp_path, damaged, "damaged|unpacked|not JSON")
    (tmp_path / "half.tar.gz").write_bytes(gzip.compress(b"no tar at all"))
    refused(tmp_path, tmp_path / "half.tar.gz", "cannot be unpacked")
    refused(tmp_path, tmp_path / "missing.zip", "no such file or folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not empty; give a new folder"):
        import_data(whole, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
