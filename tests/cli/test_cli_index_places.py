"""polyvec index and search of places beyond a folder: URLs, and moves."""

import os

import pytest

from polyvec.cli import main

pytest.importorskip("lancedb", reason="needs the extra 'index'")
pytest.importorskip("qdrant_client", reason="needs the extra 'qdrant'")

pytestmark = pytest.mark.medium


def run(capsys, *command):
    status = main(list(command))
    return status or 0, *capsys.readouterr()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(
        '{"id": "a", "text": "a cat", "year": 2019}\n{"id": "b", "text": "a dog", "year": 2021}\n'
    )
    return str(path)


def test_an_index_by_url_and_its_move(capsys, tmp_path, tiny_bert, file):
    url, folder = f"qdrant://{tmp_path}/qdrant/texts", str(tmp_path / "folder")
    status, _, told = run(capsys, "index", url, file, "--model", str(tiny_bert))
    assert (status, "2 texts, 2 newly embedded" in told) == (0, True)
    status, out, _ = run(capsys, "search", url, "dog", "--words", "--filter", "year > 2020")
    assert status == 0
    assert "a dog" in out
    status, _, told = run(capsys, "index", "--from", url, "--to", folder)
    assert status == 0
    assert f"{folder}: 2 texts, 2 sent now, all compared; 2 searches of both agree" in told
    status, out, _ = run(capsys, "search", folder, "cat", "--words")
    assert "a cat" in out
    status, _, told = run(capsys, "index", "--from", folder, "--to", url)
    assert "0 sent now" in told


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["index", "--from", "x"], "--from and --to go together"),
        (["index", "--from", "x", "--to", "y", "z"], "read no FILE: z"),
        (["index"], "which index?"),
        (["search", "qdrant://127.0.0.1:9/texts", "q"], "127.0.0.1:9/texts: cannot be reached"),
        (["index", "qdrant://:sesame@127.0.0.1:9/texts", "{file}"], "QDRANT_API_KEY"),
        (["search", "qdrant://u:sesame@h/texts", "q"], "QDRANT_API_KEY"),
        (["search", "nosuch://u:sesame@h/texts", "q"], "no engine for 'nosuch'"),
        (["index", "--from", "redis://u:sesame@h/x", "--to", "y"], "no engine for 'redis'"),
    ],
)
def test_mistakes_are_one_line_without_secrets(capsys, tiny_bert, file, command, expected):
    command = [each.format(file=file) for each in command]
    status, out, told = run(capsys, *command)
    assert status == 2
    assert expected in told
    assert told.count("\n") == 1
    assert "sesame" not in out + told


def test_a_password_of_the_environment_is_not_told(capsys, monkeypatch):
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    monkeypatch.setitem(os.environ, "PGPASSWORD", "sesame")
    status, _, told = run(capsys, "search", "postgresql://me@127.0.0.1:9/x#texts", "q")
    assert status == 2
    assert "cannot be reached" in told
    assert "sesame" not in told
