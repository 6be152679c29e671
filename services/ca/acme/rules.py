"""Which names an account may order, and by which profile.

Two rules stand over every order, and both have to allow each name: those of the profile, and those
of the key for external accounts that the account was made with, if any. Names are brought to their
normal form first; the rules see nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.ca import names
from services.ca.acme.problems import Problem
from services.ca.profiles import NameRules
from services.ca.refusal import Refused, shown
from services.ca.request import GREATEST_NAMES, CertificateRequest

DNS: Final = "dns"
IP: Final = "ip"

_RULE_FIELDS: Final = frozenset({"profile", "dns", "wildcards", "networks", "reusable", "expires"})
# Trees and networks of one key: what an operator writes by hand, not a zone file.
GREATEST_RULES: Final = 100


@dataclass(frozen=True, slots=True)
class Identifier:
    """A name in normal form; a wildcard's `value` is without its "*."."""

    kind: str
    value: str
    wildcard: bool = False

    @property
    def name(self) -> str:
        """The name as the certificate has it."""
        return f"*.{self.value}" if self.wildcard else self.value

    def document(self) -> dict[str, str]:
        """The identifier of an order."""
        return {"type": self.kind, "value": self.name}


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What an operator bound a key for external accounts to.

    `names` None leaves all to the profile; `profile` None means the configured one. A key that is
    not reusable makes one account.
    """

    profile: str | None = None
    names: NameRules | None = None
    reusable: bool = False
    expires: datetime | None = None

    def document(self) -> dict[str, Any]:
        """The rules as JSON holds them; `parse_rules` takes it back."""
        document: dict[str, Any] = {"reusable": self.reusable}
        if self.profile is not None:
            document["profile"] = self.profile
        if self.names is not None:
            document["dns"] = list(self.names.dns)
            document["wildcards"] = self.names.wildcards
            document["networks"] = [str(network) for network in self.names.networks]
        if self.expires is not None:
            document["expires"] = self.expires.isoformat()
        return document


def parse_rules(document: Mapping[str, Any]) -> KeyRules:
    """Read the rules of a key; raises Refused that points at what is wrong.

    Members, all optional: `profile`; `dns` (trees, "example.com" is that name and all below),
    `wildcards`, `networks`; `reusable`; `expires` (RFC 3339).
    """
    for name in document:
        if name not in _RULE_FIELDS:
            raise Refused(f"/{shown(name)[1:-1]}", "there is no such rule")
    profile = document.get("profile")
    if profile is not None and not isinstance(profile, str):
        raise Refused("/profile", "has to be the name of a profile")
    flags = {}
    for name in ("wildcards", "reusable"):
        flags[name] = document.get(name, False)
        if not isinstance(flags[name], bool):
            raise Refused(f"/{name}", "has to be true or false")
    return KeyRules(
        profile=profile,
        names=_names(document, wildcards=flags["wildcards"]),
        reusable=flags["reusable"],
        expires=_expires(document.get("expires")),
    )


def parse_identifiers(value: object) -> tuple[Identifier, ...]:
    """Read the identifiers of a new order; raises Problem, with a subproblem for each bad name."""
    if not isinstance(value, list) or not value:
        raise Problem("malformed", "identifiers is not a list with at least one member")
    if len(value) > GREATEST_NAMES:
        raise Problem("malformed", f"an order has at most {GREATEST_NAMES} identifiers")
    found: dict[Identifier, None] = {}
    problems: list[Problem] = []
    for item in value:
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("type"), str)
            or not isinstance(item.get("value"), str)
        ):
            raise Problem("malformed", "an identifier is not an object with type and value")
        shape = {"type": item["type"][:16], "value": item["value"][: names.DNS_CHARACTERS]}
        if shape["type"] not in (DNS, IP):
            problems.append(
                Problem("unsupportedIdentifier", "the type is neither dns nor ip", identifier=shape)
            )
            continue
        try:
            identifier = _identifier(item["type"], item["value"])
        except Refused as refused:
            problems.append(Problem("malformed", refused.reason, identifier=shape))
            continue
        if identifier in found:
            raise Problem("malformed", "an identifier stands in the order twice")
        found[identifier] = None
    raise_together(problems)
    return tuple(found)


def check_identifiers(identifiers: Iterable[Identifier], rules: Sequence[NameRules]) -> None:
    """Raise Problem rejectedIdentifier unless every rule allows every name."""
    problems = []
    for identifier in identifiers:
        try:
            for rule in rules:
                if identifier.kind == IP:
                    rule.check((), (ipaddress.ip_address(identifier.value),), ())
                else:
                    rule.check((identifier.name,), (), ())
        except Refused as refused:
            problems.append(
                Problem("rejectedIdentifier", refused.reason, identifier=identifier.document())
            )
    raise_together(problems)


def raise_together(problems: Sequence[Problem]) -> None:
    """Raise one Problem for all of them, if there are any (RFC 8555 section 6.7.1)."""
    if not problems:
        return
    kinds = {problem.kind for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else "compound"
    if len(problems) == 1:
        detail = problems[0].detail
    else:
        detail = f"{len(problems)} identifiers cannot be ordered"
    raise Problem(kind, detail, subproblems=problems)


def names_of(request: CertificateRequest) -> frozenset[tuple[str, str]]:
    """What a certificate request asks for, as (kind, name)."""
    dns = {(DNS, name) for name in request.dns_names}
    return frozenset(dns | {(IP, str(address)) for address in request.ip_addresses})


def check_request(request: CertificateRequest, identifiers: Sequence[Identifier]) -> None:
    """Raise Problem badCSR unless the request asks for exactly the identifiers (section 7.4).

    The common name counts as one of them: certbot and others repeat the first name there, and some
    old clients put a single name only there.
    """
    wanted = set(names_of(request))
    ordered = {(each.kind, each.name) for each in identifiers}
    if request.common_name is not None:
        low = request.common_name.lower()
        if not {(DNS, low), (IP, low)} & ordered:
            raise Problem("badCSR", f"the common name {shown(low)} is not in the order")
        if not wanted:
            wanted = {pair for pair in ordered if pair[1] == low}
    if request.uris:
        raise Problem("badCSR", "an order has no URIs")
    if request.is_ca:
        raise Problem("badCSR", "asks for an authority")
    if wanted != ordered:
        raise Problem("badCSR", "the names of the request are not those of the order")


def _identifier(kind: str, value: str) -> Identifier:
    if kind == IP:
        address = names.ip_address(value, "/value")
        return Identifier(IP, str(address))
    name = names.dns_name(value, "/value")
    return Identifier(DNS, name.removeprefix("*."), name.startswith("*."))


def _names(document: Mapping[str, Any], *, wildcards: bool) -> NameRules | None:
    lists = {}
    for field in ("dns", "networks"):
        values = document.get(field, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise Refused(f"/{field}", "has to be a list of strings")
        if len(values) > GREATEST_RULES:
            raise Refused(f"/{field}", f"has more than {GREATEST_RULES} members")
        lists[field] = values
    if "dns" not in document and "networks" not in document:
        if wildcards:
            raise Refused("/wildcards", "needs dns beside it")
        return None
    trees = []
    for place, tree in enumerate(lists["dns"]):
        if tree != ".":
            tree = names.dns_name(tree, f"/dns/{place}")
            if tree.startswith("*."):
                raise Refused(f"/dns/{place}", "write the tree, and wildcards true beside it")
        trees.append(tree)
    networks = []
    for place, network in enumerate(lists["networks"]):
        try:
            networks.append(ipaddress.ip_network(network))
        except ValueError:
            raise Refused(f"/networks/{place}", f"{shown(network)} is not an IP network") from None
    return NameRules(dns=tuple(trees), wildcards=wildcards, networks=tuple(networks))


def _expires(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Refused("/expires", "has to be a time with its zone, as RFC 3339 writes it")
    return moment
