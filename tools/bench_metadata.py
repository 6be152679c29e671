"""The boot storm: many instances boot at the same time, and each asks what cloud-init asks.

Real parts throughout: the files of etc/, NGINX with mutual TLS, gunicorn, SQLite. Ours and a
trivial application take turns behind the same NGINX at the same socket, with the same gunicorn
settings and the same requests, so that only the application differs.
"""

import base64
import contextlib
import os
import secrets
import sqlite3
import ssl
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench_client import Client, Outcome, Request
from stand import LOOPBACK, METADATA_NAME, Process, Stand, StandError, free_port, wait_for

from services.core.database import Database
from services.core.signature import host_key, load_secrets, message_v2, sign_v2
from services.metadata.model import Instance
from services.metadata.pages import Page, Settings
from services.metadata.store import Store, Stored
from services.metadata.tree import Tree

AT_ONCE = 200
"""Instances that boot at the same time; then it is the other application's turn."""

WARM_UP = 40
"""Instances outside the storm that boot before it: interpreters and connections settle."""

SIGNED_SECONDS = 30
"""Older requests are signed anew: the services accept a signature for 60 s."""

VERSION = "2018-08-27"
"""The newest OpenStack version that cloud-init knows."""

TREE = "/latest/meta-data/"
PROJECTS = 20
NETWORK = "b1e1e6a2-53e3-4a5c-a5a4-0d6f3f4b6c10"
TICKS = os.sysconf("SC_CLK_TCK")
SETTLED_SECONDS = 0.3
START_SECONDS = 60.0


@dataclass(frozen=True)
class Booter:
    """An instance of the storm: who it is to its host's proxy, and what it will ask for."""

    id: str
    project_id: str
    address: str
    asks: Sequence[tuple[str, bytes, bytes]]
    """Path, status expected, and what the body must hold (or b"")."""
    lengths: Sequence[int]
    """Bytes of each body with status 200."""


# ---- the instances -----------------------------------------------------------------------------


def document(number: int, host: str) -> dict[str, Any]:
    """An ordinary instance: an interface, a key, 2 KB of user data, some properties."""
    instance_id = str(uuid.UUID(int=secrets.randbits(128), version=4))
    address = IPv4Address("10.64.0.10") + number
    script = "\n".join(
        f"  - [sh, -c, 'echo step {step} of {instance_id} >> /var/log/boot.log']"
        for step in range(24)
    )
    user_data = f"#cloud-config\npackages: [nginx, curl]\nruncmd:\n{script}\n"
    key = base64.b64encode(secrets.token_bytes(279)).decode()
    return {
        "id": instance_id,
        "project_id": f"project-{number % PROJECTS}",
        "name": f"web-{number}",
        "host": host,
        "instance_type": "m1.small",
        "image_id": "7c2c9d8e-6f0a-4d51-9a3e-51f1a4f7c001",
        "keys": [{"name": "deploy", "data": f"ssh-rsa {key} deploy@example.org"}],
        "properties": {"role": "web", "tier": "front", "owner": "team-17"},
        "user_data": base64.b64encode(user_data.encode()).decode(),
        "security_groups": ["default", "web"],
        "interfaces": [
            {
                "network_id": NETWORK,
                "mac": "fa:16:3e:" + number.to_bytes(3, "big").hex(":"),
                "mtu": 1450,
                "security_groups": ["default", "web"],
                "subnets": [
                    {
                        "cidr": "10.64.0.0/16",
                        "gateway_ip": "10.64.0.1",
                        "dns_nameservers": ["10.64.0.2"],
                        "addresses": [{"ip_address": str(address)}],
                    }
                ],
            }
        ],
    }


