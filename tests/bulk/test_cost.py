"""Plans: values by hand, figures that agree with docs/results, and a prediction that holds."""

import json
from pathlib import Path

import pytest

from polyvec.bulk import cost as costs
from polyvec.bulk.cost import Wanted, cost, held, token_rate
from polyvec.bulk.figures import Curve, Figure, Figures, Model, figures
from polyvec.errors import SettingsError

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def measured(value):
    return Figure(value, "measured", "by hand")


def curve(*points, form="power"):
    return Curve(points, form, "by hand")


BY_HAND = Figures(
    {
        "small": Model("small", 10, 100, 512, {"gpu": measured(1000.0)}),
        "large": Model("large", 1000, 400, 512, {"gpu": measured(10.0), "core": measured(2.0)}),
        "tiny": Model("tiny", 1, 100, 512, {}),
        "middle": Model("middle", 100, 100, 512, {}),
        "huge": Model("huge", 4000, 100, 512, {}),
    },
    {
        "folder_build_s": curve((1e5, 10.0), (1e6, 100.0)),
        "folder_query_s": curve((1e5, 0.01), (1e6, 0.02)),
        "folder_bytes": curve((1e5, 1e8), (1e6, 1e9)),
        "folder_peak_bytes": curve((1e5, 1e9), (1e6, 2e9)),
        "graph_build_s": curve((1e5, 20.0), (1e6, 400.0)),
        "graph_query_s": curve((1e5, 0.001), (1e6, 0.002)),
    },
    {
        "ray_s_per_block": measured(9.0),
        "bytes_per_row_beside": measured(20.0),
        "graph_bytes_per_vector": measured(128.0),
        "store_dimension": measured(200.0),
    },
)


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(costs, "figures", lambda: BY_HAND)


def values(**wanted):
    return {line.key: line.value for line in cost(Wanted(**wanted))}


def test_a_plan_by_hand(by_hand):
    found = values(
        documents=1_000_000,
        tokens=36,
        gpus=10,
        model="small",
        precision="int8",
        price_device_hour=2.0,
    )
    # 36e6 tokens at 10 x 1,000 a second are an hour, 20 blocks of 9 s another 0.05.
    assert found["embed_hours"] == pytest.approx(1.05)
    assert found["device_hours"] == pytest.approx(10.5)
    assert found["price"] == pytest.approx(21.0)
    assert found["blocks"] == 20
    assert found["vectors_gb"] == pytest.approx(1e6 * (100 + 20) / 1e9)
    # The folder holds a million: half as wide as the one that was measured.
    assert found["engine"] == "folder"
    assert found["memory_gb"] == pytest.approx(1.0)
    assert found["store_gb"] == pytest.approx(0.5)
    assert found["build_hours"] == pytest.approx(50 / 16 / 3600)
    assert found["queries_per_s"] == pytest.approx(16 / 0.01)


