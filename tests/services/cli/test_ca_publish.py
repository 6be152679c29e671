"""`mooring ca publish` on a server's own files and database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from services.ca import ceremony, keystore
from services.ca.keystore import Urls
from services.ca.ledger import Ledger
from services.cli.main import main
from services.core import readiness
from services.core.database import Database


@pytest.fixture
def server(sqlite_url, tmp_path):
    """A server's directory with mooring.conf; the passphrase is in a file."""
    secret = tmp_path / "passphrase"
    ceremony.create_passphrase(secret)
    ceremony.create(
        tmp_path / "ca",
        "Example",
        passphrase=keystore.passphrase_in(secret),
        urls=Urls.below("http://ca.test"),
        now=datetime.now(UTC),
    )
    (tmp_path / "mooring.conf").write_text(
        f"[database]\nurl = {sqlite_url}\n[ca]\ndirectory = {tmp_path}/ca\n"
        f"passphrase_file = {secret}\npublic_url = http://ca.test\n"
        f"crl_file = {tmp_path}/crl.pem\n"
        f"crl_reload = sh -c 'echo told >> {tmp_path}/told; test ! -e {tmp_path}/broken'\n"
    )
    yield tmp_path
    readiness.unregister("ca root list")


def run(server, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(
        main, ["ca", "publish", "--config", str(server / "mooring.conf"), *words]
    )
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_lists_are_made_once_and_nginx_is_told(server, sqlite_url):
    """Twice is once; --force makes them anew."""
    assert "made new lists of" in run(server).output
    assert (server / "told").read_text() == "told\n"
    assert (server / "crl.pem").read_bytes().count(b"BEGIN X509 CRL") == 2
    database = Database(sqlite_url)
    authority = keystore.read_active(server / "ca")
    first = Ledger(database).latest_crl(authority)
    assert "already there" in run(server).output
    assert (server / "told").read_text() == "told\n"
    run(server, "--force")
    assert Ledger(database).latest_crl(authority).number > first.number
    assert (server / "told").read_text() == "told\ntold\n"
    database.close()


def test_what_fails_is_said(server):
    """A reload that fails, and files that are not there, each with exit code 1."""
    (server / "broken").touch()
    assert "ended with 1" in run(server, code=1).output
    (server / "broken").unlink()
    run(server)
    (server / "ca" / "root.crl").unlink()
    assert "root.crl" in run(server, code=1).output


def test_a_root_list_near_its_end_is_announced(server):
    """A warning changes no exit code; an end within a week, or behind us, does."""
    passphrase = keystore.passphrase_in(server / "passphrase")
    present = datetime.now(UTC)
    for days, code, said in ((345, 0, "warning: root"), (360, 1, "critical: root")):
        crl = ceremony.renew_root_crl(
            server / "ca" / "root", passphrase, now=present - timedelta(days=days)
        )
        ceremony.install_root_crl(server / "ca", crl)
        assert said in run(server, code=code).output
    assert isinstance(crl, x509.CertificateRevocationList)


def test_without_configuration_or_database(server):
    """Usage and absence are told apart."""
    missing = CliRunner().invoke(main, ["ca", "publish", "--config", str(server / "none.conf")])
    assert missing.exit_code == 1
    assert "none.conf" in missing.output
    (server / "mooring.db").unlink()
    assert "database is not available" in run(server, code=3).output
