"""Paths and whole trees of arbitrary instances (hypothesis)."""

import ipaddress
import json
import posixpath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.metadata import ec2, openstack
from services.metadata.model import Instance
from services.metadata.tree import Page, Settings, Special, Tree, fold, is_canonical
from services.metadata.validation import parse

ANY = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

label = st.text(
    st.characters(blacklist_categories=("Cc",)).filter(lambda c: c != "\x7f"), max_size=12
)
named = label.filter(bool)
identifier = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,8}\Z")
tag_key = st.from_regex(r"\A(?!\.{1,2}\Z|_index\Z)[A-Za-z0-9+\-=.,_:@]{1,8}\Z") | st.sampled_from(
    ["0=x", "1=", "+2=a", "1_0=b", "0", "security-credentials", "="]
)
key_name = named.filter(lambda text: not set(text) & set("/=")) | st.sampled_from(
    ["a\u2028b", "c\x85"]
)
MACS = [f"fa:16:3e:00:00:0{n}" for n in range(4)]
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)


@st.composite
def subnets(draw, used):
    six = draw(st.booleans())
    number = draw(st.integers(0, 200))
    cidr = f"2001:db8:{number:x}::/64" if six else f"10.{number}.0.0/24"
    network = ipaddress.ip_network(cidr)
    addresses = []
    for offset in draw(st.lists(st.integers(2, 250), max_size=3, unique=True)):
        address = str(network[offset])
        if address in used:
            continue
        used.add(address)
        entry = {"ip_address": address}
        if draw(st.booleans()):
            entry["floating_ip_address"] = f"203.0.113.{draw(st.integers(1, 5))}"
        addresses.append(entry)
    made = {
        "cidr": cidr,
        "enable_dhcp": draw(st.booleans()),
        "gateway_ip": str(network[1]) if draw(st.booleans()) else None,
        "dns_nameservers": draw(
            st.lists(st.sampled_from(["192.0.2.1", "2001:db8::1"]), max_size=2)
        ),
        "addresses": addresses,
    }
    if six:
        made["ipv6_address_mode"] = draw(
            st.sampled_from([None, "slaac", "dhcpv6-stateful", "dhcpv6-stateless"])
        )
    return made


@st.composite
def interfaces(draw):
    used = set()
    made = []
    for number in range(draw(st.integers(0, 4))):
        interface = {
            "id": f"{number:08x}-0000-4000-8000-000000000000",
            "network_id": f"net{number}",
            "mac": draw(st.sampled_from(MACS)),
            "name": draw(st.sampled_from(["tap0", "tap1", "interface1", "eth0"])),
            "mtu": draw(st.sampled_from([None, 1450])),
            "security_groups": draw(st.lists(named, max_size=2, unique=True)),
            "subnets": [draw(subnets(used)) for _ in range(draw(st.integers(0, 3)))],
        }
        if number and draw(st.booleans()):
            plain = [i["id"] for i in made if "bond" not in i and "vlan" not in i]
            if draw(st.booleans()) and plain:
                interface |= {"type": "bond", "bond": {"mode": "802.3ad", "links": plain[:2]}}
            else:
                carriers = [i["id"] for i in made if "vlan" not in i]
                interface |= {"type": "vlan", "vlan": {"id": 5, "link": carriers[0]}}
        made.append(interface)
    return made


@st.composite
def documents(draw):
    some = {
        "instance_type": named,
        "image_id": identifier,
        "kernel_id": identifier,
        "ramdisk_id": identifier,
        "availability_zone": identifier,
        "launch_index": st.integers(0, 2**31 - 1),
        "properties": st.dictionaries(named, label, max_size=3),
        "user_data": st.sampled_from(["", "/wD/", "SGVsbG8="]),
        "vendor_data": st.dictionaries(st.text(max_size=5), json_value, max_size=2),
        "security_groups": st.lists(named, max_size=3, unique=True),
        "block_device_mapping": st.dictionaries(
            st.sampled_from(["ami", "root", "swap", "ebs0", "ephemeral0"]),
            st.sampled_from(["sda1", "/dev/vda"]),
        ),
        "keys": st.lists(
            st.fixed_dictionaries(
                {"name": key_name, "data": named, "type": st.sampled_from(["ssh", "x509"])}
            ),
            max_size=3,
            unique_by=lambda key: key["name"],
        ),
    }
    document = {"project_id": draw(identifier), "name": draw(named)}
    for name, strategy in some.items():
        if draw(st.booleans()):
            document[name] = draw(strategy)
    document["id"] = str(draw(st.uuids()))
    document["interfaces"] = draw(interfaces())
    document["tags"] = draw(st.dictionaries(tag_key, label, max_size=5))
    # Readable more often than not: that is where names come from outside.
    readable = draw(st.sampled_from(["enabled", "enabled", "disabled"]))
    document["options"] = {"instance_metadata_tags": readable}
    return document


deployments = st.builds(
    Settings,
    nova_compatible=st.sampled_from([False, False, True]),
    dhcp_domain=st.sampled_from(["", "novalocal"]),
    region=st.sampled_from([None, "r"]),
    availability_zone=st.sampled_from([None, "z"]),
    availability_zone_id=st.sampled_from([None, "z1"]),
    services_domain=st.sampled_from([None, "d"]),
    services_partition=st.sampled_from([None, "p"]),
    vendor_data=st.sampled_from([None, {}, {"cloud-init": "#x"}]),
    dynamic_vendor_data=st.booleans(),
)


