"""Our answers beside those of Nova's own metadata handler, recorded in nova_facts.json."""

import base64
import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from services.metadata.model import Instance
from services.metadata.tree import Page, Settings, Special, Tree

FACTS = json.loads(Path(__file__).with_name("nova_facts.json").read_text())
NOT_FOUND = (404, "", b"")


def nova_answers(case):
    """Path and what Nova answered: status, content type, body; a seed reads SEED."""
    for status, kind, body, paths in case["answers"]:
        content = base64.b64decode(FACTS["bodies"][body])
        for path in paths.split(" "):
            yield path, (status, kind, content) if status == 200 else (status, "", b"")


def our_answer(tree, path):
    page = tree.page(unquote_to_bytes(path).decode("latin-1"))
    if page is None:
        return NOT_FOUND
    if isinstance(page, Special):
        return page
    body = page.body
    if page.seed_at is not None:
        body = body[: page.seed_at] + b"SEED" + body[page.seed_at :]
    return (200, page.content_type, body)


def tree_of(case, *, nova_compatible):
    settings = Settings(
        nova_compatible=nova_compatible,
        dhcp_domain=case["dhcp_domain"],
        vendor_data=case["vendor_data"],
    )
    return Tree(Instance.from_document(case["instance"]), settings, FACTS["address"])


@pytest.mark.parametrize("name", FACTS["cases"])
def test_nova_compatible_answers_are_novas_byte_for_byte(name):
    """With nova_compatible, status, content type and body of every path are Nova's.

    Two exceptions: where Nova fails with 500 we answer 404, and the password is carried out by
    the application.
    """
    tree = tree_of(FACTS["cases"][name], nova_compatible=True)
    compared = 0
    for path, expected in nova_answers(FACTS["cases"][name]):
        if expected[0] == 500:
            expected = NOT_FOUND
        elif expected[0] == 200 and path.endswith("/password"):
            assert expected == (200, "text/html; charset=UTF-8", b"")
            expected = Special.PASSWORD
        assert our_answer(tree, path) == expected, path
        compared += 1
    assert compared > 600


def json_without(text, *members):
    document = json.loads(text)
    for member in members:
        document.pop(member, None)
    return document


# Each deliberate difference: its name, the paths it is about, what must hold of the two answers.
DIFFERENCES = [
    ("Nova fails with 500 below a leaf and at a directory that it cannot list",
     r".*", lambda nova, ours: nova[0] == 500 and ours == NOT_FOUND),
    ("newer EC2 versions are served and listed; latest is the newest of them",
     r"/|//|/ec2/?|/openstack/\.\.|/%2e%2e|/ec2/latest|/latest/?|/ec2",
     lambda nova, ours: ours[0] == 200 and set(nova[2].split(b"\n")) < set(ours[2].split(b"\n"))),
    ("versions of AWS answer", r"/20(18-09-24|21-03-23).*",
     lambda nova, ours: nova[0] == 404 and ours[0] == 200),
    ("dynamic/ is there", r"/(latest|2009-04-04)/dynamic/?|/2009-04-04/?",
     lambda nova, ours: ours[0] == 200
     and ours[2].replace(b"dynamic/\n", b"") in (nova[2], b"instance-identity/")),
    ("keys of AWS answer",
     r"/latest/meta-data/(instance-life-cycle|ipv6|mac|network/|placement/region)",
     lambda nova, ours: nova[0] == 404 and ours[0] == 200),
    ("keys of AWS are listed, keys without a value are not",
     r"/[^/]+/(\./)?/?meta-data/?|/openstack/\.\./.*|/latest%2Fmeta-data",
     lambda nova, ours: ours[0] == 200 and b"instance-id" in ours[2]),
    ("placement/ has the region", r"/latest/meta-data/placement/",
     lambda nova, ours: ours[2] == nova[2] + b"\nregion"),
    ("ami-manifest-path is AWS's word", r".*/ami-manifest-path",
     lambda nova, ours: (nova[2], ours[2]) == (b"FIXME", b"(unknown)")),
    ("empty values are absent", r".*/meta-data/(public-ipv4|security-groups)",
     lambda nova, ours: nova[::2] == (200, b"") and ours == NOT_FOUND),
    ("no public name without a public address", r".*/meta-data/public-hostname",
     lambda nova, ours: nova[0] == 200 and ours == NOT_FOUND),
    ("invented block devices are absent", r".*/meta-data/block-device-mapping/.*",
     lambda nova, ours: nova[0] == 200 and ours == NOT_FOUND),
    ("internal names do not leak", r".*/public-keys/0/_name|/openstack/[^/]+/version",
     lambda nova, ours: nova[0] == 200 and ours == NOT_FOUND),
    ("user data is application/octet-stream", r".*/user[-_]data/?",
     lambda nova, ours: ours == (200, "application/octet-stream", nova[2])),
    ("network_data.json begins with its version", r"/openstack/201[23]-.*/network_data.json",
     lambda nova, ours: nova[0] == 200 and ours == NOT_FOUND),
    ("network_data.json without interfaces is absent", r".*/network_data.json",
     lambda nova, ours: nova[2] == b"{}" and ours == NOT_FOUND),
    ("network_data.json is JSON by its type and tells every subnet, address and MTU",
     r".*/network_data.json",
     lambda nova, ours: ours[:2] == (200, "application/json")
     and len(json.loads(ours[2])["networks"]) >= len(json.loads(nova[2])["networks"])),
    ("vendor data that is not there is absent", r".*/vendor_data2?.json",
     lambda nova, ours: nova[2] in (b"{}", b'{"static": {}}') and ours == NOT_FOUND),
    ("files that do not answer are not listed", r"/openstack/[^/]+/?",
     lambda nova, ours: set(ours[2].split(b"\n")) < set(nova[2].split(b"\n"))),
    ("the password is set once, at once", r".*/password",
     lambda nova, ours: nova[0] == 200 and ours is Special.PASSWORD),
]  # fmt: skip


def test_every_difference_from_nova_has_a_name():
    """Without nova_compatible each difference is one of the list, and each of the list occurs."""
    met: Counter[str] = Counter()
    for case in FACTS["cases"].values():
        tree = tree_of(case, nova_compatible=False)
        for path, nova in nova_answers(case):
            ours = our_answer(tree, path)
            if ours == nova:
                continue
            names = [
                name
                for name, pattern, holds in DIFFERENCES
                if re.fullmatch(pattern, path) and holds(nova, ours)
            ]
            assert names, (path, nova, ours)
            met[names[0]] += 1
    assert [name for name, _, _ in DIFFERENCES if name not in met] == []


def test_double_slash_lists_versions_only_for_nova():
    """Nova keeps exactly two leading slashes and then lists versions whatever follows."""
    case = FACTS["cases"]["full"]
    nova = tree_of(case, nova_compatible=True)
    assert nova.page("//latest/meta-data") == nova.page("/")
    ours = tree_of(case, nova_compatible=False)
    page = ours.page("//latest/meta-data")
    assert isinstance(page, Page)
    assert page == ours.page("/latest/meta-data/")
