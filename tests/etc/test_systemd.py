"""The shipped systemd units: they parse, expose little, and what they forbid is not needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand import Stand, wait_for

UNITS = Path(__file__).resolve().parents[2] / "etc" / "systemd"

LIMITS = {
    "mooring-ca": 0.5,
    "mooring-hostnet": 1.5,
    "mooring-metadata": 1.5,
    "mooring-nginx": 3.0,
}
"""The greatest exposure that `systemd-analyze security` may find. The agent has none yet: it is one
process with all of its privileges, and what it mounts the host has to see."""


def analyze(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        ["systemd-analyze", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_unit_is_understood(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say but that our programs are not in /opt here."""
    for unit in UNITS.glob("*.[st][eoi]*"):
        text = unit.read_text().replace("/opt/mooring/bin/", "/bin/true ")
        text = text.replace("/usr/bin/env mooring", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    for unit in sorted(tmp_path.iterdir()):
        said = analyze("verify", "--man=no", unit)
        assert said == "", unit.name


@pytest.mark.parametrize("name", LIMITS)
def test_exposure_is_within_its_limit(name: str) -> None:
    """The score of `systemd-analyze security` is a gate."""
    said = analyze("security", "--offline=true", UNITS / f"{name}.service")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert found
    assert float(found[1]) <= LIMITS[name], said


def allowed(unit: str) -> set[str]:
    """System calls that a unit's SystemCallFilter lines leave."""
    calls: set[str] = set()
    for line in (UNITS / unit).read_text().splitlines():
        name, _, value = line.partition("=")
        if name != "SystemCallFilter":
            continue
        named = {call for word in value.lstrip("~").split() for call in expand(word)}
        calls = calls - named if value.startswith("~") else calls | named
    return calls


def expand(word: str) -> set[str]:
    """A call, or all calls of a set with the sets in it."""
    if not word.startswith("@"):
        return {word}
    lines = analyze("syscall-filter", "--no-pager", word).splitlines()
    members = [line.strip() for line in lines[1:] if line.strip() and "#" not in line]
    return {call for member in members for call in expand(member)}


def test_the_metadata_service_needs_no_forbidden_call(tmp_path: Path) -> None:
    """Started by its sockets and traced from start over requests to its end, the service makes no
    system call that its unit forbids."""
    trace = tmp_path / "trace"
    stand = Stand()
    try:
        stand.prepare()
        doors = [stand.run_dir / f"{name}.sock" for name in ("metadata", "flat", "operators")]
        process = stand.start(
            "gunicorn",
            *("systemd-socket-activate", *(f"--listen={door}" for door in doors)),
            *("--setenv=PYTHONPATH", shutil.which("strace"), "-D", "-f", "-qq", "-o", trace),
            *("-e", "trace=all", "-e", "signal=none"),
            *(sys.executable, "-m", "gunicorn", "--paste", stand.etc / "metadata.ini"),
            *("-c", stand.etc / "gunicorn" / "metadata.py", "--workers", "1"),
            env=stand.environment(),
        )
        wait_for("sockets", lambda: all(door.exists() for door in doors))
        wait_for("gunicorn", lambda: stand.ask_socket("metadata.sock", "/readyz") == 200, 60)
        assert stand.ask_socket("operators.sock", "/v1/instances") == 403
        process.stop()
    finally:
        stand.close()
    used = {
        match[1]
        for line in trace.read_text().splitlines()
        if (match := re.match(r"\d+ +(?:<\.\.\. )?([a-z0-9_]+)[( ]", line))
        and not line.rstrip().endswith("= ?")
    }
    assert {"openat", "accept4", "sendto"} <= used
    # SQLite gives its files to the database's owner, if it runs as root: in the unit it does not.
    assert used - allowed("mooring-metadata.service") - {"fchown"} == set()
