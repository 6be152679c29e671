"""services.core.deploy: a wrong paste file is one line that names the culprit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paste.deploy import loadapp

from services.core import deploy
from services.core.deploy import DeployError, check_once, check_pipelines, require_gatekeeper
from services.core.errors import Failure

ROOT = Path(__file__).parents[3]

FILTERS = "".join(
    f"[filter:{name}]\npaste.filter_factory = middleware.{name}:filter_factory\n"
    for name in deploy.ORDER
    if name != "instance_signature"
) + (
    "[filter:instance_signature]\n"
    "paste.filter_factory = middleware.instance_signature:filter_factory\n"
    "secrets = %(here)s/secrets\n"
    "[filter:again]\nuse = errors\n"
    "[filter:foreign]\npaste.filter_factory = elsewhere:filter_factory\nanything = goes\n"
)
APPS = (
    "[app:ours]\npaste.app_factory = services.mooring_test_app:app_factory\n"
    "[app:foreign_app]\npaste.app_factory = elsewhere:app_factory\n"
)
GOOD = "[pipeline:main]\npipeline = gatekeeper request_id errors ours\n"


def app_factory(_global_conf, *, colour="red"):
    """Stands for one of our applications: checks the file that it is loaded from."""
    check_once(_global_conf)

    def app(environ, start_response):
        require_gatekeeper(environ)
        start_response("200 OK", [("X-Seen", environ.get("seen", ""))])
        return [colour.encode()]

    return app


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """An application of ours and a stranger's filter and application, importable by name."""

    def filter_factory(_global_conf, **conf):
        def wrap(app):
            def filtered(environ, start_response):
                environ["seen"] = environ.get("seen", "") + str(sorted(conf))
                return app(environ, start_response)

            return filtered

        return wrap

    def composite(_loader, _global_conf, **_targets):
        raise AssertionError("the check calls no factory")

    ours = SimpleNamespace(app_factory=app_factory)
    monkeypatch.setattr(app_factory, "__module__", "services.mooring_test_app")
    monkeypatch.setitem(sys.modules, "services.mooring_test_app", ours)
    for function in (filter_factory, composite):
        function.__module__ = "elsewhere"
    elsewhere = SimpleNamespace(
        filter_factory=filter_factory,
        app_factory=lambda _global_conf: lambda _environ, _start: [],
        composite=composite,
    )
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)


@pytest.fixture
def ini(tmp_path):
    def write(text, rest=FILTERS + APPS):
        path = tmp_path / "paste.ini"
        path.write_text(text + rest)
        return path

    return write


def refusal(path, **keys):
    with pytest.raises(DeployError) as caught:
        check_pipelines(path, **keys)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(f"{path} ").replace(f"{path} ", "")


def pipeline(*names):
    return f"[pipeline:main]\npipeline = {' '.join(names)}\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        pipeline(*deploy.ORDER, "ours"),
        pipeline("gatekeeper", "foreign", "request_id", "errors", "foreign", "ours"),
        pipeline("foreign", "foreign_app") + GOOD.replace("main", "metadata"),
        "[pipeline:main]\npipeline = gatekeeper request_id renamed ours\n"
        "[filter:renamed]\nuse = errors\nstyle = text\n",
    ],
    ids=["short", "whole", "foreign", "others", "use"],
)
def test_good_pipelines(ini, text):
    """The contract's order passes, whole or in part, with strangers after the gatekeeper."""
    check_pipelines(ini(text))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("ours",), "[app:ours]: the gatekeeper must be the first filter, nothing is"),
        (
            ("request_id", "gatekeeper", "errors", "ours"),
            "[app:ours]: the gatekeeper must be the first filter, [filter:request_id] is",
        ),
        (
            ("foreign", "gatekeeper", "request_id", "errors", "ours"),
            "[app:ours]: the gatekeeper must be the first filter, [filter:foreign] is",
        ),
        (
            ("errors", "foreign_app"),
            "[app:foreign_app]: the gatekeeper must be the first filter, [filter:errors] is",
        ),
        (
            ("gatekeeper", "errors", "request_id", "ours"),
            "[filter:request_id]: the filter request_id stands after errors before [app:ours]; "
            f"the order is {', '.join(deploy.ORDER)}",
        ),
        (
            ("gatekeeper", "request_id", "errors", "again", "ours"),
            "[filter:again]: the filter errors stands twice before [app:ours]",
        ),
        (("gatekeeper", "request_id", "ours"), "[app:ours]: the filter errors is missing before"),
        (("gatekeeper", "errors", "ours"), "[app:ours]: the filter request_id is missing before"),
        (
            ("gatekeeper", "request_id", "errors", "forwarded", "instance_signature", "ours"),
            "[app:ours]: instance_signature needs the filter client_certificate before it",
        ),
        (
            ("gatekeeper", "request_id", "erors", "ours"),
            "[pipeline:main]: No section 'erors' (prefixed by 'filter') found in config",
        ),
        (
            ("gatekeeper", "request_id", "errors", "our"),
            "[pipeline:main]: No section 'our' (prefixed by",
        ),
        (("gatekeeper", "main"), "[pipeline:main]: leads back to itself"),
    ],
)
def test_wrong_pipelines(ini, names, expected):
    """Each broken rule names the section and the culprit."""
    assert refusal(ini(pipeline(*names))).startswith(expected)


