"""mooring.conf: what is wrong in it is named before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.core import config
from services.core.config import ConfigError, load
from services.hostnet.agent import config as agent_config

ROOT = Path(__file__).parents[3]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mooring.conf"
    path.write_text(text)
    return path


def test_defaults_need_no_line(tmp_path: Path) -> None:
    """An empty file is a working configuration."""
    conf = load(write(tmp_path, ""))
    assert conf.database.url == "sqlite:////var/lib/mooring/mooring.db"
    assert conf.metadata.nova_compatible is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[metadata]\ndhcp_domian = x\n", "unknown option dhcp_domian in [metadata] (is dhcp_dom"),
        ("[metdata]\n", "unknown section [metdata] (is metadata meant?)"),
        ("[DEFAULT]\ndebug = true\n", "unknown section [DEFAULT]"),
        ("[metadata]\ncache_mib = many\n", "option cache_mib in [metadata]"),
        ("[metadata]\ncache_mib = 0\n", "option cache_mib in [metadata]"),
        ("[database]\nurl = mysql://u:hidden@h/d\n", "sqlite and postgresql are served"),
        ("no section\n", "mooring.conf"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    """Unknown sections and options, and values that are none, stop the load with their names."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is an error, not a set of defaults."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.conf")


@pytest.mark.parametrize(
    ("namespace", "name"),
    [("mooring", "mooring.conf"), ("mooring.agent", "mooring-agent.conf")],
)
def test_the_samples_are_what_the_code_knows(tmp_path: Path, namespace: str, name: str) -> None:
    """etc/mooring/*.sample hold every option; tools/generate-samples writes them."""
    made = tmp_path / name
    subprocess.run(
        [
            *(sys.executable, "-m", "oslo_config.generator"),
            *("--namespace", namespace, "--output-file", made),
        ],
        check=True,
        capture_output=True,
    )
    assert made.read_text() == (ROOT / "etc" / "mooring" / f"{name}.sample").read_text()


@pytest.mark.parametrize("namespace", ["mooring", "mooring.agent"])
def test_the_samples_pass_the_validator(namespace: str) -> None:
    """oslo-config-validator finds nothing wrong in what we ship."""
    name = "mooring-agent.conf" if namespace.endswith("agent") else "mooring.conf"
    subprocess.run(
        [
            *(sys.executable, "-m", "oslo_config.validator", "--namespace", namespace),
            *("--input-file", ROOT / "etc" / "mooring" / f"{name}.sample"),
        ],
        check=True,
        capture_output=True,
    )


def test_every_option_is_in_the_docs() -> None:
    """docs/configuration.md names each option of both files."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    missing = [
        f"[{group}] {option.name}"
        for group, options in {**config.OPTIONS, **agent_config.OPTIONS}.items()
        for option in options
        if f"`{option.name}`" not in text
    ]
    assert missing == []
