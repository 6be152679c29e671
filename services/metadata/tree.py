"""Both trees of one instance behind one entry: from a path to the page that answers it.

``Tree.page`` folds the path as Nova does (``posixpath.normpath``: slashes at the end, double
slashes, ``.`` and ``..``), so that ``/latest/meta-data/`` and ``//latest/./meta-data`` are one
place. A path that is no place is None, never an exception: paths come from instances.
"""

import datetime
import sys
from collections.abc import Callable, Iterator

from services.metadata.ec2 import Ec2Tree
from services.metadata.model import Instance
from services.metadata.openstack import OpenStackTree, vendor_data
from services.metadata.pages import Page, Settings, Special, fresh_seed

__all__ = [
    "Page",
    "Settings",
    "Special",
    "Tree",
    "fold",
    "fresh_seed",
    "is_canonical",
    "vendor_data",
]


def fold(path: str) -> list[str]:
    """The segments of a path: empty ones and ``.`` left out, ``..`` applied.

    The root is its own parent.
    """
    segments = [segment for segment in path.split("/") if segment]
    if "/." not in path and path[:1] != ".":
        return segments
    folded: list[str] = []
    for segment in segments:
        if segment == "..":
            if folded:
                folded.pop()
        elif segment != ".":
            folded.append(segment)
    return folded


def is_canonical(path: str) -> bool:
    """True for a path that is its own folding, with or without one slash at its end.

    Only such paths may key a cache: the others are without number. Clients use both spellings
    of the end (cloud-init asks for directories with the slash, Nova's documentation without).
    """
    if path[:1] != "/" or "//" in path:
        return False
    return "/." not in path or path.removesuffix("/") == "/" + "/".join(fold(path))


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


_BOOT_VERSION = "/openstack/2018-08-27/"  # the newest that cloud-init reads
_BOOT_FILES = ("meta_data.json", "user_data", "vendor_data.json", "vendor_data2.json")
_BOOT_PATHS = (
    "/openstack",
    *(_BOOT_VERSION + name for name in _BOOT_FILES),
    _BOOT_VERSION + "network_data.json",
    "/latest/meta-data/",
)


def _entry(line: str) -> str:
    """The path of a line in a listing: ``0=mykey`` stands for that key's directory."""
    number, key, _ = line.partition("=")
    return f"{number}/openssh-key" if key and number.isdigit() else line


class Tree:
    """What one instance may read. Making it is cheap; nothing is rendered before it is asked for.

    Pages with equal content are one object, whatever the version or path, so that a cache of
    pages by path holds each content once. ``address`` is where the first request came from: it
    is told as ``local-ipv4`` if it is IPv4 and the instance has no IPv4 address on record.
    """

    __slots__ = ("_ec2", "_nova", "_openstack", "_pages", "_today", "instance")

    def __init__(
        self,
        instance: Instance,
        settings: Settings,
        address: str | None = None,
        today: Callable[[], str] = _today,
    ) -> None:
        self.instance = instance
        self._nova = settings.nova_compatible
        self._today = today
        self._pages: dict[tuple[bytes, str], Page] = {}
        self._ec2 = Ec2Tree(instance, settings, self._intern, address)
        self._openstack = OpenStackTree(instance, settings, self._intern)

    def page(self, path: str) -> Page | Special | None:
        """The page at ``path`` (PATH_INFO as WSGI decodes it); None is 404."""
        if self._nova and path.startswith("//") and not path.startswith("///"):
            # POSIX keeps exactly two leading slashes; Nova takes the empty first segment that
            # follows for a request of the version list.
            return self._ec2.versions()
        segments = fold(path)
        if not segments:
            return self._ec2.versions()
        if segments == ["latest", "api", "token"]:
            return Special.TOKEN
        if segments[0] == "openstack":
            if len(segments) == 1:
                return self._openstack.versions(self._today())
            return self._openstack.page(segments[1:])
        if segments[0] == "ec2":
            segments = segments[1:]
            if not segments:
                return self._ec2.versions()
        return self._ec2.page(segments)

    def boot(self) -> Iterator[tuple[str, Page]]:
        """The pages that a boot asks for, each with the path that a client uses.

        These are what cloud-init reads with its OpenStack source, the EC2 tree included, whose
        directories it asks for with a slash at the end. The paths are shared by all instances.
        """
        paths = list(_BOOT_PATHS)
        for path in paths:
            page = self.page(path)
            if isinstance(page, Page) and page.keep:
                yield sys.intern(path), page
                if path.endswith("/") and path != "/":
                    paths += [path + _entry(line) for line in page.body.decode().split("\n")]

    def _intern(self, body: bytes, content_type: str) -> Page:
        key = (body, content_type)
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = Page.of(body, content_type)
        return page
