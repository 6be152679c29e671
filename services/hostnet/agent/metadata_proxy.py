"""Runs the host's HAProxy: brings files, process and its memory to what is wanted, and no further.

Level-triggered: `apply` reads what is there (files, the process through its runtime socket,
listeners from the kernel), plans, does one step and looks again, until there is nothing left to do.
So it may be killed anywhere and called again. HAProxy is a daemon of its own and outlives us.

Only identities changed: one transaction on the runtime socket, no new process. Networks, the key or
a certificate changed: a reload that hands the listening sockets to the new worker, while the old
one answers what it has begun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from services.hostnet.agent.haproxy import (
    CONFIG_FILE,
    MAP_FILE,
    PID_FILE,
    SOCKET_FILE,
    Actual,
    Identities,
    MetadataPath,
    NetworkPath,
    Plan,
    config_digest,
    parse_map,
    plan,
    render_hop_limit_nft,
    served_networks,
)

# Where `ip netns add` and HAProxy both keep named namespaces.
NAMESPACES = Path("/run/netns")
# Answers come within a millisecond; a stopped process must not hold the agent up.
SOCKET_SECONDS = 3.0
# Start and reload take some 50 ms with a few networks; thousands of binds and a slow disk longer.
PROCESS_SECONDS = 15.0
# A worker notices that its master was killed and ends within milliseconds.
GONE_SECONDS = 2.0
# A master that is told ends its workers and itself at once.
STOP_SECONDS = 5.0
POLL_SECONDS = 0.02
# HAProxy reads a command with its payload into one buffer (`tune.bufsize`, 16 KiB).
COMMAND_BYTES = 12_000
# Files; unbind; bind again; map; and one to see that nothing is left.
MAX_STEPS = 6
_CLONE_NEWNET = 0x40000000
# linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h, net/tcp_states.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_LISTEN = 10
_HEAD = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port


class ProxyError(Exception):
    """HAProxy, nft or a file did not do what was asked; the message never holds a key."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did, step by step, and which networks it could not serve, with the reason."""

    steps: tuple[str, ...]
    fenced: Mapping[str, str]


