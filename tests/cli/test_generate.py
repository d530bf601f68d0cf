"""polyvec generate: rows in, the same rows with answers out, whatever happens in between."""

import csv
import datetime
import gzip
import io
import itertools
import json
import re

import pytest

from polyvec.errors import GenerationError
from polyvec.llm.answers import Answer, Completion, GenerationSettings, Usage
from polyvec.llm.function import FunctionLanguageModel
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.ledger import ledger_line
from polyvec.llm.rows import RowPrompt, answered_rows
from polyvec.llm.schema import with_value
from polyvec.llm.slots import SlotTemplate


class Rule(FunctionLanguageModel):
    """Upper case; notes its prompts, and what `load_language_model` was given."""

    def __init__(self, function=str.upper):
        super().__init__(function, "rule")
        self.asked, self.settings, self.loaded = [], None, None

    def stream_checked(self, prompts, settings):
        self.asked += prompts
        self.settings = settings
        # Answers come in any order.
        yield from reversed(list(super().stream_checked(prompts, settings)))


@pytest.fixture(autouse=True)
def rule(monkeypatch, tmp_path):
    """The model of every run; the folder is the test's."""
    model = Rule()
    give(monkeypatch, model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYVEC_CACHE", str(tmp_path / "cache"))
    return model


def give(monkeypatch, model):
    def load(name, **options):
        model.loaded, model.usage = (name, options), Usage()
        return model

    monkeypatch.setattr("polyvec.llm.loading.load_language_model", load)


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def user(text):
    return [{"role": "user", "content": text}]


# ---- rows ---------------------------------------------------------------------------------------


def test_lines_in_rows_out(run, rule):
    done = run("generate", stdin="a cat\n漢字 🙂\nno newline".encode())
    assert done.status == 0
    assert rows(done.out) == [
        {"text": "a cat", "answer": "A CAT"},
        {"text": "漢字 🙂", "answer": "漢字 🙂"},
        {"text": "no newline", "answer": "NO NEWLINE"},
    ]
    assert "漢字 🙂" in done.out
    assert rule.asked == [user("a cat"), user("漢字 🙂"), user("no newline")]
    assert rule.loaded == ("HuggingFaceTB/SmolLM2-135M-Instruct", {})


def test_rows_keep_their_fields_and_order(run, rule, tmp_path):
    data = [{"n": i, "text": f"t{i}", "more": {"x": [i, None]}} for i in range(2500)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    done = run("generate", "x.jsonl", "-o", "out.jsonl", "--template", "{n}: {more} {text}")
    assert (done.status, done.out) == (0, "")
    assert re.match(
        r"out.jsonl: 2500 rows; 2500 asked, 0 from the cache; .* tokens/s\)\n", done.err
    )
    expected = [{**row, "answer": f'{i}: {{"X": [{i}, NULL]}} T{i}'} for i, row in enumerate(data)]
    assert rows((tmp_path / "out.jsonl").read_text()) == expected


def test_csv_parquet_gzip_and_rows_on_standard_input(run, tmp_path, one_line):
    fields = [{"id": "1", "q": 'a "quoted", {x}\nline', "empty": ""}, {"id": "2", "q": "b"}]
    file = io.StringIO()
    writer = csv.DictWriter(file, ("id", "q", "empty"))
    writer.writeheader()
    writer.writerows(fields)
    text = file.getvalue()
    (tmp_path / "x.csv").write_text(text)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    expected = [
        {**fields[0], "answer": 'Q: A "QUOTED", {X}\nLINE'},
        {**fields[1], "empty": "", "answer": "Q: B"},
    ]
    for source, stdin in [("x.csv", b""), ("x.csv.gz", b""), ("-", text.encode())]:
        form = ["--format", "csv"] if source == "-" else []
        done = run("generate", source, *form, "--template", "Q: {q}", stdin=stdin)
        assert rows(done.out) == expected
    lines = b'{"q": "b"}\n\n{"q": 3, "nan": 1e40}\n'
    done = run("generate", "--format", "jsonl", "--template", "{q}", stdin=lines)
    assert [row["answer"] for row in rows(done.out)] == ["B", "3"]
    parquet = pytest.importorskip("pyarrow.parquet")
    day = {"day": datetime.date(2020, 1, 2), "text": "a"}
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist([day]), "x.parquet")
    done = run("generate", "x.parquet", "--template", "{text} {day}")
    assert rows(done.out) == [{"day": "2020-01-02", "text": "a", "answer": "A 2020-01-02"}]
    parquet.write_table(
        pytest.importorskip("pyarrow").Table.from_pylist([{"text": "a", "b": b"x"}]), "y.parquet"
    )
    assert "a column of bytes cannot be" in one_line(run("generate", "y.parquet"))


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "NaN"), (b"x", "bytes")])
def test_a_later_row_that_json_cannot_hold_is_known_before_any_is_asked(
    run, rule, one_line, value, reason
):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "a", "x": None}, {"text": "b", "x": value}]
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), "x.parquet")
    assert re.search(rf"x.parquet:2: .*{reason}", one_line(run("generate", "x.parquet")))
    assert not rule.asked


