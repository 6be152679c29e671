"""The demo behind tools/demo: one host, two tenants with equal addresses, curl and cloud-init."""

import argparse
import base64
import contextlib
import functools
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stand import InstanceSpace, Stand, StandError, wait_for

TENANTS = {
    "red": "11111111-1111-4111-8111-111111111111",
    "blue": "22222222-2222-4222-8222-222222222222",
}
ADDRESS = "10.1.0.4"
GATE = "10.1.0.2"


class Steps:
    """Says each step in a line, and how long it took."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print the text now and the seconds when the block has ended."""
        print(f"• {text} ", end="", flush=True)
        begun = time.monotonic()
        yield
        print(f"({time.monotonic() - begun:.1f} s)", flush=True)

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun


def show(instance: InstanceSpace, *words: str) -> None:
    """Print a command as its user would type it, and what it prints inside the instance."""
    path = words[-1]
    options = " ".join(f"'{word}'" if " " in word else word for word in words[:-1])
    print(f"    $ curl {options + ' ' if options else ''}http://169.254.169.254{path}")
    for line in instance.curl(path, *words[:-1]).splitlines():
        print(f"      {line if len(line) <= 110 else line[:107] + '...'}")


def document(tenant: str, mac: str) -> dict[str, Any]:
    """The instance of a tenant as the API takes it."""
    user_data = (
        "#cloud-config\n"
        "write_files:\n"
        f"- {{path: /tmp/foo, content: 'written for {tenant}', permissions: '0644'}}\n"
    )
    subnet = {
        "cidr": "10.1.0.0/24",
        "gateway_ip": "10.1.0.1",
        "enable_dhcp": False,
        "addresses": [{"ip_address": ADDRESS}],
    }
    return {
        "id": TENANTS[tenant],
        "project_id": f"project-{tenant}",
        "name": f"{tenant}-1",
        "host": "host-1",
        "instance_type": "small",
        "image_id": "debian-12",
        "keys": [{"name": "mykey", "data": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA {tenant}"}],
        "properties": {"role": "web"},
        "tags": {"team": tenant},
        "options": {"instance_metadata_tags": "enabled"},
        "user_data": base64.b64encode(user_data.encode()).decode(),
        "interfaces": [{"network_id": tenant, "mac": mac, "mtu": 1500, "subnets": [subnet]}],
    }


def demonstrate(once: bool) -> None:
    """Run the demo; raises StandError if anything is not as it should be."""
    steps = Steps()
    with contextlib.ExitStack() as stack:
        with steps.step("PKI (root, intermediate, server, host, operator), secrets, database"):
            stand = Stand()
            stack.callback(stand.close)
            stand.prepare()
        with steps.step("gunicorn serves the paste pipelines of etc/mooring/metadata.ini"):
            stand.start_gunicorn()
        with steps.step("NGINX in front of it, mutual TLS on two ports"):
            stand.start_nginx()
        instances = {}
        with steps.step(f"two networks, an instance in each, both with the address {ADDRESS}"):
            for tenant, instance_id in TENANTS.items():
                stand.add_network(tenant, f"{GATE}/24")
                instances[tenant] = stand.add_instance(instance_id, tenant, f"{ADDRESS}/24", GATE)
        with steps.step("`mooring instance create` tells the controller about them"):
            for tenant, instance in instances.items():
                stand.create_instance(document(tenant, instance.mac))
        with steps.step("mooring-agent starts one HAProxy for both networks"):
            stand.start_agent()
            for instance in instances.values():
                wait_for("metadata", functools.partial(answers, instance))
        red, blue = instances["red"], instances["blue"]
        print("\nwhat `mooring instance list` says:")
        print("    " + stand.mooring("instance", "list").rstrip().replace("\n", "\n    "))
        print("\nwhat the instance of red sees, EC2 format:")
        show(red, "/latest/meta-data/")
        show(red, "/latest/meta-data/local-ipv4")
        show(red, "/latest/meta-data/tags/instance/team")
        print("OpenStack format:")
        show(red, "/openstack/latest/meta_data.json")
        show(red, "/openstack/latest/network_data.json")
        print("with a session token (IMDSv2):")
        token = red.curl(
            "/latest/api/token", "-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60"
        )
        show(red, "-H", f"X-aws-ec2-metadata-token: {token}", "/latest/meta-data/hostname")
        print("what the instance of blue sees, from the same address:")
        show(blue, "/latest/meta-data/hostname")
        show(blue, "/latest/user-data")
        seen = [i.curl("/latest/meta-data/hostname") for i in (red, blue)]
        if seen != ["red-1.novalocal", "blue-1.novalocal"]:
            raise StandError(f"each instance must see its own host name, not {seen}")
        print()
        with steps.step("cloud-init boots in red, from the OpenStack data source"):
            boot = stand.directory / "boot"
            try:
                red.run(Path(__file__).with_name("boot-instance"), boot, "OpenStack", timeout=180)
            except StandError as error:
                said = boot / "log"
                raise StandError(f"{error}{tail(said) if said.exists() else ''}") from None
        written = (boot / "root/tmp/foo").read_text()
        result = json.loads((boot / "root/var/lib/cloud/data/result.json").read_text())
        print(f"    data source: {result['v1']['datasource']}, errors: {result['v1']['errors']}")
        print(f"    /tmp/foo: {written}")
        if written != "written for red" or result["v1"]["errors"]:
            raise StandError("cloud-init did not do what the user data says")
        print(f"\nall of it took {steps.total():.1f} s")
        if not once:
            print(f"it stays up until Ctrl-C; files and logs: {stand.directory}")
            print(f"try:  ip netns exec {red.namespace} curl http://169.254.169.254/latest/")
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            stop.wait()
            print()
        with steps.step("everything that it made is removed"):
            stack.close()


def tail(log: Path) -> str:
    """What cloud-init complained about."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(
        [
            "",
            *[line for line in lines if "WARN" in line or "ERROR" in line or "rror:" in line][-30:],
        ]
    )


def answers(instance: InstanceSpace) -> bool:
    """Whether the instance gets its own id."""
    try:
        uuid = json.loads(instance.curl("/openstack/latest/meta_data.json"))["uuid"]
    except (StandError, ValueError, KeyError):
        return False
    return bool(uuid == instance.id)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the last step (for CI)")
    arguments = parser.parse_args()
    # An interruption must clean up as an error does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        demonstrate(arguments.once)
    except StandError as error:
        raise SystemExit(f"\ntools/demo: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\ntools/demo: interrupted, everything is removed") from None


if __name__ == "__main__":
    main()