def boot_paths(tree: Tree) -> list[str]:
    """What cloud-init's OpenStack source asks an instance's tree for at boot, in its order.

    The version list twice, the documents of one version, then the EC2 tree: directories before
    leaves, ``0=name`` in a listing as ``0/openssh-key`` (cloudinit/sources/helpers/ec2.py).
    """
    version = f"/openstack/{VERSION}"
    files = ("meta_data.json", "user_data", "vendor_data.json", "vendor_data2.json")
    paths = ["/openstack", "/openstack", *(f"{version}/{file}" for file in files)]
    paths += [f"{version}/network_data.json", *_crawl(tree, TREE)]
    return paths


def _crawl(tree: Tree, directory: str) -> Iterator[str]:
    yield directory
    page = tree.page(directory)
    assert isinstance(page, Page)
    names = page.body.decode().splitlines()
    for name in names:
        if name.endswith("/"):
            yield from _crawl(tree, directory + name)
    for name in names:
        number, sign, _ = name.partition("=")
        if not name.endswith("/"):
            yield directory + (f"{number}/openssh-key" if sign and number.isdigit() else name)


def booter(instance: Instance, settings: Settings) -> Booter:
    """The instance with its requests, and what each must answer."""
    tree = Tree(instance, settings)
    asks = []
    lengths = []
    for path in boot_paths(tree):
        page = tree.page(path)
        if isinstance(page, Page):
            lengths.append(len(page.complete()))
        # What tells instances apart is checked: an answer with another's content is an error.
        holds = b""
        if path.endswith("/meta_data.json"):
            holds = instance.id.encode()
        elif isinstance(page, Page) and path.endswith(("user_data", "/instance-id")):
            holds = page.body
        asks.append((path, b"404" if page is None else b"200", holds))
    address = str(instance.interfaces[0].subnets[0].addresses[0].ip_address)
    return Booter(instance.id, instance.project_id, address, asks, lengths)


def populate(stand: Stand, count: int) -> list[Booter]:
    """Put instances into the stand's database; returns them as they will boot."""
    database = Database(stand.database_url)
    store = Store(database)
    settings = Settings()
    booters = []
    try:
        for number in range(count):
            instance = Instance.from_document(document(number, stand.host))
            if not isinstance(store.create(instance), Stored):
                raise StandError(f"instance {number} was not kept")
            booters.append(booter(instance, settings))
    finally:
        database.close()
    return booters


def forget(stand: Stand) -> None:
    """Make every worker forget what it holds: the database says that it is another one."""
    with sqlite3.connect(stand.directory / "lib" / "mooring.db") as connection:
        connection.execute("UPDATE revision SET epoch = ?", (str(uuid.uuid4()),))
    connection.close()


# ---- the requests ------------------------------------------------------------------------------


class Signer:
    """A host's HAProxy: adds what the inside may say, with signature version 2."""

    def __init__(self, stand: Stand) -> None:
        master = load_secrets(stand.etc / "secrets" / "signature")[0]
        self._host = stand.host
        self._key = host_key(master, stand.host)

    def boot(self, booter: Booter, trivial: bool) -> list[Request]:
        """An instance's requests as they go to NGINX, signed now."""
        now = int(time.time())
        common = (
            "Host: 169.254.169.254\r\n"
            "User-Agent: Cloud-Init/22.4.2\r\n"
            "Accept-Encoding: gzip, deflate\r\n"
            "Accept: */*\r\n"
            f"X-Forwarded-For: {booter.address}\r\n"
            f"X-Instance-ID: {booter.id}\r\n"
            f"X-Tenant-ID: {booter.project_id}\r\n"
            f"X-Mooring-Network: {NETWORK}\r\n"
            f"X-Mooring-Time: {now}\r\n"
        )
        requests = []
        for path, status, holds in booter.asks:
            message = message_v2(
                host=self._host,
                time=now,
                network=NETWORK,
                instance=booter.id,
                project=booter.project_id,
                address=booter.address,
                method="GET",
                target=path,
            )
            signature = sign_v2(self._key, message)
            wire = f"GET {path} HTTP/1.1\r\n{common}X-Mooring-Signature: {signature}\r\n\r\n"
            if trivial:
                status, holds = b"200", b""
            requests.append(Request(wire.encode("ascii"), status, holds))
        return requests

    def storm(self, booters: Sequence[Booter], *, trivial: bool) -> Iterator[list[Request]]:
        """Everybody's requests; made now, and again where a long round would outlive them."""
        made = time.monotonic()
        prepared = [self.boot(booter, trivial) for booter in booters]

        def boots() -> Iterator[list[Request]]:
            for booter, boot in zip(booters, prepared, strict=True):
                stale = time.monotonic() - made > SIGNED_SECONDS
                yield self.boot(booter, trivial) if stale else boot

        return boots()


