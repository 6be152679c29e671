"""The network API through the filters that stand before it, on both engines."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import threading
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from webtest import TestApp

from middleware.errors import Errors
from middleware.gatekeeper import Gatekeeper
from middleware.request_id import RequestId
from services.core import schema
from services.core.database import Database, now
from services.core.identity import ADMINS, PROJECT_PREFIX, ClientIdentity
from services.core.policy import RULES
from services.hostnet.application import NetworkAPI
from services.hostnet.settings import Settings
from services.hostnet.view import DHCP_OWNER

NOBODY = "00000000-0000-4000-8000-000000000000"


def client(user: str, *groups: str) -> ClientIdentity:
    return ClientIdentity(user, frozenset(groups), 1, "0" * 64)


ADMIN = client("ann", ADMINS)
RED = client("rita", PROJECT_PREFIX + "red")
BLUE = client("bob", PROJECT_PREFIX + "blue")
STRANGER = client("stan", "some:group")


class Clients:
    """Stands for the client certificate filter: says who is asking."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self.client: ClientIdentity | None = ADMIN

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self.client is not None:
            environ["mooring.client"] = self.client
        return self.app(environ, start_response)


class Api:
    """The API as a client speaks to it."""

    def __init__(self, url: str, **changes: Any) -> None:
        self.database = Database(url)
        self.application = NetworkAPI(self.database, dataclasses.replace(Settings(), **changes))
        self.clients = Clients(self.application)
        self.app = TestApp(Gatekeeper(RequestId(Errors(self.clients, style="json")), True, ()))

    def ask(
        self, method: str, path: str, body: Any = None, *, who: ClientIdentity = ADMIN,
        status: int | str = "*", headers: dict[str, str] | None = None,
    ) -> Any:  # fmt: skip
        self.clients.client = who
        text = "" if body is None else json.dumps(body)
        answer = self.app.request(
            "/v2.0" + path, method=method, body=text.encode(), status=status,
            headers={"Content-Type": "application/json", **(headers or {})},
        )  # fmt: skip
        assert answer.status_int != 500
        if answer.status_int >= 400:
            return answer.json["NeutronError"]
        return answer.json if answer.body else None

    def make(self, kind: str, who: ClientIdentity = ADMIN, **values: Any) -> dict[str, Any]:
        path = f"/{kind.replace('_', '-')}s"
        made: dict[str, Any] = self.ask("POST", path, {kind: values}, who=who, status=201)[kind]
        return made

    def refuse(
        self, status: int, kind: str, values: dict[str, Any], who: ClientIdentity = ADMIN
    ) -> dict[str, str]:
        path = f"/{kind.replace('_', '-')}s"
        error: dict[str, str] = self.ask("POST", path, {kind: values}, who=who, status=status)
        return error

    def net(self, cidr: str = "10.1.0.0/24", who: ClientIdentity = ADMIN, **subnet: Any) -> Any:
        network = self.make("network", who)
        version = 6 if ":" in cidr else 4
        network["subnet"] = self.make(
            "subnet", who, network_id=network["id"], cidr=cidr, ip_version=version, **subnet
        )
        return network

    def ports(self, **query: Any) -> list[dict[str, Any]]:
        text = "&".join(f"{k}={v}" for k, v in query.items())
        found: list[dict[str, Any]] = self.ask("GET", f"/ports?{text}", status=200)["ports"]
        return found


@pytest.fixture
def api(database_url: str) -> Any:
    """On each engine in turn."""
    api = Api(database_url)
    yield api
    api.database.close()


@pytest.fixture
def lite(sqlite_url: str) -> Any:
    """On SQLite."""
    api = Api(sqlite_url)
    yield api
    api.database.close()


# ---- discovery and lists ------------------------------------------------------------------------


