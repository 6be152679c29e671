"""The public application: lists, certificates and OCSP as a client of plain HTTP meets them."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ca import ceremony, keystore, ocsp, public, service
from services.ca.authority import Actor, Authority
from services.ca.crl import CRL_LIFETIME, KEPT_AFTER_END, ROOT_CRL_LIFETIME
from services.ca.hierarchy import create_hierarchy
from services.ca.keys import generate_key
from services.ca.keystore import RetiredIssuer, Urls
from services.ca.ledger import Ledger
from services.ca.profile_file import SHIPPED
from services.ca.publication import (
    LATE_INTERVALS,
    ROOT_CRITICAL,
    ROOT_WARNING,
    Follower,
    Publisher,
)
from services.ca.request import make_request
from services.core import readiness
from services.core.database import Database, Unavailable
from services.core.errors import Failure

DAY = timedelta(days=1)
ADMIN = Actor("root", frozenset({"mooring:admins"}), "192.0.2.1", "req-1", "certificate")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def seconds(self) -> int:
        """max-age of Cache-Control."""
        (age,) = [
            each.strip().removeprefix("max-age=")
            for each in self.headers["Cache-Control"].split(",")
            if "max-age=" in each
        ]
        return int(age)


class Site:
    """A certificate service without HTTP in front: ask it with `get`, `post` and `ask`."""

    def __init__(self, url: str, directory, now: datetime) -> None:
        self.now = now
        self.directory = directory
        self.authorities = ceremony.create(
            directory,
            "Example",
            passphrase=lambda: b"passphrase of a test",
            urls=Urls.below("http://ca.example.test"),
            now=now,
        )
        self.database = Database(url)
        self.ledger = Ledger(self.database)
        self.authority = Authority(self.authorities, self.ledger, SHIPPED, clock=self.clock)
        self.app = self.replica()

    def clock(self) -> datetime:
        return self.now

    def replica(self) -> public.Public:
        """Another process's application over the same database."""
        self.publisher = Publisher(
            self.ledger, self.authorities, directory=self.directory, clock=self.clock
        )
        self.authority.on_change = self.publisher.revoked
        responder = ocsp.Responder(
            self.authorities.all(),
            public.certify_with(self.authority),
            public.ledger_lookup(self.ledger),
        )
        return public.Public(self.publisher, self.authorities, responder)

    @property
    def id(self) -> str:
        return keystore.authority_id(self.authorities.active.certificate)

    def issue(self, name: str = "a.example.test"):
        key = generate_key()
        request = make_request(key.public_key(), dns_names=[name])
        return self.authority.issue("server", request, ADMIN).certificate

    def ask(self, method: str, path: str, body: bytes = b"", app=None, **environ) -> Answer:
        """One request; a Failure is an answer of its status."""
        full: dict[str, object] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "mooring.gatekeeper": True,
            **environ,
        }
        setup_testing_defaults(full)
        started = []
        try:
            pieces = (app or self.app)(
                full, lambda status, headers: started.append((status, headers))
            )
        except Failure as failure:
            return Answer(failure.status, dict(failure.headers), failure.message.encode())
        ((status, headers),) = started
        return Answer(int(status[:3]), dict(headers), b"".join(pieces))

    def get(self, path: str, **environ) -> Answer:
        return self.ask("GET", path, **environ)

    def post(self, body: bytes, **environ) -> Answer:
        environ.setdefault("CONTENT_TYPE", "application/ocsp-request")
        return self.ask("POST", "/ocsp", body, **environ)

    def question(self, certificate, nonce: bytes | None = None) -> bytes:
        builder = library.OCSPRequestBuilder().add_certificate(
            certificate, self.authorities.active.certificate, hashes.SHA1()
        )
        if nonce:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.build().public_bytes(Encoding.DER)


@pytest.fixture
def site(database_url, tmp_path, now):
    made = Site(database_url, tmp_path / "ca", now)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, now):
    """One site for questions that change nothing."""
    from services.core.database import upgrade

    directory = tmp_path_factory.mktemp("public")
    url = f"sqlite:///{directory}/mooring.db"
    upgrade(url)
    made = Site(url, directory / "ca", now)
    yield made
    made.database.close()


