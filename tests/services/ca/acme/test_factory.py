"""The application as paste makes it from mooring.conf, and what stops the start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.ca import ceremony, keystore
from services.ca.acme.application import Acme, app_factory
from services.core.config import ACME, ConfigError
from services.core.errors import Failure
from tests.services.ca.acme.acme_client import BASE, call

ROOT = Path(__file__).parents[4]


@pytest.fixture
def configured(tmp_path: Path, sqlite_url: str) -> Path:
    """A mooring.conf with a key store; [acme] is to be added."""
    passphrase = tmp_path / "passphrase"
    ceremony.create_passphrase(passphrase)
    ceremony.create(
        tmp_path / "ca",
        "Factory",
        passphrase=keystore.passphrase_in(passphrase),
        urls=keystore.Urls(),
        now=datetime.now(UTC),
    )
    path = tmp_path / "mooring.conf"
    path.write_text(
        f"[database]\nurl = {sqlite_url}\n"
        f"[ca]\ndirectory = {tmp_path}/ca\npassphrase_file = {passphrase}\nprofiles =\n[acme]\n"
    )
    return path


def make(path: Path, *lines: str) -> Acme:
    path.write_text(path.read_text() + "".join(f"{line}\n" for line in lines))
    app = app_factory({}, config=str(path))
    assert isinstance(app, Acme)
    return app


def test_every_option_is_used(configured: Path) -> None:
    """The options of [acme] reach the application; what they mean, other tests say."""
    app = make(
        configured,
        f"external_url = {BASE}",
        "allowed_networks = 10.0.0.0/8, 2001:db8::/32",
        "http_port = 8080",
        "tls_port = 8443",
        "resolver = 127.0.0.1:5353, [::1]:5353, 192.0.2.1, 2001:db8::53",
        "external_account_required = false",
        "nonce_lifetime = 60",
        "order_lifetime = 600",
        "orders_per_hour = 7",
        "accounts_per_hour = 8",
        "terms_of_service = https://ca.example.test/terms",
        "profile = server",
    )
    assert call(app, "GET", "/directory").json["meta"] == {
        "externalAccountRequired": False,
        "termsOfService": "https://ca.example.test/terms",
    }
    assert call(app, "HEAD", "/new-nonce").status == 200


def test_off_without_an_address(configured: Path) -> None:
    """Without external_url there is no ACME: everything is 404."""
    app = app_factory({}, config=str(configured))
    with pytest.raises(Failure, match="404"):
        call(app, "GET", "/directory")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("profile = client", "client is not given over ACME (those are: server)"),
        ("profile = nothing", "nothing is not given over ACME"),
        ("external_url = http://ca.example.test/acme", "external_url"),
        ("external_url = https://ca.example.test/acme/", "external_url"),
        ("allowed_networks = 10.0.0.1/8", "allowed_networks"),
        ("resolver = ns.example.test", "resolver"),
        ("resolver = 127.0.0.1:99999", "resolver"),
        ("http_port = 0", "http_port"),
    ],
)
def test_what_stops_the_start(configured: Path, line: str, says: str) -> None:
    """A value that cannot work stops the start with the file and the reason."""
    with pytest.raises(ConfigError) as stopped:
        make(configured, f"external_url = {BASE}", line)
    assert says in str(stopped.value)
    assert str(configured) in str(stopped.value)


@pytest.mark.parametrize("page", ["acme.md", "configuration.md"])
def test_every_option_is_documented(page: str) -> None:
    """Every option of [acme] stands in the documentation."""
    text = (ROOT / "docs" / page).read_text()
    assert [option.name for option in ACME if f"`{option.name}`" not in text] == []
