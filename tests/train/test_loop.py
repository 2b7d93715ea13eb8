"""Training from a config: exact resume, a NaN, checkpoints, and what is left behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from jtransfer import checkpoints, config, files
from jtransfer.checkpoints.store import Store
from jtransfer.errors import Damaged, InputError
from jtransfer.train import bad_steps, loop, programs, resuming, runs
from jtransfer.train.pace import learned

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2, dropout=0.1)
    often = dict(log_every=5, eval_every=10, checkpoint_every=10)
    mesh = {"data": 4, "rest": -1}
    rest = dict(batch=8, steps=20, accumulate=2, ema=0.9, optimiser=dict(rate=1e-2))
    return ConfigDict(dict(data="digits", model=model, mesh=mesh, **often, **rest))
"""

# Kills itself in the middle of the second half, as soon as the checkpoint of step 10 is there.
KILLED = """
import os, pathlib, signal, sys, time
from jtransfer import config
from jtransfer.train import loop, programs, runs

def on_row(row, speed):
    while row["step"] == 15 and not (pathlib.Path(sys.argv[2]) / "checkpoints" / "10").exists():
        time.sleep(0.05)
    if row["step"] == 15:
        os.kill(os.getpid(), signal.SIGKILL)

loop.train(runs.prepare(config.load("train", sys.argv[1], [])[1]), sys.argv[2], on_row)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "train.py"
    path.write_text(FILE)
    return str(path)


def prepared(file, *overrides):
    return runs.prepare(config.load("train", file, list(overrides))[1])


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Twenty steps in one go."""
    directory = tmp_path_factory.mktemp("whole")
    rows, measured, kept, save = [], [], [], Store.save

    def saving(store, step, tree, about):
        kept.append((about, json.dumps(about)))
        save(store, step, tree, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "save", saving)
        loop.train(prepared(file), directory, lambda row, pace: (rows.append(row), measured.append(pace)))
    assert [json.dumps(about) for about, _ in kept] == [said for _, said in kept], "a thread writes them meanwhile"
    assert not measured[0], "the first step compiles"
    assert all(0 <= pace["input_share"] <= 1 and pace["images_per_second"] > 0 for pace in measured[1:])
    left = [pace["seconds_left"] for pace in measured[1:]]
    assert left[-1] == 0 < left[0]
    return directory, rows


def checkpoint_of(directory, step):
    """Every array of a checkpoint, by its place in it."""
    with Store(epath.Path(directory) / "checkpoints") as store:
        tree = store.manager.restore(step)["state"]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_metrics_are_written_as_rows_and_the_model_loads_as_a_backbone(whole, file):
    directory, rows = whole
    assert learned(directory / "metrics.jsonl") == rows
    *_, last = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    assert {"images_per_second", "input_share", "seconds_left"} < last.keys()
    assert [row["step"] for row in rows] == [1, 5, 10, 15, 20]
    assert all({"loss", "accuracy", "grad_norm"} <= row.keys() for row in rows)
    assert [row["step"] for row in rows if "test_accuracy" in row] == [10, 20]
    assert any((directory / "tensorboard").iterdir())
    backbone = checkpoints.load(str(directory / "model"))
    assert backbone.classes == tuple("0123456789")
    average = checkpoint_of(directory, 20)["['state']['ema/encoder/norm/scale']"]
    assert (backbone.params["encoder/norm/scale"] == average).all()


def test_twenty_steps_in_one_go_and_ten_a_kill_and_ten_are_bit_identical(whole, file, tmp_path):
    directory, _ = whole
    assert subprocess.run([sys.executable, "-c", KILLED, file, str(tmp_path)]).returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / "10").exists()
    assert not (tmp_path / "model").exists()
    loop.train(prepared(file), tmp_path, lambda row, speed: None)
    assert learned(tmp_path / "metrics.jsonl") == learned(directory / "metrics.jsonl")
    once, twice = checkpoint_of(directory, 20), checkpoint_of(tmp_path, 20)
    assert once.keys() == twice.keys()
    for path, leaf in once.items():
        assert leaf.tobytes() == twice[path].tobytes(), path


