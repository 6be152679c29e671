"""services/ca/keystore.py: what a server reads at start, and how it says what is wrong."""

import stat
import types
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.ca import ceremony, keystore
from services.ca.keys import KeyType
from services.ca.keystore import Authorities, KeystoreError, Urls
from services.ca.signer import Issuer

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
URLS = Urls.below("http://ca.example:8080/")


def secret() -> bytes:
    """The passphrase of the server's keys."""
    return b"correct horse battery"


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


def _damage(*what: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        place = next((directory / "authorities").iterdir())
        match what:
            case ["mode", bits]:
                (place / "key.pem").chmod(int(bits, 8))
            case ["remove", name]:
                (directory / name.replace("ID", f"authorities/{place.name}")).unlink()
            case ["write", name, text]:
                (directory / name.replace("ID", f"authorities/{place.name}")).write_text(text)
            case ["other", name]:
                other = directory.parent / "other"
                ceremony.create(other, "Other", passphrase=secret, urls=URLS, now=NOW)
                source = next((other / "authorities").iterdir()) / name
                target = place / name
                if not source.exists():
                    source, target = other / name, directory / name
                target.write_bytes(source.read_bytes())
            case ["rename"]:
                place.rename(place.with_name("0" * 40))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_damage("mode", "640"), "key.pem: may be read by others (mode 0640); chmod 600 it"),
        (_damage("mode", "604"), "key.pem: may be read by others (mode 0604); chmod 600 it"),
        (_damage("remove", "ID/key.pem"), "key.pem: does not exist"),
        (_damage("remove", "ID/certificate.pem"), "certificate.pem: does not exist"),
        (_damage("remove", "root.crt"), "root.crt: does not exist"),
        (_damage("remove", "root.crl"), "root.crl: does not exist; make it with"),
        (_damage("remove", "active"), "active: does not exist; choose one with"),
        (_damage("write", "active", "first\n"), "active: does not hold an authority's id"),
        (_damage("write", "active", "0" * 40), "of which there is no directory"),
        (_damage("write", "ID/key.uri", "pkcs11:"), "key.uri: stands beside key.pem"),
        (_damage("write", "ID/certificate.pem", "x"), "holds no certificate in PEM"),
        (_damage("write", "root.crl", "x"), "root.crl: is no revocation list in PEM"),
        (_damage("other", "root.crl"), "root.crl: is not signed by this root"),
        (_damage("other", "root.crt"), "root.crl: is not signed by this root"),
        (_damage("other", "key.pem"), "certificate and its key do not belong together"),
        (_damage("other", "certificate.pem"), "is not the certificate of this directory's"),
        (_damage("rename"), "is not the certificate of this directory's"),
        (_damage("write", "authorities/note", "x"), "is not the directory of an authority"),
    ],
)
def test_what_is_wrong_stops_the_start_and_is_named(
    directory: Path, authorities: Authorities, damage: Callable[[Path], None], said: str
) -> None:
    """Each fault has its sentence, with the file that it is about."""
    damage(directory)
    assert said in refused(directory)


def test_wrong_missing_and_superfluous_passphrases_are_told_apart(
    directory: Path, authorities: Authorities
) -> None:
    """Three mistakes, three sentences; none holds the passphrase."""
    assert "the passphrase is wrong" in refused(directory, lambda: b"guess")
    assert "is encrypted, and no passphrase is configured" in refused(directory, None)
    plain = directory.parent / "plain"
    ceremony.create(plain, "Plain", passphrase=None, urls=URLS, now=NOW)
    assert keystore.load(plain, None, urls=URLS).all()
    assert "is not encrypted although a passphrase is configured" in refused(plain)


def test_the_passphrase_is_asked_for_once(directory: Path, authorities: Authorities) -> None:
    """However many authorities there are, a person types it once."""
    add_intermediate(directory)
    asked: list[bool] = []

    def ask() -> bytes:
        asked.append(True)
        return secret()

    assert len(keystore.load(directory, ask, urls=URLS).all()) == 2
    assert asked == [True]


def conf(file: str = "", credential: str = "") -> types.SimpleNamespace:
    """The two options of [ca] that say where the passphrase is."""
    return types.SimpleNamespace(
        ca=types.SimpleNamespace(passphrase_file=file, passphrase_credential=credential)
    )


def test_the_passphrase_comes_from_a_file_or_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes first, then the unit's credential, else there is none."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = tmp_path / "passphrase"
    assert ceremony.create_passphrase(path)
    assert not ceremony.create_passphrase(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    from_file = keystore.passphrase_from(conf(str(path), "name"))
    assert from_file is not None
    assert len(from_file()) >= 40
    assert keystore.passphrase_from(conf("", "name")) is None
    (tmp_path / "name").write_text("of systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    from_unit = keystore.passphrase_from(conf("", "name"))
    assert from_unit is not None
    assert from_unit() == b"of systemd"
    assert keystore.passphrase_from(conf()) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"x" * 2000])
def test_a_passphrase_is_one_line(tmp_path: Path, content: bytes) -> None:
    """An empty file, or a key given in its place, is a mistake that is said."""
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeystoreError, match="does not hold one line"):
        keystore.passphrase_in(path)()


def test_a_passphrase_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """As a key: what others can read is not a secret any more."""
    path = tmp_path / "passphrase"
    path.write_text("secret\n")
    path.chmod(0o644)
    with pytest.raises(KeystoreError, match="may be read by others"):
        keystore.passphrase_in(path)()


def test_prepared_issuers_are_issuers(directory: Path, authorities: Authorities) -> None:
    """What is prepared can sign its own lists at once."""
    add_intermediate(directory, kind=KeyType.P384)
    loaded = keystore.load(directory, secret, urls=URLS)
    assert all(isinstance(each, Issuer) for each in loaded.others)


def test_a_survey_needs_no_passphrase(directory: Path, authorities: Authorities) -> None:
    """Root, its list and every authority with state, end and how its key is kept."""
    old = keystore.authority_id(authorities.active.certificate)
    new = add_intermediate(directory)
    last = add_intermediate(directory)

    def states() -> dict[str, tuple[str, str]]:
        return {
            each.id: (each.state, each.key)
            for each in keystore.survey(directory)
            if each.kind == "authority"
        }

    encrypted = "encrypted"
    assert states() == {
        old: ("active", encrypted),
        new: ("prepared", encrypted),
        last: ("prepared", encrypted),
    }
    ceremony.activate(directory, new, now=NOW)
    ceremony.retire(directory, old, now=NOW)
    ceremony.activate(directory, last, now=NOW)
    assert states() == {
        old: ("retired", "removed"),
        new: ("rotated-out", encrypted),
        last: ("active", encrypted),
    }
    found = keystore.survey(directory)
    assert [each.kind for each in found] == ["root", "root-crl"] + ["authority"] * 3
    assert found[0].not_after == authorities.root.not_valid_after_utc
    assert found[2].id == last
