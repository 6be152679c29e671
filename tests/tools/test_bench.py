"""tools/bench: its storm is a real boot's, its results' file is shared, and it runs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import bench_client
import bench_main
import bench_metadata
import pytest
from bench_client import Client, Outcome, Request

from services.metadata.model import Instance
from services.metadata.pages import Settings
from services.metadata.tree import Tree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree() -> Tree:
    """The tree of one instance of the storm."""
    return Tree(Instance.from_document(bench_metadata.document(7, "host-1")), Settings())


def test_the_boot_asks_what_cloud_init_asks(tree: Tree) -> None:
    """The version list twice, the documents, then the EC2 tree, directories before leaves."""
    paths = bench_metadata.boot_paths(tree)
    assert paths[:8] == [
        "/openstack",
        "/openstack",
        "/openstack/2018-08-27/meta_data.json",
        "/openstack/2018-08-27/user_data",
        "/openstack/2018-08-27/vendor_data.json",
        "/openstack/2018-08-27/vendor_data2.json",
        "/openstack/2018-08-27/network_data.json",
        "/latest/meta-data/",
    ]
    keys = paths.index("/latest/meta-data/public-keys/")
    assert paths[keys + 1] == "/latest/meta-data/public-keys/0/openssh-key"
    assert keys < paths.index("/latest/meta-data/ami-id")


def test_the_boot_expects_404_for_what_is_not_there(tree: Tree) -> None:
    """Vendor data that nobody gave is 404; everything that a listing names is 200."""
    asks = bench_metadata.booter(tree.instance, Settings()).asks
    missing = [path for path, status, _ in asks if status == b"404"]
    assert missing == [
        "/openstack/2018-08-27/vendor_data.json",
        "/openstack/2018-08-27/vendor_data2.json",
    ]


def test_instances_differ() -> None:
    """Each has its own id, address, MAC and key."""
    documents = [bench_metadata.document(number, "host-1") for number in range(300)]
    assert len({document["id"] for document in documents}) == 300
    assert len({document["interfaces"][0]["mac"] for document in documents}) == 300
    assert len({document["keys"][0]["data"] for document in documents}) == 300


def test_results_are_merged(tmp_path: Path) -> None:
    """A part replaces its own numbers and keeps those of others; a broken file is made anew."""
    path = tmp_path / "build" / "bench.json"
    bench_main.merge(path, {"a.b": 1.0})
    bench_main.merge(path, {"c.d": 2.0})
    bench_main.merge(path, {"a.b": 3.0})
    assert json.loads(path.read_text()) == {"a.b": 3.0, "c.d": 2.0}
    path.write_text("{")
    bench_main.merge(path, {"e": 4.0})
    assert json.loads(path.read_text()) == {"e": 4.0}
    assert [file.name for file in path.parent.iterdir()] == ["bench.json"]


class Answers(BaseHTTPRequestHandler):
    """Answers 200 with the path, 404 below /missing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(404 if self.path.startswith("/missing") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class _Plain:
    """In place of a TLS context, to test the storm without certificates."""

    @staticmethod
    def wrap_socket(plain: object, server_hostname: str) -> object:
        del server_hostname
        return plain


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Four connections to a small HTTP server."""
    monkeypatch.setattr(bench_client.ssl, "SSLWantReadError", BlockingIOError)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = ("127.0.0.1", server.server_address[1])
    with Client(address, _Plain(), "x", 4) as client:  # type: ignore[arg-type]  # a stand-in
        yield client
    server.shutdown()
    server.server_close()
    thread.join()


def ask(path: str, status: bytes = b"200", holds: bytes = b"") -> Request:
    return Request(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), status, holds)


def test_a_storm_asks_everything_once_and_counts_what_is_wrong(client: Client) -> None:
    """Each request is answered once; a wrong status and another's body are errors, by path."""
    boots = [
        [ask(f"/{boot}/{step}", holds=b"/%d/" % boot) for step in range(5)] for boot in range(9)
    ]
    boots.append([ask("/missing", b"404"), ask("/missing/1"), ask("/x", holds=b"another")])
    outcome = client.storm(boots, at_once=6)
    assert (len(outcome.latencies), len(outcome.lengths)) == (48, 48)
    assert len(outcome.errors) == 2
    assert "'/missing/1': b'HTTP/1.1 404" in outcome.errors[0] + outcome.errors[1]
    assert "'/x': another's body" in outcome.errors[0] + outcome.errors[1]
    assert outcome.rate > 0


def test_percentiles() -> None:
    """The time within which the share of answers came."""
    outcome = Outcome(seconds=1.0, latencies=[value / 100 for value in range(100, 0, -1)])
    assert (outcome.percentile(0.5), outcome.percentile(0.99)) == (0.51, 1.0)
    assert outcome.rate == 100


@pytest.mark.e2e
def test_bench_runs(tmp_path: Path) -> None:
    """A small storm on a real stand: no error, every number there, nothing left running."""
    output = tmp_path / "bench.json"
    output.write_text('{"other.part": 1.5}')
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "tools" / "bench", "metadata", "--output", output),
            *("--instances", "20", "--rounds", "1", "--workers", "2", "--connections", "8"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["other.part"] == 1.5
    assert results["metadata.storm.errors"] == 0
    assert all(isinstance(value, float) for value in results.values())
    for name in ("rate_ratio", "p99_ratio", "cpu_us"):
        assert results[f"metadata.storm.{name}"] > 0
    assert "CPU us a request, workers" in done.stdout
    documented = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in results:
        key = re.sub(r"\.(new|again|trivial)\.", ".", name)
        assert key == "other.part" or f"`{key}`" in documented, name
