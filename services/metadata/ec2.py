"""The EC2 tree of an instance: ``/<version>/meta-data/...``, ``user-data``, ``dynamic/...``.

Every entry has the date of the version it came with, and a version shows what is not younger
than itself; ``latest`` is the newest version. Names and dates of the keys follow Nova's table
(to 2009-04-04) and AWS's documentation of its instance metadata categories (after it). A key
that has no value for an instance is not there: not listed, and 404 when asked for.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, Union

from services.metadata.model import Instance, Interface, Subnet
from services.metadata.pages import BINARY, TEXT, Page, Settings

NOVA_VERSIONS = (
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
)
AWS_VERSIONS = (
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-07-09",
    "2022-09-24",
    "2024-04-11",
)
"""Dates that AWS lists after Nova's. cloud-init, afterburn and others ask for them by name."""

VERSIONS = NOVA_VERSIONS + AWS_VERSIONS

_FIXED_BLOCK_DEVICES = {
    "ami": "sda1",
    "ephemeral0": "sda2",
    "root": "/dev/sda1",
    "swap": "sda3",
}
"""What Nova tells when it knows no root device name."""

# str.splitlines, which cloud-init uses on listings, breaks lines at all of these.
_LINE_BREAKS = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")


class Entry(NamedTuple):
    """A name in a directory: since which version, its content, and the line that lists it.

    ``line`` None lists the name itself (with a slash for a directory), "" does not list it.
    """

    since: str
    content: Union[bytes, "Branch"]
    line: str | None = None


Branch = dict[str, Entry]
Intern = Callable[[bytes, str], Page]


class Ec2Tree:
    """The EC2 tree of one instance; made on the first request for it and then kept."""

    __slots__ = ("_address", "_instance", "_intern", "_root", "_settings", "_versions")

    def __init__(
        self, instance: Instance, settings: Settings, intern: Intern, address: str | None = None
    ) -> None:
        self._address = address
        self._instance = instance
        self._settings = settings
        self._intern = intern
        self._root: Branch | None = None
        self._versions = NOVA_VERSIONS if settings.nova_compatible else VERSIONS

    def versions(self) -> Page:
        """The list of versions: ``/``, ``/ec2``."""
        return self._intern("\n".join((*self._versions, "latest")).encode(), TEXT)

    def page(self, tokens: Sequence[str]) -> Page | None:
        """The page at ``tokens``, the first of which is the version; None is 404."""
        version = tokens[0]
        if version == "latest":
            version = self._versions[-1]
        elif version not in self._versions:
            return None
        if self._root is None:
            self._root = _root(self._instance, self._settings, self._address)
        content: bytes | Branch = self._root
        for token in tokens[1:]:
            if isinstance(content, bytes):
                return None
            entry = content.get(token)
            if entry is None or entry.since > version:
                return None
            content = entry.content
        if isinstance(content, dict):
            return self._intern(
                "\n".join(_lines(content, version)).encode("utf-8", "replace"), TEXT
            )
        raw = len(tokens) == 2 and tokens[1] == "user-data" and not self._settings.nova_compatible
        return self._intern(content, BINARY if raw else TEXT)


def _lines(branch: Branch, version: str) -> Iterator[str]:
    for name in sorted(branch):
        since, content, line = branch[name]
        if since > version:
            continue
        if line is not None:
            if line:
                yield line
        elif isinstance(content, dict):
            yield name + "/"
        else:
            yield name


def instance_id_of(uuid: str) -> str:
    """The EC2 form of an instance's id: ``i-`` and 17 hex digits of the SHA-256 of the uuid's text.

    It needs no store and never changes. 68 bits: among a million instances the chance that any
    two share one is below one in five hundred million.
    """
    return _ec2_id("i", uuid)


def image_id_of(image: str, prefix: str = "ami") -> str:
    """The EC2 form of an image's id, derived like an instance's; one that has the form stands.

    ``prefix`` is ``ami``, ``aki`` for kernels or ``ari`` for ramdisks.
    """
    if re.fullmatch(prefix + r"-[0-9a-f]{8,17}", image):
        return image
    return _ec2_id(prefix, image)


