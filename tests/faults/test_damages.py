"""Whatever happens to what a run left, it is named, mended or harmless: never believed, and never a traceback.

A damage is drawn by its seed: a file of an artifact, and what becomes of it. Then the artifact is read as the product
reads it, and must come to what it came to undamaged, or be refused in one line.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, config, models
from jtransfer.checkpoints import export
from jtransfer.checkpoints.store import Store
from jtransfer.cli import main
from jtransfer.curves import run as curves
from jtransfer.errors import Damaged, InputError
from jtransfer.evaluate import run as evaluations
from jtransfer.train import loop, programs, resuming, runs
from jtransfer.train.pace import learned
from jtransfer.tree import flat

SHORT, LONG = 5, 100
"""Damages of each artifact: ten artifacts, a thousand damages in all."""

PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}

TRAIN = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=1, eval_every=2, checkpoint_every=1)
    return ConfigDict(dict(data="DATA", backbone="BASE", method="lora(rank=2)", batch=8, steps=2, **often))
"""
CURVE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(data="DATA", backbone="BASE", methods=("prototypes('lda')", "ridge"), shots=(2, 3), seeds=2))
"""


class Left:
    """What a train, a curve, an evaluation and exports left, each with what reads it."""

    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        labels = np.arange(60) % 3
        pictures = (rng.random((60, 8, 8, 3)) * (1 + labels[:, None, None, None]) * 85).astype(np.uint8)
        np.savez(root / "data.npz", images=pictures, labels=labels)
        data, base = f"npz:{root / 'data.npz'}", str(root / "base")
        vit = models.build("vit", image=(8, 8), channels=3, patch=4, width=16, depth=1, heads=2)
        whole = models.Classifier(vit, 3)
        tree = flat(jax.jit(whole.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"])
        checkpoints.save(root / "own", vit, tree, tuple("abc"), PROCESSOR)
        export.to_huggingface(root / "base", jt.load(str(root / "own")))

        def resolved(command, text):
            file = root / f"{command}.py"
            file.write_text(text.replace("DATA", data).replace("BASE", base))
            return config.load(command, str(file), [])[1]

        self.trained = runs.prepare(resolved("train", TRAIN))
        loop.train(self.trained, root / "train", lambda row, speed: None)
        self.like = resuming.abstract(programs.Programs(self.trained).start(0)[0])
        for form in ("hf", "peft"):
            assert main(["export", f"--workdir={root / 'train'}", f"--format={form}", f"--out={root / form}"]) == 0
        self.curve = curves.prepare(resolved("curve", CURVE))
        curves.run(self.curve, root / "curve", lambda *_: None)
        where = f"backbone={base},data={data},store={root / 'store'},protocols=prototypes+ridge"
        self.evaluation = config.load("evaluate", f"configs/evaluate.py:{where}", [])[1]
        evaluations.run(evaluations.prepare(self.evaluation), root / "evaluate", lambda *_: None)
        self.readers = {
            "train/checkpoints": self.restore,
            "train/model": lambda: self.load("train/model"),
            "train/metrics.jsonl": self.train,
            "train/config.json": self.train,
            "own": lambda: self.load("own"),
            "hf": lambda: self.load("hf"),
            "peft": self.load_adapter,
            "curve": self.go_on,
            "evaluate": self.evaluate_again,
            "store": self.evaluate_anew,
        }
        self.right = {name: self.read(name) for name in self.readers}
        self.earlier = {"train/checkpoints": self.before("train/checkpoints")}

    def read(self, name):
        """What an artifact comes to; the last two checkpoints by their step."""
        return self.readers[name]()

    def before(self, name):
        """What the checkpoint of step 1 comes to."""
        newest = self.root / name / "2"
        newest.rename(self.root / "2")
        found = self.read(name)[1]
        (self.root / "2").rename(newest)
        return found

    def add_two_processes(self):
        """What a training of two processes left, which this one process reads."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        code = "import sys; from jtransfer.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "train", f"--config={self.root / 'train.py'}"]
        command += [f"--workdir={self.root / 'two'}", "--config.sharding=fsdp"]
        launch = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": ""}
        environments = [os.environ | launch | {"JAX_PROCESS_ID": str(i)} for i in range(2)]
        processes = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for env in environments]
        assert [process.wait(300) for process in processes] == [0, 0]
        name = "two/checkpoints"
        self.readers[name] = lambda: self.restore("two")
        self.right[name] = self.read(name)
        self.earlier[name] = self.before(name)

    def restore(self, run="train"):
        with Store(self.root / run / "checkpoints", reading=True) as store:
            if store.latest is None:
                raise InputError("there is none")
            state, about = store.restore(store.latest, self.like), store.about(store.latest)
            step = int(state.step)
            if step != store.latest:
                raise Damaged("renamed")
        values = [
            np.asarray(jax.random.key_data(x) if x.dtype == state.key.dtype else x) for x in jax.tree.leaves(state)
        ]
        return {step: (b"".join(x.tobytes() for x in values), about)}

    def train(self):
        loop.train(self.trained, self.root / "train", lambda row, speed: None)
        model = (self.root / "train" / "model" / "model.safetensors").read_bytes()
        return learned(self.root / "train" / "metrics.jsonl"), model

    def load(self, name):
        backbone = jt.load(str(self.root / name))
        pictures = np.arange(2 * 192, dtype=np.float32).reshape(2, 8, 8, 3) / 384
        outputs = backbone({"pixel_values": pictures})
        return backbone.fingerprint, np.asarray(outputs["logits"]).tobytes()

    def load_adapter(self):
        adapter = jt.load_adapter(jt.load(str(self.root / "base")), self.root / "peft")
        return adapter.classes, {path: leaf.tobytes() for path, leaf in sorted(adapter.tree.items())}

    def go_on(self):
        rows = curves.run(self.curve, self.root / "curve", lambda *_: None)
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    def evaluate_again(self):
        return evaluations.run(evaluations.prepare(self.evaluation), self.root / "evaluate", lambda *_: None)

    def evaluate_anew(self):
        shutil.rmtree(self.root / "anew", ignore_errors=True)
        return evaluations.run(evaluations.prepare(self.evaluation), self.root / "anew", lambda *_: None)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    return Left(tmp_path_factory.mktemp("left"))


