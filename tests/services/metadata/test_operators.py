"""The operators' API through the filters that stand before it in every pipeline."""

import base64
import dataclasses
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
import structlog
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from webob import Request
from webtest import TestApp, TestResponse

from middleware.errors import Errors
from middleware.gatekeeper import Gatekeeper
from middleware.request_id import RequestId
from services.core import readiness, schema
from services.core.config import ConfigError
from services.core.database import Database, upgrade
from services.core.identity import ADMINS, HOSTS, OPERATORS, PROJECT_PREFIX, ClientIdentity
from services.metadata import operators
from services.metadata.operators import BODY_LIMIT, Operators, app_factory
from services.metadata.store import Store

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "22222222-2222-4222-8222-222222222222"
THREE = "33333333-3333-4333-8333-333333333333"
URL = "/v1/instances"
SECRET_TEXT = "c2VjcmV0LXVzZXItZGF0YQ=="


def client(user: str, *groups: str) -> ClientIdentity:
    """A client whose certificate names these groups."""
    return ClientIdentity(user, frozenset(groups), 1, "0" * 64)


ADMIN = client("ann", ADMINS)
OPERATOR = client("alice", OPERATORS)
BOB = client("bob", PROJECT_PREFIX + "p1")
EVE = client("eve", PROJECT_PREFIX + "p2")
NODE = client("node-1", HOSTS)
STRANGER = client("stan", "some:group")


