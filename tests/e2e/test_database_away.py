"""The database goes away and comes back, under both engines: what is known goes on being served."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from stand import receive, wait_for

from services.core.revision import POLL_SECONDS, SILENCE_SECONDS

pytestmark = pytest.mark.e2e

READ = "/openstack/latest/meta_data.json"
TTL = ("X-aws-ec2-metadata-token-ttl-seconds", "60")


class File:
    """The SQLite database of a stand, which can be moved away."""

    def __init__(self, house):
        self.path = house.stand.directory / "lib" / "mooring.db"

    def away(self):
        """Move the file, as if its disk were gone."""
        self.path.rename(self.path.with_suffix(".away"))

    def back(self):
        """Put the same file back."""
        self.path.with_suffix(".away").rename(self.path)


class Server:
    """A PostgreSQL server, which can be stopped."""

    def __init__(self, server):
        self.server = server

    def away(self):
        """End the server with all its connections."""
        self.server.stop()

    def back(self):
        """Start it on the same data."""
        self.server.start()


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
)
def house(request, build):
    """A stand of each engine in turn, its database in house.database."""
    server = None
    options = {}
    if request.param == "postgresql":
        server = request.getfixturevalue("own_postgresql")
        options["database_url"] = server.create("mooring")
    with build(workers=2, **options) as house:
        house.database = Server(server) if server else File(house)
        house.stand.add_network("red", "10.1.0.2/24")
        house.stand.start_agent()
        yield house


@contextlib.contextmanager
def away(house):
    """The database is not there for the time of a block, and every worker has noticed."""
    house.database.away()
    try:
        for _ in house.each_worker():
            wait_for("the workers' notice", lambda: ready(house)[0] == 503)
        yield
    finally:
        house.database.back()
    for _ in house.each_worker():
        wait_for("readiness again", lambda: ready(house)[0] == 200)


def ready(house):
    """Status and document of /readyz, asked at gunicorn's own socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(house.stand.run_dir / "metadata.sock"))
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = receive(client)
    return answer.status, json.loads(answer.body)


def test_a_change_is_seen_by_every_worker(house):
    """With SQLite from the next read on; with PostgreSQL within the documented poll."""
    instance = house.instance(properties={"turn": "0"})

    def meta():
        return json.loads(instance.get(READ).body)["meta"]

    for _ in house.each_worker():
        assert meta() == {"turn": "0"}
    house.change(instance.id, properties={"turn": "1"})
    for _ in house.each_worker():
        if isinstance(house.database, Server):
            wait_for("the change", lambda: meta() == {"turn": "1"}, 2 * POLL_SECONDS)
        for _ in range(20):
            assert meta() == {"turn": "1"}


def test_known_instances_are_served_while_it_is_away(house):
    """Every worker serves what it knows, tokens included; what it does not know is 503."""
    data = b"user data that outlives its database"
    known = house.instance(user_data=data)
    rendered = known.get(READ)
    assert rendered.status == 200
    for _ in house.each_worker():
        assert known.get("/latest/user-data").body == data
    unknown = {"instance": "99999999-0000-4000-8000-000000000000", "project": "p"}
    claim = {**unknown, "address": known.address}

    def ask_unknown():
        return house.ask(house.signed("host-1", target=READ, **claim), target=READ)

    assert ask_unknown().status == 404
    with away(house):
        for _ in house.each_worker():
            assert known.get("/latest/user-data").body == data
            assert json.loads(known.get(READ).body)["uuid"] == known.id
            # A page that nobody has asked for so far.
            assert known.get("/openstack/2016-06-30/network_data.json").status == 200
            token = known.request("PUT", "/latest/api/token", [TTL])
            house.sensitive.add(token.text)
            header = ("X-aws-ec2-metadata-token", token.text)
            assert known.get("/latest/meta-data/instance-id", header).status == 200
            refused = ask_unknown()
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.text.startswith("503 Service Unavailable\n\n")
    assert ask_unknown().status == 404
    assert known.get(READ).status == 200


