"""Keys and certificates reach the disk whole, with their modes, and never over another key."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448

from services.ca import files
from services.ca.keys import KeyType, generate_key


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(hierarchy, tmp_path, mask):
    """Keys and bundles 0600, certificates 0644."""
    before = os.umask(mask)
    try:
        hierarchy.issue_host("host1").write(tmp_path, "host-host1", bundle=True)
    finally:
        os.umask(before)
    assert {path.name: oct(mode(path)) for path in tmp_path.iterdir()} == {
        "host-host1.key": "0o600",
        "host-host1.crt": "0o644",
        "host-host1.pem": "0o600",
    }


@pytest.mark.parametrize("kind", [KeyType.P256, KeyType.ED25519, KeyType.RSA2048])
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_is_read_as_it_was_written(tmp_path, kind, passphrase):
    """PKCS #8, encrypted if a passphrase was given."""
    key = generate_key(kind)
    files.write_key(tmp_path / "a.key", key, passphrase=passphrase)
    again = files.read_key(tmp_path / "a.key", passphrase=passphrase)
    assert again.public_key() == key.public_key()
    head = (tmp_path / "a.key").read_bytes().splitlines()[0]
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
    assert head == (encrypted if passphrase else b"-----BEGIN PRIVATE KEY-----")


def test_a_key_is_never_overwritten_by_accident(hierarchy, tmp_path):
    """A second key or bundle of that name raises and leaves the first, and nothing beside it."""
    path = tmp_path / "a.key"
    files.write_key(path, generate_key())
    first = path.read_bytes()
    with pytest.raises(FileExistsError):
        files.write_key(path, generate_key())
    assert path.read_bytes() == first
    credential = hierarchy.issue_host("host1")
    with pytest.raises(FileExistsError):
        files.write_bundle(path, credential.key, *credential.full_chain)
    assert path.read_bytes() == first
    files.write_key(path, generate_key(), replace=True)
    assert path.read_bytes() != first
    assert [each.name for each in tmp_path.iterdir()] == ["a.key"]


def test_a_link_in_place_of_the_key_is_not_followed(tmp_path):
    """A prepared symbolic link counts as taken, dangling or not."""
    (tmp_path / "a.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.write_key(tmp_path / "a.key", generate_key())
    assert not (tmp_path / "elsewhere").exists()


def test_of_many_writers_at_once_one_wins(tmp_path):
    """The name is taken atomically."""
    keys = [generate_key() for _ in range(8)]
    won = []

    def write(key):
        try:
            files.write_key(tmp_path / "a.key", key)
        except FileExistsError:
            return
        won.append(key)

    threads = [threading.Thread(target=write, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (winner,) = won
    assert files.read_key(tmp_path / "a.key").public_key() == winner.public_key()


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_write_that_fails_leaves_nothing(hierarchy, tmp_path, monkeypatch, call):
    """Neither half a file nor its temporary one, and an older file stays as it was."""
    path = tmp_path / "a.crt"
    files.write_certificates(path, hierarchy.root.certificate)
    before = path.read_bytes()
    hit = []

    def fail(*arguments):
        hit.append(arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_certificates(path, hierarchy.intermediate.certificate)
    monkeypatch.undo()
    assert len(hit) == 1
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.crt"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o610])
def test_a_key_that_others_can_read_is_refused(tmp_path, bits):
    """Any permission of group or others."""
    path = tmp_path / "a.key"
    files.write_key(path, generate_key())
    path.chmod(bits)
    with pytest.raises(PermissionError, match="chmod 600"):
        files.read_key(path)


def test_unreadable_keys_are_named_without_their_content(tmp_path):
    """Wrong, missing or superfluous passphrase, no key, and a key of another kind."""
    path = tmp_path / "a.key"
    files.write_key(path, generate_key(), passphrase=b"right")
    for passphrase in (b"wrong", None):
        with pytest.raises(ValueError, match="no private key, or the passphrase"):
            files.read_key(path, passphrase=passphrase)
    files.write_key(path, generate_key(), replace=True)
    with pytest.raises(ValueError, match="passphrase"):
        files.read_key(path, passphrase=b"superfluous")
    path.write_bytes(b"s3cret rubbish")
    with pytest.raises(ValueError, match="no private key") as caught:
        files.read_key(path)
    assert "s3cret" not in str(caught.value)
    other = ed448.Ed448PrivateKey.generate()
    path.write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(ValueError, match="neither ECDSA"):
        files.read_key(path)


def test_an_empty_passphrase_is_a_mistake():
    """An empty passphrase file must not leave a key as good as open."""
    with pytest.raises(ValueError, match="empty passphrase"):
        files.key_pem(generate_key(), b"")


def test_certificates_are_read_in_their_order(hierarchy, tmp_path):
    """The full chain comes back leaf first; a file without any raises."""
    credential = hierarchy.issue_server(["a.test"])
    credential.write(tmp_path, "server")
    assert files.read_certificates(tmp_path / "server.crt") == credential.full_chain
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="no certificates"):
        files.read_certificates(tmp_path / "empty")
