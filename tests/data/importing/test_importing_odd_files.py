"""What an import refuses, and that nothing of a data set is lost without a word."""

import decimal
import json
import tarfile
import warnings
import zipfile

import pytest

from polyvec.data.importing.folder import import_data
from polyvec.errors import DataError

PAIRS = [
    {"sentence1": "a cat", "sentence2": "a dog", "score": 1.0},
    {"sentence1": "rain", "sentence2": "snow", "score": 3.0},
]
RANKED = {
    "corpus.jsonl": '{"_id": "d1", "text": "one"}\n',
    "queries.jsonl": '{"_id": "q1", "text": "what"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
}
STSB = "main\tset\t2012\t0001\t{}\tA girl sings.\tA girl hums."


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def archive(path, files):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")  # of two files of a name
        for name, content in files:
            file.writestr(name, content)
    return path


def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(PAIRS))
    return path


def refusal(source, target, **options):
    with pytest.raises(DataError) as error:
        import_data(source, target, **options)
    assert not target.exists()
    return str(error.value)


def parquet(path, columns):
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)


@pytest.mark.parametrize("split", ["../outside", "a/b", "/tmp/x", ""])
def test_a_split_is_a_name_and_never_a_path(tmp_path, split):
    source = pairs(tmp_path)
    told = refusal(source, tmp_path / "DATA" / "new", split=split)
    assert told.startswith(f"split {split!r} is not a name")
    assert sorted(tmp_path.rglob("*")) == [source]


def test_columns_of_a_corpus_are_refused_instead_of_ignored(tmp_path):
    source = archive(tmp_path / "beir.zip", RANKED.items())
    told = refusal(source, tmp_path / "new", columns={"text": "title"})
    assert "--columns text names fields of rows, but this is a corpus" in told


def test_columns_can_be_exchanged(tmp_path):
    columns = {"sentence1": "sentence2", "sentence2": "sentence1"}
    import_data(pairs(tmp_path), tmp_path / "new", columns=columns)
    first = json.loads((tmp_path / "new" / "test.jsonl").read_text().splitlines()[0])
    assert (first["sentence1"], first["sentence2"]) == ("a dog", "a cat")


def test_a_misspelt_field_is_refused(tmp_path):
    told = refusal(pairs(tmp_path), tmp_path / "new", columns={"scor": "score"})
    assert "no field 'scor'. Did you mean 'score'?" in told


def test_a_part_of_several_that_are_not_there_is_refused(tmp_path):
    name = "data/test-00000-of-00002.parquet"
    columns = {key: [row[key] for row in PAIRS] for key in PAIRS[0]}
    parquet(tmp_path / "set" / name, columns)
    told = refusal(tmp_path / "set", tmp_path / "new")
    assert told == f"{tmp_path}/set: {name} is one of 2 parts, but 1 is there; get the others"
    parquet(tmp_path / "set" / name.replace("00000", "00001"), columns)
    assert import_data(tmp_path / "set", tmp_path / "new").files == {"test.jsonl": 4}


def test_decimals_are_scores(tmp_path):
    scores = [decimal.Decimal("1.5"), decimal.Decimal("2.5")]
    parquet(
        tmp_path / "a.parquet", {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": scores}
    )
    import_data(tmp_path / "a.parquet", tmp_path / "new")
    rows = (tmp_path / "new" / "test.jsonl").read_text().splitlines()
    assert [json.loads(row)["score"] for row in rows] == [1.5, 2.5]


def test_bytes_are_refused_with_their_place(tmp_path):
    path = tmp_path / "a.parquet"
    parquet(path, {"sentence1": ["a"], "sentence2": ["c"], "score": [1.0], "image": [b"\xff"]})
    assert refusal(path, tmp_path / "new").startswith(f"{path}:1: a column of bytes")


def test_two_files_of_a_name_in_an_archive_are_refused(tmp_path):
    twice = [*RANKED.items(), ("corpus.jsonl", '{"_id": "d1", "text": "two"}\n')]
    source = archive(tmp_path / "beir.zip", twice)
    told = refusal(source, tmp_path / "new")
    assert told == f"{source}: holds more than one file 'corpus.jsonl'"


def test_names_that_exclude_each_other_are_the_archive_s_fault(tmp_path):
    source = archive(tmp_path / "beir.zip", [*RANKED.items(), ("a", "x"), ("a/b", "y")])
    assert refusal(source, tmp_path / "new") == f"{source}: cannot be unpacked (Not a directory)"


@pytest.mark.parametrize("suffix", ["bz2", "xz"])
def test_archives_of_other_compressions_are_read(tmp_path, suffix):
    with tarfile.open(tmp_path / f"a.tar.{suffix}", f"w:{suffix}") as tar:
        tar.add(pairs(tmp_path), "set/test.jsonl")
    found = import_data(tmp_path / f"a.tar.{suffix}", tmp_path / "new")
    assert found.files == {"test.jsonl": 2}


def test_old_mac_line_ends_do_not_make_one_row_of_a_file(tmp_path):
    path = tmp_path / "sts-test.csv"
    path.write_bytes("\r".join(STSB.format(score) for score in (1, 2, 3)).encode())
    assert "expected 7 columns, got 19" in refusal(path, tmp_path / "new")


@pytest.mark.parametrize("score", ["nan", "1e999"])
def test_a_score_that_is_not_finite_is_refused_with_its_place(tmp_path, score):
    path = tmp_path / "sts-test.csv"
    path.write_text(f"{STSB.format(1)}\n{STSB.format(score)}\n")
    told = refusal(path, tmp_path / "new")
    assert told == f"{path}:2: score {score!r} is not a finite number"


def test_a_data_set_without_its_corpus_says_so(tmp_path):
    source = archive(tmp_path / "beir.zip", list(RANKED.items())[1:])
    told = refusal(source, tmp_path / "new")
    assert told == f"{source}: qrels/test.tsv are judgements, but there is no corpus"


def test_an_unknown_document_is_told_by_the_source_s_file_and_without_columns(tmp_path):
    files = {**RANKED, "qrels/test.tsv": RANKED["qrels/test.tsv"] + "q1\td9\t1\n"}
    source = archive(tmp_path / "beir.zip", files.items())
    told = refusal(source, tmp_path / "new")
    assert told == f"{source}: qrels/test.tsv:3: document 'd9' is not in corpus.jsonl"


def test_files_without_rows_are_called_so(tmp_path):
    (tmp_path / "set").mkdir()
    for split in ("dev", "test"):
        (tmp_path / "set" / f"sts-{split}.csv").touch()
    told = refusal(tmp_path / "set", tmp_path / "new")
    assert told == f"{tmp_path}/set: no rows in sts-dev.csv, sts-test.csv"


def test_pointers_of_git_lfs_and_links_to_nothing_are_named(tmp_path):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "test.jsonl"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n")
    assert f"{path}: a pointer of git-lfs" in refusal(tmp_path / "set", tmp_path / "new")
    path.unlink()
    path.symlink_to(tmp_path / "blobs" / "gone")
    assert f"{path}: a link to a file that is not there" in refusal(path.parent, tmp_path / "new")
