"""`mooring instance` against a real server with mutual TLS."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from services.cli import client
from services.cli import instance as commands

ONE = "11111111-1111-4111-8111-111111111111"
NIC = "network=net-1,mac=FA:16:3E:00:00:01,address=10.1.0.4/24,gateway=10.1.0.1,dns=9.9.9.9"


def shown(mooring: Any, instance: str = "web1") -> dict[str, Any]:
    """The instance as JSON."""
    value = json.loads(mooring.run("instance", "show", instance, "-f", "json").stdout)
    assert isinstance(value, dict)
    return value


def test_everything_about_an_instance_can_be_said(mooring: Any, tmp_path: Path) -> None:
    """Every option of create reaches the instance, files byte for byte."""
    data = gzip.compress(b"#cloud-config\n", mtime=0) + b"\xff\x00"
    (tmp_path / "ud").write_bytes(data)
    (tmp_path / "id_ed25519.pub").write_text("ssh-ed25519 AAAA alice\n")
    (tmp_path / "vd").write_text('{"a": {"b": 1}}')
    made = mooring.run(
        *("instance", "create", "web1", "--project", "p1", "--id", ONE),
        *("--hostname", "web.example", "--host", "node-1", "--next-host", "node-2"),
        *("--type", "m1", "--image", "img", "--zone", "z1", "--security-group", "sg"),
        *("--key", str(tmp_path / "id_ed25519.pub"), "--key", f"two={tmp_path}/id_ed25519.pub"),
        *("--property", "a=b=c", "--property", "e=", "--tag", "env=prod"),
        *("--nic", NIC + ",address=10.1.0.5/24,floating=198.51.100.7,mtu=1400,group=g,dhcp=no"),
        *("--option", "http_tokens=required", "--option", "http_put_response_hop_limit=2"),
        *("--user-data", str(tmp_path / "ud"), "--vendor-data", str(tmp_path / "vd")),
        *("-f", "json"),
    )
    answer = json.loads(made.stdout)
    assert answer == shown(mooring, ONE)
    assert answer["user_data_size"] == len(data)
    assert {
        name: answer[name] for name in ("id", "project_id", "hostname", "host", "next_host")
    } == {
        "id": ONE,
        "project_id": "p1",
        "hostname": "web.example",
        "host": "node-1",
        "next_host": "node-2",
    }
    assert answer["keys"] == [
        {"name": "id_ed25519", "type": "ssh", "data": "ssh-ed25519 AAAA alice"},
        {"name": "two", "type": "ssh", "data": "ssh-ed25519 AAAA alice"},
    ]
    assert answer["properties"] == {"a": "b=c", "e": ""}
    assert answer["tags"] == {"env": "prod"}
    assert answer["vendor_data"] == {"a": {"b": 1}}
    assert answer["security_groups"] == ["sg"]
    assert (answer["instance_type"], answer["image_id"]) == ("m1", "img")
    assert answer["availability_zone"] == "z1"
    assert answer["options"]["http_tokens"] == "required"
    assert answer["options"]["http_put_response_hop_limit"] == 2
    (interface,) = answer["interfaces"]
    assert (interface["network_id"], interface["mac"]) == ("net-1", "fa:16:3e:00:00:01")
    assert (interface["mtu"], interface["security_groups"]) == (1400, ["g"])
    (subnet,) = interface["subnets"]
    assert subnet["gateway_ip"] == "10.1.0.1"
    assert subnet["dns_nameservers"] == ["9.9.9.9"]
    assert subnet["enable_dhcp"] is False
    assert subnet["addresses"] == [
        {"ip_address": "10.1.0.4", "floating_ip_address": None},
        {"ip_address": "10.1.0.5", "floating_ip_address": "198.51.100.7"},
    ]
    raw = mooring.run("instance", "show", "web1", "--user-data")
    assert raw.stdout_bytes == data


def test_a_document_comes_from_a_file_or_standard_input(mooring: Any, tmp_path: Path) -> None:
    """--file gives the document, the other options go over it; - is standard input."""
    document = {"name": "web1", "project_id": "p1", "tags": {"a": "1", "b": "2"}}
    mooring.run(
        *("instance", "create", "--file", "-", "--tag", "b=3", "--zone", "z"),
        stdin=json.dumps(document),
    )
    assert shown(mooring)["tags"] == {"a": "1", "b": "3"}
    mooring.run(
        *("instance", "create", "web2", "--project", "p1", "--user-data", "-"), stdin=b"\xff\x00\n"
    )
    assert mooring.run("instance", "show", "web2", "--user-data").stdout_bytes == b"\xff\x00\n"


def test_set_changes_what_is_given_and_unset_removes(mooring: Any, tmp_path: Path) -> None:
    """What is not mentioned stays; keys and interfaces go by name and MAC; objects are replaced."""
    key = tmp_path / "k.pub"
    key.write_text("ssh-ed25519 AAAA one")
    mooring.run(
        *("instance", "create", "web1", "--project", "p1", "--key", f"one={key}", "--nic", NIC),
        *("--tag", "a=1", "--property", "p=1", "--user-data", "-", "--host", "node-1"),
        *("--vendor-data", str(_json(tmp_path, {"old": {"x": 1}}))),
        stdin=b"data",
    )
    key.write_text("ssh-ed25519 BBBB two")
    mooring.run(
        *("instance", "set", "web1", "--tag", "b=2", "--key", f"one={key}", "--key", f"two={key}"),
        *("--nic", "network=net-2,mac=fa:16:3e:00:00:02", "--security-group", "sg"),
        *("--vendor-data", str(_json(tmp_path, {"new": 1}))),
    )
    value = shown(mooring)
    assert value["tags"] == {"a": "1", "b": "2"}
    assert [(k["name"], k["data"][12:16]) for k in value["keys"]] == [
        ("one", "BBBB"),
        ("two", "BBBB"),
    ]
    assert [i["network_id"] for i in value["interfaces"]] == ["net-1", "net-2"]
    assert value["interfaces"][0]["subnets"][0]["addresses"][0]["ip_address"] == "10.1.0.4"
    assert value["vendor_data"] == {"new": 1}
    assert (value["user_data_size"], value["host"], value["version"]) == (4, "node-1", 2)
    mooring.run("instance", "set", "web1", "--user-data", "-", stdin=b"longer")
    mooring.run(
        *("instance", "unset", "web1", "--tag", "a", "--tag", "none", "--property", "p"),
        *("--key", "one", "--nic", "FA-16-3E-00-00-01", "--host", "--vendor-data"),
        *("--security-group", "sg"),
    )
    value = shown(mooring)
    assert (value["tags"], value["properties"]) == ({"b": "2"}, {})
    assert [k["name"] for k in value["keys"]] == ["two"]
    assert [i["network_id"] for i in value["interfaces"]] == ["net-2"]
    assert (value["host"], value["vendor_data"], value["user_data_size"]) == (None, None, 6)
    mooring.run("instance", "unset", "web1", "--user-data")
    assert shown(mooring)["user_data_size"] is None
    mooring.run("instance", "set", "web1", "--name", "db1")
    assert shown(mooring, "db1")["hostname"] == "web1"


def _json(directory: Path, value: object) -> Path:
    path = directory / "value.json"
    path.write_text(json.dumps(value))
    return path


def test_a_change_that_is_overtaken_is_made_anew(mooring: Any) -> None:
    """set keeps what somebody else changed between its reading and its writing."""
    mooring.run("instance", "create", "web1", "--project", "p1")
    overtaken = []

    def overtake(environ: WSGIEnvironment, _start: StartResponse) -> None:
        if environ["REQUEST_METHOD"] == "PUT" and not overtaken:
            overtaken.append(True)
            mooring.run("instance", "set", "web1", "--tag", "theirs=1")

    mooring.server.before = overtake
    mooring.run("instance", "set", "web1", "--tag", "ours=1")
    assert overtaken
    assert shown(mooring)["tags"] == {"theirs": "1", "ours": "1"}


def test_lists_show_aligned_columns_or_json(mooring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list follows every page, filters, stops at the limit, and its table lines up."""
    monkeypatch.setattr(commands, "PAGE", 2)
    for number in range(5):
        mooring.run(
            *("instance", "create", f"web{number}", "--project", f"p{number % 2}"),
            *("--tag", f"n={number}", "--id", f"{number:08d}-1111-4111-8111-111111111111"),
            *("--nic", f"network=n,mac=fa:16:3e:00:00:0{number},address=10.1.0.{number + 9}/24"),
        )
    lines = mooring.run("instance", "list").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "PROJECT", "ID", "HOST", "ADDRESSES"]
    assert len(lines) == 6
    column = lines[0].index("ADDRESSES")
    assert [line[column:] for line in lines[1:]] == [f"10.1.0.{n + 9}" for n in range(5)]

    def names(*arguments: str) -> list[str]:
        listed = json.loads(mooring.run("instance", "list", "-f", "json", *arguments).stdout)
        return [item["name"] for item in listed]

    assert names() == [f"web{number}" for number in range(5)]
    assert names("--limit", "3") == ["web0", "web1", "web2"]
    assert names("--project", "p1") == ["web1", "web3"]
    assert names("--tag", "n=4") == ["web4"]
    assert names("--address", "10.1.0.9", "--network", "n") == ["web0"]
    assert names("--name", "none") == []
    assert mooring.run("instance", "list", "--name", "none").stdout.count("\n") == 1