def serials(body: bytes) -> set[int]:
    return {each.serial_number for each in x509.load_der_x509_crl(body)}


# ---- metrics ------------------------------------------------------------------------------------


def measured(answer: Answer) -> dict[str, int]:
    """The values by name and labels; every line is one of the text format."""
    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    lines = answer.body.decode().splitlines()
    kinds = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    values = {}
    for line in lines:
        if line.startswith("# "):
            continue
        name, value = line.rsplit(" ", 1)
        assert re.fullmatch(r'[a-z_]+(\{[a-z]+="[a-z0-9-]+"(,[a-z]+="[a-z0-9-]+")*\})?', name)
        assert name.partition("{")[0] in kinds
        assert name not in values
        values[name] = int(value)
    return values


def test_metrics_tell_ends_states_and_what_was_decided(site):
    """Every end that locks somebody out, what the lists lack, and counts from the ledger."""
    leaf = site.issue()
    site.issue("b.example.test")
    site.publisher.run()
    first = measured(site.get("/metrics"))
    root, active = site.authorities.root, site.authorities.active.certificate
    end, listed = "mooring_ca_authority_end_timestamp_seconds", "mooring_ca_list_severity"
    assert first[f'{end}{{authority="root"}}'] == root.not_valid_after_utc.timestamp()
    assert first[f'{end}{{authority="{site.id}"}}'] == active.not_valid_after_utc.timestamp()
    ends = "mooring_ca_list_end_timestamp_seconds"
    root_crl = x509.load_pem_x509_crl(site.authorities.root_crl_pem)
    assert first[f'{ends}{{list="root"}}'] == int(root_crl.next_update_utc.timestamp())
    expected = (site.now + CRL_LIFETIME).timestamp()
    assert abs(first[f'{ends}{{list="{site.id}"}}'] - expected) < 600
    assert first["mooring_ca_database_up"] == 1
    assert first['mooring_ca_certificates{profile="server",state="issued"}'] == 2
    assert (first[f'{listed}{{list="root"}}'], first[f'{listed}{{list="{site.id}"}}']) == (0, 0)

    site.authority.on_change = lambda _authority: None
    site.authority.revoke(site.id, leaf.serial_number, "superseded", ADMIN)
    second = measured(site.get("/metrics"))
    assert second[f'{listed}{{list="{site.id}"}}'] == 1
    assert second['mooring_ca_certificates{profile="server",state="revoked"}'] == 1
    assert second["mooring_ca_audit_entries_total"] > first["mooring_ca_audit_entries_total"]
    site.now += timedelta(days=340)
    third = measured(site.get("/metrics"))
    assert third[f'{listed}{{list="root"}}'] == 1
    assert 'mooring_ca_certificates{profile="server",state="issued"}' not in third


def test_metrics_without_a_database_are_those_that_need_none(site, monkeypatch):
    """The ends of certificates and of the root's list, and that the database is away."""

    def away():
        raise Unavailable("away")

    monkeypatch.setattr(site.database, "read", away)
    values = measured(site.get("/metrics"))
    assert values["mooring_ca_database_up"] == 0
    assert 'mooring_ca_list_end_timestamp_seconds{list="root"}' in values
    assert "mooring_ca_audit_entries_total" not in values


def test_metrics_are_for_the_inside_alone(quiet):
    """What NGINX has been asked for says whom for, and is told that there is nothing."""
    assert quiet.get("/metrics", HTTP_X_FORWARDED_FOR="192.0.2.1").status == 404
    assert quiet.ask("POST", "/metrics").status == 405
    assert quiet.ask("HEAD", "/metrics").body == b""


# ---- lists --------------------------------------------------------------------------------------


