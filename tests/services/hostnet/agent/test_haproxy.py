"""The proxy's configuration, map and plan as text and values."""

import base64
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.headers import INSIDE_ONLY
from services.hostnet.agent import haproxy
from services.hostnet.agent.haproxy import (
    CLIENT_HEADERS,
    MAP_FILE,
    Actual,
    Controller,
    MetadataPath,
    NetworkPath,
    Plan,
    config_digest,
    parse_map,
    plan,
    render_config,
    render_hop_limit_nft,
    render_maps,
)

SAMPLE = Path(__file__).parents[4] / "etc" / "haproxy" / "haproxy.cfg.sample"
# The sample's key: nobody's.
SAMPLE_PATH = MetadataPath(
    host="host-a",
    host_key=b"0123456789abcdef0123456789abcdef",
    controllers=(
        Controller("192.0.2.1", 8775, "metadata.example.org"),
        Controller("2001:db8::2", 8775, "metadata.example.org"),
    ),
    ca_file="/etc/mooring/pki/chain.crt",
    cert_file="/etc/mooring/pki/host-host-a.pem",
    run_dir="/run/mooring/haproxy",
    networks=(
        NetworkPath("3f9c4e0a-5d0e-4f0c-9d43-6a1f6c1c2b11", "qdhcp-3f9c4e0a"),
        NetworkPath("flat"),
    ),
    log="/dev/log",
)
NASTY = [
    "",
    " ",
    "a b",
    "a\n",
    "a\nlisten x",
    'a"',
    "a'",
    "a\\",
    "a#",
    "a$HOME",
    "a%[src]",
    "a{",
    "é",
    "a\x00",
    "../a",
    "a/b",
    "-a",
    "a" * 300,
]


def test_the_sample_is_what_is_rendered():
    """etc/haproxy shows the configuration as it is; UPDATE_SAMPLES=1 writes it anew."""
    rendered = render_config(SAMPLE_PATH)
    if os.environ.get("UPDATE_SAMPLES"):
        SAMPLE.write_text(rendered)
    assert SAMPLE.read_text() == rendered


def test_no_header_of_the_inside_is_among_those_that_pass():
    """The registry of inside-only headers and the list of passed ones have nothing in common."""
    assert not {name.lower() for name in INSIDE_ONLY} & set(CLIENT_HEADERS)
    assert all(name == name.lower() for name in CLIENT_HEADERS)


@pytest.mark.parametrize("text", NASTY)
def test_text_that_could_be_configuration_is_refused(text):
    """Every field is matched whole, so that nothing can end a line, a word or a quotation."""
    network = NetworkPath("n")
    for make in (
        lambda: NetworkPath(text),
        lambda: NetworkPath("n", text),
        lambda: NetworkPath("n", None, (text,)),
        lambda: Controller(text, 1, "a"),
        lambda: Controller("192.0.2.1", 1, text),
        lambda: replace(SAMPLE_PATH, host=text),
        lambda: replace(SAMPLE_PATH, stamp=text or "g"),
        lambda: replace(SAMPLE_PATH, run_dir="/" + text),
        lambda: replace(SAMPLE_PATH, ca_file="/" + text),
        lambda: replace(SAMPLE_PATH, cert_file=text),
        lambda: replace(SAMPLE_PATH, log=text),
        lambda: render_maps({text: {"10.0.0.1": ("i", "p")}}),
        lambda: render_maps({network.id: {text: ("i", "p")}}),
        lambda: render_maps({network.id: {"10.0.0.1": (text, "p")}}),
        lambda: render_maps({network.id: {"10.0.0.1": ("i", text)}}),
    ):
        if text == "a/b":
            # a path may hold a slash, nothing else may
            try:
                assert isinstance(make(), MetadataPath)
            except ValueError:
                continue
        else:
            with pytest.raises(ValueError):
                make()


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_accepted_identity_is_one_line_of_two_words(instance, project):
    """Whatever is let through reads back as what it was."""
    try:
        (text,) = render_maps({"n": {"10.0.0.1": (instance, project)}}).values()
    except ValueError:
        return
    assert text == f"n/10.0.0.1 {instance}/{project}\n"
    assert len(text.split()) == 2
    assert text.isascii()


@pytest.mark.parametrize(
    "change",
    [
        {"host_key": b"short"},
        {"controllers": ()},
        {"networks": (NetworkPath("a"), NetworkPath("a", "other"))},
        {"networks": (NetworkPath("a"), NetworkPath("b"))},
    ],
)
def test_what_does_not_fit_together_is_refused(change):
    """A short key, no controller, one id or one listener twice."""
    with pytest.raises(ValueError):
        replace(SAMPLE_PATH, **change)


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_are_ports(port):
    """1 to 65535."""
    with pytest.raises(ValueError):
        NetworkPath("n", port=port)
    with pytest.raises(ValueError):
        Controller("192.0.2.1", port, "a")


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "::1", "::", "fe80::1%eth0", "10.0.0.01"])
def test_addresses_of_two_spellings_are_refused(address):
    """HAProxy and Python would write them differently, and the map would not match."""
    with pytest.raises(ValueError):
        render_maps({"n": {address: ("i", "p")}})


def test_addresses_are_written_as_haproxy_writes_them():
    """In inet_ntop's form, however they were given; the same address twice is refused."""
    (text,) = render_maps({"n": {"FD00:0:0::0001": ("i", "p")}}).values()
    assert text == "n/fd00::1 i/p\n"
    with pytest.raises(ValueError):
        render_maps({"n": {"fd00::1": ("i", "p"), "fd00:0::1": ("j", "p")}})


