"""An operator's own module, which knows nothing of Mooring: filters and an application for paste.

`keystone_factory` stands where keystonemiddleware's auth_token would: it has the same factory
signature, deletes the identity headers that a client sends, and sets its own.
"""

import json
from pathlib import Path

IDENTITY = ("HTTP_X_USER_NAME", "HTTP_X_ROLES", "HTTP_X_IDENTITY_STATUS")


def keystone_factory(_global_conf, **conf):
    """A token filter: `token = user` pairs are its Keystone, `auth_uri` what a refusal names."""
    users = dict(pair.split(":") for pair in conf["tokens"].split())

    def make(app):
        def auth_token(environ, start_response):
            for key in IDENTITY:
                environ.pop(key, None)
            user = users.get(environ.get("HTTP_X_AUTH_TOKEN", ""))
            if user is None:
                start_response(
                    "401 Unauthorized",
                    [
                        ("Content-Type", "text/plain"),
                        ("WWW-Authenticate", f'Keystone uri="{conf["auth_uri"]}"'),
                    ],
                )
                return [b"Authentication required"]
            environ["HTTP_X_IDENTITY_STATUS"] = "Confirmed"
            environ["HTTP_X_USER_NAME"] = user
            return app(environ, start_response)

        return auth_token

    return make


def stamp_factory(_global_conf, *, name):
    """Adds its name to the answer's X-Stamps, behind those of the filters inside."""

    def make(app):
        def stamp(environ, start_response):
            def start(status, headers, exc_info=None):
                before = [value for key, value in headers if key == "X-Stamps"]
                kept = [(key, value) for key, value in headers if key != "X-Stamps"]
                return start_response(
                    status, [*kept, ("X-Stamps", ",".join([*before, name]))], exc_info
                )

            return app(environ, start)

        return stamp

    return make


def witness_factory(_global_conf, *, file):
    """Writes every request's environ headers, as they are at this place, to a file."""

    def make(app):
        def witness(environ, start_response):
            seen = {key: value for key, value in environ.items() if key.startswith("HTTP_")}
            line = {"method": environ["REQUEST_METHOD"], "target": environ["RAW_URI"], **seen}
            with Path(file).open("a") as out:
                out.write(json.dumps(line) + "\n")
            return app(environ, start_response)

        return witness

    return make


def greeting_factory(_global_conf, *, text="hello"):
    """An application: says who asks and where paste has put it."""

    def greeting(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        said = {
            "text": text,
            "user": environ.get("HTTP_X_USER_NAME"),
            "script": environ["SCRIPT_NAME"],
            "path": environ["PATH_INFO"],
        }
        return [json.dumps(said).encode()]

    return greeting
