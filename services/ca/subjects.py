"""The names of a certificate, made from a request by the rule of its profile.

Mooring's convention (DESIGN, identity and trust): the common name of a client certificate is the
user, its organisations are the groups. A host is a user named as its DNS name in one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from services.ca import der, names
from services.ca.profiles import Profile, Subject
from services.ca.refusal import Refused, shown
from services.ca.request import CertificateRequest

_COMMON_NAME = "/common_name"
_ORGANIZATIONS = "/organizations"


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """What a certificate names: common name and groups in the subject, and the alternative names.

    As the library's objects, to show or to build with, and as octets, which cost a tenth.
    """

    common_name: str | None
    groups: tuple[str, ...]
    dns_names: tuple[str, ...]
    ip_addresses: tuple[names.IPAddress, ...]
    uris: tuple[str, ...]

    @property
    def subject(self) -> x509.Name:
        """Every group as an O, then the common name."""
        return _subject(self.groups, self.common_name)

    @property
    def subject_der(self) -> bytes:
        return _subject_der(self.groups, self.common_name)

    @property
    def subject_text(self) -> str:
        """The subject as RFC 4514 writes it."""
        return self.subject.rfc4514_string() if self.groups or self.common_name else ""

    @property
    def critical(self) -> bool:
        """Whether the alternative names are: exactly if the subject is empty (RFC 5280 4.1.2.6)."""
        return self.common_name is None and not self.groups

    @property
    def alternatives(self) -> x509.SubjectAlternativeName | None:
        """The alternative names, None if there are none."""
        found: list[x509.GeneralName] = [x509.DNSName(name) for name in self.dns_names]
        found += [x509.IPAddress(address) for address in self.ip_addresses]
        found += [x509.UniformResourceIdentifier(uri) for uri in self.uris]
        return x509.SubjectAlternativeName(found) if found else None

    @property
    def alternatives_der(self) -> bytes:
        """The value of that extension, empty if there is none (RFC 5280 section 4.2.1.6)."""
        found = [der.element(_DNS_NAME, name.encode("ascii")) for name in self.dns_names]
        found += [der.element(_IP_ADDRESS, address.packed) for address in self.ip_addresses]
        found += [der.element(_URI, uri.encode("ascii")) for uri in self.uris]
        return der.sequence(*found) if found else b""


# GeneralName, implicit and primitive
_URI, _IP_ADDRESS, _DNS_NAME = der.CONTEXT | 6, der.CONTEXT | 7, der.CONTEXT | 2


def _subject(groups: tuple[str, ...], common_name: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(attributes)


# few, and at most 32 groups of 64 characters each: those who renew, and the empty one of servers
@lru_cache(256)
def _subject_der(groups: tuple[str, ...], common_name: str | None) -> bytes:
    return _subject(groups, common_name).public_bytes()


def certificate_names(profile: Profile, request: CertificateRequest) -> CertificateNames:
    """Decide the names; raise Refused for a name that the profile lacks, forbids or contradicts."""
    common_name, groups, dns_names = _by_rule(profile, request)
    if profile.is_ca and (dns_names or request.ip_addresses or request.uris):
        raise Refused("/dns_names", "an authority has no alternative names")
    profile.names.check(dns_names, request.ip_addresses, request.uris)
    if profile.names.required and not (dns_names or request.ip_addresses or request.uris):
        raise Refused("/dns_names", "at least one name is needed")
    return CertificateNames(common_name, groups, dns_names, request.ip_addresses, request.uris)


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
