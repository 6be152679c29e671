"""What hosts ask and report: the whole view, what changes of it, and who may ask."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from sqlalchemy import delete, select, update
from webtest import TestApp

from middleware.errors import Errors
from middleware.gatekeeper import Gatekeeper
from middleware.request_id import RequestId
from services.core import schema
from services.core.database import Database
from services.core.identity import ADMINS, HOSTS, ClientIdentity
from services.hostnet import hosts
from services.hostnet.application import NetworkAPI
from services.hostnet.hosts import Hosts
from services.hostnet.settings import Settings
from services.hostnet.view import View

ADMIN = ClientIdentity("ann", frozenset({ADMINS}), 1, "0" * 64)
NOBODY = "00000000-0000-4000-8000-000000000000"


def host(name: str) -> ClientIdentity:
    return ClientIdentity(name, frozenset({HOSTS}), 1, "0" * 64)


ASKING = threading.local()


class As:
    """Stands for the client certificate filter: each thread says who it is."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        who = ASKING.client
        if who is not None:
            environ["mooring.client"] = who
        return self.app(environ, start_response)


class Controller:
    """Both applications of the network service on one database."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.hosts = Hosts(self.database)
        self.network = NetworkAPI(self.database, Settings())
        self.apps = {
            "/v1": self._app(self.hosts),
            "/v2": self._app(self.network),
        }

    @staticmethod
    def _app(app: WSGIApplication) -> TestApp:
        return TestApp(Gatekeeper(RequestId(Errors(As(app), style="json")), True, ()))

    def ask(
        self, method: str, path: str, body: Any = None, who: ClientIdentity | None = ADMIN,
        status: Any = "*",
    ) -> Any:  # fmt: skip
        inside = path.removeprefix("/v1")
        ASKING.client = who
        text = b"" if body is None else json.dumps(body).encode()
        answer = self.apps[path[:3]].request(
            inside, method=method, body=text, status=status,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status_int != 500
        return answer.json if answer.body else None

    def make(self, kind: str, **values: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.ask("POST", f"/v2.0/{kind}s", {kind: values}, status=201)[kind]
        return made

    def register(self, name: str, address: str | None, status: Any = (200, 201)) -> Any:
        body = {"tunnel_address": address, "bridge_mappings": {"physnet1": "eth1"}}
        return self.ask("PUT", f"/v1/hosts/{name}", body, host(name), status)

    def state(self, name: str) -> tuple[str, View]:
        answer = self.ask("GET", f"/v1/hosts/{name}/state", who=host(name), status=200)
        return answer["token"], View.from_json(answer["objects"])

    def watch(self, name: str, token: str, wait: int = 0, status: Any = 200) -> Any:
        path = f"/v1/hosts/{name}/watch?since={token}&wait={wait}"
        return self.ask("GET", path, who=host(name), status=status)


@pytest.fixture
def controller(database_url: str) -> Iterator[Controller]:
    """On each engine in turn, with two hosts."""
    made = Controller(database_url)
    made.register("host-1", "192.0.2.1")
    made.register("host-2", "192.0.2.2")
    yield made
    made.database.close()


def network_of(controller: Controller, cidr: str = "10.1.0.0/24") -> str:
    network = controller.make("network")
    controller.make("subnet", network_id=network["id"], ip_version=4, cidr=cidr)
    return str(network["id"])


def test_a_host_sees_what_it_carries_and_nothing_else(controller: Controller) -> None:
    """Its networks, its ports, where the others are; of another network nothing."""
    one, other = network_of(controller), network_of(controller)
    mine = controller.make("port", network_id=one, **{"binding:host_id": "host-1"})
    theirs = controller.make("port", network_id=one, **{"binding:host_id": "host-2"})
    loose = controller.make("port", network_id=one)
    controller.make("port", network_id=other, **{"binding:host_id": "host-2"})
    _, view = controller.state("host-1")
    assert set(view.networks) == {one}
    assert set(view.ports) == {mine["id"]}
    assert {each.id: each.vtep for each in view.endpoints.values()} == {
        theirs["id"]: "192.0.2.2",
        loose["id"]: None,
    }
    dhcp = view.networks[one].dhcp
    assert dhcp is not None
    assert [each.ip for each in dhcp.fixed_ips] == ["10.1.0.2"]


def test_a_host_asks_for_itself_alone(controller: Controller) -> None:
    """Another host's view is 404, a person's certificate 403, none 401."""
    for method, path in (("GET", "state"), ("GET", "watch?since=x"), ("PUT", "report")):
        where = f"/v1/hosts/host-1/{path}"
        controller.ask(method, where, {}, host("host-2"), 404)
        controller.ask(method, where, {}, ADMIN, 403)
        controller.ask(method, where, {}, None, 401)
    controller.ask("PUT", "/v1/hosts/host-1", {}, host("host-2"), 404)
    unknown = host("host-9")
    error = controller.ask("GET", "/v1/hosts/host-9/state", who=unknown, status=404)
    assert error["error"]["code"] == "not-registered"


def test_registration_again_changes_nothing_and_addresses_are_unique(
    controller: Controller,
) -> None:
    """The same again raises no revision; another host's address is 409 and names the field."""
    token, _ = controller.state("host-1")
    controller.register("host-1", "192.0.2.1", 200)
    assert controller.state("host-1")[0] == token
    error = controller.register("host-3", "192.0.2.1", 409)["error"]
    assert error["field"] == "tunnel_address"
    for body, field in (
        ({"tunnel_address": "x"}, "/tunnel_address"),
        ({"bridge_mappings": {"a b": "eth0"}}, "/bridge_mappings"),
        ({"configuration": []}, "/configuration"),
        ({"colour": 1}, "/colour"),
    ):
        error = controller.ask("PUT", "/v1/hosts/host-1", body, host("host-1"), 400)["error"]
        assert error["field"] == field


