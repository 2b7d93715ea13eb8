"""`config.preprocessor` says how images become numbers, of a model that starts at random or from a backbone."""

import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer as jt
from jtransfer.config import completed
from jtransfer.data import images as processors
from jtransfer.errors import InputError
from jtransfer.train import loop, runs

TINY = {"architecture": "vit", "image": (8, 8), "patch": 4, "width": 16, "depth": 1, "heads": 2, "pool": "mean"}
SQUARE = {"image_processor_type": "ViTImageProcessor"}
CUT = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 9}, "crop_size": 8}
CUT |= {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Colour images of 10x12 pixels in a file."""
    file, rng = tmp_path_factory.mktemp("pictures") / "pictures.npz", np.random.default_rng(0)
    np.savez(file, images=rng.integers(0, 256, (32, 10, 12, 3), np.uint8), labels=np.arange(32) % 2)
    return f"npz:{file}"


def prepared(**keys):
    every = {"model": TINY, "batch": 8, "steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1}
    return runs.prepare(ConfigDict(completed("train", every | keys)))


def pixels(run):
    (batch, _) = next(iter(run.task.data.stream.batches(0)))
    return batch["inputs"], run.task.data.ready(batch)["inputs"]["pixel_values"]


@pytest.mark.parametrize("values", [SQUARE, CUT])
@pytest.mark.slow
def test_a_model_that_starts_at_random_sees_images_as_the_values_say_and_keeps_them(values, pictures, tmp_path):
    run = prepared(data=pictures, preprocessor=values)
    inputs, found = pixels(run)
    raw = (inputs[np.arange(len(inputs))] * 255).round().astype(np.uint8)
    expected = processors.processor(values, "", (8, 8, 3))(raw)["pixel_values"]
    np.testing.assert_array_equal(found, expected)
    assert found.min() < -0.5 and found.max() <= 1, "big_vision's value_range(-1, 1)"
    loop.train(run, tmp_path, lambda row, speed: None)
    kept = jt.load(str(tmp_path / "model")).preprocess(raw)["pixel_values"]
    np.testing.assert_array_equal(kept, expected)


def test_parts_that_were_cut_at_random_are_normalised_too(pictures):
    found = pixels(prepared(data=pictures, preprocessor=CUT, augment=("inception_crop(8)",)))[1]
    assert found.shape[1:] == (8, 8, 3) and found.min() < -0.5


def test_values_replace_those_of_a_backbone_and_are_part_of_the_run(backbone, vit, tmp_path):
    jt.checkpoints.save(
        tmp_path, vit, {p.replace("source_head", "head"): x for p, x in backbone.items()}, tuple("abcde")
    )
    own, other = (
        prepared(
            data="digits", backbone=str(tmp_path), method="probe", preprocessor=values, model={"architecture": "vit"}
        )
        for values in ({}, SQUARE)
    )
    assert pixels(own)[1].min() == 0 and pixels(other)[1].min() == -1
    assert own.fingerprints["preprocessing"] != other.fingerprints["preprocessing"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"preprocessor": {"image_processor_type": "VitImageProcessor"}}, "did you mean 'ViTImageProcessor'"),
        ({"preprocessor": {"image_mean": [0.5, 0.5]}}, "'image_mean' is .*; expected 3 numbers"),
        ({"preprocessor": {"size": {"shortest_edge": 9}}}, "gives images of many shapes"),
        ({"preprocessor": SQUARE, "tasks": {"a": {"data": "digits"}}}, "is of a single task"),
    ],
)
def test_values_that_cannot_be_used_are_refused_before_anything_compiles(keys, said, pictures):
    keys = keys if "tasks" in keys else keys | {"data": pictures}
    with pytest.raises(InputError, match=f"^config.preprocessor.*{said}"):
        prepared(**keys)
