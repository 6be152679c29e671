"""What an instance is answered, statuses and bodies, on a real database."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webob
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core import revision
from services.core.database import Database, Unavailable
from services.core.errors import Failure
from services.core.identity import InstanceClaim
from services.core.revision import RevisionWatch
from services.metadata.application import Metadata
from services.metadata.cache import Cache
from services.metadata.model import Instance
from services.metadata.pages import Settings
from services.metadata.store import Store
from services.metadata.tokens import Tokens

ID = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
TOKENS = Tokens([b"t" * 32])


def document(instance_id: str = ID, **more: Any) -> dict[str, Any]:
    return {
        "id": instance_id,
        "project_id": "p",
        "name": "web",
        "host": "host-1",
        "user_data": base64.b64encode(b"#!/bin/sh\n\x00\xff").decode(),
        "interfaces": [
            {
                "network_id": "net",
                "mac": "fa:16:3e:00:00:01",
                "subnets": [{"cidr": "10.1.0.0/24", "addresses": [{"ip_address": "10.1.0.4"}]}],
            }
        ],
        **more,
    }


class Served:
    """An application over a database, and requests to it as the filters would leave them."""

    def __init__(self, url: str, *, by_address: bool = False, nova: bool = False) -> None:
        self.database = Database(url)
        self.store = Store(self.database)
        self.settings = Settings(nova_compatible=nova)
        self.watch = RevisionWatch(self.database)
        self.cache = Cache(self.store, self.watch, self.settings, limit=1 << 20, stale_limit=100.0)
        self.application = Metadata(
            self.cache, self.store, TOKENS, self.settings, by_address=by_address
        )

    def create(self, **more: Any) -> None:
        self.store.create(Instance.from_document(document(**more)))

    def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        instance: str = ID,
        project: str = "p",
        host: str | None = "host-1",
        version: int = 2,
        address: str = "10.1.0.4",
    ) -> webob.Response:
        request = webob.Request.blank("/", method=method, headers=headers or {}, body=body)
        request.environ["PATH_INFO"] = path
        request.environ["mooring.gatekeeper"] = True
        request.environ["mooring.client_address"] = address
        request.environ["mooring.instance"] = InstanceClaim(
            instance, project, address, "net", host, version
        )
        if method != "GET" or version != 2:
            return request.get_response(self.application)
        # What is ready is what would be answered, and nothing is ready that would be refused.
        try:
            ready = self.ready(request.environ)
        except (Failure, Unavailable):
            ready = None
        try:
            answer = request.get_response(self.application)
        except Failure:
            assert ready is None
            raise
        if ready is not None:
            headers, ready_body = ready
            assert (answer.status_code, answer.headerlist) == (200, list(headers))
            assert answer.body == ready_body or b"random_seed" in answer.body
            assert len(answer.body) == len(ready_body)
        return answer

    def ready(self, environ: dict[str, Any]) -> Any:
        """What the application has ready for this request."""
        return self.application.answer_at_once(environ["mooring.instance"], environ)

    def refused(self, path: str, method: str = "GET", **more: Any) -> Failure:
        with pytest.raises(Failure) as failure:
            self.ask(path, method, **more)
        return failure.value

    def close(self) -> None:
        self.watch.close()
        self.database.close()


@pytest.fixture
def serve(sqlite_url: str) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(**options: Any) -> Served:
        made.append(Served(sqlite_url, **options))
        return made[-1]

    yield make
    for served in made:
        served.close()


def test_user_data_is_byte_for_byte(serve: Callable[..., Served]) -> None:
    """Any bytes come out as they went in, in both trees."""
    served = serve()
    served.create()
    for path in ("/latest/user-data", "/openstack/latest/user_data"):
        assert served.ask(path).body == b"#!/bin/sh\n\x00\xff"


@pytest.mark.parametrize("tokens", ["optional", "required"])
def test_what_a_boot_asks_for_is_ready(serve: Callable[..., Served], tokens: str) -> None:
    """Once an instance is known its pages are ready, with a token where one is demanded."""
    served = serve()
    served.create(options={"http_tokens": tokens})
    claim = InstanceClaim(ID, "p", "10.1.0.4", "net", "host-1", 2)
    headers = {"HTTP_X_AWS_EC2_METADATA_TOKEN": TOKENS.make(ID, 60)}
    for path in ("/openstack/2018-08-27/meta_data.json", "/latest/meta-data/local-ipv4"):
        environ = {"PATH_INFO": path, "mooring.instance": claim}
        assert served.ready({**environ, **headers}) is not None
        if tokens == "optional":
            assert served.ready(environ) is not None
        else:
            with pytest.raises(Failure):
                served.ready(environ)


def test_the_random_seed_is_fresh(serve: Callable[..., Served]) -> None:
    """Two answers never hold the same seed, and the length that is said is the length sent."""
    served = serve()
    served.create()
    one, two = (served.ask("/openstack/latest/meta_data.json") for _ in range(2))
    seeds = [json.loads(answer.body)["random_seed"] for answer in (one, two)]
    assert seeds[0] != seeds[1]
    assert len(base64.b64decode(seeds[0])) == 512
    assert int(one.headers["Content-Length"]) == len(one.body)


@pytest.mark.parametrize(
    "who",
    [
        {"instance": OTHER},
        {"project": "q"},
        {"host": "host-2"},
    ],
)
def test_nobody_and_somebody_else_look_the_same(
    serve: Callable[..., Served], who: dict[str, str]
) -> None:
    """An unknown instance, another project's and another host's are one and the same 404."""
    served = serve()
    served.create()
    failure = served.refused("/latest/meta-data/instance-id", **who)
    assert (failure.status, failure.message) == (404, "The resource could not be found.")


def test_during_a_move_both_hosts_may_ask(serve: Callable[..., Served]) -> None:
    """next_host is authorised beside host, a third is not."""
    served = serve()
    served.create(next_host="host-2")
    assert served.ask("/latest/meta-data/local-ipv4", host="host-2").body == b"10.1.0.4"
    assert served.refused("/latest/meta-data/local-ipv4", host="host-3").status == 404


def test_a_request_without_signature_is_nobody_s(serve: Callable[..., Served]) -> None:
    """A pipeline without the signature filter serves nothing."""
    served = serve()
    served.create()
    request = webob.Request.blank("/latest/user-data")
    request.environ["mooring.gatekeeper"] = True
    with pytest.raises(Failure) as failure:
        request.get_response(served.application)
    assert failure.value.status == 403


def test_a_token_is_given_and_demanded(serve: Callable[..., Served]) -> None:
    """With http_tokens required: 401 without, with a bad or another's token, 200 with ours."""
    served = serve()
    served.create(options={"http_tokens": "required", "http_put_response_hop_limit": 3})
    answer = served.ask("/latest/api/token", "PUT", headers={TTL: "60"})
    assert answer.headers[TTL] == "60"
    assert answer.headers["X-Mooring-Hop-Limit"] == "3"
    for path in ("/", "/latest/user-data", "/openstack/latest/meta_data.json", "/nothing"):
        assert served.refused(path).status == 401
        assert served.refused(path, headers={TOKEN: "x"}).status == 401
        assert served.refused(path, headers={TOKEN: TOKENS.make(OTHER, 60)}).status == 401
    headers = {TOKEN: answer.text}
    assert served.ask("/openstack/latest/user_data", headers=headers).status_code == 200
    assert served.refused("/nothing", headers=headers).status == 404