def test_an_application_that_nothing_protects(ini):
    """A second entry of the file is judged as well, though main is in order."""
    text = GOOD.replace("ours", "foreign_app") + pipeline("ours").replace("main", "naked")
    assert refusal(ini(text)).startswith("[app:ours]: the gatekeeper must be the first filter")


def test_the_entry_that_will_be_started_is_judged(ini):
    """An application inside a good pipeline may not be started by its own name."""
    path = ini(GOOD)
    check_pipelines(path)
    check_pipelines(path, "main")
    assert refusal(path, name="ours").startswith("[app:ours]: the gatekeeper must be the first")
    assert "No section 'nothing'" in refusal(path, name="nothing")


def test_filter_with_is_understood(ini):
    """A chain of filter-with counts like a pipeline: the outermost is the first."""
    head = "[app:main]\nfilter-with = {}\nuse = ours"
    chain = "\n[filter:g]\nuse = gatekeeper\nfilter-with = r\n[filter:r]\nuse = request_id\n"
    # r stands outside g: [filter:g] is itself filtered with r.
    text = head.format("g") + chain
    assert "first filter, [filter:r] is" in refusal(ini(text))
    chain = (
        "\n[filter:e]\nuse = errors\nfilter-with = r\n"
        "[filter:r]\nuse = request_id\nfilter-with = gatekeeper\n"
    )
    path = ini(head.format("e") + chain)
    check_pipelines(path)
    assert loadapp(f"config:{path}")({"REMOTE_ADDR": ""}, lambda *a: None) == [b"red"]


def test_filter_with_around_a_pipeline_is_refused(ini):
    """PasteDeploy makes something uncallable of it, so it must not start."""
    text = GOOD + "filter-with = foreign\n"
    assert refusal(ini(text)).startswith(
        "[pipeline:main]: filter-with works on an app only; put the filter into the pipeline"
    )


def test_filter_app_is_understood(ini):
    """[filter-app:...] puts its filter before what `next` names."""
    text = "[filter-app:main]\nuse = {}\nnext = inner\n" + GOOD.replace("main", "inner")
    assert "[filter-app:main] is" in refusal(ini(text.format("foreign")))
    text = (
        "[filter-app:main]\nuse = gatekeeper\nnext = inner\n"
        "[pipeline:inner]\npipeline = request_id errors ours\n"
    )
    check_pipelines(ini(text))


COMPOSITE = "[composite:main]\npaste.composite_factory = services.core.composite:by_path\n"


def test_composites_are_followed(ini):
    """Every target of a composite is judged, together with what stands before the composite."""
    inner = GOOD.replace("main", "inner")
    check_pipelines(ini(COMPOSITE + "/ = inner\n" + inner))
    text = COMPOSITE + "/ = inner\n/admin = ours\n" + inner
    assert refusal(ini(text)).startswith("[app:ours]: the gatekeeper must be the first filter")
    text = COMPOSITE + "/ = inner\n/admin = nobody\n" + inner
    assert refusal(ini(text)).startswith("[composite:main]: /admin: No section 'nobody'")
    text = COMPOSITE.replace("main", "paths") + "/ = ours\n"
    text += pipeline("gatekeeper", "request_id", "errors", "paths")
    check_pipelines(ini(text))
    assert refusal(ini(COMPOSITE + "/ = main\n")) == "[composite:main]: leads back to itself"


def test_a_strangers_composite_is_followed_where_it_names_applications(ini):
    """Another composite's values that are applications are judged, other keys are its own."""
    text = "[composite:main]\npaste.composite_factory = elsewhere:composite\nspeed = fast\n/ = {}\n"
    check_pipelines(ini(text.format("inner") + GOOD.replace("main", "inner")))
    assert "the gatekeeper must be the first" in refusal(ini(text.format("ours")))


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (
            FILTERS.replace("[filter:forwarded]", "[filter:forwarded]\ntrusted_hop = 2") + APPS,
            "[filter:forwarded]: unknown key 'trusted_hop'; allowed: required, trusted_hops",
        ),
        (
            FILTERS + APPS.replace("[app:ours]", "[app:ours]\ncolor = blue"),
            "[app:ours]: unknown key 'color'; allowed: colour",
        ),
        (
            FILTERS.replace("[filter:request_id]", "[filter:request_id]\nx = 2") + APPS,
            "[filter:request_id]: unknown key 'x'; allowed: proxy_answers",
        ),
        (
            FILTERS.replace("middleware.errors:", "middleware.eror:") + APPS,
            "[filter:errors]: No module named 'middleware.eror'",
        ),
        (
            FILTERS.replace("errors:filter_factory", "errors:factory") + APPS,
            "[filter:errors]: module 'middleware.errors' has no attribute 'factory'",
        ),
        (
            FILTERS.replace("%(here)s", "%(there)s") + APPS,
            "[filter:instance_signature]: ",
        ),
        (
            "[DEFAULT]\ncolour = blue\n" + FILTERS + APPS,
            "[app:ours]: the key 'colour' stands in [DEFAULT], where it sets nothing",
        ),
    ],
)
def test_wrong_keys_and_factories(ini, rest, expected):
    """Unknown keys, factories and variables are named with what is allowed."""
    text = pipeline(*deploy.ORDER, "ours")
    assert refusal(ini(text, rest)).startswith(expected)