@pytest.mark.parametrize(
    ("query", "field"),
    [("", "since"), ("since=1.2.3", "since"), ("since={}&wait=51", "wait"),
     ("since={}&wait=x", "wait"), ("since={}&more=1", "query")],
)  # fmt: skip
def test_a_bad_watch_is_named(sqlite_url: str, query: str, field: str) -> None:
    """400 and the parameter."""
    controller = Controller(sqlite_url)
    controller.register("host-1", None)
    token, _ = controller.state("host-1")
    path = f"/v1/hosts/host-1/watch?{query.format(token)}"
    assert controller.ask("GET", path, who=host("host-1"), status=400)["error"]["field"] == field
    controller.database.close()


def test_r3_a_token_of_another_history_is_410(controller: Controller) -> None:
    """An unknown nonce, a number to come, another epoch, one that was compacted."""
    network_of(controller)
    token, _ = controller.state("host-1")
    epoch, number, nonce = token.split(".")
    wrong = (
        f"{epoch}.{number}.{'0' * 16}",
        f"{epoch}.{int(number) + 1}.{nonce}",
        f"{'0' * 32}.{number}.{nonce}",
    )
    for each in wrong:
        assert controller.watch("host-1", each, status=410)["error"]["code"] == "read-anew"
    with controller.database.write() as writer:
        writer.connection.execute(delete(schema.change))
    controller.watch("host-1", token, status=410)


