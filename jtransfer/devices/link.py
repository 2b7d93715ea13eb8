"""The line between the processes of a run: who came, who is gone and why, and the way to JAX's coordinator.

JAX ends a process with a hundred lines when its coordinator cannot be reached, and takes minutes to miss another
process, whose collectives wait for it. Here every process holds a connection to the first one, at the address where
JAX would have its coordinator. The system closes it when a process dies, whatever of, so all know within a second, and
by name. What JAX's client and coordinator say to each other goes through connections of the same kind, which stay open
on this side when the other one is gone: this process ends by our line, and not by JAX's.
"""

import contextlib
import json
import os
import socket
import threading
import time

from jtransfer import stopping
from jtransfer.devices import watch
from jtransfer.devices.launch import Launch
from jtransfer.errors import Gone, InputError

COME = 50.0
"""Seconds within which all processes come."""

LEAVE = 5.0
"""Seconds that a process has to end by itself when another one is gone; then it is ended, as it may wait for ever."""

HELLO = "jtransfer"
"""The key of the first message on a connection."""


class Link:
    """What this process knows of the others of its run. Making one waits until all are there.

    Args:
        launch: Of more than one process.
        patience: Seconds for which a training may stand still; 0 for ever.

    Attributes:
        launch: As given.
        hosts: The name of the host of each process.
        address: `127.0.0.1:PORT`, at which this process reaches JAX's coordinator; process 0 binds it there.

    Raises:
        InputError: the address of process 0 cannot be found or opened, or the processes contradict each other.
        Gone: not all came within `COME` seconds.
    """

    def __init__(self, launch: Launch, patience: float = 0):
        self.launch, self.hosts = launch, []
        self._why: Gone | None = None
        self._known, self._all_done = threading.Event(), threading.Event()
        self._done, self._lock, self._sending = set(), threading.Lock(), threading.Lock()
        self._closing = False
        deadline = time.monotonic() + COME
        _resolve(launch)
        door, self._peers = (_receive if launch.index == 0 else _visit)(launch, self.hosts, deadline)
        self._watch = watch.Lookout(self.hosts, 0 if launch.index else patience)
        self.address = f"127.0.0.1:{door.getsockname()[1] if launch.index else _free_port()}"
        for index, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(index, peer), daemon=True).start()
        threading.Thread(target=self._pass_on, args=(door,), daemon=True).start()
        watch.together(self._watch, launch.index, self._send, self._is_over, self._end)

    def tell(self, line: str, code: int) -> None:
        """Tell the other processes that this one ends, and why.

        If this process still runs after `LEAVE` seconds, it is ended.

        Args:
            line: Why, in one line.
            code: The exit code of all processes.
        """
        self._closing = True
        why = f"process {self.launch.index} on {self.hosts[self.launch.index]} ended: {line}"
        self._send({"why": why, "code": code})
        threading.Thread(target=lambda: (time.sleep(LEAVE), stopping.end("", code)), daemon=True).start()

    def missing(self) -> Gone | None:
        """Why the run has to end, if that is known within two seconds; else None."""
        self._known.wait(2)
        return self._why

    def leave(self, seconds: float | None = None) -> None:
        """Wait until all processes have called this, after which none is missed; at most `seconds`, if given."""
        if self.launch.index:
            self._send({"done": True})
        else:
            self._is_done(0)
        self._all_done.wait(seconds)
        self._all_done.clear()

    def _send(self, message):
        with self._sending:
            for peer in self._peers.values():
                with contextlib.suppress(OSError):
                    _say(peer, message)

    def _is_done(self, index):
        with self._lock:
            self._done.add(index)
            if len(self._done) < self.launch.number:
                return
            self._done.clear()
        self._closing = True
        self._send({"done": True})
        self._all_done.set()

    def _listen(self, index, peer):
        gone = f"process {index} on {self.hosts[index]} is gone; {watch.AGAIN}"
        why = {"why": gone}
        with contextlib.suppress(OSError, ValueError, TypeError):
            while message := _hear(peer, None):
                if "why" in message:
                    why = message
                    break
                if "at" in message:
                    self._watch.heard(index, message["at"])
                elif self.launch.index:
                    self._closing = True
                    self._all_done.set()
                else:
                    self._is_done(index)
        self._end(why["why"], why.get("code", Gone.CODE))

    def _is_over(self):
        return self._closing or self._known.is_set()

    def _end(self, why, code=Gone.CODE):
        """End this process, and on process 0 all others, unless the run is over."""
        with self._lock:
            if self._is_over():
                return
            self._why = Gone(why, code)
            self._known.set()
        if self.launch.index == 0:
            self._send({"why": why, "code": code})
        time.sleep(LEAVE)
        stopping.end(f"jtransfer: error: {self._why}", self._why.code)

    def _pass_on(self, door):
        """Connect what comes at a door with JAX's coordinator: on process 0 from the others, elsewhere from here."""
        door.settimeout(None)
        while True:
            here, _ = door.accept()
            threading.Thread(target=self._connect, args=(here,), daemon=True).start()

    def _connect(self, here):
        with contextlib.suppress(OSError, ValueError):
            if self.launch.index:
                there = socket.create_connection((self.launch.host, self.launch.port))
                _say(there, {HELLO: "coordinator"})
            elif (_hear(here, 10.0) or {}).get(HELLO) == "coordinator":
                there = _patiently(self.address)
            else:
                return here.close()
            threading.Thread(target=_pump, args=(there, here), daemon=True).start()
            _pump(here, there)


