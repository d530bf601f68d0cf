"""The batch API: every row once, errors by row, and jobs found again."""

import json
import subprocess
import sys
import textwrap
import time

import pytest
from openai_server import KEY, OpenAIServer

from polyvec.errors import AnswerWarning, DataError, GenerationError, SettingsError
from polyvec.llm.server import ServerLanguageModel, batches

pytest.importorskip("openai", reason="needs the extra 'llm'")


def model_of(server, file, **options):
    options = {"batch_file": file, "batch_poll_s": 0.02, "api_key": KEY, **options}
    return ServerLanguageModel(server.url, "tiny", **options)


def test_each_row_ends_with_an_answer_or_an_error(tmp_path):
    with OpenAIServer(polls=3) as server:
        model = model_of(server, tmp_path / "job.json")
        plans = ["", "", "! 400", "! lost", "! 500"]
        rows = [f"row {number} {plans[number % 5]}" for number in range(50)]
        with pytest.warns(AnswerWarning, match="30 of 50 answers have problems: 30 error"):
            found = model.generate(rows, max_new_tokens=9)
        for number, completion in enumerate(found):
            if number % 5 < 2:
                assert completion.text == f"answer to row {number}"
            else:
                expected = [None, None, "status 400: bad row", "no line for it", "status 500"]
                assert expected[number % 5] in completion.error
        lines = [json.loads(line) for line in server.files["file-0"].splitlines()]
        assert [line["custom_id"] for line in lines] == [str(number) for number in range(50)]
        assert {(line["method"], line["url"]) for line in lines} == {
            ("POST", "/v1/chat/completions")
        }
        assert lines[0]["body"]["max_tokens"] == 9
        assert model.usage.prompts == 50 and model.usage.new_tokens == 20 * 4
        stored = (tmp_path / "job.json").read_text()
        assert "batch_0" in stored and KEY not in stored


def test_large_jobs_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_PROMPTS", 4)
    rows = [f"row {number}" for number in range(10)]
    with OpenAIServer() as server:
        found = model_of(server, tmp_path / "job.json").generate(rows)
        assert [each.text for each in found] == [f"answer to {row}" for row in rows]
        assert [
            len(data.splitlines()) for name, data in server.files.items() if "file" in name
        ] == [*(4, 4, 2)]
        monkeypatch.setattr(batches, "MAX_BYTES", 400)
        parts = list(batches.split([{"prompt": "x" * 100}] * 5, "/v1/completions"))
        assert [(part.start, part.end) for part in parts] == [(0, 2), (2, 4), (4, 5)]
        assert all(len(part.data) <= 400 for part in parts)


def test_a_killed_job_is_found_again(tmp_path):
    """Nothing is sent a second time, whatever the moment of the kill."""
    file = tmp_path / "job.json"
    code = """
        import sys
        from polyvec.llm.server import ServerLanguageModel
        model = ServerLanguageModel(
            sys.argv[1], "tiny", batch_file=sys.argv[2], batch_poll_s=0.02
        )
        model.generate(["row 1", "row 2"])
    """
    with OpenAIServer(polls=10**6) as server:
        command = [sys.executable, "-c", textwrap.dedent(code), server.url, str(file)]
        process = subprocess.Popen(command)
        while not file.exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()
        server.batches["batch_0"]["polls"] = 2
        for _ in range(2):
            found = model_of(server, file).generate(["row 1", "row 2"])
            assert [each.text for each in found] == ["answer to row 1", "answer to row 2"]
        assert len(server.batches) == 1


def test_another_job_needs_another_file(tmp_path):
    file = tmp_path / "job.json"
    with OpenAIServer() as server:
        model_of(server, file).generate(["row 1"])
        with pytest.raises(SettingsError, match="other prompts, settings or another server"):
            model_of(server, file).generate(["row 2"])
        with pytest.raises(SettingsError, match="other prompts, settings or another server"):
            model_of(server, file).generate(["row 1"], max_new_tokens=5)
        file.write_text("[]")
        with pytest.raises(DataError, match="does not hold the ids"):
            model_of(server, file).generate(["row 1"])
        with pytest.raises(SettingsError, match="schema_attempts"):
            model_of(server, file, schema_attempts=2)
        assert len(server.batches) == 1
        assert model_of(server, file).generate([]) == []


@pytest.mark.parametrize("status", ["failed", "expired"])
def test_batches_that_end_badly(tmp_path, status):
    file = tmp_path / "job.json"
    with OpenAIServer() as server:
        model_of(server, file).generate(["row 1", "row 2"])
        batch = server.batches["batch_0"]
        batch["status"], batch["errors"] = status, {"data": [{"message": f"line 1 of {KEY}"}]}
        out = server.files["batch_0-out"]
        first = out.splitlines()[0]
        again = first.replace(b"answer to", b"another answer to")
        server.files["batch_0-out"] = b"\n".join([first, again, b"half a li"])
        model = model_of(server, file)
        if status == "failed":
            with pytest.raises(GenerationError, match=r"failed: line 1 of \[key\]; delete .*job"):
                model.generate(["row 1", "row 2"])
            return
        with pytest.warns(AnswerWarning):
            found = model.generate(["row 1", "row 2"])
        assert found[0].error == "batch batch_0 expired before it was answered"
        assert found[1].text == "answer to row 2"


def test_servers_without_batches(tmp_path):
    with OpenAIServer(has_batches=False) as server:
        with pytest.raises(GenerationError, match="status 404"):
            model_of(server, tmp_path / "job.json").generate(["row 1"])
        assert not (tmp_path / "job.json").exists()


def test_a_batch_whose_reply_is_lost_is_not_sent_again(tmp_path):
    with OpenAIServer(loses_reply=True) as server:
        with pytest.raises(GenerationError, match=r"broke.*may have been made all the same"):
            model_of(server, tmp_path / "job.json").generate(["row 1"])
        assert len(server.batches) == 1
