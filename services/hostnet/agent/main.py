"""The `mooring-agent` command: keeps this host as the controllers say it should be.

It keeps two things: the network (services.hostnet.agent.network: bridges, tunnels, ports), and the
metadata path: which instances of this host ask from which network and address, in HAProxy's map,
and a frontend in the namespace of each network. It holds no database credential: it asks the
controllers' APIs with the host's certificate, which shows it its own instances and no other's.
While no controller answers, what they said last is kept up.
"""

import contextlib
import json
import logging
import signal
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
import structlog
import urllib3

from services.core import log
from services.core.config import ConfigError
from services.hostnet.agent import config, kernel
from services.hostnet.agent.context import Attachment
from services.hostnet.agent.controller import ControllerError as NetworkError
from services.hostnet.agent.haproxy import Identities, NetworkPath, render_maps
from services.hostnet.agent.metadata_proxy import Applied, MetadataProxy, ProxyError
from services.hostnet.agent.network import NetworkAgent
from services.hostnet.agent.state import State

LOG = structlog.get_logger("mooring.agent")

PAGE = 1000
"""Instances asked for at a time; a host carries some tens."""

DEADLINE = urllib3.Timeout(connect=3.0, read=10.0)
"""A frozen controller goes on acknowledging TCP, so the deadline is ours."""


class ControllerError(Exception):
    """No controller answered, or not as it should."""


