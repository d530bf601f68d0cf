"""Statistics of data folders: figures worked by hand, kinds of fields, and real data sets."""

import doctest
import functools
import gzip
import json
import sys

import numpy as np
import pytest

from polyvec.data import words
from polyvec.data.overlap import overlap
from polyvec.data.stats import fields as stats_fields
from polyvec.data.stats import files as stats_files
from polyvec.data.stats import languages
from polyvec.data.stats.fields import SAMPLE
from polyvec.data.stats.files import data_files, split_of
from polyvec.data.stats.statistics import Spread, folder_stats
from polyvec.data.texts import read_jsonl
from polyvec.errors import DataError, InputError, MissingExtraError

TEXTS = ["A cat sat.", "a  cat sat.", "A CAT SAT", "", "Dogs run far away now"]
MAIL = [
    {"id": i, "text": text, "label": label, "score": score, "lang": "en", "note": None}
    for i, (text, label, score) in enumerate(
        zip(TEXTS, ["pet", "pet", "pet", "none", "run"], [0.5, 1, 2, 3, 3.5], strict=True)
    )
]


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder, **files):
    """Files by name, "__" for a slash and "_dot_" for a point."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else jsonl(content)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return folder


def stats_of(folder, **options):
    return folder_stats(folder, **{"guess": "script", **options})


def by_name(items):
    return {item.name: item for item in items}


@pytest.mark.parametrize("module", [languages, overlap, stats_files, words])
def test_the_examples_in_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


# ---- figures by hand ----------------------------------------------------------------------------


def test_figures_of_a_small_file(tmp_path):
    (found,) = stats_of(write(tmp_path, mail_dot_jsonl=MAIL)).files
    assert (found.name, found.num_rows, found.others) == ("mail.jsonl", 5, ("id", "note"))
    (text,) = found.texts
    assert (text.num_texts, text.num_empty) == (4, 1)
    assert (text.num_duplicates, text.num_near_duplicates) == (0, 2)
    assert text.words == Spread(3, 3, 3.5, pytest.approx(4.7), 5)
    assert (text.characters.min, text.characters.max) == (9, 21)
    assert text.languages == {"Latin": 1.0}
    labels = by_name(found.labels)
    assert labels["label"].counts == {"pet": 3, "none": 1, "run": 1}
    assert labels["lang"].is_language
    assert labels["lang"].counts == {"en": 5}
    (score,) = found.numbers
    assert (score.name, score.min, score.mean, score.max) == ("score", 0.5, 2.0, 3.5)


def test_white_space_and_case_are_told_apart(tmp_path):
    texts = ["a b c", " a  b\tc ", "A b, c!", "a\u00a0b c", "ａ ｂ ｃ", "a b d", "?!", "!?"]
    (found,) = stats_of(write(tmp_path, x_dot_jsonl=[{"text": text} for text in texts])).files
    (text,) = found.texts
    assert text.num_duplicates == 2  # the second, and the one with a space that does not break
    assert text.num_near_duplicates == 4  # and those with signs and with full-width letters


def test_a_spread_is_numpys():
    numbers = np.random.default_rng(0).integers(1, 99, 37)
    found = Spread.of(numbers)
    assert (found.median, found.p95) == tuple(np.percentile(numbers, [50, 95]))
    assert Spread.of([]) == Spread(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("two words", 2),
        ("東京です。", 5),
        ("สวัสดี", 4),
        ("한국어 단어", 2),
        ("C++は良い", 4),
        ("", 0),
    ],
)
def test_words_of_every_script(text, count):
    assert len(words.words(text)) == count


# ---- kinds of fields ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([f"sentence number {i} stands here" for i in range(9)], "texts"),
        ([f"doc-{i}" for i in range(9)], "others"),
        (["card arrival", "lost"] * 10, "labels"),
        (["card is late", "card was lost"] * 10, "labels"),
        (["card is late", "card was lost"], "texts"),
        (["Who did it in the end?"] * 9, "texts"),  # long enough, however often it comes
        ([f"今日は{i}月です" for i in range(1, 9)], "texts"),
        (["yes", "no"] * 5, "labels"),
        ([0, 1] * 5, "labels"),
        ([True, False] * 5, "labels"),
        (list(range(9)), "numbers"),
        ([0.5, 1.5], "numbers"),
        ([None, None], "others"),
        (["", " "], "others"),
        ([["a b c d e f"], []], "texts"),
        ([{"deep": [{"er": "one two three four five"}]}], "texts"),
    ],
)
def test_what_a_field_holds(tmp_path, values, kind):
    rows = [{"text": f"row {i}", "field": value} for i, value in enumerate(values)]
    (found,) = stats_of(write(tmp_path, x_dot_jsonl=rows)).files
    kinds = {
        "texts": {text.name for text in found.texts},
        "labels": {label.name for label in found.labels},
        "numbers": {number.name for number in found.numbers},
        "others": set(found.others),
    }
    (mine,) = [k for k, names in kinds.items() if any(name.startswith("field") for name in names)]
    assert mine == kind


def test_names_decide_where_values_do_not(tmp_path):
    rows = [
        {"_id": f"the name of document {i}", "text": "word", "label": f"l{i}", "score": i // 9}
        for i in range(20)
    ]
    (found,) = stats_of(write(tmp_path, x_dot_jsonl=rows)).files
    assert [text.name for text in found.texts] == ["text"]
    assert [label.name for label in found.labels] == ["label"]
    assert [number.name for number in found.numbers] == ["score"]
    assert found.others == ("_id",)


def test_values_inside_values_have_paths(tmp_path):
    rows = [{"captions": ["one two three", "four five six"], "best": {"text": "seven eight"}}] * 2
    (found,) = stats_of(write(tmp_path, x_dot_jsonl=rows)).files
    counts = {text.name: text.num_texts for text in found.texts}
    assert counts == {"captions[]": 4, "best.text": 2}


def test_a_file_of_very_many_fields(tmp_path):
    rows = [{"by id": {f"k{i}": f"some words {i}"}, "text": "a b"} for i in range(700)]
    (found,) = stats_of(write(tmp_path, x_dot_jsonl=rows)).files
    names = {text.name: text.num_texts for text in found.texts}
    assert names["by id.*"] > 100
    assert sum(names.values()) == 1400


# ---- files --------------------------------------------------------------------------------------


def test_every_kind_of_file_and_one_folder_deep(tmp_path):
    write(
        tmp_path,
        a_dot_txt_dot_gz="one line\n\ntwo lines\n",
        b_dot_csv="text,label\nx y,1\n",
        c_dot_tsv="question\tanswer\nwho is it\tit is me\n",
        d_dot_tsv="no header here\tas cells have spaces\nmore words\tof text\n",
        sub__e_dot_jsonl=[{"text": "deep enough"}],
        sub__sub__f_dot_jsonl=[{"text": "too deep"}],
        _dot_hidden_dot_txt="not shown\n",
        notes_dot_md="# no data\n",
    )
    found = stats_of(tmp_path)
    rows = {file.name: file.num_rows for file in found.files}
    assert rows == {"a.txt.gz": 3, "b.csv": 1, "c.tsv": 1, "d.tsv": 2, "sub/e.jsonl": 1}
    assert found.unread == ("notes.md",)
    files = by_name(found.files)
    assert [text.name for text in files["c.tsv"].texts] == ["question", "answer"]
    assert [text.name for text in files["d.tsv"].texts] == ["1", "2"]
    assert files["a.txt.gz"].texts[0].num_empty == 1


def test_one_file_alone(tmp_path):
    write(tmp_path, mail_dot_jsonl=MAIL, other_dot_jsonl=MAIL)
    assert [file.name for file in stats_of(tmp_path / "mail.jsonl").files] == ["mail.jsonl"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"x_dot_jsonl": '{"text": "a b"}\n{"text": \n'}, "x.jsonl:2: not JSON"),
        ({"x_dot_jsonl": "[1]\n"}, "x.jsonl:1: expected a JSON object, got list"),
        ({"x_dot_jsonl": '{"text": "a \\ud800 b"}\n'}, "x.jsonl:1: 'text' has a lone surrogate"),
        (
            {"x_dot_jsonl": '{"n": 1' + "0" * 400 + "}\n"},
            "x.jsonl:1: 'n' is an integer too large",
        ),
        ({"x_dot_jsonl": '{"label": "cat"}\n'}, "no field holds texts. Fields: label."),
        ({"x_dot_jsonl": ""}, "no field holds texts. Fields: none."),
        ({"x_dot_tsv": "a\tb\nc\n"}, "x.tsv:2: expected 2 columns, got 1"),
        ({"x_dot_tsv": "a\ta\n"}, "x.tsv:1: duplicate column"),
        ({"x_dot_md": "text"}, "contains no data files. Known: csv"),
        ({"qrels__x_dot_tsv": "q\td\n"}, "x.tsv:1: 2 columns, expected 3"),
        ({"qrels__x_dot_tsv": "q\td\tnan\n"}, "x.tsv:1: grade 'nan' is not a finite number"),
    ],
)
def test_bad_data_names_its_place(tmp_path, files, told):
    with pytest.raises(DataError) as caught:
        stats_of(write(tmp_path, **files))
    assert told in str(caught.value)


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        stats_of(tmp_path / "gone")
    (tmp_path / "x.pdf").write_text("")
    with pytest.raises(DataError, match="unknown file type 'pdf'"):
        stats_of(tmp_path / "x.pdf")
    with pytest.raises(InputError, match="Did you mean 'script'"):
        stats_of(write(tmp_path, mail_dot_jsonl=MAIL), guess="scripts")


@pytest.mark.parametrize(
    ("name", "split", "series"),
    [
        ("train.jsonl", "train", ""),
        ("en-ext_valid.jsonl.gz", "dev", "en ext"),
        ("slurp_devel.jsonl", "dev", "slurp"),
        ("wiki.test.tokens.txt.gz", "test", "wiki"),
        ("test_dialogs.jsonl", "test", "dialogs"),
        ("de/train.jsonl", "train", "de"),
        ("contest.jsonl", None, "contest"),
        ("corpus.jsonl", None, "corpus"),
    ],
)
def test_splits_by_name(name, split, series):
    assert split_of(name) == (split, series)


# ---- languages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The cat", "Latin"),
        ("Кошка sat", "Cyrillic"),
        ("猫在这里", "Han"),
        ("猫がいる", "Kana"),
        ("東京都の知事が発表", "Kana"),
        ("漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字の", "Han"),
        ("ﾈｺ", "Kana"),
        ("고양이", "Hangul"),
        ("قطة", "Arabic"),
        ("ድመት", "Ethiopic"),
        ("बिल्ली", "Devanagari"),
        ("42 + 1 = 43 !", "none"),
    ],
)
def test_scripts(text, script):
    assert languages.script(text) == script


def test_languages_are_told_and_doubt_too():
    pytest.importorskip("py3langid", reason="needs the extra 'data'")
    assert languages.guesser() == "language"
    assert languages.language("Die Katze sitzt auf der Matte und schläft den ganzen Tag.") == "de"
    assert languages.language("El gato duerme todo el día sobre la alfombra roja.") == "es"
    assert languages.language("x7 q") in ("und", "zxx")


def test_without_the_extra_scripts_are_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._identifier.cache_clear()
    try:
        found = folder_stats(write(tmp_path, mail_dot_jsonl=MAIL))
        assert found.guess == "script"
        assert found.files[0].texts[0].languages == {"Latin": 1.0}
        with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[data\]'"):
            folder_stats(tmp_path, guess="language")
    finally:
        languages._identifier.cache_clear()


def test_the_sample_is_fair_and_the_same_each_time(tmp_path, monkeypatch):
    rows = [{"text": f"слово {i}" if i < 2000 else f"word {i}"} for i in range(4000)]
    write(tmp_path, x_dot_jsonl=rows)
    first, second = stats_of(tmp_path), stats_of(tmp_path)
    assert first == second
    (field,) = first.files[0].texts
    assert field.languages["Cyrillic"] == pytest.approx(0.5, abs=0.08)
    guessed = []
    monkeypatch.setitem(languages.GUESSES, "script", lambda text: guessed.append(text) or "")
    stats_of(tmp_path)
    assert len([text for text in guessed if text]) == SAMPLE


# ---- tokens -------------------------------------------------------------------------------------


def test_tokens_are_counted_and_those_too_long(tmp_path):
    def count(texts):
        return [len(text) for text in texts]

    write(tmp_path, mail_dot_jsonl=MAIL)
    (found,) = stats_of(tmp_path, count_tokens=count, max_tokens=10).files
    (text,) = found.texts
    assert text.tokens == text.characters
    assert text.num_too_long == 2
    assert stats_of(tmp_path).files[0].texts[0].tokens is None


# ---- retrieval ----------------------------------------------------------------------------------

CORPUS = [{"_id": f"d{i}", "text": f"document number {i}"} for i in range(4)]
QUERIES = [{"_id": f"q{i}", "text": f"question number {i}"} for i in range(4)]
QRELS = "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td1\t1\nq1\td2\t0\nq9\td0\t1\nq1\tgone\t1\n"


def test_judgements_by_hand(tmp_path):
    write(
        tmp_path,
        corpus_dot_jsonl=[*CORPUS, CORPUS[0]],
        queries_dot_jsonl_dot_gz=QUERIES,
        qrels__test_dot_tsv=QRELS,
    )
    found = stats_of(tmp_path)
    (r,) = found.retrieval
    assert (r.qrels, r.corpus, r.queries) == ("qrels/test.tsv", "corpus.jsonl", "queries.jsonl.gz")
    assert (r.num_queries, r.num_passages, r.num_judgements) == (4, 5, 5)
    assert (r.num_judged, r.num_unjudged, r.num_without_positive) == (3, 2, 0)
    assert r.per_query == (1, pytest.approx(5 / 3), 2)
    assert r.grades == {"0": 1, "1": 3, "2": 1}
    assert (r.num_judged_passages, r.num_missing_passages, r.num_missing_queries) == (4, 1, 1)
    assert r.first_missing == "qrels/test.tsv:5"
    assert r.num_repeated_ids == 1
    assert by_name(found.files)["qrels/test.tsv"].num_rows == 5


def test_queries_whose_judgements_are_all_zero(tmp_path):
    files = {"corpus_dot_jsonl": CORPUS, "queries_dot_jsonl": QUERIES}
    write(tmp_path, **files, qrels_dot_tsv="q0 0 d0 0\nq0 0 d1 0\nq1 0 d1 3\n")  # as TREC writes
    (r,) = stats_of(tmp_path).retrieval
    assert (r.num_judged, r.num_without_positive, r.per_query) == (2, 1, (1, 1.5, 2))


def test_each_language_has_its_judgements(tmp_path):
    """corpus.X with queries.X; of "de-en" the side that fits."""
    for language in ("de", "en"):
        corpus = [{**row, "_id": f"{language}-{row['_id']}"} for row in CORPUS]
        write(tmp_path, **{f"corpus_dot_{language}_dot_jsonl": corpus})
        write(tmp_path, **{f"queries_dot_{language}_dot_jsonl": QUERIES})
        for other in ("de", "en"):
            line = f"q0\t{language}-d0\t1\n"
            write(tmp_path, **{f"qrels__{language}-{other}_dot_tsv": line})
    found = {r.qrels: r for r in stats_of(tmp_path).retrieval}
    assert len(found) == 4
    assert not any(r.num_missing_passages for r in found.values())
    mixed = found["qrels/de-en.tsv"]
    assert (mixed.corpus, mixed.queries) == ("corpus.de.jsonl", "queries.en.jsonl")


def test_one_file_of_judgements_for_all_languages(tmp_path):
    for language in ("de", "en", "zh"):
        write(tmp_path, **{f"corpus_dot_{language}_dot_jsonl": CORPUS})
        write(tmp_path, **{f"queries_dot_{language}_dot_jsonl": QUERIES})
    write(tmp_path, qrels_dot_tsv="q0\td0\t1\n")
    corpora = [(r.corpus, r.queries) for r in stats_of(tmp_path).retrieval]
    assert corpora == [(f"corpus.{v}.jsonl", f"queries.{v}.jsonl") for v in ("de", "en", "zh")]


def test_splits_of_queries_share_a_corpus(tmp_path):
    write(tmp_path, corpus_dot_jsonl=CORPUS, queries_dot_train_dot_jsonl=QUERIES)
    write(tmp_path, queries_dot_test_dot_jsonl=QUERIES, qrels_dot_test_dot_tsv="q0\td0\t1\n")
    ((corpus, queries),) = [(r.corpus, r.queries) for r in stats_of(tmp_path).retrieval]
    assert (corpus, queries) == ("corpus.jsonl", "queries.test.jsonl")


def test_folders_of_folders(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, corpus_dot_jsonl=CORPUS, queries_dot_jsonl=QUERIES)
        write(tmp_path / name, qrels__test_dot_tsv="q0\td0\t1\n")
    assert [r.qrels for r in stats_of(tmp_path).retrieval] == [
        "one/qrels/test.tsv",
        "two/qrels/test.tsv",
    ]


# ---- real data ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared_data):
    """Statistics of a real folder, made once."""
    return functools.cache(lambda name: stats_of(shared_data / name))


ROWS = {
    "stsb": {"train.jsonl.gz": 5749, "dev.jsonl.gz": 1500, "test.jsonl.gz": 1379},
    "sick": {"train.jsonl.gz": 4500, "dev.jsonl": 500, "test.jsonl.gz": 4927},
    "mrpc": {"train.jsonl.gz": 3576, "dev.jsonl": 500, "test.jsonl.gz": 1725},
    "trec": {"train.jsonl.gz": 5452, "test.jsonl": 500},
    "wikitext2": {"wiki.valid.tokens.txt.gz": 3760, "wiki.test.tokens.txt.gz": 4358},
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_real_folders(real, name):
    found = real(name)
    rows = {file.name: file.num_rows for file in found.files}
    assert {file: rows.get(file) for file in ROWS[name]} == ROWS[name]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "qrels", "passages", "queries", "judgements", "judged"),
    [
        ("scifact", "qrels/test.tsv", 5183, 1109, 339, 300),
        ("scifact", "qrels/train.tsv", 5183, 1109, 919, 809),
        ("cranfield", "qrels/test.tsv", 1400, 225, 1612, 225),
        ("limit_small", "qrels/test.tsv", 46, 1000, 2000, 1000),
        ("birco", "wtb/qrels/test.tsv", 1767, 100, None, 100),
        ("jsquad", "qrels.test.tsv", 1159, 4420, 4420, 4420),
    ],
)
def test_judgements_of_real_folders(
    shared_data, name, qrels, passages, queries, judgements, judged
):
    found = {r.qrels: r for r in stats_of(shared_data / name).retrieval}[qrels]
    assert (found.num_passages, found.num_queries) == (passages, queries)
    assert judgements in (None, found.num_judgements)
    assert found.num_judged == judged
    assert found.num_missing_passages == found.num_missing_queries == 0


@pytest.mark.medium
def test_xquad_has_twelve_languages(shared_data, monkeypatch):
    pytest.importorskip("py3langid", reason="needs the extra 'data'")
    monkeypatch.setattr(stats_fields, "SAMPLE", 50)
    found = folder_stats(shared_data / "xquad")
    assert len(found.retrieval) == 12
    sizes = {(r.num_passages, r.num_judgements, r.num_missing_passages) for r in found.retrieval}
    assert sizes == {(240, 1190, 0)}
    for file in found.files:
        if file.name.startswith("corpus"):
            (text,) = file.texts
            most, share = next(iter(text.languages.items()))
            assert (most, share > 0.9) == (file.name.split(".")[1], True)


@pytest.mark.medium
def test_every_text_field_of_real_folders_is_found(real):
    fields = {
        "stsb": {"sentence1", "sentence2"},
        "stereoset": {"context", "sentences.stereotype", "sentences.anti-stereotype",
                      "sentences.unrelated"},
        "pubmedqa": {"question", "abstract", "long_answer"},
        "birco": {"instruction", "text"},
        "limit_small": {"text"},
    }  # fmt: skip
    for name, wanted in fields.items():
        found = real(name)
        assert {text.name for file in found.files for text in file.texts} == wanted


def test_duplicates_agree_with_a_set(shared_data):
    path = shared_data / "sick" / "test.jsonl.gz"
    (found,) = stats_of(path).files
    texts = [row["sentence1"] for _, row in read_jsonl(path)]
    text = by_name(found.texts)["sentence1"]
    assert text.num_duplicates == len(texts) - len({" ".join(t.split()) for t in texts})
    assert text.characters.mean == pytest.approx(np.mean([len(t) for t in texts]))


def test_folders_of_images_and_sounds_are_refused(shared_data):
    for name in ("mnist_t10k", "fsdd_audio", "cifar10_sample"):
        with pytest.raises(DataError, match=r"no data|no field holds texts"):
            stats_of(shared_data / name)


def test_data_files_are_sorted(shared_data):
    files, others = data_files(shared_data / "birco")
    names = [file.name for file in files]
    assert names == sorted(names)
    assert len(names) == 16
    assert others == ["SOURCE.md"]