class Clients:
    """Stands for the client certificate filter: says who is asking."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self.client: ClientIdentity | None = OPERATOR

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self.client is not None:
            environ["mooring.client"] = self.client
        return self.app(environ, start_response)


class Api(TestApp):  # type: ignore[misc]  # WebTest has no types
    """The application in its pipeline; ``client`` is who asks."""

    __test__ = False

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = Store(database)
        self.clients = Clients(Operators(self.store))
        errors = Errors(self.clients, "json")
        super().__init__(Gatekeeper(RequestId(errors), True, ()))

    def ask(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        by: ClientIdentity | None = OPERATOR,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> TestResponse:
        """Send one request of this client; any status comes back."""
        self.clients.client = by
        sent = dict(headers or {})
        if document is not None:
            body = json.dumps(document).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        return self.request(path, method=method, body=body or b"", headers=sent, expect_errors=True)

    def dump(self) -> list[Any]:
        """Everything that the database holds, to see that nothing has changed."""
        with self.database.read() as connection:
            return [
                [tuple(row) for row in connection.execute(table.select()).all()]
                for table in schema.METADATA.sorted_tables
            ]


def assert_is_error(response: TestResponse, status: int, field: str | None = None) -> str:
    """The one shape of every error: status, code, message, field if any, request id."""
    assert response.status_int == status, response.text
    assert response.content_type == "application/json"
    if response.request.method == "HEAD":
        return ""
    assert set(response.json) == {"error"}
    error = response.json["error"]
    assert set(error) - {"field"} == {"status", "code", "message", "request_id"}
    assert error["status"] == status
    assert error["code"] == error["code"].lower()
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert error.get("field") == field, error
    assert isinstance(error["message"], str)
    assert error["message"]
    return str(error["message"])


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    """The API over a new database of each engine."""
    database = Database(database_url)
    yield Api(database)
    database.close()


@pytest.fixture
def lite(sqlite_url: str) -> Iterator[Api]:
    """The API over SQLite, where the engine makes no difference to what is tested."""
    database = Database(sqlite_url)
    yield Api(database)
    database.close()


def document(instance_id: str = ONE, address: str = "10.1.0.4", **values: Any) -> dict[str, Any]:
    """A document of an instance of project p1, every kind of field in it."""
    return {
        "id": instance_id,
        "project_id": "p1",
        "name": "web 1",
        "keys": [{"name": "mykey", "data": "ssh-ed25519 AAAAKEY alice"}],
        "properties": {"role": "web"},
        "tags": {"env": "test"},
        "user_data": SECRET_TEXT,
        "vendor_data": {"v": [1, 2.5, {"deep": None}]},
        "options": {"http_tokens": "required"},
        "interfaces": [
            {
                "network_id": "net-1",
                "mac": "fa:16:3e:00:00:01",
                "subnets": [
                    {
                        "cidr": "10.1.0.0/24",
                        "gateway_ip": "10.1.0.1",
                        "addresses": [{"ip_address": address}],
                    }
                ],
            }
        ],
        **values,
    }


ADDRESS_FIELD = "/interfaces/0/subnets/0/addresses/0/ip_address"


def test_an_instance_is_created_shown_and_deleted(api: Api) -> None:
    """POST answers 201 with Location and ETag, GET the same document, DELETE 204 and then 404."""
    created = api.ask("POST", URL, document())
    assert created.status_int == 201
    assert created.headers["Location"] == f"{URL}/{ONE}"
    assert created.json["version"] == 1
    assert created.json["hostname"] == "web-1"
    assert "user_data" not in created.json
    assert created.json["user_data_size"] == 16
    shown = api.ask("GET", f"{URL}/{ONE}")
    assert shown.json == created.json
    assert shown.headers["ETag"] == created.headers["ETag"]
    head = api.ask("HEAD", f"{URL}/{ONE}")
    assert (head.status_int, head.body) == (200, b"")
    unchanged = api.ask("GET", f"{URL}/{ONE}", headers={"If-None-Match": shown.headers["ETag"]})
    assert (unchanged.status_int, unchanged.body) == (304, b"")
    gone = api.ask("DELETE", f"{URL}/{ONE}")
    assert (gone.status_int, gone.body) == (204, b"")
    assert_is_error(api.ask("GET", f"{URL}/{ONE}"), 404)
    assert_is_error(api.ask("DELETE", f"{URL}/{ONE}"), 404)


def test_an_instance_without_an_id_gets_one(lite: Api) -> None:
    """The id is optional in a POST; the rest of the defaults are written out in the answer."""
    created = lite.ask("POST", URL, {"project_id": "p1", "name": "Ünï x"})
    assert created.status_int == 201
    assert created.json["id"] in created.headers["Location"]
    assert created.json["options"]["http_tokens"] == "optional"
    assert created.json["user_data_size"] is None


def test_user_data_is_read_only_where_asked_for(lite: Api) -> None:
    """User data is in no list and in no plain answer; where it is, nobody may cache it."""
    data = b"\x1f\x8b\x08\x00gzip\xff\x00"
    lite.ask("POST", URL, document(user_data=base64.b64encode(data).decode()))
    assert "user_data" not in lite.ask("GET", f"{URL}/{ONE}").json
    assert "user_data" not in lite.ask("GET", URL).json["instances"][0]
    included = lite.ask("GET", f"{URL}/{ONE}?include=user_data")
    assert base64.b64decode(included.json["user_data"]) == data
    assert included.headers["Cache-Control"] == "no-store"
    raw = lite.ask("GET", f"{URL}/{ONE}/user_data")
    assert (raw.body, raw.content_type) == (data, "application/octet-stream")
    assert raw.headers["Cache-Control"] == "no-store"
    assert_is_error(lite.ask("GET", f"{URL}/{ONE}?include=keys"), 400, "include")
    lite.ask("PATCH", f"{URL}/{ONE}", {"user_data": None})
    assert_is_error(lite.ask("GET", f"{URL}/{ONE}/user_data"), 404)


def test_put_creates_then_changes_and_the_same_again_is_nothing(api: Api) -> None:
    """PUT is idempotent: 201, then 200 with the same version and no new revision."""
    first = api.ask("PUT", f"{URL}/{ONE}", document())
    assert first.status_int == 201
    assert first.headers["Location"] == f"{URL}/{ONE}"
    before = api.dump()
    again = api.ask("PUT", f"{URL}/{ONE}", document())
    assert (again.status_int, again.json) == (200, first.json)
    assert api.dump() == before
    changed = api.ask("PUT", f"{URL}/{ONE}", document(name="db", tags={}))
    assert (changed.status_int, changed.json["version"]) == (200, 2)
    assert (changed.json["name"], changed.json["tags"]) == ("db", {})
    assert changed.json["created_at"] == first.json["created_at"]


def test_put_takes_its_id_from_the_path(lite: Api) -> None:
    """A document without an id is that of the path; another id is refused with its field."""
    body = document()
    del body["id"]
    assert lite.ask("PUT", f"{URL}/{ONE}", body).json["id"] == ONE
    assert_is_error(lite.ask("PUT", f"{URL}/{TWO}", document(ONE)), 400, "/id")
    assert_is_error(lite.ask("PUT", f"{URL}/{ONE.replace('1', 'A')}", body), 400, "/id")
    assert_is_error(lite.ask("PUT", f"{URL}/web", body), 400, "/id")


def test_an_answer_can_be_sent_back(lite: Api) -> None:
    """What GET gives with its user data, PUT takes; without, it would delete the user data."""
    lite.ask("PUT", f"{URL}/{ONE}", document())
    whole = lite.ask("GET", f"{URL}/{ONE}?include=user_data").json
    again = lite.ask("PUT", f"{URL}/{ONE}", whole)
    assert (again.status_int, again.json["version"]) == (200, 1)
    part = lite.ask("GET", f"{URL}/{ONE}").json
    assert_is_error(lite.ask("PUT", f"{URL}/{ONE}", part), 400, "/user_data")
    assert lite.ask("PUT", f"{URL}/{ONE}", {**part, "user_data": None}).status_int == 200


def test_patch_is_a_merge_patch(api: Api) -> None:
    """PATCH merges objects, replaces the rest, removes by null (RFC 7396), keeps what is unsaid."""
    api.ask("POST", URL, document())
    answer = api.ask(
        "PATCH",
        f"{URL}/{ONE}",
        {
            "name": "new",
            "tags": {"env": None, "a": "b"},
            "properties": None,
            "options": {"http_put_response_hop_limit": 2},
        },
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert answer.status_int == 200
    assert answer.json["version"] == 2
    assert (answer.json["name"], answer.json["hostname"]) == ("new", "web-1")
    assert (answer.json["tags"], answer.json["properties"]) == ({"a": "b"}, {})
    assert answer.json["options"]["http_tokens"] == "required"
    assert answer.json["options"]["http_put_response_hop_limit"] == 2
    assert answer.json["user_data_size"] == 16
    nothing = api.ask("PATCH", f"{URL}/{ONE}", {"name": "new"})
    assert (nothing.status_int, nothing.json["version"]) == (200, 2)


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"id": TWO}, "/id"),
        ({"id": None}, "/id"),
        ({"project_id": "p2"}, "/project_id"),
        ({"version": 7}, "/version"),
        ({"created_at": "now"}, "/created_at"),
        ({"name": None}, "/name"),
        ({"interfaces": [{}]}, "/interfaces/0/mac"),
        ({"nmae": "x"}, "/nmae"),
    ],
)
def test_a_patch_that_may_not_be_names_its_field(
    lite: Api, patch: dict[str, Any], field: str
) -> None:
    """What cannot be changed, or would make no instance, is 400 and changes nothing."""
    lite.ask("POST", URL, document())
    before = lite.dump()
    response = lite.ask("PATCH", f"{URL}/{ONE}", patch)
    if field == "/interfaces/0/mac":
        field = response.json["error"]["field"]
        assert field in ("/interfaces/0/mac", "/interfaces/0/network_id")
    assert_is_error(response, 400, field)
    assert lite.dump() == before


def test_many_small_patches_cannot_make_a_large_instance(lite: Api) -> None:
    """An instance that has grown over the limit of one body is refused."""
    lite.ask("POST", URL, document())
    for number in range(3):
        response = lite.ask(
            "PATCH", f"{URL}/{ONE}", {"vendor_data": {f"k{number}": "x" * (BODY_LIMIT // 2)}}
        )
        if response.status_int != 200:
            break
    assert_is_error(response, 400, "")
    assert number == 1


def test_conditions_guard_against_lost_changes(lite: Api) -> None:
    """If-Match lets a change happen only to the state it names, If-None-Match: * only to none."""
    etag = lite.ask("PUT", f"{URL}/{ONE}", document()).headers["ETag"]
    lite.ask("PATCH", f"{URL}/{ONE}", {"name": "two"})
    before = lite.dump()
    for method, body in (("PUT", document()), ("PATCH", {"name": "x"}), ("DELETE", None)):
        for headers in ({"If-Match": etag}, {"If-Match": '"other", W/"1"'}, {"If-Match": ""}):
            response = lite.ask(method, f"{URL}/{ONE}", body, headers=headers)
            assert_is_error(response, 412)
    anew = lite.ask("PUT", f"{URL}/{ONE}", document(), headers={"If-None-Match": "*"})
    assert_is_error(anew, 412)
    absent = lite.ask("PUT", f"{URL}/{TWO}", document(TWO), headers={"If-Match": "*"})
    assert_is_error(absent, 412)
    assert lite.dump() == before
    etag = lite.ask("GET", f"{URL}/{ONE}").headers["ETag"]
    changed = lite.ask("PATCH", f"{URL}/{ONE}", {"name": "x"}, headers={"If-Match": etag})
    assert changed.status_int == 200
    assert lite.ask("DELETE", f"{URL}/{ONE}", headers={"If-Match": "*"}).status_int == 204


def test_what_is_taken_is_409_with_its_field(api: Api) -> None:
    """A taken id or address is 409, its field named, the other instance never."""
    api.ask("POST", URL, document(project_id="p2", name="hidden"))
    before = api.dump()
    assert_is_error(api.ask("POST", URL, document()), 409, "/id")
    message = assert_is_error(api.ask("POST", URL, document(TWO)), 409, ADDRESS_FIELD)
    assert ONE not in message
    assert "hidden" not in message
    assert_is_error(api.ask("PUT", f"{URL}/{TWO}", document(TWO)), 409, ADDRESS_FIELD)
    assert api.dump() == before
    api.ask("POST", URL, document(TWO, "10.1.0.5"))
    clash = {"interfaces": document()["interfaces"]}
    assert_is_error(api.ask("PATCH", f"{URL}/{TWO}", clash), 409, ADDRESS_FIELD)


BAD_DOCUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "/name"),
    ({"name": 5}, "/name"),
    ({"name": ""}, "/name"),
    ({"name": "a\nb"}, "/name"),
    ({"name": "x" * 256}, "/name"),
    ({"id": ONE + "\n"}, "/id"),
    ({"project_id": "p1\n"}, "/project_id"),
    ({"host": "node\n"}, "/host"),
    ({"hostname": "Web"}, "/hostname"),
    ({"hostname": "web\n"}, "/hostname"),
    ({"nmae": "x"}, "/nmae"),
    ({"a/b~c": "x"}, "/a~1b~0c"),
    ({"launch_index": True}, "/launch_index"),
    ({"launch_index": 1.0}, "/launch_index"),
    ({"launch_index": -1}, "/launch_index"),
    ({"keys": [{"name": "a", "data": "x", "type": "pgp"}]}, "/keys/0/type"),
    ({"keys": [{"name": "a", "data": "x"}, {"name": "a", "data": "y"}]}, "/keys/1/name"),
    ({"properties": {"a": 1}}, "/properties/a"),
    ({"properties": {"a\x07": "x"}}, "/properties/a\x07"),
    ({"tags": {"_index": "x"}}, "/tags/_index"),
    ({"tags": {"a\n": "x"}}, "/tags/a\n"),
    ({"user_data": "no base64!"}, "/user_data"),
    ({"user_data": base64.b64encode(b"x" * 65537).decode()}, "/user_data"),
    ({"vendor_data": []}, "/vendor_data"),
    ({"security_groups": ["a", "a"]}, "/security_groups"),
    ({"dedicated_cpus": [1, 1]}, "/dedicated_cpus"),
    ({"options": {"http_tokens": "yes"}}, "/options/http_tokens"),
    ({"options": {"http_put_response_hop_limit": 65}}, "/options/http_put_response_hop_limit"),
    ({"interfaces": [{"network_id": "n"}]}, "/interfaces/0/mac"),
    ({"interfaces": [{"network_id": "n", "mac": "FA:16:3E:00:00:01"}]}, "/interfaces/0/mac"),
    ({"interfaces": [{"network_id": "n", "mac": "fa:16:3e:00:00:01\n"}]}, "/interfaces/0/mac"),
    (
        {
            "interfaces": [
                {
                    "network_id": "n",
                    "mac": "fa:16:3e:00:00:01",
                    "subnets": [{"cidr": "10.1.0.0/24", "addresses": [{"ip_address": "10.2.0.4"}]}],
                }
            ]
        },
        ADDRESS_FIELD,
    ),
]


@pytest.mark.parametrize(("values", "field"), BAD_DOCUMENTS)
def test_a_bad_field_is_named_and_nothing_changes(
    lite: Api, values: dict[str, Any], field: str
) -> None:
    """Every rule that a document breaks is 400 with the JSON pointer of the value at fault."""
    before = lite.dump()
    bad = document(**values)
    message = assert_is_error(lite.ask("POST", URL, bad), 400, field)
    assert SECRET_TEXT not in message
    bad["id"] = bad["id"] if "id" in values else TWO
    assert_is_error(lite.ask("PUT", f"{URL}/{TWO}", bad), 400, field)
    assert lite.dump() == before


def test_messages_never_repeat_user_data_or_keys(lite: Api) -> None:
    """An error about user data, a key or vendor data says what is wrong, not what was sent."""
    secret = "S3CRET-" + "x" * 90_000
    for values in (
        {"user_data": secret},
        {"user_data": 7, "name": [secret]},
        {"keys": [{"name": "a", "data": secret}]},
        {"keys": [{"name": "a", "data": "S3CRET-\x00"}]},
        {"keys": "S3CRET-"},
        {"vendor_data": "S3CRET-"},
        {"properties": {"password": "S3CRET-" + "x" * 1024}},
    ):
        response = lite.ask("POST", URL, document(**values))
        assert response.status_int == 400
        assert "S3CRET" not in response.text


BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", ""),
    (b"{", ""),
    (b"[]", ""),
    (b"null", ""),
    (b'"x"', ""),
    (b"\xff\xfe{}", ""),
    (b'{"name": "\xff"}', ""),
    (b'{"name": "a", "name": "b"}', "/name"),
    (b'{"name": NaN}', ""),
    (b'{"launch_index": 1e999}', ""),
    (b'{"launch_index": -Infinity}', ""),
    (b'{"launch_index": ' + b"9" * 5000 + b"}", ""),
    (b'{"name": "\\ud800"}', ""),
    (b'{"\\ud800": "x"}', ""),
    (b'{"name": "\\u0000"}', ""),
    (b'{"vendor_data": ' + b'{"a":' * 100 + b"1" + b"}" * 101, ""),
    (b'{"vendor_data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
]


@pytest.mark.parametrize(("body", "field"), BAD_BODIES)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_body_that_is_no_document_is_400(lite: Api, method: str, body: bytes, field: str) -> None:
    """Whatever is not one unambiguous JSON object is refused as such by every route that reads."""
    lite.ask("POST", URL, document())
    before = lite.dump()
    path = URL if method == "POST" else f"{URL}/{ONE}"
    headers = {"Content-Type": "application/json"}
    assert_is_error(lite.ask(method, path, body=body, headers=headers), 400, field)
    assert lite.dump() == before


def test_text_that_looks_like_an_escape_is_kept(lite: Api) -> None:
    """A backslash and what follows it in a text are that text, not an escape."""
    tags = {"a": r"\ud800 \n"}
    created = lite.ask("POST", URL, document(properties=tags))
    assert created.json["properties"] == tags


def test_a_body_of_another_type_or_size_is_refused(lite: Api) -> None:
    """415 for what is not JSON or is encoded, 413 for what is too large; nothing is read then."""
    before = lite.dump()
    body = json.dumps(document()).encode()
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/merge-patch+json"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        assert_is_error(lite.ask("POST", URL, body=body, headers=headers), 415)
    large = b'{"name": "' + b"x" * BODY_LIMIT + b'"}'
    assert_is_error(lite.ask("POST", URL, body=large), 413)
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert lite.dump() == before
    assert lite.ask("POST", URL, body=body, headers=charset).status_int == 201


def test_large_lists_are_refused_quickly(lite: Api) -> None:
    """A list of thousands of objects where unique items are due does not take quadratic time."""
    groups = [{str(number): 0} for number in range(15_000)]
    body = document(security_groups=groups, user_data=None)
    response = lite.ask("POST", URL, body)
    assert response.status_int == 400
    assert response.json["error"]["field"].startswith("/security_groups")


ROUTES = [
    ("GET", "/v1"),
    ("GET", URL),
    ("POST", URL),
    ("GET", f"{URL}/{ONE}"),
    ("PUT", f"{URL}/{ONE}"),
    ("PATCH", f"{URL}/{ONE}"),
    ("DELETE", f"{URL}/{ONE}"),
    ("GET", f"{URL}/{ONE}/user_data"),
    ("GET", f"{URL}/{ONE}/password"),
    ("DELETE", f"{URL}/{ONE}/password"),
]


def bodies(method: str) -> dict[str, Any] | None:
    """A body that the method would take for instance ONE."""
    return {
        "POST": document(TWO, "10.1.0.9"),
        "PUT": document(name="x"),
        "PATCH": {"name": "x"},
    }.get(method)


def test_the_routes_of_the_tests_are_all_there_are(lite: Api) -> None:
    """GET /v1 lists each route with its rule, and these tests walk all of them."""
    answer = lite.ask("GET", "/v1").json
    assert answer["versions"] == [{"id": "v1", "status": "CURRENT", "href": "/v1"}]
    listed = {(r["method"], r["path"].replace("{id}", ONE)) for r in answer["routes"]}
    assert listed == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_refuses_in_one_shape(lite: Api, method: str, path: str) -> None:
    """No certificate is 401, no group 403 or 404, an unknown parameter 400: one shape for all."""
    lite.ask("POST", URL, document())
    before = lite.dump()
    body = bodies(method)
    assert_is_error(lite.ask(method, path, body, by=None), 401)
    stranger = lite.ask(method, path, body, by=STRANGER)
    assert_is_error(stranger, stranger.status_int)
    assert stranger.status_int in (403, 404)
    assert_is_error(lite.ask(method, path + "?what=1", body, by=ADMIN), 400, "what")
    assert_is_error(lite.ask(method, path + "?what=%FF", body, by=ADMIN), 400, "")
    assert lite.dump() == before


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_says_503_when_the_database_is_away(lite: Api, method: str, path: str) -> None:
    """Without its database the API asks to try again, and works again when it is back."""
    lite.ask("POST", URL, document())
    file = lite.database.sqlite_path
    assert file is not None
    away = file.with_suffix(".away")
    lite.database.close()
    file.rename(away)
    response = lite.ask(method, path, bodies(method), by=ADMIN)
    if path != "/v1":
        assert_is_error(response, 503)
        assert response.headers["Retry-After"] == "5"
    away.rename(file)
    assert lite.ask(method, path, bodies(method), by=ADMIN).status_int < 300


def test_other_methods_and_paths_are_refused(lite: Api) -> None:
    """An unknown path is 404, a known one with a wrong method 405 with what is allowed."""
    for path in ("/", "/v2/instances", "/v1/instances/", f"{URL}/{ONE}/x", "/v1/%FF"):
        assert_is_error(lite.ask("GET", path), 404)
    response = lite.ask("POST", f"{URL}/{ONE}")
    assert_is_error(response, 405)
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "PUT", "PATCH", "DELETE"}
    for instance_id in ("web", ONE.upper().replace("1", "A"), "%00", "%C3%BC", "x" * 300):
        assert_is_error(lite.ask("GET", f"{URL}/{instance_id}"), 404)


def test_a_project_sees_and_changes_only_its_own(api: Api) -> None:
    """Another project's instance is 404 on every route, and in no list."""
    api.ask("POST", URL, document())
    before = api.dump()
    for method, path in ROUTES:
        if ONE in path:
            assert_is_error(api.ask(method, path, bodies(method), by=EVE), 404)
    assert api.ask("GET", URL, by=EVE).json == {"instances": []}
    assert_is_error(api.ask("POST", URL, document(TWO), by=EVE), 403, "/project_id")
    assert_is_error(api.ask("PUT", f"{URL}/{TWO}", document(TWO), by=EVE), 403, "/project_id")
    assert api.dump() == before
    assert [i["id"] for i in api.ask("GET", URL, by=BOB).json["instances"]] == [ONE]
    assert api.ask("GET", f"{URL}/{ONE}?include=user_data", by=BOB).json["user_data"]
    assert api.ask("GET", f"{URL}/{ONE}/user_data", by=BOB).status_int == 200
    assert api.ask("PATCH", f"{URL}/{ONE}", {"name": "x"}, by=BOB).status_int == 200
    assert api.ask("PUT", f"{URL}/{ONE}", document(), by=BOB).status_int == 200
    assert api.ask("DELETE", f"{URL}/{ONE}", by=BOB).status_int == 204
    assert api.ask("POST", URL, document(), by=BOB).status_int == 201