# ---- the servers -------------------------------------------------------------------------------


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return sorted(found)


def cpu_seconds(processes: Sequence[int]) -> float:
    """Seconds of CPU, in user and in kernel mode, that the processes have taken so far."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def wait_until_settled(server: Process, count: int) -> list[int]:
    """The worker processes, once all are there and none has anything left to do."""
    last: list[float] = []

    def settled() -> bool:
        nonlocal last
        server.alive()
        workers = children(server.popen.pid)
        before, last = last, [cpu_seconds([worker]) for worker in workers]
        if len(workers) == count and before == last:
            return True
        time.sleep(SETTLED_SECONDS)
        return False

    wait_for("gunicorn's workers", settled, START_SECONDS)
    return children(server.popen.pid)


def open_trivial_door(stand: Stand) -> int:
    """Give the trivial application a copy of NGINX's and gunicorn's files; returns its port."""
    port = free_port()
    nginx = stand.etc / "nginx"
    block = (nginx / "metadata.conf").read_text(encoding="utf-8")
    for old, new in (
        (f":{stand.metadata_port} ", f":{port} "),
        ("http://mooring_metadata", "http://trivial"),
        ("/metadata.access.log", "/trivial.access.log"),
        ("/metadata.error.log", "/trivial.error.log"),
    ):
        if block.count(old) != 1:
            raise StandError(f"nginx/metadata.conf has no {old!r} any more, or several")
        block = block.replace(old, new)
    run_dir = stand.run_dir / "trivial"
    run_dir.mkdir()
    upstream = f"upstream trivial {{ server unix:{run_dir}/metadata.sock fail_timeout=0; }}\n"
    (nginx / "trivial.conf").write_text(upstream + block, encoding="utf-8")
    whole = nginx / "nginx.conf"
    include = f"include {nginx}/metadata.conf;"
    text = whole.read_text(encoding="utf-8")
    whole.write_text(text.replace(include, f"{include} include {nginx}/trivial.conf;"))
    gunicorn = stand.etc / "gunicorn"
    text = (gunicorn / "metadata.py").read_text(encoding="utf-8")
    (gunicorn / "trivial.py").write_text(text.replace(str(stand.run_dir), str(run_dir)))
    stand.processes.pop("nginx").stop()
    stand.start_nginx()
    return port


def start_trivial(stand: Stand, length: int) -> Process:
    """The trivial application under the same settings."""
    process = stand.start(
        "trivial",
        *(sys.executable, "-m", "gunicorn", f"bench_trivial:make({length})"),
        *("-c", stand.etc / "gunicorn" / "trivial.py", "--workers", str(stand.workers)),
        env=stand.environment(),
    )

    def answers() -> bool:
        process.alive()
        return stand.ask_socket("trivial/metadata.sock", "/") == 200

    wait_for("the trivial application", answers)
    return process


@dataclass
class Storm:
    """Storms of one kind in one round: what the client saw, CPU seconds of workers and NGINX."""

    outcome: Outcome = field(default_factory=Outcome)
    cpu: float = 0.0
    nginx_cpu: float = 0.0

    @property
    def cpu_us(self) -> float:
        """Microseconds of the workers' CPU for each answer."""
        return self.cpu / len(self.outcome.latencies) * 1e6