def _ec2_id(prefix: str, text: str) -> str:
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:17]}"


def hostname(instance: Instance, settings: Settings) -> str:
    """The host name with its domain; a name that already has a domain keeps it.

    Nova adds its domain to any name.
    """
    return _qualified(instance, settings.dhcp_domain, settings)


def _qualified(instance: Instance, domain: str, settings: Settings) -> str:
    if not domain or ("." in instance.hostname and not settings.nova_compatible):
        return instance.hostname
    return f"{instance.hostname}.{domain}"


def availability_zone(instance: Instance, settings: Settings) -> str | None:
    """The zone of the instance, else the deployment's; None when neither has one."""
    return instance.availability_zone or settings.availability_zone or None


def _text(value: str) -> bytes:
    # A lone surrogate, which JSON can carry and UTF-8 cannot, becomes a question mark.
    return value.encode("utf-8", "replace")


def _root(instance: Instance, settings: Settings, address: str | None) -> Branch:
    root: Branch = {"meta-data": Entry("1.0", _meta_data(instance, settings, address))}
    if instance.user_data is not None:
        root["user-data"] = Entry("1.0", instance.user_data)
    if not settings.nova_compatible:
        document: Branch = {"document": Entry("2009-04-04", _identity(instance, settings))}
        root["dynamic"] = Entry("2009-04-04", {"instance-identity": Entry("2009-04-04", document)})
    return root


def _meta_data(instance: Instance, settings: Settings, address: str | None) -> Branch:
    nova = settings.nova_compatible
    branch: Branch = {}

    def put(since: str, name: str, value: str | None) -> None:
        if value:
            branch[name] = Entry(since, _text(value))

    interfaces = shown_interfaces(instance)
    name = hostname(instance, settings)
    private = _addresses(interfaces, 4)
    public = _floating(interfaces)
    public_name = _qualified(instance, settings.public_domain or settings.dhcp_domain, settings)

    put("1.0", "ami-id", instance.image_id and image_id_of(instance.image_id))
    put("1.0", "ami-launch-index", str(instance.launch_index))
    put("1.0", "ami-manifest-path", "FIXME" if nova else "(unknown)")
    put("1.0", "instance-id", instance_id_of(instance.id))
    put("1.0", "hostname", name)
    seen = address if address and "." in address and ":" not in address else None
    put("1.0", "local-ipv4", str(private[0]) if private else seen)
    put("1.0", "reservation-id", instance.reservation_id)
    put("1.0", "security-groups", "\n".join(instance.security_groups))
    keys = _public_keys(instance, nova)
    if keys:
        branch["public-keys"] = Entry("1.0", keys)
    put("2007-01-19", "local-hostname", name)
    put("2007-01-19", "public-hostname", (name if nova else public_name if public else None))
    put("2007-01-19", "public-ipv4", str(public[0][0]) if public else None)
    put("2007-08-29", "instance-type", instance.instance_type)
    devices = instance.block_device_mapping or (_FIXED_BLOCK_DEVICES if nova else {})
    if devices:
        branch["block-device-mapping"] = Entry(
            "2007-12-15",
            {key: Entry("2007-12-15", _text(value)) for key, value in devices.items()},
        )
    put("2007-12-15", "kernel-id", instance.kernel_id and image_id_of(instance.kernel_id, "aki"))
    put("2007-12-15", "ramdisk-id", instance.ramdisk_id and image_id_of(instance.ramdisk_id, "ari"))
    placement = _placement(instance, settings)
    if placement:
        branch["placement"] = Entry(_oldest(placement), placement)
    put("2008-09-01", "instance-action", "none")
    if nova:
        # Nova lists these without a value as well, and then answers with an empty body.
        for since, key in (
            ("1.0", "local-ipv4"),
            ("1.0", "security-groups"),
            ("2007-01-19", "public-ipv4"),
        ):
            branch.setdefault(key, Entry(since, b""))
        return branch

    if interfaces:
        put("2011-01-01", "mac", interfaces[0].mac)
        macs: Branch = {
            interface.mac: Entry(
                "2011-01-01", _interface(instance, interface, number, name, public_name)
            )
            for number, interface in enumerate(interfaces)
        }
        branch["network"] = Entry(
            "2011-01-01", {"interfaces": Entry("2011-01-01", {"macs": Entry("2011-01-01", macs)})}
        )
    services: Branch = {}
    if settings.services_domain:
        services["domain"] = Entry("2014-02-25", _text(settings.services_domain))
    if settings.services_partition:
        services["partition"] = Entry("2015-10-20", _text(settings.services_partition))
    if services:
        branch["services"] = Entry(_oldest(services), services)
    put("2019-10-01", "instance-life-cycle", "on-demand")
    addresses6 = _addresses(interfaces, 6)
    put("2021-01-03", "ipv6", str(addresses6[0]) if addresses6 else None)
    if instance.options.instance_metadata_tags and instance.tags:
        tags = {
            key: Entry("2021-03-23", _text(value), "" if _reads_as_key(key) else None)
            for key, value in instance.tags.items()
        }
        branch["tags"] = Entry("2021-03-23", {"instance": Entry("2021-03-23", tags)})
    return branch