def test_control_characters_do_not_reach_the_terminal(mooring: Any) -> None:
    """A property that holds an escape sequence is printed as text."""
    mooring.run("instance", "create", "web1", "--project", "p1", "--property", "a=\x1b[2Jx")
    out = mooring.run("instance", "show", "web1").stdout
    assert "\x1b" not in out
    assert "[2Jx" in out


def test_names_stand_for_one_instance(mooring: Any) -> None:
    """A name is enough if it is unique; two of a name need the id."""
    mooring.run("instance", "create", "web1", "--project", "p1", "--id", ONE)
    assert shown(mooring)["id"] == ONE
    assert shown(mooring, ONE.upper())["id"] == ONE
    mooring.run("instance", "create", "web1", "--project", "p1")
    line = mooring.failure("instance", "show", "web1", code=1)
    assert line == "several instances are named web1: say which by id"
    line = mooring.failure("instance", "show", "web2", code=4)
    assert line == "there is no instance named web2"


def test_deletion_goes_on_after_a_failure(mooring: Any) -> None:
    """Of several instances one that is not there is told, the others are deleted."""
    mooring.run("instance", "create", "web1", "--project", "p1", "--id", ONE)
    mooring.run("instance", "create", "web2", "--project", "p1")
    result = mooring.run("instance", "delete", "none", "web1", "web2", code=4)
    assert result.stdout.splitlines()[0] == f"deleted {ONE}"
    assert result.stdout.count("deleted") == 2
    assert result.stderr == "Error: none: there is no instance named none\n"


