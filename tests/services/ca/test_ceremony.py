"""services/ca/ceremony.py: roots and intermediates made, installed, rotated and retired."""

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from services.ca import ceremony, files, keystore
from services.ca.crl import Revocation
from services.ca.issue import issue
from services.ca.keys import KeyType, generate_key, key_type
from services.ca.keystore import Authorities, KeystoreError, RetiredIssuer, Urls
from services.ca.profiles import SERVER
from services.ca.request import make_request

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
URLS = Urls.below("http://ca.example:8080/")


def secret() -> bytes:
    """The passphrase of the server's keys."""
    return b"correct horse battery"


def root_secret() -> bytes:
    """The passphrase of the root's key."""
    return b"staple in the safe"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a server's key material is."""
    return tmp_path / "ca"


@pytest.fixture
def authorities(directory: Path) -> Authorities:
    """Root and intermediate, made in one step."""
    return ceremony.create(directory, "Test", passphrase=secret, urls=URLS, now=NOW)


def add_intermediate(directory: Path, name: str = "Test", **options: object) -> str:
    """Run the ceremony of a further intermediate; return its id."""
    offline = directory / "root"
    place = ceremony.prepare(directory, name, passphrase=secret, **options)  # type: ignore[arg-type]
    csr = (place / "request.csr").read_bytes()
    certificate, _ = ceremony.sign_intermediate(offline, csr, secret, urls=URLS, now=NOW)
    root = keystore.read_root(offline)
    crl = keystore.read_root_crl(offline, root)
    ceremony.install(directory, certificate, root=root, root_crl=crl, passphrase=secret, now=NOW)
    return place.name


def refused(directory: Path, passphrase: Callable[[], bytes] | None = secret) -> str:
    """Load, which has to fail; return what is said, less the directory."""
    with pytest.raises(KeystoreError) as caught:
        keystore.load(directory, passphrase, urls=URLS)
    assert str(directory) in str(caught.value)
    return str(caught.value).replace(f"{directory}/", "")


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below with its mode and content."""
    return {
        str(path.relative_to(directory)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_one_step_makes_what_load_reads(directory: Path, authorities: Authorities) -> None:
    """create() leaves root, list, active intermediate and keys; load() returns the same."""
    again = keystore.load(directory, secret, urls=URLS)
    assert again.active.certificate == authorities.active.certificate
    assert again.root == authorities.root
    assert again.others == ()
    assert again.all() == (again.active,)
    name = keystore.authority_id(again.active.certificate)
    assert again.find(name) is again.active
    assert again.active.crl_url == f"http://ca.example:8080/crl/{name}.crl"
    assert again.active.certificate_url == f"http://ca.example:8080/ca/{name}.cer"
    assert again.active.ocsp_url == "http://ca.example:8080/ocsp"
    assert again.active.path_length == 0
    assert x509.load_pem_x509_certificates(again.bundle_pem()) == [
        again.active.certificate,
        again.root,
    ]
    crl = x509.load_pem_x509_crl(again.root_crl_pem)
    assert crl.issuer == again.root.subject


def test_the_intermediate_points_to_the_roots_list(authorities: Authorities) -> None:
    """The addresses in the intermediate are the root's own, under the same patterns."""
    root_id = keystore.authority_id(authorities.root)
    points = authorities.active.certificate.extensions.get_extension_for_class(
        x509.CRLDistributionPoints
    ).value
    assert [name.value for name in points[0].full_name or ()] == [
        f"http://ca.example:8080/crl/{root_id}.crl"
    ]


def test_keys_are_encrypted_and_their_owners_alone(
    directory: Path, authorities: Authorities
) -> None:
    """Every private key is an encrypted PKCS #8 file of mode 0600, whatever the umask."""
    keys = [(name, mode, data) for name, (mode, data) in tree(directory).items() if "key" in name]
    assert len(keys) == 2
    for name, mode, data in keys:
        assert mode == 0o600, name
        assert data.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"), name
    for private in ("authorities", "pending", "root"):
        assert stat.S_IMODE((directory / private).stat().st_mode) == 0o700


def test_the_umask_decides_nothing(directory: Path) -> None:
    """Neither a generous nor a strict umask changes a mode."""
    found = []
    for mask, name in ((0o000, "a"), (0o177, "b")):
        before = os.umask(mask)
        try:
            above = directory.parent / name
            above.mkdir()
            above.chmod(0o755)
            ceremony.create(above / "ca", "Test", passphrase=secret, urls=URLS, now=NOW)
        finally:
            os.umask(before)
        found.append(sorted(mode for mode, _ in tree(above).values()))
    assert found[0] == found[1]


def test_running_it_again_changes_nothing(directory: Path, authorities: Authorities) -> None:
    """create() is idempotent to the byte."""
    before = tree(directory)
    ceremony.create(directory, "Test", passphrase=secret, urls=URLS, now=NOW + timedelta(days=1))
    assert tree(directory) == before


