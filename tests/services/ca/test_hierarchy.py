"""The one call that makes a whole hierarchy, and the files that the stand uses."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import replace
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from services.ca import files
from services.ca.hierarchy import create_hierarchy
from services.ca.keys import KeyType
from services.ca.profiles import CLIENT
from services.ca.refusal import Refused
from services.ca.request import GREATEST_GROUPS

# gunicorn's limit_request_field_size, by default
HEADER_OCTETS = 8190


def common_name(certificate):
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def test_an_intermediate_is_named_anew_with_every_key(now):
    """Two hierarchies of one name differ in the intermediate's subject."""
    one, other = create_hierarchy("Example", now=now), create_hierarchy("Example", now=now)
    assert common_name(one.root.certificate) == "Example Root CA"
    assert common_name(one.intermediate.certificate).startswith("Example Issuing CA ")
    assert one.intermediate.certificate.subject != other.intermediate.certificate.subject


def test_a_name_that_does_not_fit_is_refused(now):
    """The common name of an authority has 64 octets."""
    with pytest.raises(Refused, match="64"):
        create_hierarchy("x" * 60, now=now)


def test_files_of_a_hierarchy(hierarchy, tmp_path):
    """Two certificates, the chain of both, and two keys, readable with the passphrase only."""
    hierarchy.write(tmp_path, passphrase=b"open sesame")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chain.crt",
        "intermediate.crt",
        "intermediate.key",
        "root.crt",
        "root.key",
    ]
    root, intermediate = hierarchy.root.certificate, hierarchy.intermediate.certificate
    assert files.read_certificates(tmp_path / "chain.crt") == (intermediate, root)
    with pytest.raises(ValueError, match="passphrase"):
        files.read_key(tmp_path / "root.key")
    files.read_key(tmp_path / "root.key", passphrase=b"open sesame")
    with pytest.raises(FileExistsError):
        hierarchy.write(tmp_path)


def test_a_bundle_holds_certificates_then_key(hierarchy, tmp_path):
    """As HAProxy reads it: leaf, intermediate, key."""
    credential = hierarchy.issue_host("host1")
    credential.write(tmp_path, "host-host1", bundle=True)
    expected = credential.full_chain_pem() + credential.key_pem()
    assert (tmp_path / "host-host1.pem").read_bytes() == expected


def test_the_largest_client_certificate_fits_one_header(now):
    """RSA 4096 with the greatest number of the longest groups, URL-encoded as NGINX sends it."""
    groups = [f"{number:02d}-" + "x" * 61 for number in range(GREATEST_GROUPS)]
    pki = create_hierarchy("Example", now=now, crl_url="http://ca.example.test/" + "c" * 80)
    issued = pki.issue_client("u" * 64, groups, key_type=KeyType.RSA4096, now=now)
    escaped = quote(issued.certificate.public_bytes(Encoding.PEM), safe="")
    assert len(f"X-Ssl-Client-Cert: {escaped}") < HEADER_OCTETS


def test_a_profile_of_the_callers_own_is_served(hierarchy):
    """Any profile can be issued by, also one made for the occasion."""
    profile = replace(CLIENT, key_types=frozenset({KeyType.P384}), default_key_type=KeyType.P384)
    issued = hierarchy.issue(profile, common_name="bob")
    assert issued.certificate.public_key().key_size == 384


@pytest.mark.parametrize("client", ["alice", None])
def test_a_real_handshake_with_client_verification(hierarchy, tmp_path, client):
    """Python's TLS takes server and client certificates; without one the server refuses."""
    hierarchy.write(tmp_path)
    hierarchy.issue_server(["localhost"], ["127.0.0.1"]).write(tmp_path, "server")
    hierarchy.issue_client("alice", ["mooring:operators"]).write(tmp_path, "alice")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.minimum_version = ssl.TLSVersion.TLSv1_3
    ours.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    ours.load_verify_locations(tmp_path / "root.crt")
    ours.verify_mode = ssl.CERT_REQUIRED
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs = ssl.create_default_context(cafile=str(tmp_path / "root.crt"))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    if client is not None:
        theirs.load_cert_chain(tmp_path / f"{client}.crt", tmp_path / f"{client}.key")
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve():
            connection, _ = listener.accept()
            connection.settimeout(30)
            try:
                with ours.wrap_socket(connection, server_side=True) as tls:
                    seen.append(dict(pair for rdn in tls.getpeercert()["subject"] for pair in rdn))
                    tls.sendall(b"welcome")
            except ssl.SSLError as error:
                seen.append(error.reason)
            finally:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        plain = socket.create_connection(listener.getsockname(), timeout=30)
        with plain, theirs.wrap_socket(plain, server_hostname="localhost") as tls:
            if client is None:
                with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
                    tls.recv(10)
            else:
                assert tls.recv(10) == b"welcome"
        thread.join(30)
    expected = {"organizationName": "mooring:operators", "commonName": "alice"}
    assert seen == [expected if client else "PEER_DID_NOT_RETURN_A_CERTIFICATE"]