def test_a_project_does_not_say_where_it_runs(api: Api) -> None:
    """host and next_host are the operators': 403 with the field, and a PUT leaves them alone."""
    for name in ("host", "next_host"):
        made = document(**{name: "node-1"})
        assert_is_error(api.ask("POST", URL, made, by=BOB), 403, f"/{name}")
        assert_is_error(api.ask("PUT", f"{URL}/{ONE}", made, by=BOB), 403, f"/{name}")
    api.ask("POST", URL, document(host="node-1"))
    before = api.dump()
    for patch in ({"host": "node-2"}, {"host": None}):
        assert_is_error(api.ask("PATCH", f"{URL}/{ONE}", patch, by=BOB), 403, "/host")
        other = document(**patch)
        assert_is_error(api.ask("PUT", f"{URL}/{ONE}", other, by=BOB), 403, "/host")
    next_host = {"next_host": "node-2"}
    assert_is_error(api.ask("PATCH", f"{URL}/{ONE}", next_host, by=BOB), 403, "/next_host")
    assert api.dump() == before
    same = {"host": "node-1", "name": "x"}
    assert api.ask("PATCH", f"{URL}/{ONE}", same, by=BOB).status_int == 200
    replaced = api.ask("PUT", f"{URL}/{ONE}", document(name="y"), by=BOB)
    assert (replaced.json["name"], replaced.json["host"]) == ("y", "node-1")
    assert api.ask("PUT", f"{URL}/{ONE}", document()).json["host"] is None


