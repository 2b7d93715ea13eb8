"""A reader of pairs in a file of the user's: trained on by `clip`, stopped and resumed, and what is wrong with one."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import cli
from jtransfer.config import load
from jtransfer.data.sources import open_pairs
from jtransfer.data.streams import taken
from jtransfer.errors import InputError
from jtransfer.stopping import Stopped
from jtransfer.train import loop, runs

HERE = Path(__file__).parent
TRAIN = """
from ml_collections import ConfigDict

def get_config():
    vision = dict(image=(8, 8), channels=1, patch=4, width=8, depth=1, heads=2)
    text = dict(vocabulary=514, positions=24, width=8, depth=1, heads=2, eos_token=513)
    return ConfigDict(dict(
        objective="clip", data="my_pairs.shards:shards", tokenizer="bytes", templates=("a {} here", "{}"),
        model=dict(architecture="clip", vision=vision, text=text, projection=8), mesh={"data": 1, "rest": -1},
        batch=8, steps=6, log_every=1, eval_every=6, checkpoint_every=2, optimiser=dict(rate=0.01),
    ))
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, write_shards):
    """The working directory, with the user's module and config, and 30 pictures with their texts in three files."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_pairs", None)
    shutil.copy(HERE / "my_pairs.py", tmp_path)
    Path("train.py").write_text(TRAIN)
    write_shards(Path("shards"))
    yield
    sys.modules.pop("my_pairs", None)


def prepared(*flags):
    return runs.prepare(load("train", "train.py", list(flags))[1])


@pytest.mark.slow
def test_a_stream_of_pairs_goes_on_from_its_cursor_bit_for_bit():
    rows = loop.train(prepared(), "whole", lambda row, speed: None)
    assert {"temperature", "duplicates", "last_zero_shot", "last_image_to_text_r1"} <= rows[-1].keys()

    def stop(row, speed):
        if row["step"] == 5:
            raise Stopped(15, "there")

    with pytest.raises(Stopped):
        loop.train(prepared(), "parts", stop)
    assert loop.train(prepared(), "parts", lambda row, speed: None) == rows
    for path in Path("whole/model").iterdir():
        assert path.read_bytes() == Path("parts/model", path.name).read_bytes(), path.name
    texts = jt.load("parts/model").preprocess(text=["bright noise", "dark noise"])
    assert jt.load("parts/model")(texts)["text_embeds"].shape == (2, 8)


def edited(old, new):
    """Another version of the user's module."""
    source = Path("my_pairs.py").read_text()
    assert old in source
    Path("my_pairs.py").write_text(source.replace(old, new))


def first():
    """The first batch of two processes of two pairs each."""
    given = (
        next(taken(open_pairs("my_pairs.shards:shards", 4, 0, np.array(part)), 2, 0))[0] for part in ([0, 1], [2, 3])
    )
    return [(batch["images"][np.arange(2)], batch["texts"]) for batch in given]


def test_processes_share_each_batch_and_images_may_come_in_a_list():
    shares = first()
    assert [text for _, texts in shares for text in texts] == [
        "dark noise",
        "bright noise",
        "dark noise",
        "bright noise",
    ]
    edited("Rows(images, own)", "images[own]")
    sys.modules.pop("my_pairs")
    for one, other in zip(shares, first(), strict=True):
        assert one[1] == other[1]
        np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "tuple(names)",
            "()",
            "whose held_out has the names (); expected two texts at least",
        ),
        (
            "np.int32), templates",
            "np.int32), ()",
            "whose held_out has the templates (); expected texts with {} for",
        ),
        ("np.int32), t", "np.int32) + 1, t", "whose held_out has labels from 1 to 2; expected 0..1, of its classes"),
        ("after, held_out", "after, names", "whose held_out is array(['bright noise', 'dark noise']"),
        ("name, images", "name, texts", "whose images are ('dark noise', "),
        ("fingerprint[:16]", "3", "with the fingerprint 3; expected a text"),
        ('"texts": captions}', '"text": captions}', "gave a batch of 'images', 'text'; expected 'images' and 'texts'"),
        ('"texts": captions}', '"texts": captions[1:]}', "gave a batch with 1 texts; expected 2 in every batch"),
        ('"texts": captions}', '"texts": own.tolist()}', "gave a batch with 0 as a text; expected a string"),
        ("file.seek(start)", "file.seek(start[0])", "my_pairs.py', line 52: TypeError: 'int' object is not"),
    ],
)
def test_pairs_that_are_not_what_they_have_to_be_are_refused_in_one_line(old, new, said):
    edited(old, new)
    with pytest.raises(InputError) as error:
        first()
    assert said in str(error.value) and "my_pairs.shards" in str(error.value) and "\n" not in str(error.value)


def test_a_training_ends_with_that_line(capsys):
    edited('"texts": captions}', '"texts": [captions for _ in own]}')
    assert cli.main(["train", "--config=train.py", "--workdir=run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "config.data: my_pairs.shards:shards gave a batch with ['dark noise', " in line


def test_rows_are_not_learned_from_pairs(capsys):
    flags = "--config.objective=classification", "--config.tokenizer=", "--config.templates=()"
    assert cli.main(["train", "--config=train.py", "--workdir=run", *flags]) == 2
    assert "my_pairs.shards:shards is a stream of pairs; expected" in capsys.readouterr().err
    assert not Path("run").exists()
