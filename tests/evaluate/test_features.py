"""Features: any layer and pooling, in one pass over the devices, kept by what they are of."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jtransfer import checkpoints, models
from jtransfer.data import images as processing
from jtransfer.data.dataset import Dataset, Lazy, fingerprint_of_inputs
from jtransfer.errors import InputError
from jtransfer.evaluate import features
from jtransfer.evaluate.features import Layer, extract, widths_of
from jtransfer.evaluate.store import FeatureOrigin, FeatureStore
from jtransfer.evaluate.task import Reader, split
from jtransfer.starts import inputs

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
    return Reader(loaded, prepare, FeatureStore(tmp_path), batch=16)


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


@pytest.mark.parametrize("change", [{"resample": 0}, {"size": {"shortest_edge": 9}, "do_center_crop": True}])
def test_a_processor_that_changes_the_later_rows_alone_gives_other_features(reader, change):
    """The first rows have the size of the model's inputs, and are resized by neither."""
    rows = [np.full((8, 8, 1), i, np.uint8) for i in range(8)] + [np.zeros((11, 11, 1), np.uint8)]
    lazy = Lazy(9, lambda asked: [rows[row] for row in asked], "rows")
    dataset = Dataset("rows", lazy, np.arange(9) % 2, ("a", "b"), np.arange(6), np.arange(6, 9))
    values = processing.plain((8, 8, 1)).values

    def origin(values):
        prepare = inputs.through(processing.processor(values, "", (8, 8, 1)))
        return dataclasses.replace(reader, prepare=prepare).origin(dataset, "features")

    assert origin(values) == origin(dict(values)) != origin(values | {"crop_size": 8} | change)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def claim_much(array, about):
    content = array.read_bytes()
    array.write_bytes(content.replace(b"(48, 16), ", b"(9**9,16),"))


def put_another_in_place(array, about):
    values = np.load(array)
    np.save(array, values[::-1])


def pickle_it(array, about):
    np.save(array, np.array([{"a": 1}], object), allow_pickle=True)


def exchange_with_another_layer(array, about):
    (other,) = {*array.parent.glob("*.json")} - {about}
    about.write_bytes(other.read_bytes())
    array.write_bytes(other.with_suffix(".npy").read_bytes())


DAMAGES = {
    "a bit of a number": lambda array, about: flip(array, -5),
    "a bit of the header": lambda array, about: flip(array, 70),
    "a shape that is not there": claim_much,
    "cut off": lambda array, about: array.write_bytes(array.read_bytes()[:300]),
    "longer": lambda array, about: array.write_bytes(array.read_bytes() + b"more"),
    "empty": lambda array, about: array.write_bytes(b""),
    "the rows in another order": put_another_in_place,
    "a pickle": pickle_it,
    "the array is gone": lambda array, about: array.unlink(),
    "the record is gone": lambda array, about: about.unlink(),
    "a bit of the record": lambda array, about: flip(about, 60),
    "an empty record": lambda array, about: about.write_text("{}"),
    "a record of the first format": lambda array, about: about.write_text(
        json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k not in ("sha256", "format", "array")})
    ),
    "a list for a record": lambda array, about: about.write_text("[]"),
    "of another layer": exchange_with_another_layer,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_are_named_and_extracted_again_and_none_are_believed(reader, dataset, found, damage, caplog):
    reader(dataset, "features", "hidden_1.max")
    key = reader.origin(dataset, "features").key
    array, about = (reader.store.directory / f"{key}.{end}" for end in ("npy", "json"))
    DAMAGES[damage](array, about)
    seen = []
    again = dataclasses.replace(reader, progress=lambda what, done, rows: seen.append(done))
    np.testing.assert_allclose(again(dataset, "features")["features"], found["features"], atol=1e-6)
    assert seen[-1] == 48
    (said,) = [record.message for record in caplog.records]
    assert key in said and "the features are extracted again" in said and "\n" not in said
    caplog.clear()
    again(dataset, "features")
    assert seen.count(48) == 1 and not caplog.records


class Stopped(Exception):
    """A user's Ctrl-C."""


