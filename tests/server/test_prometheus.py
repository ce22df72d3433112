"""A real Prometheus scrapes a real server: every number arrives, and promtool has nothing to say about our names."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.client import CallFailed, Client
from tests.server.rpc.test_typed import TEXT, picture
from tests.serving import served

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed")

PATIENCE_S = 60
OWN = ("job", "instance")  # labels that Prometheus adds


@pytest.fixture(scope="module")
def busy(artifacts):
    """A server that had some traffic, and has none any more."""
    with served(artifacts, "--models", "tiny-bert,tiny-gpt,tiny-vit") as running, Client(running.target) as client:
        client.fill_mask([TEXT, TEXT], model="tiny-bert")
        client.classify_image([picture()])
        list(client.generate("A list is", max_tokens=8))
        with pytest.raises(CallFailed):
            client.fill_mask([""], model="tiny-bert")
        yield running


def exposed(server):
    """(name, labels) → value, as the server says."""
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


@contextmanager
def prometheus(target, directory):
    """The address of a Prometheus that scrapes the target often."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"job_name": "affinity", "scrape_interval": "200ms", "static_configs": [{"targets": [target]}]}
    config = directory / "prometheus.yml"
    config.write_text(json.dumps({"scrape_configs": [{**job, "scrape_timeout": "200ms"}]}))  # JSON is YAML
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


def stored(address):
    """(name, labels) → value, as Prometheus has it; nothing while it is starting."""
    query = urllib.parse.urlencode({"query": '{job="affinity"}'})
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}") as answer:
            results = json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return {}
    found = {}
    for result in results:
        labels = {key: value for key, value in result["metric"].items() if key not in OWN}
        found[labels.pop("__name__"), frozenset(labels.items())] = float(result["value"][1])
    return found


def canonical(samples):
    """Prometheus writes the bounds of buckets in its own way: 1e-05 as 1e-05, 1.0 as 1."""
    return {
        (name, frozenset((key, float(value) if key == "le" else value) for key, value in labels)): number
        for (name, labels), number in samples.items()
    }


def test_every_number_arrives(busy, tmp_path):
    expected = canonical(exposed(busy))
    with prometheus(busy.url("").removeprefix("http://"), tmp_path) as address:
        deadline = time.monotonic() + PATIENCE_S
        found: dict = {}
        while not expected.items() <= found.items() and time.monotonic() < deadline:
            found = canonical(stored(address))
    assert {key: found.get(key) for key in expected} == expected
    assert len(expected) > 300


def test_promtool_finds_no_fault_with_our_own_names(busy):
    with urllib.request.urlopen(busy.url("/metrics")) as answer:
        text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    # Triton's names must be spelled as Triton spells them.
    assert [line for line in complaints if not line.startswith("nv_inference_")] == []