def test_a_bad_token_is_refused_where_none_is_demanded(serve: Callable[..., Served]) -> None:
    """As AWS: who shows a token must show a good one."""
    served = serve()
    served.create()
    assert served.refused("/latest/user-data", headers={TOKEN: ""}).status == 401
    assert served.ask("/latest/user-data").status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/latest/api/token", {}, 400),
        ("/latest/api/token", {TTL: "0"}, 400),
        ("/latest/api/token", {TTL: "21601"}, 400),
        ("/latest/api/token", {TTL: "-5"}, 400),
        ("/latest/api/token", {TTL: "1e3"}, 400),
        ("/latest/api/token", {TTL: "٣"}, 400),
        ("/latest/api/token", {TTL: "60", "X-Mooring-Forwarded": "1"}, 403),
        ("/2021-03-23/api/token", {TTL: "60"}, 403),
        ("/latest/meta-data/mac", {TTL: "60"}, 405),
        ("/nothing", {TTL: "60"}, 404),
    ],
)
def test_a_token_is_refused(
    serve: Callable[..., Served], path: str, headers: dict[str, str], status: int
) -> None:
    """AWS's statuses for PUT: 400 for the time to live, 403 for a dated path or a proxy."""
    served = serve()
    served.create()
    latin = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    assert served.refused(path, "PUT", headers=latin).status == status