def test_a_host_sees_what_it_carries_and_little_of_it(api: Api) -> None:
    """A host lists and reads its own instances without keys, user data and vendor data."""
    api.ask("POST", URL, document(host="node-1"))
    api.ask("POST", URL, document(TWO, "10.1.0.5", host="node-2", next_host="node-1"))
    api.ask("POST", URL, document(THREE, "10.1.0.6", host="node-2"))
    listed = api.ask("GET", URL, by=NODE).json["instances"]
    assert [item["id"] for item in listed] == [ONE, TWO]
    shown = api.ask("GET", f"{URL}/{ONE}", by=NODE).json
    assert shown == listed[0]
    for item in (*listed, shown):
        assert not {"keys", "vendor_data", "user_data", "user_data_size"} & set(item)
        assert item["interfaces"]
    before = api.dump()
    assert_is_error(api.ask("GET", f"{URL}/{THREE}", by=NODE), 404)
    wanted = api.ask("GET", f"{URL}/{ONE}?include=user_data", by=NODE)
    assert_is_error(wanted, 403, "include")
    assert_is_error(api.ask("GET", f"{URL}/{ONE}/user_data", by=NODE), 403)
    for method in ("PUT", "PATCH", "DELETE"):
        assert_is_error(api.ask(method, f"{URL}/{ONE}", bodies(method), by=NODE), 403)
    assert_is_error(api.ask("POST", URL, document(), by=NODE), 403)
    for method in ("GET", "DELETE"):
        assert_is_error(api.ask(method, f"{URL}/{ONE}/password", by=NODE), 403)
    assert api.dump() == before


