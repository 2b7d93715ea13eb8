"""Weights in several files load as those in one do, in every layout; what is missing or damaged is one line."""

import json

import pytest

from jtransfer import checkpoints
from jtransfer.errors import InputError

INDEX, SECOND = "model.safetensors.index.json", "model-00002-of-00003.safetensors"
LAYOUTS = ("huggingface", "jtransfer", "timm", "open_clip")


@pytest.fixture(params=LAYOUTS)
def sharded(request, write_checkpoint, split, tmp_path):
    """A checkpoint in shards, and the fingerprint that it had in one file."""
    directory = write_checkpoint(tmp_path / "model", request.param)
    whole = checkpoints.load(str(directory), sharding="host")
    assert whole.origin.layout == request.param
    return split(directory), whole.fingerprint


def refusal(directory):
    """The line with which a checkpoint is refused."""
    with pytest.raises(InputError) as refused:
        checkpoints.load(str(directory), sharding="host")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_shards_give_every_leaf_of_the_single_file_to_the_bit(sharded):
    directory, whole = sharded
    assert checkpoints.load(str(directory), sharding="host").fingerprint == whole
    assert checkpoints.load(str(directory / INDEX), sharding="host").fingerprint == whole


def test_an_index_may_have_another_name_where_it_is_the_only_one(sharded):
    directory, whole = sharded
    (directory / INDEX).rename(directory / "weights.safetensors.index.json")
    assert checkpoints.load(str(directory), sharding="host").fingerprint == whole


def test_a_shard_that_is_missing_cut_or_empty_is_named_in_one_line(sharded):
    directory, _ = sharded
    shard = directory / SECOND
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) - 20])
    assert f"{shard} is truncated" in refusal(directory)
    shard.write_bytes(b"")
    assert f"{shard} is truncated or no safetensors file" in refusal(directory)
    shard.write_bytes(content[:8] + b"x" + content[9:])
    assert f"{shard}: the header is damaged" in refusal(directory)
    shard.unlink()
    assert f"shard '{SECOND}' is missing from the directory" in refusal(directory)


def test_a_tensor_that_the_index_names_and_no_shard_has_is_named(sharded):
    directory, _ = sharded
    values = json.loads((directory / INDEX).read_text())
    values["weight_map"]["one.more"] = SECOND
    (directory / INDEX).write_text(json.dumps(values))
    assert "one.more are in none of the shards" in refusal(directory)
