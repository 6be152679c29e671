"""A CSR becomes a typed request or is refused; nothing else ever comes out."""

from __future__ import annotations

import base64
from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.ca import der
from services.ca.keys import KeyType, generate_key
from services.ca.refusal import Refused
from services.ca.request import (
    CSR_BYTES,
    GREATEST_GROUPS,
    GREATEST_NAMES,
    CertificateRequest,
    make_request,
    parse_csr,
)

KEY = ec.generate_private_key(ec.SECP256R1())
COMMON_NAME = x509.NameAttribute(NameOID.COMMON_NAME, "alice")
NAMES = x509.SubjectAlternativeName(
    [
        x509.DNSName("WWW.Example.test"),
        x509.IPAddress(ip_address("192.0.2.1")),
        x509.UniformResourceIdentifier("spiffe://example.test/a"),
    ]
)


def csr(
    *extensions: tuple[x509.ExtensionType, bool],
    subject: tuple[x509.NameAttribute[str], ...] = (),
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY,
    algorithm: hashes.SHA256 | hashes.SHA224 | None = None,
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(x509.Name(subject))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)


def attempt(data: bytes) -> tuple[CertificateRequest | None, Refused | None]:
    try:
        return parse_csr(data), None
    except Refused as refused:
        return None, refused


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse_csr(data)
    assert caught.value.reason.isprintable()
    return caught.value


def pem(der: bytes, label: str = "CERTIFICATE REQUEST") -> bytes:
    body = base64.encodebytes(der)
    return f"-----BEGIN {label}-----\n".encode() + body + f"-----END {label}-----\n".encode()


GOOD = csr((NAMES, False), subject=(COMMON_NAME,))


@pytest.mark.parametrize("data", [GOOD, pem(GOOD), pem(GOOD, "NEW CERTIFICATE REQUEST")])
def test_a_request_is_read_from_der_and_pem(data):
    """Key, common name and alternative names come out in normal form."""
    request = parse_csr(data)
    assert request.public_key == KEY.public_key()
    assert request == CertificateRequest(
        request.public_key,
        common_name="alice",
        dns_names=("www.example.test",),
        ip_addresses=(ip_address("192.0.2.1"),),
        uris=("spiffe://example.test/a",),
    )


def test_openssl_writes_what_we_read(tmp_path, run):
    """A request made by `openssl req`, as an operator makes it, is taken."""
    made = run(
        *("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes"),
        *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "csr.pem"),
        *("-subj", "/C=DE/O=mooring:operators/O=team/CN=alice"),
        *("-addext", "subjectAltName=DNS:a.example.test,IP:192.0.2.1"),
        *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
    )
    assert made.code == 0, made.output
    request = parse_csr((tmp_path / "csr.pem").read_bytes())
    assert request.common_name == "alice"
    assert request.organizations == ("mooring:operators", "team")
    assert request.dns_names == ("a.example.test",)
    assert request.ip_addresses == (ip_address("192.0.2.1"),)
    assert not request.is_ca


def test_only_named_fields_are_copied():
    """Country, unit, mail, key usage, purposes and other extensions leave no trace."""
    subject = (
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "mooring:admins"),
        x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.test"),
        COMMON_NAME,
    )
    data = csr(
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), True),
        (x509.OCSPNoCheck(), False),
        subject=subject,
    )
    request = parse_csr(data)
    assert request == CertificateRequest(request.public_key, common_name="alice")


def test_who_asks_to_be_an_authority_is_heard():
    """CA:TRUE is not dropped in silence: the profile decides on it."""
    assert parse_csr(csr((x509.BasicConstraints(True, 0), True))).is_ca
    assert not parse_csr(csr((x509.BasicConstraints(False, None), True))).is_ca


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (x509.DNSName("a_b.example.test"), "/dns_names/0"),
        (x509.DNSName("example.test."), "/dns_names/0"),
        (x509.DNSName("192.0.2.1"), "/dns_names/0"),
        (x509.DNSName("b*.example.test"), "/dns_names/0"),
        (x509.IPAddress(ip_address("0.0.0.0")), "/ip_addresses/0"),
        (x509.IPAddress(ip_network("192.0.2.0/24")), "/csr"),
        (x509.UniformResourceIdentifier("http://a/b?c"), "/uris/0"),
        (x509.RFC822Name("a@example.test"), "/csr"),
        (x509.RegisteredID(NameOID.COMMON_NAME), "/csr"),
        (x509.DirectoryName(x509.Name([COMMON_NAME])), "/csr"),
    ],
)
def test_a_bad_alternative_name_is_refused_by_its_field(name, field):
    """The refusal points to the name that cannot be issued."""
    assert refusal(csr((x509.SubjectAlternativeName([name]), False))).field == field


