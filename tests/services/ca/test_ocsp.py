"""OCSP: requests as bytes, answers as OpenSSL, GnuTLS, cryptography and pkilint read them."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.ca import der, files
from services.ca.crl import Revocation
from services.ca.hierarchy import create_hierarchy
from services.ca.issue import issue
from services.ca.ocsp import (
    ANSWER_LIFETIME,
    CERTIFICATES_LIMIT,
    REFRESH,
    Known,
    MalformedRequest,
    Responder,
    ResponseStatus,
    parse_request,
)
from services.ca.profiles import OCSP, SERVER
from services.ca.refusal import Refused
from services.core.database import Unavailable

MINUTE = timedelta(minutes=1)
NONCE_OID = "1.3.6.1.5.5.7.48.1.2"


class Desk:
    """What a responder stands on: how certificates stand, and the delegates that were made."""

    def __init__(self, hierarchy, now) -> None:
        self.issuer = hierarchy.intermediate
        self.now = now
        self.standing: dict[int, object] = {}
        self.delegates: list[x509.Certificate] = []
        self.failure: Exception | None = None
        self.looked = 0

    def certify(self, issuer, request):
        if self.failure is not None:
            raise self.failure
        made = issue(OCSP, request, issuer, now=self.now)
        self.delegates.append(made)
        return made

    def lookup(self, issuer, serial):
        self.looked += 1
        if self.failure is not None:
            raise self.failure
        return self.standing.get(serial, Known.UNKNOWN)

    def responder(self, *more):
        return Responder([self.issuer, *more], self.certify, self.lookup)


@pytest.fixture
def desk(hierarchy, now):
    return Desk(hierarchy, now)


@pytest.fixture
def leaf(hierarchy, desk, now):
    """A certificate that is good."""
    made = hierarchy.issue_server(["a.example.test"], now=now).certificate
    desk.standing[made.serial_number] = Known.GOOD
    return made


def question(leaf, issuer, algorithm=None, nonce: bytes | None = None) -> bytes:
    """A request as the library builds it."""
    builder = library.OCSPRequestBuilder().add_certificate(
        leaf, issuer.certificate, algorithm or hashes.SHA1()
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def cert_id(issuer, serial: int) -> bytes:
    """A CertID by SHA-256, written by hand."""
    name = hashlib.sha256(issuer.certificate.subject.public_bytes()).digest()
    info = issuer.certificate.public_key().public_bytes(
        Encoding.X962, files.serialization.PublicFormat.UncompressedPoint
    )
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return der.sequence(
        der.sequence(der.oid("2.16.840.1.101.3.4.2.1"), der.element(der.NULL)),
        der.element(der.OCTET_STRING, name),
        der.element(der.OCTET_STRING, hashlib.sha256(info).digest()),
        der.element(der.INTEGER, octets),
    )


def handmade(*ids: bytes, extensions: bytes = b"", head: bytes = b"") -> bytes:
    """A request from its parts."""
    requests = der.sequence(*(der.sequence(each) for each in ids))
    return der.sequence(der.sequence(head, requests, extensions))


def nonce_extension(octets: bytes) -> bytes:
    value = der.element(der.OCTET_STRING, der.element(der.OCTET_STRING, octets))
    return der.explicit(2, der.sequence(der.sequence(der.oid(NONCE_OID), value)))


def read(answer):
    """The answer as the library reads it, its signature checked."""
    assert answer.status is ResponseStatus.SUCCESSFUL
    response = library.load_der_ocsp_response(answer.body)
    assert response.response_status is library.OCSPResponseStatus.SUCCESSFUL
    (delegate,) = response.certificates
    delegate.public_key().verify(
        response.signature, response.tbs_response_bytes, ec.ECDSA(response.signature_hash_algorithm)
    )
    return response


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA512()])
def test_good_is_said_of_what_was_issued(desk, leaf, now, algorithm):
    """By whatever hash the client names the issuer; for half a day."""
    response = read(desk.responder().answer(question(leaf, desk.issuer, algorithm), now))
    assert response.certificate_status is library.OCSPCertStatus.GOOD
    assert response.serial_number == leaf.serial_number
    assert response.hash_algorithm.name == algorithm.name
    moment = now.replace(microsecond=0)
    assert response.produced_at_utc == moment
    assert response.this_update_utc == moment - 5 * MINUTE
    assert response.next_update_utc == moment + ANSWER_LIFETIME


REASONS = [
    x509.ReasonFlags.key_compromise,
    x509.ReasonFlags.certificate_hold,
    x509.ReasonFlags.unspecified,
]


@pytest.mark.parametrize("reason", REASONS, ids=lambda each: each.value)
def test_revoked_is_said_with_time_and_reason(desk, leaf, now, reason):
    """RFC 6960 section 4.2.1; "unspecified" is not written, as in lists."""
    at = now - timedelta(days=1)
    desk.standing[leaf.serial_number] = Revocation(leaf.serial_number, at, reason)
    response = read(desk.responder().answer(question(leaf, desk.issuer), now))
    assert response.certificate_status is library.OCSPCertStatus.REVOKED
    assert response.revocation_time_utc == at.replace(microsecond=0)
    assert response.revocation_reason == (
        None if reason is x509.ReasonFlags.unspecified else reason
    )


def test_what_was_never_issued_or_is_anothers_is_unknown(desk, leaf, now):
    """Never "good" for a serial that the ledger has not; and such an answer is not kept."""
    other = create_hierarchy("Other", now=now)
    foreign = other.issue_server(["a.example.test"], now=now).certificate
    desk.standing[foreign.serial_number] = Known.GOOD
    responder = desk.responder()
    for asked in (
        question(foreign, other.intermediate),
        handmade(cert_id(desk.issuer, 4711)),
    ):
        answer = responder.answer(asked, now)
        assert read(answer).certificate_status is library.OCSPCertStatus.UNKNOWN
        assert not answer.cacheable


def test_several_certificates_have_one_answer(desk, leaf, now, der):
    """RFC 6960 section 4.1.1: as many single responses, in the order asked."""
    from services.ca import der as writer

    desk.standing |= {7: Known.GOOD, 8: Revocation(8, now)}
    ids = [cert_id(desk.issuer, serial) for serial in (7, 8, 9)]
    answer = desk.responder().answer(handmade(*ids), now)
    assert not answer.cacheable
    basic = der(der(answer.body).parts[1].parts[0].parts[1].content)
    singles = basic.parts[0].parts[2].parts
    assert [each.parts[0].whole for each in singles] == ids
    assert [each.parts[1].tag & 0x0F for each in singles] == [0, 1, 2]
    assert writer.read_one(answer.body, writer.SEQUENCE).whole == answer.body


def test_one_answer_has_one_signer(desk, leaf, now, hierarchy):
    """Certificates of two of our authorities in one request: the second one's is unknown."""
    other = create_hierarchy("Second", now=now)
    desk.standing |= {7: Known.GOOD}
    responder = desk.responder(other.intermediate)
    mixed = handmade(cert_id(other.intermediate, 7), cert_id(desk.issuer, 7))
    body = responder.answer(mixed, now).body
    second = other.intermediate.certificate.subject
    assert [each.issuer for each in desk.delegates] == [second]
    assert body
    # the other way round, each by itself
    for issuer in (desk.issuer, other.intermediate):
        response = read(responder.answer(handmade(cert_id(issuer, 7)), now))
        assert response.certificate_status is library.OCSPCertStatus.GOOD
        assert response.certificates[0].issuer == issuer.certificate.subject