def test_discovery_names_what_is_served(lite: Api) -> None:
    """The version document, its collections, and extensions one by one."""
    answer = lite.app.get("/")
    assert answer.json["versions"][0]["id"] == "v2.0"
    collections = {each["collection"] for each in lite.ask("GET", "/")["resources"]}
    assert collections == {"networks", "subnets", "ports", "agents"}
    for each in lite.ask("GET", "/extensions")["extensions"]:
        one = lite.ask("GET", f"/extensions/{each['alias']}")["extension"]
        assert one == each
    assert lite.ask("GET", "/extensions/none", status=404)["type"] == "ExtensionNotFound"


def test_lists_filter_sort_and_page(api: Api) -> None:
    """Filters by any attribute and of several values, fields, order, pages forwards and back."""
    for number in range(5):
        api.make("network", name=f"n{number}", shared=number % 2 == 0)
    names = lambda query: [n["name"] for n in api.ask("GET", f"/networks?{query}")["networks"]]  # noqa: E731
    assert names("") == ["n0", "n1", "n2", "n3", "n4"]
    assert names("name=n1&name=n3") == ["n1", "n3"]
    assert names("shared=true&sort_key=name&sort_dir=desc") == ["n4", "n2", "n0"]
    assert names("status=DOWN") == []
    assert api.ask("GET", "/networks?fields=name&name=n2") == {"networks": [{"name": "n2"}]}
    first = api.ask("GET", "/networks?limit=2&sort_key=name")
    link = next(each["href"] for each in first["networks_links"] if each["rel"] == "next")
    second = api.ask("GET", "/networks?" + link.partition("?")[2])
    assert [n["name"] for n in second["networks"]] == ["n2", "n3"]
    back = next(each["href"] for each in second["networks_links"] if each["rel"] == "previous")
    assert [
        n["name"] for n in api.ask("GET", "/networks?" + back.partition("?")[2])["networks"]
    ] == [
        "n0",
        "n1",
    ]
    for query in ("nonsense=1", "limit=-1", "sort_key=zzz", "marker=" + NOBODY, "sort_dir=up"):
        assert api.ask("GET", f"/networks?{query}", status=400)["type"] == "HTTPBadRequest", query


def test_tags_are_kept_and_filtered_by(api: Api) -> None:
    """Set, added, removed; every of, any of, and their opposites."""
    one, two = api.make("network", name="a"), api.make("network", name="b")
    api.ask("PUT", f"/networks/{one['id']}/tags", {"tags": ["x", "y"]}, status=200)
    api.ask("PUT", f"/networks/{two['id']}/tags/y", status=201)
    found = lambda query: [n["name"] for n in api.ask("GET", f"/networks?{query}")["networks"]]  # noqa: E731
    assert found("tags=x,y") == ["a"]
    assert found("tags-any=x,y") == ["a", "b"]
    assert found("not-tags=x,y") == ["b"]
    assert found("not-tags-any=x") == ["b"]
    api.ask("DELETE", f"/networks/{one['id']}/tags/x", status=204)
    assert api.ask("GET", f"/networks/{one['id']}/tags")["tags"] == ["y"]
    api.ask("DELETE", f"/networks/{one['id']}/tags", status=204)
    assert api.ask("GET", f"/networks/{one['id']}")["network"]["tags"] == []
    assert api.ask("PUT", f"/networks/{one['id']}/tags/a,b", status=400)["type"] == "HTTPBadRequest"


