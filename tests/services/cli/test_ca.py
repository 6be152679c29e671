"""`mooring ca`: what needs no server. Ceremonies, rotation, monitoring, the audit trail."""

import json
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from services.ca import keystore, profile_file
from services.ca.authority import Actor, Authority
from services.ca.keys import KeyType, generate_key, key_type
from services.ca.keystore import Urls
from services.ca.ledger import Ledger
from services.ca.publication import NginxFile, Publisher, ReloadFailed
from services.ca.request import make_request
from services.cli import ca as ca_commands
from services.cli import ca_site
from services.cli.main import main
from services.core import schema
from services.core.database import Database, upgrade
from services.core.identity import ADMINS

COMMAND = Actor("test", frozenset({ADMINS}), "", "", "command")


class Mooring:
    """The command with a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.base = directory
        self.ca = directory / "ca"
        self.passphrase = directory / "passphrase"
        self.environment: dict[str, str | None] = {
            "MOORING_CA_DIRECTORY": str(self.ca),
            "MOORING_CA_PASSPHRASE_FILE": str(self.passphrase),
            "MOORING_CA_ROOT_PASSPHRASE_FILE": None,
            "MOORING_CA_ROOT_DIRECTORY": None,
            "MOORING_CONFIG": None,
            "CREDENTIALS_DIRECTORY": None,
        }

    def run(self, *words: str | Path, code: int = 0, stdin: str = "", **env: str | None) -> Result:
        """Run `mooring ca ...`; it has to end with this exit code."""
        result = CliRunner().invoke(
            main, ["ca", *map(str, words)], input=stdin, env={**self.environment, **env}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, (result.stdout, result.stderr)
        return result

    def secret(self) -> bytes:
        """The passphrase."""
        return self.passphrase.read_bytes().strip()

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Every file with its mode and content."""
        return {
            str(path.relative_to(self.base)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
            for path in sorted(self.base.rglob("*"))
            if path.is_file()
        }

    def states(self) -> dict[str, str]:
        """The state of every authority by its id."""
        rows = json.loads(self.run("show", "-f", "json").stdout)
        return {row["id"]: row["state"] for row in rows if row["kind"] == "authority"}


@pytest.fixture
def mooring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mooring:
    """The command, on a machine without a mooring.conf."""
    monkeypatch.setattr(ca_site, "DEFAULT_CONFIG", str(tmp_path / "none.conf"))
    return Mooring(tmp_path)


@pytest.fixture
def made(mooring: Mooring) -> Mooring:
    """The same with a CA."""
    mooring.run("init", "Example", "--public-url", "http://ca.example:8080")
    return mooring


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Move the command's clock."""

    def move(by: timedelta) -> None:
        monkeypatch.setattr(ca_commands, "present", lambda: datetime.now(UTC) + by)

    return move


@pytest.fixture
def database(made: Mooring) -> Database:
    """A database that a mooring.conf names, as does the CA's directory."""
    url = f"sqlite:///{made.base}/mooring.db"
    upgrade(url)
    (made.base / "mooring.conf").write_text(
        f"[database]\nurl = {url}\n[ca]\ndirectory = {made.ca}\nprofiles =\n"
        f"passphrase_file = {made.passphrase}\npublic_url = http://ca.example:8080\n"
    )
    made.environment["MOORING_CONFIG"] = str(made.base / "mooring.conf")
    return Database(url)


def authority_of(made: Mooring, database: Database) -> Authority:
    """The CA of the directory over the database."""
    authorities = keystore.load(made.ca, made.secret, urls=Urls())
    return Authority(authorities, Ledger(database), profile_file.SHIPPED)


def test_init_says_what_it_wrote_and_twice_changes_nothing(mooring: Mooring) -> None:
    """Each file with its purpose; the second time it is there already, to the byte."""
    out = mooring.run("init", "Example", "--public-url", "http://ca.example:8080").stdout
    for line in out.splitlines():
        match = re.match(r"wrote (/[^:]*): .", line)
        assert match is not None, line
        assert Path(match[1]).exists()
    for name in ("root.key", "root.crt", "root.crl", "passphrase"):
        assert f"/{name}: " in out
    before = mooring.tree()
    assert all(
        mode == 0o600
        for name, (mode, _) in before.items()
        if name.endswith((".key", "passphrase", "key.pem"))
    )
    again = mooring.run("init", "Example").stdout
    assert again.startswith("already there: ")
    assert mooring.tree() == before


def test_dry_runs_change_nothing(mooring: Mooring) -> None:
    """--dry-run says what would be done, before and after there is a CA."""
    said = mooring.run("init", "Example", "--dry-run").stdout
    assert said.count("would make") == 2
    safe = mooring.base / "safe"
    assert "would make" in mooring.run("root", "R", "--root-directory", safe, "--dry-run").stdout
    assert mooring.tree() == {}
    mooring.run("init", "Example")
    mooring.run("rotate", "Example", "--root-directory", mooring.ca / "root")
    before = mooring.tree()
    states = mooring.states()
    prepared = next(name for name, state in states.items() if state == "prepared")
    assert "would" in mooring.run("activate", prepared, "--dry-run").stdout
    assert "would" in mooring.run("retire", prepared, "--force", "--dry-run").stdout
    assert mooring.tree() == before


def test_the_ceremony_in_two_places(mooring: Mooring) -> None:
    """root, csr, sign-intermediate, install: each says the next, and twice is there already."""
    safe, stick = mooring.base / "safe", mooring.base / "intermediate.pem"
    at_root = {"MOORING_CA_PASSPHRASE_FILE": str(mooring.base / "root-passphrase")}
    root = ("root", "Example Root CA", "--root-directory", safe)
    assert "next, on the server: mooring ca csr" in mooring.run(*root, **at_root).stdout
    assert mooring.run(*root, **at_root).stdout.startswith("already there: ")
    csr = mooring.run("csr", "Example", "--key-type", "ed25519").stdout
    request = re.search(r"wrote (\S+request\.csr): ", csr)
    assert request is not None
    assert "waits for its certificate" in mooring.run("csr", "Example").stdout
    sign = ("sign-intermediate", request[1], "--root-directory", safe, "-o", stick)
    sign = (*sign, "--public-url", "http://ca.example:8080", "--lifetime", "400d")
    assert "next, on the server: mooring ca install" in mooring.run(*sign, **at_root).stdout
    assert mooring.run(*sign, **at_root).stdout.startswith("already there: ")
    install = ("install", stick, "--root", safe / "root.crt")
    assert "restart the certificate service" in mooring.run(*install).stdout
    before = mooring.tree()
    assert mooring.run(*install).stdout.startswith("already there: ")
    assert "mooring ca rotate" in mooring.run("csr", "Example").stdout
    assert mooring.tree() == before
    assert list(mooring.states().values()) == ["active"]
    loaded = keystore.load(mooring.ca, mooring.secret, urls=Urls())
    assert key_type(loaded.active.signer.public_key()) is KeyType.ED25519
    assert not list(mooring.ca.rglob("root.key"))


def test_rotation_step_by_step(made: Mooring, database: Database) -> None:
    """rotate, activate, retire; the old one keeps its key while anything of it lives."""
    authority = authority_of(made, database)
    key = generate_key()
    request = make_request(key.public_key(), dns_names=["a.example"])
    issued = authority.issue("server", request, COMMAND)
    old = next(iter(made.states()))
    rotate = ("rotate", "Example", "--root-directory", made.ca / "root")
    assert "once everybody has it: mooring ca activate" in made.run(*rotate).stdout
    before = made.tree()
    assert made.run(*rotate).stdout.startswith("already there: ")
    assert made.tree() == before
    new = next(name for name, state in made.states().items() if state == "prepared")
    assert "is the active authority" in made.run("retire", old, code=5).stderr
    assert f"mooring ca retire {old}" in made.run("activate", new[:12]).stdout
    assert made.run("activate", new).stdout.startswith("already there: ")
    assert made.states() == {new: "active", old: "rotated-out"}
    said = made.run("retire", old, code=5).stderr
    assert (
        f"1 certificates of {old} live, until {issued.certificate.not_valid_after_utc:%Y}" in said
    )
    authority.revoke(old, issued.serial, "superseded", COMMAND)
    assert "removed the key" in made.run("retire", old).stdout
    assert made.run("retire", old).stdout.startswith("already there: ")
    assert made.states() == {new: "active", old: "retired"}
    assert "is retired" in made.run("activate", old, code=1).stderr
    for wrong in ("zz", "x" * 40):
        assert "no authority begins" in made.run("activate", wrong, code=4).stderr
    assert "several authorities begin" in made.run("activate", "", code=4).stderr


def test_rotation_without_the_root_at_hand(made: Mooring) -> None:
    """The request waits, is signed elsewhere, and installed it is prepared, not active."""
    active = next(iter(made.states()))
    safe, out = made.base / "safe", made.base / "next.pem"
    (made.ca / "root").rename(safe)
    said = made.run("rotate", "Example").stdout
    request = re.search(r"wrote (\S+request\.csr): ", said)
    assert request is not None
    assert made.run("rotate", "Example").stdout == said
    made.run("sign-intermediate", request[1], "--root-directory", safe, "-o", out)
    assert "mooring ca activate" in made.run("install", out).stdout
    states = made.states()
    assert states.pop(active) == "active"
    assert list(states.values()) == ["prepared"]


def test_the_roots_list_travels(made: Mooring) -> None:
    """root-crl at the root, with an intermediate revoked; install never takes an older one."""
    old, new = made.base / "old.crl", made.base / "new.crl"
    root = ("root-crl", "--root-directory", made.ca / "root")
    made.run(*root, "-o", old)
    certificate = next(made.ca.glob("authorities/*/certificate.pem"))
    made.run(*root, "-o", new, "--revoke", certificate, "--reason", "caCompromise")
    crl = x509.load_pem_x509_crl(new.read_bytes())
    serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    assert crl.get_revoked_certificate_by_serial_number(serial) is not None
    assert "good until" in made.run("install", "--root-crl", new).stdout
    for older in (new, old):
        assert made.run("install", "--root-crl", older).stdout.startswith("already there: ")
    said = made.run(*root, "--revoke", made.ca / "root.crt", code=1).stderr
    assert "is not an intermediate of this root" in said


def test_the_trust_file_follows_the_authorities(made: Mooring) -> None:
    """bundle: intermediates and root; run again it is there, after a rotation it has one more."""
    out = made.base / "chain.crt"
    made.run("bundle", "-o", out)
    assert out.read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert made.run("bundle", "-o", out).stdout == f"already there: {out}\n"
    made.run("rotate", "Example", "--root-directory", made.ca / "root")
    made.run("bundle", "-o", out)
    loaded = keystore.load(made.ca, made.secret, urls=Urls())
    assert out.read_bytes() == loaded.bundle_pem()


def test_status_is_for_monitoring(
    made: Mooring, later: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 while all is well, 1 with reason and remedy when something has ended or ends soon."""
    assert made.run("status").stdout.count(" good") == 3
    made.run("status", "--within", "300d")
    assert "mooring ca rotate" in made.run("status", "--within", "366d", code=1).stdout
    later(timedelta(days=340))
    rows = json.loads(made.run("status", "-f", "json", code=1).stdout)
    verdicts = {row["kind"]: row["verdict"] for row in rows}
    assert verdicts["root"] == "good"
    assert verdicts["root-crl"] == "ends in 24 days: mooring ca root-crl"
    assert verdicts["authority"] == "ends in 24 days: mooring ca rotate"
    later(timedelta(days=366))
    result = made.run("status", code=1)
    assert result.stdout.count("has ended") == 2
    assert result.stderr == "Error: 2 of 3 things need attention\n"


def test_status_tells_of_keys_kept_badly(mooring: Mooring) -> None:
    """A key that is not encrypted is said; one that others may read is an error with its name."""
    mooring.run("init", "Try", "--no-passphrase")
    assert "its key is not encrypted" in mooring.run("status", code=1).stdout
    key = next(mooring.ca.glob("authorities/*/key.pem"))
    key.chmod(0o640)
    said = mooring.run("status", code=1).stderr
    assert f"{key}: may be read by others (mode 0640)" in said


def test_status_looks_at_the_lists_that_are_served(
    made: Mooring, database: Database, later: Callable[[timedelta], None]
) -> None:
    """A list that was never made, lacks a revocation or is not renewed is said; so is a database
    that is away, beside all that is known without it."""
    assert "no list was ever published" in made.run("status", code=1).stdout
    authority = authority_of(made, database)
    authority.register()
    loaded = keystore.load(made.ca, made.secret, urls=Urls())
    publisher = Publisher(authority.ledger, loaded, directory=made.ca)
    publisher.run()
    assert made.run("status").stdout.count(" good") == 4
    request = make_request(generate_key().public_key(), common_name="ann")
    issued = authority.issue("client", request, COMMAND)
    authority.revoke(issued.authority_id, issued.serial, "superseded", COMMAND)
    assert "does not show the last revocation" in made.run("status", code=1).stdout
    publisher.run()
    made.run("status")
    later(timedelta(days=3))
    assert "should have been renewed" in made.run("status", code=1).stdout
    later(timedelta(days=8))
    assert "which is over" in made.run("status", code=1).stdout
    gone = f"sqlite:///{made.base}/no/mooring.db"
    rows = json.loads(made.run("status", "--database", gone, "-f", "json", code=1).stdout)
    assert [row["kind"] for row in rows if row["verdict"] != "good"] == ["database"]


def test_status_looks_at_the_file_of_nginx(
    made: Mooring, database: Database, later: Callable[[timedelta], None]
) -> None:
    """A file that is missing, was not read by NGINX or lacks the newest list is said."""
    file = made.base / "crl.pem"
    conf = made.base / "mooring.conf"
    conf.write_text(f"{conf.read_text()}crl_file = {file}\n")

    def verdict(code: int = 1) -> str:
        rows = json.loads(made.run("status", "-f", "json", code=code).stdout)
        return {row["kind"]: str(row["verdict"]) for row in rows}["file"]

    authority = authority_of(made, database)
    authority.register()
    loaded = keystore.load(made.ca, made.secret, urls=Urls())
    publisher = Publisher(
        authority.ledger, loaded, directory=made.ca, nginx=NginxFile(file, ("false",))
    )
    publisher.publish()
    assert verdict() == f"{file}: FileNotFoundError"
    with pytest.raises(ReloadFailed):
        publisher.refresh()
    assert verdict() == f"{file} is newer than what NGINX has read"
    publisher.nginx = NginxFile(file, ("true",))
    publisher.refresh()
    assert verdict(code=0) == "good"
    publisher.publish(force=True)
    later(timedelta(minutes=2))
    assert "does not hold list" in verdict()


def test_the_audit_trail_is_shown_and_verified(made: Mooring, database: Database) -> None:
    """A whole chain ends with a hash to keep; a changed row is found, and so is a cut-off end."""
    authority = authority_of(made, database)
    for number in range(3):
        request = make_request(generate_key().public_key(), dns_names=[f"h{number}.example"])
        authority.issue("server", request, COMMAND)
    whole = made.run("audit", "--verify").stdout
    head = re.search(r"(\d+:[0-9a-f]{64})", whole)
    assert head is not None
    assert "the trail is whole: 6 entries" in whole
    assert made.run("audit").stdout.count("issue") == 6
    assert len(json.loads(made.run("audit", "-n", "2", "-f", "json").stdout)) == 2
    made.run("audit", "--verify", "--known", head[1])
    assert "SEQUENCE:HASH" in made.run("audit", "--verify", "--known", "x", code=2).stderr
    table = schema.ca_audit
    with database.write() as writer:
        writer.connection.execute(sqlalchemy.delete(table).where(table.c.sequence == 6))
    made.run("audit", "--verify")
    assert "broken at entry 6" in made.run("audit", "--verify", "--known", head[1], code=1).stderr
    with database.write() as writer:
        writer.connection.execute(
            sqlalchemy.update(table).where(table.c.sequence == 2).values(actor="nobody")
        )
    result = made.run("audit", "--verify", code=1)
    assert "broken at entry 2" in result.stderr
    assert json.loads(made.run("audit", "--verify", "-f", "json", code=1).stdout)["whole"] is False
    database.close()


def test_a_controllers_first_certificates_need_no_service(
    made: Mooring, database: Database
) -> None:
    """--local: through the ledger and the trail like all others, and renewed the same way."""
    where = made.base / "certificates"
    made.environment["MOORING_CA_PASSPHRASE_FILE"] = None

    def request(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(
            main,
            ["cert", *words, "--directory", str(where)],
            env={**made.environment, "MOORING_CA_URL": None, "MOORING_CERT": None},
        )
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result

    request("request", "controller", "--local", "--dns", "controller.example")
    request("request", "ann", "--local", "--profile", "client", "--group", ADMINS)
    again = request("request", "ann", "--local", "--profile", "client", "--group", ADMINS)
    assert again.stdout.startswith("already there: ")
    request("renew", "controller", "--force")
    trail = json.loads(made.run("audit", "-f", "json").stdout)
    assert [row["decision"] for row in trail] == ["intent", "done"] * 3
    assert {row["actor"].partition(":")[0] for row in trail} == {"command"}
    found = Ledger(database).by_fingerprint
    for name in ("controller", "ann"):
        data = (where / name / "cert.pem").read_bytes()
        record = found(x509.load_pem_x509_certificate(data).fingerprint(SHA256()).hex())
        assert record is not None
        assert record.state == "issued"
    assert "/dns_names" in request("request", "x", "--local", "--dns", "a_b", code=2).stderr
    said = request("request", "x", "--local", "--profile", "none", code=1).stderr
    assert said.startswith("Error: /profile: ")
    said = request("request", "x", "--local", "--profile", "intermediate", code=1).stderr
    assert said.startswith("Error: /issuer: ")
    made.environment["MOORING_CONFIG"] = None
    assert "--local needs the mooring.conf" in request("request", "y", "--local", code=2).stderr
    database.close()


def test_mooring_conf_says_where_everything_is(made: Mooring, database: Database) -> None:
    """With a mooring.conf no other option is needed, for `rotate` neither."""
    made.environment["MOORING_CA_DIRECTORY"] = None
    made.environment["MOORING_CA_PASSPHRASE_FILE"] = None
    made.run("rotate", "Example", "--root-directory", made.ca / "root")
    new = next(name for name, state in made.states().items() if state == "prepared")
    path = made.ca / "authorities" / new / "certificate.pem"
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    point = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value[0]
    assert (point.full_name or [])[0].value.startswith("http://ca.example:8080/crl/")
    wrong = made.run("show", code=1, MOORING_CONFIG=str(made.base / "other.conf")).stderr
    assert "cannot be read" in wrong


def test_a_passphrase_is_asked_for_twice_when_it_is_made(
    mooring: Mooring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without file or credential a person types it; a short one is refused, none is shown."""
    mooring.environment["MOORING_CA_PASSPHRASE_FILE"] = None
    assert "give --passphrase-file" in mooring.run("init", "Typed", code=2).stderr
    monkeypatch.setattr(ca_site, "_has_terminal", lambda: True)
    short = mooring.run("init", "Typed", code=2, stdin="short\nshort\n")
    assert "less than 12 characters" in short.stderr
    typed = "long enough to type"
    made = mooring.run("init", "Typed", stdin=f"{typed}\n{typed}\n")
    assert typed not in made.output
    assert keystore.load(mooring.ca, lambda: typed.encode(), urls=Urls()).all()
    again = ("rotate", "Typed", "--root-directory", mooring.ca / "root")
    assert (
        "the passphrase is wrong"
        in mooring.run(
            *again, code=1, stdin=f"another passphrase\nanother passphrase\n{typed[::-1]}\n"
        ).stderr
    )


def test_systemds_credential_is_used(mooring: Mooring) -> None:
    """Inside a unit with LoadCredential=ca-passphrase nothing needs to be said."""
    folder = mooring.base / "credentials"
    folder.mkdir()
    (folder / "ca-passphrase").write_text("given by systemd\n")
    mooring.environment["MOORING_CA_PASSPHRASE_FILE"] = None
    mooring.run("init", "Unit", CREDENTIALS_DIRECTORY=str(folder))
    assert keystore.load(mooring.ca, lambda: b"given by systemd", urls=Urls()).all()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("init", "E", "--public-url", "https://ca.example"), 2, "is not an http address"),
        (("init", ""), 1, "/common_name"),
        (("init", "x" * 60), 1, "/common_name"),
        (("init", "x" * 50), 1, "/common_name"),
        (("csr", "x" * 50), 1, "/common_name"),
        (("init", "E", "--key-type", "dsa"), 2, "--key-type"),
        (("show",), 1, "root.crt: does not exist"),
        (("status",), 1, "root.crt: does not exist"),
        (("install", "none.pem"), 1, "does not exist"),
        (("install",), 2, "give the intermediate's CERTIFICATE"),
        (("csr", "E", "--key-uri", "pkcs11:object=a"), 1, "no module-path"),
        (("root-crl", "--root-directory", "/nonexistent"), 1, "root.key: does not exist"),
        (("audit",), 2, "no database"),
        (("audit", "--database", "nonsense"), 2, "the database URL"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    mooring: Mooring, words: tuple[str, ...], code: int, said: str
) -> None:
    """One line, an exit code, and no file but a passphrase that was made first."""
    result = mooring.run(*words, code=code)
    assert said in result.stderr
    assert set(mooring.tree()) <= {"passphrase"}


ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ca-operations.md").read_text(encoding="utf-8")
UNITS = ROOT / "etc" / "systemd"


def parsed(line: str) -> None:
    """Parse a command line as the shell and click do, without running it; raises if it is wrong."""
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "mooring", line
    command: click.Command = main
    context = click.Context(main, info_name="mooring", **main.context_settings)
    while isinstance(command, click.Group):
        inner = command.get_command(context, words.pop(0))
        assert inner is not None, line
        command, context = inner, click.Context(inner, parent=context, info_name=inner.name)
    context.resilient_parsing = True  # no files are looked for
    command.parse_args(context, words)
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in known, line


def test_the_pages_commands_are_real() -> None:
    """Every command line of docs/ca-operations.md parses, with every option that it names."""
    text = PAGE.replace("\\\n", " ")
    lines = [line.strip().partition(" > ")[0] for line in text.splitlines()]
    lines += re.findall(r"`(mooring [^`]+)`", text)
    found = [line for line in lines if line.startswith("mooring ")]
    assert len(found) >= 25
    for line in found:
        parsed(line)


def test_the_pages_ansible_tasks_are_real() -> None:
    """Both command lists of the Ansible tasks parse, and what they look for is printed."""
    block = PAGE.partition("```yaml\n")[2].partition("```")[0]
    inline = re.search(r"argv: \[([^]]+)\]", block)
    assert inline is not None
    parsed(" ".join(word.strip() for word in inline[1].split(",")))
    words = re.findall(r"^      - (.+)$", block, re.MULTILINE)
    assert words[:3] == ["mooring", "cert", "request"]
    parsed(shlex.join(word.strip('"') for word in words))
    assert "'wrote ' in request.stdout" in block


def test_every_command_of_the_group_is_on_the_page() -> None:
    """docs/ca-operations.md shows each command of `mooring ca`, and those of `mooring cert`."""
    context = click.Context(main)
    for group, without in (("ca", {"show", "acme-key"}), ("cert", {"show", "revoke", "release"})):
        commands = main.get_command(context, group)
        assert isinstance(commands, click.Group)
        for name in set(commands.list_commands(context)) - without:
            assert re.search(rf"`?mooring {group} {name}\b", PAGE), (group, name)


def test_the_timers_command_is_real() -> None:
    """The unit runs a command that exists, and the timer is for that unit."""
    unit = (UNITS / "mooring-cert-renew.service").read_text()
    started = re.search(r"^ExecStart=/usr/bin/env (.+)$", unit, re.MULTILINE)
    assert started is not None
    parsed(started[1])
    assert (UNITS / "mooring-cert-renew.timer").exists()
    if (analyze := shutil.which("systemd-analyze")) is not None:
        done = subprocess.run(
            [analyze, "verify", *UNITS.glob("mooring-cert-renew.*")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "mooring-cert-renew" not in done.stderr, done.stderr
