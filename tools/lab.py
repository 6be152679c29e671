"""Several hosts on one machine, each as good as a machine of its own: the lab.

A lab is an underlay (a bridge), one controller and some hosts. Each of them is a `Machine`: a
process with network, mount and process namespaces of its own, so that its links, its named
namespaces, its /proc and what it runs are nobody else's, and all of it ends with that one process.
Controller and hosts run the shipped programs with the shipped files: NGINX, gunicorn, mooring-agent
with its HAProxy and dnsmasq.

    eth0   192.0.2.N/24 on the underlay: tunnels, controller (.250)
    eth1   without an address on a second bridge: the physical network `physnet1`

A "VM" is a namespace inside a host that a port is attached to.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stand import (
    METADATA_ADDRESS,
    METADATA_NAME,
    Answer,
    Process,
    Stand,
    StandError,
    ended,
    inside,
    receive,
    request_bytes,
    run,
    wait_for,
)

STATE = "lab.json"
DEFAULT_DIRECTORY = Path("/var/tmp/mooring-lab")
UNDERLAY = "192.0.2"
CONTROLLER_ADDRESS = f"{UNDERLAY}.250"
PHYSICAL_NETWORK = "physnet1"
HOST_LIMIT = 100

# The first process of a machine: reaps what daemons leave, and says when it is ready.
_INIT = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
os.makedirs("/run/netns", exist_ok=True)
for words in (["mount", "-t", "tmpfs", "tmpfs", "/run/netns"],
              ["mount", "-t", "sysfs", "sysfs", "/sys"], ["ip", "link", "set", "lo", "up"]):
    if os.spawnvp(os.P_WAIT, words[0], words):
        sys.exit("cannot " + " ".join(words))
print("ready", flush=True)
os.close(1)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@dataclass
class Machine:
    """A machine of the lab, known by the process that holds its namespaces."""

    name: str
    holder: int = 0
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Machine:
        """Make it; it stays until `stop`, whatever becomes of us."""
        popen = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork",
             "--kill-child", "--mount-proc", sys.executable, "-c", _INIT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert popen.stdout is not None
        with popen.stdout:
            if popen.stdout.readline() != b"ready\n":
                raise StandError(f"machine {self.name} did not start: status {popen.wait()}")
        self.holder, self.popen = popen.pid, popen
        return self

    @property
    def first(self) -> int:
        """Process id, seen from outside, of the machine's first process."""
        children = _children(self.holder)
        if not children:
            raise StandError(f"machine {self.name} is down")
        return children[0]

    @property
    def enter(self) -> list[str]:
        """What to put before a command so that it runs in here."""
        return ["nsenter", "-t", str(self.first), "--net", "--mount", "--pid", "--"]

    def run(self, *command: str | Path, timeout: float = 60, **options: Any) -> str:
        """Run a program in here to its end; returns what it prints, raises StandError."""
        return run(*self.enter, *command, timeout=timeout, **options)

    def namespace(self, name: str = "") -> str:
        """Path of one of its named namespaces, or of its own, for `stand.inside`."""
        if not name:
            return f"/proc/{self.first}/ns/net"
        return f"/proc/{self.first}/root/run/netns/{name}"

    def stop(self) -> None:
        """End it with everything in it, at once."""
        if self.holder and not ended(self.holder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.holder, signal.SIGKILL)
            if self.popen is not None:
                self.popen.wait()