def test_a_password_is_read_and_reset(api: Api) -> None:
    """An admin or the project reads the password that the instance set, and may reset it."""
    api.ask("POST", URL, document())
    path = f"{URL}/{ONE}/password"
    nothing = {"password": None, "encoding": None, "set_at": None}
    assert api.ask("GET", path, by=BOB).json == nothing
    api.store.set_password(ONE, b"encrypted==")
    shown = api.ask("GET", path, by=BOB)
    assert (shown.json["password"], shown.json["encoding"]) == ("encrypted==", "utf-8")
    assert shown.headers["Cache-Control"] == "no-store"
    assert_is_error(api.ask("GET", path, by=OPERATOR), 403)
    assert api.ask("DELETE", path, by=ADMIN).status_int == 204
    assert api.ask("GET", path, by=ADMIN).json == nothing
    assert api.ask("DELETE", path, by=ADMIN).status_int == 204
    api.store.set_password(ONE, b"\xff\x00")
    shown = api.ask("GET", path, by=ADMIN)
    assert (shown.json["password"], shown.json["encoding"]) == ("/wA=", "base64")


def test_lists_are_filtered_and_paged(api: Api) -> None:
    """Filters reach the store, ``next`` goes on from where the page ended, filters with it."""
    for number in range(5):
        instance_id = f"{number:08d}-1111-4111-8111-111111111111"
        tags = {"env": "prod" if number % 2 else "test", "a+b": "c&d"}
        api.ask("POST", URL, document(instance_id, f"10.1.0.{number + 10}", tags=tags))
    seen = []
    path: str | None = f"{URL}?limit=2&tag=a%2Bb=c%26d"
    while path is not None:
        answer = api.ask("GET", path).json
        assert len(answer["instances"]) <= 2
        seen += [item["id"][:8] for item in answer["instances"]]
        path = answer.get("next")
    assert seen == [f"{number:08d}" for number in range(5)]
    for query, count in (
        ("tag=env=prod", 2),
        ("tag=env", 5),
        ("tag=env=prod&tag=a%2Bb=c", 0),
        ("address=10.1.0.11", 1),
        ("address=10.1.0.11&network_id=net-2", 0),
        ("network_id=net-1", 5),
        ("name=web%201", 5),
        ("hostname=web-1&project_id=p1", 5),
        ("project_id=p2", 0),
        ("host=node-1", 0),
        ("availability_zone=z", 0),
        ("marker=00000003-1111-4111-8111-111111111111", 1),
    ):
        assert len(api.ask("GET", f"{URL}?{query}").json["instances"]) == count, query


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("marker=x", "marker"),
        ("marker=" + TWO, "marker"),
        ("address=10.1.0", "address"),
        ("tag=a%00", "tag"),
        ("tag==x", "tag"),
        ('tag=a"b', "tag"),
        ("name=", "name"),
        ("name=%00", "name"),
        ("sort=x", "sort"),
        ("%ff=x", ""),
        ("&".join(["tag=a"] * 100), ""),
    ],
)
def test_a_bad_query_names_its_parameter(api: Api, query: str, field: str) -> None:
    """A parameter that is unknown, doubled or no value is 400 with its name."""
    assert_is_error(api.ask("GET", f"{URL}?{query}"), 400, field)


