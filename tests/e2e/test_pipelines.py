"""An operator's own paste.ini: scenario W1, and what arrives behind the host's proxy (M4)."""

import hashlib
import hmac
import json
import re
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PASTE = """
[composite:main]
paste.composite_factory = services.core.composite:by_listener
metadata.sock = instances
operators.sock = office

[composite:office]
paste.composite_factory = services.core.composite:by_path
/greeting = greeting
/guarded = guarded_greeting
/cloud = clouds_operators
/ = operators

[pipeline:greeting]
pipeline = outer inner hello

[pipeline:guarded_greeting]
pipeline = outer inner guarded

[pipeline:operators]
pipeline = gatekeeper request_id errors_json healthcheck client_certificate operators_api

[pipeline:clouds_operators]
pipeline = gatekeeper request_id errors_json keystone client_certificate operators_api

[pipeline:instances]
pipeline =
    gatekeeper witness request_id errors_text healthcheck
    forwarded client_certificate instance_signature
    metadata

[app:hello]
paste.app_factory = foreign_filters:greeting_factory

[app:guarded]
paste.app_factory = foreign_filters:greeting_factory
text = welcome
filter-with = keystone

[app:metadata]
paste.app_factory = services.metadata.application:app_factory
config = %(here)s/mooring.conf

[app:operators_api]
paste.app_factory = services.metadata.operators:app_factory
config = %(here)s/mooring.conf

[filter:outer]
paste.filter_factory = foreign_filters:stamp_factory
name = outer

[filter:inner]
paste.filter_factory = foreign_filters:stamp_factory
name = inner

[filter:keystone]
paste.filter_factory = foreign_filters:keystone_factory
auth_uri = https://keystone.example.org/v3
tokens = a-token-of-carol:carol

[filter:witness]
paste.filter_factory = foreign_filters:witness_factory
file = %(here)s/witnessed

[filter:gatekeeper]
paste.filter_factory = middleware.gatekeeper:filter_factory

[filter:request_id]
paste.filter_factory = middleware.request_id:filter_factory

[filter:errors_text]
paste.filter_factory = middleware.errors:filter_factory
style = text

[filter:errors_json]
paste.filter_factory = middleware.errors:filter_factory
style = json

[filter:healthcheck]
paste.filter_factory = middleware.healthcheck:filter_factory

[filter:forwarded]
paste.filter_factory = middleware.forwarded:filter_factory
trusted_hops = 2

[filter:client_certificate]
paste.filter_factory = middleware.client_certificate:filter_factory

[filter:instance_signature]
paste.filter_factory = middleware.instance_signature:filter_factory
secrets = %(here)s/secrets/signature
"""
CAROL = {"X-Auth-Token": "a-token-of-carol"}


def configure(stand):
    """What an operator edits: paste.ini, gunicorn's path of modules, a header in NGINX."""
    (stand.etc / "metadata.ini").write_text(PASTE)
    gunicorn = stand.etc / "gunicorn" / "metadata.py"
    text = gunicorn.read_text().replace(f'    "unix:{stand.run_dir}/flat.sock",\n', "")
    gunicorn.write_text(text + f'\npythonpath = "{Path(__file__).parent}"\n')
    proxy = stand.etc / "nginx" / "proxy.conf"
    proxy.write_text(proxy.read_text() + "proxy_set_header X-Auth-Token $http_x_auth_token;\n")


@pytest.fixture(scope="module")
def house(build):
    """A stand with that paste.ini and one network."""
    with build(before=configure) as house:
        house.stand.add_network("red", "10.1.0.2/24")
        yield house


@pytest.fixture(scope="module")
def instance(house):
    """An instance behind the host's proxy."""
    house.stand.start_agent()
    return house.instance("red", "10.1.0.4", b"user data of W1")


def operate(house, path, **headers):
    """The answer of the operators' door to a GET."""
    return house.operate("GET", path, headers=headers)


