"""What machines of Google's cloud learn from their metadata server, which is a small server here."""

import http.server
import signal
import threading

import pytest

from jtransfer import stopping
from jtransfer.devices import google
from jtransfer.devices.launch import Launch, launch


class Server(http.server.ThreadingHTTPServer):
    """Answers with the values of an instance's keys; with a list of values, each once and the last for ever.

    A number is a status without a value.
    """

    def __init__(self, values):
        self.values, self.asked = values, []
        super().__init__(("127.0.0.1", 0), Answer)

    def value(self, key):
        self.asked.append(key)
        found = self.values.get(key, 404)
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        value = self.server.value(self.path.removeprefix("/computeMetadata/v1/instance/"))
        if self.headers["Metadata-Flavor"] != "Google":
            value = 403
        self.send_response(value if isinstance(value, int) else 200)
        self.end_headers()
        self.wfile.write(b"" if isinstance(value, int) else value.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    """`served({key: value})` is a metadata server that is asked from now on."""
    servers = []

    def serve(values):
        servers.append(server := Server(values))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("JAX_PLATFORMS", "")
        monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)  # which JAX sets where it finds no TPU
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


WORKER = {"attributes/agent-worker-number": "1", "attributes/worker-network-endpoints": "w-0,w-1,w-2"}


def test_a_worker_of_a_tpu_slice_knows_its_number_and_where_the_first_one_is(served):
    served(WORKER)
    assert launch() == Launch(1, 3, "w-0", 8476, "the metadata server")


def test_older_machines_name_their_workers_by_name_number_and_address(served):
    served(WORKER | {"attributes/worker-network-endpoints": "unknown:0:10.0.0.2,unknown:1:10.0.0.3"})
    assert launch() == Launch(1, 2, "10.0.0.2", 8476, "the metadata server")


def test_workers_of_several_slices_are_numbered_through(served):
    env = "ACCELERATOR_TYPE: 'v5p-32'\nMEGASCALE_COORDINATOR_ADDRESS: '10.1.0.9:8080'\nMEGASCALE_NUM_SLICES: '2'\n"
    served(WORKER | {"attributes/tpu-env": f"{env}MEGASCALE_SLICE_ID: '1'\n"})
    assert launch() == Launch(4, 6, "10.1.0.9", 8476, "the metadata server")


def test_a_server_that_fails_is_asked_again(served):
    served(WORKER | {"attributes/agent-worker-number": [503, 503, "2"]})
    assert launch().index == 2


@pytest.mark.parametrize("values", [{}, WORKER | {"attributes/worker-network-endpoints": "w-0"}])
def test_any_other_machine_is_a_single_process(values, served):
    served(values)
    assert launch() == Launch()


@pytest.mark.parametrize(
    "env", [{"JAX_PLATFORMS": "cpu"}, {"TPU_SKIP_MDS_QUERY": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}]
)
def test_nobody_is_asked_where_no_slice_can_be(env, served, monkeypatch):
    server = served(WORKER)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch() and not server.asked


@pytest.mark.parametrize("key", ["maintenance-event", "preempted"])
def test_a_notice_is_answered_like_sigterm_and_a_move_of_a_running_machine_is_not(key, served, monkeypatch, caplog):
    values = {
        "maintenance-event": ["NONE", 503, "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"],
        "preempted": ["FALSE", "TRUE"],
    }
    server = served({key: values[key]})
    monkeypatch.setattr(google, "PERIOD", 0.01)
    with stopping.after_a_step() as signalled:
        assert signalled() == 0
        google.answer_notices()
        while not signalled():
            pass
        assert signalled() == signal.SIGTERM
    stopping._waiting.clear()
    assert f"is about to be taken away ({key} is" in caplog.text and len(server.asked) >= len(values[key])