def test_concurrent_patches_are_all_kept(api: Api) -> None:
    """Patches of different fields at the same time lose nothing: each is made again if need be."""
    api.ask("POST", URL, document(tags={}))
    barrier = threading.Barrier(6)
    answers = []

    def run(number: int) -> None:
        own = Api(api.database)
        barrier.wait(30)
        answers.append(own.ask("PATCH", f"{URL}/{ONE}", {"tags": {f"t{number}": "x"}}).status_int)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 6
    shown = api.ask("GET", f"{URL}/{ONE}").json
    assert shown["tags"] == {f"t{number}": "x" for number in range(6)}
    assert shown["version"] == 7


def test_an_unreachable_postgresql_is_503(tmp_path: Path) -> None:
    """A PostgreSQL that does not answer is the same to a client as a file that is gone."""
    away = Api(Database(f"postgresql+psycopg://mooring@/mooring?host={tmp_path}"))
    response = away.ask("GET", f"{URL}/{ONE}")
    assert_is_error(response, 503)
    assert response.headers["Retry-After"] == "5"
    assert str(tmp_path) not in response.text


def test_a_body_that_ends_early_is_refused(lite: Api) -> None:
    """A client that hangs up within its body changes nothing, whatever it sent so far."""
    before = lite.dump()
    environ = {
        "CONTENT_LENGTH": "9999",
        "CONTENT_TYPE": "application/json",
        "wsgi.input": BytesIO(json.dumps(document()).encode()),
    }
    response = lite.do_request(
        Request.blank(URL, environ=environ, method="POST"), expect_errors=True
    )
    assert_is_error(response, 400, "")
    assert lite.dump() == before


