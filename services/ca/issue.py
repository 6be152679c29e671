"""Making certificates: one builder for all of them, and what a profile adds to it.

`prepare` decides everything and signs nothing, so that a caller can reserve the serial and record
what is about to be signed before `issue` or the signer makes it a certificate.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.ca.keys import KeyType, PublicKey, key_identifier, key_type
from services.ca.profiles import ROOT, Profile
from services.ca.refusal import Refused
from services.ca.request import CertificateRequest, make_request
from services.ca.signer import Issuer, Signer
from services.ca.subjects import CertificateNames, certificate_names

# RFC 5280 section 4.1.2.2 allows 20 octets, the first bit of which is the sign; the CA/Browser
# Forum asks for 64 random bits at least. All that can be had.
SERIAL_BITS = 159

# Clocks of hosts without NTP are commonly minutes behind; a certificate must hold at once there.
BACKDATE = timedelta(minutes=5)

# Less would leave nothing after backdating and one exchange.
LEAST_LIFETIME = timedelta(minutes=10)

SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Validity:
    """notBefore and notAfter, both inclusive (RFC 5280 section 4.1.2.5), whole seconds in UTC."""

    not_before: datetime
    not_after: datetime


def random_serial() -> int:
    """Return a positive serial of `SERIAL_BITS` bits from the operating system's random source."""
    # zero is no serial (RFC 5280 section 4.1.2.2); it comes once in 2^159
    return secrets.randbits(SERIAL_BITS) or random_serial()


def certificate_builder(
    *,
    subject: x509.Name,
    public_key: PublicKey,
    issuer_name: x509.Name,
    authority_key: x509.AuthorityKeyIdentifier,
    validity: Validity,
    serial: int | None,
) -> x509.CertificateBuilder:
    """Begin a certificate: what every one has, whatever its profile.

    Version 3, serial (a random one for None), dates, names, key, SubjectKeyIdentifier and
    AuthorityKeyIdentifier. Raises ValueError for a serial that is not positive or exceeds 20
    octets.
    """
    number = random_serial() if serial is None else serial
    if not 0 < number < 1 << SERIAL_BITS:
        raise ValueError(f"the serial is not a positive number of at most {SERIAL_BITS} bits")
    return (
        x509.CertificateBuilder()
        .serial_number(number)
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .issuer_name(issuer_name)
        .subject_name(subject)
        .public_key(public_key)
        .add_extension(x509.SubjectKeyIdentifier(key_identifier(public_key)), critical=False)
        .add_extension(authority_key, critical=False)
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """What a request gets: its names and its validity. The rest follows from profile and issuer."""

    names: CertificateNames
    validity: Validity


def decide(
    profile: Profile,
    request: CertificateRequest,
    issuer: Issuer,
    *,
    now: datetime,
    lifetime: timedelta | None = None,
) -> Decision:
    """Decide all of a certificate below `issuer`; encode and sign nothing.

    `now` is aware. Without `lifetime` the profile's default is given, cut to the issuer's end; a
    lifetime that was asked for is kept or refused. Raises Refused where request, profile and
    issuer do not go together.
    """
    _check_key(profile, request, issuer)
    _check_issuer(profile, request, issuer, now)
    return Decision(certificate_names(profile, request), _validity(profile, issuer, now, lifetime))


def prepare(
    profile: Profile,
    request: CertificateRequest,
    issuer: Issuer,
    *,
    now: datetime,
    lifetime: timedelta | None = None,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    """Build what `decide` decides, to be signed by the issuer's signer; raises as that does."""
    decision = decide(profile, request, issuer, now=now, lifetime=lifetime)
    names = decision.names
    builder = certificate_builder(
        subject=names.subject,
        public_key=request.public_key,
        issuer_name=issuer.certificate.subject,
        authority_key=issuer.key_id,
        validity=decision.validity,
        serial=serial,
    )
    builder = _add_profile(builder, profile, request)
    alternatives = names.alternatives
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=names.critical)
    if not profile.ocsp_no_check:  # whoever may not be checked needs no address for it
        for pointer in issuer.pointers:
            builder = builder.add_extension(pointer, critical=False)
    return builder


def issue(
    profile: Profile,
    request: CertificateRequest,
    issuer: Issuer,
    *,
    now: datetime,
    lifetime: timedelta | None = None,
    serial: int | None = None,
) -> x509.Certificate:
    """Sign what `prepare` decides, and return the certificate; raises as `prepare` does."""
    builder = prepare(profile, request, issuer, now=now, lifetime=lifetime, serial=serial)
    return issuer.signer.sign(builder)


def create_root(
    signer: Signer,
    *,
    common_name: str,
    now: datetime,
    lifetime: timedelta | None = None,
    profile: Profile = ROOT,
    serial: int | None = None,
) -> x509.Certificate:
    """Sign an authority's certificate with its own key.

    Raises Refused for a name, key type or lifetime that the profile does not allow.
    """
    public_key = signer.public_key()
    request = make_request(public_key, common_name=common_name, is_ca=True)
    _check_key_type(profile, request)
    subject = certificate_names(profile, request).subject
    builder = certificate_builder(
        subject=subject,
        public_key=public_key,
        issuer_name=subject,
        # RFC 5280 section 4.2.1.1 lets it be left out here; written, every certificate has one
        authority_key=x509.AuthorityKeyIdentifier(key_identifier(public_key), None, None),
        validity=_span(_begin(now), _wanted_lifetime(profile, lifetime)),
        serial=serial,
    )
    return signer.sign(_add_profile(builder, profile, request))


def _add_profile(
    builder: x509.CertificateBuilder, profile: Profile, request: CertificateRequest
) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=profile.is_ca, path_length=profile.path_length)
    builder = builder.add_extension(constraints, critical=True)
    usage = key_usage(profile, key_type(request.public_key))
    builder = builder.add_extension(usage, critical=True)
    if profile.extended_key_usage:
        purposes = x509.ExtendedKeyUsage(profile.extended_key_usage)
        builder = builder.add_extension(purposes, critical=False)
    if profile.ocsp_no_check:
        builder = builder.add_extension(x509.OCSPNoCheck(), critical=False)
    return builder