def test_a_change_of_a_known_state_only(lite: Api) -> None:
    """If-Match with an old revision number is 412, and nothing is changed."""
    network = lite.make("network", name="old")
    path, old = f"/networks/{network['id']}", {"If-Match": "revision_number=0"}
    lite.ask("PUT", path, {"network": {"name": "new"}}, status=200, headers=old)
    error = lite.ask("PUT", path, {"network": {"name": "x"}}, status=412, headers=old)
    assert error["type"] == "RevisionNumberConstraintFailed"
    kept = lite.ask("GET", path)["network"]
    assert (kept["name"], kept["revision_number"]) == ("new", 1)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Unable to find 'network'"),
        ({"network": []}, "must be an object"),
        ({"network": {"colour": 1}}, "Unrecognized attribute(s) 'colour'"),
        ({"network": {"id": NOBODY}}, "'id' not allowed"),
        ({"network": {"name": 7}}, "name"),
        ({"network": {"name": "a\nb"}}, "control characters"),
        ({"network": {"mtu": 9000}}, "maximum is 1450"),
        ({"network": {}, "more": 1}, "'more'"),
        ({"network": {"port_security_enabled": True}}, "not enforced yet"),
        ({"network": {"provider:network_type": "flat"}}, "physical_network required"),
        ({"network": {"provider:segmentation_id": 3}}, "network_type required"),
        ({"networks": []}, "list of objects"),
    ],
)
def test_bad_bodies_are_named_and_change_nothing(lite: Api, body: Any, text: str) -> None:
    """400 with the attribute's name; no network is made."""
    error = lite.ask("POST", "/networks", body, status=400)
    assert text in error["message"]
    assert lite.ask("GET", "/networks")["networks"] == []


def test_every_route_has_a_rule_and_refuses_a_stranger(lite: Api) -> None:
    """A certificate without a group opens nothing; a rule's name is in the policy."""
    for method, path, rule in lite.application.routes:
        if rule:
            assert rule in RULES, path
            where = path.removeprefix("/v2.0").replace("{id}", NOBODY).replace("{project}", "red")
            error = lite.ask(method, where.replace("{tag}", "t"), {"tags": []}, who=STRANGER)
            assert error["type"] in ("PolicyNotAuthorized", "NetworkNotFound", "HTTPForbidden"), (
                path
            )


# ---- tenants ------------------------------------------------------------------------------------


def test_one_tenant_sees_and_touches_nothing_of_another_s(api: Api) -> None:
    """404 for everything of the other's; shared networks are seen, and changed by their owner."""
    network = api.net(who=RED)
    port = api.make("port", RED, network_id=network["id"])
    for path in (f"/networks/{network['id']}", f"/subnets/{network['subnet']['id']}",
                 f"/ports/{port['id']}"):  # fmt: skip
        kind = path.split("/")[1][:-1]
        assert api.ask("GET", path, who=BLUE, status=404)["type"] == f"{kind.title()}NotFound"
        api.ask("PUT", path, {kind: {"name": "x"}}, who=BLUE, status=404)
        api.ask("DELETE", path, who=BLUE, status=404)
    for many in ("networks", "subnets", "ports"):
        assert api.ask("GET", f"/{many}", who=BLUE)[many] == []
    api.refuse(404, "port", {"network_id": network["id"]}, BLUE)
    api.refuse(403, "network", {"project_id": "red"}, BLUE)
    api.ask("PUT", f"/networks/{network['id']}", {"network": {"shared": True}})
    assert api.ask("GET", f"/networks/{network['id']}", who=BLUE, status=200)
    api.ask("PUT", f"/networks/{network['id']}", {"network": {"name": "x"}}, who=BLUE, status=403)
    api.make("port", BLUE, network_id=network["id"])
    error = api.refuse(
        403,
        "port",
        {"network_id": network["id"], "fixed_ips": [{"ip_address": "10.1.0.77"}]},
        BLUE,
    )
    assert error["type"] == "PolicyNotAuthorized"


def test_segments_and_binding_are_the_operators_business(lite: Api) -> None:
    """A tenant neither chooses nor sees a segment, nor the host of a port."""
    lite.refuse(403, "network", {"provider:network_type": "vxlan"}, RED)
    network = lite.net(who=RED)
    assert not [name for name in network if name.startswith("provider:")]
    port = lite.make("port", RED, network_id=network["id"])
    assert "binding:host_id" not in port
    lite.refuse(403, "port", {"network_id": network["id"], "binding:host_id": "host-1"}, RED)


