"""Processes that are killed while instances read, and what must outlive them."""

import http.client
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from stand import wait_for

pytestmark = pytest.mark.e2e

READ = "/openstack/latest/meta_data.json"
PASSWORD = "/openstack/latest/password"
CUT = ("prematurely closed connection", "reset by peer")
"""What NGINX logs about a request whose worker was killed."""


@pytest.fixture(scope="module")
def house(build):
    """A stand of its own, since its processes are killed."""
    with build(workers=3) as house:
        house.stand.add_network("red", "10.1.0.2/24")
        house.stand.start_agent()
        yield house


@pytest.fixture(scope="module")
def instances(house):
    """Three instances that read all the time."""
    return [house.instance(user_data=b"data of a busy instance") for _ in range(3)]


class Load:
    """Instances that read again and again, each answer on a connection of its own."""

    def __init__(self, instances, threads=6):
        self.instances = instances
        self.answers = 0
        self.failures = []
        self.ended = threading.Event()
        self.threads = [
            threading.Thread(target=self.read, args=(instances[number % len(instances)],))
            for number in range(threads)
        ]

    def read(self, instance):
        while not self.ended.is_set():
            try:
                answer = instance.get(READ)
                good = answer.status == 200 and json.loads(answer.body)["uuid"] == instance.id
                failure = None if good else (answer.status, answer.body)
            except (OSError, http.client.HTTPException) as error:
                failure = repr(error)
            if failure is not None:
                self.failures.append(failure)
            self.answers += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exc):
        self.ended.set()
        for thread in self.threads:
            thread.join()


def running(pids):
    """Those of the processes that compute at this moment, rather than wait for a request."""
    stats = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [pid for pid, stat in stats.items() if stat.exists() and ") R " in stat.read_text()]


def cut_requests(house):
    """How many requests NGINX saw end with their worker."""
    log = (house.stand.log_dir / "metadata.error.log").read_text()
    return sum(any(text in line for text in CUT) for line in log.splitlines())


def test_killed_workers_cost_no_read(house, instances):
    """kill -9 of gunicorn's workers under load: HAProxy asks again, and no read fails.

    Workers are killed until NGINX has seen requests cut in the middle, so the injected failure was
    really met; the number of workers is made up each time.
    """
    before = cut_requests(house)
    deadline = time.monotonic() + 60
    with Load(instances) as load:
        wait_for("load", lambda: load.answers > 50)
        kills = 0
        while cut_requests(house) == before or kills < 5:
            assert time.monotonic() < deadline, f"{kills} kills met no request"
            wait_for("all workers", lambda: len(house.workers()) == 3)
            target = load.answers + random.randrange(5, 30)
            wait_for("more answers", lambda target=target: load.answers >= target)
            wait_for("a busy worker", lambda: running(house.workers()))
            os.kill((running(house.workers()) or house.workers())[0], signal.SIGKILL)
            kills += 1
        wait_for("all workers", lambda: len(house.workers()) == 3)
        target = load.answers + 100
        wait_for("service afterwards", lambda: load.answers >= target)
    assert load.failures == []


def test_a_killed_haproxy_comes_back(house, instances):
    """kill -9 of HAProxy's master: the agent starts it again, and every instance is served."""
    run = house.stand.run_dir / "agent"
    before = int((run / "haproxy.pid").read_text().split()[0])
    os.kill(before, signal.SIGKILL)

    def again():
        try:
            new = int((run / "haproxy.pid").read_text().split()[0])
            return new != before and all(each.get(READ).status == 200 for each in instances)
        except (OSError, ValueError, IndexError, http.client.HTTPException):
            return False  # no process id, or no HAProxy yet

    wait_for("HAProxy's return", again)


