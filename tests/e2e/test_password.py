"""The password that a guest posts: set once, whoever asks and however many at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.e2e

PATH = "/openstack/latest/password"
FIRST = b"bm90IGEgcGFzc3dvcmQ=" * 10
SECOND = b"YW5vdGhlciBwYXNzd29yZA==" * 8


def posted(house, space, body, path=PATH):
    """The status of a POST of a password."""
    house.sensitive.add(body)
    return space.request("POST", path, body=body).status


def test_a_password_is_set_once(house):
    """200, and from then on 409 at every worker, at once; what was set first is what is read."""
    instance = house.instance()
    assert instance.get(PATH).body == b""
    assert posted(house, instance, FIRST) == 200
    for _ in house.each_worker():
        assert instance.get(PATH).body == FIRST
        assert posted(house, instance, SECOND) == 409
        assert posted(house, instance, FIRST) == 409
        assert posted(house, instance, b"") == 200
    answer = instance.get("/openstack/2013-04-04/password")
    assert (answer.body, answer.headers["Content-Type"]) == (FIRST, "text/plain; charset=UTF-8")


def test_of_twenty_at_once_exactly_one_wins(house):
    """A race of twenty different passwords: one 200, nineteen 409, and the winner's is kept."""
    instance = house.instance()
    bodies = [b"%02d " % number + SECOND for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda body: posted(house, instance, body), bodies))
    assert sorted(statuses) == [200] + [409] * 19
    assert instance.get(PATH).body == bodies[statuses.index(200)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"p" * 1020, 200),
        (b"p" * 1021, 400),
        (b"\xff\xfe password", 400),
        ("päßwört".encode(), 200),
    ],
)
def test_what_a_password_may_be(house, body, status):
    """At most 1020 bytes of UTF-8; anything else is 400 and sets nothing."""
    instance = house.instance()
    assert posted(house, instance, body) == status
    assert instance.get(PATH).body == (body if status == 200 else b"")


def test_a_password_in_chunks(house):
    """A chunked body is a body: Nova answers 500 to a POST without a length."""
    instance = house.instance()
    chunk = b"Y2h1bmtlZCBwYXNzd29yZA=="
    house.sensitive.add(chunk)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    whole = head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for _ in range(2)) + b"0\r\n\r\n"
    assert instance.send(whole).status == 200
    assert instance.get(PATH).body == chunk * 2


def test_only_the_owner_reads_and_resets_it(house, blue):
    """An admin reads the password and resets it, an operator or another instance does not."""
    instance = house.instance()
    assert posted(house, instance, FIRST) == 200
    assert blue.get(PATH).body == b""
    path = f"/v1/instances/{instance.id}/password"
    for method in ("GET", "DELETE"):
        assert house.operate(method, path).status == 403
    assert FIRST in house.operate("GET", path, user="admin").body
    assert house.operate("DELETE", path, user="admin").status == 204
    for _ in house.each_worker():
        assert instance.get(PATH).body == b""
    assert posted(house, instance, SECOND) == 200
    assert instance.get(PATH).body == SECOND
