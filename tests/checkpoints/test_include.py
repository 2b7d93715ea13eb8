"""A part of a checkpoint: some leaves are read, the others start at random, and that is said."""

import logging

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, methods
from jtransfer.checkpoints import Adapter, deltas, leaves
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed, ResNet, ResNetConfig, complete

FIRST = "(embeddings|encoder/block_0)/.*"


@pytest.fixture(params=["jtransfer", "timm"])
def vit(request, write_checkpoint, tmp_path):
    """A ViT in a layout: two blocks and a head of three classes."""
    return write_checkpoint(tmp_path / "vit", request.param)


def test_leaves_that_match_are_the_checkpoints_and_all_others_those_of_a_new_model(vit, caplog):
    whole = jt.load(str(vit))
    with caplog.at_level(logging.WARNING, "jtransfer"):
        part = jt.load(str(vit), include=FIRST)
    new = jax.jit(lambda key: complete(whole.whole, key, {}, whole.config.inputs))(jax.random.key(0))
    taken = {path for path in whole.params if path.startswith(("embeddings/", "encoder/block_0/"))}
    assert set(part.fresh) == whole.params.keys() - taken and part.params.keys() == whole.params.keys()
    for path, leaf in part.params.items():
        np.testing.assert_array_equal(leaf, (whole.params if path in taken else new)[path], err_msg=path)
    said = [line for line in caplog.messages if f"freshly initialised, as include='{FIRST}' leaves out" in line]
    numbers = {name: sum(path.startswith(f"{name}/") for path in part.fresh) for name in ("encoder", "source_head")}
    assert len(said) == 1 and sum(numbers.values()) == len(part.fresh) > leaves.SHOWN
    assert all(f"{name}/... ({number} leaves)" in said[0] for name, number in numbers.items())
    caplog.clear()
    few = jt.load(str(vit), include="(?!source_head).*").fresh
    assert few == ("source_head/bias", "source_head/kernel") and ", ".join(few) in caplog.text


def test_a_pattern_that_takes_all_changes_nothing(vit, caplog):
    whole, part = jt.load(str(vit)), jt.load(str(vit), include=".*")
    assert part.fingerprint == whole.fingerprint and part.fresh == () and "freshly" not in caplog.text
    assert part.origin.options is not None


@pytest.mark.parametrize(
    ("include", "said"),
    [
        ("encodr/.*", "'glyphs-vit': include: rule 'encodr/.*' matches none of the 55 leaves; did you mean 'encoder'"),
        ("encoder/norm/scal", "did you mean 'encoder/norm/scale'"),
        ("encoder", "rule 'encoder' matches none"),
        ("(", "include: expected a regular expression, found '\\('"),
        ("(e+)+$", r"include: '\(e\+\)\+\$' repeats what repeats"),
        (3, "include: expected a regular expression, found 3"),
    ],
)
def test_a_pattern_that_is_none_or_matches_no_whole_path_is_refused(include, said):
    with pytest.raises(InputError, match=said):
        jt.load("glyphs-vit", include=include)


def test_statistics_go_with_their_layer(tmp_path):
    config = ResNetConfig(image=(8, 8), block="basic", stem=4, widths=(4, 8), depths=(1, 1))
    tree = jax.jit(lambda key: complete(ResNet(config), key, {}, config.inputs))(jax.random.key(1))
    rng = np.random.default_rng(0)
    tree = {path: rng.random(x.shape, np.float32) + 2 for path, x in tree.items()}
    checkpoints.save(tmp_path, ResNet(config), tree)
    part = jt.load(str(tmp_path), include="(stem|stage_0)/.*")
    for path, leaf in part.state.items():
        initial = np.zeros_like(leaf) if path.endswith("mean") else np.ones_like(leaf)
        taken = path.startswith(("batch_stats/stem/", "batch_stats/stage_0/"))
        np.testing.assert_array_equal(leaf, tree[path] if taken else initial, err_msg=path)
    with pytest.raises(InputError, match="include: rule 'batch_stats/.*' matches none"):
        jt.load(str(tmp_path), include="batch_stats/.*")


def rewritten(directory, change):
    """The tensors of a directory changed."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors")
    return str(directory)


def test_what_is_left_out_need_not_be_there_nor_fit_and_what_is_taken_must(write_checkpoint, tmp_path):
    def change(tensors):
        tensors["mine.weight"] = np.ones((2, 2), np.float32)
        tensors["classifier.weight"] = np.ones((7, 9), np.float32)
        return {name: x for name, x in tensors.items() if ".layer.1.output" not in name}

    name = rewritten(write_checkpoint(tmp_path / "vit", "huggingface"), change)
    with pytest.raises(InputError, match="missing|belongs to no leaf"):
        jt.load(name)
    part = jt.load(name, include=FIRST)
    assert {"source_head/kernel", "encoder/block_1/mlp/down/kernel"} <= set(part.fresh)
    with pytest.raises(InputError, match="is missing for encoder/block_1/mlp/down/kernel"):
        jt.load(name, include="encoder/.*")


def test_another_size_of_images_and_of_head_goes_with_it(write_checkpoint, tmp_path):
    name = str(write_checkpoint(tmp_path / "vit", "huggingface"))
    sized = jt.load(name, image=16, classes=5)
    part = jt.load(name, image=16, classes=5, include="embeddings/.*")
    np.testing.assert_array_equal(part.params["embeddings/positions"], sized.params["embeddings/positions"])
    assert part.params["source_head/kernel"].shape == (8, 5) and part.config.image == (16, 16)
    new = jt.load(name, image=16, include="encoder/.*")
    assert new.params["embeddings/positions"].shape == (1, 17, 8)


def test_a_base_with_new_leaves_is_kept_whole_beside_what_a_method_made_of_it(write_checkpoint, tmp_path):
    base = jt.load(str(write_checkpoint(tmp_path / "vit", "huggingface")), head="", include=FIRST)
    method = methods.parse("lora(rank=2)")
    adapted = methods.adapt(method, Headed(base.model, Head(2), "head"), base.params, base.config.inputs)
    rng = np.random.default_rng(0)
    new = {p: rng.normal(size=x.shape).astype("f") for p, x in adapted.shapes.items() if p not in base.params}
    adapter = Adapter(base, method, new, Head(2), ("x", "y"))
    deltas.save(tmp_path / "adapter", adapter)
    for path in (tmp_path / "vit").iterdir():
        path.unlink()
    images = {"pixel_values": rng.random((2, 8, 8, 3)).astype("f")}
    again = jt.load(str(tmp_path / "adapter"))
    np.testing.assert_allclose(again(images)["logits"], adapter(images)["logits"], atol=1e-5)
    with pytest.raises(InputError, match="include='encoder/.*': backbone '.*' is a base and what a method made of it"):
        jt.load(str(tmp_path / "adapter"), include="encoder/.*")


def test_as_many_leaves_may_start_anew_as_the_files_vouch_for(write_checkpoint, tmp_path, monkeypatch):
    name = str(write_checkpoint(tmp_path / "vit", "huggingface"))
    monkeypatch.setattr("jtransfer.checkpoints.leaves.MOST_FRESH", 10)
    assert jt.load(name, include="encoder/norm/.*").fresh
    with pytest.raises(InputError, match="a new source_head/kernel of .* has 80,000 values; expected"):
        jt.load(name, classes=10_000)