def test_a_killed_haproxy_comes_back_without_a_controller(house, instances):
    """While the operators' API is away the agent keeps up what it knows; then it goes on."""
    run = house.stand.run_dir / "agent"
    before = int((run / "haproxy.pid").read_text().split()[0])
    said = house.stand.log_dir / "agent.log"
    operators = house.stand.run_dir / "operators.sock"
    hidden = operators.rename(operators.with_name("operators.hidden"))
    try:
        wait_for("the agent's notice", lambda: "not applied" in said.read_text())
        os.kill(before, signal.SIGKILL)

        def again():
            try:
                return all(each.get(READ).status == 200 for each in instances)
            except (OSError, http.client.HTTPException):
                return False  # no HAProxy yet

        wait_for("the end", lambda: not Path(f"/proc/{before}").exists())
        wait_for("HAProxy's return", again)
        assert int((run / "haproxy.pid").read_text().split()[0]) != before
    finally:
        hidden.rename(operators)
    assert house.instance().get(READ).status == 200


def test_a_killed_agent_leaves_instances_alone(house, instances):
    """kill -9 of the agent: nobody notices; a new one finds everything as it should be."""
    process = house.stand.processes["agent"]
    os.kill(process.popen.pid, signal.SIGKILL)
    process.popen.wait()
    pid = (house.stand.run_dir / "agent" / "haproxy.pid").read_text()
    assert [each.get(READ).status for each in instances] == [200] * 3
    assert house.stand.apply_agent().strip() == "nothing to do"
    assert (house.stand.run_dir / "agent" / "haproxy.pid").read_text() == pid
    house.stand.start_agent()
    house.instance()


def test_a_changed_instance_is_seen_by_every_worker_at_once(house):
    """Once the API has answered, no worker has the old value for a single read."""
    instance = house.instance(properties={"turn": "0"})
    for _ in house.each_worker():
        assert json.loads(instance.get(READ).body)["meta"] == {"turn": "0"}
    for turn in map(str, range(1, 8)):
        house.change(instance.id, properties={"turn": turn})
        for _ in range(20):
            assert json.loads(instance.get(READ).body)["meta"] == {"turn": turn}
    house.change(instance.id, properties={"turn": "last"})
    for _ in house.each_worker():
        assert json.loads(instance.get(READ).body)["meta"] == {"turn": "last"}
    assert house.operate("DELETE", f"/v1/instances/{instance.id}").status == 204
    for _ in house.each_worker():
        # Not through HAProxy, which may have forgotten the instance already.
        claim = {"instance": instance.id, "project": "project-red", "address": instance.address}
        answer = house.ask(house.signed("host-1", target=READ, **claim), target=READ)
        assert answer.status == 404


def test_passwords_and_tokens_survive_a_restart(house):
    """After gunicorn was killed and started anew a password is set and a token is good."""
    instance = house.instance(options={"http_tokens": "required"})
    token = ("X-aws-ec2-metadata-token", house.token(instance))
    body = b"cGFzc3dvcmQgdGhhdCBzdXJ2aXZlcw=="
    house.sensitive.add(body)
    assert instance.request("POST", PASSWORD, [token], body).status == 200
    process = house.stand.processes["gunicorn"]
    workers = house.workers()
    for pid in (process.popen.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.popen.wait()
    answer = instance.get(READ, token)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.text.startswith("503 Service Unavailable\n\n")
    house.stand.start_gunicorn()
    assert instance.get(PASSWORD, token).body == body
    assert instance.request("POST", PASSWORD, [token], b"another password").status == 409
    assert instance.get(PASSWORD).status == 401


def test_nginx_is_restarted_under_load(house, instances):
    """NGINX takes new files by reload without one failed read."""
    with Load(instances) as load:
        for _ in range(3):
            target = load.answers + 40
            wait_for("answers", lambda target=target: load.answers >= target)
            house.stand.processes["nginx"].popen.send_signal(signal.SIGHUP)
        target = load.answers + 100
        wait_for("answers", lambda: load.answers >= target)
    assert load.failures == []


def test_gunicorn_is_reloaded_under_load(house, instances):
    """SIGHUP, as after a rotated secret: workers are replaced without one failed read."""
    before = set(house.workers())
    with Load(instances) as load:
        house.stand.processes["gunicorn"].popen.send_signal(signal.SIGHUP)
        wait_for(
            "new workers",
            lambda: len(house.workers()) == 3 and before.isdisjoint(house.workers()),
        )
        target = load.answers + 100
        wait_for("answers", lambda: load.answers >= target)
    assert load.failures == []