def test_lists_have_their_types_and_may_be_kept_for_minutes(quiet):
    """DER and PEM, complete and delta: RFC 2585 types, ETag, Last-Modified, a short max-age."""
    for path, content_type in (
        (f"/crl/{quiet.id}.crl", "application/pkix-crl"),
        (f"/crl/{quiet.id}-delta.crl", "application/pkix-crl"),
        (f"/crl/{quiet.id}.pem", "application/x-pem-file"),
        (f"/crl/{quiet.id}-delta.pem", "application/x-pem-file"),
        ("/crl/root.crl", "application/pkix-crl"),
        ("/crl/root.pem", "application/x-pem-file"),
    ):
        answer = quiet.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert answer.seconds() == public.LIST_SECONDS
        assert parsedate_to_datetime(answer.headers["Last-Modified"]) <= quiet.now
        pem = path.endswith(".pem")
        crl = (x509.load_pem_x509_crl if pem else x509.load_der_x509_crl)(answer.body)
        delta = any(isinstance(e.value, x509.DeltaCRLIndicator) for e in crl.extensions)
        assert delta is ("-delta" in path)


def test_pointers_in_certificates_lead_to_what_is_served(quiet):
    """The addresses that a leaf, the intermediate and a list carry, minus the host."""
    leaf = quiet.issue()
    intermediate = quiet.authorities.active.certificate

    def crl_of(certificate) -> str:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        return points[0].full_name[0].value.removeprefix("http://ca.example.test")

    def access(certificate, method) -> str:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
        (url,) = [e.access_location.value for e in found.value if e.access_method == method]
        return url.removeprefix("http://ca.example.test")

    issuers = x509.oid.AuthorityInformationAccessOID.CA_ISSUERS
    crl = x509.load_der_x509_crl(quiet.get(crl_of(leaf)).body)
    assert crl.issuer == leaf.issuer
    root_crl = x509.load_der_x509_crl(quiet.get(crl_of(intermediate)).body)
    assert root_crl.issuer == intermediate.issuer
    for certificate in (leaf, intermediate):
        answer = quiet.get(access(certificate, issuers))
        assert answer.headers["Content-Type"] == "application/pkix-cert"
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(answer.body))
    freshest = crl.extensions.get_extension_for_class(x509.FreshestCRL).value
    url = freshest[0].full_name[0].value.removeprefix("http://ca.example.test")
    assert quiet.get(url).status == 200
    assert access(leaf, x509.oid.AuthorityInformationAccessOID.OCSP) == "/ocsp"


def test_certificates_and_the_bundle(quiet):
    """The root by its id and by name, and NGINX's trust file."""
    root = quiet.get("/ca/root.cer")
    assert root.body == quiet.get(f"/ca/{keystore.authority_id(quiet.authorities.root)}.cer").body
    assert x509.load_der_x509_certificate(root.body) == quiet.authorities.root
    assert root.seconds() == public.CERTIFICATE_SECONDS
    bundle = quiet.get("/ca/bundle.pem")
    assert bundle.body == quiet.authorities.bundle_pem()
    assert bundle.headers["Content-Type"] == "application/x-pem-file"


def test_a_client_that_has_it_gets_304(quiet):
    """If-None-Match before If-Modified-Since (RFC 9110 section 13.2.2)."""
    path = f"/crl/{quiet.id}.crl"
    first = quiet.get(path)
    tag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    for environ in (
        {"HTTP_IF_NONE_MATCH": tag},
        {"HTTP_IF_NONE_MATCH": f'"other", W/{tag}'},
        {"HTTP_IF_NONE_MATCH": "*"},
        {"HTTP_IF_MODIFIED_SINCE": modified},
    ):
        answer = quiet.get(path, **environ)
        assert (answer.status, answer.body) == (304, b"")
        assert {"ETag", "Cache-Control"} <= set(answer.headers)
        assert "Content-Length" not in answer.headers
    for environ in (
        {"HTTP_IF_NONE_MATCH": '"other"', "HTTP_IF_MODIFIED_SINCE": modified},
        {"HTTP_IF_MODIFIED_SINCE": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"HTTP_IF_MODIFIED_SINCE": "yesterday"},
        {"HTTP_IF_MODIFIED_SINCE": "Mon, 99 Jan 99999 00:00:00 GMT"},
    ):
        assert quiet.get(path, **environ).status == 200