def test_a_quota_ends_what_a_project_may_make(api: Api) -> None:
    """409 OverQuota at the limit, of bulk requests as a whole; admins set it, tenants read it."""
    api.ask("PUT", "/quotas/red", {"quota": {"network": 2}}, status=200)
    body = {"networks": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}
    assert api.ask("POST", "/networks", body, who=RED, status=409)["type"] == "OverQuota"
    assert api.ask("GET", "/networks", who=RED)["networks"] == []
    del body["networks"][2]
    assert len(api.ask("POST", "/networks", body, who=RED, status=201)["networks"]) == 2
    assert api.refuse(409, "network", {}, RED)["type"] == "OverQuota"
    api.make("network", BLUE)
    assert api.ask("GET", "/quotas/red", who=RED)["quota"]["network"] == 2
    assert api.ask("GET", "/quotas/red/details", who=RED)["quota"]["network"]["used"] == 2
    api.ask("PUT", "/quotas/red", {"quota": {"network": 5}}, who=RED, status=403)
    api.ask("GET", "/quotas/red", who=BLUE, status=403)
    api.ask("PUT", "/quotas/red", {"quota": {"colour": 5}}, status=400)
    api.ask("DELETE", "/quotas/red", status=204)
    assert api.ask("GET", "/quotas/red")["quota"]["network"] == 100


# ---- segments and MTU ---------------------------------------------------------------------------


def test_l4_tenant_networks_take_the_first_free_segment(database_url: str) -> None:
    """VLANs in order; when they run out, VXLAN; a taken id is refused; freed ids come back."""
    api = Api(
        database_url,
        tenant_network_types=("vlan", "vxlan"),
        vlan_ranges={"physnet1": ((100, 101),)},
        vni_ranges=((7, 8),),
    )
    segment = lambda n: (n["provider:network_type"], n["provider:segmentation_id"])  # noqa: E731
    made = [api.make("network") for _ in range(4)]
    assert [segment(n) for n in made] == [("vlan", 100), ("vlan", 101), ("vxlan", 7), ("vxlan", 8)]
    assert api.refuse(409, "network", {})["type"] == "NoNetworkAvailable"
    vlan = {"provider:network_type": "vlan", "provider:physical_network": "physnet1"}
    error = api.refuse(409, "network", {**vlan, "provider:segmentation_id": 100})
    assert error["type"] == "VlanIdInUse"
    assert segment(api.make("network", **vlan, **{"provider:segmentation_id": 500})) == (
        "vlan",
        500,
    )
    api.ask("DELETE", f"/networks/{made[0]['id']}", status=204)
    assert segment(api.make("network")) == ("vlan", 100)
    flat = {"provider:network_type": "flat", "provider:physical_network": "physnet1"}
    api.make("network", **flat)
    assert api.refuse(409, "network", flat)["type"] == "FlatNetworkInUse"
    api.database.close()


def test_l6_mtu_follows_the_segment(sqlite_url: str) -> None:
    """min(global_physnet_mtu, path_mtu) - 50 for VXLAN, the physical network's own otherwise."""
    api = Api(
        sqlite_url,
        global_physnet_mtu=9000,
        path_mtu=8000,
        physical_network_mtus={"physnet1": 4000},
        vlan_ranges={"physnet1": (), "physnet2": ()},
    )
    kind = "provider:network_type"
    physical, number = "provider:physical_network", "provider:segmentation_id"
    assert api.make("network", **{kind: "vxlan"})["mtu"] == 7950
    assert api.make("network", **{kind: "flat", physical: "physnet1"})["mtu"] == 4000
    assert api.make("network", **{kind: "vlan", physical: "physnet2", number: 5})["mtu"] == 9000
    assert api.make("network", **{kind: "vxlan", "mtu": 1400})["mtu"] == 1400
    api.database.close()


def test_networks_that_race_get_different_segments(database_url: str) -> None:
    """Two of one id: the primary key decides, and the loser takes the next one."""
    made: list[int] = []

    def work() -> None:
        api = Api(database_url)
        for _ in range(5):
            made.append(api.make("network")["provider:segmentation_id"])
        api.database.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == list(range(1, 21))