def test_the_map_is_sorted_and_reads_back():
    """The same identities give the same bytes, and `show map`'s form is understood."""
    identities = {"b": {"10.0.0.2": ("i2", "p"), "10.0.0.1": ("i1", "p")}, "a": {}}
    text = render_maps(identities)[MAP_FILE]
    assert text == "b/10.0.0.1 i1/p\nb/10.0.0.2 i2/p\n"
    assert parse_map(text) == {"b/10.0.0.1": "i1/p", "b/10.0.0.2": "i2/p"}
    shown = "".join(f"0x55d0c0ffee {line}\n" for line in text.splitlines()) + "\n"
    assert parse_map(shown) == parse_map(text)


def test_the_key_is_in_the_configuration_alone():
    """Not in what a log of our values would show, and once in the text."""
    assert "0123456789abcdef" not in repr(SAMPLE_PATH)
    key = base64.b64encode(SAMPLE_PATH.host_key).decode()
    assert render_config(SAMPLE_PATH).count(key) == 1
    assert key not in repr(plan(SAMPLE_PATH, {}, Actual()))


def test_every_change_changes_the_digest():
    """A running process tells from its digest whether it runs what is wanted."""
    digests = {
        config_digest(render_config(path))
        for path in (
            SAMPLE_PATH,
            replace(SAMPLE_PATH, host="host-b"),
            replace(SAMPLE_PATH, host_key=b"x" * 32),
            replace(SAMPLE_PATH, stamp="00"),
            replace(SAMPLE_PATH, log=None),
            replace(SAMPLE_PATH, networks=()),
        )
    }
    assert len(digests) == 6
    assert all(len(digest) == 64 for digest in digests)
    assert config_digest("global\n") == ""


# -- the plan: a literal table of what there is and what follows

IDENTITIES = {"flat": {"10.0.0.1": ("i", "p")}}
CONFIG = render_config(SAMPLE_PATH)
SETTLED = Actual(
    config=CONFIG,
    maps=render_maps(IDENTITIES),
    running=config_digest(CONFIG),
    entries={"flat/10.0.0.1": "i/p"},
    listening=frozenset(network.id for network in SAMPLE_PATH.networks),
)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (SETTLED, Plan()),
        (Actual(), Plan(config=CONFIG, maps=SETTLED.maps, process="start")),
        (replace(SETTLED, running=None), Plan(process="start")),
        (replace(SETTLED, running="old"), Plan(process="reload")),
        (replace(SETTLED, running="old", listening=frozenset()), Plan(process="reload")),
        (replace(SETTLED, running="old", entries={}), Plan(process="reload")),
        (replace(SETTLED, config="old"), Plan(config=CONFIG)),
        (replace(SETTLED, maps={}), Plan(maps=SETTLED.maps)),
        (replace(SETTLED, entries={}), Plan(entries=SETTLED.entries)),
        (
            replace(SETTLED, entries={}, maps={}),
            Plan(maps=SETTLED.maps, entries=SETTLED.entries),
        ),
    ],
)
def test_plan(actual, expected):
    """From each state the one next step; from the wanted state none."""
    assert plan(SAMPLE_PATH, IDENTITIES, actual) == expected
    assert bool(expected) == (actual is not SETTLED)


def test_a_lost_listener_is_let_go_first():
    """The network leaves the configuration, and the next plan brings it back."""
    kept = frozenset({SAMPLE_PATH.networks[0].id})
    step = plan(SAMPLE_PATH, IDENTITIES, replace(SETTLED, listening=kept))
    without = render_config(replace(SAMPLE_PATH, networks=SAMPLE_PATH.networks[:1]))
    assert step == Plan(config=without, process="reload", unbind=frozenset({"flat"}))
    after = replace(SETTLED, config=without, running=config_digest(without), listening=kept)
    assert plan(SAMPLE_PATH, IDENTITIES, after) == Plan(config=CONFIG, process="reload")


def test_haproxy_accepts_the_sample(tmp_path, pki):
    """With the directories of a test, and without a warning."""
    path = replace(
        SAMPLE_PATH,
        run_dir=str(tmp_path),
        ca_file=pki.path("chain.crt"),
        cert_file=pki.path("host-host-a.pem"),
        networks=(NetworkPath("flat"),),
    )
    (tmp_path / "haproxy.cfg").write_text(render_config(path))
    (tmp_path / MAP_FILE).write_text("")
    done = subprocess.run(
        ["haproxy", "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_one_rule_for_each_hop_limit():
    """1 to 64, for both families, each mark with its own limit."""
    script = render_hop_limit_nft()
    for limit in range(1, 65):
        assert f"meta mark {0x4D00 + limit:#x} ip ttl set {limit}\n" in script
        assert f"meta mark {0x4D00 + limit:#x} ip6 hoplimit set {limit}\n" in script


def test_the_page_names_every_header_and_limit():
    """docs/metadata-path.md says what passes and what the limits are."""
    page = (SAMPLE.parents[2] / "docs" / "metadata-path.md").read_text()
    for name in CLIENT_HEADERS:
        assert f"`{name}`" in page.lower()
    limits = (
        haproxy.MAX_HEADER_BYTES,
        haproxy.MAX_TARGET_BYTES,
        haproxy.MAX_BODY_BYTES,
        haproxy.INSTANCE_CONNECTIONS,
        haproxy.NETWORK_CONNECTIONS,
        haproxy.PROCESS_CONNECTIONS,
        haproxy.CONTROLLER_CONNECTIONS,
    )
    for limit in limits:
        assert str(limit) in page
    assert haproxy.HOP_LIMIT_TABLE in page
    for file in (SAMPLE.parents[1] / "nginx").iterdir():
        assert f"`{file.name}`" in page
