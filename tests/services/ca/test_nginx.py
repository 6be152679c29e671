"""A real NGINX verifies our clients against our chain and lists."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
import time

import pytest

from services.ca import files
from services.ca.crl import Revocation
from services.ca.hierarchy import create_hierarchy

CONFIGURATION = """
daemon off; pid {directory}/pid; error_log {directory}/error.log; user root;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/a; proxy_temp_path {directory}/b;
  fastcgi_temp_path {directory}/c; uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
    ssl_certificate {directory}/server.crt; ssl_certificate_key {directory}/server.key;
    ssl_client_certificate {directory}/chain.crt; ssl_verify_depth 2; ssl_verify_client on;
    ssl_crl {directory}/{lists};
    location / {{ return 200 "$ssl_client_verify $ssl_client_s_dn"; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def pki(tmp_path_factory, now):
    """A directory with everything that NGINX needs; bob's certificate is revoked."""
    directory = tmp_path_factory.mktemp("nginx")
    found = create_hierarchy("Example", now=now)
    found.write(directory)
    found.issue_server(["localhost"], ["127.0.0.1"]).write(directory, "server")
    found.issue_client("alice", ["mooring:operators"]).write(directory, "alice")
    found.issue_host("host1").write(directory, "host1")
    bob = found.issue_client("bob")
    bob.write(directory, "bob")
    lists = found.crls(revoked=[Revocation(bob.certificate.serial_number, now)])
    files.write_crls(directory / "both.crl", *lists)
    files.write_crls(directory / "intermediate.crl", lists[0])
    return directory


@pytest.fixture(scope="module", params=["both.crl", "intermediate.crl"])
def nginx(request, pki):
    """NGINX with that file of lists; yields the file's name and the port."""
    if shutil.which("nginx") is None:
        pytest.fail("NGINX is missing: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = pki / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(directory=pki, port=port, lists=request.param))
    server = subprocess.Popen(["nginx", "-c", str(configuration), "-e", str(pki / "error.log")])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, (pki / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield request.param, port
    finally:
        server.terminate()
        server.wait(30)


def ask(pki, port: int, client: str | None) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(pki / "root.crt"))
    if client is not None:
        context.load_cert_chain(pki / f"{client}.crt", pki / f"{client}.key")
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_nginx_takes_our_clients_and_refuses_revoked_and_missing_ones(nginx, pki):
    """With both lists: users and hosts in, revoked and absent certificates out.

    With the intermediate's list alone everybody is out, which is why the root has one too.
    """
    lists, port = nginx
    alice, host, bob = ask(pki, port, "alice"), ask(pki, port, "host1"), ask(pki, port, "bob")
    if lists == "both.crl":
        assert alice == (200, "SUCCESS CN=alice,O=mooring:operators")
        assert host == (200, "SUCCESS CN=host1,O=mooring:hosts")
    else:
        assert (alice[0], host[0]) == (400, 400)
    assert bob[0] == 400
    status, body = ask(pki, port, None)
    assert status == 400
    assert "No required SSL certificate was sent" in body
