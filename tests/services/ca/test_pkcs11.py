"""services/ca/pkcs11.py: a key that never leaves its token signs all that an authority signs."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca import ceremony, keystore, pkcs11
from services.ca.authority import Actor, Authority
from services.ca.crl import Revocation, build_crl
from services.ca.issue import create_root, issue
from services.ca.keys import KeyType, generate_key, key_identifier
from services.ca.keystore import KeystoreError, Urls
from services.ca.ledger import Ledger, serial_text
from services.ca.pkcs11 import Pkcs11Error, Pkcs11Signer, parse_uri
from services.ca.profile_file import SHIPPED
from services.ca.profiles import ROOT, SERVER
from services.ca.request import make_request
from services.ca.signer import Issuer, KeySigner
from services.cli.main import main
from services.core.database import Database
from services.core.identity import ADMINS

REPOSITORY = Path(__file__).parents[3]
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = b"2468"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)

EC_KINDS = {KeyType.P256: "secp256r1", KeyType.P384: "secp384r1"}
KINDS = [KeyType.P256, KeyType.P384, KeyType.ED25519, KeyType.RSA2048]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address, without a key, of a SoftHSM token that holds a key of each kind."""
    import pkcs11 as driver
    from pkcs11.util import ec as curves

    assert MODULE.exists(), "SoftHSM is not installed: apt install softhsm2"
    base = tmp_path_factory.mktemp("softhsm")
    (base / "tokens").mkdir()
    config = base / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {base}/tokens\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(config))
        subprocess.run(
            [
                *("softhsm2-util", "--init-token", "--free", "--label", "mooring"),
                *("--pin", PIN.decode(), "--so-pin", "13579"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # another test's token may be known to the library already
        driver.lib(str(MODULE)).reinitialize()
        opened = driver.lib(str(MODULE)).get_token(token_label="mooring")
        with opened.open(rw=True, user_pin=PIN.decode()) as session:
            for kind in KINDS:
                what = {"store": True, "label": kind.value, "id": kind.value.encode()}
                if kind is KeyType.RSA2048:
                    session.generate_keypair(driver.KeyType.RSA, 2048, **what)
                    continue
                if kind is KeyType.ED25519:
                    family = driver.KeyType.EC_EDWARDS
                    parameters = bytes.fromhex("130c656477617264733235353139")  # "edwards25519"
                else:
                    family = driver.KeyType.EC
                    parameters = curves.encode_named_curve_parameters(EC_KINDS[kind])
                domain = session.create_domain_parameters(
                    family, {driver.Attribute.EC_PARAMS: parameters}, local=True
                )
                domain.generate_keypair(**what)
        yield f"pkcs11:token=mooring;object={{}}?module-path={MODULE}"
        pkcs11.close_sessions()


@pytest.fixture
def address(token: str) -> Callable[[KeyType], str]:
    """The address of the token's key of a kind."""
    return lambda kind: token.format(kind.value)


def pin() -> bytes:
    """The token's PIN."""
    return PIN


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_a_token_signs_certificate_list_request_and_bytes(
    kind: KeyType, address: Callable[[KeyType], str]
) -> None:
    """Everything that a signer signs verifies with the token's public key, for each kind of key."""
    signer = Pkcs11Signer(address(kind), pin)
    profile = ceremony.with_key_type(ROOT, kind)
    root = create_root(signer, common_name="In a token", now=NOW, profile=profile)
    root.verify_directly_issued_by(root)
    issuer = Issuer(root, signer)
    crl = build_crl(issuer, number=3, now=NOW, revoked=[Revocation(5, NOW)])
    assert crl.is_signature_valid(signer.public_key())
    assert [entry.serial_number for entry in crl] == [5]
    request = signer.sign_request(ceremony._request_builder("In a token"))
    assert request.is_signature_valid
    assert request.public_key() == signer.public_key()
    assert signer.sign_bytes(b"some octets")


def test_what_a_token_signs_is_what_a_key_in_memory_would_sign(
    address: Callable[[KeyType], str],
) -> None:
    """The bytes that are signed do not depend on where the key is."""
    signer = Pkcs11Signer(address(KeyType.P256), pin)
    profile = ceremony.with_key_type(ROOT, KeyType.P256)
    ours = create_root(signer, common_name="Same", now=NOW, profile=profile, serial=7)
    builder = x509.CertificateBuilder()
    builder = builder.subject_name(ours.subject).issuer_name(ours.issuer)
    builder = builder.serial_number(7).public_key(signer.public_key())
    builder = builder.not_valid_before(ours.not_valid_before_utc)
    builder = builder.not_valid_after(ours.not_valid_after_utc)
    for extension in ours.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    memory = KeySigner(generate_key(KeyType.P256)).sign(builder)
    assert signer.sign(builder).tbs_certificate_bytes == memory.tbs_certificate_bytes
    assert ours.tbs_certificate_bytes == memory.tbs_certificate_bytes


def _child(uri: str, answers: "multiprocessing.SimpleQueue[str]", signer: Pkcs11Signer) -> None:
    try:
        signature = signer.sign_bytes(b"in the child")
        answers.put(f"signed {len(signature) > 0}")
    except Exception as error:  # told to the parent, whatever it is
        answers.put(f"{type(error).__name__}: {error}")


def test_a_signer_made_before_a_fork_signs_in_child_and_parent(
    address: Callable[[KeyType], str],
) -> None:
    """A gunicorn master may load the keys and its workers use them: sessions are made anew."""
    signer = Pkcs11Signer(address(KeyType.P256), pin)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [
        context.Process(target=_child, args=(address(KeyType.P256), answers, signer))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert [answers.get(), answers.get()] == ["signed True", "signed True"]
    assert signer.sign_bytes(b"in the parent")


def test_threads_and_signers_share_one_login(address: Callable[[KeyType], str]) -> None:
    """Two signers in one token, used by several threads at once, all sign rightly."""
    signers = [Pkcs11Signer(address(kind), pin) for kind in (KeyType.P256, KeyType.RSA2048)]
    failed: list[BaseException] = []

    def sign(signer: Pkcs11Signer) -> None:
        try:
            for number in range(20):
                signer.sign_bytes(b"%d" % number)  # checks each signature itself
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=sign, args=(signers[n % 2],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


def test_an_authority_in_a_token_lives_in_the_key_store(
    tmp_path: Path, address: Callable[[KeyType], str]
) -> None:
    """The ceremony with key.uri in place of key.pem: prepared, signed, installed, loaded."""
    offline, server = tmp_path / "root", tmp_path / "ca"
    ceremony.make_root(offline, "Root", passphrase=lambda: b"of the root", now=NOW)
    place = ceremony.prepare(server, "HSM", passphrase=pin, key_uri=address(KeyType.P256))
    csr = (place / "request.csr").read_bytes()
    certificate, new = ceremony.sign_intermediate(
        offline, csr, lambda: b"of the root", urls=Urls(), now=NOW
    )
    assert new
    root = keystore.read_root(offline)
    crl = keystore.read_root_crl(offline, root)
    assert ceremony.install(server, certificate, root=root, root_crl=crl, passphrase=pin, now=NOW)
    assert not list(server.rglob("key.pem"))
    authorities = keystore.load(server, pin, urls=Urls())
    key = generate_key()
    request = make_request(key.public_key(), dns_names=["a.example"])
    leaf = issue(SERVER, request, authorities.active, now=NOW)
    leaf.verify_directly_issued_by(authorities.active.certificate)
    assert certificate.public_key() == authorities.active.signer.public_key()
    assert key_identifier(authorities.active.signer.public_key()).hex() == place.name


def test_the_ceremony_by_command_with_a_token(
    tmp_path: Path, address: Callable[[KeyType], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mooring ca csr --key-uri`, and the rest as ever; the key store says where the key is."""
    from services.cli import ca_site

    monkeypatch.setattr(ca_site, "DEFAULT_CONFIG", str(tmp_path / "none.conf"))
    for name, text in (("pin", PIN.decode()), ("passphrase", "of the root's key")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    server, offline = tmp_path / "ca", tmp_path / "root"

    def run(*words: str | Path) -> str:
        result = CliRunner().invoke(main, ["ca", *map(str, words)])
        assert result.exit_code == 0, (result.stdout, result.stderr)
        return result.stdout

    safe = ("--root-directory", offline, "--passphrase-file", tmp_path / "passphrase")
    here = ("--directory", server, "--passphrase-file", tmp_path / "pin")
    run("root", "Root", *safe)
    run("csr", "HSM", *here, "--key-uri", address(KeyType.P384))
    request = next(server.glob("pending/*/request.csr"))
    run("sign-intermediate", request, *safe, "-o", tmp_path / "i.pem")
    run("install", tmp_path / "i.pem", *here, "--root", offline / "root.crt")
    assert "pkcs11" in run("show", "--directory", server)
    assert " good" in run("status", "--directory", server)


def test_the_pin_may_come_from_a_file(tmp_path: Path, address: Callable[[KeyType], str]) -> None:
    """pin-source names a file that others may not read; it goes before the passphrase."""
    path = tmp_path / "pin"
    path.write_bytes(PIN + b"\n")
    path.chmod(0o600)
    pkcs11.close_sessions()
    uri = f"{address(KeyType.P256)}&pin-source=file:{path}"
    assert Pkcs11Signer(uri, None).sign_bytes(b"x")
    path.chmod(0o644)
    pkcs11.close_sessions()
    with pytest.raises(Pkcs11Error, match="may be read by others"):
        Pkcs11Signer(uri, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda uri: uri.replace("object=p256", "object=none"), "no such private key"),
        (lambda uri: uri.replace("token=mooring", "token=other"), "no tokens fit the address"),
        (lambda uri: uri.replace(str(MODULE), "/nowhere/lib.so"), "cannot be loaded"),
        (lambda uri: f"{uri}&pin-value=2468", "holds a PIN"),
    ],
)
def test_a_wrong_address_is_explained(
    address: Callable[[KeyType], str], change: Callable[[str], str], said: str
) -> None:
    """Each thing that may be wrong with an address has its own sentence, none with the PIN."""
    with pytest.raises(Pkcs11Error, match=said) as caught:
        Pkcs11Signer(change(address(KeyType.P256)), pin)
    assert PIN.decode() not in str(caught.value)


def test_a_wrong_pin_is_said(address: Callable[[KeyType], str], tmp_path: Path) -> None:
    """A wrong PIN stops the start, and in the key store with the file's name."""
    pkcs11.close_sessions()
    with pytest.raises(Pkcs11Error, match="the PIN is wrong"):
        Pkcs11Signer(address(KeyType.P256), lambda: b"9999")
    (tmp_path / "key.uri").write_text(address(KeyType.P256))
    with pytest.raises(KeystoreError, match=r"key\.uri: the PIN is wrong"):
        keystore.read_signer(tmp_path, lambda: b"9999")


def test_a_signature_that_does_not_verify_is_never_given_out(
    address: Callable[[KeyType], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that signs wrongly is an error, not a certificate."""
    signer = Pkcs11Signer(address(KeyType.P256), pin)
    hit: list[bytes] = []
    real = signer._sign_in_token

    def wrong(data: bytes) -> bytes:
        hit.append(data)
        return real(data + b"!")

    monkeypatch.setattr(signer, "_sign_in_token", wrong)
    with pytest.raises(Pkcs11Error, match="does not verify"):
        signer.sign_bytes(b"data")
    assert hit == [b"data"]


def test_a_session_that_was_lost_is_opened_again(address: Callable[[KeyType], str]) -> None:
    """After the token went away and came back one signature fails and the next is made."""
    signer = Pkcs11Signer(address(KeyType.P256), pin)
    assert signer.sign_bytes(b"x")
    pkcs11.close_sessions()
    with pytest.raises(Pkcs11Error, match="did not sign"):
        signer.sign_bytes(b"x")
    assert signer.sign_bytes(b"x")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:/etc/key", "does not begin with pkcs11:"),
        ("pkcs11:object=a", "no module-path"),
        ("pkcs11:token=a?module-path=/m", "names no key"),
        ("pkcs11:object=a;type=cert?module-path=/m", "not that of a private key"),
        ("pkcs11:object=a;object=b?module-path=/m", "twice"),
        ("pkcs11:objekt=a?module-path=/m", "unknown attribute 'objekt'"),
        ("pkcs11:object=a?module-path=/m&pin-source=pin", "not file:/ABSOLUTE/PATH"),
    ],
)
def test_an_address_that_is_none_is_refused(uri: str, said: str) -> None:
    """RFC 7512 in the part that we use; the rest is named rather than ignored."""
    with pytest.raises(Pkcs11Error, match=said):
        Pkcs11Signer(uri, None)


def test_an_address_is_decoded() -> None:
    """Percent-encoding, binary ids and all attributes of RFC 7512 that choose something."""
    found = parse_uri(
        "pkcs11:token=a%20b;serial=1;manufacturer=m;model=x;object=o%3b;id=%01%ff;type=private"
        "?module-path=/m%20n&pin-source=file:/p"
    )
    expected = pkcs11.Address("/m n", "a b", "1", "m", "x", "o;", b"\x01\xff", "file:/p")
    assert found == expected


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """python-pkcs11 is an extra; its absence says which."""
    import sys

    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(Pkcs11Error, match=r"install mooring\[pkcs11\]"):
        Pkcs11Signer(f"pkcs11:object=a?module-path={MODULE}", None)


def make_ca(directory: Path, uri: str) -> None:
    """A CA whose root is a file in a safe and whose intermediate is a key of the token."""
    now, urls = datetime.now(UTC), Urls.below("http://ca.example.com")
    safe = directory / "safe"
    ceremony.make_root(safe, "Example Root CA", passphrase=lambda: b"of the root", now=now)
    place = ceremony.prepare(directory / "ca", "Example", passphrase=pin, key_uri=uri)
    certificate, _ = ceremony.sign_intermediate(
        safe, (place / "request.csr").read_bytes(), lambda: b"of the root", urls=urls, now=now
    )
    root = keystore.read_root(safe)
    ceremony.install(
        directory / "ca",
        certificate,
        root=root,
        root_crl=keystore.read_root_crl(safe, root),
        passphrase=pin,
        now=now,
    )


def curl(socket: Path, path: str, *options: str) -> bytes:
    """The body of a good answer over a unix socket; the first ones wait for the service."""
    done = subprocess.run(
        [
            *("curl", "-sS", "--fail-with-body", "--max-time", "30", "--unix-socket", socket),
            *(*options, f"http://localhost{path}"),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def deployed(
    address: Callable[[KeyType], str], sqlite_url: str, tmp_path: Path
) -> Iterator[tuple[Path, Authority]]:
    """gunicorn with etc/gunicorn/ca.py and ca.ini, their paths moved, over a key in the token; and
    an authority of this process over the same."""
    make_ca(tmp_path, address(KeyType.P256))
    (tmp_path / "pin").write_bytes(PIN)
    (tmp_path / "pin").chmod(0o600)
    shutil.copy(REPOSITORY / "etc/mooring/ca.ini", tmp_path)
    (tmp_path / "mooring.conf").write_text(
        f"[database]\nurl = {sqlite_url}\n[ca]\ndirectory = {tmp_path}/ca\n"
        f"passphrase_file = {tmp_path}/pin\npublic_url = http://ca.example.com\nprofiles =\n"
    )
    settings = (REPOSITORY / "etc/gunicorn/ca.py").read_text()
    (tmp_path / "gunicorn.py").write_text(settings.replace("/run/mooring", str(tmp_path)))
    with (tmp_path / "log").open("wb") as log:
        master = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--paste", tmp_path / "ca.ini"),
                *("-c", tmp_path / "gunicorn.py", "--workers", "2"),
            ],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    database = Database(sqlite_url)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ca-public.sock").exists():
            assert master.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        authorities = keystore.load(tmp_path / "ca", pin, urls=Urls())
        yield tmp_path, Authority(authorities, Ledger(database), SHIPPED)
    finally:
        master.send_signal(signal.SIGTERM)
        try:
            master.wait(30)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait(30)
        database.close()


def test_the_service_issues_and_publishes_with_a_key_in_a_token(
    deployed: tuple[Path, Authority],
) -> None:
    """As deployed: workers that gunicorn forked sign certificates, lists and the OCSP delegate in
    the token; the revoked certificate is on a list that OpenSSL verifies, and OCSP knows it."""
    directory, authority = deployed
    issuer = authority.authorities.active.certificate
    command = Actor("command:test", frozenset(), "", "", "command")
    wish = make_request(generate_key().public_key(), common_name="ann", organizations=[ADMINS])
    admin = authority.issue("client", wish, command).certificate.public_bytes(Encoding.PEM)
    headers = [
        *("-H", "X-Ssl-Client-Verify: SUCCESS", "-H", "X-Forwarded-For: 192.0.2.1"),
        *("-H", f"X-Ssl-Client-Cert: {quote(admin)}", "-H", "Content-Type: application/json"),
    ]
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.example.com")]), False)
        .sign(key := generate_key(), pkcs11.signature_hash(key.public_key()))
        .public_bytes(Encoding.PEM)
        .decode()
    )
    document = json.dumps({"profile": "server", "csr": csr})
    answer = json.loads(
        curl(directory / "ca.sock", "/v1/certificates", *headers, "--data", document)
    )
    issued = x509.load_pem_x509_certificate(answer["certificate"].encode())
    issued.verify_directly_issued_by(issuer)
    assert answer["serial"] == serial_text(issued.serial_number)
    revoke = f"/v1/certificates/{answer['serial']}/revoke"
    curl(directory / "ca.sock", revoke, *headers, "--data", '{"reason": "superseded"}')

    name = keystore.authority_id(issuer)
    public = directory / "ca-public.sock"
    files = {
        "list.pem": curl(public, f"/crl/{name}.pem"),
        "issuer.pem": issuer.public_bytes(Encoding.PEM),
        "leaf.pem": issued.public_bytes(Encoding.PEM),
        "root.pem": authority.authorities.root.public_bytes(Encoding.PEM),
    }
    for file, data in files.items():
        (directory / file).write_bytes(data)

    def openssl(*words: str) -> str:
        done = subprocess.run(
            ["openssl", *words], capture_output=True, text=True, check=False, cwd=directory
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    said = openssl("crl", "-in", "list.pem", "-CAfile", "issuer.pem", "-noout", "-verify")
    assert said == "verify OK\n"
    crl = x509.load_pem_x509_crl(files["list.pem"])
    assert [entry.serial_number for entry in crl] == [issued.serial_number]
    openssl(
        *("ocsp", "-issuer", "issuer.pem", "-cert", "leaf.pem", "-reqout", "question", "-no_nonce")
    )
    question = f"@{directory}/question"
    (directory / "answer").write_bytes(
        curl(
            *(public, "/ocsp", "-H", "Content-Type: application/ocsp-request"),
            *("--data-binary", question),
        )
    )
    said = openssl(
        *("ocsp", "-respin", "answer", "-issuer", "issuer.pem", "-cert", "leaf.pem"),
        *("-CAfile", "root.pem", "-verify_other", "issuer.pem", "-no_nonce"),
    )
    assert "Response verify OK" in said
    assert "leaf.pem: revoked" in said