def test_refusals_are_one_line_with_the_field_and_a_code(mooring: Any) -> None:
    """The server's message and field in one line; the exit code says which kind it is."""
    create = ("instance", "create", "web1", "--project", "p1", "--id", ONE)
    mooring.run(*create)
    assert mooring.failure(*create, code=5) == "/id: the id is taken"
    line = mooring.failure(*create[:-1], "not-a-uuid", code=1)
    assert line.startswith("/id: does not match")
    line = mooring.failure("instance", "show", ONE.replace("1", "2"), code=4)
    assert line == "there is no such instance"
    line = mooring.failure("instance", "set", "web1", "--host", "n", user="bob", code=6)
    assert line.startswith("/host: bob may not")
    assert "may not" in mooring.failure("instance", "password", "web1", code=6)


def test_a_password_is_shown_and_reset(mooring: Any) -> None:
    """The project reads what the instance has set and may reset it."""
    mooring.run("instance", "create", "web1", "--project", "p1", "--id", ONE)
    mooring.server.store.set_password(ONE, b"encrypted==")
    out = mooring.run("instance", "password", "web1", "-f", "json", user="bob").stdout
    assert json.loads(out)["password"] == "encrypted=="
    mooring.run("instance", "password", "web1", "--reset", user="bob")
    assert mooring.server.store.password(ONE) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nic", "network=n"), "mac= is missing"),
        (("--nic", "network=n,mac=a,address=10.1.0.4"), "needs the length"),
        (("--nic", "network=n,mac=a,gateway=10.1.0.1"), "needs an address= of its family"),
        (("--nic", "network=n,mac=a,colour=red"), "colour is not one of"),
        (("--nic", "network=n,mac=a,mtu=x"), "invalid literal"),
        (("--nic", "network=n,mac=a,floating=1.2.3.4"), "belongs after its address"),
        (("--nic", "network=n,mac=a,dhcp=1"), "dhcp is yes or no"),
        (("--property", "a"), "is not KEY=VALUE"),
        (("--tag", "=a"), "is not KEY=VALUE"),
        (("--key", "/nonexistent"), "No such file"),
        (("--key", "{dir}/private"), "private key"),
        (("--key", "{dir}/two"), "more than one line"),
        (("--key", "{dir}/empty"), "is empty"),
        (("--vendor-data", "{dir}/two"), "is not JSON"),
        (("--vendor-data", "{dir}/list"), "no JSON object"),
        (("--user-data", "{dir}/large"), "more than 65536 bytes"),
        (("--user-data", "/nonexistent"), "No such file"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_sent(
    mooring: Any, tmp_path: Path, arguments: tuple[str, str], said: str
) -> None:
    """What is wrong with an argument names the option and exits with 2, without a request."""
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "list").write_text("[]")
    (tmp_path / "large").write_bytes(b"x" * 65537)
    name, value = arguments
    value = value.replace("{dir}", str(tmp_path))
    result = mooring.run("instance", "create", "x", "--project", "p", name, value, code=2)
    assert said in result.stderr
    assert name in result.stderr
    assert mooring.server.requests == []


