"""middleware.forwarded: the client's address from the right, everything else deleted."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from middleware.forwarded import MAX_ENTRIES, client_address, filter_factory
from services.core.errors import Failure


def address(inner, environ, value, **keys):
    def start(*_args):
        pass

    inner.environ = None
    filter_factory({}, **keys)(inner)(environ(HTTP_X_FORWARDED_FOR=value), start)
    return inner.environ.get("mooring.client_address")


@pytest.mark.parametrize(
    ("value", "hops", "expected"),
    [
        ("10.1.0.4", "1", "10.1.0.4"),
        ("10.1.0.4, 192.0.2.1", "2", "10.1.0.4"),
        ("10.1.0.4,192.0.2.1", "1", "192.0.2.1"),
        (" 10.9.9.9 ,\t10.1.0.4 , 192.0.2.1", "2", "10.1.0.4"),
        ("2001:DB8:0::4", "1", "2001:db8::4"),
        ("::ffff:10.1.0.4", "1", "10.1.0.4"),
        ("fe80::1", "1", "fe80::1"),
    ],
)
def test_reads_from_the_right(inner, environ, value, hops, expected):
    """The entry that our outermost proxy wrote counts; what is left of it is the client's."""
    assert address(inner, environ, value, trusted_hops=hops) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        ",",
        "10.1.0.4,",
        ",10.1.0.4",
        "10.1.0.4 10.1.0.5",
        "10.1.0.4:80",
        "[2001:db8::4]",
        "[2001:db8::4]:80",
        "fe80::1%eth0",
        "10.1.0.04",
        "010.1.0.4",
        "10.1",
        "167837956",
        "0x0a010004",
        "10.1.0.4/32",
        "unknown",
        "unix:",
        "_hidden",
        "instance, 10.1.0.4",
        "10.1.0.4;10.1.0.5",
        "１０.1.0.4",
        "é",
        ", ".join(["10.1.0.4"] * (MAX_ENTRIES + 1)),
        "10.1.0.4," + " " * 10_000 + "10.1.0.5",
    ],
)
def test_malformed_is_400(inner, environ, value):
    """Anything but a bounded list of plain addresses is refused, wherever in the list it stands."""
    with pytest.raises(Failure) as caught:
        address(inner, environ, value)
    assert (caught.value.status, caught.value.message) == (
        400,
        "X-Forwarded-For header is not valid.",
    )
    assert inner.environ is None


def test_fewer_entries_than_hops_is_400(inner, environ):
    """With two proxies of ours one entry means that something came around one of them."""
    with pytest.raises(Failure) as caught:
        address(inner, environ, "10.1.0.4", trusted_hops="2")
    assert caught.value.status == 400


def test_absent_is_400_unless_it_may_be(inner, environ):
    """By default the header has to be there; with required = false there is just no address."""
    with pytest.raises(Failure) as caught:
        address(inner, environ, None)
    assert (caught.value.status, caught.value.message) == (
        400,
        "X-Forwarded-For header is missing from request.",
    )
    assert address(inner, environ, None, required="false") is None


def test_malformed_is_400_also_when_not_required(inner, environ):
    """`required = false` allows absence, not nonsense."""
    with pytest.raises(Failure):
        address(inner, environ, "nonsense", required="false")


def test_what_proxies_say_is_deleted(inner, environ, call):
    """No later part of the pipeline can be tempted by another spelling."""
    names = [
        "FORWARDED",
        "X_REAL_IP",
        "X_FORWARDED_FOR",
        "X_FORWARDED_HOST",
        "X_FORWARDED_PORT",
        "X_FORWARDED_PREFIX",
        "X_FORWARDED_PROTO",
        "X_FORWARDED_SERVER",
    ]
    request = environ(**{f"HTTP_{name}": "10.1.0.4" for name in names})
    call(filter_factory({})(inner), request)
    assert [key for key in inner.environ if "FORWARDED" in key or "REAL_IP" in key] == []


@pytest.mark.parametrize("hops", ["0", "-1", "17", "two", "", "1.0", "²"])
def test_wrong_hops_stop_the_start(hops):
    """A count that no chain of proxies has is refused by name."""
    with pytest.raises(ValueError, match="forwarded: trusted_hops is 1 to 16, not"):
        filter_factory({}, trusted_hops=hops)


def test_wrong_required_stops_the_start():
    """Only true and false are understood, so that `no` is not read as something."""
    with pytest.raises(ValueError, match="forwarded: required is true or false, not 'no'"):
        filter_factory({}, required="no")


ENTRIES = st.one_of(
    st.ip_addresses().map(str),
    st.text(max_size=20),
    st.text(alphabet="0123456789abcdef:.%[], \t", max_size=50),
)


@given(st.lists(ENTRIES, max_size=20).map(",".join), st.integers(1, 4))
def test_any_header_is_an_address_or_a_value_error(value, hops):
    """Whatever is sent: a normalised address comes out, or the refusal that becomes 400."""
    try:
        found = client_address(value, hops)
    except ValueError:
        return
    assert str(ipaddress.ip_address(found)) == found
    assert "%" not in found


@given(st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=MAX_ENTRIES), st.data())
def test_the_left_part_never_matters(entries, data):
    """For any well-formed list the result depends on the last `hops` entries alone."""
    hops = data.draw(st.integers(1, len(entries)))
    assert client_address(", ".join(entries), hops) == client_address(
        ",".join(entries[-hops:]), hops
    )
