"""Straight at NGINX, past the host's proxy: certificates, signatures, and which host may ask."""

import json
import socket
import ssl
import time

import pytest
from stand import LOOPBACK, receive, request_bytes

from services.ca.hierarchy import create_hierarchy
from services.core.signature import sign_v1

pytestmark = pytest.mark.e2e

UUID = "/openstack/latest/meta_data.json"
NOVA_SECRET = b"the secret that Neutron's metadata agent shares with us"


@pytest.fixture(scope="module")
def claim(red):
    """The true fields of the red instance's signature."""
    return {
        "instance": red.id,
        "project": "project-red",
        "network": "red",
        "address": red.address,
    }


@pytest.fixture(scope="module")
def hosts(house):
    """More hosts with good certificates."""
    for name in ("host-2", "host-3"):
        house.stand.issue_host(name)


def changed(headers, **values):
    """The headers with some values replaced; None takes one away. `_` is `-` in the names."""
    new = {name.replace("_", "-").lower(): value for name, value in values.items()}
    kept = [(name, new.get(name.lower(), value)) for name, value in headers]
    return [(name, value) for name, value in kept if value is not None]


def assert_refused(answer, status):
    """A refusal in plain text that is never empty and says nothing of why."""
    assert answer.status == status, answer.text
    assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert answer.text.startswith(f"{status} ")
    if status == 403:
        assert answer.text == "403 Forbidden\n\nInvalid proxy request signature.\n\n   "


def test_m4_a_right_signature_is_served(house, claim, red):
    """The control of every refusal here: the true claim gets the instance's documents."""
    answer = house.ask(house.signed("host-1", target=UUID, **claim), target=UUID)
    assert json.loads(answer.body)["uuid"] == red.id


def test_m4_a_wrong_signature_is_refused(house, claim):
    """Another signature in every form that one may take: 403 and the same words."""
    right = house.signed("host-1", target=UUID, **claim)
    signature = dict(right)["X-Mooring-Signature"]
    flipped = signature[:-1] + ("0" if signature[-1] != "0" else "1")
    forms = [flipped, "0" * 64, signature.upper(), signature[:-2], signature + "00", "é" * 32, "x"]
    for wrong in forms:
        answer = house.ask(changed(right, X_Mooring_Signature=wrong), target=UUID)
        assert_refused(answer, 403)


def test_m4_another_projects_id_is_refused(house, claim):
    """Signed or not, an instance of another project is 403 or the 404 of an unknown one."""
    right = house.signed("host-1", target=UUID, **claim)
    assert_refused(house.ask(changed(right, X_Tenant_ID="project-blue"), target=UUID), 403)
    signed = house.signed("host-1", target=UUID, **{**claim, "project": "project-blue"})
    assert_refused(house.ask(signed, target=UUID), 404)


def test_m4_a_foreign_instance_is_refused(house, claim, blue):
    """Another instance's id in a signed request is 403; an unknown one's, well signed, is 404."""
    right = house.signed("host-1", target=UUID, **claim)
    assert_refused(house.ask(changed(right, X_Instance_ID=blue.id), target=UUID), 403)
    unknown = "99999999-0000-4000-8000-000000000000"
    signed = house.signed("host-1", target=UUID, **{**claim, "instance": unknown})
    assert_refused(house.ask(signed, target=UUID), 404)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Mooring-Time", lambda: str(int(time.time()) + 1)),
        ("X-Mooring-Network", lambda: "blue"),
        ("X-Forwarded-For", lambda: "10.1.0.5"),
    ],
)
def test_every_signed_header_is_covered(house, claim, header, value):
    """Time, network and address cannot be changed under a signature."""
    right = house.signed("host-1", target=UUID, **claim)
    answer = house.ask(changed(right, **{header.replace("-", "_"): value()}), target=UUID)
    assert_refused(answer, 403)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/latest/user-data"),
        ("GET", UUID + "?x"),
        ("GET", UUID + "/"),
        ("GET", "/" + UUID),
        ("GET", UUID.replace("meta_data", "meta%5fdata")),
        ("HEAD", UUID),
        ("PUT", UUID),
    ],
)
def test_method_and_target_are_covered(house, claim, method, target):
    """A signature for one method and target is worth nothing for another one."""
    right = house.signed("host-1", target=UUID, **claim)
    answer = house.ask(right, method=method, target=target)
    assert answer.status == 403