def test_two_processes_train_as_one(file, whole, tmp_path):
    """Each has one device and half of every batch; the losses are those of one process with eight devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = "import sys; from jtransfer.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["--config.mesh.data=-1", "--config.mesh.rest=1", "--config.sharding=fsdp"]
    command = [sys.executable, "-c", code, "train", f"--config={file}", f"--workdir={tmp_path}", *flags]
    processes = []
    for i in range(2):
        env = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i), "XLA_FLAGS": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | env, **pipes))
    printed = [process.communicate(timeout=1200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "step 20" in printed[0][0] and "loss" not in printed[1][0]  # the first process speaks for all
    for ours, theirs in zip(learned(tmp_path / "metrics.jsonl"), whole[1], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
    backbone = checkpoints.load(str(tmp_path / "model"))
    assert backbone.classes == tuple("0123456789")

    run = prepared(file)
    step, tree = loop.restored(run, tmp_path)  # one process reads what two wrote
    assert step == 20 and (tree["encoder/norm/scale"] == backbone.params["encoder/norm/scale"]).all()
    refused = 0
    for path in sorted((tmp_path / "checkpoints" / "20" / "state").rglob("d/*")):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
        try:
            found = loop.restored(run, tmp_path)[1]
        except InputError as error:
            assert re.search("checkpoint .*20 (is damaged|cannot be read)", str(error))
            refused += 1
        else:  # a file that Orbax left behind and reads no more
            assert all((leaf == tree[path]).all() for path, leaf in found.items())
        path.write_bytes(content)
    assert refused


def test_a_loss_that_becomes_nan_names_the_step_and_keeps_the_last_good_checkpoint(file, tmp_path, monkeypatch):
    run = prepared(file)
    good = run.task.data.stream.batches

    def poisoned(start):
        for batch, number in good(start):
            yield batch | {"inputs": batch["inputs"][np.arange(8)] * (np.nan if number == 13 else 1)}, number

    object.__setattr__(run.task.data.stream, "batches", poisoned)
    with pytest.raises(bad_steps.Diverged, match="loss is nan at step 13; the checkpoint of step 10 is kept"):
        loop.train(run, tmp_path, lambda row, speed: None)
    with Store(epath.Path(tmp_path) / "checkpoints") as store:
        assert store.latest == 10
    assert all(np.isfinite(leaf).all() for leaf in checkpoint_of(tmp_path, 10).values())
    assert not (tmp_path / "model").exists()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 5, 10]


def test_a_finished_run_does_nothing_more_and_another_config_is_refused(whole, file):
    directory, rows = whole
    before = (directory / "metrics.jsonl").read_bytes()
    assert loop.train(prepared(file), directory, pytest.fail) == rows
    assert (directory / "metrics.jsonl").read_bytes() == before
    with pytest.raises(InputError, match=r"belongs to another config: optimiser.rate is 0.5 here and 0.01 there"):
        loop.train(prepared(file, "--config.optimiser.rate=0.5"), directory, pytest.fail)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    tree = {"head/kernel": jax.numpy.arange(4096.0), "key": jax.random.key(3)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    with Store(tmp_path / "store") as store:
        store.save(1, tree, {"why": "a test"})
    with Store(tmp_path / "store") as store:
        restored = store.restore(1, like)
        assert store.about(1) == {"why": "a test"}
        assert (restored["head/kernel"] == tree["head/kernel"]).all()
        assert (jax.random.key_data(restored["key"]) == jax.random.key_data(tree["key"])).all()
        with pytest.raises(RuntimeError, match="step 1 was not written"):
            store.save(1, tree)
    parts = [path for path in (tmp_path / "store" / "1" / "state").rglob("*") if path.is_file()]
    largest = max(parts, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with (
        Store(tmp_path / "store") as store,
        pytest.raises(InputError, match="checkpoint .*1 (is damaged|cannot be read)"),
    ):
        store.restore(1, like)


def test_a_newest_checkpoint_that_is_damaged_is_set_aside_and_the_run_goes_on_from_the_one_before(
    whole, file, tmp_path, caplog
):
    shutil.copytree(whole[0], tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "20"
    largest = max((newest / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-9])
    with pytest.raises(InputError, match="20 cannot be read .*; step 10 is there too"):
        loop.restored(prepared(file), tmp_path / "run")  # which leaves everything where it is
    steps = []
    loop.train(prepared(file), tmp_path / "run", lambda row, speed: steps.append(row["step"]))
    (said,) = [record.message for record in caplog.records if "set aside" in record.message]
    assert re.search(r"20 cannot be read .*; it is set aside as .*damaged-20, and the run goes on from step 10$", said)
    assert steps == [15, 20] and (newest.parent / "damaged-20" / "state").exists()
    once, twice = (checkpoint_of(place, 20) for place in (whole[0], tmp_path / "run"))
    assert all((leaf == twice[path]).all() for path, leaf in once.items())


def test_a_run_goes_on_on_another_mesh_in_other_shards_and_parts_as_it_would_have(whole, file, tmp_path, caplog):
    shutil.copytree(whole[0], tmp_path / "run", ignore=shutil.ignore_patterns("20"))
    flags = ("mesh={'data': 8}", "sharding=fsdp", "accumulate=1", "model.dropout=0.1")
    rows = loop.train(
        prepared(file, *(f"--config.{flag}" for flag in flags)), tmp_path / "run", lambda row, speed: None
    )
    said = "accumulate is 1 here and 2 there; mesh.data is 8 here and 4 there; mesh.rest is null here and -1 there; "
    assert f'{said}sharding is "fsdp" here and "replicated" there' in caplog.text
    assert [row["step"] for row in rows] == [1, 5, 10, 15, 20] and rows[:3] == whole[1][:3]
    assert loop.restored(prepared(file), tmp_path / "run")[0] == 20  # of the config that it was begun with


def test_a_backbone_may_compute_in_another_precision_and_be_no_other_backbone(tmp_path, caplog):
    def taken(**load):
        values = {"data": "digits", "backbone": "glyphs-vit", "method": "probe", "load": load}
        return resuming.claim(runs.prepare(ConfigDict(config.completed("train", values))), epath.Path(tmp_path))

    assert taken() == taken(dtype="bfloat16")
    assert 'was begun otherwise: load.dtype is "bfloat16" here and "float32" there' in caplog.text
    with pytest.raises(InputError, match="belongs to another config: .*fingerprints.backbone is"):
        taken(dtype="bfloat16", include="embeddings/.*")


MESHES = """
from ml_collections import ConfigDict

