"""The names of a certificate, made from a request by the rule of its profile.

Mooring's convention (DESIGN, identity and trust): the common name of a client certificate is the
user, its organisations are the groups. A host is a user named as its DNS name in one group.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from services.ca import names
from services.ca.profiles import Profile, Subject
from services.ca.refusal import Refused, shown
from services.ca.request import CertificateRequest

_COMMON_NAME = "/common_name"
_ORGANIZATIONS = "/organizations"


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """The subject, and the alternative names or None; `critical` is that of the latter.

    RFC 5280 section 4.1.2.6: the alternative names are critical exactly if the subject is empty.
    """

    subject: x509.Name
    alternatives: x509.SubjectAlternativeName | None
    critical: bool


def certificate_names(profile: Profile, request: CertificateRequest) -> CertificateNames:
    """Decide the names; raise Refused for a name that the profile lacks, forbids or contradicts."""
    common_name, groups, dns_names = _by_rule(profile, request)
    if profile.is_ca and (dns_names or request.ip_addresses or request.uris):
        raise Refused("/dns_names", "an authority has no alternative names")
    profile.names.check(dns_names, request.ip_addresses, request.uris)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    alternatives += [x509.IPAddress(address) for address in request.ip_addresses]
    alternatives += [x509.UniformResourceIdentifier(uri) for uri in request.uris]
    if profile.names.required and not alternatives:
        raise Refused("/dns_names", "at least one name is needed")
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return CertificateNames(
        x509.Name(attributes),
        x509.SubjectAlternativeName(alternatives) if alternatives else None,
        critical=not attributes,
    )


def _by_rule(
    profile: Profile, request: CertificateRequest
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Return common name, groups and DNS names."""
    match profile.subject:
        case Subject.NONE:
            _check_repeated(request)
            return None, (), request.dns_names
        case Subject.AUTHORITY:
            return names.title(_required(request), _COMMON_NAME), (), request.dns_names
        case Subject.USER:
            return _user(request), _groups(profile, request), request.dns_names
        case Subject.HOST:
            name = names.host_name(_required(request), _COMMON_NAME)
            if request.dns_names not in ((), (name,)):
                raise Refused("/dns_names", "a host's only DNS name is its common name")
            return name, _fixed(profile, request), (name,)
        case Subject.INSTANCE:
            name = names.principal(_required(request), _COMMON_NAME)
            return name, _fixed(profile, request), request.dns_names


def _required(request: CertificateRequest) -> str:
    if request.common_name is None:
        raise Refused(_COMMON_NAME, "a common name is needed")
    return request.common_name


def _user(request: CertificateRequest) -> str:
    user = names.principal(_required(request), _COMMON_NAME)
    if user.startswith("mooring:"):
        raise Refused(_COMMON_NAME, "names that begin with mooring: are those of groups")
    return user


def _groups(profile: Profile, request: CertificateRequest) -> tuple[str, ...]:
    for place, group in enumerate(request.organizations):
        if group in profile.refused_groups:
            raise Refused(
                f"{_ORGANIZATIONS}/{place}", f"{group} is not given by the profile {profile.name}"
            )
    return request.organizations


def _fixed(profile: Profile, request: CertificateRequest) -> tuple[str, ...]:
    if set(request.organizations) - set(profile.fixed_groups):
        raise Refused(_ORGANIZATIONS, f"the profile {profile.name} sets them itself")
    return profile.fixed_groups


def _check_repeated(request: CertificateRequest) -> None:
    """A common name that will not be issued must at least not claim anything else."""
    if request.common_name is None:
        return
    alternatives = {*request.dns_names, *map(str, request.ip_addresses), *request.uris}
    if request.common_name.lower() not in alternatives:
        raise Refused(
            _COMMON_NAME, f"{shown(request.common_name)} is not among the alternative names"
        )