def test_the_log_says_who_changed_what_and_not_what_is_in_it(
    lite: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is a line with user, instance and request id; what changed nothing is none."""
    lines: list[dict[str, Any]] = []

    class Log:
        def info(self, event: str, **fields: Any) -> None:
            lines.append({"event": event, **fields})

    monkeypatch.setattr(operators, "LOG", Log())
    created = lite.ask("POST", URL, document(host="node-1"))
    lite.ask("PUT", f"{URL}/{ONE}", document(host="node-1"))
    lite.ask("PATCH", f"{URL}/{ONE}", {"name": "x"}, by=BOB)
    lite.ask("PATCH", f"{URL}/{ONE}", {"name": 5}, by=BOB)
    lite.ask("DELETE", f"{URL}/{ONE}/password", by=ADMIN)
    lite.ask("DELETE", f"{URL}/{ONE}")
    assert [(line["event"], line["user"]) for line in lines] == [
        ("instance created", "alice"),
        ("instance changed", "bob"),
        ("password reset", "ann"),
        ("instance deleted", "alice"),
    ]
    assert lines[0]["request_id"] == created.headers["X-Request-ID"]
    assert {line["instance"] for line in lines} == {ONE}
    text = json.dumps(lines)
    assert SECRET_TEXT not in text
    assert "AAAAKEY" not in text


def test_endless_competition_ends_in_503(lite: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that others always overtake gives up after a bounded number of attempts."""
    lite.ask("POST", URL, document())
    overtaken = []
    replace = Store.replace

    def overtake(store: Store, old: Any, instance: Any) -> Any:
        current = store.get(ONE)
        assert current is not None
        overtaken.append(current.version)
        other = dataclasses.replace(current.instance, launch_index=len(overtaken))
        replace(store, current, other)
        return replace(store, old, instance)

    monkeypatch.setattr(Store, "replace", overtake)
    response = lite.ask("PATCH", f"{URL}/{ONE}", {"name": "never"})
    assert_is_error(response, 503)
    assert response.headers["Retry-After"]
    assert len(overtaken) == operators.ATTEMPTS


# Bodies that nobody would write


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["10.1.0.4", "10.1.0.0/24", "::1", "fe80::1%eth0", ONE, "\n", "\x00", "null"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    yield path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, inner in items:
        yield from places(inner, (*path, name))


PLACES = [place for place in places(document()) if place]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One database for all examples, with one instance in it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/mooring.db"
    upgrade(url)
    database = Database(url)
    api = Api(database)
    api.ask("POST", URL, document())
    yield api
    database.close()


def check_fuzzed(api: Api, method: str, body: bytes) -> None:
    """Send it; a refusal is well-formed and changes nothing, a success is undone."""
    path = URL if method == "POST" else f"{URL}/{ONE}"
    before = api.dump()
    response = api.ask(method, path, body=body)
    if response.status_int in (200, 201):
        shown = api.ask("GET", f"{URL}/{response.json['id']}?include=user_data")
        assert shown.status_int == 200
        again = api.ask("PUT", f"{URL}/{response.json['id']}", shown.json)
        assert again.json["version"] == response.json["version"], "not idempotent"
        if response.json["id"] == ONE:
            api.ask("PUT", path, document())
        else:
            assert api.ask("DELETE", f"{URL}/{response.json['id']}").status_int == 204
        return
    assert response.status_int in (400, 409, 413), response.text
    field = response.json["error"].get("field")
    assert isinstance(field, str)
    assert_is_error(response, response.status_int, field)
    assert api.dump() == before


FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(method=st.sampled_from(["POST", "PUT", "PATCH"]), body=st.binary(max_size=200))
@example(method="POST", body=b'{"a":"\xed\xa0\x80"}')
def test_any_bytes_are_answered_without_a_500(fuzzed: Api, method: str, body: bytes) -> None:
    """Bytes of no meaning are refused."""
    check_fuzzed(fuzzed, method, body)


@FUZZ
@given(
    method=st.sampled_from(["POST", "PUT", "PATCH"]),
    place=st.sampled_from(PLACES),
    value=VALUES,
    name=st.none() | st.text(max_size=8),
)
def test_any_damage_to_a_document_is_answered_without_a_500(
    fuzzed: Api, method: str, place: tuple[Any, ...], value: Any, name: str | None
) -> None:
    """A good document with any one value replaced, or one more name, is taken or refused."""
    body = document()
    if method == "POST":
        body["id"] = TWO
        body["interfaces"][0]["network_id"] = "net-2"
    holder: Any = body
    for step in place[:-1]:
        holder = holder[step]
    if name is not None and isinstance(holder, dict):
        holder[name] = value
    else:
        holder[place[-1]] = value
    text = json.dumps(body)
    assume(len(text) < BODY_LIMIT)
    check_fuzzed(fuzzed, method, text.encode())


@pytest.fixture
def logging_kept() -> Iterator[None]:
    """Undo what an application's start does to logging, which is the whole process's."""
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


def conf(tmp_path: Path, url: str) -> str:
    """A mooring.conf with this database."""
    path = tmp_path / "mooring.conf"
    path.write_text(f"[database]\nurl = {url}\n")
    return str(path)


def test_the_factory_starts_over_a_good_database(
    tmp_path: Path, sqlite_url: str, logging_kept: None
) -> None:
    """The application answers, and readiness has a check of its database."""
    app = app_factory({}, config=conf(tmp_path, sqlite_url))
    assert callable(app)
    assert readiness.failing() == {}
    (tmp_path / "mooring.db").rename(tmp_path / "away.db")
    reasons = readiness.failing()
    name = "database of the operators' API"
    assert "not available" in reasons[name]
    readiness.unregister(name)


def test_the_factory_refuses_what_it_cannot_serve(tmp_path: Path, logging_kept: None) -> None:
    """An empty database and a misspelt key stop the start; a database that is away does not."""
    app_factory({}, config=conf(tmp_path, f"sqlite:///{tmp_path}/missing.db"))
    readiness.unregister("database of the operators' API")
    (tmp_path / "empty.db").touch()
    with pytest.raises(ConfigError, match="mooring db upgrade"):
        app_factory({}, config=conf(tmp_path, f"sqlite:///{tmp_path}/empty.db"))
    with pytest.raises(TypeError, match="confg"):
        app_factory({}, confg="x")  # type: ignore[call-arg]
