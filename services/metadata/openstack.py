"""The OpenStack tree of an instance: ``/openstack/<version>/meta_data.json`` and its siblings.

Versions, files and the fields that each version added are Nova's. The file ``password`` and,
where dynamic targets are configured, ``vendor_data2.json`` are not pages: they answer with a
``Special`` that the application carries out.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from services.metadata.ec2 import availability_zone, hostname
from services.metadata.model import Device, Instance
from services.metadata.network_data import network_data
from services.metadata.pages import BINARY, JSON, TEXT, Page, Settings, Special

FOLSOM = "2012-08-10"
GRIZZLY = "2013-04-04"
HAVANA = "2013-10-17"
LIBERTY = "2015-10-15"
NEWTON_ONE = "2016-06-30"
NEWTON_TWO = "2016-10-06"
OCATA = "2017-02-22"
ROCKY = "2018-08-27"
VICTORIA = "2020-10-14"
EPOXY = "2025-04-04"

VERSIONS = (
    FOLSOM,
    GRIZZLY,
    HAVANA,
    LIBERTY,
    NEWTON_ONE,
    NEWTON_TWO,
    OCATA,
    ROCKY,
    VICTORIA,
    EPOXY,
)

INTRODUCED = {
    "meta_data.json": FOLSOM,
    "user_data": FOLSOM,
    "password": GRIZZLY,
    "vendor_data.json": HAVANA,
    "network_data.json": LIBERTY,
    "vendor_data2.json": NEWTON_TWO,
}
"""The files in the order of the listing, and the version that brought each."""

Intern = Callable[[bytes, str], Page]


class OpenStackTree:
    """The OpenStack tree of one instance; documents are rendered when they are asked for."""

    __slots__ = ("_head", "_instance", "_intern", "_meta_data", "_settings")

    def __init__(self, instance: Instance, settings: Settings, intern: Intern) -> None:
        self._instance = instance
        self._settings = settings
        self._intern = intern
        self._head: bytes | None = None
        self._meta_data: dict[tuple[bool, ...], Page] = {}

    def versions(self, today: str) -> Page:
        """The list of versions up to ``today`` (a UTC date), and ``latest``.

        A version of the future is served but not listed, as with Nova. While the clock hides
        one, the page is not to be kept.
        """
        shown = [version for version in VERSIONS if version <= today]
        page = self._intern("\n".join((*shown, "latest")).encode(), TEXT)
        if len(shown) == len(VERSIONS):
            return page
        return Page.of(page.body, page.content_type, keep=False)

    def page(self, tokens: Sequence[str]) -> Page | Special | None:
        """The page at ``tokens``, the first of which is the version; None is 404."""
        version = tokens[0]
        if version == "latest":
            version = VERSIONS[-1]
        elif version not in VERSIONS:
            return None
        if len(tokens) == 1:
            return self._listing(version)
        if len(tokens) > 2:
            return None
        name = tokens[1]
        if self._settings.nova_compatible and name == "version":
            return self._listing(version)
        if not self._answers(name, version, listed=False):
            return None
        return self._file(name, version)

    def _answers(self, name: str, version: str, *, listed: bool) -> bool:
        """Whether a file is there; ``listed`` asks whether the listing says so."""
        nova = self._settings.nova_compatible
        since = INTRODUCED.get(name)
        if since is None:
            return False
        if version < since and not (nova and name == "network_data.json" and not listed):
            return False
        if name == "user_data":
            return self._instance.user_data is not None
        if nova:
            return True
        if name == "network_data.json":
            return bool(self._instance.interfaces)
        if name == "vendor_data.json":
            return vendor_data(self._instance, self._settings) is not None
        if name == "vendor_data2.json":
            return (
                self._settings.dynamic_vendor_data
                or vendor_data(self._instance, self._settings) is not None
            )
        return True

    def _listing(self, version: str) -> Page:
        names = [name for name in INTRODUCED if self._answers(name, version, listed=True)]
        return self._intern("\n".join(names).encode(), TEXT)

    def _file(self, name: str, version: str) -> Page | Special:
        nova = self._settings.nova_compatible
        if name == "meta_data.json":
            return self._meta_data_page(version)
        if name == "user_data":
            return self._intern(self._instance.user_data or b"", TEXT if nova else BINARY)
        if name == "password":
            return Special.PASSWORD
        if name == "network_data.json":
            return self._intern(
                _json(network_data(self._instance, nova_compatible=nova)), TEXT if nova else JSON
            )
        static = vendor_data(self._instance, self._settings) or {}
        if name == "vendor_data.json":
            return self._intern(_json(static), JSON)
        if self._settings.dynamic_vendor_data:
            return Special.VENDOR_DATA2
        return self._intern(_json({"static": static}), JSON)

    def _meta_data_page(self, version: str) -> Page:
        changes = (GRIZZLY, LIBERTY, NEWTON_ONE, OCATA, ROCKY, VICTORIA, EPOXY)
        epoch = tuple(version >= change for change in changes)
        page = self._meta_data.get(epoch)
        if page is None:
            page = self._meta_data[epoch] = self._render(version)
        return page

    def _render(self, version: str) -> Page:
        if self._head is None:
            self._head = _json(_head(self._instance, self._settings))
        head = self._head
        if version < GRIZZLY:
            return self._intern(head, JSON)
        opening = head[:-1] + b', "random_seed": "'
        tail: dict[str, Any] = {}
        if version >= LIBERTY:
            tail["project_id"] = self._instance.project_id
        if version >= NEWTON_ONE:
            tail["devices"] = list(_devices(self._instance.devices, version))
        if version >= VICTORIA:
            tail["dedicated_cpus"] = list(self._instance.dedicated_cpus)
        closing = b", " + _json(tail)[1:] if tail else b"}"
        return Page.of(opening + b'"' + closing, JSON, seed_at=len(opening))


def vendor_data(instance: Instance, settings: Settings) -> dict[str, Any] | None:
    """Static vendor data: the deployment's with the instance's own above it, by top-level key.

    None when neither has any.
    """
    if instance.vendor_data is None and settings.vendor_data is None:
        return None
    return {**(settings.vendor_data or {}), **(instance.vendor_data or {})}


def _json(value: Mapping[str, Any]) -> bytes:
    # ASCII with escapes, as Nova writes it; a lone surrogate stays an escape.
    return json.dumps(value).encode("ascii")


def _head(instance: Instance, settings: Settings) -> dict[str, Any]:
    """The fields of meta_data.json that every version has, in Nova's order."""
    head: dict[str, Any] = {"uuid": instance.id}
    if instance.properties:
        head["meta"] = dict(instance.properties)
    if instance.keys:
        head["public_keys"] = {key.name: key.data for key in instance.keys}
        head["keys"] = [
            {"name": key.name, "type": key.type, "data": key.data} for key in instance.keys
        ]
    head["hostname"] = hostname(instance, settings)
    head["name"] = instance.name
    head["launch_index"] = instance.launch_index
    head["availability_zone"] = availability_zone(instance, settings)
    return head


def _devices(devices: Sequence[Device], version: str) -> Iterator[dict[str, Any]]:
    for device in devices:
        item: dict[str, Any] = {}
        if device.type == "nic":
            if device.vlan is not None and version >= OCATA:
                item["vlan"] = device.vlan
            if version >= ROCKY:
                item["vf_trusted"] = device.vf_trusted
            if not (item or device.tags):
                continue
            named = {"type": "nic", "mac": device.mac}
        elif device.type == "disk":
            named = {"type": "disk", "serial": device.serial, "path": device.path}
        elif version >= EPOXY:
            named = {"type": "share", "share_id": device.share_id, "tag": device.tag}
        else:
            continue
        item.update({key: value for key, value in named.items() if value is not None})
        item["bus"] = device.bus
        item["address"] = device.address
        if device.tags:
            item["tags"] = list(device.tags)
        yield item