def test_head_is_get_without_a_body(quiet):
    """The same headers, Content-Length among them."""
    for path in (f"/crl/{quiet.id}.crl", "/ca/root.cer", "/ca/bundle.pem"):
        get, head = quiet.get(path), quiet.ask("HEAD", path)
        assert (head.status, head.headers, head.body) == (200, get.headers, b"")


def test_other_methods_and_paths(quiet):
    """405 with Allow on what is there, 404 elsewhere."""
    for path in (f"/crl/{quiet.id}.crl", "/ca/root.cer", "/crl/root.pem"):
        answer = quiet.ask("POST", path)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert quiet.get("/ocsp").headers["Allow"] == "POST"
    assert quiet.ask("DELETE", "/ocsp/MA==").headers["Allow"] == "GET, HEAD"
    for path in (
        "/",
        "/crl/",
        f"/crl/{'0' * 40}.crl",
        f"/crl/{quiet.id}.der",
        f"/crl/{quiet.id.upper()}.crl",
        f"/crl/{quiet.id}.crl\n",
        f"/crl/{quiet.id}.crl/",
        "/crl/root-delta.crl",
        f"/crl/{keystore.authority_id(quiet.authorities.root)}-delta.crl",
        "/ca/root.pem",
        "/ocspx",
        "/../root.key",
    ):
        assert quiet.get(path).status == 404


def test_nothing_is_served_without_the_gatekeeper(quiet):
    """The last line of defence of a wrong pipeline."""
    assert quiet.ask("GET", "/ca/root.cer", **{"mooring.gatekeeper": None}).status == 500


def test_a_revocation_is_served_at_once_by_every_replica(site):
    """Also by one that has the older list in memory; and release takes it back."""
    leaf, other = site.issue(), site.replica()
    path, delta = f"/crl/{site.id}.crl", f"/crl/{site.id}-delta.crl"
    serial = leaf.serial_number
    for app in (site.app, other):
        assert serials(site.ask("GET", path, app=app).body) == set()
    site.authority.revoke(site.id, serial, "certificateHold", ADMIN)
    for app in (site.app, other):
        assert serials(site.ask("GET", path, app=app).body) == {serial}
        assert serials(site.ask("GET", delta, app=app).body) == {serial}
    site.authority.release(site.id, serial, ADMIN)
    for app in (site.app, other):
        assert serials(site.ask("GET", path, app=app).body) == set()
        (entry,) = x509.load_der_x509_crl(site.ask("GET", delta, app=app).body)
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        assert reason is x509.ReasonFlags.remove_from_crl


def test_asking_makes_a_list_that_is_due(site):
    """Nobody ran the timer: the list is made when it is asked for, and only then."""
    path = f"/crl/{site.id}.crl"
    first = site.get(path)
    assert site.get(path).body == first.body
    site.now += DAY
    second = site.get(path)
    assert second.body != first.body
    assert x509.load_der_x509_crl(second.body).next_update_utc > site.now + 6 * DAY


def test_lists_are_served_from_memory_while_the_database_is_away(site, monkeypatch):
    """Until they end; then, and without one in memory, 503 with Retry-After."""
    path, root = f"/crl/{site.id}.crl", "/crl/root.crl"
    first = site.get(path)
    hits = []

    def away(*_arguments):
        hits.append(1)
        raise Unavailable("gone")

    monkeypatch.setattr(site.ledger, "crl_state", away)
    fresh = site.replica()
    site.now += 7 * DAY - timedelta(seconds=60)
    answer = site.get(path)
    assert (answer.status, answer.body) == (200, first.body)
    assert 58 <= answer.seconds() <= 60, "not longer than it holds"
    site.now += timedelta(seconds=61)
    assert (site.get(path).status, site.get(path).headers["Retry-After"]) == (503, "5")
    assert site.ask("GET", path, app=fresh).status == 503
    assert site.get(root).status == 200
    assert site.get("/ca/root.cer").status == 200
    assert hits


