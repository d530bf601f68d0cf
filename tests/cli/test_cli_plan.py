"""polyvec plan: a table, JSON, and one line for what makes no plan."""

import json

import pytest

EXAMPLE = ("plan", "--documents", "1e9", "--tokens", "200", "--gpus", "64", "--precision", "int8")


def test_the_billion(run):
    done = run(*EXAMPLE)
    assert done.status == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert rows[0] == ["what", "number", "basis", "from"]
    assert all(len(row) == 4 for row in rows)
    assert {row[2] for row in rows[1:]} <= {"measured", "extrapolated", "calculated", "given"}
    found = json.loads(run(*EXAMPLE, "--json", "--price-gpu-hour", "2.5").out)
    lines = {line["key"]: line for line in found["lines"]}
    assert found["wanted"]["documents"] == 10**9
    assert lines["price"]["value"] == pytest.approx(2.5 * lines["device_hours"]["value"])
    assert lines["vectors_gb"]["value"] > 384
    assert lines["engine"]["value"] in ("Qdrant", "Milvus", "PostgreSQL")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--documents", "0"), "'0' is not a positive number"),
        (("--documents", "1.5"), "'1.5' is not a whole number"),
        (("--documents", "inf"), "'inf' is not a positive number"),
        (("--tokens", "-3"), "'-3' is not a positive number"),
        (("--tokens", "9000"), "more than the 256 that all-MiniLM-L6-v2 reads"),
        (("--precision", "int4"), "unknown precision 'int4'"),
        (("--model", "gpt"), "no figures of 'gpt'"),
        (("--gpus", "0"), "'0' is not a positive integer"),
        (("--cores", "4"), "not allowed with argument --gpus"),
        (("--truncate-dim", "385"), "more than the 384 dimensions"),
        (("--price-core-hour", "1"), "the plan has no cores"),
    ],
)
def test_a_mistake_is_one_line(run, changed, says):
    done = run(*EXAMPLE, *changed)
    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_devices_are_asked_for(run):
    done = run("plan", "--documents", "5", "--tokens", "5")
    assert (done.status, "one of the arguments --gpus --cores is required" in done.err) == (2, True)