def test_braces_in_texts_stay(run, rule):
    text = '{text} {{x}} {"a": {}} }{'
    done = run("generate", "--plain", "--template", '{{"say": "{text}"}}', stdin=text.encode())
    assert rule.asked == [f'{{"say": "{text}"}}']
    assert done.status == 0


def test_template_file_system_and_stop_reach_the_model(run, rule, tmp_path):
    (tmp_path / "t.txt").write_text("Say:\n{text}\n")
    options = (
        "--template-file",
        "t.txt",
        "--system",
        "About {text}.",
        "--stop",
        "X",
        "--stop",
        ";",
    )
    assert run("generate", *options, "--max-new-tokens", 7, stdin=b"a;b\n").status == 0
    assert rule.asked == [
        [{"role": "system", "content": "About a;b."}, *user("Say:\na;b")],
    ]
    assert (rule.settings.stop, rule.settings.max_new_tokens) == (("X", ";"), 7)


def test_a_model_without_chats_goes_on_with_the_text(run, rule, monkeypatch, one_line):
    monkeypatch.setattr(Rule, "takes_chats", False)
    assert run("generate", stdin=b"a\n").status == 0
    assert rule.asked == ["a"]
    assert "has no chat template" in one_line(run("generate", "--system", "x", stdin=b"a\n"))


def test_several_answers_are_several_rows(run, rule):
    options = ("--n", 2, "--temperature", 0.8, "--top-p", 0.9, "--seed", 4)
    done = run("generate", *options, stdin=b"a\nb\n")
    assert rows(done.out) == [
        {"text": text, "sample": i, "answer": text.upper()} for text in "ab" for i in range(2)
    ]
    assert (rule.settings.top_p, rule.settings.seed) == (0.9, 4)


def test_rows_that_are_equal_are_asked_once(run, rule):
    done = run("generate", stdin=b"a\nb\na\n")
    assert [row["answer"] for row in rows(done.out)] == ["A", "B", "A"]
    assert rule.asked == [user("a"), user("b")]
    assert "3 rows; 2 asked, 1 from the cache" in done.err


def test_the_model_is_given_its_options(run, rule):
    options = ("--model", "m", "--device", "cpu", "--batch-size", 3, "--trust-remote-code")
    assert run("generate", *options, stdin=b"a\n").status == 0
    given = {"device": "cpu", "batch_size": 3, "trust_remote_code": True}
    assert rule.loaded == ("m", given)


def test_a_server_is_sent_so_many_prompts_at_a_time(run, rule):
    run("generate", "--model", "http://h/v1#m", "--batch-size", 3, stdin=b"a\n")
    assert rule.loaded == ("http://h/v1#m", {"concurrency": 3})