def test_a_switched_off_endpoint_is_403_for_everything(serve: Callable[..., Served]) -> None:
    """http_endpoint disabled: nothing is read and no token given."""
    served = serve()
    served.create(options={"http_endpoint": "disabled"})
    assert served.refused("/latest/user-data").status == 403
    assert served.refused("/latest/api/token", "PUT", headers={TTL: "60"}).status == 403
    password = "/openstack/latest/password"
    assert served.refused(password, "POST", body=b"x").status == 403


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/latest/user-data", "GET, HEAD"),
        ("/openstack/latest/password", "GET, HEAD, POST"),
        ("/latest/api/token", "PUT"),
    ],
)
@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "BREW"])
def test_other_methods_are_told_what_is_allowed(
    serve: Callable[..., Served], path: str, allow: str, method: str
) -> None:
    """405 with Allow (RFC 9110)."""
    served = serve()
    served.create()
    failure = served.refused(path, method)
    assert failure.status == 405
    assert dict(failure.headers) == {"Allow": allow}


def test_head_says_what_get_would(serve: Callable[..., Served]) -> None:
    """HEAD has GET's headers and no body."""
    served = serve()
    served.create()
    for path in ("/latest/user-data", "/openstack/latest/meta_data.json", "/latest/meta-data"):
        head, get = served.ask(path, "HEAD"), served.ask(path)
        assert head.body == b""
        assert head.headers["Content-Length"] == str(len(get.body))
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_the_password_is_set_once(serve: Callable[..., Served]) -> None:
    """Empty at first, set once, 409 at once afterwards, and it stays what it was."""
    served = serve()
    served.create()
    path = "/openstack/2013-04-04/password"
    assert served.ask(path).body == b""
    assert served.ask(path, "POST", body=b"").status_code == 200
    assert served.ask(path, "POST", body=b"first").status_code == 200
    assert served.refused(path, "POST", body=b"second").status == 409
    assert served.ask(path).body == b"first"


@pytest.mark.parametrize("body", [b"x" * 1021, b"\xff\xfe"])
def test_a_bad_password_sets_nothing(serve: Callable[..., Served], body: bytes) -> None:
    """Too long or not UTF-8: 400, and a good one can still be set."""
    served = serve()
    served.create()
    path = "/openstack/latest/password"
    assert served.refused(path, "POST", body=body).status == 400
    assert served.ask(path, "POST", body=b"good").status_code == 200


def test_of_many_passwords_one_wins(serve: Callable[..., Served]) -> None:
    """Twenty at once: one 200, nineteen 409, and the one that won is what stands."""
    served = serve()
    served.create()
    results: list[tuple[int, bytes]] = []

    def post(number: int) -> None:
        body = b"password-%d" % number
        try:
            status = served.ask("/openstack/latest/password", "POST", body=body).status_code
        except Failure as failure:
            status = failure.status
        results.append((status, body))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [body for status, body in results if status == 200]
    assert len(won) == 1
    assert [status for status, _ in results].count(409) == 19
    assert served.ask("/openstack/latest/password").body == won[0]


def test_a_change_is_seen_by_every_worker_at_once(serve: Callable[..., Served]) -> None:
    """Two workers' caches show a change in their very next answer."""
    one, two = serve(), serve()
    one.create()
    path = "/latest/meta-data/hostname"
    assert one.ask(path).body == two.ask(path).body == b"web.novalocal"
    for turn in range(5):
        old = one.store.get(ID)
        assert old is not None
        changed = Instance.from_document({**document(), "hostname": f"web-{turn}"})
        one.store.replace(old, changed)
        expected = f"web-{turn}.novalocal".encode()
        assert one.ask(path).body == two.ask(path).body == expected
    gone = one.store.get(ID)
    assert gone is not None
    one.store.delete(gone)
    assert two.refused(path).status == 404