def get_config():
    model = dict(architecture="vit", image=(8, 8), channels=1, patch=4, width=16, depth=1, heads=2)
    often = dict(log_every=2, eval_every=8, checkpoint_every=2)
    return ConfigDict(dict(data="digits", model=model, batch=8, steps=8, **often))
"""


@pytest.mark.slow
def test_a_run_goes_on_on_fewer_devices_with_the_losses_of_one_that_kept_them(tmp_path):
    """8 devices, then 2, then 1, each with other shards; and the last steps in half the precision."""
    (tmp_path / "train.py").write_text(MESHES)
    code = """
import sys
from jtransfer import config
from jtransfer.train import loop, runs

def on_row(row, speed):
    if row["step"] == int(sys.argv[2]):
        sys.exit(3)

loop.train(runs.prepare(config.load("train", "train.py", sys.argv[3:])[1]), sys.argv[1], on_row)
"""

    def go(directory, devices, until, *flags):
        env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", code, directory, str(until), *flags]
        assert subprocess.run(command, env=env, cwd=tmp_path).returncode == (3 if until else 0)

    def rows(directory):
        return learned(tmp_path / directory / "metrics.jsonl")

    go("whole", 8, 0, "--config.sharding=fsdp")
    go("parts", 8, 4, "--config.sharding=fsdp")
    go("parts", 2, 6)
    go("parts", 1, 8)
    go("parts", 2, 0, "--config.sharding=fsdp")
    for ours, theirs in zip(rows("parts"), rows("whole"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    go("half", 2, 4)
    go("half", 2, 0, "--config.model.dtype=bfloat16", "--config.model.param_dtype=bfloat16")
    for ours, theirs in zip(rows("half"), rows("whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=0.1, abs=0.1)


@pytest.mark.parametrize("part", ["state/d", "about"])
def test_the_last_checkpoint_that_is_left_is_never_set_aside(part, whole, file, tmp_path):
    """A run whose checkpoints are all damaged does not begin anew without being told so."""
    shutil.copytree(whole[0], tmp_path / "run")
    for step in (10, 20):
        place = tmp_path / "run" / "checkpoints" / str(step) / part
        path = max(place.iterdir(), key=lambda path: path.stat().st_size)
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(InputError, match="checkpoint .*10 .*; no other is left: remove it to begin anew"):
        loop.train(prepared(file), tmp_path / "run", pytest.fail)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"10", "damaged-20"}


def test_a_checkpoint_of_another_structure_or_a_newer_version_is_whole_and_stays(tmp_path):
    tree = {"head/kernel": jax.numpy.arange(6.0).reshape(2, 3)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    with Store(tmp_path) as store:
        store.save(1, tree)
        with pytest.raises(InputError, match=r"lacks \['more'\]: it is of another structure") as error:
            store.restore(1, like | {"more": like["head/kernel"]})
        assert not isinstance(error.value, Damaged)
        with pytest.raises(InputError, match=r"\['head/kernel'\] is float32\[2,3\], expected float32\[3, 2\]") as error:
            store.restore(1, jax.eval_shape(lambda tree: jax.tree.map(jax.numpy.transpose, tree), tree))
        assert not isinstance(error.value, Damaged)
        half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=x.sharding), like)
        found = store.restore(1, half)["head/kernel"]
        assert found.dtype == "bfloat16" and (found == tree["head/kernel"].astype("bfloat16")).all()


def test_reading_checkpoints_leaves_one_alone_that_is_being_written(tmp_path):
    tree = {f"leaf_{i}": jax.numpy.full((1 << 20,), float(i)) for i in range(8)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    with Store(tmp_path / "store") as writer:
        for step in (1, 2):
            writer.save(step, tree)
            for _ in range(3):
                with Store(tmp_path / "store", reading=True) as reader:
                    assert reader.latest in (None, step - 1, step)
    with Store(tmp_path / "store", reading=True) as store:
        assert store.latest == 2
        assert all((leaf == tree[path]).all() for path, leaf in store.restore(2, like).items())


@pytest.mark.parametrize("name", ["lr[1e-3]", "a*b", "what?", "[0-9]", "C:\\runs"])
def test_a_directory_whose_name_is_no_plain_path_keeps_its_checkpoints(name, tmp_path):
    tree = {"head/kernel": jax.numpy.arange(8.0)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    for step in (1, 2, 3):
        with Store(tmp_path / name) as store:
            assert store.latest == (step - 1 or None)
            store.save(step, tree)
    with Store(tmp_path / name, reading=True) as store:
        assert (store.restore(3, like)["head/kernel"] == tree["head/kernel"]).all()
    assert sorted(path.name for path in (tmp_path / name).iterdir() if path.is_dir()) == ["2", "3"]


def test_a_checkpoint_that_was_given_another_step_is_refused(whole, file, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "20").rename(tmp_path / "20")
    (tmp_path / "run" / "checkpoints" / "10").rename(tmp_path / "run" / "checkpoints" / "20")
    with pytest.raises(InputError, match="checkpoint .*20 is that of step 10, renamed"):
        loop.train(prepared(file), tmp_path / "run", pytest.fail)


def test_a_checkpoint_that_was_copied_from_another_run_is_no_result_of_this_one(whole, file, tmp_path):
    run = prepared(file, "--config.seed=1")
    files.write_record(tmp_path / "config.json", run.record)
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    for reader in (loop.restored, lambda run, place: loop.train(run, place, pytest.fail)):
        with pytest.raises(InputError, match="checkpoint .*20 is of another config; remove it to go on"):
            reader(run, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=6", "config.batch 6 must be a multiple of 8"),
        ("checkpoint_every=7", "config.checkpoint_every 7 must be a multiple of config.log_every 5"),
        ("steps=0", "config.steps: expected a whole number from 1 to .*, found 0"),
        ("model.patch=9", "has no patch of side 9"),
        ("model.image=(16,16)", "images of digits are 8x8x1, the model takes 16x16x1"),
        ("data=digit", "dataset 'digit' is unknown; did you mean 'digits'"),
        ("method=lroa", "unknown method 'lroa'; did you mean 'lora'"),
        ("optimiser.name=adam", "config.optimiser.name: .* found 'adam' .* did you mean 'adamw'"),
        ("optimiser.schedule=cosin", "config.optimiser.schedule: .* found 'cosin' .* did you mean 'cosine'"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(file, override, message):
    with pytest.raises(InputError, match=message):
        prepared(file, f"--config.{override}")


TEXTS = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=2, checkpoint_every=2)
    return ConfigDict(dict(data="tfds:reviews", method="finetune", batch=8, optimiser=dict(rate=1e-2), **often))
"""