def _oldest(branch: Branch) -> str:
    return min(entry.since for entry in branch.values())


def _reads_as_key(tag: str) -> bool:
    """True for a tag such as ``0=x``: cloud-init takes that line for a public key.

    It would ask for ``0/openssh-key``, get 404 and drop everything it had read. Such a tag is
    not listed; it answers.
    """
    number, sign, _ = tag.partition("=")
    try:
        return bool(sign) and int(number) is not None
    except ValueError:
        return False


def _public_keys(instance: Instance, nova: bool) -> Branch:
    # An X.509 certificate is no openssh-key; Nova says it is. It stands in the OpenStack tree.
    keys = [key for key in instance.keys if nova or key.type == "ssh"]
    branch: Branch = {}
    for number, key in enumerate(keys):
        line = f"{number}={_LINE_BREAKS.sub(' ', key.name)}"
        content: Branch = {"openssh-key": Entry("1.0", _text(key.data))}
        if nova:
            content["_name"] = Entry("1.0", _text(line), "")
        branch[str(number)] = Entry("1.0", content, line)
    return branch


def _placement(instance: Instance, settings: Settings) -> Branch:
    branch: Branch = {}
    zone = availability_zone(instance, settings)
    if zone:
        branch["availability-zone"] = Entry("2008-02-01", _text(zone))
    if settings.nova_compatible:
        branch.setdefault("availability-zone", Entry("2008-02-01", b"None"))
        return branch
    if settings.availability_zone_id:
        branch["availability-zone-id"] = Entry("2019-10-01", _text(settings.availability_zone_id))
    if settings.region:
        # AWS dates it 2020-08-24, a date that is no version of its own list.
        branch["region"] = Entry("2020-08-24", _text(settings.region))
    return branch


def shown_interfaces(instance: Instance) -> list[Interface]:
    """The interfaces that the EC2 tree can tell of: one for each MAC, in order.

    EC2 knows neither bonds nor VLANs. The carriers of a bond are left out (the bond stands for
    them), so are VLANs (a client would put their addresses on the untagged device), and of
    two interfaces with one MAC the first stays.
    """
    carriers = {
        link
        for interface in instance.interfaces
        if interface.bond is not None
        for link in interface.bond.links
    }
    shown: dict[str, Interface] = {}
    for interface in instance.interfaces:
        if interface.vlan is None and interface.id not in carriers:
            shown.setdefault(interface.mac, interface)
    return list(shown.values())


def _addresses(interfaces: Sequence[Interface], version: int) -> list[IPv4Address | IPv6Address]:
    return [
        fixed.ip_address
        for interface in interfaces
        for subnet in interface.subnets
        for fixed in subnet.addresses
        if fixed.ip_address.version == version
    ]


