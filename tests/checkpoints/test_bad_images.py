"""What images and options a convolutional network or a Swin does not take, in each layout: one line, before it runs."""

import json

import numpy as np
import pytest

import jtransfer as jt
from jtransfer import cli

NETWORKS = [
    ("timm", "convnext"),
    ("timm", "efficientnet"),
    ("timm", "swin"),
    *(("huggingface", name) for name in ("convnext", "efficientnet", "mobilenet_v2", "resnet", "swin")),
]
OF_TIMM = ("convnext", "dinov3_vit", "efficientnet", "swin", "vit")


@pytest.fixture(scope="module", params=NETWORKS, ids=" ".join)
def directory(request, write_checkpoint, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("mine"), *request.param)


@pytest.fixture
def data(tmp_path):
    """`make(channels)`: forty images of 20 by 24 pixels, as a config names them."""

    def make(*channels):
        images = np.random.default_rng(0).integers(0, 256, (40, 20, 24, *channels), np.uint8)
        np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
        return f"npz:{tmp_path / 'data.npz'}"

    return make


@pytest.fixture
def refused(tmp_path, capsys):
    """`line(call, *flags)`: of a call and of a command, which leaves with code 2 before it has written anything."""

    def of_both(directory, data, call, *flags):
        with pytest.raises(jt.InputError) as error:
            call()
        command = ["curve", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", *flags]
        command += [
            f"--config.backbone={directory}",
            f"--config.data={data}",
            "--config.methods=probe",
            "--config.shots=1",
        ]
        assert cli.main(command) == 2 and not (tmp_path / "run").exists()
        lines = (str(error.value), capsys.readouterr().err.rstrip("\n"))
        assert not any("\n" in line for line in lines)
        return lines

    return of_both


def test_an_image_smaller_than_the_stride_of_the_stem(directory, data, refused):
    for line in refused(directory, data(3), lambda: jt.load(str(directory), image=1), "--config.load.image=1"):
        assert "images of 1x1 are too small for " in line and "; expected at least " in line


def test_four_channels_that_a_checkpoint_of_three_cannot_be_made_to_take(directory, data, refused):
    four = {"channels": 4}
    for line in refused(directory, data(3), lambda: jt.load(str(directory), **four), "--config.load.channels=4"):
        assert "channels=4: the checkpoint takes 3, and can be made to take 1" in line


def test_images_of_five_channels(directory, data, refused):
    image = np.zeros((20, 24, 5), np.uint8)
    for line in refused(directory, data(5), lambda: jt.load(str(directory), sharding="host").preprocess([image])):
        assert "5" in line and "expected" in line


def test_grey_images_become_coloured_ones_and_transparent_ones_lie_on_white(directory):
    backbone = jt.load(str(directory), sharding="host")
    grey, clear = np.full((20, 24), 90, np.uint8), np.zeros((20, 24, 4), np.uint8)
    found, white = backbone.preprocess([grey, clear])["pixel_values"]
    coloured, expected = backbone.preprocess([np.repeat(grey[..., None], 3, -1), np.full((20, 24, 3), 255, np.uint8)])[
        "pixel_values"
    ]
    np.testing.assert_array_equal(found, coloured)
    np.testing.assert_array_equal(white, expected)


def test_a_batch_of_other_channels(directory):
    backbone = jt.load(str(directory), sharding="host")
    for channels in (1, 4):
        images = np.zeros((2, *backbone.config.image, channels), np.float32)
        with pytest.raises(jt.InputError, match=r"have shape \[2, .*\]; expected \[batch, height, width, 3\]"):
            backbone({"pixel_values": images})


def test_another_number_of_classes_starts_a_head_at_zero(directory):
    backbone = jt.load(str(directory), classes=7, sharding="host")
    assert not backbone.params["source_head/kernel"].any() and backbone.classes == tuple("0123456")


@pytest.mark.parametrize("architecture", OF_TIMM)
def test_an_option_of_timm_that_is_not_known(architecture, write_checkpoint, data, refused, tmp_path):
    directory = write_checkpoint(tmp_path / "mine", "timm", architecture)
    values = json.loads((directory / "config.json").read_text())
    args = values.get("model_args", {}) | {"aa_layer": "blurpool"}
    (directory / "config.json").write_text(json.dumps(values | {"model_args": args}))
    for line in refused(directory, data(3), lambda: jt.load(str(directory))):
        assert f"{directory / 'config.json'}: model_args: 'aa_layer' means a network that is none of ours" in line


@pytest.mark.parametrize("architecture", OF_TIMM)
@pytest.mark.parametrize("said", [{}, {"pretrained_cfg": {"input_size": [3, 16, 16], "crop_mode": "border"}}])
def test_a_config_of_timm_that_does_not_say_how_images_are_made(
    architecture, said, write_checkpoint, data, refused, tmp_path
):
    directory = write_checkpoint(tmp_path / "mine", "timm", architecture)
    values = json.loads((directory / "config.json").read_text())
    del values["pretrained_cfg"]
    (directory / "config.json").write_text(json.dumps(values | said))
    for line in refused(directory, data(3), lambda: jt.load(str(directory), sharding="host").preprocess):
        assert f"{directory / 'config.json'}: pretrained_cfg, which says how images are preprocessed, " in line
        assert ("has no square images" if said else "is not there") in line


@pytest.mark.parametrize("architecture", [name for name in OF_TIMM if name != "vit"])
def test_tensors_of_timm_without_a_config(architecture, write_checkpoint, data, refused, tmp_path):
    directory = write_checkpoint(tmp_path / "mine", "timm", architecture)
    (directory / "config.json").unlink()
    for line in refused(directory, data(3), lambda: jt.load(str(directory))):
        assert "no config.json of timm is beside it, whose architecture tells what no shape does" in line