# ---- addresses ----------------------------------------------------------------------------------


def test_addresses_come_from_the_pools(api: Api) -> None:
    """Gateway, pools and requested addresses; none twice; outside the subnet is refused."""
    network = api.net(allocation_pools=[{"start": "10.1.0.10", "end": "10.1.0.12"}])
    assert network["subnet"]["gateway_ip"] == "10.1.0.1"
    ask = {"network_id": network["id"]}
    (dhcp,) = api.ports(device_owner=DHCP_OWNER)
    assert dhcp["fixed_ips"][0]["ip_address"] == "10.1.0.10"
    assert api.make("port", **ask)["fixed_ips"][0]["ip_address"] == "10.1.0.11"
    wanted = {**ask, "fixed_ips": [{"ip_address": "10.1.0.99"}]}
    assert api.make("port", **wanted)["fixed_ips"][0]["ip_address"] == "10.1.0.99"
    assert api.refuse(409, "port", wanted)["type"] == "IpAddressAlreadyAllocated"
    for wrong, kind in (("10.2.0.1", "InvalidIpForNetwork"), ("10.1.0.255", "InvalidIpForSubnet")):
        error = api.refuse(400, "port", {**ask, "fixed_ips": [{"ip_address": wrong}]})
        assert error["type"] == kind
    last = api.make("port", **ask)
    assert api.refuse(409, "port", ask)["type"] == "IpAddressGenerationFailure"
    api.ask("DELETE", f"/ports/{last['id']}", status=204)
    assert api.make("port", **ask)["fixed_ips"] == last["fixed_ips"]
    assert api.make("port", **ask, fixed_ips=[])["fixed_ips"] == []


def test_ipv6_modes(api: Api) -> None:
    """SLAAC makes the address of the MAC and needs a /64; stateful DHCPv6 takes it of the pool."""
    network = api.net("2001:db8::/64", ipv6_ra_mode="slaac", ipv6_address_mode="slaac")
    port = api.make("port", network_id=network["id"], mac_address="fa:16:3e:00:00:01")
    assert port["fixed_ips"][0]["ip_address"] == "2001:db8::f816:3eff:fe00:1"
    stateful = api.net(
        "2001:db8:1::/64", ipv6_ra_mode="dhcpv6-stateful", ipv6_address_mode="dhcpv6-stateful"
    )
    taken = api.make("port", network_id=stateful["id"])["fixed_ips"][0]["ip_address"]
    assert ipaddress.ip_address(taken) in ipaddress.ip_network("2001:db8:1::/120")
    base = {"network_id": network["id"], "ip_version": 6, "cidr": "2001:db8:2::/80"}
    api.refuse(400, "subnet", {**base, "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"})
    api.refuse(400, "subnet", {**base, "ipv6_ra_mode": "slaac", "enable_dhcp": False})
    api.refuse(400, "subnet", {**base, "ip_version": 4})


@pytest.mark.parametrize(
    "values",
    [
        {"cidr": "10.1.0.128/25"},
        {"cidr": "10.9.0.0/24", "gateway_ip": "10.8.0.1"},
        {"cidr": "10.9.0.0/24", "allocation_pools": [{"start": "10.9.0.9", "end": "10.9.0.3"}]},
        {"cidr": "10.9.0.0/24", "allocation_pools": [{"start": "10.9.0.9", "end": "10.9.1.3"}]},
        {"cidr": "10.9.0.0/24", "allocation_pools": [{"start": "10.9.0.1", "end": "10.9.0.3"}]},
        {"cidr": "10.9.0.0/24", "dns_nameservers": ["2001:db8::1"]},
        {"cidr": "10.9.0.0/24", "host_routes": [{"destination": "::/0", "nexthop": "10.9.0.1"}]},
        {"cidr": "224.0.0.0/24"},
        {"cidr": "10.9.0.0"},
    ],
)
def test_a_subnet_that_does_not_fit_is_refused(lite: Api, values: dict[str, Any]) -> None:
    """Overlap, gateway, pools, addresses of the wrong kind: nothing is made."""
    network = lite.net()
    error = lite.ask(
        "POST", "/subnets", {"subnet": {"network_id": network["id"], "ip_version": 4, **values}}
    )
    assert error["type"] in (
        "InvalidInput", "HTTPBadRequest", "InvalidAllocationPool", "OutOfBoundsAllocationPool",
    )  # fmt: skip
    assert len(lite.ask("GET", "/subnets")["subnets"]) == 1


