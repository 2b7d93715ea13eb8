"""Features of texts that are read by length: those of one padded pass, in the order of the rows, from few programs."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jtransfer import checkpoints, models
from jtransfer.curves import arms
from jtransfer.data.dataset import Dataset, Lazy
from jtransfer.data.text import Tokenizer
from jtransfer.evaluate import features
from jtransfer.evaluate.features import extract
from jtransfer.evaluate.store import FeatureStore
from jtransfer.evaluate.task import Reader
from jtransfer.starts import batches
from jtransfer.starts.inputs import Texts

WORDS, END, PAD, LONGEST = 40, 39, 1, 64
SIZE = {"width": 8, "depth": 1, "heads": 2, "hidden": 16}
BERT = {"vocabulary": WORDS, "positions": LONGEST + 2, **SIZE}
HIDDEN = ("hidden_0.mean", "hidden_1.max", "hidden_-1.last")
MODELS = {
    "bert": (models.BertConfig(**BERT), ("features", "pooler_output", "hidden_1.cls")),
    "sentence encoder": (models.BertConfig(**BERT, pool="mean", normalize=True), ("sentence_embedding", "features")),
    "roberta": (models.BertConfig(**BERT, padding=PAD, shifted=True, types=0), ("features",)),
    "gpt2": (models.GPT2Config(vocabulary=WORDS, positions=LONGEST, **SIZE), ("features", "hidden_1.mean.normed")),
    "gpt2 that pads": (models.GPT2Config(vocabulary=WORDS, positions=LONGEST, pad_token=PAD, **SIZE), ("features",)),
    "clip": (models.CLIPTextConfig(vocabulary=WORDS, positions=LONGEST, eos_token=END, **SIZE), ("features",)),
    "clip of openai": (
        models.CLIPTextConfig(vocabulary=WORDS, positions=LONGEST, pool="largest", **SIZE),
        ("features", "pooler_output"),
    ),
}


def backbone(config):
    model = models.of_config(config)
    tree = jax.jit(lambda key: models.complete(model, key, {}, config.inputs))(jax.random.key(0))
    draw = np.random.default_rng(0)
    return checkpoints.Backbone(
        "texts", model, {path: x + 0.3 * draw.standard_normal(x.shape) for path, x in tree.items()}
    )


def tokenizer(config, **options):
    """Of texts that are numbers of words; the last is `END`."""

    def encode(texts, pairs, limit):
        rows = [[*[*map(int, text.split())][: limit - 1], END] for text in texts]
        return [(ids, [0] * len(ids), False) for ids in rows]

    names = tuple(name for name in ("input_ids", "attention_mask", "token_type_ids") if name in config.inputs)
    options = {"names": names, "whole": False, "side": "right"} | options
    own = {
        "encode": encode,
        "place": None,
        "back": None,
        "words": dict,
        "limit": LONGEST,
        "pad": PAD,
        "where": "numbers",
    }
    return Tokenizer(**own | options)


def texts(count=300):
    """Mostly short ones, of 2 to 57 tokens with the end."""
    draw = np.random.default_rng(1)
    lengths = np.minimum(1 + draw.exponential(12, count).astype(int), 56)
    return [" ".join(map(str, draw.integers(2, END, length))) for length in lengths]


def dataset(rows):
    inputs = Lazy(len(rows), lambda at: [rows[row] for row in at], "numbers")
    return Dataset("numbers", inputs, np.arange(len(rows)) % 2, ("a", "b"), np.arange(200), np.arange(200, 300), "text")


@pytest.fixture
def seen(monkeypatch):
    """`(rows, tokens)` of each batch, and a switch to the padded pass."""
    shapes, make = [], batches.batches

    def spied(*arguments):
        for rows, arrays in make(*arguments):
            shapes.append(arrays["input_ids"].shape)
            yield rows, arrays

    monkeypatch.setattr(features, "batches", spied)
    monkeypatch.setattr(batches, "platform", lambda: "gpu")  # for the same batches whatever the number of cores
    monkeypatch.setattr(batches, "TOKENS", 8)
    monkeypatch.setattr(batches, "BATCHES", 1)
    return SimpleNamespace(shapes=shapes, pad=lambda: monkeypatch.setattr(features, "separable", lambda *_: False))


@pytest.mark.parametrize("name", MODELS)
def test_features_by_length_are_those_of_the_padded_pass_in_the_order_of_the_rows(name, seen):
    config, layers = MODELS[name]
    bert, rows, prepare = backbone(config), dataset(texts()).inputs, Texts(tokenizer(config), LONGEST)
    found = extract(bert, rows, prepare, (*layers, *HIDDEN), batch=64)
    assert set(seen.shapes) == {(32, 16), (24, 24), (16, 32), (8, 64)}, "a program for each length"
    by_length = sum(n * tokens for n, tokens in seen.shapes)
    seen.shapes.clear()
    seen.pad()
    padded = extract(bert, rows, prepare, (*layers, *HIDDEN), batch=64)
    assert {tokens for _, tokens in seen.shapes} == {LONGEST}
    assert by_length < 0.5 * sum(n * tokens for n, tokens in seen.shapes)
    for layer, values in padded.items():
        np.testing.assert_allclose(found[layer], values, atol=3e-6, rtol=1e-5, err_msg=layer)


def test_lengths_of_few_texts_are_padded_to_the_next_and_long_ones_to_what_all_are(seen, monkeypatch):
    monkeypatch.setattr(batches, "BATCHES", 4)
    prepare = Texts(tokenizer(MODELS["bert"][0]), 60)
    made = list(batches.batches(prepare, dataset(texts()).inputs, np.arange(300), 64, 1, True))
    assert {arrays["input_ids"].shape[1] for _, arrays in made} == {16, 32, 60}
    assert sorted(np.concatenate([rows for rows, _ in made])) == list(range(300))
    (few,) = batches.batches(prepare, dataset(texts()[:3]).inputs, np.arange(3), 64, 1, True)
    assert few[1]["input_ids"].shape[0] == 3, "no more rows than there are"


@pytest.mark.parametrize(
    ("options", "change", "layer"),
    [
        ({"whole": True, "names": ("input_ids",)}, {"pool": "last"}, "features"),
        ({}, {"pool": "last"}, "features"),
        ({"side": "left"}, {}, "features"),
        ({"names": ("input_ids",)}, {}, "hidden_1.mean"),
    ],
)
def test_texts_are_padded_to_one_length_where_padding_counts(options, change, layer, seen):
    config = dataclasses.replace(MODELS["clip"][0], **change)
    prepare = Texts(tokenizer(config, **options), LONGEST)
    found = extract(backbone(config), dataset(texts(40)).inputs, prepare, (layer,))[layer]
    assert {tokens for _, tokens in seen.shapes} == {LONGEST}
    outputs = backbone(config)(prepare(texts(40)), output_hidden_states=True)
    expected = outputs["features"] if layer == "features" else outputs["hidden_states"][1].mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_a_head_makes_of_texts_is_padded_to_one_length():
    config = MODELS["sentence encoder"][0]
    asked = backbone(config), Texts(tokenizer(config), LONGEST)
    assert batches.separable(*asked, ("features", "hidden_states"))
    assert not batches.separable(*asked, ("features", "logits"))


def test_a_curve_reads_by_length_what_the_padded_pass_gives(monkeypatch):
    config, data = MODELS["sentence encoder"][0], dataset(texts(100))
    prepare, own, lengths, apply = Texts(tokenizer(config), LONGEST), backbone(config), [], models.apply
    monkeypatch.setattr(arms.trials, "BLOCK", 16)

    def spied(model, tree, asked, **options):
        lengths.append(asked["input_ids"].shape[1])
        return apply(model, tree, asked, **options)

    def read():
        rows = np.arange(0, 100, 2)
        return np.asarray(arms.Examples(data, rows[40:], rows, prepare, (1,)).features(own))

    monkeypatch.setattr(models, "apply", spied)
    found = read()
    assert len(set(lengths)) > 1 and max(lengths) <= LONGEST
    monkeypatch.setattr(arms, "separable", lambda *_: False)
    np.testing.assert_allclose(found, read(), atol=3e-6)


class Stopped(Exception):
    """A user's Ctrl-C."""


@pytest.mark.parametrize("stop", [1, 8])
def test_an_interrupted_extraction_of_texts_goes_on_to_the_same_bits(stop, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 128)
    config, layers = MODELS["sentence encoder"][0], ("sentence_embedding", "hidden_1.mean")
    data, steps = dataset(texts()), []

    def interrupt(what, done, rows):
        steps.append(done)
        if len(steps) == stop:
            raise Stopped

    reader = Reader(backbone(config), Texts(tokenizer(config), LONGEST), FeatureStore(tmp_path / "one"), batch=64)
    with pytest.raises(Stopped):
        dataclasses.replace(reader, progress=interrupt)(data, *layers)
    first = len(seen.shapes)
    resumed = dataclasses.replace(reader, progress=lambda what, done, rows: steps.append(done))(data, *layers)
    assert np.all(np.diff(steps) > 0) and steps[-1] == 300, "no row is read again"
    assert first > stop - 1
    whole = dataclasses.replace(reader, store=FeatureStore(tmp_path / "other"))(data, *layers)
    for layer in layers:
        np.testing.assert_array_equal(resumed[layer], whole[layer])
    assert len(list((tmp_path / "one").glob("*.npy"))) == 2, "the parts are gone"