def test_what_is_missing_is_told(mooring: Any) -> None:
    """A name, a project, a server and something to change are needed, each is said to be."""
    assert "NAME is missing" in mooring.run("instance", "create", code=2).stderr
    assert "--project is missing" in mooring.run("instance", "create", "x", code=2).stderr
    assert "nothing to set" in mooring.run("instance", "set", "x", code=2).stderr
    assert "nothing to unset" in mooring.run("instance", "unset", "x", code=2).stderr
    line = mooring.failure("instance", "list", code=2, MOORING_URL="")
    assert line == "no server: give --url or set MOORING_URL"
    assert "is not https://" in mooring.failure("--url", "host:8774", "instance", "list", code=2)


Fault = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes] | None]


def failing(count: int, fault: Fault) -> tuple[list[int], Fault]:
    """A fault for the first ``count`` requests, and the list that counts how often it was hit."""
    hits: list[int] = []

    def act(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes] | None:
        if len(hits) >= count:
            return None
        hits.append(1)
        return fault(environ, start_response)

    return hits, act


def away(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer that the server is away."""
    start_response("503 Service Unavailable", [("Retry-After", "0"), ("Content-Length", "0")])
    return []


def hang_up(environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
    """Break the connection without an answer."""
    raise ConnectionAbortedError


@pytest.mark.parametrize("fault", [away, hang_up])
def test_what_may_be_repeated_is(mooring: Any, fault: Fault) -> None:
    """A short outage is bridged for everything but a POST."""
    mooring.run("instance", "create", "web1", "--project", "p1", "--id", ONE)
    for arguments in (
        ("instance", "list"),
        ("instance", "create", "web2", "--project", "p1"),
        ("instance", "set", ONE, "--tag", "a=b"),
        ("instance", "delete", ONE),
    ):
        hits, mooring.server.before = failing(2, fault)
        mooring.run(*arguments)
        assert len(hits) == 2
    hits, mooring.server.before = failing(2, fault)
    mooring.failure("instance", "create", "w", "--project", "p1", "--id", ONE, code=3)
    assert len(hits) == 1


def test_a_lost_answer_is_not_a_failure(mooring: Any) -> None:
    """A change whose answer was lost is done once, and said to be done."""
    lost: list[str] = []

    def lose(environ: WSGIEnvironment) -> None:
        if environ["REQUEST_METHOD"] in ("PUT", "DELETE") and environ["REQUEST_METHOD"] not in lost:
            lost.append(environ["REQUEST_METHOD"])
            raise ConnectionAbortedError

    mooring.server.after = lose
    mooring.run("instance", "create", "web1", "--project", "p1")
    assert shown(mooring)["version"] == 1
    lost.clear()
    mooring.run("instance", "set", "web1", "--tag", "a=b")
    assert shown(mooring)["version"] == 2
    mooring.run("instance", "delete", "web1")
    assert lost == ["PUT", "DELETE"]


def test_an_outage_ends_at_the_deadline(mooring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stays away is given up, with its words and exit code 3."""
    hits, mooring.server.before = failing(99, away)
    assert mooring.failure("instance", "list", code=3) == "the server answered 503"
    assert len(hits) == 4
    hits, mooring.server.before = failing(99, hang_up)
    monkeypatch.setattr(client, "PAUSE", 60)
    line = mooring.failure("instance", "list", code=3)
    assert mooring.server.url in line
    assert len(hits) == 1


def test_a_server_that_drips_is_given_up(mooring: Any) -> None:
    """An answer that arrives byte by byte meets the deadline of the whole request."""
    stop: list[bool] = []

    def drip(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        import time

        start_response("200 OK", [("Content-Length", "100000")])
        while not stop:
            yield b" "
            time.sleep(0.02)

    mooring.server.before = drip
    line = mooring.failure("--timeout", "0.5", "instance", "list", code=3)
    stop.append(True)
    assert line.endswith("no answer in time")


def test_answers_that_make_no_sense_are_told(mooring: Any) -> None:
    """What is not our API is said to be so, without a traceback."""

    def html(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<html>"]

    mooring.server.before = html
    assert "is not JSON" in mooring.failure("instance", "list", code=3)


def test_tls_failures_are_told_in_a_line(mooring: Any, tmp_path: Path) -> None:
    """A server that cannot be trusted, a certificate that it refuses, a file that is none."""
    directory = mooring.server.directory
    line = mooring.failure("instance", "list", code=3, MOORING_CACERT=str(directory / "alice.crt"))
    assert "not to be trusted" in line
    other = mooring.server.url.replace("localhost", "127.0.0.1")
    assert "not to be trusted" in mooring.failure("--url", other, "instance", "list", code=3)
    mooring.failure("instance", "list", code=3, MOORING_CERT="", MOORING_KEY="")
    line = mooring.failure("instance", "list", code=2, MOORING_CERT="/nonexistent")
    assert "No such file" in line
    line = mooring.failure("instance", "list", code=2, MOORING_KEY=str(directory / "bob.key"))
    assert line.startswith("--tls-cert, --tls-key:")
    assert "needs --tls-cert" in mooring.failure("instance", "list", code=2, MOORING_CERT="")
    line = mooring.failure("instance", "list", code=2, MOORING_CACERT="/nonexistent")
    assert line.startswith("--tls-ca: /nonexistent")


def test_nobody_there_is_told(mooring: Any) -> None:
    """A refused connection names the server and exits with 3."""
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"https://localhost:{unused.getsockname()[1]}"
        line = mooring.failure("--url", url, "instance", "list", code=3)
    assert line == f"{url}: Connection refused"
