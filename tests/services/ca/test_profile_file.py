"""profiles.toml: equal to the built-in profiles as shipped, and nothing wrong in it is ignored."""

from datetime import timedelta
from pathlib import Path

import pytest

from services.ca.keys import KeyType
from services.ca.profile_file import (
    INTERNAL,
    SHIPPED,
    ProfileError,
    load,
    parse,
    parse_span,
)
from services.ca.profiles import PROFILES

ROOT = Path(__file__).parents[3]
FILE = ROOT / "etc" / "mooring" / "profiles.toml"


def test_the_file_as_shipped_is_what_is_built_in() -> None:
    """Every profile of services.ca.profiles, each with its own values."""
    assert load(FILE) == dict(SHIPPED)
    assert {name: offer.profile for name, offer in SHIPPED.items()} == PROFILES


def test_an_empty_file_offers_nothing() -> None:
    """What is not in the file is not offered, except what the authority itself needs."""
    assert set(parse("")) == INTERNAL
    assert all(not offer.groups and not offer.renew for offer in parse("").values())


def test_a_key_that_is_left_out_keeps_the_kind_s_value() -> None:
    """A variation names what it changes and nothing else."""
    offers = parse(
        """
        [profile.web]
        kind = "server"
        key_types = ["p256", "rsa2048"]
        greatest_lifetime = "60d"
        [profile.web.names]
        dns = ["Example.COM"]
        wildcards = false
        networks = ["10.0.0.0/8"]
        uris = ["spiffe://example.com/"]
        [profile.web.who]
        groups = ["web-team"]
        """
    )
    web, server = offers["web"], SHIPPED["server"]
    assert (web.profile.name, web.kind) == ("web", "server")
    assert web.profile.key_types == {KeyType.P256, KeyType.RSA2048}
    assert web.profile.greatest_lifetime == timedelta(days=60)
    assert web.profile.default_lifetime == server.profile.default_lifetime
    assert web.profile.names.dns == ("example.com",)
    assert web.profile.key_usage == server.profile.key_usage
    assert web.groups == {"web-team"}
    assert (web.grants_any, web.renew, web.acme) == (server.grants_any, True, True)
    assert "server" not in offers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "x: every section is [profile.NAME]"),
        ("[profiles.server]", "profiles: every section"),
        ("[profile.server]\ncolour = 1", "[profile.server]: unknown key colour"),
        (
            "[profile.server]\ngreatest_lifetme = 1",
            "unknown key greatest_lifetme (is greatest_lifetime meant?)",
        ),
        ("[profile.server.names]\nwildcard = true", "[profile.server.names]: unknown key wildcard"),
        ("[profile.server.who]\ngroup = []", "[profile.server.who]: unknown key group"),
        ("[profile.web]", "[profile.web]: kind is needed"),
        ('[profile.web]\nkind = "sever"', "[profile.web]: 'sever' is no kind"),
        ('[profile.web]\nkind = "root"', "there is one profile of the kind root"),
        ("[profile.Web]", "[profile.Web]: a name is a-z"),
        ('[profile.token]\nkind = "client"', "[profile.token]: this name is reserved"),
        ('[profile.server]\ndefault_lifetime = "a week"', "default_lifetime: 'a week' is not a"),
        ("[profile.server]\ndefault_lifetime = 60", "default_lifetime: is less than"),
        ('[profile.server]\ndefault_lifetime = "91d"', "the default lifetime exceeds the greatest"),
        ('[profile.server]\nkey_types = ["p521"]', "key_types: 'p521' is none that is known"),
        ('[profile.ocsp]\nkey_types = ["ed25519"]', "key_types: more than the kind allows"),
        ('[profile.server]\nkey_types = ["p256", "p256"]', "key_types: holds a value twice"),
        ('[profile.server]\nkey_types = "p256"', "key_types: is not a list of texts"),
        ('[profile.server]\nkey_types = ["p384"]', "the default key type is not an allowed one"),
        ('[profile.server]\nextended_key_usage = ["any"]', "extended_key_usage: 'any' is none"),
        ('[profile.client]\nextended_key_usage = ["serverAuth"]', "more than the kind allows"),
        ("[profile.client]\nextended_key_usage = []", "a certificate without is good for all"),
        ('[profile.server]\nkey_encipherment_for_rsa = "yes"', "'yes' is not true or false"),
        ('[profile.server.names]\ndns = ["*.example.com"]', "is a wildcard"),
        ('[profile.server.names]\ndns = ["under_score"]', "dns: 'under_score'"),
        ('[profile.server.names]\nnetworks = ["10.0.0.1/8"]', "networks: '10.0.0.1/8'"),
        ('[profile.server.names]\nuris = ["spiffe://a.example"]', "does not end with a slash"),
        ('[profile.server.who]\ngroups = ["a b"]', "[profile.server.who] groups: 'a b'"),
        ('[profile.server.who]\nown_name = ["hosts"]', "own_name: there is no profile hosts"),
        ("[profile.client.who]\nacme = true", "acme: proves names of servers"),
        ("[profile.ocsp.who]\nrenew = true", "nobody asks for the kind ocsp over the network"),
        ("[profile.server]\nnames = 1", "[profile.server.names]: is not a section"),
        ("profile = 1", "profile: every section"),
        ("[profile", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    """Unknown sections, keys and values stop the start with their names."""
    with pytest.raises(ProfileError) as refused:
        parse(text)
    assert says in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file is an error, never a set of defaults."""
    with pytest.raises(ProfileError, match=r"none\.toml: cannot be read"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[profile.web]")
    with pytest.raises(ProfileError, match=r"bad\.toml: \[profile.web\]: kind is needed"):
        load(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("5m", 300), ("7s", 7), (60, 60)]
)
def test_spans(text: object, seconds: int) -> None:
    """Days, hours, minutes, seconds, or a whole number of seconds."""
    assert parse_span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "1", "0d", "-1d", "1.5h", "1w", " 1d", 0, -1, True, None, 1.5]
)
def test_what_is_no_span(text: object) -> None:
    """Anything else is refused, a number without a unit in text as well."""
    with pytest.raises(ValueError, match="is not a time"):
        parse_span(text)


def test_every_key_is_documented() -> None:
    """docs/certificates.md names each key of the file."""
    text = (ROOT / "docs" / "certificates.md").read_text(encoding="utf-8")
    lines = FILE.read_text(encoding="utf-8").splitlines()
    keys = {line.split(" = ")[0] for line in lines if " = " in line and line[0] != "#"}
    missing = [key for key in sorted(keys | {"kind"}) if f"`{key}`" not in text]
    assert missing == []
