"""What each kind of certificate holds; a profile decides everything but the key and the names.

The profiles are values: an operator's variation is `dataclasses.replace(SERVER, ...)`. What they
hold is shown as a table in docs/certificates.md. RFC 5280 section 4.2 is the ground for the
extensions; where it leaves a choice, the reason stands at the field.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.ca.keys import KeyType
from services.ca.names import IPAddress
from services.ca.refusal import Refused, shown
from services.core.identity import HOSTS

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# The group of every instance certificate. No rule grants it anything; it says what the name is.
INSTANCES = "mooring:instances"

# The root of the DNS tree: every name is below it. Permission for all is written, never implied by
# an empty list.
ANY_DNS = (".",)
ANY_IP: tuple[Network, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))

# Ten years: as long as the machines that trust it are likely to live. A root is replaced by adding
# the new one to every host, so it has to be rare; more only lengthens the reign of old algorithms.
ROOT_LIFETIME = timedelta(days=3650)

# One year by default, two at most: rotating it needs no change on hosts, so it is done often enough
# that the way of doing it is known.
INTERMEDIATE_LIFETIME = timedelta(days=365)
INTERMEDIATE_GREATEST = timedelta(days=730)

# A month, renewed automatically; 90 days at most, what public authorities issue, so that a
# compromised key that nobody noticed dies within a quarter.
SERVER_LIFETIME = timedelta(days=30)
SERVER_GREATEST = timedelta(days=90)

# A working day for a person's certificate; a week at most, since it carries rights by itself and a
# lost laptop is often noticed late.
CLIENT_LIFETIME = timedelta(hours=24)
CLIENT_GREATEST = timedelta(days=7)

# A host renews by itself with the certificate it has. A week survives a long week-end switched off;
# 30 days at most, for hosts that are off over holidays and must come back without a person.
HOST_LIFETIME = timedelta(days=7)
HOST_GREATEST = timedelta(days=30)

# Instances are many and renew by themselves; revocation lists stay short if certificates are.
INSTANCE_LIFETIME = timedelta(hours=24)
INSTANCE_GREATEST = timedelta(days=7)

# A delegated responder cannot be revoked (it carries no-check, RFC 6960 section 4.2.2.2.1), so its
# certificate lives little longer than the answers it signs.
OCSP_LIFETIME = timedelta(days=7)
OCSP_GREATEST = timedelta(days=14)

ALL_KEY_TYPES = frozenset(KeyType)


class Subject(enum.Enum):
    """How a profile makes the subject name; see `services.ca.subjects`."""

    AUTHORITY = "authority"  # CN is a readable name
    NONE = "none"  # empty: the names are the alternative names
    USER = "user"  # CN is the user, every O a group
    HOST = "host"  # CN is the host's DNS name, also an alternative name; O is fixed
    INSTANCE = "instance"  # CN is the instance's id; O is fixed


@dataclass(frozen=True, slots=True)
class NameRules:
    """Which alternative names may be asked for; what is not listed is refused.

    `dns` holds the trees allowed ("example.com" is that name and all below it, "." all names),
    `networks` the IP networks, `uris` the beginnings of URIs, each ending in "/". `required` asks
    for at least one name.
    """

    dns: tuple[str, ...] = ()
    wildcards: bool = False
    networks: tuple[Network, ...] = ()
    uris: tuple[str, ...] = ()
    required: bool = False

    def __post_init__(self) -> None:
        for beginning in self.uris:
            # else "spiffe://a.example" would allow "spiffe://a.example.evil.test/"
            if not beginning.endswith("/"):
                raise ValueError(f"the URI rule {beginning!r} does not end with a slash")

    def check(
        self, dns_names: Iterable[str], addresses: Iterable[IPAddress], uris: Iterable[str]
    ) -> None:
        """Raise Refused for the first name, all in normal form, that no rule allows."""
        for place, name in enumerate(dns_names):
            field = f"/dns_names/{place}"
            if name.startswith("*.") and not self.wildcards:
                raise Refused(field, f"{shown(name)}: this profile gives no wildcards")
            if not any(_is_below(name.removeprefix("*."), tree) for tree in self.dns):
                raise Refused(field, f"{shown(name)} is outside the names of this profile")
        for place, address in enumerate(addresses):
            if not any(address in network for network in self.networks):
                raise Refused(
                    f"/ip_addresses/{place}", f"{address} is outside the networks of this profile"
                )
        for place, uri in enumerate(uris):
            if not uri.startswith(self.uris):
                raise Refused(f"/uris/{place}", f"{shown(uri)} is outside the URIs of this profile")


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of certificate.

    `key_usage` and `extended_key_usage` are what is written, the former critical (RFC 5280 section
    4.2.1.3), the latter not. `path_length` is that of BasicConstraints, for authorities only.
    `default_lifetime` is given when none is asked for, `greatest_lifetime` never exceeded; both
    count from notBefore. `fixed_groups` are the O values that the profile itself sets,
    `refused_groups` those that may not be asked for.
    """

    name: str
    subject: Subject
    key_usage: x509.KeyUsage
    extended_key_usage: tuple[x509.ObjectIdentifier, ...]
    key_types: frozenset[KeyType]
    default_key_type: KeyType
    default_lifetime: timedelta
    greatest_lifetime: timedelta
    names: NameRules = NameRules()
    is_ca: bool = False
    path_length: int | None = None
    fixed_groups: tuple[str, ...] = ()
    refused_groups: frozenset[str] = frozenset()
    # only for TLS 1.2 peers that cannot but use RSA key transport, which has no forward secrecy
    key_encipherment_for_rsa: bool = False
    ocsp_no_check: bool = False

    def __post_init__(self) -> None:
        if self.default_key_type not in self.key_types:
            raise ValueError(f"profile {self.name}: the default key type is not an allowed one")
        if not timedelta() < self.default_lifetime <= self.greatest_lifetime:
            raise ValueError(f"profile {self.name}: the default lifetime exceeds the greatest")
        if self.path_length is not None and not self.is_ca:
            raise ValueError(f"profile {self.name}: a path length without being an authority")