def test_a_key_that_does_not_sign_leaves_the_old_list(site, monkeypatch):
    """A token that is unplugged: what there is is served."""
    path = f"/crl/{site.id}.crl"
    first = site.get(path)
    hits = []

    def broken(*_arguments, **_options):
        hits.append(1)
        raise RuntimeError("CKR_DEVICE_REMOVED")

    monkeypatch.setattr(public, "publish", broken)
    site.now += DAY
    assert site.get(path).body == first.body
    assert site.get(path).body == first.body
    assert hits == [1], "not at each request"
    site.now += public.RETRY
    assert site.get(path).body == first.body
    assert hits == [1, 1]


def test_a_new_root_list_is_served_without_a_restart(site):
    """And one that cannot be read leaves the old one."""
    first = site.get("/crl/root.crl").body
    crl = ceremony.renew_root_crl(
        site.directory / "root", lambda: b"passphrase of a test", now=site.now
    )
    ceremony.install_root_crl(site.directory, crl)
    second = site.get("/crl/root.crl").body
    assert second != first
    assert second == crl.public_bytes(Encoding.DER)
    (site.directory / "root.crl").write_bytes(b"nothing")
    assert site.get("/crl/root.crl").body == second
    (site.directory / "root.crl").unlink()
    assert site.get("/crl/root.crl").body == second
    site.now += timedelta(days=366)
    assert site.get("/crl/root.crl").status == 503


def test_rotated_out_authorities_are_served_too(site):
    """A retired one's certificate, and the lists of whoever still has a key."""
    old = create_hierarchy("Retired", now=site.now)
    authorities = keystore.Authorities(
        site.authorities.root,
        site.authorities.root_crl_pem,
        site.authorities.active,
        (RetiredIssuer(old.intermediate.certificate, (old.root.certificate,)),),
    )
    app = public.Public(site.publisher, authorities, site.app._responder)
    retired = keystore.authority_id(old.intermediate.certificate)
    assert site.ask("GET", f"/ca/{retired}.cer", app=app).status == 200
    assert site.ask("GET", f"/crl/{retired}.crl", app=app).status == 404


# ---- OCSP ---------------------------------------------------------------------------------------


def status_of(body: bytes) -> str:
    return library.load_der_ocsp_response(body).certificate_status.name


def path_of(question: bytes) -> str:
    return "/ocsp/" + base64.b64encode(question).decode()


def test_ocsp_by_post_and_get_is_one_answer(quiet):
    """GET may be kept (RFC 5019 section 6); POST and a nonce may not."""
    leaf = quiet.issue()
    question = quiet.question(leaf)
    post, get = quiet.post(question), quiet.get(path_of(question))
    assert (post.status, get.status) == (200, 200)
    assert post.body == get.body
    assert status_of(get.body) == "GOOD"
    assert {each.headers["Content-Type"] for each in (post, get)} == {"application/ocsp-response"}
    assert post.headers["Cache-Control"] == "no-store"
    assert get.seconds() == public.LIST_SECONDS
    again = quiet.get(path_of(question), HTTP_IF_NONE_MATCH=get.headers["ETag"])
    assert again.status == 304
    assert quiet.ask("HEAD", path_of(question)).headers == get.headers
    with_nonce = quiet.get(path_of(quiet.question(leaf, b"n" * 32)))
    assert with_nonce.headers["Cache-Control"] == "no-store"
    assert status_of(with_nonce.body) == "GOOD"


def test_ways_to_write_the_path(quiet):
    """A second slash, no padding: clients differ; the server has undone percent-encoding."""
    question = quiet.question(quiet.issue())
    text = base64.b64encode(question).decode()
    for path in (f"/ocsp/{text}", f"/ocsp//{text}", f"/ocsp/{text.rstrip('=')}"):
        assert status_of(quiet.get(path).body) == "GOOD"