@dataclass
class Round:
    """The storms of one round, by what the workers knew; each ours beside its trivial."""

    ours: Storm = field(default_factory=Storm)
    trivial: Storm = field(default_factory=Storm)
    new: Storm = field(default_factory=Storm)
    again: Storm = field(default_factory=Storm)
    later_trivial: Storm = field(default_factory=Storm)


class Side:
    """One of the two applications, up: its connections and its workers."""

    def __init__(self, bench: "Bench", server: Process, port: int, *, trivial: bool) -> None:
        self.bench, self.server, self.trivial = bench, server, trivial
        self.workers = wait_until_settled(server, bench.stand.workers)
        self.client = Client((LOOPBACK, port), bench.context, METADATA_NAME, bench.connections)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.client.__exit__()
        self.server.stop()
        del self.bench.stand.processes[self.server.name]

    def boot(self, booters: Sequence[Booter], storm: Storm) -> None:
        """Let these instances boot and add what it took to the storm."""
        boots = self.bench.signer.storm(booters, trivial=self.trivial)
        nginx = children(self.bench.stand.processes["nginx"].popen.pid)
        before, nginx_before = cpu_seconds(self.workers), cpu_seconds(nginx)
        storm.outcome.add(self.client.storm(boots, AT_ONCE))
        storm.cpu += cpu_seconds(self.workers) - before
        storm.nginx_cpu += cpu_seconds(nginx) - nginx_before


class Bench:
    """The storms on one stand."""

    def __init__(self, stand: Stand, instances: int, connections: int) -> None:
        self.stand = stand
        self.connections = connections
        booters = populate(stand, instances + WARM_UP)
        self.booters, self.others = booters[:instances], booters[instances:]
        self.slices = [self.booters[n : n + AT_ONCE] for n in range(0, instances, AT_ONCE)]
        self.signer = Signer(stand)
        self.context = ssl.create_default_context(cafile=str(stand.etc / "pki" / "root.crt"))
        self.context.load_cert_chain(stand.etc / "pki" / f"host-{stand.host}.pem")
        self.trivial_port = open_trivial_door(stand)
        self.length = int(statistics.median(booters[0].lengths))

    def round(self) -> Round:
        """Both applications, started anew, a slice of the instances at a time in turns."""
        result = Round()
        stand = self.stand
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(
                Side(self, stand.start_gunicorn(), stand.metadata_port, trivial=False)
            )
            trivial = stack.enter_context(
                Side(self, start_trivial(stand, self.length), self.trivial_port, trivial=True)
            )
            for side in (ours, trivial):
                side.boot(self.others, Storm())
            for booters in self.slices:
                ours.boot(booters, result.ours)
                trivial.boot(booters, result.trivial)
            forget(stand)
            for booters in self.slices:
                ours.boot(booters, result.new)
                trivial.boot(booters, result.later_trivial)
                ours.boot(booters, result.again)
        return result


# ---- the results -------------------------------------------------------------------------------


