"""Names come to one spelling or are refused."""

from __future__ import annotations

from ipaddress import ip_address as address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ca import names
from services.ca.refusal import Refused


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("example.test", "example.test"),
        ("WWW.Example.TEST", "www.example.test"),
        ("host1", "host1"),
        ("1.example", "1.example"),
        ("3com.test", "3com.test"),
        ("a-b--c.test", "a-b--c.test"),
        ("*.Example.test", "*.example.test"),
        ("xn--fsqu00a.xn--0zwm56d", "xn--fsqu00a.xn--0zwm56d"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a" * 63 + ".test", "a" * 63 + ".test"),
    ],
)
def test_good_dns_names_become_lower_case(text, normal):
    """A host name of letters, digits and inner hyphens is kept, in lower case."""
    assert names.dns_name(text, "/x") == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "example.test.",
        ".example.test",
        "a..test",
        "a_b.test",
        "-a.test",
        "a-.test",
        "a b.test",
        "a.test\n",
        "a.test\x00.evil.test",
        "bücher.example",
        "\u212aelvin.test",
        "xn--.test",
        "xn--a.test",
        "xn--abc-.test",
        "xn--i-ugn.test",  # "i" and U+200D, a joiner that nobody sees
        "xn--99999999999.test",
        "ab--cd.test",
        "192.0.2.1",
        "1",
        "a.0x7f",
        "0x.",
        "::1",
        "*",
        "*.test",
        "a.*.test",
        "*a.example.test",
        "a*.example.test",
        "*.*.example.test",
        "a" * 64 + ".test",
        ".".join(["a" * 49] * 6),
        "http://example.test",
        "example.test:443",
        "alice@example.test",
    ],
)
def test_other_dns_names_are_refused(text):
    """Everything else is refused with the field that the caller named."""
    with pytest.raises(Refused) as caught:
        names.dns_name(text, "/dns_names/3")
    assert caught.value.field == "/dns_names/3"
    assert caught.value.reason.isprintable()


def attempt(text: str) -> tuple[str, Refused | None]:
    try:
        return names.dns_name(text, "/x"), None
    except Refused as refused:
        return "", refused


@given(st.text(max_size=80))
def test_dns_name_is_idempotent_or_refuses(text):
    """Whatever text comes, the normal form is its own normal form, and nothing but Refused."""
    normal, refused = attempt(text)
    if refused is None:
        assert attempt(normal) == (normal, None)
    else:
        assert refused.reason.isascii()
        assert refused.reason.isprintable()
        assert len(refused.reason) < 300


@given(st.from_regex(r"\Axn--[a-z0-9-]{0,59}\Z"))
def test_any_punycode_is_decided(label):
    """No A-label, however broken, raises anything but Refused."""
    normal, refused = attempt(label + ".test")
    assert normal == label + ".test" or (refused is not None and refused.field == "/x")


def test_a_host_name_is_short_and_no_wildcard():
    """It has to fit the common name and name one host."""
    assert names.host_name("Host1.Example.test", "/x") == "host1.example.test"
    for text in ("*.example.test", "a" * 60 + ".test"):
        with pytest.raises(Refused):
            names.host_name(text, "/x")


@pytest.mark.parametrize("text", ["192.0.2.1", "127.0.0.1", "2001:db8::1", "::1", "fe80::1"])
def test_good_addresses(text):
    """Addresses that a host can have are taken."""
    assert names.ip_address(text, "/x") == address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.01",
        "192.0.2.0/24",
        "192.0.2",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:192.0.2.1",
        "fe80::1%eth0",
        "localhost",
    ],
)
def test_other_addresses_are_refused(text):
    """No address, a network, a zone, a second spelling, or no host's address."""
    with pytest.raises(Refused) as caught:
        names.ip_address(text, "/ip_addresses/0")
    assert caught.value.field == "/ip_addresses/0"


@pytest.mark.parametrize("text", ["spiffe://example.test/a/b", "https://example.test"])
def test_good_uris(text):
    """The plain shape is kept as it is."""
    assert names.uri(text, "/x") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe:example",
        "SPIFFE://example.test/a",
        "spiffe://Example.test/a",
        "spiffe://user@example.test/a",
        "spiffe://example.test:8443/a",
        "spiffe://example.test/a?b",
        "spiffe://example.test/a#b",
        "spiffe://example.test/%61",
        "spiffe://example.test//a",
        "spiffe://example.test/a/",
        "spiffe://example.test/../a",
        "spiffe://example.test/./a",
        "spiffe://192.0.2.1/a",
        "spiffe:///a",
        "spiffe://example.test/" + "a" * 2048,
        "spiffe://example.test/a\n",
    ],
)
def test_other_uris_are_refused(text):
    """All that would give one name two spellings is refused."""
    with pytest.raises(Refused):
        names.uri(text, "/x")


@pytest.mark.parametrize("text", ["alice", "Alice.B", "a@example.test", "mooring:project:1", "0"])
def test_good_principals_keep_their_case(text):
    """Users and groups are compared as they are."""
    assert names.principal(text, "/x") == text


@pytest.mark.parametrize("text", ["", " alice", "al ice", "a,b", "a=b", "é", "-a", "a\n", "a" * 65])
def test_other_principals_are_refused(text):
    """Nothing that a DN's text form, a log or a shell would have to quote."""
    with pytest.raises(Refused):
        names.principal(text, "/x")


@pytest.mark.parametrize("text", ["", " a", "a ", "a\n", "a\x7f", "a" * 65, "é" * 33])
def test_titles_are_printable_and_short(text):
    """An authority's name is printable and at most 64 octets long."""
    assert names.title("Prüfstelle 1", "/x") == "Prüfstelle 1"
    with pytest.raises(Refused):
        names.title(text, "/x")
