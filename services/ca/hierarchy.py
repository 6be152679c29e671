"""A whole hierarchy in one call: root, intermediate, and certificates with their keys.

For the demonstration, tests and a first set-up: keys are made here and live in memory. An
authority in service takes requests (`services.ca.request.parse_csr`) and never sees a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from services.ca import files
from services.ca.crl import Revocation, build_crl
from services.ca.issue import create_root, issue
from services.ca.keys import KeyType, PrivateKey, generate_key, key_identifier
from services.ca.names import IPAddress
from services.ca.profiles import CLIENT, HOST, INSTANCE, INTERMEDIATE, ROOT, SERVER, Profile
from services.ca.request import make_request
from services.ca.signer import Issuer, KeySigner, Signer

# An intermediate's subject has to be new with every key, else a verifier that looks it up by name
# may take the wrong one: this many octets of the key's identifier, in hex, end its name.
NAME_KEY_BYTES = 4


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key, its certificate, and the chain sent behind it (without the root)."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    @property
    def full_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificate and what is sent behind it, leaf first."""
        return (self.certificate, *self.chain)

    def full_chain_pem(self) -> bytes:
        return files.certificates_pem(self.full_chain)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        return files.key_pem(self.key, passphrase)

    def write(self, directory: Path, name: str, *, bundle: bool = False) -> None:
        """Write NAME.key (0600) and NAME.crt (full chain, 0644), with `bundle` also NAME.pem.

        NAME.pem (0600) holds certificates and key as HAProxy wants them. Raises FileExistsError if
        the key or the bundle exists.
        """
        files.write_key(directory / f"{name}.key", self.key)
        files.write_certificates(directory / f"{name}.crt", *self.full_chain)
        if bundle:
            files.write_bundle(directory / f"{name}.pem", self.key, *self.full_chain)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A root, the intermediate below it that issues, and both keys.

    Every `issue_...` makes a key and returns a Credential; `now` is the present unless given,
    `lifetime` the profile's default. They raise `services.ca.refusal.Refused`.
    """

    root: Issuer
    intermediate: Issuer
    root_key: PrivateKey = field(repr=False)
    intermediate_key: PrivateKey = field(repr=False)

    def issue_server(
        self,
        dns_names: Iterable[str] = (),
        ip_addresses: Iterable[str | IPAddress] = (),
        *,
        key_type: KeyType | None = None,
        lifetime: timedelta | None = None,
        now: datetime | None = None,
    ) -> Credential:
        """Issue a TLS server's certificate; its names are alternative names only."""
        return self.issue(
            SERVER,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            key_type=key_type,
            lifetime=lifetime,
            now=now,
        )

    def issue_client(
        self,
        user: str,
        groups: Iterable[str] = (),
        *,
        key_type: KeyType | None = None,
        lifetime: timedelta | None = None,
        now: datetime | None = None,
    ) -> Credential:
        """Issue a person's or program's certificate: CN is the user, every O a group."""
        return self.issue(
            CLIENT,
            common_name=user,
            organizations=groups,
            key_type=key_type,
            lifetime=lifetime,
            now=now,
        )

    def issue_host(
        self,
        name: str,
        *,
        key_type: KeyType | None = None,
        lifetime: timedelta | None = None,
        now: datetime | None = None,
    ) -> Credential:
        """Issue a host's certificate: CN and DNS name are the host's, O is mooring:hosts."""
        return self.issue(HOST, common_name=name, key_type=key_type, lifetime=lifetime, now=now)

    def issue_instance(
        self,
        instance_id: str,
        dns_names: Iterable[str] = (),
        *,
        key_type: KeyType | None = None,
        lifetime: timedelta | None = None,
        now: datetime | None = None,
    ) -> Credential:
        """Issue an instance's certificate: CN is its id, O is mooring:instances."""
        return self.issue(
            INSTANCE,
            common_name=instance_id,
            dns_names=dns_names,
            key_type=key_type,
            lifetime=lifetime,
            now=now,
        )

    def issue(
        self,
        profile: Profile,
        *,
        common_name: str | None = None,
        organizations: Iterable[str] = (),
        dns_names: Iterable[str] = (),
        ip_addresses: Iterable[str | IPAddress] = (),
        uris: Iterable[str] = (),
        key_type: KeyType | None = None,
        lifetime: timedelta | None = None,
        now: datetime | None = None,
    ) -> Credential:
        """Make a key and issue for it by any profile that the intermediate may serve."""
        key = generate_key(key_type or profile.default_key_type)
        request = make_request(
            key.public_key(),
            common_name=common_name,
            organizations=organizations,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            uris=uris,
            is_ca=profile.is_ca,
        )
        certificate = issue(
            profile, request, self.intermediate, now=now or _present(), lifetime=lifetime
        )
        return Credential(key, certificate, self.intermediate.chain)

    def crls(
        self,
        *,
        number: int = 1,
        revoked: Iterable[Revocation] = (),
        now: datetime | None = None,
    ) -> tuple[x509.CertificateRevocationList, x509.CertificateRevocationList]:
        """Return the lists of intermediate and root; `revoked` are serials of the intermediate.

        NGINX's `ssl_crl` needs both in one file (`services.ca.files.write_crls`).
        """
        moment = now or _present()
        return (
            build_crl(self.intermediate, number=number, revoked=revoked, now=moment),
            build_crl(self.root, number=number, now=moment),
        )

    def write(self, directory: Path, *, passphrase: bytes | None = None) -> None:
        """Write root.crt, intermediate.crt, chain.crt (both, the trust file) and the two keys.

        The keys, root.key and intermediate.key, are encrypted if there is a passphrase. Raises
        FileExistsError if either exists.
        """
        root, intermediate = self.root.certificate, self.intermediate.certificate
        files.write_key(directory / "root.key", self.root_key, passphrase=passphrase)
        files.write_key(
            directory / "intermediate.key", self.intermediate_key, passphrase=passphrase
        )
        files.write_certificates(directory / "root.crt", root)
        files.write_certificates(directory / "intermediate.crt", intermediate)
        files.write_certificates(directory / "chain.crt", intermediate, root)


