"""`mooring instance`: instances through the operators' API."""

import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar

import click

from services.cli import arguments
from services.cli.arguments import checked
from services.cli.client import Answer, Api, Refused
from services.cli.output import format_option, show_object, show_rows
from services.cli.settings import CONFLICT, NOT_FOUND, REFUSED, Failed, Settings

PATH = "/v1/instances"
PAGE = 1000
"""Instances asked for at once: the most that the API gives."""

ATTEMPTS = 5
"""Times that a change is made anew because the instance was changed by someone else meanwhile."""

COLUMNS = ("id", "name", "project_id", "host", "addresses")

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SCALARS = {
    "name": "name",
    "project": "project_id",
    "hostname": "hostname",
    "host": "host",
    "next_host": "next_host",
    "instance_type": "instance_type",
    "image": "image_id",
    "zone": "availability_zone",
}
_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def apply(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


described = _options(
    click.option("--hostname", help="Host name; default: made of the name."),
    click.option("--host", help="Host that carries the instance (for operators)."),
    click.option("--next-host", help="Host that it moves to (for operators)."),
    click.option("--type", "instance_type", help="Name of its size, such as m1.small."),
    click.option("--image", help="Id of its image."),
    click.option("--zone", help="Availability zone."),
    click.option(
        "--key",
        "keys",
        type=checked(arguments.key),
        metavar="[NAME=]FILE",
        multiple=True,
        help="Public SSH key or X.509 certificate. Repeatable.",
    ),
    click.option(
        "--property",
        "properties",
        type=checked(arguments.pair),
        metavar="KEY=VALUE",
        multiple=True,
        help="Property, which OpenStack's metadata shows as `meta`. Repeatable.",
    ),
    click.option(
        "--tag",
        "tags",
        type=checked(arguments.pair),
        metavar="KEY=VALUE",
        multiple=True,
        help="Tag, as EC2 has them. Repeatable.",
    ),
    click.option(
        "--nic",
        "nics",
        type=checked(arguments.nic),
        metavar="network=ID,mac=MAC,...",
        multiple=True,
        help="Interface: network=ID,mac=MAC and then any of address=IP/LENGTH, gateway=IP, "
        "dns=IP, floating=IP, mtu=N, dhcp=yes|no, group=NAME, id=PORT, name=DEVICE. Repeatable.",
    ),
    click.option("--security-group", "groups", multiple=True, metavar="NAME", help="Repeatable."),
    click.option(
        "--option",
        "options",
        type=checked(arguments.option),
        metavar="NAME=VALUE",
        multiple=True,
        help="Access option: http_tokens=optional|required, http_endpoint=enabled|disabled, "
        "http_put_response_hop_limit=1..64, instance_metadata_tags=enabled|disabled. Repeatable.",
    ),
    click.option(
        "--user-data",
        type=click.File("rb"),
        metavar="FILE",
        help="File with up to 64 KiB of any bytes; - is standard input.",
    ),
    click.option(
        "--vendor-data",
        type=checked(arguments.json_object),
        metavar="FILE",
        help="File with a JSON object; - is standard input.",
    ),
    click.option(
        "--file",
        "document",
        type=checked(arguments.json_object),
        metavar="FILE",
        help="File with (part of) the instance's document in JSON, - is standard input; "
        "the other options override it.",
    ),
)


@click.group("instance")
def group() -> None:
    """Instances: what they are and may read.

    INSTANCE is an id, or a name that only one instance has.

    \b
    Examples:
      mooring instance create web1 --project demo --host node-1 \\
        --key ~/.ssh/id_ed25519.pub --user-data cloud-config.yaml \\
        --nic network=net-1,mac=fa:16:3e:00:00:01,address=10.1.0.4/24,gateway=10.1.0.1
      mooring instance list --host node-1
      mooring instance set web1 --tag env=prod --option http_tokens=required
    """


@group.command()
@click.argument("name", required=False)
@click.option("--project", help="Project that the instance belongs to.")
@click.option("--id", "instance_id", metavar="UUID", help="Its id; default: a new one.")
@described
@format_option
@click.pass_obj
def create(
    settings: Settings, /, name: str | None, instance_id: str | None, style: str, **given: Any
) -> None:
    """Create an instance and show it.

    \b
    Examples:
      mooring instance create web1 --project demo --key ~/.ssh/id_ed25519.pub
      mooring instance create web2 --project demo --user-data - < cloud-config.yaml
      mooring instance create --file web3.json -f json
    """
    document: dict[str, Any] = {}
    _apply(document, {"name": name, **given})
    if instance_id is not None:
        document["id"] = instance_id
    for needed, said in (("name", "NAME"), ("project_id", "--project")):
        if needed not in document:
            raise click.UsageError(f"{said} is missing")
    api = Api(settings)
    if "id" in document:
        answer = api.request("POST", PATH, document)
    else:
        # With an id of our own choice the request may be sent again when its answer was lost.
        answer = api.request("PUT", f"{PATH}/{uuid.uuid4()}", document)
    show_object(answer.json(), style)


@group.command()
@click.argument("instance")
@click.option("--user-data", is_flag=True, help="Write the user data and nothing else.")
@format_option
@click.pass_obj
def show(settings: Settings, /, instance: str, user_data: bool, style: str) -> None:
    """Show an instance.

    \b
    Examples:
      mooring instance show web1
      mooring instance show web1 --user-data > cloud-config.yaml
      mooring instance show web1 -f json
    """
    api = Api(settings)
    path = f"{PATH}/{_resolved(api, instance)}"
    if user_data:
        sys.stdout.buffer.write(api.request("GET", f"{path}/user_data").body)
        return
    show_object(api.request("GET", path).json(), style)


@group.command("list")
@click.option("--project", "project_id", help="Only of this project.")
@click.option("--host", help="Only those that this host carries or is about to.")
@click.option("--name", help="Only with this name.")
@click.option("--hostname", help="Only with this host name.")
@click.option("--zone", "availability_zone", help="Only in this availability zone.")
@click.option("--address", help="Only with this IP address.")
@click.option("--network", "network_id", help="Only with an interface in this network.")
@click.option(
    "--tag", "tags", multiple=True, metavar="KEY[=VALUE]", help="Only with this tag. Repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Not more than so many.")
@format_option
@click.pass_obj
def list_(
    settings: Settings,
    /,
    tags: tuple[str, ...],
    limit: int | None,
    style: str,
    **filters: str | None,
) -> None:
    """List instances, oldest first.

    \b
    Examples:
      mooring instance list
      mooring instance list --project demo --tag env=prod
      mooring instance list --host node-1 -f json
    """
    query = [(name, value) for name, value in filters.items() if value is not None]
    query += [("tag", tag) for tag in tags]
    rows = list(_listed(Api(settings), query, limit))
    if style == "table":
        rows = [{**row, "addresses": " ".join(_addresses(row))} for row in rows]
    show_rows(COLUMNS, rows, style)


@group.command("set")
@click.argument("instance")
@click.option("--name", help="New name; the host name stays.")
@described
@format_option
@click.pass_obj
def set_(settings: Settings, /, instance: str, style: str, **given: Any) -> None:
    """Change an instance: what is given is set, everything else stays.

    A key replaces the one of its name, an interface the one of its MAC address.

    \b
    Examples:
      mooring instance set web1 --tag env=prod --property role=db
      mooring instance set web1 --next-host node-2
      mooring instance set web1 --user-data new.yaml --option http_tokens=required
    """
    if given["user_data"] is not None:
        # Read once: the change may have to be made again.
        given["user_data"] = arguments.user_data(given["user_data"])
    if not any(value not in (None, ()) for value in given.values()):
        raise click.UsageError("nothing to set")
    answer = _edited(Api(settings), instance, lambda document: _apply(document, given))
    show_object(answer.json(), style)


@group.command("unset")
@click.argument("instance")
@click.option("--hostname", is_flag=True, help="Make the host name of the name again.")
@click.option("--host", is_flag=True, help="No host carries it (for operators).")
@click.option("--next-host", is_flag=True, help="It does not move (for operators).")
@click.option("--type", "instance_type", is_flag=True, help="Forget the name of its size.")
@click.option("--image", is_flag=True, help="Forget the id of its image.")
@click.option("--zone", is_flag=True, help="Forget its availability zone.")
@click.option("--key", "keys", multiple=True, metavar="NAME", help="Remove a key. Repeatable.")
@click.option(
    "--property", "properties", multiple=True, metavar="KEY", help="Remove it. Repeatable."
)
@click.option("--tag", "tags", multiple=True, metavar="KEY", help="Remove a tag. Repeatable.")
@click.option(
    "--nic", "nics", multiple=True, metavar="MAC", help="Remove an interface. Repeatable."
)
@click.option(
    "--security-group", "groups", multiple=True, metavar="NAME", help="Remove it. Repeatable."
)
@click.option("--user-data", is_flag=True, help="Remove the user data.")
@click.option("--vendor-data", is_flag=True, help="Remove the vendor data.")
@format_option
@click.pass_obj
def unset(settings: Settings, /, instance: str, style: str, **given: Any) -> None:
    """Remove things from an instance; what it does not have is no error.

    \b
    Examples:
      mooring instance unset web1 --tag env --user-data
      mooring instance unset web1 --nic fa:16:3e:00:00:02
    """
    if not any(given.values()):
        raise click.UsageError("nothing to unset")
    answer = _edited(Api(settings), instance, lambda document: _remove(document, given))
    show_object(answer.json(), style)


@group.command(short_help="Delete instances.")
@click.argument("instances", metavar="INSTANCE...", nargs=-1, required=True)
@click.pass_obj
def delete(settings: Settings, /, instances: tuple[str, ...]) -> None:
    """Delete instances; one that cannot be deleted does not keep the others.

    \b
    Examples:
      mooring instance delete web1 web2
    """
    api = Api(settings)
    failed: Failed | None = None
    for instance in instances:
        try:
            instance_id = _resolved(api, instance)
            api.request("DELETE", f"{PATH}/{instance_id}")
        except Failed as error:
            if failed is not None:
                failed.show()
            failed = Failed(f"{instance}: {error.message}", error.exit_code)
        else:
            click.echo(f"deleted {instance_id}")
    if failed is not None:
        raise failed


@group.command(short_help="Show or reset the password that an instance has set.")
@click.argument("instance")
@click.option("--reset", is_flag=True, help="Forget it, so that the instance may set it again.")
@format_option
@click.pass_obj
def password(settings: Settings, /, instance: str, reset: bool, style: str) -> None:
    """Show the password that an instance has set (for admins and its project).

    It is usually encrypted to a public key of the instance.

    \b
    Examples:
      mooring instance password win1
      mooring instance password win1 --reset
    """
    api = Api(settings)
    path = f"{PATH}/{_resolved(api, instance)}/password"
    if reset:
        api.request("DELETE", path)
        return
    show_object(api.request("GET", path).json(), style)


def _resolved(api: Api, instance: str) -> str:
    """The id of an instance that is given by id or by name."""
    if _UUID.fullmatch(instance.lower()):
        return instance.lower()
    found = api.request("GET", PATH, query=[("name", instance), ("limit", "2")]).json()
    ids = [item["id"] for item in found["instances"]]
    if not ids:
        raise Failed(f"there is no instance named {instance}", NOT_FOUND)
    if len(ids) > 1:
        raise Failed(f"several instances are named {instance}: say which by id", REFUSED)
    return str(ids[0])


def _listed(
    api: Api, query: Iterable[tuple[str, str]], limit: int | None
) -> Iterator[dict[str, Any]]:
    left = limit
    page = PAGE if left is None else min(left, PAGE)
    answer = api.request("GET", PATH, query=[*query, ("limit", str(page))]).json()
    counted = 0
    while True:
        for item in answer["instances"][:left]:
            counted += 1
            yield item
        if left is not None:
            left -= len(answer["instances"])
        if "next" not in answer or (left is not None and left <= 0):
            return
        if sys.stderr.isatty():
            click.echo(f"{counted} instances so far", err=True)
        # The server's link is relative to its root: of our own URL only the query is needed.
        answer = api.request("GET", f"{PATH}?{answer['next'].partition('?')[2]}").json()


def _edited(api: Api, instance: str, change: Callable[[dict[str, Any]], None]) -> Answer:
    """Read, change and replace an instance; anew if somebody else changed it in between."""
    path = f"{PATH}/{_resolved(api, instance)}"
    for _ in range(ATTEMPTS):
        answer = api.request("GET", path, query=[("include", "user_data")])
        document = answer.json()
        change(document)
        try:
            return api.request("PUT", path, document, headers={"If-Match": answer.headers["ETag"]})
        except Refused as error:
            if error.status != 412:
                raise
    raise Failed("others change this instance all the while", CONFLICT)


def _apply(document: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Write what the options gave into the document: --file first, the others over it."""
    for name, value in (given["document"] or {}).items():
        if isinstance(value, dict) and name in ("properties", "tags", "options"):
            document[name] = {**document.get(name, {}), **value}
        else:
            document[name] = value
    for option, member in _SCALARS.items():
        if given.get(option) is not None:
            document[member] = given[option]
    for member in ("properties", "tags", "options"):
        if given[member]:
            document[member] = {**(document.get(member) or {}), **dict(given[member])}
    for option, member, name in (("keys", "keys", "name"), ("nics", "interfaces", "mac")):
        if given[option]:
            old = document.get(member) or []
            document[member] = arguments.put_items(old, given[option], name)
    if given["groups"]:
        old = document.get("security_groups") or []
        document["security_groups"] = list(dict.fromkeys([*old, *given["groups"]]))
    user_data: BinaryIO | str | None = given["user_data"]
    if user_data is not None:
        document["user_data"] = (
            user_data if isinstance(user_data, str) else arguments.user_data(user_data)
        )
    if given["vendor_data"] is not None:
        document["vendor_data"] = given["vendor_data"]


def _remove(document: dict[str, Any], given: Mapping[str, Any]) -> None:
    for option, member in {
        **_SCALARS,
        "user_data": "user_data",
        "vendor_data": "vendor_data",
    }.items():
        if given.get(option):
            document[member] = None
    for member in ("properties", "tags"):
        for name in given[member]:
            document[member].pop(name, None)
    for option, member, name in (("keys", "keys", "name"), ("nics", "interfaces", "mac")):
        removed = {
            text.lower().replace("-", ":") if name == "mac" else text for text in given[option]
        }
        document[member] = [item for item in document[member] if item[name] not in removed]
    document["security_groups"] = [
        item for item in document["security_groups"] if item not in given["groups"]
    ]


def _addresses(instance: Mapping[str, Any]) -> Iterator[str]:
    for interface in instance["interfaces"]:
        for subnet in interface["subnets"]:
            for address in subnet["addresses"]:
                yield address["ip_address"]
                if address["floating_ip_address"]:
                    yield address["floating_ip_address"]