def results_of(rounds: Sequence[Round]) -> dict[str, float]:
    """The numbers: medians of the rounds, and of the ratios within each round."""
    middle = statistics.median
    results: dict[str, float] = {}
    for name, storms, beside in (
        ("storm", [each.ours for each in rounds], [each.trivial for each in rounds]),
        ("storm.trivial", [each.trivial for each in rounds], None),
        ("storm.new", [each.new for each in rounds], [each.later_trivial for each in rounds]),
        ("storm.again", [each.again for each in rounds], [each.later_trivial for each in rounds]),
    ):
        outcomes = [storm.outcome for storm in storms]
        results |= {
            f"metadata.{name}.rate": middle(o.rate for o in outcomes),
            f"metadata.{name}.p50_ms": middle(o.percentile(0.5) * 1e3 for o in outcomes),
            f"metadata.{name}.p99_ms": middle(o.percentile(0.99) * 1e3 for o in outcomes),
            f"metadata.{name}.cpu_us": middle(storm.cpu_us for storm in storms),
            f"metadata.{name}.nginx_cpu_us": middle(
                storm.nginx_cpu / len(storm.outcome.latencies) * 1e6 for storm in storms
            ),
            f"metadata.{name}.client_cpu_us": middle(
                o.cpu_seconds / len(o.latencies) * 1e6 for o in outcomes
            ),
            f"metadata.{name}.errors": float(sum(len(o.errors) for o in outcomes)),
        }
        if beside is None:
            continue
        pairs = list(zip(storms, beside, strict=True))
        results |= {
            f"metadata.{name}.rate_ratio": middle(
                a.outcome.rate / b.outcome.rate for a, b in pairs
            ),
            f"metadata.{name}.p99_ratio": middle(
                a.outcome.percentile(0.99) / b.outcome.percentile(0.99) for a, b in pairs
            ),
            f"metadata.{name}.cpu_ratio": middle(a.cpu_us / b.cpu_us for a, b in pairs),
        }
    return results


def show(results: dict[str, float]) -> None:
    """Print the table."""
    columns = (
        ("first boot", "storm"),
        ("trivial", "storm.trivial"),
        ("unknown", "storm.new"),
        ("again", "storm.again"),
    )
    rows = (
        ("requests per second", "rate", "{:.0f}"),
        ("  ratio to trivial", "rate_ratio", "{:.3f}"),
        ("p50 ms", "p50_ms", "{:.2f}"),
        ("p99 ms", "p99_ms", "{:.2f}"),
        ("  ratio to trivial", "p99_ratio", "{:.3f}"),
        ("CPU us a request, workers", "cpu_us", "{:.0f}"),
        ("  ratio to trivial", "cpu_ratio", "{:.3f}"),
        ("CPU us a request, NGINX", "nginx_cpu_us", "{:.0f}"),
        ("CPU us a request, client", "client_cpu_us", "{:.0f}"),
        ("errors", "errors", "{:.0f}"),
    )
    print("\n" + " " * 28 + "".join(f"{title:>12}" for title, _ in columns))
    for title, key, form in rows:
        cells = [results.get(f"metadata.{name}.{key}") for _, name in columns]
        texts = ["-" if cell is None else form.format(cell) for cell in cells]
        print(f"{title:<28}" + "".join(f"{text:>12}" for text in texts))


def run(*, instances: int, rounds: int, workers: int, connections: int) -> dict[str, float]:
    """Run the storms, print a table; returns the numbers by their dotted names."""
    with Stand(workers=workers) as stand:
        # Each round starts a gunicorn of its own.
        stand.processes.pop("gunicorn").stop()
        bench = Bench(stand, instances, connections)
        requests = len(bench.booters[0].asks)
        print(
            f"boot storm: {instances} instances of {requests} requests, {AT_ONCE} at once,"
            f" {connections} connections, {workers} workers, {rounds} rounds",
            flush=True,
        )
        done: list[Round] = []
        for number in range(rounds):
            last = bench.round()
            done.append(last)
            storms = {
                "ours": last.ours,
                "trivial": last.trivial,
                "unknown": last.new,
                "again": last.again,
                "trivial later": last.later_trivial,
            }
            said = (f"{k} {v.outcome.rate:.0f}/s {v.cpu_us:.0f} us" for k, v in storms.items())
            print(f"round {number + 1}: {', '.join(said)}", flush=True)
            for error in [e for storm in storms.values() for e in storm.outcome.errors][:5]:
                print(f"  wrong: {error}")
        results = results_of(done)
        results["metadata.storm.instances"] = float(instances)
        results["metadata.storm.requests"] = float(requests)
        results["metadata.storm.workers"] = float(workers)
        results["metadata.storm.body_bytes"] = float(bench.length)
    show(results)
    return results