def test_w1_a_pipeline_of_two_filters_in_front_of_an_application(house):
    """Both filters work on the answer, the outer one last; the application is from a factory."""
    answer = operate(house, "/greeting/you")
    assert answer.headers["X-Stamps"] == "inner,outer"
    assert json.loads(answer.body) == {
        "text": "hello",
        "user": None,
        "script": "/greeting",
        "path": "/you",
    }


def test_w1_filter_with(house):
    """`filter-with` puts the token filter in front of one application, behind the pipeline's."""
    refused = operate(house, "/guarded")
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Keystone uri="https://keystone.example.org/v3"'
    assert refused.headers["X-Stamps"] == "inner,outer"
    answer = operate(house, "/guarded", **CAROL)
    assert (answer.status, json.loads(answer.body)["user"]) == (200, "carol")
    assert json.loads(answer.body)["text"] == "welcome"


def test_w1_a_composite_by_path(house):
    """The longest prefix of whole segments wins; the rest is Mooring's own API."""
    assert json.loads(operate(house, "/greeting").body)["script"] == "/greeting"
    assert operate(house, "/greetings").status == 404
    assert json.loads(operate(house, "/v1").body)["versions"][0]["id"] == "v1"


def test_w1_a_foreign_filter_by_configuration_alone(house):
    """A token filter guards Mooring's own API at one path; behind it the certificate counts."""
    path = "/cloud/v1/instances"
    refused = operate(house, path)
    assert (refused.status, refused.body) == (401, b"Authentication required")
    assert refused.headers["WWW-Authenticate"].startswith("Keystone ")
    assert operate(house, path, **{"X-Auth-Token": "guessed"}).status == 401
    assert json.loads(operate(house, path, **CAROL).body)["instances"] == []
    house.stand.hierarchy.issue_client("mallory", ["others"]).write(
        house.stand.etc / "pki", "mallory"
    )
    assert house.operate("GET", path, headers=CAROL, user="mallory").status == 403


def test_w1_instances_are_served_through_the_operators_own_pipeline(instance):
    """The whole way works with an operator's filter in the middle of Mooring's."""
    assert instance.get("/latest/user-data").body == b"user data of W1"


def test_m4_the_proxied_request_says_who_asks_and_is_signed(house, instance):
    """X-Forwarded-For, instance, project and a signature over all that matters arrive.

    The signature is computed here from the description in the documentation, without our code.
    """
    target = f"/latest/meta-data/?nonce={time.time_ns()}"
    assert instance.get(target, ("X-Instance-ID", "mine"), ("X-Tenant-ID", "mine")).status == 200
    lines = (house.stand.etc / "witnessed").read_text().splitlines()
    (seen,) = [each for each in map(json.loads, lines) if each["target"] == target]
    assert seen["HTTP_X_FORWARDED_FOR"] == "10.1.0.4, 127.0.0.1"
    assert seen["HTTP_X_INSTANCE_ID"] == instance.id
    assert seen["HTTP_X_TENANT_ID"] == "project-red"
    assert seen["HTTP_X_MOORING_NETWORK"] == "red"
    assert abs(int(seen["HTTP_X_MOORING_TIME"]) - time.time()) < 30
    assert re.fullmatch("req-[0-9a-f]{32}", seen["HTTP_X_REQUEST_ID"])
    master = (house.stand.etc / "secrets" / "signature" / "current").read_bytes()
    key = hmac.new(master, b"mooring host key v2\0host-1", hashlib.sha256).digest()
    signed = ("mooring-v2", "host-1", seen["HTTP_X_MOORING_TIME"], "red", instance.id)
    signed += ("project-red", "10.1.0.4", "GET", target)
    expected = hmac.new(key, "\n".join(signed).encode(), hashlib.sha256).hexdigest()
    assert seen["HTTP_X_MOORING_SIGNATURE"] == expected
    house.sensitive.add(expected)
