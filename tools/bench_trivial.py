"""The application that ours is compared with: one body, two headers, nothing else."""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def make(length: int) -> WSGIApplication:
    """A WSGI application that answers everything with ``length`` bytes of text."""
    body = b"x" * length
    headers = [("Content-Type", "text/plain; charset=UTF-8"), ("Content-Length", str(length))]

    def application(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [body]

    return application
