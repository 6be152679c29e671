"""middleware.client_certificate: what NGINX verified, into user and groups."""

from __future__ import annotations

import base64
import datetime
import time
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from middleware import gatekeeper
from middleware.client_certificate import (
    MAX_HEADER_CHARACTERS,
    ClientCertificate,
    filter_factory,
    read_certificate,
)
from services.core.errors import Failure
from services.core.identity import ClientIdentity

DAY = datetime.timedelta(days=1)


def ask(inner, environ, call, value, outcome="SUCCESS", required="false", clock=time.time):
    app = ClientCertificate(inner, required == "true", clock)
    call(app, environ(HTTP_X_SSL_CLIENT_VERIFY=outcome, HTTP_X_SSL_CLIENT_CERT=value))
    return inner.environ.get("mooring.client")


def test_user_and_groups(inner, environ, call, certificate, header):
    """CN is the user, every O a group; serial and fingerprint identify the certificate."""
    cert = certificate(("alice",), ("mooring:operators", "mooring:project:p1"), serial=99)
    assert ask(inner, environ, call, header(cert)) == ClientIdentity(
        user="alice",
        groups=frozenset({"mooring:operators", "mooring:project:p1"}),
        serial=99,
        fingerprint=cert.fingerprint(hashes.SHA256()).hex(),
    )


def test_a_host_is_a_member_of_hosts(inner, environ, call, certificate, header):
    """Only the group makes a host: an operator of the same name is none."""
    assert ask(inner, environ, call, header(certificate(("h1",), ("mooring:hosts",)))).host == "h1"
    assert ask(inner, environ, call, header(certificate(("h1",), ("x",)))).host is None


def test_names_are_taken_as_they_are(inner, environ, call, certificate, header):
    """Characters with a meaning in DN strings do not split a name into others."""
    tricky = "x,O=mooring:admins/O=mooring:admins"
    client = ask(inner, environ, call, header(certificate((tricky,), ("a+O=b",))))
    assert (client.user, client.groups) == (tricky, {"a+O=b"})


def test_headers_are_deleted_afterwards(inner, environ, call, certificate, header):
    """The application gets the identity, not what it was made of."""
    ask(inner, environ, call, header(certificate()))
    assert [key for key in inner.environ if "SSL" in key] == []


@pytest.mark.parametrize(
    "outcome", [None, "", "NONE", "FAILED", "FAILED:certificate has expired", "success", "SUCCESS,"]
)
def test_only_nginxs_success_counts(inner, environ, call, certificate, header, outcome):
    """A certificate that NGINX did not verify names nobody."""
    assert ask(inner, environ, call, header(certificate()), outcome) is None


@pytest.mark.parametrize(
    "shape",
    [
        {"users": ("alice", "bob")},
        {"users": ()},
        {"users": (" alice",)},
        {"users": ("al\nice",)},
        {"users": ("al\u202eice",)},
        {"groups": ("mooring:admins\n",)},
        {"groups": ("mooring:\x00admins",)},
        {"usages": (ExtendedKeyUsageOID.SERVER_AUTH,)},
        {"usages": None},
        {"not_after": -DAY / 2},
        {"not_before": DAY / 2},
    ],
    ids=str,
)
def test_certificates_that_name_nobody(inner, environ, call, certificate, header, shape):
    """Several or no CN, odd names, another usage, outside its dates: anonymous."""
    assert ask(inner, environ, call, header(certificate(**shape))) is None


def test_dates_are_checked_at_each_request(inner, environ, call, certificate, header):
    """A connection that outlives its certificate loses the identity, cache or not."""
    text = header(certificate())
    now = time.time()
    assert ask(inner, environ, call, text, clock=lambda: now) is not None
    assert ask(inner, environ, call, text, clock=lambda: now + 2 * 86400) is None
    assert ask(inner, environ, call, text, clock=lambda: now - 2 * 86400) is None


def test_required_refuses_with_403(inner, environ, call):
    """No valid certificate where one is required: 403, the application is not asked."""
    with pytest.raises(Failure) as caught:
        ask(inner, environ, call, None, None, required="true")
    assert (caught.value.status, caught.value.code) == (403, "certificate-required")
    assert inner.environ is None


def test_required_is_the_default(inner, environ, call):
    """Leaving the key out does not let anonymous clients in."""
    with pytest.raises(Failure):
        call(filter_factory({})(inner), environ())


def test_a_forged_certificate_header_is_not_believed(inner, environ, call, certificate, header):
    """From an untrusted peer the headers end at the gatekeeper."""
    app = gatekeeper.filter_factory({})(filter_factory({}, required="false")(inner))
    request = environ(
        REMOTE_ADDR="192.0.2.1",
        HTTP_X_SSL_CLIENT_VERIFY="SUCCESS",
        HTTP_X_SSL_CLIENT_CERT=header(certificate(("root",), ("mooring:admins",))),
    )
    call(app, request)
    assert "mooring.client" not in inner.environ


def test_other_encodings_are_refused(certificate):
    """Bare base64 and DER are not what NGINX sends; an overlong header is not even parsed."""
    cert = certificate()
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    der = cert.public_bytes(serialization.Encoding.DER)
    assert read_certificate(pem) is not None  # not escaped: the same bytes
    assert read_certificate(quote(der)) is None
    assert read_certificate("".join(pem.splitlines()[1:-1])) is None
    assert read_certificate(quote(pem, safe="") + "%0A" * MAX_HEADER_CHARACTERS) is None


@given(st.text(max_size=300))
def test_any_text_is_parsed_without_an_error(text):
    """Whatever stands in the header, the outcome is an identity or none."""
    assert read_certificate(text) is None


@pytest.fixture(scope="module")
def der(certificate):
    return certificate().public_bytes(serialization.Encoding.DER)


@given(st.data())
def test_damaged_certificates_are_parsed_without_an_error(der, data):
    """Bytes changed anywhere in a real certificate never raise."""
    damaged = bytearray(der)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    body = base64.encodebytes(bytes(damaged)).decode()
    text = quote(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
    verified = read_certificate(text)
    assert verified is None or verified.identity.user