def key_usage(profile: Profile, kind: KeyType) -> x509.KeyUsage:
    """The key usage of a profile for a key of this type."""
    if not (profile.key_encipherment_for_rsa and kind.is_rsa):
        return profile.key_usage
    return x509.KeyUsage(
        digital_signature=profile.key_usage.digital_signature,
        content_commitment=False,
        key_encipherment=True,  # the profile asks for it, and the key can
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=profile.key_usage.key_cert_sign,
        crl_sign=profile.key_usage.crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _check_key_type(profile: Profile, request: CertificateRequest) -> None:
    kind = key_type(request.public_key)
    if kind not in profile.key_types:
        allowed = ", ".join(sorted(each.value for each in profile.key_types))
        raise Refused(
            "/public_key", f"{kind.value} is not a key type of profile {profile.name} ({allowed})"
        )


def _check_key(profile: Profile, request: CertificateRequest, issuer: Issuer) -> None:
    _check_key_type(profile, request)
    if request.public_key in issuer.public_keys:
        raise Refused("/public_key", "the key is that of the authority itself")


def _check_issuer(
    profile: Profile, request: CertificateRequest, issuer: Issuer, now: datetime
) -> None:
    if not issuer.is_valid_at(now):
        raise Refused("/issuer", "the issuer's certificate is not valid now")
    if request.is_ca and not profile.is_ca:
        raise Refused("/csr", f"asks for an authority; profile {profile.name} is none")
    if profile.is_ca and issuer.path_length == 0:
        raise Refused("/issuer", "the issuer may not have an authority below it")
    purposes = set(profile.extended_key_usage)
    # A delegated responder stands beside the chains that it answers for, so the issuer's own
    # purposes do not bind it (and an authority with OCSPSigning would be a responder itself).
    if purposes == {ExtendedKeyUsageOID.OCSP_SIGNING}:
        return
    if issuer.is_root and not profile.is_ca:
        raise Refused("/issuer", "a root issues no leaf: its key is needed offline")
    if issuer.purposes is not None and not (purposes and purposes <= issuer.purposes):
        raise Refused("/issuer", "the issuer is not trusted for this purpose")


def _validity(
    profile: Profile, issuer: Issuer, now: datetime, lifetime: timedelta | None
) -> Validity:
    earliest, end = issuer.validity
    begin = max(_begin(now), earliest)
    validity = _span(begin, _wanted_lifetime(profile, lifetime))
    if validity.not_after <= end:
        return validity
    if lifetime is not None:
        raise Refused("/lifetime", f"would outlive the issuer, which ends {end:%Y-%m-%d %H:%M:%SZ}")
    return Validity(begin, end)


def _wanted_lifetime(profile: Profile, lifetime: timedelta | None) -> timedelta:
    wanted = profile.default_lifetime if lifetime is None else lifetime
    if wanted > profile.greatest_lifetime:
        raise Refused("/lifetime", f"longer than the {profile.greatest_lifetime} of {profile.name}")
    if wanted < LEAST_LIFETIME:
        raise Refused("/lifetime", f"shorter than {LEAST_LIFETIME}")
    return wanted


def _begin(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError("the time has no zone")
    # RFC 5280 section 4.1.2.5: no fractions of a second
    return now.replace(microsecond=0) - BACKDATE


def _span(begin: datetime, lifetime: timedelta) -> Validity:
    # both ends belong to the validity, so N seconds end at begin + N - 1
    whole = timedelta(seconds=int(lifetime.total_seconds()))
    return Validity(begin, begin + whole - SECOND)