def create_hierarchy(
    common_name: str,
    *,
    now: datetime | None = None,
    root_profile: Profile = ROOT,
    intermediate_profile: Profile = INTERMEDIATE,
    root_crl_url: str | None = None,
    root_url: str | None = None,
    crl_url: str | None = None,
    intermediate_url: str | None = None,
    ocsp_url: str | None = None,
) -> Hierarchy:
    """Make a root "NAME Root CA" and an intermediate "NAME Issuing CA xxxxxxxx" with new keys.

    The key types are the profiles' defaults. `root_crl_url` and `root_url` are written into the
    intermediate, the other three into leaves. Raises Refused for a name that does not fit.
    """
    moment = now or _present()
    root_key = generate_key(root_profile.default_key_type)
    root_signer = KeySigner(root_key)
    root = Issuer(
        create_root(
            root_signer, common_name=f"{common_name} Root CA", now=moment, profile=root_profile
        ),
        root_signer,
        crl_url=root_crl_url,
        certificate_url=root_url,
    )
    key = generate_key(intermediate_profile.default_key_type)
    signer = KeySigner(key)
    request = make_request(
        signer.public_key(),
        common_name=issuing_name(common_name, signer),
        is_ca=True,
    )
    intermediate = Issuer(
        issue(intermediate_profile, request, root, now=moment),
        signer,
        above=(root.certificate,),
        crl_url=crl_url,
        certificate_url=intermediate_url,
        ocsp_url=ocsp_url,
    )
    return Hierarchy(root, intermediate, root_key, key)


def issuing_name(common_name: str, signer: Signer) -> str:
    """Return the common name of an intermediate, which is new with every key."""
    mark = key_identifier(signer.public_key())[:NAME_KEY_BYTES].hex()
    return f"{common_name} Issuing CA {mark}"


def _present() -> datetime:
    return datetime.now(UTC)
