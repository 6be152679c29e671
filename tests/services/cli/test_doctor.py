"""`mooring doctor`: no finding about a sound installation, and what is broken with a remedy."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sqlite3
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.ca import keystore
from services.ca.ledger import Ledger
from services.cli import doctor
from services.cli.main import main
from services.core import readiness
from services.core.config import load
from services.core.database import Database

ROOT = Path(__file__).parents[3]


class Installation:
    """A controller as the README makes one, and a host's files beside it; below `base`."""

    def __init__(self, base: Path) -> None:
        self.base, self.etc = base, base / "etc"
        self.conf = self.etc / "mooring.conf"

    def run(self, *words: str | Path, code: int = 0) -> Result:
        """Run `mooring ...`; it has to end with this exit code."""
        env = {
            "MOORING_CONFIG": str(self.conf),
            "MOORING_CERT_DIRECTORY": str(self.base / "certificates"),
        }
        result = CliRunner().invoke(main, list(map(str, words)), env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, (words, result.stdout, result.stderr)
        return result

    def make(self) -> None:
        """What the README says, with the paths moved."""
        shutil.copytree(ROOT / "etc" / "mooring", self.etc)
        shutil.copytree(ROOT / "etc" / "nginx", self.etc / "nginx")
        for path in (self.etc / "nginx").iterdir():
            path.write_text(path.read_text().replace("/etc/mooring", str(self.etc)))
        self.conf.write_text(
            f"[database]\nurl = sqlite:///{self.base}/mooring.db\n"
            f"[metadata]\ntoken_secrets = {self.etc}/secrets/signature\n"
            f"[ca]\npublic_url = http://ca.example:8080\ndirectory = {self.etc}/ca\n"
            f"passphrase_file = {self.etc}/ca-passphrase\nprofiles = {self.etc}/profiles.toml\n"
            f"crl_file = {self.base}/crl.pem\n"
        )
        secrets = self.etc / "secrets" / "signature"
        self.run("secret", "create", secrets)
        self.run("db", "upgrade")
        self.run("ca", "init", "Example")
        shutil.move(self.etc / "ca" / "root", self.base / "safe")
        pki = self.etc / "pki"
        pki.mkdir()
        self.run("ca", "bundle", "-o", pki / "chain.crt")
        self.request("controller", "--dns", "controller.example", "--dns", "localhost")
        (pki / "server.crt").symlink_to(self.base / "certificates/controller/fullchain.pem")
        (pki / "server.key").symlink_to(self.base / "certificates/controller/key.pem")
        tls = self.etc / "nginx" / "tls-server.conf"
        text = tls.read_text()
        tls.write_text(text.replace("#ssl_crl /var/lib/mooring", f"ssl_crl {self.base}"))
        assert f"\nssl_crl {self.base}/crl.pem;" in tls.read_text()
        self.run("ca", "publish")

    def make_host(self) -> None:
        """mooring-agent.conf, the host's certificate and its signing key."""
        self.request("h1.example", "--profile", "host", "--bundle")
        key = self.etc / "host-key"
        key.write_text(
            self.run("secret", "host-key", self.etc / "secrets/signature", "h1.example").stdout
        )
        key.chmod(0o600)
        (self.etc / "mooring-agent.conf").write_text(
            "[agent]\nhost = h1.example\napi_url = https://controller.example:8774\n"
            "controllers = 192.0.2.1:8775/controller.example\n"
            f"ca_file = {self.etc}/ca/root.crt\nhost_key_file = {key}\n"
            f"cert_file = {self.base}/certificates/h1.example/bundle.pem\n"
        )

    def request(self, name: str, *words: str) -> None:
        """Get a certificate from the authority on this machine."""
        self.run("cert", "request", name, "--local", *words)

    def doctor(self) -> list[dict[str, str]]:
        """The rows that need attention."""
        result = CliRunner().invoke(main, ["doctor", "--config", str(self.conf), "-f", "json"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        rows = [
            row for row in json.loads(result.stdout) if row["verdict"] in ("warning", "critical")
        ]
        assert result.exit_code == (1 if rows else 0), result.stderr
        assert all(row["remedy"] for row in rows)
        return rows

    def only(self, verdict: str, part: str) -> str:
        """Where and what the one finding is."""
        (row,) = self.doctor()
        assert (row["verdict"], row["part"]) == (verdict, part), row
        return f"{row['subject']}: {row['says']}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made once, copied for each test."""
    made = Installation(tmp_path_factory.mktemp("sound"))
    made.make()
    made.make_host()
    readiness.unregister("ca root list")
    return made


@pytest.fixture
def installation(sound: Installation, tmp_path: Path) -> Installation:
    """A sound installation of the test's own."""
    base = tmp_path / "own"
    shutil.copytree(sound.base, base, symlinks=True)
    old, new = str(sound.base), str(base)
    for path in base.rglob("*"):
        if path.is_symlink():
            target = str(path.readlink())
            path.unlink()
            path.symlink_to(target.replace(old, new))
        elif path.suffix in (".conf", ".ini"):
            path.write_text(path.read_text().replace(old, new))
    return Installation(base)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Move the doctor's clock."""

    def move(by: timedelta) -> None:
        monkeypatch.setattr(doctor, "present", lambda: datetime.now(UTC) + by)

    return move


def test_a_sound_installation_has_no_findings(installation: Installation) -> None:
    """Nothing is changed, and what was looked at is every part."""

    def tree() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in installation.base.rglob("*") if path.is_file()}

    before = tree()
    assert installation.doctor() == []
    assert tree() == before
    said = installation.run("doctor", "--all").stdout
    for part in ("package", "configuration", "database", "secrets", "ca", "nginx", "host"):
        assert f"  {part} " in said
    assert "all is well" in installation.run("doctor").stdout
    subjects = {
        row["subject"]
        for row in json.loads(installation.run("doctor", "-f", "json").stdout)
        if row["verdict"] == "good"
    }
    etc, base = installation.etc, installation.base
    expected = {
        *(etc / "mooring.conf", etc / "metadata.ini", etc / "ca.ini", etc / "mooring-agent.conf"),
        *(etc / "pki/server.crt", etc / "pki/server.key", etc / "pki/chain.crt", base / "crl.pem"),
        *(etc / "secrets/signature", etc / "ca-passphrase", etc / "profiles.toml"),
        base / "certificates/h1.example/bundle.pem",
    }
    assert {str(path) for path in expected} <= subjects
    assert {"services", "middleware", "nginx", "haproxy", "nft"} <= subjects


def rewrite(file: str, old: str, new: str) -> Callable[[Installation], None]:
    """Break a file of text."""

    def act(installation: Installation) -> None:
        path = installation.base / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return act


def mode(file: str, bits: int) -> Callable[[Installation], None]:
    """Let others read a file."""

    def act(installation: Installation) -> None:
        (path,) = installation.base.glob(file)
        path.chmod(bits)

    return act


def old_schema(installation: Installation) -> None:
    """A database that another version has left."""
    connection = sqlite3.connect(installation.base / "mooring.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of-tomorrow'")
    connection.close()


def leaf_alone(installation: Installation) -> None:
    """NGINX is given the certificate without its chain."""
    path = installation.etc / "pki" / "server.crt"
    path.unlink()
    path.symlink_to(installation.base / "certificates/controller/cert.pem")


def wrong_order(installation: Installation) -> None:
    """The chain begins with the issuer."""
    directory = installation.base / "certificates" / "controller"
    path = installation.etc / "pki" / "server.crt"
    path.unlink()
    path.write_bytes((directory / "chain.pem").read_bytes() + (directory / "cert.pem").read_bytes())


def another_key(installation: Installation) -> None:
    """The key of somebody else's certificate."""
    path = installation.etc / "pki" / "server.key"
    path.unlink()
    shutil.copy(installation.base / "certificates/h1.example/key.pem", path)


def rotated(installation: Installation) -> None:
    """A further intermediate that NGINX was not told of; its list is there."""
    installation.run("ca", "rotate", "Example", "--root-directory", installation.base / "safe")
    installation.run("ca", "publish")


def revoked_unlisted(installation: Installation) -> None:
    """A revocation that no list shows, since nothing publishes."""
    conf = load(installation.conf)
    secret = keystore.passphrase_in(installation.etc / "ca-passphrase")
    authorities = keystore.load(installation.etc / "ca", secret, urls=keystore.Urls())
    from services.ca.authority import Actor, Authority
    from services.ca.ledger import Search
    from services.ca.profile_file import SHIPPED

    database = Database(conf.database.url)
    ledger = Ledger(database)
    record = ledger.search(Search(profile="server"), now=datetime.now(UTC), limit=1)[0]
    Authority(authorities, ledger, SHIPPED).revoke(
        record.authority_id,
        int(record.serial, 16),
        "superseded",
        Actor("test", frozenset(), "", "", "command"),
    )
    database.close()


def root_key_here(installation: Installation) -> None:
    """`mooring ca init` was not followed to its end."""
    shutil.copytree(installation.base / "safe", installation.etc / "ca" / "root")


@pytest.mark.parametrize(
    ("damage", "verdict", "part", "said"),
    [
        (rewrite("etc/mooring.conf", "url =", "ulr ="), "critical", "configuration", "option ulr"),
        (
            rewrite("etc/metadata.ini", "= gatekeeper request_id", "= request_id"),
            *("critical", "configuration", "metadata.ini: [app:metadata]: the gatekeeper must be"),
        ),
        (
            rewrite("etc/ca.ini", "[filter:request_id]", "[filter:request_id]\ntypo = 1"),
            *("critical", "configuration", "unknown key 'typo'"),
        ),
        (mode("etc/secrets/signature/current", 0o644), "critical", "secrets", "readable by every"),
        (mode("etc/ca/authorities/*/key.pem", 0o640), "critical", "ca", "may be read by others"),
        (mode("certificates/controller/key.pem", 0o644), "critical", "nginx", "by others (mode"),
        (leaf_alone, "critical", "nginx", "server.crt: lacks the intermediate"),
        (another_key, "critical", "nginx", "server.key: is not the key of"),
        (rotated, "critical", "nginx", "chain.crt: lacks CN=Example Issuing CA"),
        (
            rewrite("etc/nginx/tls-server.conf", "_cache off", "_cache shared:a:1m"),
            *("critical", "nginx", "a revoked client goes on by resuming"),
        ),
        (
            rewrite("etc/nginx/tls-server.conf", "/crl.pem", "/other.pem"),
            *("critical", "nginx", "other.pem: does not exist, so NGINX does not start"),
        ),
        (root_key_here, "warning", "ca", "the root's key is on this server"),
        (
            rewrite("etc/mooring-agent.conf", "8775/controller.example", "8775"),
            *("critical", "host", "is not ADDRESS:PORT/NAME"),
        ),
        (mode("etc/host-key", 0o640), "critical", "host", "others can read it"),
    ],
)  # fmt: skip
def test_one_fault_is_one_finding(
    installation: Installation,
    damage: Callable[[Installation], None],
    verdict: str,
    part: str,
    said: str,
) -> None:
    """Where it is, what it is and what to do."""
    damage(installation)
    found = [
        row
        for row in installation.doctor()
        if said in f"{Path(row['subject']).name}: {row['says']}"
        and (row["verdict"], row["part"]) == (verdict, part)
    ]
    assert len(found) == 1, installation.doctor()


def test_a_database_that_is_away_or_of_another_version_is_named(installation: Installation) -> None:
    """With what to do; what needs no database is told all the same."""
    old_schema(installation)
    rows = installation.doctor()
    assert rows[0]["part"] == "database"
    assert "newer than this version knows" in rows[0]["says"]
    (installation.base / "mooring.db").unlink()
    rows = [row for row in installation.doctor() if row["part"] != "configuration"]
    assert [(row["part"], row["says"].split(" (")[0].split(":")[0]) for row in rows] == [
        ("database", "is not available"),
        ("ca", "is away"),
    ]


def test_a_chain_in_the_wrong_order_is_named(installation: Installation) -> None:
    """NGINX would not start: the first certificate is not that of the key."""
    wrong_order(installation)
    says = [row["says"] for row in installation.doctor()]
    assert any("follows what it has not issued" in each for each in says)
    assert any("is not the key of" in each for each in says)


def test_a_revocation_that_no_list_shows_is_named(installation: Installation) -> None:
    """Somebody has to publish it."""
    revoked_unlisted(installation)
    assert "does not show the last revocation" in installation.only("warning", "ca")
    installation.run("ca", "publish")
    readiness.unregister("ca root list")
    assert installation.doctor() == []


def test_the_end_of_the_roots_list_is_announced(
    installation: Installation, later: Callable[[timedelta], None]
) -> None:
    """A month ahead as a warning, and afterwards as what locks everybody out."""
    later(timedelta(days=340))
    rows = {row["subject"]: row for row in installation.doctor()}
    (root,) = (row for name, row in rows.items() if name.startswith("root-crl"))
    assert (root["verdict"], root["says"]) == ("warning", "ends in 24 days: mooring ca root-crl")
    later(timedelta(days=366))
    (root,) = (row for row in installation.doctor() if row["subject"].startswith("root-crl"))
    assert (root["verdict"], root["says"].split(":")[0]) == ("critical", "has ended")
    assert "install --root-crl" in root["remedy"]


def test_certificates_that_nobody_renews_are_announced(
    installation: Installation, later: Callable[[timedelta], None]
) -> None:
    """Once a sixth of their life is left; then as ended."""
    for part, days, verdict, said in (
        ("host", 6, "warning", "was not renewed"),
        ("host", 8, "critical", "has ended"),
        ("nginx", 27, "warning", "was not renewed"),
        ("nginx", 31, "critical", "has ended"),
    ):
        later(timedelta(days=days))
        (row,) = (row for row in installation.doctor() if row["part"] == part)
        assert row["verdict"] == verdict
        assert said in row["says"]


def test_import_names_that_are_not_ours_are_named(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another distribution that brings `middleware`, beside ours or in its place."""
    both = {"services": ["mooring"], "middleware": ["mooring", "some-framework"]}
    monkeypatch.setattr(doctor, "packages_distributions", lambda: both)
    assert installation.only("critical", "package") == "middleware: belongs to some-framework too"
    monkeypatch.setattr(doctor, "packages_distributions", dict)
    assert installation.doctor() == []
    foreign = types.SimpleNamespace(__file__="/usr/lib/python3/dist-packages/services/__init__.py")
    real = importlib.import_module
    monkeypatch.setattr(
        "services.cli.doctor.importlib",
        types.SimpleNamespace(
            import_module=lambda name: foreign if name == "services" else real(name)
        ),
    )
    assert "services: is that of /usr/lib/python3" in installation.only("critical", "package")


def test_the_import_names_belong_to_our_distribution() -> None:
    """`services` and `middleware` as they are imported here are those of this checkout."""
    for name in doctor.IMPORT_NAMES:
        place = Path(importlib.import_module(name).__file__ or "").resolve()
        assert place == ROOT / name / "__init__.py"
        assert set(doctor.packages_distributions().get(name, [])) <= {doctor.DISTRIBUTION}


def test_a_host_without_a_controller_is_looked_at_alone(installation: Installation) -> None:
    """mooring-agent.conf is enough; a program that is missing is named."""
    for path in installation.etc.glob("*.ini"):
        path.unlink()
    installation.conf.unlink()
    assert installation.doctor() == []
    (installation.etc / "mooring-agent.conf").unlink()
    assert "neither this nor mooring-agent.conf" in installation.only("critical", "configuration")


def test_a_program_that_is_missing_is_named(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package that has it."""
    real = shutil.which
    monkeypatch.setattr(
        doctor.shutil,
        "which",
        lambda name, **more: None if name == "haproxy" else real(name, **more),
    )
    (row,) = installation.doctor()
    assert (row["subject"], row["says"], row["remedy"]) == (
        "haproxy",
        "is not installed",
        "apt install haproxy",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_another_user_is_named(installation: Installation) -> None:
    """The service runs as the directory's owner and could not read it."""
    (installation.etc / "ca").chmod(0o755)
    os.chown(installation.etc / "ca", 65534, 65534)
    assert "the service cannot read it" in installation.only("critical", "ca")


def test_a_controller_without_a_ca_is_sound(tmp_path: Path) -> None:
    """Its ca.ini, which stands there as shipped, is not looked at."""
    installation = Installation(tmp_path)
    shutil.copytree(ROOT / "etc" / "mooring", installation.etc)
    installation.conf.write_text(
        f"[database]\nurl = sqlite:///{tmp_path}/mooring.db\n"
        f"[metadata]\ntoken_secrets = {installation.etc}/secrets/signature\n"
        f"[ca]\ndirectory = {installation.etc}/ca\n"
    )
    installation.run("secret", "create", installation.etc / "secrets" / "signature")
    installation.run("db", "upgrade")
    assert installation.doctor() == []