def test_ocsp_follows_the_ledger(site):
    """Good, held, released, revoked; a serial that was reserved and not given out is unknown."""
    leaf = site.issue()
    question = site.question(leaf)

    def said() -> str:
        assert status_of(site.get(path_of(question)).body) == status_of(site.post(question).body)
        return status_of(site.post(question).body)

    assert said() == "GOOD"
    site.authority.revoke(site.id, leaf.serial_number, "certificateHold", ADMIN)
    assert said() == "REVOKED"
    site.authority.release(site.id, leaf.serial_number, ADMIN)
    assert said() == "GOOD"
    site.authority.revoke(site.id, leaf.serial_number, "keyCompromise", ADMIN)
    assert said() == "REVOKED"
    never = create_hierarchy("Other").issue_server(["a.example.test"]).certificate
    assert status_of(site.post(site.question(never)).body) == "UNKNOWN"
    assert site.get(path_of(site.question(never))).headers["Cache-Control"] == "no-store"


def test_the_delegate_is_in_the_ledger_and_in_the_trail(site):
    """Nothing of ours is signed that is not recorded."""
    body = site.post(site.question(site.issue())).body
    (delegate,) = library.load_der_ocsp_response(body).certificates
    record = site.ledger.by_serial(format(delegate.serial_number, "040x"), site.id)
    assert (record.profile, record.state) == ("ocsp", "issued")
    assert "ocsp-signer" in {row.entry.action for row in site.ledger.trail(limit=10)}
    assert site.ledger.verify_audit().whole


def test_ocsp_without_the_database_says_try_later(site, monkeypatch):
    """Unless the answer is in memory; never an error of HTTP."""
    known, unknown = site.question(site.issue()), site.question(site.issue("b.example.test"))
    first = site.get(path_of(known))

    def away(*_arguments):
        raise Unavailable("gone")

    monkeypatch.setattr(site.ledger, "status", away)
    assert site.get(path_of(known)).body == first.body
    for answer in (site.get(path_of(unknown)), site.post(unknown)):
        assert (answer.status, answer.body.hex()) == (200, "30030a0103")
        assert answer.headers["Cache-Control"] == "no-store"

    def broken(*_arguments):
        raise RuntimeError("CKR_DEVICE_REMOVED")

    monkeypatch.setattr(site.ledger, "status", broken)
    assert site.post(unknown).body.hex() == "30030a0103"


MALFORMED = "30030a0101"


@pytest.mark.parametrize("path", ["/ocsp/", "/ocsp/x", "/ocsp/%%%", "/ocsp/\xff", "/ocsp/MAA=x"])
def test_garbage_in_the_path_is_malformed(quiet, path):
    """As OCSP says it, not as an error of HTTP."""
    answer = quiet.get(path)
    assert (answer.status, answer.body.hex()) == (200, MALFORMED)


def test_garbage_in_the_body_is_malformed_and_too_much_is_refused(quiet):
    """16 KiB, whatever the header says about them."""
    assert quiet.post(b"").body.hex() == MALFORMED
    assert quiet.post(b"x" * ocsp.REQUEST_LIMIT).body.hex() == MALFORMED
    assert quiet.post(b"x" * (ocsp.REQUEST_LIMIT + 1)).status == 413
    assert quiet.post(b"x" * (ocsp.REQUEST_LIMIT + 1), CONTENT_LENGTH="").status == 413
    assert quiet.post(b"x", CONTENT_LENGTH="9" * 50).status == 413
    assert quiet.post(b"", CONTENT_TYPE="text/plain").status == 415


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "X"]),
    path=st.text(alphabet=st.characters(max_codepoint=255), max_size=60).map(lambda t: "/" + t)
    | st.sampled_from(["/ocsp", "/ocsp/", "/crl/root.crl", "/ca/root.cer"])
    | st.binary(max_size=60).map(lambda b: "/ocsp/" + base64.b64encode(b).decode()),
    body=st.binary(max_size=100),
    header=st.text(alphabet=st.characters(max_codepoint=255), max_size=30),
)
def test_no_request_is_a_500(quiet, method, path, body, header):
    """Any path, method, body and conditional header."""
    answer = quiet.ask(method, path, body, HTTP_IF_NONE_MATCH=header, HTTP_IF_MODIFIED_SINCE=header)
    assert answer.status in (200, 304, 404, 405, 413, 415)
    if method == "HEAD":
        assert answer.status != 200 or answer.body == b""


