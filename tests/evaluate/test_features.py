"""Features: any layer and pooling, in one pass over the devices, kept by what they are of."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jtransfer import checkpoints, models
from jtransfer.data.dataset import Dataset, Lazy
from jtransfer.errors import InputError
from jtransfer.evaluate.features import Layer, extract, widths_of
from jtransfer.evaluate.store import Origin, Store, same_space
from jtransfer.evaluate.task import Reader, split

LAYERS = ("features", "hidden_0.mean", "hidden_1.max", "hidden_-1.mean", "hidden_-1.mean.normed", "hidden_2.last")


@pytest.fixture(scope="module")
def loaded(backbone, vit, tmp_path_factory):
    """The random ViT of two blocks, without a head."""
    directory = tmp_path_factory.mktemp("backbone")
    checkpoints.save(directory, vit, {p: x for p, x in backbone.items() if not p.startswith("source_head")})
    return checkpoints.load(str(directory))


@pytest.fixture(scope="module")
def dataset(images):
    pictures, labels = images
    return Dataset("pictures", pictures, labels, ("a", "b", "c"), np.arange(30), np.arange(30, 48))


def prepare(inputs):
    return {"pixel_values": np.asarray(inputs)}


@pytest.fixture(scope="module")
def found(loaded, dataset):
    return extract(loaded, dataset.inputs, prepare, LAYERS, batch=16)


def test_each_layer_is_the_pooled_state_of_the_model(loaded, dataset, found):
    outputs = loaded(prepare(dataset.inputs), output_hidden_states=True)
    states = [np.asarray(x) for x in outputs["hidden_states"]]
    # this model has no class token: its four tokens are all patches
    expected = {
        "features": outputs["features"],
        "hidden_0.mean": states[0].mean(1),
        "hidden_1.max": states[1].max(1),
        "hidden_-1.mean": states[2].mean(1),
        "hidden_-1.mean.normed": np.asarray(outputs["last_hidden_state"]).mean(1),
        "hidden_2.last": states[2][:, -1],
    }
    for layer, values in expected.items():
        assert found[layer].dtype == np.float32 and found[layer].shape == (48, 16)
        np.testing.assert_allclose(found[layer], values, atol=1e-5, err_msg=layer)


def test_a_batch_that_does_not_divide_the_rows_or_the_devices_changes_nothing(loaded, dataset, found):
    seen = []
    odd = extract(loaded, dataset.inputs, prepare, LAYERS[:2], batch=13, progress=lambda *at: seen.append(at))
    for layer, values in odd.items():
        np.testing.assert_allclose(values, found[layer], atol=1e-6)
    assert seen == [(16, 48), (32, 48), (48, 48)], "13 rows become 16 on eight devices"


def test_the_batch_is_split_over_the_devices_and_the_weights_are_on_each(loaded, dataset, monkeypatch):
    layouts = {}
    apply = models.apply

    def spy(model, tree, inputs, **options):
        jax.debug.inspect_array_sharding(inputs["pixel_values"], callback=lambda s: layouts.setdefault("batch", s))
        return apply(model, tree, inputs, **options)

    monkeypatch.setattr(models, "apply", spy)
    extract(loaded, dataset.inputs, prepare, ("features",), batch=48)
    assert layouts["batch"].shard_shape((48, 8, 8, 1)) == (6, 8, 8, 1)


def test_the_class_token_is_the_first_where_a_model_has_one(dataset):
    model = models.build("vit", image=(8, 8), channels=1, patch=4, width=8, depth=1, heads=2, pool="cls")
    tree = jax.jit(lambda key: models.complete(model, key, {}, model.config.inputs))(jax.random.key(0))
    vit = checkpoints.Backbone("vit", model, tree)
    found = extract(vit, dataset.inputs[:3], prepare, ("hidden_1.cls", "hidden_1.mean"), batch=3)
    states = np.asarray(vit(prepare(dataset.inputs[:3]), output_hidden_states=True)["hidden_states"][1])
    np.testing.assert_allclose(found["hidden_1.cls"], states[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["hidden_1.mean"], states[:, 1:].mean(1), atol=1e-5)


def test_padding_is_in_no_pool_of_texts():
    config = models.BertConfig(vocabulary=11, positions=8, width=8, depth=1, heads=2, hidden=16)
    model = models.of_config(config)
    tree = jax.jit(lambda key: models.complete(model, key, {}, config.inputs))(jax.random.key(0))
    bert = checkpoints.Backbone("bert", model, tree)
    ids = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    mask = (ids > 0).astype(np.int32)
    layers = ("hidden_1.mean", "hidden_1.max", "hidden_1.last", "hidden_1.cls")
    rows = Lazy(2, lambda at: list(at), "two texts")
    make = lambda at: {"input_ids": ids[at], "attention_mask": mask[at]}  # noqa: E731
    found = extract(bert, rows, make, layers, batch=2)
    states = np.asarray(bert({"input_ids": ids, "attention_mask": mask}, output_hidden_states=True)["hidden_states"][1])
    expected = [states[0, :3].mean(0), states[0, :3].max(0), states[0, 2], states[0, 0]]
    for layer, values in zip(layers, expected, strict=True):
        np.testing.assert_allclose(found[layer][0], values, atol=1e-5, err_msg=layer)
    np.testing.assert_allclose(found["hidden_1.last"][1], states[1, 4], atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    {
        "hidden_1": "unknown pooling 'None'; choose one of cls, last, max, mean",
        "hidden_1.meen": "unknown pooling 'meen'; did you mean 'mean'?",
        "hidden": "expected the name of an output, or hidden_K.POOLING",
        "feature": "has no such output; did you mean 'features'?",
        "hidden_3.mean": r"has the hidden states 0 \(its embeddings\) to 2",
        "last_hidden_state": "has no such output",
        "hidden_1.cls": "layer 'hidden_1.cls': backbone '.*' has no class token; choose one of mean, max, last",
    }.items(),
)
def test_a_layer_that_is_not_there_is_refused_before_anything_runs(loaded, dataset, layer, message):
    with pytest.raises(InputError, match=message):
        widths_of(loaded, [layer], prepare(dataset.inputs[:1]))


def test_names_of_layers_say_where_they_are():
    assert Layer.parse("hidden_-4.cls.normed") == Layer("hidden_states", -4, "cls", normed=True)
    assert Layer.parse("image_embeds") == Layer("image_embeds")


@pytest.fixture
def reader(loaded, tmp_path):
    return Reader(loaded, prepare, Store(tmp_path), batch=16)


def test_what_was_extracted_once_is_read_from_the_store(reader, dataset, found, monkeypatch):
    asked = []
    counting = dataclasses.replace(reader, progress=lambda what, done, rows: asked.append(done))
    first = counting(dataset, "features", "hidden_1.max")
    assert asked == [16, 32, 48]
    again = counting(dataset, "hidden_1.max", "hidden_0.mean", "features")
    assert asked == [16, 32, 48] * 2, "one more pass, for the layer that was missing"
    counting(dataset, *again)
    assert len(asked) == 6
    assert isinstance(counting(dataset, "features")["features"], np.memmap)
    for layer, values in (first | again).items():
        np.testing.assert_allclose(values, found[layer], atol=1e-6)


def test_other_weights_data_preprocessing_or_layers_are_other_features(reader, dataset):
    origin = reader.origin(dataset, "features")
    other_weights = dataclasses.replace(
        reader.backbone, params={path: x * 1.5 for path, x in reader.backbone.params.items()}
    )
    different = [
        reader.origin(dataset, "hidden_0.mean"),
        reader.origin(dataclasses.replace(dataset, inputs=dataset.inputs * 0.5), "features"),
        dataclasses.replace(reader, prepare=lambda x: prepare(x * 2)).origin(dataset, "features"),
        dataclasses.replace(reader, backbone=other_weights).origin(dataset, "features"),
    ]
    assert len({origin.key, *(other.key for other in different)}) == 5
    assert origin == reader.origin(dataclasses.replace(dataset, name="the same by another name"), "features")


def test_features_of_another_preprocessing_are_refused_in_one_line(reader, dataset):
    reader(dataset, "features")
    origin = reader.origin(dataset, "features")
    about = reader.store.directory / f"{origin.key}.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"preprocessing": "0123456789abcdef"}))
    with pytest.raises(InputError, match=f"features of preprocessing 0123456789abcdef, not {origin.preprocessing}"):
        reader(dataset, "features")
    other = dataclasses.replace(origin, preprocessing="0123456789abcdef")
    with pytest.raises(InputError, match="gap: features of preprocessing .* cannot be compared"):
        same_space(origin, other, "gap")


def test_a_damaged_entry_of_the_store_is_named(reader, dataset):
    reader(dataset, "features")
    array = reader.store.directory / f"{reader.origin(dataset, 'features').key}.npy"
    array.write_bytes(array.read_bytes()[:300])
    with pytest.raises(InputError, match=f"{array.name}: damaged features"):
        reader(dataset, "features")


def test_features_that_are_constant_or_not_finite_are_refused(reader, dataset):
    still = {path: x * 0 for path, x in reader.backbone.params.items()}
    broken = {path: x * np.nan for path, x in reader.backbone.params.items()}
    for params, message in ((still, "are constant: all 48 rows are the same"), (broken, "row 0 holds NaN")):
        dead = dataclasses.replace(reader, backbone=dataclasses.replace(reader.backbone, params=params))
        with pytest.raises(InputError, match=message):
            dead(dataset, "features")
    origin = Origin("w", "p", "l", "d", 48)
    assert reader.store.read(origin) is None


def test_validation_rows_are_a_share_of_each_class_of_the_pool_and_no_test_row(dataset):
    train, validation, how = split(dataset, 0.2)
    assert sorted([*train, *validation]) == list(range(30))
    assert np.bincount(dataset.labels[validation]).tolist() == [2, 2, 2] and "20% of each class" in how
    assert np.array_equal(validation, split(dataset, 0.2)[1]), "the same each time"
    for share in (0, 1, 1.5):
        with pytest.raises(InputError, match="expected a share between 0 and 1"):
            split(dataset, share)
    with pytest.raises(InputError, match="the test split is empty"):
        split(dataclasses.replace(dataset, test=dataset.test[:0]), 0.2)
    train, validation, how = split(dataclasses.replace(dataset, pool=np.array([0, 1, 2, 3, 4])), 0.2)
    assert np.bincount(dataset.labels[train]).tolist() == [1, 1, 1], "a class of one row is fitted, and chooses nothing"
    assert np.bincount(dataset.labels[validation]).tolist() == [1, 1] and "nothing of the 1 with a single row" in how
    with pytest.raises(InputError, match="every class has a single row"):
        split(dataclasses.replace(dataset, pool=np.array([0, 1, 2])), 0.2)