def test_the_dhcp_port_follows_the_subnets(api: Api) -> None:
    """One a network, with an address of each subnet that has DHCP on; gone with the last."""
    network = api.net()
    second = api.make("subnet", network_id=network["id"], ip_version=4, cidr="10.2.0.0/24")
    (port,) = api.ports(device_owner=DHCP_OWNER)
    assert [each["ip_address"] for each in port["fixed_ips"]] == ["10.1.0.2", "10.2.0.2"]
    off = {"subnet": {"enable_dhcp": False}}
    api.ask("PUT", f"/subnets/{second['id']}", off, status=200)
    (port,) = api.ports(device_owner=DHCP_OWNER)
    assert [each["ip_address"] for each in port["fixed_ips"]] == ["10.1.0.2"]
    api.ask("PUT", f"/ports/{port['id']}", {"port": {"name": "x"}}, status=409)
    assert api.ask("DELETE", f"/ports/{port['id']}", status=409)["type"] == "ServicePortInUse"
    api.ask("DELETE", f"/subnets/{network['subnet']['id']}", status=204)
    assert api.ports(device_owner=DHCP_OWNER) == []


def test_what_is_used_is_not_deleted(lite: Api) -> None:
    """409 while a port is there; then network and subnet go."""
    network = lite.net()
    port = lite.make("port", network_id=network["id"])
    path, below = f"/networks/{network['id']}", f"/subnets/{network['subnet']['id']}"
    assert lite.ask("DELETE", path, status=409)["type"] == "NetworkInUse"
    assert lite.ask("DELETE", below, status=409)["type"] == "SubnetInUse"
    lite.ask("DELETE", f"/ports/{port['id']}", status=204)
    lite.ask("DELETE", path, status=204)
    assert lite.ask("GET", below, status=404)["type"] == "SubnetNotFound"
    with lite.database.read() as connection:
        for table in (schema.port, schema.ip_allocation, schema.network_segment):
            assert connection.execute(select(table)).first() is None


def test_no_address_and_no_mac_twice_under_concurrent_requests(database_url: str) -> None:
    """Eight writers, one network: every port has an address and a MAC of its own."""
    api = Api(database_url)
    network = api.net()
    made: list[dict[str, Any]] = []

    def work() -> None:
        own = Api(database_url)
        for _ in range(6):
            made.append(own.make("port", network_id=network["id"]))
        own.database.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(made) == 48
    assert len({port["fixed_ips"][0]["ip_address"] for port in made}) == 48
    assert len({port["mac_address"] for port in made}) == 48
    api.database.close()


# ---- ports --------------------------------------------------------------------------------------


def add_host(api: Api, name: str) -> None:
    with api.database.write() as writer:
        writer.connection.execute(
            insert(schema.host).values(
                name=name, agent_id=NOBODY[:-1] + name[-1], bridge_mappings="{}",
                configuration="{}", admin_state_up=True, availability_zone="nova", description="",
                created_at=now(),
            )
        )  # fmt: skip


