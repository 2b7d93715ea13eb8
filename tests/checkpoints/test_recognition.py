"""A directory that is named as a model or an adapter and is something else is told by what is in it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import jtransfer as jt
from jtransfer import checkpoints
from jtransfer.checkpoints import recognition
from jtransfer.errors import InputError


def touch(directory, *names, text="{}"):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CASES = {
    "an adapter": (ADAPTER, "it is an adapter of PEFT, for the base"),
    "an adapter with a copy of the base's config": ((*ADAPTER, "config.json"), "it is an adapter of PEFT"),
    "a pickled adapter": (("adapter_config.json", "adapter_model.bin"), "it is an adapter of PEFT"),
    "a workdir": (
        ("config.json", "metrics.jsonl", "model/config.json", "model/model.safetensors"),
        "it is the workdir of a training; its model is {}/model",
    ),
    "a workdir that has not ended": (("config.json", "metrics.jsonl", "checkpoints/3/x"), "has not ended"),
    "a curve": (("config.json", "cells/a.json", "results.jsonl"), "it is the workdir of `jtransfer curve`"),
    "an Orbax export": (("config.json", "jtransfer.json", "variables/x"), "it is an export of Orbax"),
    "checkpoints of Orbax": (("10/_CHECKPOINT_METADATA", "20/_CHECKPOINT_METADATA"), "it is a checkpoint of Orbax"),
    "one checkpoint of Orbax": (("_CHECKPOINT_METADATA", "state/x"), "it is a checkpoint of Orbax"),
    "images in folders": (("cats/a.JPG", "dogs/b.png"), "it is a folder of images, which config.data takes as 'folder"),
    "images": (("a.webp",), "it is a folder of images"),
    "a prepared dataset": (("dataset_info.json", "features.json"), "it is a prepared dataset"),
    "a pipeline": (("model_index.json", "unet/config.json", "unet/x.safetensors"), "it is a pipeline of diffusers"),
    "a trainer's output": (
        ("checkpoint-5/config.json", "checkpoint-5/model.safetensors"),
        "the model is in {}/checkpoint-5; name that",
    ),
    "a model of open_clip further down": (
        ("laion/open_clip_config.json", "laion/open_clip_model.safetensors"),
        "the model is in {}/laion; name that",
    ),
    "TensorFlow's weights": (("config.json", "tf_model.h5"), "its weights are in tf_model.h5, which is not read"),
    "GGUF": (("x.gguf",), "its weights are in x.gguf"),
    "a tokenizer": (("tokenizer.json", "tokenizer_config.json"), "it holds a tokenizer and no weights"),
    "nothing": ((), "it is empty"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_model_is_told_by_what_is_in_it(case, tmp_path):
    names, said = CASES[case]
    touch(tmp_path, *names)
    with pytest.raises(InputError) as error:
        checkpoints.load(str(tmp_path))
    assert said.format(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_base_of_an_adapter_is_named_if_it_is_a_name(tmp_path):
    touch(tmp_path, ADAPTER[1])
    for base, said in {"org/base": "the base 'org/base'", "a\nb": "the base 'BASE'", 3: "the base 'BASE'"}.items():
        (tmp_path / ADAPTER[0]).write_text(json.dumps({"base_model_name_or_path": base}))
        assert said in recognition.what(tmp_path)


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path):
    touch(tmp_path, *ADAPTER, "config.json", "model.safetensors")
    assert not recognition.is_adapter(recognition.entries(tmp_path))


@pytest.fixture(scope="module")
def backbone_():
    return jt.load("glyphs-vit")


@pytest.mark.parametrize(
    "case", ["a workdir", "an Orbax export", "images in folders", "a trainer's output", "nothing", "a curve"]
)
def test_what_is_no_adapter_is_told_likewise(case, backbone_, tmp_path):
    names, said = CASES[case]
    touch(tmp_path, *names)
    with pytest.raises(InputError) as error:
        jt.load_adapter(backbone_, str(tmp_path))
    assert "has no adapter_config.json: " in str(error.value) and said.format(tmp_path) in str(error.value)


def test_a_model_given_as_an_adapter_is_told_and_a_file_of_an_adapter_means_its_directory(backbone_, tmp_path):
    touch(tmp_path, "config.json", "model.safetensors")
    with pytest.raises(InputError, match="it is a model, which jtransfer.load takes"):
        jt.load_adapter(backbone_, str(tmp_path))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / ADAPTER[1])
    touch(tmp_path, ADAPTER[0])
    with pytest.raises(InputError, match="peft_type null is not supported"):
        jt.load_adapter(backbone_, str(tmp_path / ADAPTER[1]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://huggingface.co/org/name", "its name on the Hugging Face hub is 'org/name'"),
        ("https://example.org/x.safetensors", "is an address; download it, and name the directory"),
        ("http://example.org/x", "is an address; download it"),
        ("foo://x", "expected a path on a disk, or gs://BUCKET/"),
        ("gs://", "expected a path on a disk, or gs://BUCKET/"),
        ("", "backbone is empty; expected a path"),
        (" ", "backbone is empty; expected a path"),
        ("a\0b", "holds a NUL character"),
        ("~nobody-of-that-name/x", "there is no user of that name"),
        ("a/..", "unknown backbone 'a/..'"),
        ("org/../name", "unknown backbone"),
        ("/nowhere/x", "unknown backbone '/nowhere/x'"),
        ("x" * 5000, "unknown backbone"),
        ("-rf", "unknown backbone '-rf'"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_short_line(name, said):
    with pytest.raises(InputError) as error:
        checkpoints.load(name)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["org/name", "/nowhere/x", "glyphs-vi"])
def test_an_adapter_that_is_not_there_is_called_one_and_no_backbone_is_offered(name):
    with pytest.raises(InputError, match=f"^unknown adapter '{name}'") as error:
        jt.load_adapter(checkpoints.load("glyphs-vit"), name)
    assert "backbone" not in str(error.value) and "glyphs-clip" not in str(error.value)


def test_a_pipe_in_the_place_of_weights_keeps_nobody_waiting(tmp_path):
    import os

    touch(tmp_path, "config.json")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="a pipe or device, not a file"):
        checkpoints.load(str(tmp_path))