class Controller:
    """The controllers' API, seen with the host's certificate."""

    def __init__(self, url: str, ca_file: str, cert_file: str) -> None:
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(cert_file)
        self._url = url
        self._pool = urllib3.PoolManager(
            ssl_context=context,
            timeout=DEADLINE,
            retries=urllib3.Retry(2, backoff_factor=0.2, redirect=0),
        )

    def instances(self, host: str) -> Iterator[Mapping[str, Any]]:
        """Every instance that this host carries or is about to; raises ControllerError."""
        fields: dict[str, str] = {"host": host, "limit": str(PAGE)}
        while True:
            try:
                answer = self._pool.request("GET", f"{self._url}/v1/instances", fields=fields)
                document = answer.json() if answer.status == 200 else {}
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                raise ControllerError(f"{self._url}: {type(error).__name__}") from error
            if answer.status != 200:
                raise ControllerError(f"{self._url}: status {answer.status}")
            instances = document.get("instances")
            if not isinstance(instances, list):
                raise ControllerError(f"{self._url}: an answer without instances")
            yield from instances
            if len(instances) < PAGE:
                return
            fields["marker"] = instances[-1]["id"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The networks to serve, who asks from where in them, and what cannot be served, with why."""

    networks: tuple[NetworkPath, ...]
    identities: Identities
    left_out: Mapping[str, str]


def wanted(instances: Iterator[Mapping[str, Any]], namespaces: Mapping[str, str]) -> Wanted:
    """What is to be there, out of the controllers' instances.

    An address or a network that cannot be programmed is left out; the others are not concerned.
    """
    identities: dict[str, dict[str, tuple[str, str]]] = {}
    left_out: dict[str, str] = {}
    for instance in instances:
        for interface in instance["interfaces"]:
            for subnet in interface["subnets"]:
                for fixed in subnet["addresses"]:
                    network, address = interface["network_id"], fixed["ip_address"]
                    who = (instance["id"], instance["project_id"])
                    try:
                        render_maps({network: {address: who}})
                    except ValueError as error:
                        left_out[f"{network}/{address}"] = str(error)
                    else:
                        identities.setdefault(network, {})[address] = who
    networks: dict[str | None, NetworkPath] = {}
    for network in sorted(identities):
        namespace = namespaces.get(network, f"qdhcp-{network}") or None
        if namespace in networks:
            left_out[network] = f"network {networks[namespace].id} is in the same namespace"
        else:
            try:
                networks[namespace] = NetworkPath(network, namespace)
            except ValueError as error:
                left_out[network] = str(error)
        if network in left_out:
            del identities[network]
    return Wanted(tuple(networks.values()), identities, left_out)


class Agent:
    """One host: what is wanted, what is there, and the difference done."""

    def __init__(self, values: Any) -> None:
        """Take the [agent] values; raises ConfigError."""
        self._values = values
        self._path = config.metadata_path(values)
        try:
            self._controller = Controller(values.api_url, values.ca_file, values.cert_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca_file or cert_file: {error}") from None
        self._proxy = MetadataProxy()
        self._wanted: Wanted | None = None

    def apply(self) -> Applied:
        """Make the host be as the controllers say; raises ControllerError or ProxyError.

        While none answers, what they said last is made so (a HAProxy that ended is started again),
        then ControllerError says it.
        """
        try:
            self._wanted = wanted(
                self._controller.instances(self._values.host), self._values.namespaces
            )
        except ControllerError:
            if self._wanted is not None:
                self._proxy_apply(self._wanted)
            raise
        return self._proxy_apply(self._wanted)

    def _proxy_apply(self, wanted: Wanted) -> Applied:
        path = replace(self._path, networks=wanted.networks)
        applied = self._proxy.apply(path, wanted.identities)
        return replace(applied, fenced={**applied.fenced, **wanted.left_out})

    def run(self, ended: threading.Event) -> None:
        """Apply again and again until ``ended``; what fails is logged once and tried again."""
        said = ""
        while not ended.is_set():
            try:
                applied = self.apply()
            except (ControllerError, ProxyError) as error:
                if str(error) != said:
                    LOG.warning("not applied", reason=str(error))
                said = str(error)
            else:
                if applied.steps or (said and not applied.fenced):
                    LOG.info("applied", steps=list(applied.steps))
                said = "; ".join(f"{k}: {v}" for k, v in applied.fenced.items())
                if said:
                    LOG.warning("left out", objects=said)
            ended.wait(self._values.poll_seconds)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "path",
    default="/etc/mooring/mooring-agent.conf",
    show_default=True,
    envvar="MOORING_AGENT_CONFIG",
    help="The agent's configuration.  [env: MOORING_AGENT_CONFIG]",
)
@click.pass_context
def main(context: click.Context, path: str) -> None:
    """Keep this host as the controllers say it should be."""
    log.configure()
    # urllib3 says at warning level what we say ourselves, once
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        context.obj = config.read(path)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _network(values: Any) -> NetworkAgent | None:
    """The network's part, if this host has one; raises ClickException."""
    if not values.network_urls:
        return None
    try:
        return NetworkAgent(values, config.host_facts(values), {})
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _metadata(values: Any) -> Agent:
    try:
        return Agent(values)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--once", is_flag=True, help="Once, which is what it does anyhow.")
@click.pass_obj
def apply(values: Any, once: bool) -> None:
    """Bring the host up to date once, and say what was done.

    \b
    Examples:
      mooring-agent apply
    """
    del once
    agent, network = _metadata(values), _network(values)
    left_out: dict[str, str] = {}
    try:
        if network is not None:
            click.echo(f"network: {network.apply()} operations")
            left_out = {" ".join(k): v for k, v in network.reconciler.failures.items()}
        applied = agent.apply()
    except (ControllerError, NetworkError, ProxyError, kernel.KernelError) as error:
        raise click.ClickException(str(error)) from None
    for step in applied.steps or ("nothing to do",):
        click.echo(step)
    left_out.update(applied.fenced)
    for what, reason in left_out.items():
        click.echo(f"left out: {what}: {reason}", err=True)
    if left_out:
        sys.exit(1)


@main.command()
@click.option("-f", "--format", "style", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def plan(values: Any, style: str) -> None:
    """Say what would change on this host's network, and change nothing.

    \b
    Examples:
      mooring-agent plan
      mooring-agent plan -f json
    """
    network = _needed(values)
    try:
        todo = network.once()
    except (NetworkError, kernel.KernelError) as error:
        raise click.ClickException(str(error)) from None
    failures = {**network.reconciler.compiler.desired.failures, **todo.failures}
    if style == "json":
        document = {
            "operations": [each.to_json() for each in todo.operations],
            "failures": [
                {"kind": kind, "id": object_id, "reason": reason}
                for (kind, object_id), reason in failures.items()
            ],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for each in todo.operations:
        where = f"[{each.namespace}] " if each.namespace else ""
        click.echo(f"{where}{each.program} {each.text.strip()}")
    for owner, reason in failures.items():
        click.echo(f"left out: {' '.join(owner)}: {reason}", err=True)
    if not todo.operations:
        click.echo("nothing to do")


@main.command()
@click.pass_obj
def status(values: Any) -> None:
    """Say what this host carries and whether it is as it is to be.

    \b
    Examples:
      mooring-agent status
    """
    network = _needed(values)
    kept = network.state.load()
    if kept is None:
        raise click.ClickException("there is no view yet: has the agent run?")
    token, view = kept
    network.reconciler.replace(token, view)
    try:
        todo = network.reconciler.plan()
    except kernel.KernelError as error:
        raise click.ClickException(str(error)) from None
    wired = network.reconciler.wired()
    click.echo(f"revision  {token.split('.')[1]}")
    click.echo(f"networks  {len(view.networks)}")
    click.echo(f"ports     {len(view.ports)}, {len(wired)} of them wired")
    click.echo(f"differs   {len(todo.operations)} operations left (mooring-agent plan)")
    for owner, reason in network.reconciler.compiler.desired.failures.items():
        click.echo(f"left out  {' '.join(owner)}: {reason}")


@main.command()
@click.argument("port")
@click.option("--netns", required=True, help="Named namespace that the port ends in.")
@click.option("--name", default="eth0", show_default=True, help="Name of the link in there.")
@click.option("--address", is_flag=True, help="Set its addresses and default route too.")
@click.option("--wait", default=10.0, show_default=True, help="Seconds to wait until it is wired.")
@click.pass_obj
def attach(values: Any, port: str, netns: str, name: str, address: bool, wait: float) -> None:
    """Let PORT, which is bound to this host, end in a named namespace.

    \b
    Examples:
      mooring-agent attach 0a1b2c3d-0000-4000-8000-000000000000 --netns vm1
    """
    state = State(values.state_dir)
    try:
        state.attach(Attachment(port, netns, name, address))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        status, *_ = kernel.run(["ip", "-n", netns, "link", "show", "dev", name, "up"])
        if status == 0:
            click.echo(f"port {port} ends in {netns} as {name}")
            return
        time.sleep(0.05)
    click.echo(f"port {port} will end in {netns} as {name} once the agent has wired it")


@main.command()
@click.argument("port")
@click.pass_obj
def detach(values: Any, port: str) -> None:
    """Take PORT out of the namespace it ends in; again changes nothing.

    \b
    Examples:
      mooring-agent detach 0a1b2c3d-0000-4000-8000-000000000000
    """
    try:
        found = State(values.state_dir).detach(port)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"port {port} is detached" if found else f"port {port} was not attached")


@main.command()
@click.pass_obj
def accept(values: Any) -> None:
    """Believe the next whole view, although it has lost more than half of this host's ports.

    \b
    Examples:
      mooring-agent accept
    """
    state = State(values.state_dir)
    try:
        state.prepare()
        (state.directory / "accept").touch()
    except OSError as error:
        raise click.ClickException(str(error)) from None
    click.echo("the next whole view will be taken up; restart the agent to read it now")


def _needed(values: Any) -> NetworkAgent:
    network = _network(values)
    if network is None:
        raise click.ClickException("network_urls is empty: this host has no network of ours")
    return network


@main.command()
@click.pass_obj
def run(values: Any) -> None:
    """Keep the host up to date until the agent is stopped.

    Links, HAProxy and what else it made stay when the agent stops: instances go on as before.

    \b
    Examples:
      mooring-agent run
    """
    agent, network = _metadata(values), _network(values)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if network is not None:
        threading.Thread(target=network.run, args=(ended,), name="network", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        agent.run(ended)


if __name__ == "__main__":
    main()