def listed(page):
    """What cloud-init's crawler makes of a listing: names of directories, paths of leaves."""
    children, leaves = [], []
    for line in page.body.decode().splitlines():
        line = line.strip()
        name = line.rstrip("/")
        if not name or name == "security-credentials":
            continue
        if line.endswith("/"):
            children.append(name)
            continue
        number, sign, _ = line.partition("=")
        try:
            leaves.append(f"{int(number)}/openssh-key" if sign else name)
        except ValueError:
            leaves.append(name)
    return children, leaves


def crawl(tree, path):
    """Every page below a directory; fails at the first name that does not answer."""
    page = tree.page(path)
    assert isinstance(page, Page), path
    pages = [page]
    children, leaves = listed(page)
    for leaf in leaves:
        found = tree.page(path + leaf)
        assert isinstance(found, Page), path + leaf
        pages.append(found)
    for child in children:
        pages += crawl(tree, f"{path}{child}/")
    return pages


@ANY
@given(documents(), deployments)
def test_everything_that_is_listed_answers(document, deployment):
    """A crawl as cloud-init does it, of every version, ends and meets no 404."""
    tree = Tree(parse(document), deployment)
    for version in tree.page("/").body.decode().split("\n"):
        children, leaves = listed(tree.page(f"/{version}/"))
        assert "meta-data" in children
        for child in children:
            pages = crawl(tree, f"/{version}/{child}/")
            assert len(pages) < 400
        for leaf in leaves:
            assert isinstance(tree.page(f"/{version}/{leaf}"), Page)
    for version in tree.page("/openstack").body.decode().split("\n"):
        for name in tree.page(f"/openstack/{version}").body.decode().split("\n"):
            found = tree.page(f"/openstack/{version}/{name}")
            assert isinstance(found, Page | Special), name
            if isinstance(found, Page) and name.endswith(".json"):
                json.loads(found.complete())


@ANY
@given(documents(), deployments)
def test_rendering_is_a_function_of_the_instance(document, deployment):
    """Two trees of one instance have equal pages, in whatever order they are asked for."""
    instance = Instance.from_document(document)
    paths = ["/latest/meta-data/", "/openstack/latest/meta_data.json", "/1.0/meta-data/", "/"]
    one, two = Tree(instance, deployment), Tree(instance, deployment)
    assert [one.page(p) for p in paths] == [two.page(p) for p in reversed(paths)][::-1]


segment = st.sampled_from(
    [
        "",
        ".",
        "..",
        "latest",
        "ec2",
        "openstack",
        "meta-data",
        "user-data",
        "public-keys",
        "0",
        "_name",
        "content",
        "api",
        "token",
        "meta_data.json",
        "2009-04-04",
        "instance-id",
        "\xc3\xbc",
        "\x00",
        "%2e",
        "=",
    ]
)
paths = st.text(max_size=20) | st.lists(segment, max_size=8).map(
    lambda parts: "/" + "/".join(parts)
)


@settings(max_examples=400, deadline=None)
@given(paths, st.booleans())
def test_no_path_is_an_error(path, nova_compatible):
    """Any string is a page, a special path or nothing."""
    instance = Instance.from_document({"project_id": "p", "name": "n", "tags": {"a": "b"}})
    tree = Tree(instance, Settings(nova_compatible=nova_compatible))
    assert isinstance(tree.page(path), Page | Special | None)


@settings(max_examples=400, deadline=None)
@given(paths)
def test_paths_fold_as_posix_says(path):
    """Folding is posixpath.normpath below one root (its two leading slashes are one for us)."""
    plain = path.replace("\x00", "0")  # CPython before 3.11.5 ended a path at NUL
    assert "/" + "/".join(fold(plain)) == posixpath.normpath("/" + plain.lstrip("/"))


@settings(max_examples=400, deadline=None)
@given(paths)
def test_only_canonical_paths_may_key_a_cache(path):
    """At most two spellings of each place are canonical, and they mean that place."""
    if is_canonical(path):
        place = "/" + "/".join(fold(path))
        assert path in (place, place + "/")


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/", True),
        ("/latest", True),
        ("/latest/", True),
        ("", False),
        ("latest", False),
        ("//", False),
        ("//latest", False),
        ("/latest//", False),
        ("/latest/.", False),
        ("/latest/../latest", False),
        ("/..", False),
    ],
)
def test_canonical_examples(path, canonical):
    """With or without one slash at the end, and nothing else."""
    assert is_canonical(path) == canonical


@pytest.mark.parametrize(
    "path",
    [
        "/latest/meta-data/hostname/",
        "//latest/meta-data/hostname",
        "/latest/./meta-data//hostname",
        "/latest/user-data/../meta-data/hostname",
        "/../../latest/meta-data/hostname",
        "/openstack/../ec2/latest/meta-data/hostname",
        "latest/meta-data/hostname",
    ],
)
def test_spellings_of_one_place(instance_of, path):
    """They answer alike, and with the very same page."""
    tree = Tree(instance_of(), Settings())
    assert tree.page(path) is tree.page("/latest/meta-data/hostname")


def test_address_of_the_request_stands_in_for_an_unknown_one(smallest):
    """An instance without addresses on record is told the one it asked from, if it is IPv4."""
    for address, found in (("10.0.0.9", b"10.0.0.9"), ("2001:db8::9", None), (None, None)):
        page = Tree(smallest, Settings(), address).page("/latest/meta-data/local-ipv4")
        assert (page and page.body) == found


def test_versions_are_listed_in_order_of_time():
    """Comparing versions as text is what gates keys: it must be their order."""
    for versions in (ec2.VERSIONS, openstack.VERSIONS):
        assert list(versions) == sorted(set(versions))