def test_default_can_be_fetched(ini):
    """`get` is paste's way to use a value of [DEFAULT], and passes."""
    rest = APPS.replace("[app:ours]", "[app:ours]\nget colour = colour") + FILTERS
    check_pipelines(ini(GOOD, "[DEFAULT]\ncolour = blue\n" + rest))


def test_a_required_key_is_missed(ini, monkeypatch):
    """A factory's keyword without a default has to stand in the file."""
    monkeypatch.setattr(app_factory, "__kwdefaults__", {})
    assert refusal(ini(GOOD)) == "[app:ours]: the key 'colour' is missing; allowed: colour"


def test_build_finds_wrong_values(ini, tmp_path):
    """With `build` our filters are made, so that values and secrets are tried as well."""
    text = pipeline(*deploy.ORDER, "ours")
    path = ini(text)
    check_pipelines(path)
    assert refusal(path, build=True) == (
        f"[filter:instance_signature]: secret {tmp_path}/secrets/current does not exist"
    )


@pytest.mark.parametrize("content", ["no section\n", "[app:a]\n[app:a]\n", None])
def test_unreadable_files(tmp_path, content):
    """A file that is no ini, or is not there, is one line too."""
    path = tmp_path / "paste.ini"
    if content is not None:
        path.write_text(content)
    assert refusal(path)


def test_an_application_refuses_a_wrong_file_while_loading(ini):
    """check_once in the application's factory stops loadapp, whichever server calls it."""
    with pytest.raises(DeployError, match="the filter errors is missing"):
        loadapp(f"config:{ini(pipeline('gatekeeper', 'request_id', 'ours'))}")
    check_once({})


def test_the_file_is_read_once(ini, monkeypatch):
    """Several applications of one file cost one check; a changed file is checked anew."""
    calls = []
    monkeypatch.setattr(deploy, "check_pipelines", calls.append)
    path = ini(GOOD)
    for _ in range(2):
        check_once({"__file__": str(path)})
    assert calls == [str(path)]
    os.utime(path, (1, 1))
    check_once({"__file__": str(path)})
    assert calls == [str(path)] * 2


def test_no_gatekeeper_no_service():
    """The last line of defence: an application that is started bare answers 500 to everyone."""
    app = app_factory({})
    for environ in ({}, {"mooring.gatekeeper": "True"}):
        with pytest.raises(Failure) as caught:
            app(dict(environ), lambda *a: None)
        assert caught.value.status == 500


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_check_by_hand(tmp_path):
    """`python -m services.core.deploy`: silent when good; one line and status 1 when wrong."""
    path = tmp_path / "paste.ini"
    app = "[app:main]\nuse = call:wsgiref.simple_server:demo_app\n"
    path.write_text(app + "filter-with = gatekeeper\n" + FILTERS.split("[filter:again]")[0])
    result = run("services.core.deploy", path, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        1,
        f"mooring: {path} [app:main]: the filter request_id is missing before it\n",
    )
    path.write_text(app)
    assert run("services.core.deploy", f"{path}#main", cwd=tmp_path).returncode == 0


def test_gunicorn_does_not_start_with_a_wrong_file(tmp_path):
    """The on_starting hook ends a real gunicorn with the line alone: no worker, no traceback."""
    path = tmp_path / "paste.ini"
    path.write_text(
        "[app:main]\nuse = call:wsgiref.simple_server:demo_app\nfilter-with = errors\n"
        "[filter:errors]\npaste.filter_factory = middleware.errors:filter_factory\n"
    )
    (tmp_path / "gunicorn.conf.py").write_text("from services.core.deploy import on_starting\n")
    socket = f"unix:{tmp_path}/gunicorn.sock"
    result = run(
        *("gunicorn", "--paste", path, "-b", socket, "--log-level", "error"),
        *("--no-control-socket", "-c", tmp_path / "gunicorn.conf.py"),
        cwd=tmp_path,
    )
    assert result.returncode != 0
    assert result.stderr.splitlines() == [
        f"mooring: {path} [app:main]: the gatekeeper must be the first filter,"
        f" {path} [filter:errors] is"
    ]
    assert not (tmp_path / "gunicorn.sock").exists()


def test_gunicorn_without_paste_is_left_alone():
    """The hook has nothing to say about other applications."""
    deploy.on_starting(SimpleNamespace(cfg=SimpleNamespace(paste=None)))