def test_what_needs_the_database_says_so(house):
    """The password and the operators' API answer 503 with Retry-After, then they work again."""
    instance = house.instance()
    body = b"cGFzc3dvcmQgd2l0aG91dCBkYXRhYmFzZQ=="
    house.sensitive.add(body)
    with away(house):
        for _ in house.each_worker():
            for answer in (
                instance.request("POST", "/openstack/latest/password", body=body),
                instance.get("/openstack/latest/password"),
            ):
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
            for answer in (
                house.operate("GET", "/v1/instances"),
                house.operate("DELETE", f"/v1/instances/{instance.id}"),
            ):
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert json.loads(answer.body)["error"]["code"] == "service-unavailable"
    assert instance.request("POST", "/openstack/latest/password", body=body).status == 200
    assert instance.get("/openstack/latest/password").body == body


def test_readiness_says_why(house):
    """503 with the reason at /readyz, while /healthz stays 200: nobody kills a serving process."""
    assert ready(house) == (200, {"ok": True, "failing": {}})
    with away(house):
        for _ in house.each_worker():
            wait_for("the reason", lambda: "metadata by signature" in ready(house)[1]["failing"])
            status, document = ready(house)
            assert (status, document["ok"]) == (503, False)
            reasons = document["failing"]
            assert "the database is not available" in reasons["metadata by signature"]
            assert "/" not in "".join(reasons.values())
            assert house.stand.ask_socket("metadata.sock", "/healthz") == 200


def test_a_change_made_meanwhile_is_seen_afterwards(house):
    """What changed right after the database's return is served by every worker."""
    instance = house.instance(properties={"turn": "before"})
    for _ in house.each_worker():
        assert instance.get(READ).status == 200
    with away(house):
        for _ in house.each_worker():
            assert json.loads(instance.get(READ).body)["meta"] == {"turn": "before"}
    house.change(instance.id, properties={"turn": "after"})
    for _ in house.each_worker():
        wait_for(
            "the change",
            lambda: json.loads(instance.get(READ).body)["meta"] == {"turn": "after"},
            2 * POLL_SECONDS,
        )


def test_workers_that_begin_without_it_come_to_themselves(house):
    """A worker born while the database is away answers 503, and serves when it is back."""
    instance = house.instance(user_data=b"data for a worker born late")
    with away(house):
        old = house.workers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_for(
            "new workers",
            lambda: len(house.workers()) == 2 and set(old).isdisjoint(house.workers()),
        )
        answer = instance.get(READ)
        assert answer.status == 503
        assert answer.headers["Retry-After"]
    assert instance.get(READ).status == 200


@pytest.mark.postgresql
@pytest.mark.parametrize("house", ["postgresql"], indirect=True)
def test_a_frozen_server_costs_no_read(house):
    """PostgreSQL stands still and goes on taking connections: no read of a known instance fails.

    Meanwhile the host's agent asks for its instances, which needs the database; what is not known
    gets 503 from the application before anything in front of it gives up.
    """
    instance = house.instance()
    assert [instance.get(READ).status for _ in house.each_worker()] == [200, 200]
    unknown = {"instance": "99999999-0000-4000-8000-000000000000", "project": "p"}
    claim = {**unknown, "address": instance.address}
    master = house.database.server.process.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    frozen = [master, *map(int, children)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        statuses, refused = set(), []
        # Past the time after which the revision watch calls it away.
        ended = time.monotonic() + SILENCE_SECONDS + 4
        while time.monotonic() < ended:
            statuses.add(instance.get(READ).status)
            answer = house.ask(house.signed("host-1", target=READ, **claim), target=READ)
            refused.append((answer.status, answer.headers["Retry-After"]))
        assert statuses == {200}
        assert set(refused) == {(503, "5")}
        for _ in house.each_worker():
            assert ready(house)[0] == 503
            assert instance.get(READ).status == 200
    finally:
        for pid in reversed(frozen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    for _ in house.each_worker():
        wait_for("readiness again", lambda: ready(house)[0] == 200)
    assert house.operate("GET", "/v1/instances").status == 200
