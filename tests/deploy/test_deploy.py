"""The files of deploy/ say what polyvec understands, and the same in each of them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from polyvec.cli import parser

yaml = pytest.importorskip("yaml", reason="needs PyYAML")

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TEXTS = {path.name: path.read_text("utf-8") for path in DEPLOY.iterdir() if path.is_file()}
COMPOSE = yaml.safe_load(TEXTS["docker-compose.yml"])
KINDS = {each["kind"]: each for each in yaml.safe_load_all(TEXTS["kubernetes.yaml"])}
POD = KINDS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
RULES = [rule for group in yaml.safe_load(TEXTS["alerts.yml"])["groups"] for rule in group["rules"]]


def dockerfile(instruction: str) -> str:
    return re.findall(rf"^ *{instruction} (.*)$", TEXTS["Dockerfile"], re.M)[-1]


def calls() -> dict[str, list[str]]:
    """What follows `polyvec` in each file."""
    start = re.search(r"^ExecStart=\S+/polyvec (.*)$", TEXTS["polyvec.service"], re.M)
    return {
        "Dockerfile": yaml.safe_load(dockerfile("CMD")),
        "polyvec.service": shlex.split(start.group(1)),
        "kubernetes.yaml": CONTAINER["args"],
        "compose, polyvec": COMPOSE["services"]["polyvec"]["command"],
        "compose, index": COMPOSE["services"]["index"]["command"],
    }


@pytest.mark.parametrize("where", calls())
def test_every_option_exists(where):
    options = parser().parse_args(calls()[where])
    assert options.verb == calls()[where][0]
    if options.verb == "serve":
        assert options.port == 8000
        # From another machine or container only with keys; the bare image says so when it starts.
        assert options.host == "127.0.0.1" or options.api_key_file or where == "Dockerfile"


def test_ports_paths_and_users_are_the_same_everywhere():
    assert dockerfile("EXPOSE") == "8000"
    assert "127.0.0.1:8000/health" in TEXTS["Dockerfile"]
    assert COMPOSE["services"]["polyvec"]["ports"] == ["127.0.0.1:8000:8000"]
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": 8000}]
    assert KINDS["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    annotations = KINDS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8000"
    scraped = yaml.safe_load(TEXTS["prometheus.yml"])["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
    assert scraped["metrics_path"] == annotations["prometheus.io/path"] == "/metrics"
    assert POD["securityContext"]["runAsUser"] == int(dockerfile("USER")) == 10001
    keys = next(each for each in CONTAINER["args"] if each.startswith("--api-key-file="))
    (mount,) = (each for each in CONTAINER["volumeMounts"] if each["name"] == "keys")
    assert keys == f"--api-key-file={mount['mountPath']}/keys"
    (secret,) = COMPOSE["secrets"]
    assert f"--api-key-file=/run/secrets/{secret}" in COMPOSE["services"]["polyvec"]["command"]
    index = next(each for each in calls()["compose, polyvec"] if each.startswith("--index="))
    assert index == f"--index={calls()['compose, index'][1]}"
    for kind in ("Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"):
        assert KINDS[kind]["metadata"]["name"] == KINDS["Deployment"]["metadata"]["name"]
    labels = KINDS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == KINDS["Service"]["spec"]["selector"]


def test_a_server_that_ends_has_time_to_answer():
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    from polyvec.serve.listening import GRACE

    assert POD["terminationGracePeriodSeconds"] > GRACE
    assert COMPOSE["services"]["polyvec"]["stop_grace_period"] == "70s"
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", TEXTS["polyvec.service"], re.M)
    assert int(stop_s) > GRACE


def test_probes_are_routes_and_metrics_are_counted():
    pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    from polyvec.serve import routes
    from polyvec.serve.metrics import Metrics
    from polyvec.serve.settings import ServerSettings

    source = Path(routes.__file__).read_text("utf-8")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert f'@app.get("{CONTAINER[probe]["httpGet"]["path"]}"' in source
    counted = {each.name: each for each in Metrics().registry.collect()}
    said = [rule["expr"] for rule in RULES]
    (metric,) = KINDS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    said.append(metric["pods"]["metric"]["name"])
    names = {name for each in said for name in re.findall(r"polyvec_\w+", each)}
    assert len(names) >= 5
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in names} <= set(counted)
    # More pods before any of them refuses.
    target = int(metric["pods"]["target"]["averageValue"])
    assert target < ServerSettings().max_queued_tokens


def test_alerts_are_explained():
    explained = (DEPLOY.parent / "docs" / "deploy.md").read_text("utf-8")
    for rule in RULES:
        assert f"`{rule['alert']}`" in explained
        assert rule["annotations"]["summary"]
    tested = {
        each["alertname"]
        for each in yaml.safe_load(TEXTS["alerts.test.yml"])["tests"][0]["alert_rule_test"]
    }
    assert tested <= {rule["alert"] for rule in RULES}


def test_images_are_pinned_and_nothing_runs_as_root():
    assert dockerfile("USER") != "0"
    for text in re.findall(r"^FROM (\S+)|^ *image: (\S+)", TEXTS["Dockerfile"], re.M):
        assert ":" in "".join(text)
    assert re.fullmatch(r"qdrant/qdrant:v\d+\.\d+\.\d+", COMPOSE["services"]["qdrant"]["image"])
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert POD["securityContext"]["runAsNonRoot"]
    # The index's key is asked for, never written down.
    assert not re.search(r"API_KEY: *[\w]", TEXTS["docker-compose.yml"])


def tool(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.medium
def test_promtool_agrees():
    tool("promtool", "check", "config", "prometheus.yml")
    tool("promtool", "test", "rules", "alerts.test.yml")


@pytest.mark.medium
def test_systemd_agrees(tmp_path):
    """With another program, as systemd looks for it."""
    unit = re.sub(r"/opt/polyvec/bin/polyvec", "/usr/bin/env", TEXTS["polyvec.service"])
    (tmp_path / "polyvec.service").write_text(unit)
    tool("systemd-analyze", "verify", str(tmp_path / "polyvec.service"))