def test_a_change_wakes_the_host_that_it_concerns(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting host is answered at once with the object; the other one waits on."""
    one = network_of(controller)
    controller.make("port", network_id=one, **{"binding:host_id": "host-1"})
    answers: dict[str, tuple[float, Any]] = {}
    tokens = {name: controller.state(name)[0] for name in ("host-1", "host-2")}

    def wait(name: str) -> None:
        answer = controller.watch(name, tokens[name], wait=6)
        answers[name] = (time.monotonic(), answer)

    threads = [threading.Thread(target=wait, args=(name,)) for name in tokens]
    for thread in threads:
        thread.start()
    time.sleep(1)
    begun = time.monotonic()
    woken = controller.hosts.hub.woken
    made = controller.make("port", network_id=one)
    for thread in threads:
        thread.join(20)
    at, answer = answers["host-1"]
    assert [(each["kind"], each["id"], each["op"]) for each in answer["changes"]] == [
        ("endpoint", made["id"], "put")
    ]
    assert at < answers["host-2"][0]
    assert answers["host-2"][1]["changes"] == []
    assert answers["host-2"][1]["token"] != tokens["host-2"]
    assert controller.hosts.hub.woken == woken + 1
    assert at - begun < 5


def test_a_report_says_what_is_wired_and_what_failed(controller: Controller) -> None:
    """Ports become ACTIVE, failures are shown with the host; no revision is raised."""
    one = network_of(controller)
    port = controller.make("port", network_id=one, **{"binding:host_id": "host-1"})
    token, _ = controller.state("host-1")
    failure = {"kind": "network", "id": one, "reason": "this kernel has no 802.1Q"}
    path, who = "/v1/hosts/host-1/report", host("host-1")
    body = {"token": token, "failures": [failure], "ports": [port["id"], NOBODY]}
    controller.ask("PUT", path, body, who, 204)
    assert controller.state("host-1")[0] == token
    shown = controller.ask("GET", f"/v2.0/ports/{port['id']}")["port"]
    assert shown["status"] == "ACTIVE"
    agent = controller.ask("GET", "/v2.0/agents?host=host-1")["agents"][0]
    assert agent["configurations"]["failures"] == [failure]
    controller.ask("PUT", path, {"token": token, "ports": []}, who, 204)
    assert controller.ask("GET", f"/v2.0/ports/{port['id']}")["port"]["status"] == "DOWN"
    for wrong, field in (
        ({"token": "x"}, "/token"),
        ({"token": token, "failures": [1]}, "/failures/0"),
        ({"token": token, "ports": ["x"]}, "/ports"),
    ):
        assert controller.ask("PUT", path, wrong, who, 400)["error"]["field"] == field


NAMES = ("host-1", "host-2", "host-3")


@pytest.mark.parametrize("seed", range(12))
def test_what_a_host_accumulates_is_what_it_would_read_anew(
    database_url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any sequence of calls, each host watching now and then: view by changes equals the whole.

    Networks, subnets and ports come, change, move between hosts and go; tunnel addresses change;
    groups with rules that name each other get members and lose them.
    """
    monkeypatch.setattr(hosts, "SPAN_LIMIT", 60)
    dice = random.Random(seed)
    controller = Controller(database_url)
    for number, name in enumerate(NAMES, 1):
        controller.register(name, f"192.0.2.{number}")
    held = {name: controller.state(name) for name in NAMES}
    groups = [_group(controller, number) for number in range(3)]
    for step in range(60):
        _move(controller, dice, groups, step)
        for name in NAMES:
            if dice.random() < 0.3:
                held[name] = _follow(controller, name, *held[name])
                assert held[name][1].to_json() == controller.state(name)[1].to_json()
    for name in NAMES:
        token, view = _follow(controller, name, *held[name])
        fresh_token, fresh = controller.state(name)
        assert view.to_json() == fresh.to_json()
        assert token == fresh_token
    controller.database.close()


def _follow(controller: Controller, name: str, token: str, view: View) -> tuple[str, View]:
    answer = controller.watch(name, token, status="*")
    if "error" in answer:
        assert answer["error"]["status"] == 410
        return controller.state(name)
    view.apply(answer["changes"])
    return answer["token"], view


def _group(controller: Controller, number: int) -> str:
    from services.core.database import now

    group = f"{number:08x}-0000-4000-8000-000000000000"
    common = {
        "project_id": "", "description": "", "revision_number": 0, "created_at": now(),
        "updated_at": now(),
    }  # fmt: skip
    with controller.database.write() as writer:
        writer.connection.execute(
            schema.security_group.insert().values(
                id=group, name="g", stateful=True, is_default=False, **common
            )
        )
        if number:
            writer.connection.execute(
                schema.security_group_rule.insert().values(
                    id=f"{number:08x}-1111-4000-8000-000000000000",
                    name="",
                    security_group_id=group,
                    direction="ingress",
                    ethertype="IPv4",
                    protocol="tcp",
                    port_range_min=1,
                    port_range_max=2,
                    remote_group_id=f"{number - 1:08x}-0000-4000-8000-000000000000",
                    **common,
                )
            )
    return group


def _move(controller: Controller, dice: random.Random, groups: list[str], step: int) -> None:
    """One random call; a refusal is as good as a success."""
    networks = [n["id"] for n in controller.ask("GET", "/v2.0/networks")["networks"]]
    ports = controller.ask("GET", "/v2.0/ports?device_owner=")["ports"]
    subnets = [s["id"] for s in controller.ask("GET", "/v2.0/subnets")["subnets"]]
    what = dice.randrange(10)
    place = {"binding:host_id": dice.choice([*NAMES, ""])}
    if what == 0 or not networks:
        network_of(controller, f"10.{step}.0.0/24")
    elif what <= 3:
        body = {"network_id": dice.choice(networks), **place}
        made = controller.ask("POST", "/v2.0/ports", {"port": body})
        if "port" in made and dice.random() < 0.6:
            _join(controller, made["port"], dice.sample(groups, 1 + dice.randrange(2)))
    elif what <= 5 and ports:
        path = f"/v2.0/ports/{dice.choice(ports)['id']}"
        more = dice.choice([place, {"binding:profile": {"migrating_to": dice.choice(NAMES)}},
                            {"dns_name": f"n{step}"}, {"fixed_ips": []}])  # fmt: skip
        controller.ask("PUT", path, {"port": more})
    elif what == 6 and ports:
        controller.ask("DELETE", f"/v2.0/ports/{dice.choice(ports)['id']}")
    elif what == 7:
        path = f"/v2.0/networks/{dice.choice(networks)}"
        controller.ask("PUT", path, {"network": {"mtu": 1000 + step}})
        if dice.random() < 0.3:
            controller.ask("DELETE", path)
    elif what == 8 and subnets:
        path = f"/v2.0/subnets/{dice.choice(subnets)}"
        controller.ask("PUT", path, {"subnet": {"enable_dhcp": dice.random() < 0.5}})
        if dice.random() < 0.2:
            controller.ask("DELETE", path)
    else:
        name = dice.choice(NAMES)
        controller.register(name, f"198.51.100.{step + 1}", "*")


def _join(controller: Controller, port: dict[str, Any], groups: list[str]) -> None:
    """Put a port into groups as the API will, once groups are enforced."""
    from services.hostnet import changes

    with controller.database.write() as writer:
        writer.connection.execute(
            schema.port_security_group.insert(),
            [{"port_id": port["id"], "security_group_id": each} for each in groups],
        )
        writer.connection.execute(
            update(schema.port).where(schema.port.c.id == port["id"]).values(description="joined")
        )
        row = writer.connection.execute(
            select(schema.port).where(schema.port.c.id == port["id"])
        ).one()
        place = tuple(filter(None, (row.host, row.next_host)))
        changes.port(writer, port["id"], row.network_id, before=place, after=place, groups=groups)