def test_names_twice_are_refused_also_in_another_spelling():
    """Duplicates are found after normalising."""
    names = x509.SubjectAlternativeName([x509.DNSName("a.test"), x509.DNSName("A.TEST")])
    found = refusal(csr((names, False)))
    assert found.field == "/dns_names/1"
    assert "twice" in found.reason
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "team")
    assert refusal(csr(subject=(organization, organization))).field == "/organizations/1"


def test_two_common_names_are_refused():
    """Which of them would be the user?"""
    other = x509.NameAttribute(NameOID.COMMON_NAME, "root")
    assert refusal(csr(subject=(COMMON_NAME, other))).field == "/common_name"


def test_an_unknown_critical_extension_is_refused():
    """Critical means "not without this", so dropping it would not be what was asked for."""
    found = refusal(
        csr((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\0"), True))
    )
    assert found.field == "/csr"
    assert "1.2.3" in found.reason


def test_limits_of_size_and_number():
    """More octets, names or groups than the limits are refused by name."""
    assert refusal(b"\x30" * (CSR_BYTES + 1)).reason == f"larger than {CSR_BYTES} octets"
    key = KEY.public_key()
    names = [f"n{number}.test" for number in range(GREATEST_NAMES + 1)]
    assert len(make_request(key, dns_names=names[:-1]).dns_names) == GREATEST_NAMES
    with pytest.raises(Refused, match="more than 100"):
        make_request(key, dns_names=names)
    with pytest.raises(Refused, match="102 alternative names"):
        make_request(key, dns_names=names[:-1], ip_addresses=["192.0.2.1", "192.0.2.2"])
    with pytest.raises(Refused, match="more than 32"):
        make_request(key, organizations=[f"g{number}" for number in range(GREATEST_GROUPS + 1)])


def test_a_wrong_signature_is_refused():
    """Without the key nobody gets a certificate for it."""
    wrong = bytearray(GOOD)
    wrong[-1] ^= 1
    assert "signature" in refusal(bytes(wrong)).reason


def test_a_weak_hash_is_refused():
    """SHA-224, and by the same rule SHA-1 and MD5, do not prove possession."""
    assert "weak hash" in refusal(csr(algorithm=hashes.SHA224())).reason


def test_weak_keys_are_refused():
    """The key of a CSR is judged as every key is."""
    assert refusal(csr(key=ec.generate_private_key(ec.SECP256K1()))).field == "/public_key"
    assert refusal(csr(key=rsa.generate_private_key(65537, 1024))).field == "/public_key"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PKCS #10"),
        (b"\x30\x80", "not a PKCS #10"),
        (GOOD + b"\0", "not a PKCS #10"),
        (pem(GOOD) + pem(GOOD), "exactly one PEM block"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "exactly one"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nA\n-----END CERTIFICATE REQUEST-----\n", "base64"),
        (pem(GOOD[:-5]), "not a PKCS #10"),
    ],
)
def test_what_is_no_csr_is_refused(data, reason):
    """Empty, truncated, trailing, doubled and foreign input."""
    found = refusal(data)
    assert found.field == "/csr"
    assert reason in found.reason


def _sequence(content: bytes, tag: int = 0x30) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _signed(tbs: bytes) -> bytes:
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = KEY.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return _sequence(tbs + algorithm + _sequence(b"\0" + signature, 0x03))


def _with_attributes(*attributes: bytes) -> bytes:
    """A CSR of one's own making, signed correctly."""
    plain = csr()
    tbs = x509.load_der_x509_csr(plain).tbs_certrequest_bytes
    assert tbs.endswith(b"\xa0\0")
    content = tbs[2:-2] if tbs[1] < 0x80 else tbs[3:-2]
    return _signed(_sequence(content + _sequence(b"".join(attributes), 0xA0)))


def _extension_request(oid: str, *extensions: bytes) -> bytes:
    return _sequence(bytes.fromhex(oid) + _sequence(_sequence(b"".join(extensions)), 0x31))


PKCS9 = "06092a864886f70d01090e"
MICROSOFT = "060a2b06010401823702010e"
DNS_A = bytes.fromhex("300f0603551d11") + b"\x04\x08\x30\x06\x82\x04a.tt"
DNS_B = bytes.fromhex("300f0603551d11") + b"\x04\x08\x30\x06\x82\x04b.tt"


def test_a_request_signed_by_the_test_is_read():
    """The requests made octet by octet below are sound but for what they try."""
    request = parse_csr(_with_attributes(_extension_request(PKCS9, DNS_A)))
    assert request.dns_names == ("a.tt",)


def test_an_extension_twice_is_refused():
    """RFC 5280 section 4.2: no more than one instance."""
    found = refusal(_with_attributes(_extension_request(PKCS9, DNS_A, DNS_B)))
    assert "twice" in found.reason


@pytest.mark.parametrize("second", [PKCS9, MICROSOFT])
def test_two_extension_requests_are_refused(second):
    """Names that one reader shows and another overlooks are not possible."""
    data = _with_attributes(_extension_request(PKCS9, DNS_A), _extension_request(second, DNS_B))
    assert refusal(data).field == "/csr"


def test_indefinite_or_long_lengths_are_refused():
    """BER that is not DER: the outer length in one octet more than needed."""
    assert GOOD[1] == 0x82
    longer = b"\x30\x83\x00" + GOOD[2:]
    assert refusal(longer).field == "/csr"


def test_names_in_other_than_the_request_are_normalised_too():
    """Values given by a program go the same way as those of a CSR."""
    request = make_request(KEY.public_key(), dns_names=["A.Test"], ip_addresses=["::1"])
    assert request.dns_names == ("a.test",)
    assert request.ip_addresses == (ip_address("::1"),)
    with pytest.raises(Refused) as caught:
        make_request(generate_key().public_key(), dns_names=["a", "A"])
    assert caught.value.field == "/dns_names/1"


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outcome_is_decided(data: bytes) -> None:
    request, refused = attempt(data)
    assert (request is None) != (refused is None)
    if refused is not None:
        assert refused.reason.isprintable()
        assert refused.field.startswith("/")


@FUZZ
@given(st.binary(max_size=400))
@example(b"-----BEGIN")
@example(b"\x30\x84\xff\xff\xff\xff")
def test_random_octets_are_only_ever_refused(data):
    """Never a traceback, whatever comes."""
    outcome_is_decided(data)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(GOOD)),
)
def test_a_damaged_request_is_only_ever_refused(changes, length):
    """A good request with octets changed, or cut, is refused or (unchanged) read."""
    damaged = bytearray(GOOD)
    for place, value in changes:
        damaged[place] = value
    outcome_is_decided(bytes(damaged))
    outcome_is_decided(bytes(damaged[:length]))


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3),
    st.sampled_from(["names", "subject"]),
)
def test_a_damaged_request_with_a_good_signature_is_only_ever_refused(changes, where):
    """Damage inside what is signed, signed again, reaches the lazy parsers and is refused there."""
    tbs = bytearray(x509.load_der_x509_csr(GOOD).tbs_certrequest_bytes)
    start = 3 if where == "subject" else len(tbs) // 2
    for place, value in changes:
        tbs[start + place % (len(tbs) - start)] = value
    outcome_is_decided(_signed(bytes(tbs)))


