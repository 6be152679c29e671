"""The `mooring-agent` command: keeps this host as the controllers say it should be.

So far it keeps the metadata path: which instances of this host ask from which network and address,
in HAProxy's map, and a frontend in the namespace of each network. It holds no database
credential: it asks the controllers' API with the host's certificate, which shows it its own
instances and no other's. While no controller answers, what they said last is kept up.
"""

import contextlib
import logging
import signal
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
import structlog
import urllib3

from services.core import log
from services.core.config import ConfigError
from services.hostnet.agent import config
from services.hostnet.agent.haproxy import Identities, NetworkPath, render_maps
from services.hostnet.agent.metadata_proxy import Applied, MetadataProxy, ProxyError

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
        context.obj = Agent(config.read(path))
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.pass_obj
def apply(agent: Agent) -> None:
    """Bring the host up to date once, and say what was done."""
    try:
        applied = agent.apply()
    except (ControllerError, ProxyError) as error:
        raise click.ClickException(str(error)) from None
    for step in applied.steps or ("nothing to do",):
        click.echo(step)
    for what, reason in applied.fenced.items():
        click.echo(f"left out: {what}: {reason}", err=True)
    if applied.fenced:
        sys.exit(1)


@main.command()
@click.pass_obj
def run(agent: Agent) -> None:
    """Keep the host up to date until the agent is stopped.

    HAProxy stays when the agent stops: instances go on reading their metadata.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with contextlib.suppress(KeyboardInterrupt):
        agent.run(ended)


if __name__ == "__main__":
    main()