# Flag by flag, so that each has its reason. RFC 5280 section 4.2.1.3.
_AUTHORITY_USAGE = x509.KeyUsage(
    # it signs certificates and lists only; OCSP answers come from a delegated responder
    digital_signature=False,
    content_commitment=False,  # for documents of legal weight
    key_encipherment=False,  # an authority's key encrypts nothing
    data_encipherment=False,  # the same
    key_agreement=False,  # the same
    key_cert_sign=True,  # its purpose; must go with cA (section 4.2.1.9)
    crl_sign=True,  # it signs its own revocation list
    encipher_only=False,  # has a meaning with key agreement only
    decipher_only=False,  # the same
)
_LEAF_USAGE = x509.KeyUsage(
    digital_signature=True,  # it signs the TLS handshake, or the OCSP answer
    content_commitment=False,  # a handshake is no signature of legal weight
    key_encipherment=False,  # RSA key transport has no forward secrecy; an option of the profile
    data_encipherment=False,  # no protocol here encrypts data with a certificate's key
    key_agreement=False,  # ephemeral keys agree, this one signs them
    key_cert_sign=False,  # never: a leaf that signs certificates is an authority
    crl_sign=False,  # lists are signed by the authority itself
    encipher_only=False,  # has a meaning with key agreement only
    decipher_only=False,  # the same
)

ROOT = Profile(
    name="root",
    subject=Subject.AUTHORITY,
    key_usage=_AUTHORITY_USAGE,
    extended_key_usage=(),  # a root is trusted for what the one who installs it says
    key_types=frozenset({KeyType.P384, KeyType.RSA4096}),  # it has to last for ten years
    default_key_type=KeyType.P384,
    default_lifetime=ROOT_LIFETIME,
    greatest_lifetime=ROOT_LIFETIME,
    is_ca=True,
)

INTERMEDIATE = Profile(
    name="intermediate",
    subject=Subject.AUTHORITY,
    key_usage=_AUTHORITY_USAGE,
    # verifiers read this as the bound of what may be issued below; never anyExtendedKeyUsage
    extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    key_types=frozenset({KeyType.P256, KeyType.P384}),
    default_key_type=KeyType.P256,
    default_lifetime=INTERMEDIATE_LIFETIME,
    greatest_lifetime=INTERMEDIATE_GREATEST,
    is_ca=True,
    path_length=0,  # it issues leaves only, so a mistake cannot make a further authority
)

SERVER = Profile(
    name="server",
    subject=Subject.NONE,
    key_usage=_LEAF_USAGE,
    extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,),
    key_types=ALL_KEY_TYPES,
    default_key_type=KeyType.P256,
    default_lifetime=SERVER_LIFETIME,
    greatest_lifetime=SERVER_GREATEST,
    names=NameRules(dns=ANY_DNS, wildcards=True, networks=ANY_IP, required=True),
)

CLIENT = Profile(
    name="client",
    subject=Subject.USER,
    key_usage=_LEAF_USAGE,
    extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,),
    key_types=ALL_KEY_TYPES,
    default_key_type=KeyType.P256,
    default_lifetime=CLIENT_LIFETIME,
    greatest_lifetime=CLIENT_GREATEST,
    # a user is no host and no instance: those groups come from their own profiles only
    refused_groups=frozenset({HOSTS, INSTANCES}),
)

HOST = Profile(
    name="host",
    subject=Subject.HOST,
    key_usage=_LEAF_USAGE,
    extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,),
    key_types=ALL_KEY_TYPES,
    default_key_type=KeyType.P256,
    default_lifetime=HOST_LIFETIME,
    greatest_lifetime=HOST_GREATEST,
    names=NameRules(dns=ANY_DNS, required=True),
    fixed_groups=(HOSTS,),
)

INSTANCE = Profile(
    name="instance",
    subject=Subject.INSTANCE,
    key_usage=_LEAF_USAGE,
    # its identity towards others; a server inside the instance asks for a server certificate
    extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,),
    key_types=ALL_KEY_TYPES,
    default_key_type=KeyType.P256,
    default_lifetime=INSTANCE_LIFETIME,
    greatest_lifetime=INSTANCE_GREATEST,
    names=NameRules(dns=ANY_DNS),
    fixed_groups=(INSTANCES,),
)

OCSP = Profile(
    name="ocsp",
    subject=Subject.AUTHORITY,
    key_usage=_LEAF_USAGE,
    extended_key_usage=(ExtendedKeyUsageOID.OCSP_SIGNING,),  # RFC 6960 section 4.2.2.2
    key_types=frozenset({KeyType.P256, KeyType.P384, KeyType.RSA2048, KeyType.RSA3072}),
    default_key_type=KeyType.P256,
    default_lifetime=OCSP_LIFETIME,
    greatest_lifetime=OCSP_GREATEST,
    ocsp_no_check=True,
)

PROFILES = {
    profile.name: profile for profile in (ROOT, INTERMEDIATE, SERVER, CLIENT, HOST, INSTANCE, OCSP)
}


def _is_below(name: str, tree: str) -> bool:
    """Tell whether a name lies in a DNS tree, whole labels compared (RFC 5280 4.2.1.10)."""
    return tree == "." or name == tree or name.endswith("." + tree)