def _floating(
    interfaces: Sequence[Interface],
) -> list[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]]:
    return [
        (fixed.floating_ip_address, fixed.ip_address)
        for interface in interfaces
        for subnet in interface.subnets
        for fixed in subnet.addresses
        if fixed.floating_ip_address is not None and fixed.floating_ip_address.version == 4
    ]


def _interface(
    instance: Instance, interface: Interface, number: int, name: str, public_name: str
) -> Branch:
    branch: Branch = {}

    def put(key: str, values: Sequence[object], since: str = "2011-01-01") -> None:
        text = "\n".join(map(str, values))
        if text:
            branch[key] = Entry(since, _text(text))

    floating = _floating((interface,))
    put("device-number", [number])
    put("interface-id", [interface.id])
    associations: dict[str, list[str]] = {}
    for public, private in floating:
        associations.setdefault(str(public), []).append(str(private))
    if associations:
        branch["ipv4-associations"] = Entry(
            "2011-01-01",
            {
                public: Entry("2011-01-01", "\n".join(privates).encode())
                for public, privates in associations.items()
            },
        )
    put("ipv6s", _addresses((interface,), 6), "2016-06-30")
    put("local-hostname", [name])
    put("local-ipv4s", _addresses((interface,), 4))
    put("mac", [interface.mac])
    put("network-card-index", [0], "2020-11-01")
    put("owner-id", [instance.project_id])
    if floating:
        put("public-hostname", [public_name])
        put("public-ipv4s", list(associations))
    put("security-group-ids", interface.security_groups)
    put("security-groups", instance.security_groups)
    primary4 = _primary(interface.subnets, 4)
    primary = primary4 or _primary(interface.subnets, 6)
    if primary is not None:
        put("subnet-id", [primary.id])
    if primary4 is not None:
        put("subnet-ipv4-cidr-block", [primary4.cidr])
    put(
        "subnet-ipv6-cidr-blocks",
        [subnet.cidr for subnet in interface.subnets if subnet.cidr.version == 6],
        "2016-06-30",
    )
    put("vpc-id", [interface.network_id])
    network4 = _network_cidrs(instance, interface.network_id, 4)
    put("vpc-ipv4-cidr-block", network4[:1])
    put("vpc-ipv4-cidr-blocks", network4, "2016-06-30")
    put("vpc-ipv6-cidr-blocks", _network_cidrs(instance, interface.network_id, 6), "2016-06-30")
    return branch


def _primary(subnets: Sequence[Subnet], version: int) -> Subnet | None:
    """The subnet of the first address of a family, else the first subnet of the family."""
    family = [subnet for subnet in subnets if subnet.cidr.version == version]
    return next((subnet for subnet in family if subnet.addresses), family[0] if family else None)


def _network_cidrs(
    instance: Instance, network_id: str, version: int
) -> list[IPv4Network | IPv6Network]:
    """Every subnet of a network that the instance has an interface in, each once."""
    return list(
        dict.fromkeys(
            subnet.cidr
            for interface in instance.interfaces
            if interface.network_id == network_id
            for subnet in interface.subnets
            if subnet.cidr.version == version
        )
    )


def _identity(instance: Instance, settings: Settings) -> bytes:
    """The instance identity document, unsigned; fields without a value are null as with AWS."""
    private = _addresses(shown_interfaces(instance), 4)
    document = {
        "accountId": instance.project_id,
        "architecture": settings.architecture,
        "availabilityZone": availability_zone(instance, settings),
        "billingProducts": None,
        "devpayProductCodes": None,
        "imageId": instance.image_id and image_id_of(instance.image_id),
        "instanceId": instance_id_of(instance.id),
        "instanceType": instance.instance_type,
        "kernelId": instance.kernel_id and image_id_of(instance.kernel_id, "aki"),
        "marketplaceProductCodes": None,
        "pendingTime": None,
        "privateIp": str(private[0]) if private else None,
        "ramdiskId": instance.ramdisk_id and image_id_of(instance.ramdisk_id, "ari"),
        "region": settings.region or None,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2).encode()