# ---- nonces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 8, 16, 32, 33, 128])
def test_a_nonce_comes_back(desk, leaf, now, length):
    """RFC 9654: 16 to 32 octets must be served; all that may be sent are."""
    nonce = bytes(range(length))
    answer = desk.responder().answer(question(leaf, desk.issuer, nonce=nonce), now)
    extensions = read(answer).extensions
    assert extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
    assert not answer.cacheable


@pytest.mark.parametrize("length", [0, 129, 4096])
def test_a_nonce_of_another_size_is_malformed(desk, leaf, now, length):
    """RFC 9654 section 2.1: fewer than 1 or more than 128 octets."""
    asked = handmade(cert_id(desk.issuer, 7), extensions=nonce_extension(bytes(length)))
    assert desk.responder().answer(asked, now).status is ResponseStatus.MALFORMED_REQUEST


# ---- the delegate -------------------------------------------------------------------------------


def test_the_delegate_is_issued_by_the_authority_itself(
    desk, leaf, now, accept_certificate, hierarchy
):
    """id-kp-OCSPSigning, no-check, and no CA (RFC 6960 section 4.2.2.2)."""
    response = read(desk.responder().answer(question(leaf, desk.issuer), now))
    (delegate,) = response.certificates
    assert [delegate] == desk.delegates
    delegate.verify_directly_issued_by(desk.issuer.certificate)
    accept_certificate(delegate, desk.issuer.certificate, OCSP)
    key = delegate.public_key().public_bytes(
        Encoding.X962, files.serialization.PublicFormat.UncompressedPoint
    )
    assert response.responder_key_hash == hashlib.sha1(key).digest()


