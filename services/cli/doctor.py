"""`mooring doctor`: is this installation sound, and if not, what is to be done.

It looks at what stands on this machine, controller or host, and changes nothing. Every check ends
in a row; one that finds nothing to look at says so.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ParserError
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.ca_site import DEFAULT_CONFIG, present
from services.cli.output import format_option, show_rows
from services.cli.settings import Failed

if TYPE_CHECKING:
    from cryptography import x509

    from services.cli.doctor_pki import Check

DISTRIBUTION = "mooring"
IMPORT_NAMES = ("services", "middleware")
CHECK_SECONDS = 60
"""For building a paste file's applications; a database that hangs has a deadline of its own."""


@click.command("doctor", short_help="Is this installation sound?")
@click.option(
    "--config",
    envvar="MOORING_CONFIG",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="mooring.conf; paste files, nginx/ and mooring-agent.conf are looked for beside it.",
)
@click.option("--all", "everything", is_flag=True, help="Show also what is good or not there.")
@format_option
def group(config: Path, everything: bool, style: str) -> None:
    """Is this installation sound? What is wrong, and what to do about it.

    Looks at what is on this machine, controller or host, and changes nothing: package,
    configuration and paste files, database, secrets, NGINX's certificates, the CA with all of its
    lists, a host's certificate, programs. Run it as root or as the service's user, also from
    monitoring: the exit code is 0 if all is well and 1 if anything needs attention.

    \b
    Examples:
      mooring doctor
      mooring doctor --all
      mooring doctor --config /srv/mooring/mooring.conf -f json
    """
    found = list(checks(config, present()))
    bad = [each for each in found if each.verdict in ("warning", "critical")]
    shown = found if everything or style == "json" else bad
    if shown:
        show_rows(("verdict", "part", "subject", "says", "remedy"), map(asdict, shown), style)
    if bad:
        raise Failed(f"{len(bad)} of {len(found)} things need attention")
    if style == "table":
        click.echo(f"all is well: {len(found)} things were looked at")


def checks(config: Path, now: datetime) -> Iterator[Check]:
    """Look at everything; `config` is mooring.conf, and what is beside it belongs to it."""
    from services.cli.doctor_pki import CRITICAL, GOOD, SKIPPED, Check

    directory = config.parent
    agent = directory / "mooring-agent.conf"
    yield from _package()
    if not config.exists() and not agent.exists():
        yield Check(
            CRITICAL,
            "configuration",
            str(config),
            "there is neither this nor mooring-agent.conf beside it",
            "copy etc/mooring to /etc, or give --config",
        )
        return
    if agent.exists():
        yield from _host(agent, now)
    if not config.exists():
        yield Check(SKIPPED, "configuration", str(config), "not there: no controller")
        return
    conf = None
    try:
        conf = _load(config)
        yield Check(GOOD, "configuration", str(config), "good")
    except ValueError as error:
        yield Check(CRITICAL, "configuration", str(config), str(error), "correct this line")
    if conf is None:
        return
    yield from _databases(conf)
    bundle: list[x509.Certificate] = []
    ca = Path(conf.ca.directory)
    if (ca / "root.crt").exists():
        yield from _authority(config, conf, now, bundle)
    else:
        says = "no authority here"
        yield Check(SKIPPED, "ca", str(ca), says, "mooring ca init, if one is wanted")
    for file in sorted(directory.glob("*.ini")):
        yield _paste_file(file, ca)
    yield from _secrets(conf, sorted(directory.glob("*.ini")))
    yield from _nginx(directory / "nginx", conf, bundle, now)


def _load(config: Path) -> Any:
    """Read mooring.conf; raises ValueError."""
    from services.core.config import ConfigError, load

    try:
        return load(config)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix(f"{config}: ")) from None


# ---- the package --------------------------------------------------------------------------------