@FUZZ
@given(st.lists(st.text(max_size=70), max_size=4), st.text(max_size=70))
def test_any_text_as_names_gives_normal_forms_or_a_refusal(texts, common_name):
    """Arbitrary Unicode as DNS names and users: normal forms or Refused."""
    try:
        request = make_request(
            KEY.public_key(), common_name=common_name, organizations=texts, dns_names=texts
        )
    except Refused as refused:
        found = refused.field
    else:
        found = ""
        assert make_request(KEY.public_key(), dns_names=request.dns_names).dns_names == (
            request.dns_names
        )
    assert found == "" or found.split("/")[1] in {"common_name", "organizations", "dns_names"}


@FUZZ
@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.decode("latin-1")), max_size=4))
def test_any_octets_as_dns_names_of_a_csr_are_decided(texts):
    """A SAN whose IA5Strings hold anything at all, under a good signature."""
    names = b"".join(_sequence(text.encode("latin-1"), 0x82) for text in texts)
    extension = _sequence(bytes.fromhex("0603551d11") + _sequence(_sequence(names), 0x04))
    outcome_is_decided(_with_attributes(_extension_request(PKCS9, extension)))


def signed_again(data: bytes, old: bytes, new: bytes) -> bytes:
    """The request with other octets of the same number in what is signed, and a good signature."""
    assert len(old) == len(new)
    info, algorithm, _ = der.read_one(data, der.SEQUENCE).parts()
    assert info.whole.count(old) == 1
    whole = info.whole.replace(old, new)
    signature = KEY.sign(whole, ec.ECDSA(hashes.SHA256()))
    return der.sequence(whole, algorithm.whole, der.element(der.BIT_STRING, b"\0" + signature))