@pytest.mark.parametrize("seconds", [-3600, -120, 120, 3600])
def test_a_signature_ends(house, claim, seconds):
    """Two minutes old or from the future, a well-made signature is refused (max_age is 60 s)."""
    old = house.signed("host-1", target=UUID, **claim, time=int(time.time()) + seconds)
    assert_refused(house.ask(old, target=UUID), 403)


@pytest.mark.parametrize(
    "name",
    ["X-Instance-ID", "X-Tenant-ID", "X-Mooring-Network", "X-Mooring-Time", "X-Forwarded-For"],
)
def test_a_missing_or_doubled_header_makes_nobody_else(house, claim, blue, name):
    """Without one of the headers nobody is served; a second, other value never wins."""
    right = house.signed("host-1", target=UUID, **claim)
    missing = house.ask(changed(right, **{name.replace("-", "_"): None}), target=UUID)
    assert missing.status in (400, 403)
    other = {
        "X-Instance-ID": blue.id,
        "X-Tenant-ID": "project-blue",
        "X-Mooring-Network": "blue",
        "X-Mooring-Time": str(int(time.time()) + 5),
        "X-Forwarded-For": "10.1.0.5",
    }[name]
    # NGINX passes on the first of two, newer ones join them; of X-Forwarded-For the last counts.
    before, after = ([(name, other), *right], [*right, (name, other)])
    answers = [house.ask(headers, target=UUID) for headers in (before, after)]
    statuses = [answer.status for answer in answers]
    assert any(status in (400, 403) for status in statuses)
    for answer in answers:
        assert answer.status in (400, 403) or json.loads(answer.body)["uuid"] == claim["instance"]


def test_another_hosts_key_or_certificate_is_refused(house, claim, hosts):
    """A signature goes with the certificate of its host alone."""
    mine = house.signed("host-1", target=UUID, **claim)
    assert_refused(house.ask(mine, target=UUID, user="host-host-2"), 403)
    others = house.signed("host-2", target=UUID, **claim)
    assert_refused(house.ask(others, target=UUID, user="host-host-1"), 403)


def test_a_host_gets_no_other_hosts_instance(house, claim, hosts):
    """Certificate and signature of host-2 are good; the instance is not its: 404 as if unknown."""
    signed = house.signed("host-2", target=UUID, **claim)
    unknown = house.signed(
        "host-2", target=UUID, **{**claim, "instance": "99999999-0000-4000-8000-000000000000"}
    )
    answers = [house.ask(each, target=UUID, user="host-host-2") for each in (signed, unknown)]
    for answer in answers:
        assert_refused(answer, 404)
    assert answers[0].body == answers[1].body


def test_during_a_move_both_hosts_are_served(house, hosts):
    """`next_host` may ask from the moment it is named; afterwards the former host may not."""
    moving = house.instance()
    claim = {
        "instance": moving.id,
        "project": "project-red",
        "network": "red",
        "address": moving.address,
    }

    def statuses():
        return [
            house.ask(
                house.signed(host, target=UUID, **claim), target=UUID, user=f"host-{host}"
            ).status
            for host in ("host-1", "host-2", "host-3")
        ]

    assert statuses() == [200, 404, 404]
    house.change(moving.id, next_host="host-2")
    assert statuses() == [200, 200, 404]
    house.change(moving.id, host="host-2", next_host=None)
    assert statuses() == [404, 200, 404]


def test_only_hosts_get_metadata(house, claim):
    """An operator's certificate is valid, and no host's: 403 with any signature."""
    for user in ("operator", "admin"):
        signed = house.signed("alice", target=UUID, **claim)
        assert_refused(house.ask(signed, target=UUID, user=user), 403)


def test_without_a_certificate_there_is_no_way_in(house, claim):
    """NGINX answers 400 before anything is looked at."""
    signed = house.signed("host-1", target=UUID, **claim)
    answer = house.ask(signed, target=UUID, user=None)
    assert_refused(answer, 400)


def test_a_certificate_of_another_ca_is_refused(house, claim, tmp_path):
    """Same names, another root: 400."""
    forged = create_hierarchy("Mooring stand")
    forged.issue_host("host-1").write(tmp_path, "host-host-1", bundle=True)
    context = ssl.create_default_context(cafile=str(house.stand.etc / "pki" / "root.crt"))
    context.load_cert_chain(tmp_path / "host-host-1.crt", tmp_path / "host-host-1.key")
    signed = house.signed("host-1", target=UUID, **claim)
    answer = house.ask(signed, target=UUID, context=context)
    assert_refused(answer, 400)