@pytest.mark.parametrize(
    ("precision", "memory"),
    [("float32", 400), ("int8", 100), ("binary", 13), ("ubinary", 13), ("uint8", 100)],
)
def test_memory_of_servers_by_hand(by_hand, precision, memory):
    wanted = Wanted(documents=10**9, tokens=1, gpus=1, model="small", precision=precision)
    found = {each.engine: each for each in held(wanted, 100)}
    assert set(found) == {"Qdrant", "Milvus", "PostgreSQL"}  # no folder holds a billion
    assert found["Qdrant"].memory == pytest.approx(1e9 * (memory + 128))
    assert found["Milvus"].memory == pytest.approx(1e9 * (400 + 128))
    half = 400 if precision == "float32" else 200
    assert found["PostgreSQL"].memory == pytest.approx(1e9 * (half + 128))
    # 80 % of 64 GB a machine.
    assert found["Qdrant"].machines == -(-(memory + 128) * 10 // 512)


def test_shards_share_the_work_of_building_and_each_answers_every_query(by_hand):
    found = values(documents=10**9, tokens=1, gpus=1, model="small", machine_gb=660.0)
    # 528 GB in machines of 528 usable: one shard; ten times smaller ones hold a tenth each.
    assert found["qdrant_machines"] == 1
    split = values(documents=10**9, tokens=1, gpus=1, model="small", machine_gb=66.0)
    assert split["qdrant_machines"] == 10
    # Ten times the rows of a graph take twenty times as long to build, twice as long to search.
    assert found["build_hours"] / split["build_hours"] == pytest.approx(20.0)
    assert split["queries_per_s"] / found["queries_per_s"] == pytest.approx(2.0)


def test_rates_of_models_that_were_not_timed(by_hand):
    models = BY_HAND.models
    assert token_rate(models["small"], "gpu") == measured(1000.0)
    assert token_rate(models["tiny"], "gpu").value == 1000.0
    assert token_rate(models["middle"], "gpu").value == pytest.approx(100.0)
    assert token_rate(models["huge"], "gpu").value == pytest.approx(2.5)
    assert token_rate(models["huge"], "core").value == pytest.approx(0.5)
    assert token_rate(models["huge"], "core").basis == "extrapolated"
    assert token_rate(models["huge"], "core", 7.0) == Figure(7.0, "given", "--tokens-per-second")


def test_a_curve_goes_through_its_points():
    found = curve((10, 1.0), (100, 10.0), (1000, 1000.0))
    assert (found.at(100).value, found.at(100).basis) == (10.0, "measured")
    # Logarithms 0, 1, 3 at 1, 2, 3: a slope of 1.5 through (2, 4/3).
    assert found.at(10_000).value == pytest.approx(10 ** (4 / 3 + 3))
    assert found.at(10_000).basis == "extrapolated"
    assert found.at(1000, below=1000).value == pytest.approx(100)
    line = curve((10, 5.0), (20, 6.0), (1000, 104.0), form="line")
    assert line.at(120, below=1000).value == pytest.approx(16)  # 4, and a tenth of each row
    assert line.at(2000).value == pytest.approx(204)
    assert line.at(1).value == pytest.approx(4.1)


def test_what_makes_no_plan_is_refused(by_hand):
    plain = {"documents": 10, "tokens": 5, "gpus": 1, "model": "small"}
    for changed, says in (
        ({"documents": 0}, "--documents: 0 is not a positive number"),
        ({"tokens": float("nan")}, "--tokens: nan is not a positive"),
        ({"tokens": 513}, "more than the 512 that small reads"),
        ({"precision": "int4"}, "unknown precision 'int4'. Did you mean 'int8'"),
        ({"model": "smal"}, "no figures of 'smal'.*Did you mean 'small'"),
        ({"gpus": 0}, "either --gpus N or --cores N"),
        ({"cores": 3}, "either --gpus N or --cores N"),
        ({"dimension": 101}, "more than the 100 dimensions"),
        ({"machine_gb": -1.0}, "--machine-gb"),
        ({"tokens_per_s": float("inf")}, "--tokens-per-second"),
    ):
        with pytest.raises(SettingsError, match=says):
            cost(Wanted(**{**plain, **changed}))


# ---- the figures of the package -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["bulk_s", "bulk_bytes", "folder_build_s", "folder_bytes"],
)
def test_a_million_rows_are_predicted_from_a_hundred_thousand(name):
    """Within 25 %, by the points up to 10^5 alone."""
    found = figures().curves[name]
    predicted = found.at(1e6, below=1e6).value
    assert predicted == pytest.approx(dict(found.points)[1e6], rel=0.25)


def test_figures_are_those_of_the_results():
    bulk = json.loads((RESULTS / "bulk-million.json").read_text())
    kinds = json.loads((RESULTS / "index-kinds.json").read_text())["sizes"]
    expected = {
        "bulk_s": {n: bulk["sizes"][n]["cpu_s"] for n in bulk["sizes"] if n.isdecimal()},
        "bulk_bytes": {n: bulk["sizes"][n]["bytes"] for n in bulk["sizes"] if n.isdecimal()},
        "folder_build_s": {n: each["build_cpu_s"] for n, each in kinds["folder"].items()},
        "folder_query_s": {n: each["query_cpu_ms"] / 1e3 for n, each in kinds["folder"].items()},
        "folder_bytes": {n: each["disk_mb"] * 2**20 for n, each in kinds["folder"].items()},
        "folder_peak_bytes": {n: each["peak_gib"] * 2**30 for n, each in kinds["folder"].items()},
        "graph_build_s": {n: each["build_cpu_s"] for n, each in kinds["graph"].items()},
        "graph_query_s": {n: each["query_cpu_ms"] / 1e3 for n, each in kinds["graph"].items()},
    }
    assert set(expected) == set(figures().curves)
    for name, points in expected.items():
        for rows, value in figures().curves[name].points:
            assert value == pytest.approx(points[f"{rows:.0f}"], rel=0.01), (name, rows)


def test_every_figure_names_its_source():
    found = figures()
    sources = [each.source for each in found.numbers.values()]
    sources += [each.source for each in found.curves.values()]
    sources += [
        rate.source for each in found.models.values() for rate in each.tokens_per_s.values()
    ]
    assert all("2026-" in each and len(each) > 20 for each in sources)