def test_a_delegate_is_kept_and_renewed_in_time(desk, leaf, now):
    """One for many answers; a new one, with a new key, when half of its life is over."""
    responder = desk.responder()
    for _ in range(3):
        responder.answer(question(leaf, desk.issuer, nonce=b"n" * 32), now)
    assert len(desk.delegates) == 1
    half = timedelta(days=3, hours=12)
    desk.now = now + half
    response = read(responder.answer(question(leaf, desk.issuer), desk.now))
    assert len(desk.delegates) == 2
    assert response.certificates == [desk.delegates[1]]
    assert desk.delegates[0].public_key() != desk.delegates[1].public_key()


def test_a_delegate_outlives_a_failed_renewal(desk, leaf, now):
    """The database is away when it is due: the old one goes on, until its end."""
    responder = desk.responder()
    asked = question(leaf, desk.issuer, nonce=b"n" * 32)
    responder.answer(asked, now)
    responder._lookup = lambda _issuer, _serial: Known.GOOD
    desk.failure = Unavailable("gone")
    later = now + timedelta(days=6, hours=20)
    response = read(responder.answer(asked, later))
    assert response.certificates == desk.delegates
    assert response.next_update_utc == desk.delegates[0].not_valid_after_utc
    with pytest.raises(Unavailable):
        responder.answer(asked, now + timedelta(days=8))


def test_replicas_have_delegates_of_their_own(desk, leaf, now):
    """Two processes share no key; either's answer verifies."""
    for _ in range(2):
        read(desk.responder().answer(question(leaf, desk.issuer), now))
    first, second = desk.delegates
    assert first.public_key() != second.public_key()


def test_an_authority_at_its_end_is_not_spoken_for(desk, leaf, now):
    """No delegate can be issued: "unauthorized", which is not signed."""
    desk.failure = None

    def refuse(_issuer, _request):
        raise Refused("/issuer", "not valid now")

    answer = Responder([desk.issuer], refuse, desk.lookup).answer(question(leaf, desk.issuer), now)
    assert answer.status is ResponseStatus.UNAUTHORIZED
    response = library.load_der_ocsp_response(answer.body)
    assert response.response_status is library.OCSPResponseStatus.UNAUTHORIZED


# ---- keeping answers ----------------------------------------------------------------------------


def test_an_answer_is_given_again_until_it_is_an_hour_old(desk, leaf, now):
    """The very same octets, so that caches and ETags work; the state is looked up each time."""
    responder = desk.responder()
    asked = question(leaf, desk.issuer)
    first = responder.answer(asked, now)
    assert first.cacheable
    assert responder.answer(asked, now + REFRESH - MINUTE) == first
    assert desk.looked == 2
    assert responder.answer(asked, now + REFRESH) != first
    with_nonce = responder.answer(question(leaf, desk.issuer, nonce=b"n" * 32), now)
    assert with_nonce.body != first.body


def test_a_revocation_shows_at_once_in_spite_of_a_kept_answer(desk, leaf, now):
    """And so does the end of a hold."""
    responder = desk.responder()
    asked = question(leaf, desk.issuer)
    serial = leaf.serial_number
    hold = Revocation(serial, now, x509.ReasonFlags.certificate_hold)
    for standing, said in (
        (Known.GOOD, "GOOD"),
        (hold, "REVOKED"),
        (Known.GOOD, "GOOD"),
        (Revocation(serial, now, x509.ReasonFlags.key_compromise), "REVOKED"),
    ):
        desk.standing[serial] = standing
        assert read(responder.answer(asked, now)).certificate_status.name == said


def test_a_kept_answer_holds_while_the_ledger_is_away(desk, leaf, now):
    """As long as it is valid; a question that was never answered is the caller's to refuse."""
    responder = desk.responder()
    asked = question(leaf, desk.issuer)
    first = responder.answer(asked, now)
    desk.failure = Unavailable("gone")
    assert responder.answer(asked, now + ANSWER_LIFETIME - MINUTE) == first
    for other, at in (
        (asked, now + ANSWER_LIFETIME),
        (question(leaf, desk.issuer, nonce=b"n" * 32), now),
        (handmade(cert_id(desk.issuer, 7)), now),
    ):
        with pytest.raises(Unavailable):
            responder.answer(other, at)


def test_kept_answers_are_bounded(desk, now, monkeypatch):
    """The least recently made leave first."""
    monkeypatch.setattr("services.ca.ocsp.KEPT_LIMIT", 3)
    responder = desk.responder()
    for serial in range(1, 6):
        desk.standing[serial] = Known.GOOD
        responder.answer(handmade(cert_id(desk.issuer, serial)), now)
    assert len(responder._kept) == 3