# ---- from a file --------------------------------------------------------------------------------


def test_the_application_is_built_from_mooring_conf(sqlite_url, tmp_path, now, monkeypatch):
    """Wired to the authority, so that whoever revokes publishes; a follower runs if asked for."""
    directory = tmp_path / "ca"
    ceremony.create(
        directory, "Example", passphrase=None, urls=Urls.below("http://ca.test"), now=now
    )
    config = tmp_path / "mooring.conf"
    config.write_text(
        f"[database]\nurl = {sqlite_url}\n[ca]\ndirectory = {directory}\nprofiles =\n"
        f"public_url = http://ca.test\ncrl_file = {tmp_path}/crl.pem\n"
    )
    started: list[Follower] = []
    monkeypatch.setattr(Follower, "start", lambda self: started.append(self))
    try:
        app = public.app_factory({}, config=str(config), follow_seconds="0")
        assert started == []
        assert public.app_factory({}, config=str(config)) is not app
        assert len(started) == 1
        built = service.build(str(config))
        started[0]._publisher.run()
        request = make_request(generate_key().public_key(), dns_names=["a.test"])
        leaf = built.authority.issue("server", request, ADMIN)
        built.authority.revoke(leaf.authority_id, leaf.serial, "keyCompromise", ADMIN)
        first = (tmp_path / "crl.pem").read_bytes().split(b"-----END")[0]
        crl = x509.load_pem_x509_crl(first + b"-----END X509 CRL-----\n")
        assert [each.serial_number for each in crl] == [leaf.serial]
        for wrong in ("-1", "x", "nan", "3601"):
            with pytest.raises(ValueError, match="follow_seconds"):
                public.app_factory({}, config=str(config), follow_seconds=wrong)
        built.ledger.database.close()
    finally:
        for name in list(readiness._checks):
            readiness.unregister(name)


def test_the_page_says_what_is_served(quiet):
    """docs/revocation.md: every path, type and number that a client may rely on."""
    page = (Path(__file__).parents[3] / "docs" / "revocation.md").read_text()
    for path in re.findall(r"`(/(?:crl|ca)/[^`]+)`", page):
        answer = quiet.get(path.replace("ID", quiet.id))
        assert answer.status == 200, path
        assert answer.headers["Content-Type"] in page
    assert {"/crl/ID.crl", "/crl/ID-delta.crl", "/ca/ID.cer"} <= set(
        re.findall(r"`(/[^`]+)`", page)
    )
    for text in (
        f"`max-age` of {public.LIST_SECONDS // 60} minutes",
        f"Up to {ocsp.CERTIFICATES_LIMIT} certificates in a request of up to"
        f" {ocsp.REQUEST_LIMIT // 1024} KiB",
        f"A nonce of {ocsp.NONCE_LEAST} to {ocsp.NONCE_GREATEST} octets",
        f"Answers hold for {ocsp.ANSWER_LIFETIME // timedelta(hours=1)} hours",
        f"An entry stays for {KEPT_AFTER_END.days} days",
        f"| complete, of an intermediate | {CRL_LIFETIME.days} days",
        f"| complete, of the root | {ROOT_CRL_LIFETIME.days} days",
        f"within {ROOT_WARNING.days} days, {ROOT_CRITICAL.days} days",
        f"{LATE_INTERVALS} × `crl_interval`",
    ):
        assert text in page


def test_a_certificate_of_this_date_reads_as_http_wants_it(now):
    """RFC 9110 section 5.6.7: IMF-fixdate."""
    moment = datetime(2026, 11, 21, 3, 4, 5, tzinfo=UTC)
    document = public.Document.of("text/plain", b"x", moment, moment + DAY, 60)
    assert ("Last-Modified", "Sat, 21 Nov 2026 03:04:05 GMT") in document.headers(moment)