def flip(draw, content, others):
    place = draw.randrange(len(content)) if content else 0
    return (
        content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :] if content else b"x"
    )


def another_number(draw, content, others):
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    place = draw.choice(places) if places else None
    return content if place is None else content[:place] + str(draw.randrange(10)).encode() + content[place + 1 :]


def without_a_key(draw, content, others):
    try:
        values = json.loads(content)
        del values[draw.choice(sorted(values))]
        return json.dumps(values).encode()
    except (ValueError, TypeError, IndexError):
        return content[1:]


def zeros_within(draw, content, others):
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


def line_twice(draw, content, others):
    lines = content.splitlines(keepends=True)
    return b"".join([*lines, *lines[-1:]])


DAMAGES = {
    "a flipped bit": flip,
    "another number": another_number,
    "cut off": lambda draw, content, others: content[: draw.randrange(len(content) + 1)],
    "empty": lambda draw, content, others: b"",
    "zeros": lambda draw, content, others: bytes(len(content)),
    "zeros within": zeros_within,
    "more at the end": lambda draw, content, others: content + b"\x00",
    "an empty object": lambda draw, content, others: b"{}",
    "an empty list": lambda draw, content, others: b"[]",
    "null": lambda draw, content, others: b"null",
    "not UTF-8": lambda draw, content, others: b"\xff\xfe" + content,
    "deep": lambda draw, content, others: b"[" * 100_000,
    "the last line twice": line_twice,
    "without a key": without_a_key,
    "another file's content": lambda draw, content, others: draw.choice(others).read_bytes() if others else b"",
    "missing": None,
    "a directory": None,
}


def damage(draw, artifact: Path) -> str:
    """Damage one file of an artifact, and say how."""
    every = sorted(path for path in artifact.rglob("*") if path.is_file()) if artifact.is_dir() else [artifact]
    path, how = draw.choice(every), draw.choice(sorted(DAMAGES))
    if how in ("missing", "a directory"):
        path.unlink()
        if how == "a directory":
            path.mkdir()
    else:
        others = [other for other in every if other.suffix == path.suffix and other != path]
        path.write_bytes(DAMAGES[how](draw, path.read_bytes(), others))
    return f"{path.relative_to(artifact.parent)}: {how}"


def survive(left, name, seed, aside):
    """Damage an artifact, read it, and put everything back."""
    draw = random.Random(f"{name} {seed}")
    every = sorted({Path(reader).parts[0] for reader in left.readers})
    for directory in every:
        shutil.copytree(left.root / directory, aside / directory)
    how = damage(draw, left.root / name)
    try:
        found = left.read(name)
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, f"{how}: {error}"
    else:
        right = left.right[name]
        believed = found != right
        if name in left.earlier and (step := next(iter(found))) not in right:
            believed = found[step] != left.earlier[name]  # one that is gone leaves the one before it
        assert not believed, f"seed {seed}, {how}: believed"
    finally:
        for directory in every:
            shutil.rmtree(left.root / directory)
            (aside / directory).rename(left.root / directory)


NAMES = (
    *("train/checkpoints", "train/model", "train/metrics.jsonl", "train/config.json"),
    *("own", "hf", "peft", "curve", "evaluate", "store"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_damage_is_named_mended_or_harmless(left, name, tmp_path):
    for seed in range(SHORT):
        survive(left, name, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_damages_are_named_mended_or_harmless(left, name, tmp_path):
    for seed in range(SHORT, LONG):
        survive(left, name, seed, tmp_path)


@pytest.mark.slow
def test_a_hundred_damages_of_what_two_processes_left_are_named_or_harmless(left, tmp_path):
    left.add_two_processes()
    for seed in range(LONG):
        survive(left, "two/checkpoints", seed, tmp_path)