# ---- bytes --------------------------------------------------------------------------------------


def corpus() -> dict[str, bytes]:
    """Requests that cannot be answered, by what is wrong with them."""
    hash_of = der.sequence(der.oid("1.3.14.3.2.26"), der.element(der.NULL))
    octets = der.element(der.OCTET_STRING, b"x" * 20)
    seven = der.element(der.INTEGER, b"\x07")
    fine = der.sequence(hash_of, octets, octets, seven)
    unknown = der.sequence(
        der.oid("1.2.3.4"), der.element(der.BOOLEAN, b"\xff"), der.element(der.OCTET_STRING)
    )
    nonce = nonce_extension(b"n" * 32)
    twice = der.read_one(nonce, 0xA2).parts()[0].content
    return {
        "nothing": b"",
        "text": b"GET / HTTP/1.1",
        "an empty sequence": der.sequence(),
        "no list": der.sequence(der.sequence()),
        "an empty list": handmade(),
        "too many": handmade(*[fine] * (CERTIFICATES_LIMIT + 1)),
        "cut": handmade(fine)[:-1],
        "followed": handmade(fine) + b"\0",
        "indefinite": b"\x30\x80" + handmade(fine)[2:] + b"\0\0",
        "long length": b"\x30\x81\x10" + bytes(16),
        "length of three octets": b"\x30\x83\x01\x00\x00",
        "version 2": handmade(fine, head=der.explicit(0, der.element(der.INTEGER, b"\x01"))),
        "empty version": handmade(fine, head=der.explicit(0)),
        "integer without octets": handmade(
            der.sequence(hash_of, octets, octets, der.element(der.INTEGER))
        ),
        "integer that is not minimal": handmade(
            der.sequence(hash_of, octets, octets, der.element(der.INTEGER, b"\0\x07"))
        ),
        "three parts": handmade(der.sequence(hash_of, octets, octets)),
        "hash with parameters": handmade(
            der.sequence(der.sequence(der.oid("1.3.14.3.2.26"), seven), octets, octets, seven)
        ),
        "hash without OID": handmade(der.sequence(der.sequence(), octets, octets, seven)),
        "critical extension": handmade(fine, extensions=der.explicit(2, der.sequence(unknown))),
        "extension twice": handmade(fine, extensions=der.explicit(2, der.sequence(twice, twice))),
        "extension of one part": handmade(
            fine, extensions=der.explicit(2, der.sequence(der.sequence(der.oid(NONCE_OID))))
        ),
        "nonce that is no octet string": handmade(
            fine,
            extensions=der.explicit(2, der.sequence(der.sequence(der.oid(NONCE_OID), octets))),
        ),
        "wrong tag of extensions": handmade(fine, extensions=der.explicit(3, der.sequence())),
        "more behind": handmade(fine, extensions=nonce + der.sequence()),
        "signature of a wrong tag": der.sequence(
            der.sequence(der.sequence(der.sequence(fine))), der.explicit(1, der.sequence())
        ),
        "single request of three parts": der.sequence(
            der.sequence(der.sequence(der.sequence(fine, seven, seven)))
        ),
        "tag of two octets": b"\x3f\x81\x01\x00",
    }


@pytest.mark.parametrize(("name", "data"), corpus().items(), ids=corpus().keys())
def test_garbage_is_malformed(desk, now, name, data):
    """Never an exception: an unsigned answer of status 1, and nothing is looked up."""
    with pytest.raises(MalformedRequest):
        parse_request(data)
    answer = desk.responder().answer(data, now)
    assert answer.body.hex() == "30030a0101"
    assert (desk.looked, desk.delegates) == (0, [])


def test_what_is_optional_is_read(desk, now):
    """A version that is written, a requestor, extensions that are unknown, a signature."""
    seven = cert_id(desk.issuer, 7)
    unknown = der.sequence(der.sequence(der.oid("1.2.3.4"), der.element(der.OCTET_STRING)))
    head = der.explicit(0, der.element(der.INTEGER, b"\0")) + der.explicit(
        1, der.element(0x82, b"client.example.test")
    )
    single = der.sequence(seven, der.explicit(0, unknown))
    tbs = der.sequence(head, der.sequence(single), der.explicit(2, unknown))
    request = parse_request(der.sequence(tbs, der.explicit(0, der.sequence())))
    (asked,) = request.certificates
    assert (asked.serial, asked.hash_name, asked.encoded) == (7, "sha256", seven)
    assert request.nonce is None
    desk.standing[7] = Known.GOOD
    answer = desk.responder().answer(der.sequence(tbs), now)
    assert read(answer).certificate_status is library.OCSPCertStatus.GOOD