def test_a_malformed_row_of_a_file_is_known_before_any_is_asked(run, rule, one_line, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 3000 + "{")
    assert "x.jsonl:3001: not JSON" in one_line(run("generate", "x.jsonl"))
    assert rule.asked == []


def test_no_texts_give_no_rows(run, rule, tmp_path):
    (tmp_path / "x.jsonl").touch()
    done = run("generate", "x.jsonl", "--template", "{q}", "-o", "out.jsonl")
    assert (done.status, (tmp_path / "out.jsonl").read_text()) == (0, "")
    assert done.err.startswith("out.jsonl: 0 rows; 0 asked")
    assert rule.asked == []


def test_no_more_than_a_window_of_rows_is_held(rule):
    read = itertools.count(1)
    endless = ((f"x:{number}", {"text": str(number)}) for number in read)
    prompt = RowPrompt(SlotTemplate.parse("{text}"), plain=True)
    found = answered_rows(rule, endless, prompt, GenerationSettings(), window=10)
    for written in range(1, 96):
        assert next(found) == {"text": str(written), "answer": str(written)}
    assert next(read) == 101


# ---- what goes wrong ----------------------------------------------------------------------------


def test_rows_without_an_answer_have_an_error_and_the_others_go_on(run, rule, tmp_path):
    lines = [
        '{"q": "a"}',
        '{"p": 1}',
        '{"q": null}',
        '{"q": " "}',
        '{"q": "\\ud800"}',
        '{"q": "b"}',
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    done = run("generate", "x.jsonl", "--template", "{q}", "-o", "out.jsonl")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "6 rows; 2 asked" in done.err and "4 of 6 rows have an error and no answer" in done.err
    found = rows((tmp_path / "out.jsonl").read_text())
    assert [row["answer"] for row in found] == ["A", None, None, None, None, "B"]
    assert [row.get("error") for row in found] == [
        None,
        "x.jsonl:2: the field 'q' is missing",
        "x.jsonl:3: the field 'q' is null",
        "x.jsonl:4: the field 'q' is empty",
        "x.jsonl:5: the field 'q' has a lone surrogate at character 0, which is not valid Unicode",
        None,
    ]
    assert found[4]["q"] == "\ud800"


class Odd(LanguageModel):
    """Answers that have problems, by the prompt."""

    identity = "odd"

    def __init__(self):
        super().__init__()
        self.answers = {
            "cut": Completion((Answer("x", "length", 1),)),
            "refused": Completion((Answer("no", "refusal", 1),)),
            "empty": Completion((Answer(" ", "stop", 1),)),
            "bad": Completion((Answer("{", "length", 1, None, "not JSON"),)),
            "long": Completion((with_value(Answer("{", "length", 1), {}),)),
            "deaf": Completion((Answer("x", "stop", 1),)),
            "null": Completion((Answer("null", "stop", 1),)),
            "good": Completion((Answer('{"a": 1}', "stop", 1, {"a": 1}),)),
            "gone": Completion((), error="no answer after 5 tries"),
        }

    def stream_checked(self, prompts, settings):
        for number, prompt in enumerate(prompts):
            yield number, self.answers[prompt]


def test_problems_are_named_in_rows_and_counted(run, monkeypatch):
    give(monkeypatch, Odd())
    done = run("generate", "--plain", stdin=b"cut\nrefused\nempty\ngone\n")
    assert rows(done.out) == [
        {"text": "cut", "answer": "x", "problem": "cut by max_new_tokens"},
        {"text": "refused", "answer": "no", "problem": "refused"},
        {"text": "empty", "answer": " ", "problem": "empty"},
        {"text": "gone", "answer": None, "error": "no answer after 5 tries"},
    ]
    assert done.status == 2
    assert "problems: 1 cut by max_new_tokens, 1 empty, 1 error, 1 refused" in done.err
    assert "1 of 4 rows have an error and no answer, the first: no answer after" in done.err
    # What is wrong with a kept answer is said again; errors and refusals are asked again.
    again = run("generate", "--plain", stdin=b"cut\nrefused\nempty\ngone\n")
    assert rows(again.out) == rows(done.out)
    assert "2 asked, 2 from the cache" in again.err
    assert run("generate", "--plain", stdin=b"cut\nrefused\nempty\n").status == 0


def test_answers_of_a_schema_are_values(run, monkeypatch, tmp_path):
    give(monkeypatch, Odd())
    (tmp_path / "s.json").write_text('{"type": "object"}')
    done = run(
        "generate",
        "--plain",
        "--schema",
        "s.json",
        "--field",
        "out",
        stdin=b"good\nbad\nlong\ndeaf\nnull\n",
    )
    assert rows(done.out) == [
        {"text": "good", "out": {"a": 1}},
        {
            "text": "bad",
            "out": None,
            "out_text": "{",
            "error": "cut by max_new_tokens: not JSON",
        },
        {
            "text": "long",
            "out": None,
            "out_text": "{",
            "error": "cut by max_new_tokens after 1 tokens: not complete",
        },
        {"text": "deaf", "out": None, "out_text": "x", "error": "not of the schema: not parsed"},
        {"text": "null", "out": None},
    ]
    assert done.status == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["x.pdf"], "unknown file type 'pdf'"),
        (["bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["list.jsonl"], "list.jsonl:1: expected a JSON object, got list"),
        (["bad.csv"], "bad.csv:2: more values than the header"),
        (["twice.jsonl"], "twice.jsonl:2: not JSON .key 'text' is given twice"),
        (["nan.jsonl"], "nan.jsonl:1: not JSON .NaN is not a JSON number"),
        (["huge.jsonl"], "huge.jsonl:1: not JSON .1e999 is too large"),
        (["x.txt", "--schema", "twice.json"], "twice.json: not JSON .key 'type' is given twice"),
        (["latin.txt"], "latin.txt:1: not UTF-8"),
        (["-", "--format", "parquet"], "standard input: unknown file type 'parquet'"),
        (["x.jsonl"], "slot 'text' is not a field of the rows.*Known: n, topic"),
        (["x.jsonl", "--template", "{topik}"], "slot 'topik'.*Did you mean 'topic'?"),
        (["x.jsonl", "--template", '{"a": "{topic}"}'], "unmatched; write '{{' for a literal"),
        (["x.jsonl", "--template", "{topic} }"], "'}' at character 8 is unmatched"),
        (["x.jsonl", "--template", "{topic.x}"], "slot 'topic.x' is not a field"),
        (["x.jsonl", "--template", "no slot"], "no slot, so all rows would ask the same"),
        (["x.jsonl", "--template-file", "gone"], "gone: No such file"),
        (["x.jsonl", "--template", "{topic}", "--template-file", "y"], "not allowed with"),
        (["x.jsonl", "--template", "{topic}", "--system", "{x}"], "--system: slot 'x'"),
        (["x.txt", "--plain", "--system", "x"], "--system: --plain sends no chat"),
        (["x.jsonl", "--template", "{topic}", "--field", "n"], "x.jsonl:1: .* field 'n' already"),
        (["x.txt", "--field", "error"], "'error' is no name for the answers' field"),
        (["x.txt", "--field", ""], "'' is no name for the answers' field"),
        (["x.txt", "--temperature", "nan"], "temperature nan must be 0"),
        (["taken.jsonl"], "taken.jsonl:1: the rows have a field 'error' already"),
        (["late.jsonl"], "late.jsonl:2: the rows have a field 'answer' already"),
        (["x.txt", "--n", "2"], "n 2 answers at temperature 0 would all be the same"),
        (["x.txt", "--n", "0"], "'0' is not a positive integer"),
        (["x.txt", "--temperature", "-1"], "temperature -1.0 must be 0|expected one argument"),
        (["x.txt", "--top-p", "0.5"], "--top-p: does nothing at temperature 0"),
        (["x.txt", "--temperature", "1", "--top-p", "2"], "top_p 2.0 must be"),
        (["x.txt", "--seed", "5"], "--seed: does nothing at temperature 0"),
        (["x.txt", "--stop", ""], "stop must be texts that are not empty"),
        (["x.txt", "--max-new-tokens", "many"], "'many' is not a positive integer"),
        (["x.txt", "--schema", "bad.json"], "bad.json: not JSON"),
        (["x.txt", "--schema", "list.json"], "list.json: schema must be a JSON schema"),
        (["x.txt", "--schema", "typo.json"], "typo.json: .*'objekt'"),
        (["x.txt", "--schema", "gone.json"], "gone.json: No such file"),
        (["x.txt", "-o", "gone/out.jsonl"], "gone does not exist; create it first"),
        (["x.txt", "-o", "out.csv"], "out.csv: rows are written as JSON lines"),
        (["x.jsonl", "-o", "x.jsonl"], "input and output are the same file"),
        (["x.txt", "-o", "o.jsonl", "--ledger", "o.jsonl"], "output and ledger are the same"),
        (["x.txt", "--ledger", "gone/l.jsonl"], "gone does not exist; create it first"),
        (["x.txt", "--cache", "x.txt"], "x.txt: exists and is not a folder"),
        (["x.txt", "--new-price", "-3"], "'-3' is not a price|expected one argument"),
        (["x.txt", "--model", "http://h/v1#m", "--device", "cpu"], "--device: not for a server"),
        (["x.txt", "--timeout", "9"], "--timeout: only for a server"),
        (["x.txt", "--timeout", "0"], "'0' is not a number of seconds above 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    run, rule, one_line, tmp_path, arguments, message
):
    (tmp_path / "x.txt").write_text("a\n")
    (tmp_path / "x.pdf").touch()
    (tmp_path / "x.jsonl").write_text('{"n": 1, "topic": "a"}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nno\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "taken.jsonl").write_text('{"text": "a", "error": 1}\n')
    (tmp_path / "late.jsonl").write_text('{"text": "a"}\n{"text": "b", "answer": 1}\n')
    (tmp_path / "bad.csv").write_text("text\na,b\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    (tmp_path / "twice.jsonl").write_text('{"text": "a"}\n{"text": "a", "text": "b"}\n')
    (tmp_path / "nan.jsonl").write_text('{"text": "a", "x": [NaN]}\n')
    (tmp_path / "huge.jsonl").write_text('{"text": "a", "x": 1e999}\n')
    (tmp_path / "twice.json").write_text('{"type": "object", "type": "string"}')
    (tmp_path / "bad.json").write_text("{type: object}")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "typo.json").write_text('{"type": "objekt"}')
    before = sorted(tmp_path.iterdir())
    output = [] if "-o" in arguments else ["-o", "new.jsonl"]
    done = run("generate", *arguments, *output)
    assert re.search(message, one_line(done)), done.err
    assert sorted(tmp_path.iterdir()) == before


def test_what_concerns_all_rows_ends_the_run_in_one_line(run, monkeypatch, one_line, tmp_path):
    class Gone(Rule):
        def stream_checked(self, prompts, settings):
            yield next(iter(super().stream_checked(prompts, settings)))
            raise GenerationError("http://host/v1: no server there")

    give(monkeypatch, Gone())
    (tmp_path / "out.jsonl").write_text("old")
    done = run("generate", "-o", "out.jsonl", "--ledger", "l.jsonl", stdin=b"a\nb\n")
    assert one_line(done) == "polyvec: http://host/v1: no server there\n"
    assert (tmp_path / "out.jsonl").read_text() == "old"
    (line,) = rows((tmp_path / "l.jsonl").read_text())
    assert (line["state"], line["prompts"]) == ("failed", 1)


def test_a_disk_that_takes_no_more_is_one_line(run, tmp_path, one_line, small_files):
    (tmp_path / "x.txt").write_text("".join(f"{i}\n" for i in range(600)))
    with small_files(8192):
        done = run("generate", "x.txt", "--cache", "none", "-o", "out.jsonl")
    assert one_line(done) == "polyvec: out.jsonl: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_one_row_of_a_megabyte(run):
    done = run("generate", "--max-new-tokens", 10**6, stdin=b"word " * 200_000 + b"\n")
    assert rows(done.out)[0]["answer"] == "WORD " * 200_000


# ---- cache, ledger, dry run ---------------------------------------------------------------------


def test_the_cache_is_a_folder_the_default_one_or_none(run, rule, tmp_path):
    for options, asked in [
        ([], 1),
        ([], 1),
        (["--cache", "mine"], 2),
        (["--cache", "mine"], 2),
        (["--cache", "none"], 3),
        (["--cache", "none"], 4),
    ]:
        assert run("generate", *options, stdin=b"a\n").status == 0
        assert len(rule.asked) == asked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine"]


def test_the_ledger_has_a_line_for_each_run(run, tmp_path):
    (tmp_path / "l.jsonl").write_text('{"mine": 1}')  # without a newline
    prices = ("--prompt-price", 2, "--new-price", 10, "--ledger", "l.jsonl")
    for stdin in (b"a b\nc\n", b"c\nd e\n", b""):
        assert (
            run("generate", *prices, "--model", "http://me:pw@host/v1#m", stdin=stdin).status == 0
        )
    mine, first, second, third = rows((tmp_path / "l.jsonl").read_text())
    assert mine == {"mine": 1}
    assert first["model"] == "http://host/v1#m" and first["identity"] == "function:rule"
    assert [first[key] for key in ("state", "prompts", "cached")] == ["done", 2, 0]
    assert [first[key] for key in ("prompt_tokens", "new_tokens", "cost")] == [3, 3, 36e-6]
    assert [second[key] for key in ("prompts", "cached", "new_tokens")] == [2, 1, 2]
    assert (third["prompts"], third["cost"], third["problems"]) == (0, 0, {})
    assert len({each["run"] for each in (first, second, third)}) == 3
    assert "pw" not in (tmp_path / "l.jsonl").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["date"])


def test_a_ledger_that_somebody_edits_meanwhile_loses_nothing(tmp_path):
    path, usage = tmp_path / "l.jsonl", Usage()
    path.write_text('{"old": 1}\n')
    with ledger_line(path, usage, model="m", identity="i") as update:
        path.write_text('{"longer than before": 1}\n{"new": 2}\n')
        usage.prompts = 3
        update()
        path.write_text('{"first": 0}\n' + path.read_text().rstrip())
        usage.prompts = 4
    found = rows(path.read_text())
    assert found[:3] == [{"first": 0}, {"longer than before": 1}, {"new": 2}]
    assert (found[-1]["prompts"], found[-1]["state"]) == (4, "done")


def test_the_cost_is_shown_with_prices(run):
    done = run("generate", "--new-price", 1_000_000, stdin=b"a b\n")
    assert "; 2 prompt and 2 new tokens" in done.err and "; cost 2\n" in done.err
    assert "cost" not in run("generate", stdin=b"a\n").err


def test_a_dry_run_shows_prompts_and_asks_nothing(run, rule, tmp_path):
    options = ("--template", "Say {text}", "--max-new-tokens", 10, "--new-price", 1e6)
    options += ("--prompt-price", 1e6, "--dry-run", "-o", "out.jsonl", "--ledger", "l.jsonl")
    done = run("generate", *options, stdin=b"a\n\nb\nc\nd e\n")
    assert rows(done.out) == [{"prompt": user(f"Say {text}")} for text in "abc"]
    assert done.err == (
        "dry run: 5 rows; 9 prompt tokens, at most 40 new tokens, cost at most 49; "
        "1 without a prompt, the first: standard input:2: the field 'text' is empty\n"
    )
    assert (rule.asked, list(tmp_path.iterdir())) == ([], [])
