"""Log lines show no secret, whoever wrote them."""

import json
import logging

import pytest
import structlog

from services.core import log


@pytest.fixture(autouse=True)
def quiet_afterwards() -> object:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_secret_fields_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    """A field that holds a secret by its name is replaced, in our lines and in others'."""
    log.configure("info", "json")
    structlog.get_logger("x").info("event", token="hidden-1", user_data="hidden-2", path="/a")
    logging.getLogger("y").warning(
        "other", extra={"X-Ssl-Client-Cert": "hidden-3", "host_key": "hidden-4"}
    )
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["event"] == "event"
    assert lines[0]["path"] == "/a"
    assert lines[0]["token"] == log.REDACTED
    assert lines[1]["X-Ssl-Client-Cert"] == log.REDACTED
    assert "hidden" not in json.dumps(lines)


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Several applications in one process do not multiply lines."""
    log.configure()
    log.configure()
    structlog.get_logger("x").warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """The level is the operator's."""
    log.configure("error")
    structlog.get_logger("x").warning("quiet")
    assert capsys.readouterr().err == ""