@dataclass
class VM:
    """An instance: a namespace of a host, with an interface that a port was attached to."""

    host: Machine
    name: str
    port: str = ""
    mac: str = ""
    address: str = ""

    def run(self, *command: str | Path, timeout: float = 60, **options: Any) -> str:
        """Run a program inside the instance; returns its output, raises StandError."""
        return self.host.run(
            *("ip", "netns", "exec", self.name), *command, timeout=timeout, **options
        )

    def works(self, *command: str | Path, timeout: float = 30) -> bool:
        """Whether a program inside the instance ends with status 0."""
        try:
            self.run(*command, timeout=timeout)
        except StandError:
            return False
        return True

    def pings(self, address: str, *options: str, count: int = 1, wait: float = 2) -> bool:
        """Whether an address answers a ping from here."""
        return self.works("ping", "-n", "-q", "-c", str(count), "-W", str(wait), *options, address)

    def curl(self, path: str, *options: str) -> str:
        """What curl prints for a path at 169.254.169.254 inside the instance."""
        return self.run(
            "curl", "-sS", "--max-time", "10", *options, f"http://169.254.169.254{path}"
        )

    def get(self, target: str, *headers: tuple[str, str]) -> Answer:
        """The metadata answer to a GET, without a process for it."""

        def ask() -> Answer:
            with socket.create_connection((METADATA_ADDRESS, 80), 20) as connection:
                connection.sendall(request_bytes("GET", target, headers))
                return receive(connection)

        return inside(self.host.namespace(self.name), ask)

    def dhcp(self) -> None:
        """Get addresses and routes as Debian's dhclient does; raises StandError."""
        self.run(Path(__file__).with_name("lab-dhcp"), timeout=60)