def _package() -> Iterator[Check]:
    """The import names are generic, so another distribution may have brought the same."""
    from services.cli.doctor_pki import CRITICAL, GOOD, Check

    remedy = "install Mooring into a virtual environment of its own"
    here = Path(__file__).resolve().parents[2]
    owners = packages_distributions()
    for name in IMPORT_NAMES:
        place = Path(importlib.import_module(name).__file__ or "").resolve().parent
        others = {each for each in owners.get(name, ()) if each.lower() != DISTRIBUTION}
        if place.parent != here:
            says = f"is that of {place.parent}, and this command is of {here}"
            yield Check(CRITICAL, "package", name, says, remedy)
        elif others:
            says = f"belongs to {', '.join(sorted(others))} too"
            yield Check(CRITICAL, "package", name, says, remedy)
        else:
            yield Check(GOOD, "package", name, f"ours, in {place}")


# ---- configuration, database, secrets -----------------------------------------------------------


def _paste_file(file: Path, ca: Path) -> Check:
    """As gunicorn would build it, in a process of its own."""
    from services.cli.doctor_pki import CRITICAL, GOOD, SKIPPED, Check

    text = file.read_text(encoding="utf-8", errors="replace")
    if "services.ca." in text and not (ca / "root.crt").exists():
        return Check(SKIPPED, "configuration", str(file), f"no authority in {ca}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "services.core.deploy", "--build", str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        says = f"was not built within {CHECK_SECONDS} seconds"
        return Check(CRITICAL, "configuration", str(file), says, "see the database first")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        says = said.removeprefix("mooring: ").removeprefix(f"{file} ")
        return Check(CRITICAL, "configuration", str(file), says, "correct it: no start until then")
    return Check(GOOD, "configuration", str(file), "good, and its applications can be made")


def _databases(conf: Any) -> Iterator[Check]:
    from services.cli.doctor_pki import CRITICAL, GOOD, Check
    from services.core.database import Database, Unavailable, parse_url, schema_state

    for option, url in (
        ("[database] url", conf.database.url),
        ("[ca] database_url", conf.ca.database_url),
    ):
        if not url:
            continue
        subject = f"{option} {parse_url(url).render_as_string(hide_password=True)}"
        opened = Database(url)
        try:
            problem = schema_state(opened)
        except Unavailable as error:
            says = f"is not available ({error})"
            remedy = "start it, or see who may read it; a new one: mooring db upgrade"
            yield Check(CRITICAL, "database", subject, says, remedy)
        else:
            if problem is None:
                yield Check(GOOD, "database", subject, "has this version's schema")
            else:
                yield Check(CRITICAL, "database", subject, problem, "mooring db upgrade")
        finally:
            opened.close()


def _secrets(conf: Any, files: list[Path]) -> Iterator[Check]:
    from services.cli.doctor_pki import CRITICAL, GOOD, Check
    from services.core.signature import load_secrets

    places = set()
    for file in files:
        parser = ConfigParser(defaults={"here": str(file.parent)})
        try:
            parser.read(file, encoding="utf-8")
            if any("services.metadata." in str(parser.items(each)) for each in parser.sections()):
                places.add(conf.metadata.token_secrets)
            for section in parser.sections():
                for key in ("secrets", "nova_secrets"):
                    value = parser.get(section, key, fallback="")
                    if value and section.startswith("filter:"):
                        places.add(value)
        except (ParserError, UnicodeDecodeError):
            continue  # the file itself has its row
    for place in sorted(places):
        try:
            found = load_secrets(place)
        except ValueError as error:
            remedy = f"mooring secret create {place}, the same for every replica"
            yield Check(CRITICAL, "secrets", place, str(error), remedy)
        else:
            yield Check(GOOD, "secrets", place, f"{len(found)} of current, next, previous")


# ---- the CA -------------------------------------------------------------------------------------


def _authority(
    config: Path, conf: Any, now: datetime, bundle: list[x509.Certificate]
) -> Iterator[Check]:
    """Authorities, keys, lists; adds what NGINX has to trust to `bundle`."""
    from services.ca import keystore, profile_file, service
    from services.cli.ca import judged, served
    from services.cli.ca_site import site
    from services.cli.doctor_pki import CRITICAL, GOOD, WARNING, Check

    directory = Path(conf.ca.directory)
    remedies = {
        "root": "make a new root and give it to everybody",
        "root-crl": "mooring ca root-crl at the root, mooring ca install --root-crl here",
        "authority": "docs/ca-operations.md",
        "crl": "start the certificate service, or mooring ca publish",
        "file": "see the service's log for `publishing failed`; docs/revocation.md",
        "database": "see the database's own row",
    }
    try:
        found = keystore.survey(directory)
        bundle += [
            keystore.read_certificate(each.path / "certificate.pem")
            for each in found
            if each.kind == "authority" and each.state != "retired"
        ]
        bundle.append(keystore.read_root(directory))
    except keystore.KeystoreError as error:
        yield Check(CRITICAL, "ca", str(error.path), error.reason, "docs/ca-operations.md")
        return
    ids = [each.id for each in found if each.kind == "authority" and each.state != "retired"]
    rows = [judged(each, now) for each in found]
    try:
        rows += served(site(str(config)), None, ids, now)
    except Failed as error:
        yield Check(CRITICAL, "ca", str(config), error.message, "correct this line")
    for row in rows:
        subject = " ".join(filter(None, (row["kind"], row["id"], row["state"])))
        if row["verdict"] == "good":
            yield Check(GOOD, "ca", subject, f"until {row['ends']}" if row["ends"] else "good")
        else:
            worst = any(word in row["verdict"] for word in ("ended", "over", "no list"))
            verdict = CRITICAL if worst else WARNING
            yield Check(verdict, "ca", subject, row["verdict"], remedies[row["kind"]])
    for each in found:
        key = each.path / "key.pem"
        if each.key != "encrypted" or key.stat().st_uid == directory.stat().st_uid:
            continue
        says = "belongs to another user than its directory: the service cannot read it"
        yield Check(CRITICAL, "ca", str(key), says, f"chown --reference={directory} {key}")
    if (directory / "root" / "root.key").exists():
        path = directory / "root"
        says = "the root's key is on this server: who breaks in can make authorities"
        yield Check(WARNING, "ca", str(path), says, "move the directory to a safe place")
    if conf.ca.passphrase_file:
        path = Path(conf.ca.passphrase_file)
        try:
            keystore.passphrase_in(path)()
            yield Check(GOOD, "ca", str(path), "the passphrase, readable by its owner alone")
        except keystore.KeystoreError as error:
            yield Check(CRITICAL, "ca", str(path), error.reason, "docs/ca-operations.md")
    try:
        offers = service.read_offers(conf)
        yield Check(GOOD, "ca", conf.ca.profiles or "profiles", f"{len(offers)} profiles")
    except profile_file.ProfileError as error:
        yield Check(CRITICAL, "ca", conf.ca.profiles, str(error), "correct it")


# ---- NGINX and hosts ----------------------------------------------------------------------------


def _nginx(
    directory: Path, conf: Any, bundle: list[x509.Certificate], now: datetime
) -> Iterator[Check]:
    from services.cli import doctor_pki
    from services.cli.doctor_pki import SKIPPED, Check

    if not directory.is_dir():
        yield Check(SKIPPED, "nginx", str(directory), "none of our files is there")
        return
    yield _program("nginx", "apt install nginx-light")
    yield from doctor_pki.nginx(directory, bundle, conf.ca.crl_file, now)


def _host(agent: Path, now: datetime) -> Iterator[Check]:
    from services.cli import doctor_pki
    from services.cli.doctor_pki import CRITICAL, GOOD, Check
    from services.core.config import ConfigError
    from services.hostnet.agent import config

    yield _program("haproxy", "apt install haproxy")
    yield _program("nft", "apt install nftables")
    try:
        values = config.read(agent)
        config.metadata_path(values)
    except ConfigError as error:
        says = str(error).removeprefix(f"{agent}: ")
        yield Check(CRITICAL, "host", str(agent), says, "correct this; docs/configuration.md")
        return
    yield Check(GOOD, "host", str(agent), "good, and its signing key can be read")
    yield from doctor_pki.host(Path(values.cert_file), Path(values.ca_file), now)


def _program(name: str, remedy: str) -> Check:
    from services.cli.doctor_pki import CRITICAL, GOOD, Check

    # daemons are outside the path of those who are not root
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    place = shutil.which(name, path=search)
    if place is None:
        return Check(CRITICAL, "programs", name, "is not installed", remedy)
    return Check(GOOD, "programs", name, place)