def test_nginx_speaks_tls_alone(house):
    """Plain HTTP on the metadata port is 400 and reaches no one."""
    with socket.create_connection((LOOPBACK, house.stand.metadata_port), 10) as plain:
        plain.sendall(request_bytes("GET", "/"))
        assert receive(plain).status == 400


def nova(claim, signature, **values):
    """The headers of Neutron's metadata agent."""
    headers = [
        ("X-Forwarded-For", claim["address"]),
        ("X-Instance-ID", claim["instance"]),
        ("X-Tenant-ID", claim["project"]),
        ("X-Instance-ID-Signature", signature),
    ]
    return changed(headers, **values)


def test_version_1_is_off_unless_it_is_configured(house, claim):
    """Nova's signature, right under every secret that we have, is not looked at as shipped."""
    secret = (house.stand.etc / "secrets" / "signature" / "current").read_bytes()
    signature = sign_v1(secret, claim["instance"])
    house.sensitive.add(signature)
    answer = house.ask(nova(claim, signature), target=UUID)
    assert answer.status in (400, 403)


def enable_version_1(stand):
    """Configure what docs/pipelines.md says about nova_secrets."""
    directory = stand.etc / "secrets" / "nova"
    directory.mkdir(mode=0o750)
    stand.write_secret(directory / "current", NOVA_SECRET)
    paste = stand.etc / "metadata.ini"
    line = "secrets = %(here)s/secrets/signature\n"
    text = paste.read_text()
    assert text.count(line) == 1
    paste.write_text(text.replace(line, line + "nova_secrets = %(here)s/secrets/nova\n"))


@pytest.fixture(scope="module")
def neutrons(build):
    """A stand that accepts version 1 as well, and one instance of it."""
    with build(before=enable_version_1) as house:
        house.stand.issue_host("host-2")
        document = house.document("red", "10.1.0.4", "fa:16:3e:00:00:01")
        document["id"] = "10000000-0000-4000-8000-000000000004"
        house.create(document)
        yield house


@pytest.fixture(scope="module")
def their(neutrons):
    """The claim of that instance, and its signature."""
    claim = {
        "instance": "10000000-0000-4000-8000-000000000004",
        "project": "project-red",
        "address": "10.1.0.4",
    }
    signature = sign_v1(NOVA_SECRET, claim["instance"])
    neutrons.sensitive.add(signature)
    return claim, signature


def test_version_1_serves_a_neutron_agent(neutrons, their):
    """With nova_secrets the headers of Neutron's agent are enough, behind a host's certificate."""
    answer = neutrons.ask(nova(*their), target=UUID)
    assert json.loads(answer.body)["uuid"] == their[0]["instance"]
    # Version 2 goes on beside it.
    signed = neutrons.signed("host-1", target=UUID, **their[0])
    assert neutrons.ask(signed, target=UUID).status == 200


def test_version_1_refusals(neutrons, their, claim):
    """Wrong signature 403, missing header 400 with its name, another project's 404, other host 404.

    A wrong version 2 signature is not saved by a right version 1 signature beside it.
    """
    ask = neutrons.ask
    assert_refused(ask(nova(*their, X_Instance_ID_Signature="0" * 64), target=UUID), 403)
    assert_refused(ask(nova(*their, X_Instance_ID_Signature="\u00e9" * 64), target=UUID), 403)
    assert_refused(ask(nova(*their, X_Tenant_ID="project-blue"), target=UUID), 404)
    assert_refused(ask(nova(*their), target=UUID, user="host-host-2"), 404)
    for name in ("X-Instance-ID", "X-Tenant-ID", "X-Instance-ID-Signature"):
        answer = ask(nova(*their, **{name.replace("-", "_"): None}), target=UUID)
        assert_refused(answer, 400)
        assert f"{name} header is missing from request." in answer.text
    both = neutrons.signed("host-1", target="/other", **their[0])
    right_v1 = [("X-Instance-ID-Signature", their[1])]
    assert_refused(ask([*both, *right_v1], target=UUID), 403)


def test_a_neutron_agent_gets_only_statuses_that_it_knows(neutrons, their):
    """401 and 405 become 403 and 400, which a stock agent passes on."""
    neutrons.change(their[0]["instance"], options={"http_tokens": "required"})
    assert neutrons.ask(nova(*their), target=UUID).status == 403
    neutrons.change(their[0]["instance"], options={"http_tokens": "optional"})
    assert neutrons.ask(nova(*their), method="DELETE", target=UUID).status == 400