@pytest.mark.parametrize("step", range(1, 13))
def test_a_crash_at_any_write_is_made_good_by_the_next_attempt(
    directory: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write fails, a second call completes, and what loads is one consistent CA."""
    real, count = files._write, [0]

    def failing(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
        count[0] += 1
        if count[0] == step:
            raise OSError(28, "No space left on device")
        real(path, data, mode, replace=replace)

    monkeypatch.setattr(files, "_write", failing)
    try:
        ceremony.create(directory, "Test", passphrase=secret, urls=URLS, now=NOW)
        # create() makes eleven writes: root.crt, root.crl, root.key, key.pem, request.csr, issued,
        # root.crt, root.crl, certificate.pem, activated, active
        assert step == 12
        assert count[0] == 11
    except (OSError, KeystoreError):
        assert count[0] == step
    monkeypatch.setattr(files, "_write", real)
    authorities = ceremony.create(directory, "Test", passphrase=secret, urls=URLS, now=NOW)
    assert len(authorities.all()) == 1
    assert len(list((directory / "root" / "issued").iterdir())) == 1
    assert [path for path in directory.rglob("*") if path.name.endswith(".tmp")] == []


def test_the_ceremony_in_two_places(tmp_path: Path) -> None:
    """Root and server share neither directory nor passphrase; request and certificate travel."""
    offline, server = tmp_path / "safe", tmp_path / "server"
    ceremony.make_root(offline, "Example Root", passphrase=root_secret, now=NOW)
    place = ceremony.prepare(server, "Example", passphrase=secret)
    assert keystore.pending(server) == [place]
    csr = (place / "request.csr").read_bytes()
    certificate, new = ceremony.sign_intermediate(offline, csr, root_secret, urls=URLS, now=NOW)
    assert new
    assert ceremony.sign_intermediate(offline, csr, root_secret, urls=URLS, now=NOW) == (
        certificate,
        False,
    )
    root = keystore.read_root(offline)
    crl = keystore.read_root_crl(offline, root)
    for changed in (True, False):
        assert changed == ceremony.install(
            server, certificate, root=root, root_crl=crl, passphrase=secret, now=NOW
        )
    assert keystore.pending(server) == []
    assert keystore.load(server, secret, urls=URLS).active.certificate == certificate
    assert not list(server.rglob("root.key"))


@pytest.mark.parametrize("kind", [KeyType.P384, KeyType.ED25519, KeyType.RSA2048])
def test_every_algorithm_serves_both_authorities(directory: Path, kind: KeyType) -> None:
    """Root and intermediate of each kind of key, chosen by option, sign what verifies."""
    authorities = ceremony.create(
        directory, "Test", passphrase=secret, urls=URLS, now=NOW, kind=kind, root_kind=kind
    )
    assert key_type(authorities.active.signer.public_key()) is kind
    key = generate_key()
    leaf = issue(
        SERVER, make_request(key.public_key(), dns_names=["a.example"]), authorities.active, now=NOW
    )
    leaf.verify_directly_issued_by(authorities.active.certificate)
    authorities.active.certificate.verify_directly_issued_by(authorities.root)


def test_rotation_keeps_both_chains_valid_in_one_bundle(
    directory: Path, authorities: Authorities
) -> None:
    """Prepared, activated, retired: in the overlap both sign, and one bundle verifies both."""
    old = keystore.authority_id(authorities.active.certificate)
    new = add_intermediate(directory)
    prepared = keystore.load(directory, secret, urls=URLS)
    assert keystore.authority_id(prepared.active.certificate) == old
    assert [keystore.authority_id(each.certificate) for each in prepared.all()] == [old, new]
    assert prepared.bundle_pem().count(b"BEGIN CERTIFICATE") == 3

    assert ceremony.activate(directory, new, now=NOW)
    assert not ceremony.activate(directory, new, now=NOW)
    overlap = keystore.load(directory, secret, urls=URLS)
    assert [keystore.authority_id(each.certificate) for each in overlap.all()] == [new, old]
    names = {each.certificate.subject.rfc4514_string() for each in overlap.all()}
    assert len(names) == 2  # verifiers look an issuer up by its name

    assert ceremony.retire(directory, old, now=NOW)
    assert not ceremony.retire(directory, old, now=NOW)
    assert not (directory / "authorities" / old / "key.pem").exists()
    after = keystore.load(directory, secret, urls=URLS)
    assert [keystore.authority_id(each.certificate) for each in after.all()] == [new]
    assert [type(each) for each in after.others] == [RetiredIssuer]
    assert after.bundle_pem().count(b"BEGIN CERTIFICATE") == 2
    assert after.find(old) is None


def test_what_signs_is_not_retired_and_what_is_retired_does_not_sign(
    directory: Path, authorities: Authorities
) -> None:
    """No step of a rotation can leave a server without an authority that signs."""
    old = keystore.authority_id(authorities.active.certificate)
    with pytest.raises(KeystoreError, match="is the active authority"):
        ceremony.retire(directory, old, now=NOW)
    new = add_intermediate(directory)
    ceremony.retire(directory, new, now=NOW)
    with pytest.raises(KeystoreError, match="is retired"):
        ceremony.activate(directory, new, now=NOW)
    for wrong in ("0" * 40, "../authorities", ""):
        with pytest.raises(KeystoreError, match="does not exist"):
            ceremony.activate(directory, wrong, now=NOW)
    (directory / "active").write_text(f"{new}\n")
    assert refused(directory) == f"active: names {new}, which is retired"


def test_a_crash_while_retiring_loads_and_is_completed(
    directory: Path, authorities: Authorities
) -> None:
    """Marked as retired with the key still there, it is retired; the next call removes the key."""
    new = add_intermediate(directory)
    (directory / "authorities" / new / "retired").write_text("\n")
    assert len(keystore.load(directory, secret, urls=URLS).all()) == 1
    ceremony.retire(directory, new, now=NOW)
    assert not (directory / "authorities" / new / "key.pem").exists()


def test_the_roots_list_is_renewed_and_revokes(directory: Path, authorities: Authorities) -> None:
    """Numbers rise, what was revoked stays so, and an older list never replaces a newer one."""
    offline = directory / "root"
    first = keystore.read_root_crl(directory, authorities.root)
    second = ceremony.renew_root_crl(offline, secret, now=NOW)
    assert keystore.crl_number(second) == keystore.crl_number(first) + 1
    serial = authorities.active.certificate.serial_number
    gone = Revocation(serial, NOW, x509.ReasonFlags.ca_compromise)
    later = NOW + timedelta(days=300)
    third = ceremony.renew_root_crl(offline, secret, now=later, revoke=[gone])
    assert keystore.crl_number(third) == int(later.timestamp())
    fourth = ceremony.renew_root_crl(offline, secret, now=later)
    for crl in (third, fourth):
        assert [(each.serial_number, each.revocation_date_utc) for each in crl] == [(serial, NOW)]
    assert ceremony.install_root_crl(directory, fourth)
    assert not ceremony.install_root_crl(directory, second)
    assert keystore.read_root_crl(directory, authorities.root) == fourth


def test_a_register_of_revocations_that_cannot_be_read_is_not_dropped(
    directory: Path, authorities: Authorities
) -> None:
    """A broken revoked.json stops the ceremony: an empty list would make what it held good."""
    (directory / "root" / "revoked.json").write_text("[{}]")
    before = tree(directory)
    with pytest.raises(KeystoreError, match=r"revoked\.json: cannot be understood"):
        ceremony.renew_root_crl(directory / "root", secret, now=NOW)
    assert tree(directory) == before


def test_install_takes_only_what_was_asked_for(
    directory: Path, authorities: Authorities, tmp_path: Path
) -> None:
    """Another key's certificate, another root's, or a false list change nothing."""
    other = tmp_path / "other"
    foreign = ceremony.create(other, "Other", passphrase=secret, urls=URLS, now=NOW)
    place = ceremony.prepare(directory, "Test", passphrase=secret)
    foreign_crl = keystore.read_root_crl(other, foreign.root)
    own_crl = keystore.read_root_crl(directory, authorities.root)
    csr = (place / "request.csr").read_bytes()
    by_other, _ = ceremony.sign_intermediate(other / "root", csr, secret, urls=URLS, now=NOW)
    before = tree(directory)
    cases = [
        (foreign.active.certificate, authorities.root, own_crl, "is for another key"),
        (by_other, foreign.root, foreign_crl, "is another root"),
        (by_other, authorities.root, own_crl, "does not hold together"),
        (by_other, authorities.root, foreign_crl, "not signed by this root"),
        (authorities.root, authorities.root, own_crl, "is for another key"),
    ]
    for certificate, root, crl, said in cases:
        with pytest.raises(KeystoreError, match=said):
            ceremony.install(
                directory, certificate, root=root, root_crl=crl, passphrase=secret, now=NOW
            )
        assert tree(directory) == before


def test_a_root_is_never_overwritten(directory: Path, authorities: Authorities) -> None:
    """Neither its own directory nor a server that trusts one gets a second root."""
    with pytest.raises(KeystoreError, match=r"root\.key: exists already"):
        ceremony.make_root(directory / "root", "Second", passphrase=secret, now=NOW)
    with pytest.raises(KeystoreError, match="but the server has a root"):
        ceremony.create(
            directory, "Test", passphrase=secret, urls=URLS, now=NOW, offline=directory / "second"
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_services_user(directory: Path) -> None:
    """Below a directory of the service's user all is that user's, but the root's own directory."""
    directory.mkdir()
    os.chown(directory, 4711, 4712)
    ceremony.create(directory, "Test", passphrase=secret, urls=URLS, now=NOW)
    add_intermediate(directory)
    for path in directory.rglob("*"):
        owner = (path.stat().st_uid, path.stat().st_gid)
        offline = path.relative_to(directory).parts[0] == "root"
        assert owner == ((0, 0) if offline else (4711, 4712)), path