@dataclass
class Lab:
    """A controller and hosts; use as a context manager, or `up` and later `down` from its state."""

    hosts: int = 2
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="mooring-lab-")))
    database_url: str = ""
    mtu: int = 1500
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    agent_options: dict[str, str] = field(default_factory=dict)
    agents: bool = True
    machines: dict[str, Machine] = field(default_factory=dict)
    controller: Stand = field(init=False)
    started: bool = False

    def __enter__(self) -> Lab:
        try:
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- up and down ---------------------------------------------------------------------------

    def up(self) -> None:
        """Make and start everything."""
        if not 1 <= self.hosts <= HOST_LIMIT:
            raise StandError(f"a lab has 1 to {HOST_LIMIT} hosts, not {self.hosts}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self._machine("underlay")
        for bridge in ("underlay", "physical"):
            self._batch("underlay", [f"link add {bridge} mtu {self.mtu} type bridge",
                                     f"link set {bridge} up"])  # fmt: skip
        self._machine("controller")
        self._wire("controller", 250)
        controller = self.controller = Stand(
            directory=self.directory / "controller",
            database_url=self.database_url,
            options=self.options,
            address=CONTROLLER_ADDRESS,
            enter=self.machines["controller"].enter,
            netns=self.machines["controller"].namespace(),
            host="controller",
            network_service=True,
        )
        self.started = True
        controller.directory.mkdir(exist_ok=True)
        controller.prepare()
        controller.start_gunicorn()
        controller.start_hostnet()
        controller.start_nginx()
        for number in range(1, self.hosts + 1):
            name = f"host-{number}"
            self._machine(name)
            self._wire(name, number)
            self.write_agent(name, f"{UNDERLAY}.{number}")
            if self.agents:
                self.start_agent(name)
        if self.agents:
            wait_for("hosts", self._registered)
        self._save()

    def _registered(self) -> bool:
        return len(self.api("GET", "/v2.0/agents")["agents"]) == self.hosts

    def close(self) -> None:
        """End every machine and remove the directory; may be called again."""
        for machine in self.machines.values():
            machine.stop()
        for process in self.controller.processes.values() if self.started else ():
            process.popen.wait()  # it has ended with its machine
        self.machines.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _machine(self, name: str) -> None:
        self.machines[name] = Machine(name).start()

    def _wire(self, name: str, number: int) -> None:
        """Plug a machine into the underlay (eth0, with an address) and the physical network."""
        here, there = (self.machines[each].first for each in ("underlay", name))
        for device, bridge in (("eth0", "underlay"), ("eth1", "physical")):
            port = f"{device}-{number}"
            run("ip", "link", "add", port, "mtu", str(self.mtu), "netns", str(here), "type", "veth",
                "peer", "name", device, "mtu", str(self.mtu), "netns", str(there))  # fmt: skip
            self._batch("underlay", [f"link set {port} master {bridge} up"])
        self._batch(
            name,
            [
                f"address add {UNDERLAY}.{number}/24 dev eth0",
                "link set eth0 up",
                "link set eth1 up",
            ],
        )

    def _batch(self, name: str, lines: Sequence[str]) -> None:
        self.machines[name].run("ip", "-batch", "-", input="\n".join(lines) + "\n")

    # ---- agents --------------------------------------------------------------------------------

    def agent_config(self, host: str) -> Path:
        """Path of a host's mooring-agent.conf."""
        return self.directory / host / "mooring-agent.conf"

    def write_agent(self, host: str, address: str) -> None:
        """Give a host its certificate, signing key and mooring-agent.conf."""
        controller = self.controller
        controller.issue_host(host)
        place = self.directory / host
        place.mkdir(exist_ok=True)
        pki = controller.etc / "pki"
        values: dict[str, object] = {
            "host": host,
            "api_url": f"https://{CONTROLLER_ADDRESS}:{controller.operators_port}",
            "network_urls": f"https://{CONTROLLER_ADDRESS}:{controller.network_port}",
            "controllers": f"{CONTROLLER_ADDRESS}:{controller.metadata_port}/{METADATA_NAME}",
            "ca_file": pki / "root.crt",
            "cert_file": pki / f"host-{host}.pem",
            "host_key_file": controller.write_host_key(host),
            "run_dir": place / "run",
            "state_dir": place / "state",
            "tunnel_address": address,
            "tunnel_device": "eth0",
            "bridge_mappings": f"{PHYSICAL_NETWORK}:eth1",
            **self.agent_options,
        }
        lines = ["[agent]", *(f"{name} = {value}" for name, value in values.items()), ""]
        self.agent_config(host).write_text("\n".join(lines))

    def start_agent(self, host: str) -> Process:
        """Start a host's agent."""
        return self.controller.start(
            f"agent-{host}",
            *(sys.executable, "-m", "services.hostnet.agent.main"),
            *("--config", self.agent_config(host), "run"),
            enter=self.machines[host].enter,
            env=self.controller.environment(),
        )

    def agent_pid(self, host: str) -> int:
        """The agent's process id as seen from outside: nsenter's child."""
        (pid,) = _children(self.controller.processes[f"agent-{host}"].popen.pid)
        return pid

    def kill_agent(self, host: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a host's agent and wait for its end."""
        process = self.controller.processes.pop(f"agent-{host}")
        for pid in _children(process.popen.pid):
            os.kill(pid, number)
        process.popen.wait(20)

    def agent(self, host: str, *words: str | Path) -> str:
        """Run `mooring-agent` on a host; returns what it prints."""
        return self.machines[host].run(
            *(sys.executable, "-m", "services.hostnet.agent.main"),
            *("--config", self.agent_config(host), *words),
            env=self.controller.environment(),
        )

    def mooring(self, *words: str | Path, user: str = "operator", host: str = "") -> str:
        """Run the `mooring` command on the controller, or on a host that has an agent."""
        machine = self.machines[host or "controller"]
        service = self.controller
        pki = service.etc / "pki"
        return machine.run(
            *(sys.executable, "-m", "services.cli.main"),
            *("--url", f"https://{CONTROLLER_ADDRESS}:{service.operators_port}"),
            *("--tls-cert", pki / f"{user}.crt", "--tls-key", pki / f"{user}.key"),
            *("--tls-ca", pki / "root.crt", *words),
            env={
                **service.environment(),
                **({"MOORING_AGENT_CONFIG": str(self.agent_config(host))} if host else {}),
            },
        )

    # ---- the network API -----------------------------------------------------------------------

    def api(
        self, method: str, path: str, document: object = None, *, user: str = "admin"
    ) -> dict[str, Any]:
        """Ask the network API with a user's certificate; raises StandError for a refusal."""
        pki = self.controller.etc / "pki"
        body = None if document is None else json.dumps(document)
        context = ssl.create_default_context(cafile=pki / "root.crt")
        context.load_cert_chain(pki / f"{user}.crt", pki / f"{user}.key")

        def ask() -> tuple[int, bytes]:
            connection = http.client.HTTPSConnection(
                CONTROLLER_ADDRESS, self.controller.network_port, context=context, timeout=30
            )
            with contextlib.closing(connection):
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                return answer.status, answer.read()

        status, content = inside(self.machines["controller"].namespace(), ask)
        if status >= 400:
            raise StandError(f"{method} {path}: {status} {content.decode(errors='replace')}")
        return json.loads(content) if content else {}

    def create(self, kind: str, *, user: str = "admin", **values: Any) -> dict[str, Any]:
        """Create a resource: `create("network", name="red")`; returns it."""
        path = f"/v2.0/{kind.replace('_', '-')}s"
        made: dict[str, Any] = self.api("POST", path, {kind: values}, user=user)[kind]
        return made

    def network(
        self, name: str, cidr: str, *, user: str = "admin", **values: Any
    ) -> dict[str, Any]:
        """A network with one subnet; returns the network, the subnet as its member `subnet`."""
        subnet = {"cidr": cidr, "ip_version": 6 if ":" in cidr else 4, **values.pop("subnet", {})}
        network = self.create("network", user=user, name=name, **values)
        network["subnet"] = self.create(
            "subnet", user=user, network_id=network["id"], name=name, **subnet
        )
        return network

    def vm(
        self,
        host: str,
        name: str,
        network: dict[str, Any],
        *,
        user: str = "admin",
        static: bool = True,
        **values: Any,
    ) -> VM:
        """A port on a host, attached to a namespace of this name, with its addresses set.

        Without ``static`` the addresses come by `VM.dhcp`.
        """
        values.setdefault("device_owner", "compute:nova")
        port = self.create(
            "port",
            user=user,
            network_id=network["id"],
            name=name,
            **{"binding:host_id": host, **values},
        )
        machine = self.machines[host]
        machine.run("ip", "netns", "add", name)
        machine.run("ip", "-n", name, "link", "set", "lo", "up")
        self.agent(host, "attach", port["id"], "--netns", name, *(["--address"] if static else []))
        return VM(
            machine, name, port["id"], port["mac_address"], port["fixed_ips"][0]["ip_address"]
        )

    def active(self, *vms: VM, seconds: float = 30) -> None:
        """Wait until the controller knows from their hosts that the ports are wired."""
        for vm in vms:
            wait_for(
                f"port of {vm.name}",
                lambda vm=vm: (  # type: ignore[misc]  # mypy and a lambda's default
                    self.api("GET", f"/v2.0/ports/{vm.port}")["port"]["status"] == "ACTIVE"
                ),
                seconds,
            )

    # ---- across commands -----------------------------------------------------------------------

    def _save(self) -> None:
        controller = self.controller
        document = {
            "machines": {name: each.holder for name, each in self.machines.items()},
            "begun": {name: _begun(each.holder) for name, each in self.machines.items()},
            "ports": {
                "metadata": controller.metadata_port,
                "operators": controller.operators_port,
                "network": controller.network_port,
            },
        }
        (self.directory / STATE).write_text(json.dumps(document, indent=2) + "\n")


def _begun(pid: int) -> int:
    """When a process began, in clock ticks since the boot: with its id, what it is known by."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def _saved(directory: Path) -> tuple[dict[str, Machine], dict[str, Any]]:
    try:
        document = json.loads((directory / STATE).read_text())
    except OSError:
        raise StandError(f"there is no lab in {directory}: tools/lab up") from None
    machines = {
        name: Machine(name, holder)
        for name, holder in document["machines"].items()
        if _begun(holder) == document["begun"][name]
    }
    return machines, document


def _up(arguments: argparse.Namespace) -> None:
    if (arguments.directory / STATE).exists() and _saved(arguments.directory)[0]:
        raise StandError(f"a lab is up in {arguments.directory}: tools/lab down")
    lab = Lab(hosts=arguments.hosts, directory=arguments.directory)
    begun = time.monotonic()
    try:
        lab.up()
    except BaseException:
        lab.close()
        raise
    print(f"a controller and {arguments.hosts} hosts are up ({time.monotonic() - begun:.1f} s)")
    _help(arguments.directory)


def _help(directory: Path) -> None:
    for line in (
        "tools/lab openstack network list            the real client, as an admin",
        "tools/lab exec host-1 ip -d link            any command on a machine",
        "tools/lab exec host-1 mooring agent status",
        "tools/lab status",
        "tools/lab down",
    ):
        print(f"    {line}")
    print(f"files and logs: {directory}")


def _status(arguments: argparse.Namespace) -> None:
    machines, _ = _saved(arguments.directory)
    for name, machine in machines.items():
        words = [
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
            for pid in _tree(machine.first)
            if Path(f"/proc/{pid}/cmdline").exists()
        ]
        print(f"{name}: {len(words)} processes")
        for each in sorted(set(words)):
            if each and "import os, signal" not in each:
                print(f"    {each}")


def _tree(pid: int) -> list[int]:
    """A process and all that it has as children, which is all of its machine."""
    found = [pid]
    for child in _children(pid):
        found += _tree(child)
    return found


def _environment(directory: Path, document: dict[str, Any], machine: str) -> dict[str, str]:
    """What `mooring` and `openstack` need in order to ask the lab's controller as an admin."""
    pki = directory / "controller" / "etc" / "pki"
    ports = document["ports"]
    values = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "MOORING_URL": f"https://{CONTROLLER_ADDRESS}:{ports['operators']}",
        "MOORING_NETWORK_URL": f"https://{CONTROLLER_ADDRESS}:{ports['network']}",
        "MOORING_CACERT": str(pki / "root.crt"),
        "MOORING_CERT": str(pki / "admin.crt"),
        "MOORING_KEY": str(pki / "admin.key"),
        "OS_AUTH_TYPE": "none",
        "OS_ENDPOINT": f"https://{CONTROLLER_ADDRESS}:{ports['network']}",
        "OS_CACERT": str(pki / "root.crt"),
        "OS_CERT": str(pki / "admin.crt"),
        "OS_KEY": str(pki / "admin.key"),
    }
    config = directory / machine / "mooring-agent.conf"
    if config.exists():
        values["MOORING_AGENT_CONFIG"] = str(config)
    return {**os.environ, **values}


def _exec(arguments: argparse.Namespace) -> None:
    machines, document = _saved(arguments.directory)
    machine = machines.get(arguments.machine)
    if machine is None:
        raise StandError(f"no machine {arguments.machine}; there are {', '.join(machines)}")
    words = [*machine.enter, *arguments.command]
    environment = _environment(arguments.directory, document, arguments.machine)
    os.execvpe(words[0], words, environment)


def _openstack(arguments: argparse.Namespace) -> None:
    arguments.machine, arguments.command = "controller", ["openstack", *arguments.command]
    _exec(arguments)


def _down(arguments: argparse.Namespace) -> None:
    machines, _ = _saved(arguments.directory)
    Lab(directory=arguments.directory, machines=machines).close()
    print("the lab is down")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="tools/lab", description="Hosts as namespaces.")
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="%(default)s")
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="make a controller and hosts, and leave them running")
    up.add_argument("--hosts", type=int, default=2, help="how many hosts (default: %(default)s)")
    up.set_defaults(work=_up)
    commands.add_parser("status", help="what runs on each machine").set_defaults(work=_status)
    execute = commands.add_parser("exec", help="run a command on a machine")
    execute.add_argument("machine", help="controller, underlay, host-1, ...")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    execute.set_defaults(work=_exec)
    client = commands.add_parser("openstack", help="run the openstack client as an admin")
    client.add_argument("command", nargs=argparse.REMAINDER)
    client.set_defaults(work=_openstack)
    commands.add_parser("down", help="end and remove it all").set_defaults(work=_down)
    arguments = parser.parse_args()
    try:
        arguments.work(arguments)
    except StandError as error:
        raise SystemExit(f"tools/lab: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\ntools/lab: interrupted") from None


if __name__ == "__main__":
    main()
