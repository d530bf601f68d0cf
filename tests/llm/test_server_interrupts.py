"""Ctrl-C, kills and abandoned streams leave no requests behind and no noise."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest
from openai_server import OpenAIServer

pytest.importorskip("openai", reason="needs the extra 'llm'")


def run(code, server, interrupt_after=None):
    """Runs code with every warning as an error; the exit status and stderr."""
    command = [sys.executable, "-W", "default", "-c"]
    command += [textwrap.dedent(code), server.url]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    took_s = 0.0
    if interrupt_after is not None:
        for line in process.stdout:
            if line.strip() == interrupt_after:
                break
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        took_s = time.monotonic() - began
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, took_s


@pytest.mark.medium
def test_ctrl_c_ends_at_once():
    code = """
        import sys
        from polyvec.llm.server import ServerLanguageModel
        model = ServerLanguageModel(sys.argv[1])
        rows = ["row 0", *(f"row {number} ! drip ..." for number in range(100))]
        for number, completion in model.stream(rows):
            print("answered", flush=True)
    """
    with OpenAIServer() as server:
        status, errors, took_s = run(code, server, "answered")
        assert status in (-signal.SIGINT, 130), errors
        assert took_s < 3
        assert errors.strip().endswith("KeyboardInterrupt")
        assert "never retrieved" not in errors and "ResourceWarning" not in errors
        sent = len(server.posts())
        time.sleep(0.3)
        assert len(server.posts()) == sent <= 9


@pytest.mark.medium
def test_an_abandoned_stream_is_quiet():
    code = """
        import gc, sys, threading
        from polyvec.errors import GenerationError
        from polyvec.llm.server import ServerLanguageModel
        model = ServerLanguageModel(sys.argv[1])
        stream = model.stream(["row 0", *(f"row {number} ! slow" for number in range(100))])
        next(stream)
        del stream
        try:
            ServerLanguageModel(sys.argv[1], "other").generate(["1"])
        except GenerationError as error:
            assert error.__cause__ is None and error.__context__ is None
        gc.collect()
        assert threading.active_count() == 1, threading.enumerate()
    """
    with OpenAIServer() as server:
        status, errors, _ = run(code, server)
        assert status == 0, errors
        assert errors == ""