def test_an_unknown_hash_names_no_issuer(desk, now):
    """MD5, say: the issuer cannot be found, so the certificate is unknown."""
    asked = der.sequence(
        der.sequence(der.oid("1.2.840.113549.2.5")),
        *[der.element(der.OCTET_STRING, b"x" * 16)] * 2,
        der.element(der.INTEGER, b"\x07"),
    )
    answer = desk.responder().answer(handmade(asked), now)
    assert answer.status is ResponseStatus.SUCCESSFUL
    assert desk.looked == 0


FINE = handmade(
    corpus()["nothing"]
    or der.sequence(
        der.sequence(der.oid("1.3.14.3.2.26"), der.element(der.NULL)),
        *[der.element(der.OCTET_STRING, b"x" * 20)] * 2,
        der.element(der.INTEGER, b"\x07"),
    )
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.tuples(st.integers(0, len(FINE) - 1), st.integers(0, 255)))
@example((0, 0x31))
def test_no_octets_break_the_parser(data):
    """Any bytes, and a good request with one octet changed: read or malformed, nothing else."""
    if isinstance(data, tuple):
        at, octet = data
        data = FINE[:at] + bytes([octet]) + FINE[at + 1 :]
    try:
        request = parse_request(data)
    except MalformedRequest:
        return
    assert request.certificates


# ---- relying parties ----------------------------------------------------------------------------


@pytest.fixture
def answers(desk, leaf, now, hierarchy, tmp_path):
    """Files of a good and a revoked answer with what checks them: DIR/good.der, revoked.der."""
    hierarchy.write(tmp_path)
    files.write_certificates(tmp_path / "leaf.crt", leaf)
    responder = desk.responder()
    (tmp_path / "good.der").write_bytes(responder.answer(question(leaf, desk.issuer), now).body)
    desk.standing[leaf.serial_number] = Revocation(
        leaf.serial_number, now, x509.ReasonFlags.key_compromise
    )
    (tmp_path / "revoked.der").write_bytes(responder.answer(question(leaf, desk.issuer), now).body)
    desk.standing[leaf.serial_number] = Known.GOOD
    return tmp_path


@pytest.mark.parametrize(("name", "said"), [("good", "good"), ("revoked", "revoked")])
def test_openssl_believes_the_answer(answers, run, name, said):
    """`openssl ocsp -respin`: verified through the delegate up to the root."""
    outcome = run(
        *("openssl", "ocsp", "-respin", answers / f"{name}.der", "-no_nonce"),
        *("-issuer", answers / "intermediate.crt", "-cert", answers / "leaf.crt"),
        *("-CAfile", answers / "chain.crt"),
    )
    assert outcome.code == 0, outcome.output
    assert "Response verify OK" in outcome.output
    assert f"leaf.crt: {said}" in outcome.output
    assert ("Reason: keyCompromise" in outcome.output) is (name == "revoked")


def test_gnutls_believes_the_answer(answers, run):
    """`ocsptool --verify-response`."""
    for name in ("good", "revoked"):
        outcome = run(
            *("ocsptool", "-e", "--load-trust", answers / "chain.crt"),
            *("--infile", answers / f"{name}.der"),
        )
        assert outcome.code == 0, outcome.output
        assert "Verifying OCSP Response: Success." in outcome.output


def test_the_linter_finds_nothing(answers, desk, leaf, now, pkilint):
    """pkilint's OCSP linter, with one certificate, several, and a nonce."""
    desk.standing |= {7: Known.GOOD, 8: Revocation(8, now)}
    responder = desk.responder()
    several = responder.answer(handmade(*(cert_id(desk.issuer, each) for each in (7, 8, 9))), now)
    (answers / "several.der").write_bytes(several.body)
    nonce = responder.answer(question(leaf, desk.issuer, nonce=bytes(range(32))), now)
    (answers / "nonce.der").write_bytes(nonce.body)
    for name in ("good", "revoked", "several", "nonce"):
        assert pkilint("lint_ocsp_response", answers / f"{name}.der") == []


def test_a_delegate_is_no_server(desk, leaf, now):
    """Its purpose is the answers, and nothing else of ours accepts it."""
    desk.responder().answer(question(leaf, desk.issuer), now)
    (delegate,) = desk.delegates
    usage = delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == list(OCSP.extended_key_usage)
    assert not set(usage) & set(SERVER.extended_key_usage)