def _resolve(launch):
    """Refuse an address that nobody knows; names of pods may come seconds after the pods."""
    where = f"the address of process 0, {launch.host}:{launch.port} (from {launch.said})"
    if not launch.host:
        raise InputError(
            f"{launch.said} names {launch.number} processes, but where process 0 is does not follow from the "
            "environment; start them with the launcher (srun, mpirun), or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    until = time.monotonic() + 5
    while True:
        try:
            socket.getaddrinfo(launch.host, launch.port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until:
                why = getattr(error, "strerror", None) or error
                raise InputError(f"{where} is not known on this host: {why}") from None
        time.sleep(0.5)


def _receive(launch, hosts, deadline):
    """Process 0: open the door and wait for all others; the door, and a connection to each."""
    both = socket.has_dualstack_ipv6()
    try:
        door = socket.create_server(
            ("", launch.port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise InputError(
            f"port {launch.port} of this host, at which process 0 is met (from {launch.said}), cannot be opened: "
            f"{os.strerror(error.errno)}; choose another one"
        ) from None
    names, peers = {0: socket.gethostname()}, {}

    def refuse(error):
        for peer in peers.values():
            with contextlib.suppress(OSError):
                _say(peer, {"why": str(error), "code": 2 if isinstance(error, InputError) else error.code})
        raise error

    while len(names) < launch.number:
        try:
            door.settimeout(max(deadline - time.monotonic(), 0.01))
            peer, _ = door.accept()
        except TimeoutError:
            missing = [str(index) for index in range(launch.number) if index not in names]
            refuse(
                Gone(
                    f"process {', '.join(missing[:8])} of {launch.number} did not come to process 0 on {names[0]}, "
                    f"{launch.host}:{launch.port}, within {COME:.0f} s"
                )
            )
        try:
            hello = _hear(peer, 5.0)
            if hello.get(HELLO) != "hello":
                continue
            index, number, name = hello["index"], hello["number"], hello["host"]
        except (OSError, ValueError, KeyError, AttributeError):  # somebody else
            continue
        if number != launch.number or not 0 < index < number or index in names:
            also = f"; so is one on {names[index]}" if index in names else ""
            peers[-1] = peer
            refuse(
                InputError(
                    f"a process on {name} is number {index} of {number}{also}; process 0 on {names[0]} expects "
                    f"1 to {launch.number - 1}, each once"
                )
            )
        names[index], peers[index] = name, _alive(peer)
    hosts.extend(names[index] for index in range(launch.number))
    for peer in peers.values():
        _say(peer, {"hosts": hosts})
    return door, peers


def _visit(launch, hosts, deadline):
    """Another process: go to process 0 and wait until all are there; a door for JAX, and the connection."""
    where = f"process 0 at {launch.host}:{launch.port}"
    here = f"process {launch.index} on {socket.gethostname()}"
    late = Gone(f"{here}: {where} did not come within {COME:.0f} s")
    while True:
        try:
            peer = socket.create_connection((launch.host, launch.port), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline - 0.5:
                raise late from None
            time.sleep(0.2)
    hello = {HELLO: "hello", "index": launch.index, "number": launch.number, "host": socket.gethostname()}
    try:
        _say(_alive(peer), hello)
        answer = _hear(peer, deadline + 2 - time.monotonic())  # process 0 says who is late
    except TimeoutError:
        raise late from None
    except (OSError, ValueError):
        answer = None
    if answer and "why" in answer:
        raise InputError(answer["why"]) if answer["code"] == 2 else Gone(answer["why"], answer["code"])
    if not answer or len(answer.get("hosts", ())) != launch.number:
        raise Gone(f"{here}: what answers at {launch.host}:{launch.port} is no process 0, or is gone again")
    hosts.extend(answer["hosts"])
    peer.settimeout(None)
    return socket.create_server(("127.0.0.1", 0)), {0: peer}


def _alive(peer):
    """Let the system look after a connection: a host without power closes none."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 30000)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return peer


def _say(peer, message):
    peer.sendall(json.dumps(message).encode() + b"\n")


def _hear(peer, seconds):
    """The next message; None where there is none any more. Nothing is read beyond it: what follows may be JAX's."""
    peer.settimeout(seconds)
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := peer.recv(1)) or len(line) > 1 << 20:
            return None
        line += byte
    peer.settimeout(None)
    message = json.loads(line)
    return message if isinstance(message, dict) else {}


def _patiently(address):
    """A connection to JAX's coordinator on this process, which may be about to start."""
    host, _, port = address.rpartition(":")
    for _ in range(300):
        with contextlib.suppress(ConnectionError):
            return socket.create_connection((host, int(port)))
        time.sleep(0.1)
    raise TimeoutError


def _pump(source, target):
    """Pass on what comes, and no end of it."""
    for end in (source, target):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as door:
        return door.getsockname()[1]
