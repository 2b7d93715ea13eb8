"""A checkpoint on images of another size, shape or number of channels, and with another number of classes."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtransfer import checkpoints
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.resizing import resize, resize_positions
from jtransfer.errors import InputError
from jtransfer.models import (
    BertConfig,
    CLIPConfig,
    CLIPTextConfig,
    ConvNextConfig,
    Head,
    Headed,
    ResNetConfig,
    ViTConfig,
    of_config,
    shapes_of,
)

VIT = ViTConfig(image=(12, 16), patch=4, width=8, depth=1, heads=2, hidden=12, epsilon=1e-3)
DISTILLED = ViTConfig(image=(12, 12), patch=4, width=8, depth=1, heads=2, hidden=12, distilled=True)
RESNET = ResNetConfig(image=(12, 12), block="basic", stem=6, widths=(6,), depths=(1,))
CONVNEXT = ConvNextConfig(image=(12, 12), widths=(6,), depths=(1,))
GRIDS = [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((3, 4), (5, 2)), ((37, 37), (16, 16)), ((3, 3), (1, 1))]


@pytest.fixture
def save(tmp_path, random_like):
    """`save(model_type, config, kind, head)`: a random checkpoint in Hugging Face's layout, and its tree."""

    def write(model_type, config, kind="", head=None):
        family, model = FAMILIES[model_type], of_config(config)
        shapes = shapes_of(Headed(model, head) if head else model, config.inputs)
        tree = random_like({path: x.shape for path, x in shapes.items()})
        tree = {path: abs(x) if path.endswith("/var") else x for path, x in tree.items()}
        save_file(family.names(config, kind).write(tree), tmp_path / "model.safetensors")
        architecture = next(name for name, of in family.heads.items() if of == kind)
        values = family.write(config) | {"architectures": [architecture], "num_labels": head.classes if head else 2}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return str(tmp_path), tree

    return write


