"""`mooring secret`: first secrets and their rotation, with the services' own reader."""

import base64
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.cli.main import main
from services.core.signature import host_key, load_secrets


def run(*arguments: str, code: int = 0) -> Result:
    """Run `mooring secret`; it has to end with this exit code."""
    result = CliRunner().invoke(main, ["secret", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_first_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    """create makes a directory and a file that the services accept, and never overwrites one."""
    directory = tmp_path / "a" / "signature"
    run("create", str(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "current").stat().st_mode & 0o777 == 0o600
    (secret,) = load_secrets(directory)
    assert len(bytes.fromhex(secret.decode())) == 32
    result = run("create", str(directory), code=5)
    assert "exists already" in result.stderr
    assert load_secrets(directory) == (secret,)
    assert [path.name for path in directory.iterdir()] == ["current"]


def test_a_rotation_takes_three_steps_and_loses_nobody(tmp_path: Path) -> None:
    """At each step both the secret in use and the one before or after it are accepted."""
    directory = str(tmp_path)
    run("create", directory)
    (tmp_path / "current").chmod(0o640)
    (old,) = load_secrets(directory)
    run("rotate", directory)
    current, new = load_secrets(directory)
    assert (current, new != old) == (old, True)
    assert (tmp_path / "next").stat().st_mode & 0o777 == 0o640
    run("rotate", directory)
    assert load_secrets(directory) == (new, old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "previous"]
    assert "complete" in run("rotate", directory).stdout
    assert load_secrets(directory) == (new,)


def test_an_interrupted_step_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two names of a secret leaves a directory that works and goes on."""
    directory = str(tmp_path)
    run("create", directory)
    run("rotate", directory)
    old, new = load_secrets(directory)
    hits = []

    def crash(self: Path, target: Path) -> Path:
        hits.append(target)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        assert "Input/output error" in run("rotate", directory, code=1).stderr
    assert hits
    assert load_secrets(directory) == (old, new, old)
    run("rotate", directory)
    assert load_secrets(directory) == (new, old)


def test_rotation_needs_a_secret(tmp_path: Path) -> None:
    """Without a current secret there is nothing to rotate: exit code 4, nothing made."""
    assert "create it" in run("rotate", str(tmp_path), code=4).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_host_s_key_is_the_one_that_the_services_derive(tmp_path: Path) -> None:
    """What a host is given signs what the instance signature filter accepts."""
    directory = str(tmp_path)
    run("create", directory)
    printed = run("host-key", directory, "host-1").stdout
    assert base64.b64decode(printed) == host_key(load_secrets(directory)[0], "host-1")
    assert "create" not in run("host-key", str(tmp_path / "none"), "h", code=4).stdout
