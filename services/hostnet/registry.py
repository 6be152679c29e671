"""What the network API serves: one line a collection."""

from services.hostnet.agents import Agents, Zones
from services.hostnet.networks import Networks
from services.hostnet.ports import Ports
from services.hostnet.quotas import Quotas
from services.hostnet.resource import Extension, Resource
from services.hostnet.subnets import Subnets

EXTENSIONS = (
    Extension("quotas", "Quota management support", "Limits of projects"),
    Extension("quota_details", "Quota details", "What is used of the limits"),
    Extension("standard-attr-description", "standard-attr-description", "Descriptions"),
    Extension("standard-attr-revisions", "Resource revision numbers", "Revision numbers"),
    Extension("revision-if-match", "If-Match constraints", "Changes of a known state only"),
    Extension("standard-attr-timestamp", "Resource timestamps", "Times of creation and change"),
    Extension("standard-attr-tag", "Tag support", "Tags"),
    Extension("tag-creation", "Tag creation", "Several tags at once"),
    Extension("pagination", "Pagination support", "Pages"),
    Extension("sorting", "Sorting support", "Sorting"),
    Extension("project-id", "project_id field enabled", "project_id beside tenant_id"),
    Extension("empty-string-filtering", "Empty String Filtering", "Filters for nothing"),
    Extension("ip-substring-filtering", "IP address substring filtering", "Parts of addresses"),
)
"""Aliases of what every collection has."""


def resources() -> tuple[Resource, ...]:
    """The collections, in the order of the discovery document."""
    return (Networks(), Subnets(), Ports(), Agents())


def others() -> tuple[Quotas | Zones, ...]:
    """Collections that are no tables of objects."""
    return (Quotas(), Zones())