@pytest.mark.slow
def test_augmented_images_train_and_go_on_bit_identically_and_are_measured_whole(file, goes_on, tmp_path):
    flags = (
        "augment=random_resized_crop(8, scale=(0.5, 1.0)),flip",
        "accumulate=1",
        "ema=0",
        "steps=20",
        "log_every=5",
    )
    whole = loop.train(prepared(file, *flags), tmp_path / "whole", lambda row, speed: None)
    goes_on(lambda: prepared(file, *flags), 15, tmp_path / "whole")
    (batch, _), (again, _) = (next(prepared(file, *flags).task.data.stream.batches(7)) for _ in range(2))
    rows = np.arange(8)
    np.testing.assert_array_equal(batch["inputs"][rows], again["inputs"][rows])
    assert {*whole[-1]} >= {"loss", "test_loss"}


@pytest.mark.slow
def test_texts_train_a_text_backbone_that_keeps_its_tokenizer_and_goes_on_bit_identically(reviews, bert, tmp_path):
    (tmp_path / "train.py").write_text(TEXTS)
    flags = (f"--config.backbone={bert}", f"--config.data_dir={reviews}", "--config.steps=4")
    run = prepared(str(tmp_path / "train.py"), *flags)
    rows = loop.train(run, tmp_path / "whole", lambda row, speed: None)
    assert [row["step"] for row in rows] == [1, 2, 4]

    class Stop(Exception):
        pass

    def stop(row, speed):
        if row["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        loop.train(run, tmp_path / "parts", stop)
    assert loop.train(run, tmp_path / "parts", lambda row, speed: None) == rows
    once, twice = (checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts"))
    assert all(leaf.tobytes() == twice[path].tobytes() for path, leaf in once.items())

    backbone = checkpoints.load(str(tmp_path / "whole" / "model"))
    inputs = run.task.data.stream.held_out[1][:]
    ours, before = backbone.preprocess(inputs), run.task.start.backbone.preprocess(inputs)
    assert all((ours[name] == x).all() for name, x in before.items())
    right = np.asarray(backbone(ours)["logits"]).argmax(1) == run.task.data.stream.held_out[2]
    assert right.mean() == pytest.approx(rows[-1]["test_accuracy"])


def test_images_of_a_folder_train_and_one_that_is_damaged_stops_with_its_name(file, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(20):
        image = tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(127 * (i % 2))).save(image)
    flags = (f"--config.data=folder:{tmp_path / 'data'}", "--config.ema=0.0", "--config.log_every=10")
    rows = loop.train(prepared(file, *flags), tmp_path / "run", lambda row, speed: None)
    assert rows[-1]["test_accuracy"] == 1
    (tmp_path / "data" / "a" / "02.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"image .*/data/a/02.png cannot be read"):
        loop.train(prepared(file, *flags), tmp_path / "other", lambda row, speed: None)


def test_texts_need_a_backbone_and_are_not_mixed(file, reviews, bert):
    flags = ("--config.data=tfds:reviews", f"--config.data_dir={reviews}")
    with pytest.raises(InputError, match=r"tfds:reviews holds texts; name a config.backbone that has a tokenizer"):
        prepared(file, *flags)
    with pytest.raises(InputError, match="mixup is 0.2, but attention_mask, input_ids, .* are whole numbers"):
        prepared(file, *flags, f"--config.backbone={bert}", "--config.mixup=0.2")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["probe >> finetune", "finetune >> probe"])
@pytest.mark.parametrize("at", [10, 15])
def test_a_run_that_is_cut_off_in_a_phase_goes_on_in_it_as_if_it_had_not_been(method, at, file, tmp_path):
    """What an earlier phase trained is in the checkpoints of the later one, which does not train it."""
    flags = [f"--config.method={method}", "--config.phase_steps=(8, 12)", "--config.checkpoint_every=5"]
    flags += ["--config.eval_every=5", "--config.phase_rates=(1.0, 0.5)"]

    def cut(row, speed):
        if row["step"] == at:
            raise KeyboardInterrupt

    loop.train(prepared(file, *flags), tmp_path / "whole", lambda row, speed: None)
    with pytest.raises(KeyboardInterrupt):
        loop.train(prepared(file, *flags), tmp_path / "cut", cut)
    with Store(epath.Path(tmp_path / "cut") / "checkpoints") as store:
        assert store.latest == at - 5
    loop.train(prepared(file, *flags), tmp_path / "cut", lambda row, speed: None)
    one, other = (checkpoint_of(tmp_path / name, 20) for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all((one[path] == other[path]).all() for path in one)
    metrics = [learned(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    step, tree = loop.restored(prepared(file, *flags), tmp_path / "whole")
    kept = checkpoints.load(str(tmp_path / "whole" / "model"))
    assert step == 20
    assert all((tree[path.removeprefix("source_")] == leaf).all() for path, leaf in kept.params.items())
    start = programs.Programs(prepared(file, *flags)).start(0)[0].trainable
    moved = {path for path, leaf in start.items() if (tree[path] != leaf).any()}
    assert moved == {*start}