@pytest.mark.parametrize("batches", [1, 2])
def test_an_interrupted_extraction_goes_on_where_it_stopped_to_the_same_bits(reader, dataset, tmp_path, batches):
    def stop(what, done, rows):
        if done == 16 * batches:
            raise Stopped

    layers, seen = ("features", "hidden_1.max"), []
    with pytest.raises(Stopped):
        dataclasses.replace(reader, progress=stop)(dataset, *layers)
    again = dataclasses.replace(reader, progress=lambda what, done, rows: seen.append(done))
    resumed = again(dataset, *layers)
    assert seen == [16, 32, 48][batches:]
    whole = dataclasses.replace(reader, store=FeatureStore(tmp_path / "other"))(dataset, *layers)
    for layer in layers:
        np.testing.assert_array_equal(resumed[layer], whole[layer])
    assert len(list(reader.store.directory.glob("*.npy"))) == 2, "the parts are gone"


def test_a_killed_extraction_loses_no_more_than_some_seconds_and_no_damaged_part_is_believed(
    reader, dataset, found, monkeypatch, caplog
):
    monkeypatch.setattr(features, "SECONDS", -1)
    with monkeypatch.context() as killed:
        killed.setattr(FeatureStore, "write", lambda *_, **__: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            reader(dataset, "features")
    parts = sorted(reader.store.directory.glob("*.npy"))
    assert [path.name.split(".")[1] for path in parts] == ["0-16", "16-32"]
    flip(parts[1], -5)
    seen = []
    again = dataclasses.replace(reader, progress=lambda what, done, rows: seen.append(done))
    np.testing.assert_allclose(again(dataset, "features")["features"], found["features"], atol=1e-6)
    assert seen == [32, 48] and parts[1].name in caplog.text


def test_other_labels_classes_and_splits_of_the_same_inputs_are_the_same_features(reader, dataset):
    origin = reader.origin(dataset, "features")
    for change in (
        {"labels": dataset.labels[::-1], "classes": ("x", "y", "z")},
        {"labels": np.eye(3, dtype=np.int32)[dataset.labels]},
        {"pool": np.arange(40), "test": np.arange(40, 48)},
    ):
        assert reader.origin(dataclasses.replace(dataset, **change), "features") == origin
    lazy = Lazy(48, lambda rows: list(dataset.inputs[rows]), "label=a", of_inputs="inputs")
    of_other_label = dataclasses.replace(lazy, identity="label=b")
    of_other_inputs = dataclasses.replace(lazy, of_inputs="others")
    one, same, other = (
        fingerprint_of_inputs(dataclasses.replace(dataset, inputs=x)) for x in (lazy, of_other_label, of_other_inputs)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("pool", "normalize", "layer"),
    [
        ("mean", True, "sentence_embedding"),
        ("cls", False, "sentence_embedding"),
        ("pooler", False, "features"),
    ],
)
def test_a_sentence_encoder_stands_by_its_embedding_and_any_other_backbone_by_its_features(
    pool, normalize, layer, tmp_path
):
    config = models.BertConfig(
        vocabulary=11, positions=8, width=8, depth=1, heads=2, hidden=16, pool=pool, normalize=normalize
    )
    model = models.of_config(config)
    tree = jax.jit(lambda key: models.complete(model, key, {}, config.inputs))(jax.random.key(0))
    bert = checkpoints.Backbone("bert", model, tree)
    rows = Dataset("texts", Lazy(2, list, "two"), np.arange(2), ("a", "b"), np.arange(2), np.arange(2), "text")
    ids = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    reader = Reader(
        bert, lambda at: {"input_ids": ids[at], "attention_mask": 1 * (ids[at] > 0)}, FeatureStore(tmp_path), 2
    )
    assert reader.default_layer(rows) == layer
    lengths = np.linalg.norm(reader(rows, layer)[layer], axis=-1)
    assert np.allclose(lengths, 1, atol=1e-5) == normalize


def test_features_that_are_constant_or_not_finite_are_refused(reader, dataset):
    still = {path: x * 0 for path, x in reader.backbone.params.items()}
    broken = {path: x * np.nan for path, x in reader.backbone.params.items()}
    for params, message in ((still, "are constant: all 48 rows are the same"), (broken, "row 0 holds NaN")):
        dead = dataclasses.replace(reader, backbone=dataclasses.replace(reader.backbone, params=params))
        with pytest.raises(InputError, match=message):
            dead(dataset, "features")
    origin = FeatureOrigin("w", "p", "l", "d", 48)
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
