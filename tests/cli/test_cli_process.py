"""The program as a real process: pipes, signals, closed streams, full disks, imports."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

# Each test starts Python and torch anew, a second or two.
pytestmark = pytest.mark.medium

RECIPE = """
[system]
name = "R"
paper = "none"
tasks = ["similarity"]
[embedder]
backbone = "no/such"
pooling = "mean"
"""
MODULES = "import sys; from polyvec.cli import main; main({}); print('torch' in sys.modules)"


def write_recipe(path, comment: str) -> None:
    path.write_text(comment + RECIPE, encoding="utf-8")


# ---- the program --------------------------------------------------------------------------------


def test_the_first_example_runs_in_a_real_pipe(shell):
    done = shell("echo 'a cat' | polyvec embed --truncate-dim 4")
    assert (done.status, done.err) == (0, "")
    assert len(json.loads(done.out)["embedding"]) == 4


@pytest.mark.parametrize(
    "arguments", ["['--help']", "['recipes', 'list']", "['embed', 'gone.txt']"]
)
def test_what_needs_no_model_imports_no_torch(arguments):
    done = subprocess.run(
        [sys.executable, "-c", MODULES.format(arguments)], capture_output=True, text=True
    )
    assert done.stdout.endswith("False\n"), done.stderr


def test_python_dash_m_is_the_program(shell):
    script, module = shell("polyvec --version"), shell(f"{sys.executable} -m polyvec --version")
    assert script == module
    assert re.fullmatch(r"polyvec \d+\.\d+\.\d+\n", script.out)
    assert shell(f"{sys.executable} -m polyvec embed gone.txt").status == 2


# ---- streams ------------------------------------------------------------------------------------


def test_a_broken_pipe_is_one_line(shell, tiny_bert, tmp_path):
    (tmp_path / "x.txt").write_text("a cat\n" * 9000)
    done = shell(
        f"polyvec embed x.txt --model {tiny_bert} | head -1 > out; exit ${{PIPESTATUS[0]}}"
    )
    assert done.status == 141
    assert done.err == "polyvec: standard output was closed by its reader\n"
    assert len(json.loads((tmp_path / "out").read_text())["embedding"]) == 32


def test_help_into_a_broken_pipe_is_silent_or_one_line(shell):
    done = shell("polyvec --help | true; exit ${PIPESTATUS[0]}")
    assert done.status in (0, 141)
    assert done.err in ("", "polyvec: standard output was closed by its reader\n")


def test_a_full_standard_output_is_one_line(shell, one_line):
    printed = one_line(shell("polyvec recipes list > /dev/full"))
    assert printed == "polyvec: standard output: no space left on the device\n"


def test_closed_streams(shell, one_line):
    printed = one_line(shell("polyvec embed <&-"))
    assert printed == "polyvec: no FILE, and standard input is closed\n"
    assert one_line(shell("polyvec recipes list >&-")) == "polyvec: standard output is closed\n"
    silent = shell("polyvec embed gone.txt 2>&-")
    assert (silent.status, silent.out, silent.err) == (2, "", "")


def test_output_is_utf8_whatever_the_locale(shell, tmp_path):
    write_recipe(tmp_path / "r.toml", "# 漢字\n")
    done = shell("polyvec recipes show r.toml", PYTHONIOENCODING="ascii")
    assert (done.status, done.out.splitlines()[0]) == (0, "# 漢字")


# ---- ends ---------------------------------------------------------------------------------------


def started(environment, folder, *arguments):
    return subprocess.Popen(
        [shutil.which("polyvec", path=environment["PATH"]), *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_embed_leaves_the_old_file(environment, tmp_path, tiny_bert, end):
    """Input that never ends; the signal comes when the new file has been begun beside the old."""
    (tmp_path / "x.npy").write_bytes(b"old")
    process = started(environment, tmp_path, "embed", "--model", str(tiny_bert), "-o", "x.npy")
    process.stdin.write("a cat\n" * 10_000)
    process.stdin.flush()
    until = time.monotonic() + 120
    while not any(p.stat().st_size > 1000 for p in tmp_path.glob(".x.npy.*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(end)
    process.wait(30)
    err = process.stderr.read()
    assert (tmp_path / "x.npy").read_bytes() == b"old"
    assert (process.returncode, err.count("\n")) == (130, 1)
    assert err.startswith("polyvec: interrupted")
    # Vectors are kept for the next run, which goes on from them.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.npy.pending", "x.npy"]