class MetadataProxy:
    """One HAProxy in one directory. `hop_limit`: whether to load the nft table as well."""

    def __init__(self, binary: str = "haproxy", *, hop_limit: bool = True) -> None:
        self.binary = binary
        self.hop_limit = hop_limit
        self._limited: set[tuple[int, int]] = set()

    def apply(self, path: MetadataPath, identities: Identities) -> Applied:
        """Makes it so. Raises ProxyError; what ran before runs on then.

        A network whose namespace is missing, or whose hop limit cannot be set, is left out and
        reported: it does not hold up the others.
        """
        run = Path(path.run_dir)
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(run):
            present, fenced = self._present(path.networks)
            fenced |= self._occupied(run, present)
            present = tuple(network for network in present if network.id not in fenced)
            path = replace(path, networks=present, stamp=_stamp(path))
            steps: list[str] = []
            for _ in range(MAX_STEPS):
                next_step = plan(path, identities, self.read(path))
                if not next_step:
                    return Applied(tuple(steps), fenced)
                steps += self._do(run, next_step)
            raise ProxyError(f"HAProxy does not settle: {', '.join(steps)}; left: {next_step!r}")

    def read(self, path: MetadataPath) -> Actual:
        """What is there now."""
        run = Path(path.run_dir)
        maps = _text(run / MAP_FILE)
        config = _text(run / CONFIG_FILE) or ""
        on_disk = {} if maps is None else {MAP_FILE: maps}
        if self._master(run) is None:
            return Actual(config, on_disk)
        running = _running(run)
        if running is None:
            raise ProxyError("HAProxy's master lives, but its worker does not answer")
        return Actual(
            config=config,
            maps=on_disk,
            running=running,
            entries=parse_map(_ask(run, f"show map {run / MAP_FILE}")),
            listening=frozenset(net.id for net in path.networks if _listens(net)),
        )

    def stop(self, run_dir: str | Path) -> None:
        """Ends every process of this directory with its connections. Raises ProxyError.

        Also one without a master or a pid file: found by its command line. What does not end in
        time is killed, for a listener that survives would keep the address from its successor.
        """
        run = Path(run_dir)
        left = _processes(run)
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal(left, number)
            with contextlib.suppress(ProxyError):
                _until(lambda: _gone(run, left), "HAProxy does not end", STOP_SECONDS)
                return
        raise ProxyError(f"HAProxy does not end: {sorted(_processes(run))}")

    def _do(self, run: Path, step: Plan) -> list[str]:
        done = []
        for name, text in step.maps.items():
            _write(run / name, text)
            done.append(f"write {name}")
        if step.config is not None:
            self._check(run, step.config)
            _write(run / CONFIG_FILE, step.config)
            done.append(f"write {CONFIG_FILE}")
        if step.process == "start":
            self._start(run)
            done.append("start")
        elif step.process == "reload":
            self._reload(run)
            done.append("unbind" if step.unbind else "reload")
        elif step.entries is not None:
            _replace_map(run, step.entries)
            done.append("commit map")
        return done

    def _present(
        self, networks: tuple[NetworkPath, ...]
    ) -> tuple[tuple[NetworkPath, ...], dict[str, str]]:
        present, fenced = [], {}
        for network in networks:
            try:
                if self.hop_limit:
                    self._limit_hops(network.namespace)
                elif network.namespace is not None:
                    (NAMESPACES / network.namespace).stat()
            except FileNotFoundError:
                fenced[network.id] = f"there is no namespace {network.namespace}"
            except ProxyError as error:
                fenced[network.id] = str(error)
            else:
                present.append(network)
        return tuple(present), fenced

    def _occupied(self, run: Path, networks: tuple[NetworkPath, ...]) -> dict[str, str]:
        """The networks in which somebody else listens: HAProxy would refuse the whole reload."""
        config = _text(run / CONFIG_FILE) or ""
        served: frozenset[str] = frozenset()
        if self._master(run) is not None:
            if _running(run) != config_digest(config):
                return {}  # a step was interrupted: whose listeners these are cannot be told
            served = served_networks(config)
        else:
            self._clear(run)
        taken = [network for network in networks if network.id not in served and _listens(network)]
        return {network.id: "something else listens there" for network in taken}

    def _clear(self, run: Path) -> None:
        """Ends what is left of a HAProxy whose master was killed or whose pid file was lost.

        Its worker ends by itself; one that hangs would share the address with its successor, for
        HAProxy binds with SO_REUSEPORT, and answer half of the requests from an old map.
        """
        left = _processes(run)
        with contextlib.suppress(ProxyError):
            _until(lambda: _gone(run, left), "the worker does not end", GONE_SECONDS)
            return
        _signal(left, signal.SIGKILL)
        _until(lambda: _gone(run, left), "a HAProxy without master does not end")

    def _limit_hops(self, namespace: str | None) -> None:
        """Loads the nft table, once for each namespace that there has been under this name."""
        where = Path("/proc/self/ns/net") if namespace is None else NAMESPACES / namespace
        found = where.stat()
        identity = (found.st_dev, found.st_ino)
        if identity not in self._limited:
            enter = [] if namespace is None else ["nsenter", f"--net={where}"]
            _run([*enter, "nft", "-f", "-"], "the hop limit's nft table", render_hop_limit_nft())
            self._limited.add(identity)

    def _check(self, run: Path, config: str) -> None:
        """Raises ProxyError for what HAProxy would refuse, before it takes the old one's place."""
        candidate = run / f"{CONFIG_FILE}.candidate"
        _write(candidate, config)
        try:
            _run([self.binary, "-c", "-q", "-f", str(candidate)], "HAProxy's configuration")
        finally:
            candidate.unlink()

    def _start(self, run: Path) -> None:
        command = [self.binary, "-W", "-D", "-p", str(run / PID_FILE), "-f", str(run / CONFIG_FILE)]
        _run(command, "HAProxy's start")
        self._settled(run)

    def _reload(self, run: Path) -> None:
        master = self._master(run)
        if master is None:
            raise ProxyError("HAProxy ended before it could be reloaded")
        os.kill(master, signal.SIGUSR2)
        self._settled(run)

    def _settled(self, run: Path) -> None:
        wanted = config_digest(_text(run / CONFIG_FILE) or "")
        _until(lambda: _running(run) == wanted, "HAProxy does not take up its configuration")

    def _master(self, run: Path) -> int | None:
        """The master's process id, if that process runs with our configuration."""
        try:
            master = int((run / PID_FILE).read_text("ascii"))
            arguments = Path(f"/proc/{master}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return master if str(run / CONFIG_FILE).encode() in arguments else None


def _processes(run: Path) -> set[int]:
    """Masters and workers of this directory, also those just starting; none that has ended."""
    wanted = str(run / CONFIG_FILE).encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # OSError: it has just ended; one that is not reaped yet has no command line
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if b"-W" in arguments and wanted in arguments:
                    found.add(int(entry.name))
    return found


def _gone(run: Path, left: set[int]) -> bool:
    """Whether these have ended, sockets and all, and no other is there; adds the others to them.

    A process that ends loses its command line before its sockets.
    """
    left |= _processes(run)
    return all(_ended(process) for process in left)


def _ended(process: int) -> bool:
    """Whether every thread has: the first may be gone while another still holds the sockets."""
    try:
        threads = [path.read_bytes() for path in Path(f"/proc/{process}/task").glob("*/stat")]
    except OSError:
        return not Path(f"/proc/{process}/task").exists()
    return all(text.rpartition(b")")[2].split()[0] in (b"Z", b"X") for text in threads)


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _stamp(path: MetadataPath) -> str:
    digest = hashlib.sha256()
    for name in (path.ca_file, path.cert_file):
        try:
            digest.update(Path(name).read_bytes())
        except OSError as error:
            raise ProxyError(f"{name}: {error.strerror}") from None
    return digest.hexdigest()


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and for our eyes only: the configuration holds the host's key."""
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
    temporary.rename(path)


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    with (run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProxyError(f"another agent works in {run}") from None
        yield


def _run(command: list[str], what: str, text: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            input=text,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PROCESS_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProxyError(f"{what}: {type(error).__name__} of {command[0]}") from None
    if done.returncode:
        alerts = [line for line in done.stderr.splitlines() if "[ALERT]" in line]
        said = " ".join(alerts[:3] or done.stderr.splitlines()[:3])
        raise ProxyError(f"{what} failed: {said}")


def _until(condition: Callable[[], bool], failure: str, seconds: float = PROCESS_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ProxyError(f"{failure} within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def _ask(run: Path, command: str) -> str:
    """What HAProxy's runtime socket answers. Raises ProxyError, at the latest at the deadline."""
    deadline = time.monotonic() + SOCKET_SECONDS
    chunks = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SOCKET_SECONDS)
            connection.connect(str(run / SOCKET_FILE))
            connection.sendall(command.encode("ascii") + b"\n")
            while chunk := connection.recv(65536):
                chunks.append(chunk)
                # a timeout of nothing means "do not block" to Python
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
    except OSError as error:
        raise ProxyError(f"HAProxy's runtime socket: {error or type(error).__name__}") from None
    return b"".join(chunks).decode("ascii", "replace")


def _running(run: Path) -> str | None:
    """The digest of the configuration that the answering worker runs; None if none answers."""
    try:
        lines = _ask(run, "show info").splitlines()
    except ProxyError:
        return None
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "description":
            return value
    return ""


def _replace_map(run: Path, entries: Mapping[str, str]) -> None:
    """One transaction: a request sees the map before or the map after. Raises ProxyError."""
    name = run / MAP_FILE
    answer = _ask(run, f"prepare map {name}")
    version = answer.rpartition(":")[2].strip()
    if not version.isdecimal():
        raise ProxyError(f"prepare map: {answer.strip()}")
    for payload in _payloads(entries):
        answer = _ask(run, f"add map @{version} {name} <<\n{payload}")
        if answer.strip():
            raise ProxyError(f"add map: {answer.strip()}")
    answer = _ask(run, f"commit map @{version} {name}")
    if answer.strip():
        raise ProxyError(f"commit map: {answer.strip()}")


def _payloads(entries: Mapping[str, str]) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for key, value in entries.items():
        line = f"{key} {value}\n"
        if size + len(line) > COMMAND_BYTES:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield "".join(lines)


def _listens(network: NetworkPath) -> bool:
    """Whether every address of the network has a listener, as the kernel sees it in there."""
    wanted = {(address, network.port) for address in network.addresses}
    found: set[tuple[str, int]] = set()

    def read() -> None:
        # A thread of its own, which dies with the namespace it entered. OSError: no namespace.
        with contextlib.suppress(OSError):
            if network.namespace is not None:
                _enter(NAMESPACES / network.namespace)
            found.update(_listeners())

    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    return wanted <= found


def _enter(namespace: Path) -> None:
    with namespace.open("rb") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def _listeners() -> set[tuple[str, int]]:
    """Address and port of each TCP listener in this thread's network namespace. Raises OSError.

    Asked for by sock_diag(7), which walks the listeners alone: /proc/net/tcp walks the table of all
    connections of the machine, some 10 ms for each namespace where that table is large.
    """
    found = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(SOCKET_SECONDS)
        for family, length in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            # inet_diag_req_v2: family, protocol, no extensions, states; any socket
            asked = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
            head = _HEAD.pack(
                _HEAD.size + len(asked), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0
            )
            diag.send(head + asked)
            for kind, message in _messages(diag):
                if kind == _NLMSG_ERROR:
                    raise OSError(-int.from_bytes(message[:4], sys.byteorder, signed=True), "diag")
                # inet_diag_msg: family, state, timer, retransmissions, then ports and addresses
                port = int.from_bytes(message[4:6], "big")
                found.add((socket.inet_ntop(family, message[8 : 8 + length]), port))
    return found


def _messages(diag: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Type and content of each netlink message of one dump."""
    while True:
        data = diag.recv(65536)
        while data:
            size, kind, *_ = _HEAD.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            yield kind, data[_HEAD.size : size]
            data = data[(size + 3) & ~3 :]
