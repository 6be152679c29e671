"""What must not start does not start, and one line says why."""

import shutil
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, text
from stand import Stand

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def files():
    """A stand with all of its files and nothing running."""
    stand = Stand()
    try:
        stand.prepare()
        for name in ("etc", "lib"):
            shutil.copytree(stand.directory / name, stand.directory / f"{name}.kept")
        yield stand
    finally:
        stand.close()


@pytest.fixture
def stand(files):
    """Those files as they were, for each test to spoil."""
    for name in ("etc", "lib"):
        shutil.rmtree(files.directory / name)
        shutil.copytree(files.directory / f"{name}.kept", files.directory / name)
    yield files
    files.stop()


def refused(stand):
    """Start gunicorn, which must end by itself; returns the line that says why."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "--paste", stand.etc / "metadata.ini"),
            *("-c", stand.etc / "gunicorn" / "metadata.py", "--workers", "2"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=stand.environment(),
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"gunicorn has started:\n{output}")
    assert process.returncode != 0, output
    assert "Traceback" not in output
    assert "Booting worker" not in output
    said = [line for line in output.splitlines() if line.startswith("mooring: ")]
    assert len(said) == 1, output
    return said[0]


def edit(path, old, new):
    """Replace a text that stands in a file once."""
    content = path.read_text()
    assert content.count(old) == 1, f"{old!r} in {path}"
    path.write_text(content.replace(old, new))


def test_the_control_starts(stand):
    """The same files, unchanged, are served: every refusal below is about its change."""
    stand.start_gunicorn()


@pytest.mark.parametrize(
    ("section", "option"),
    [("metadata", "tokens_secrets"), ("database", "urls"), ("nonsense", "key")],
)
def test_an_unknown_option_in_mooring_conf(stand, section, option):
    """A typo in an option or a section is named with its file."""
    path = stand.etc / "mooring.conf"
    header, content = f"[{section}]\n", path.read_text()
    content += "" if header in content else header
    path.write_text(content.replace(header, f"{header}{option} = 1\n"))
    said = refused(stand)
    assert str(path) in said
    assert f"[{section}]" in said
    assert option in said or "unknown section" in said


def test_a_value_that_is_none_of_the_options(stand):
    """A wrong value names the option."""
    path = stand.etc / "mooring.conf"
    path.write_text(path.read_text().replace("level = info", "level = loud"))
    said = refused(stand)
    assert "level" in said


PASTE = {
    "an unknown key": ("max_age = 60", "maxage = 60", ["maxage", "instance_signature"]),
    "a wrong value": ("max_age = 60", "max_age = soon", ["max_age"]),
    "a wrong order": (
        "forwarded_by_two client_certificate instance_signature",
        "client_certificate forwarded_by_two instance_signature",
        ["forwarded", "client_certificate"],
    ),
    "no gatekeeper": (
        "pipeline = gatekeeper request_id errors_text healthcheck forwarded_by_two",
        "pipeline = request_id errors_text healthcheck forwarded_by_two",
        ["gatekeeper"],
    ),
    "an unknown filter": (
        "forwarded_by_one metadata_by_address",
        "forwarded_by_ten metadata_by_address",
        ["forwarded_by_ten"],
    ),
    "an unknown module": (
        "middleware.client_certificate:filter_factory",
        "middleware.client_certificat:filter_factory",
        ["client_certificat"],
    ),
    "a missing secret": (
        "secrets = %(here)s/secrets/signature",
        "secrets = %(here)s/secrets/nothing",
        ["secrets/nothing"],
    ),
    "a composite's missing application": ("flat.sock = flat", "flat.sock = flut", ["flut"]),
}


@pytest.mark.parametrize("name", PASTE)
def test_a_wrong_paste_file(stand, name):
    """The line names the file and the culprit."""
    old, new, culprits = PASTE[name]
    edit(stand.etc / "metadata.ini", old, new)
    said = refused(stand)
    assert str(stand.etc / "metadata.ini") in said
    for culprit in culprits:
        assert culprit in said


SECRETS = {
    "missing": lambda path: path.unlink(),
    "short": lambda path: path.write_bytes(b"short"),
    "readable by everyone": lambda path: path.chmod(0o644),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_cannot_be_used(stand, name):
    """The line names the secret's file and never its content."""
    path = stand.etc / "secrets" / "signature" / "current"
    content = path.read_text()
    SECRETS[name](path)
    said = refused(stand)
    assert str(path) in said
    assert content not in said


def test_token_secrets_that_are_not_there(stand):
    """The option of mooring.conf whose directory is missing is named."""
    path = stand.etc / "mooring.conf"
    edit(path, f"{stand.etc}/secrets/signature", f"{stand.etc}/secrets/tokens")
    said = refused(stand)
    assert "token_secrets" in said
    assert f"{stand.etc}/secrets/tokens" in said


SCHEMAS = {
    "an empty database": ("DROP TABLE alembic_version", "mooring db upgrade"),
    "an unknown schema": ("UPDATE alembic_version SET version_num = '9999'", "9999"),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_is_not_this_versions(stand, name):
    """The line says what schema there is, or what to run."""
    statement, culprit = SCHEMAS[name]
    engine = create_engine(stand.database_url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert culprit in refused(stand)


def test_no_configuration_at_all(stand):
    """A missing mooring.conf is named."""
    (stand.etc / "mooring.conf").unlink()
    assert str(stand.etc / "mooring.conf") in refused(stand)