def test_a_signature_with_unused_bits_is_refused() -> None:
    """Its octets verify as they are, and nobody may say that some of their bits do not count."""
    key = generate_key(KeyType.P256)
    builder = x509.CertificateSigningRequestBuilder(x509.Name([COMMON_NAME]))
    while True:  # the bits that are said to be unused have to be zero: every fourth is so
        data = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        info, algorithm, signature = der.read_one(data, der.SEQUENCE).parts()
        if signature.content[-1] & 3 == 0:
            break
    assert parse_csr(data).common_name == "alice"
    unused = der.element(der.BIT_STRING, b"\x02" + signature.content[1:])
    malleable = der.sequence(info.whole, algorithm.whole, unused)
    assert x509.load_der_x509_csr(malleable).is_signature_valid
    refused = refusal(malleable)
    assert (refused.field, refused.reason) == (
        "/csr",
        "not canonical DER: its signature has unused bits",
    )


def test_key_usage_in_a_longer_encoding_is_refused() -> None:
    """A list of named bits ends with a one, although it is only dropped."""
    usage = x509.KeyUsage(True, *[False] * 8)
    data = csr((usage, True))
    parse_csr(data)
    refused = refusal(signed_again(data, b"\x03\x02\x07\x80", b"\x03\x02\x06\x80"))
    assert (refused.field, refused.reason) == (
        "/csr",
        "not canonical DER: a key usage with trailing zeros",
    )


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("0101ff", "010101"),
        ("020180", "0202"),
        ("30053003020100", "30053003020200"),
        ("30060c0161020100", "30060c8101610201"),
        ("3106020101020102", "3106020102020101"),
        ("0603550403", "0603558003"),
        ("0603550403", "0603550483"),
        ("03020780", "03020781"),
        ("0402ffff", "24020400"),
        ("0500", "3080"),
        ("3000", "1000"),
    ],
)
def test_what_is_dropped_is_canonical_too(good: str, bad: str) -> None:
    """Attributes and extensions that nobody reads are either DER, or the request is refused."""
    other = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
    for value in (bytes.fromhex(good), bytes.fromhex(bad)):
        data = csr((x509.UnrecognizedExtension(other, value), False))
        if value.hex() == good:
            parse_csr(data)
        else:
            refused = refusal(data)
            assert refused.field == "/csr"
            assert refused.reason.startswith("not canonical DER: ")


def test_attributes_that_are_dropped_are_canonical_too() -> None:
    """A challenge password, which is not for us, in one piece, and what Microsoft's tools add."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([COMMON_NAME]))
    builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"a secret")
    version = x509.ObjectIdentifier("1.3.6.1.4.1.311.13.2.3")
    builder = builder.add_attribute(version, b"0\x04\x02\x02\x00\x7f")
    data = builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)
    assert parse_csr(data).common_name == "alice"
    # a UTF8String becomes a sequence with an integer that is not minimal
    nested = b"\x060\x04\x02\x02\x00\x7f"
    refused = refusal(signed_again(data, b"\x0c" + nested, b"0" + nested))
    assert refused.reason == "not canonical DER: an integer that is not minimal"
