"""Runs last: no log of the whole session shows what no log may show."""

import base64
import signal

import pytest
from stand import wait_for

pytestmark = pytest.mark.e2e


def forms(value):
    """How a value may appear in a log: as it is, escaped, in base64 (either alphabet), in hex."""
    plain = base64.b64encode(value).rstrip(b"=")
    found = {value, plain, base64.urlsafe_b64encode(value).rstrip(b"="), value.hex().encode()}
    found.add(value.decode("latin-1").encode("unicode_escape"))
    # The last characters of base64 depend on what follows.
    return {form[:-2] if form == plain else form for form in found}


def leaks(logs, values):
    """(file, form) of every value that stands in one of the logs."""
    texts = {path: path.read_bytes() for path in logs if path.is_file()}
    return [
        (path.name, form[:20])
        for value in values
        for form in forms(value)
        for path, text in texts.items()
        if form in text
    ]


@pytest.fixture
def logs(sensitive):
    """Every log file of the session, those of living stands flushed."""
    for stand in sensitive.stands:
        nginx = stand.processes.get("nginx")
        if nginx is not None:
            # It keeps up to 32 kB for a second: with its logs opened anew all is written.
            marker = stand.log_dir / "metadata.access.log"
            size = marker.stat().st_size
            nginx.popen.send_signal(signal.SIGUSR1)
            wait_for("nginx's logs", lambda m=marker, s=size: m.stat().st_size >= s)
        sensitive.keep(stand)
        sensitive.stands.append(stand)
    return [path for path in sensitive.logs.rglob("*") if path.is_file()]


def test_the_logs_of_the_session_show_no_secret(house, red, sensitive, logs):
    """No user data, key material, token, signature, secret or password, in whatever form."""
    assert any(path.name == "metadata.access.log" and path.stat().st_size for path in logs)
    assert any(path.name == "gunicorn.log" and path.stat().st_size for path in logs)
    assert len(sensitive.values) > 10
    assert leaks(logs, sensitive.values) == []


def test_the_search_finds_what_is_there(house, red, sensitive, tmp_path):
    """The control: a log that shows one of the values, in any of its forms, is found."""
    signature = next(iter(sensitive.values))
    for number, form in enumerate(forms(signature)):
        path = tmp_path / f"{number}.log"
        path.write_bytes(b'{"level": "info", "header": "' + form + b'"}\n')
        assert leaks([path], sensitive.values), form
    clean = tmp_path / "clean.log"
    clean.write_text("GET /latest/user-data 200\n")
    assert leaks([clean], sensitive.values) == []


def test_the_logs_show_what_they_are_for(red, logs):
    """Requests stand there with id, peer and status, so the search had something to search in."""
    assert red.get("/latest/user-data").status == 200
    access = b"".join(path.read_bytes() for path in logs if path.name == "metadata.access.log")
    assert b'"request_id":"req-' in access
    assert b'"status":' in access
    assert b'"client":"CN=host-1' in access or b"host-1" in access