def positions(grid, others=2, width=3):
    """Random positions of a grid and of the tokens before it."""
    return np.random.default_rng(0).standard_normal((1, others + grid[0] * grid[1], width)).astype(np.float32)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_is_pytorchs_with_antialias_as_timm_has_it(old, new):
    torch = pytest.importorskip("torch")
    x = positions(old)
    grid = torch.from_numpy(x[:, 2:].reshape(1, *old, -1)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True, align_corners=False)
    ours = resize_positions(x, old, new, "bicubic")
    np.testing.assert_allclose(ours[:, 2:], theirs.permute(0, 2, 3, 1).flatten(1, 2).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_is_scipys_zoom_as_vision_transformer_has_it(old, new):
    from scipy import ndimage

    x = positions(old)
    zoomed = ndimage.zoom(x[0, 2:].reshape(*old, -1), (new[0] / old[0], new[1] / old[1], 1), order=1)
    np.testing.assert_array_equal(resize_positions(x, old, new, "bilinear")[0, 2:], zoomed.reshape(-1, x.shape[-1]))


def test_bilinear_leaves_corners_on_corners():
    x = np.array([0, 2, 10, 20], np.float32).reshape(1, 4, 1)
    wide = resize_positions(x, (2, 2), (3, 3), "bilinear").reshape(3, 3)
    np.testing.assert_allclose(wide, [[0, 1, 2], [5, 8, 11], [10, 15, 20]])


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_positions_of_class_and_distillation_tokens_stay_as_they_are(how):
    x = positions((3, 3)).astype(np.float16)
    resized = resize_positions(x, (3, 3), (5, 4), how)
    assert resized.shape == (1, 2 + 20, 3) and resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:, :2], x[:, :2])


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("config", "image"), [(VIT, (8, 20)), (VIT, 16), (DISTILLED, (16, 8))], ids=["wide", "square", "distilled"]
)
def test_a_vit_loads_for_another_image_with_its_positions_resized_and_all_else_the_same(config, image, how, save):
    name, tree = save("deit" if config.distilled else "vit", config)
    backbone = checkpoints.load(name, image=image, positions=how, sharding="host")
    sides = (image, image) if isinstance(image, int) else image
    assert backbone.config.image == sides
    grid = tuple(side // 4 for side in sides)
    expected = tree | {"embeddings/positions": resize_positions(tree["embeddings/positions"], config.grid, grid, how)}
    assert backbone.params.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(backbone.params[path], x, err_msg=path)
    outputs = backbone({"pixel_values": np.zeros((1, *sides, 3), np.float32)})
    assert outputs["last_hidden_state"].shape[1] == config.leading + grid[0] * grid[1]


@pytest.mark.parametrize(("model_type", "config"), [("vit", VIT), ("resnet", RESNET), ("convnext", CONVNEXT)])
def test_a_grey_image_means_what_three_equal_colours_mean(model_type, config, save):
    name, _ = save(model_type, config)
    grey = np.random.default_rng(0).standard_normal((2, *config.image, 1)).astype(np.float32)
    whole = checkpoints.load(name)({"pixel_values": np.repeat(grey, 3, -1)})
    backbone = checkpoints.load(name, channels=1)
    assert backbone.config.channels == 1
    np.testing.assert_allclose(backbone({"pixel_values": grey})["features"], whole["features"], atol=1e-4, rtol=0)


def test_a_resnet_for_another_image_has_the_same_weights(save):
    name, tree = save("resnet", RESNET)
    backbone = checkpoints.load(name, image=(20, 8), sharding="host")
    assert backbone.config.image == (20, 8)
    for path, x in (backbone.params | backbone.state).items():
        np.testing.assert_array_equal(x, tree[path], err_msg=path)


def test_of_two_towers_that_of_images_is_resized():
    both = CLIPConfig(vision=VIT, text=CLIPTextConfig(width=8, depth=1, heads=2), projection=4)
    resized, changes = resize(both, both, 8, 1, "bicubic")
    assert (resized.vision.image, resized.vision.channels, resized.text) == ((8, 8), 1, both.text)
    assert changes.keys() == {"vision/embeddings/positions", "vision/embeddings/patch/kernel"}
    assert changes["vision/embeddings/positions"](positions((3, 4), 1)).shape == (1, 1 + 4, 3)
    assert changes["vision/embeddings/patch/kernel"](np.ones((4 * 4 * 3, 8))).tolist() == np.full((16, 8), 3).tolist()


def test_the_checkpoints_own_size_changes_nothing():
    assert resize(VIT, VIT, (12, 16), 3, "bicubic") == (VIT, {})
    assert resize(VIT, VIT, None, None, "bilinear") == (VIT, {})


@pytest.mark.parametrize(
    ("config", "image", "channels", "how", "said"),
    [
        (VIT, (12, 18), None, "bicubic", r"image=\[12, 18\] is not a multiple of the checkpoint's patches of 4x4"),
        (VIT, 0, None, "bicubic", "image=0: expected height and width in pixels"),
        (RESNET, (8, 8, 8), None, "bicubic", r"image=\(8, 8, 8\): expected height and width"),
        (RESNET, 8.5, None, "bicubic", "image=8.5: expected height and width"),
        (VIT, None, 4, "bicubic", "channels=4: the checkpoint takes 3, and can be made to take 1"),
        (VIT, 8, None, "bilinar", "unknown 'bilinar'; did you mean 'bilinear'"),
        (BertConfig(), 8, None, "bicubic", "this model takes input_ids"),
    ],
)
def test_sizes_that_cannot_be_are_refused(config, image, channels, how, said):
    with pytest.raises(InputError, match=said):
        resize(config, config, image, channels, how)


def test_another_number_of_classes_starts_at_zero_and_the_own_number_keeps_the_head(save):
    name, tree = save("vit", VIT, "classification", Head(3))
    for classes in (None, 3):
        backbone = checkpoints.load(name, classes=classes, sharding="host")
        np.testing.assert_array_equal(backbone.params["source_head/kernel"], tree["source_head/kernel"])
        assert not backbone.fresh
    backbone = checkpoints.load(name, classes=7, sharding="host")
    assert set(backbone.fresh) == {"source_head/kernel", "source_head/bias"}
    assert backbone.params["source_head/kernel"].shape == (8, 7) and backbone.classes == tuple("0123456")
    assert not np.any(backbone.params["source_head/kernel"]) and not np.any(backbone.params["source_head/bias"])


def test_of_two_heads_both_start_at_zero(save):
    name, _ = save("deit", DISTILLED, "distilled", Head(3, reads="distilled"))
    backbone = checkpoints.load(name, classes=7)
    outputs = backbone({"pixel_values": np.ones((1, 12, 12, 3), np.float32)})
    assert outputs["logits"].shape == (1, 7) and not np.any(outputs["cls_logits"] + outputs["distillation_logits"])


def test_a_head_with_a_hidden_layer_keeps_that_layer_and_its_output_starts_at_zero(save):
    config = BertConfig(vocabulary=20, positions=12, width=8, depth=1, heads=2, hidden=12, pooler=False)
    family = FAMILIES["electra"]
    head = family.head({"hidden_size": 8}, "sequence", 3)
    assert head.hidden
    name, tree = save("electra", config, "sequence", head)
    backbone = checkpoints.load(name, classes=7)
    np.testing.assert_array_equal(backbone.params["source_head/dense/kernel"], tree["source_head/dense/kernel"])
    assert backbone.head.classes == 7 and set(backbone.fresh) == {"source_head/out/kernel", "source_head/out/bias"}
    assert not np.any(backbone({"input_ids": np.array([[3, 4, 5]])})["logits"])
