"""tools/bench ca: its sides make the same certificate, wrong answers are counted, and it runs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import bench_ca
import pytest
from cryptography import x509
from stand import Stand

from services.ca.issue import issue
from services.ca.keys import KeyType
from services.ca.profiles import SERVER
from services.ca.request import parse_csr

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files() -> Iterator[bench_ca.Files]:
    """An authority in a directory, without any server."""
    stand = Stand()
    try:
        yield bench_ca.Files(stand, KeyType.P256)
    finally:
        stand.close()


def test_the_loop_makes_the_services_certificate(files: bench_ca.Files) -> None:
    """The same extensions with the same octets in the same order, and the same validity."""
    (wish,) = bench_ca.wishes(KeyType.P256, 1)
    loop = bench_ca.Loop(files)
    made = loop.read(loop.make(wish.csr))
    assert made is not None
    ours = issue(SERVER, parse_csr(wish.csr), files.issuer, now=made.not_valid_before_utc)
    assert list(made.extensions) == list(ours.extensions)
    assert made.subject == ours.subject
    lifetime = made.not_valid_after_utc - made.not_valid_before_utc
    assert lifetime == ours.not_valid_after_utc - ours.not_valid_before_utc


def test_wrong_answers_are_not_accepted(files: bench_ca.Files) -> None:
    """Another's key or name, another authority's signature, and no certificate at all."""
    wish, other = bench_ca.wishes(KeyType.P256, 2)
    loop = bench_ca.Loop(files)
    made = x509.load_pem_x509_certificate(loop.make(wish.csr))
    assert bench_ca.accepted(made, wish, files) is made
    assert bench_ca.accepted(made, other, files) is None
    assert bench_ca.accepted(made, replace(wish, name="x.example.com"), files) is None
    assert bench_ca.accepted(None, wish, files) is None
    stranger = bench_ca.Files(files.stand, KeyType.P384)
    assert bench_ca.accepted(made, wish, stranger) is None


def test_wishes_differ() -> None:
    """Each has its own name; an ECDSA one its own key too."""
    ecdsa = bench_ca.wishes(KeyType.P256, 20)
    rsa = bench_ca.wishes(KeyType.RSA2048, 10)
    assert len({wish.name for wish in ecdsa + rsa}) == 30
    assert len({wish.key for wish in ecdsa}) == 20
    assert len({wish.key for wish in rsa}) == bench_ca.RSA_KEYS


class Echo(BaseHTTPRequestHandler):
    """Answers with the body it got."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("keep", [True, False])
def test_answers_come_in_the_order_of_the_requests(keep: bool) -> None:
    """Whichever connection they came over, kept or not."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        sent = [bench_ca.post("/x", [], b"body %d" % number) for number in range(100)]

        def dial() -> bench_ca.socket.socket:
            return bench_ca.socket.create_connection(server.server_address[:2])

        answers = bench_ca.ask_all(dial, sent, keep=keep)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [each.partition(b"\r\n\r\n")[2] for each in answers] == [
        b"body %d" % number for number in range(100)
    ]


def test_the_ratios_are_of_the_same_round() -> None:
    """CPU of the peer by ours, within a round; the median of the rounds."""

    def turns(cpu: float) -> bench_ca.Turns:
        return bench_ca.Turns([None] * 10, cpu=cpu, seconds=1.0, client_cpu=0.001)

    measured = bench_ca.Measured(
        [
            {"ours": turns(ours), "loop": turns(loop), "cfssl": turns(cfssl)}
            for ours, loop, cfssl in ((2, 1, 3), (4, 3, 2), (10, 1, 10))
        ]
    )
    results = bench_ca.results_of("p256", measured)
    assert results["ca.issue.p256.loop_ratio"] == 0.5
    assert results["ca.issue.p256.cfssl_ratio"] == 1.0
    assert results["ca.issue.p256.cpu_us"] == 400_000
    assert results["ca.issue.p256.rate"] == 10


def test_less_cpu_than_can_be_counted_is_one_step() -> None:
    """A round too small for the kernel's clock gives a number, not a division by zero."""
    turns = bench_ca.Turns([None], cpu=0.0, seconds=1.0)
    assert turns.cpu_us == 1e6 / bench_ca.TICKS


@pytest.mark.e2e
def test_bench_ca_runs(tmp_path: Path) -> None:
    """A small run on real servers: no error, every number there and documented."""
    output = tmp_path / "bench.json"
    output.write_text('{"other.part": 1.5}')
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "tools" / "bench", "ca", "--output", output),
            *("--certificates", "20", "--rounds", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["other.part"] == 1.5
    assert results["ca.issue.errors"] == 0, done.stdout
    for name in ("p256.loop_ratio", "p256.cfssl_ratio", "rsa2048.cfssl_ratio", "p256.cpu_us"):
        assert results[f"ca.issue.{name}"] > 0
    assert "certificates per CPU second" in done.stdout
    documented = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in results:
        key = re.sub(r"\.(p256|rsa2048)\.(?:loop\.|cfssl\.)?", ".ALG.", name)
        assert key == "other.part" or f"`{key}`" in documented, name