def test_without_the_database_what_is_known_is_served(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known: 200. Unknown: 503 with Retry-After, not 404. Readiness says why. And back again."""
    monkeypatch.setattr(revision, "FILE_SECONDS", 0.0)
    served = serve()
    served.create()
    served.create(instance_id=OTHER, interfaces=[])
    assert served.ask("/latest/meta-data/local-ipv4").body == b"10.1.0.4"
    assert served.cache.unavailable() is None
    path = served.database.sqlite_path
    assert path is not None
    away = Path(f"{path}.away")
    path.rename(away)
    assert served.ask("/latest/meta-data/local-ipv4").body == b"10.1.0.4"
    assert served.ask("/latest/meta-data/mac").status_code == 200
    failure = served.refused("/latest/meta-data/local-ipv4", instance=OTHER)
    assert failure.status == 503
    assert dict(failure.headers)["Retry-After"] == "5"
    assert served.refused("/openstack/latest/password", "POST", body=b"x").status == 503
    assert "database is not available" in (served.cache.unavailable() or "")
    away.rename(path)
    assert served.ask("/latest/meta-data/instance-id", instance=OTHER).status_code == 200
    assert served.cache.unavailable() is None


def test_in_the_flat_mode_the_address_is_the_instance(serve: Callable[..., Served]) -> None:
    """The one instance of an address is served; none, or two of one address, are 404."""
    served = serve(by_address=True)
    served.create()
    assert served.ask("/latest/meta-data/local-ipv4").body == b"10.1.0.4"
    assert served.refused("/latest/user-data", address="10.1.0.5").status == 404
    other = document(OTHER)["interfaces"][0] | {"network_id": "another"}
    served.create(instance_id=OTHER, interfaces=[other])
    assert served.refused("/latest/user-data").status == 404


def test_behind_a_neutron_agent_statuses_are_those_it_passes_on(
    serve: Callable[..., Served],
) -> None:
    """Signature version 1: 401 and 405, which Neutron makes a 500 of, become 403 and 400."""
    served = serve()
    served.create(options={"http_tokens": "required"})
    assert served.refused("/latest/user-data", version=1).status == 403
    headers = {TOKEN: TOKENS.make(ID, 60)}
    assert served.refused("/latest/user-data", "DELETE", headers=headers, version=1).status == 400


def test_nova_compatible_answers_as_nova(serve: Callable[..., Served]) -> None:
    """Any method reads, the password says text/html and 400, and there is no token endpoint."""
    served = serve(nova=True)
    served.create()
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert served.ask("/latest/meta-data/local-ipv4", method).body == b"10.1.0.4"
    assert served.refused("/latest/api/token", "PUT", headers={TTL: "60"}).status == 404
    assert served.refused("/latest/api/token").status == 404
    password = "/openstack/latest/password"
    for method in ("PUT", "DELETE", "HEAD"):
        failure = served.refused(password, method)
        assert (failure.status, failure.message) == (400, "GET and POST only are supported.")
    assert served.ask(password).headers["Content-Type"] == "text/html; charset=UTF-8"


def test_nova_compatible_weakens_no_option(serve: Callable[..., Served]) -> None:
    """An instance that demands tokens gets them in this mode too."""
    served = serve(nova=True)
    served.create(options={"http_tokens": "required"})
    token = served.ask("/latest/api/token", "PUT", headers={TTL: "60"}).text
    assert served.refused("/latest/user-data").status == 401
    assert served.ask("/latest/user-data", headers={TOKEN: token}).status_code == 200


@pytest.mark.parametrize("nova", [False, True])
def test_no_request_raises(sqlite_url: str, nova: bool) -> None:
    """Whatever method, path and headers: an answer or a Failure below 500."""
    served = Served(sqlite_url, nova=nova)
    served.create()
    parts = st.sampled_from(
        [
            *("latest", "openstack", "meta-data", "user-data", "api", "token", "password", ".."),
            *("", "2009-04-04", "instance-id", "public-keys", "0", "network", "content", "é"),
        ]
    )
    paths = st.one_of(
        st.lists(parts, max_size=6).map(lambda found: "/" + "/".join(found)), st.text()
    )
    latin = st.text(st.characters(max_codepoint=255), max_size=80)

    @settings(max_examples=300, deadline=None)
    @given(paths, st.sampled_from(["GET", "HEAD", "PUT", "POST", "X"]), latin, latin)
    def check(path: str, method: str, token: str, ttl: str) -> None:
        environ = {
            "PATH_INFO": path.encode("utf-8", "surrogatepass").decode("latin-1"),
            "REQUEST_METHOD": method,
            "mooring.gatekeeper": True,
            "mooring.instance": InstanceClaim(ID, "p", "10.1.0.4", "net", "host-1", 2),
            "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS": ttl,
            "wsgi.input": webob.Request.blank("/", body=ttl.encode()).body_file,
        }
        if token:
            environ["HTTP_X_AWS_EC2_METADATA_TOKEN"] = token
        try:
            b"".join(served.application(environ, lambda *_: lambda _: None))
            status = 200
        except Failure as failure:
            status = failure.status
        assert status < 500

    check()
    served.close()