def test_a_port_is_bound_to_a_host_that_there_is(api: Api) -> None:
    """binding:host_id; ACTIVE once that host says that it is wired; agents are listed."""
    network = api.net()
    ask = {"network_id": network["id"], "binding:host_id": "host-1"}
    assert "no host 'host-1'" in api.refuse(400, "port", ask)["message"]
    add_host(api, "host-1")
    port = api.make("port", **ask)
    assert (port["status"], port["binding:vif_type"]) == ("DOWN", "bridge")
    with api.database.write() as writer:
        writer.connection.execute(
            insert(schema.port_status).values(port_id=port["id"], host="host-1", at=now())
        )
    assert api.ports(status="ACTIVE", id=port["id"])[0]["id"] == port["id"]
    (agent,) = api.ask("GET", "/agents")["agents"]
    assert (agent["host"], agent["alive"], agent["configurations"]["ports"]) == ("host-1", True, 1)
    assert api.ask("DELETE", f"/agents/{agent['id']}", status=409)["type"] == "AgentInUse"
    api.ask("PUT", f"/agents/{agent['id']}", {"agent": {"admin_state_up": False}}, status=200)
    assert api.ask("GET", f"/agents/{agent['id']}")["agent"]["admin_state_up"] is False
    assert api.ask("GET", "/agents", who=RED)["type"] == "PolicyNotAuthorized"


def test_options_and_pairs_of_a_port_are_checked(lite: Api) -> None:
    """What reaches a host's configuration is a name, a number or printable text."""
    network = lite.net()
    ask = {"network_id": network["id"]}
    for wrong in (
        {"extra_dhcp_opts": [{"opt_name": "x\n", "opt_value": "1"}]},
        {"extra_dhcp_opts": [{"opt_name": "mtu", "opt_value": "1\n2"}]},
        {"dns_name": "a b"},
        {"device_id": "a\x01b"},
        {"mac_address": "01:00:5e:00:00:01"},
        {"allowed_address_pairs": [{"ip_address": "x"}]},
        {"binding:profile": []},
    ):
        error = lite.refuse(400, "port", {**ask, **wrong})
        assert next(iter(wrong)) in error["message"], wrong
    assert len(lite.ports()) == 1
    port = lite.make("port", **ask, dns_name="WEB", extra_dhcp_opts=[
        {"opt_name": "mtu", "opt_value": "1400"}])  # fmt: skip
    assert port["dns_name"] == "web"
    assert port["dns_assignment"][0]["fqdn"] == "web.openstacklocal."


def test_a_port_changes_its_addresses(api: Api) -> None:
    """fixed_ips as a whole; what it keeps stays, what it gives up is free."""
    network = api.net()
    port = api.make("port", network_id=network["id"], device_id=NOBODY)
    path = f"/ports/{port['id']}"
    new = [{"ip_address": "10.1.0.50"}, {"ip_address": port["fixed_ips"][0]["ip_address"]}]
    changed = api.ask("PUT", path, {"port": {"fixed_ips": new}}, status=200)["port"]
    assert [each["ip_address"] for each in changed["fixed_ips"]] == ["10.1.0.50", "10.1.0.3"]
    api.ask("PUT", path, {"port": {"fixed_ips": new[:1]}}, status=200)
    assert api.make("port", network_id=network["id"])["fixed_ips"] == port["fixed_ips"]
    assert api.ports(fixed_ips="ip_address=10.1.0.50")[0]["id"] == port["id"]
    with api.database.read() as connection:
        told = connection.execute(
            select(schema.change.c.object_id).where(schema.change.c.kind == "instance")
        ).scalars()
        assert set(told) == {NOBODY}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_input_is_a_500(lite: Api, data: st.DataObject) -> None:
    """Whatever a client sends for whatever attribute, it is an answer with a reason."""
    resource = data.draw(st.sampled_from(lite.application.resources))
    names = st.sampled_from(sorted(resource.attributes)) | st.text(max_size=5)
    body = {resource.singular: data.draw(st.dictionaries(names, JSON, max_size=4))}
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        return
    lite.ask("POST", f"/{resource.path}", body)
    lite.ask("PUT", f"/{resource.path}/{NOBODY}", body)
    query = data.draw(st.text(max_size=30))
    name = data.draw(names)
    answer = lite.app.get(f"/v2.0/{resource.path}", params={name: query}, status="*")
    assert answer.status_int < 500
