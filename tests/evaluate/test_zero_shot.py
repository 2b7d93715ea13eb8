"""Zero-shot classification is that of CLIP and SigLIP in transformers, and its classifier is a head like others."""

import json
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, config, models
from jtransfer.curves import run as curves
from jtransfer.errors import InputError
from jtransfer.evaluate import metrics, run, zero_shot

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHARED = Path(__file__).parents[3] / "shared" / "clip"
TOWER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24}
VISION = TOWER | {"image_size": 16, "patch_size": 8}
NAMES = ("dog", "sports car", "cat", "aeroplane", "b", "very big tree")
TEMPLATES = ("a photo of a {}.", "{}", "the {} or a {}", "art of the {}.")
LETTERS = "abcdefghijklmnopqrstuvwxyz."
IMAGES, BATCH = 40, 10


def clip(words, **text):
    """A CLIP of random weights whose tokens are letters."""
    tokenizer = transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=32)
    text = TOWER | {"vocab_size": len(words), "max_position_embeddings": 32, **text}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    return transformers.CLIPModel(config), tokenizer


def siglip():
    """A SigLIP likewise."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS])}
    tokenizer = transformers.Siglip2Tokenizer(words, [], model_max_length=48, padding_side="right")
    tokenizer.model_input_names = ["input_ids"]
    text = TOWER | {"vocab_size": len(words), "max_position_embeddings": 48}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION)), tokenizer


ENDS, PIECES = ["<|startoftext|>", "<|endoftext|>"], [*LETTERS, *(f"{c}</w>" for c in LETTERS)]
PEERS = {
    "clip": lambda: clip(ENDS + PIECES, eos_token_id=1, hidden_act="gelu"),
    "clip of openai": lambda: clip(PIECES + ENDS, eos_token_id=2),  # which means the largest id
    "siglip": siglip,
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(name)`: one of the peers, ours loaded from its directory, its text classifier, and embeddings of images."""

    @cache
    def loaded(name):
        torch.manual_seed(0)
        peer, tokenizer = PEERS[name]()
        with torch.no_grad():
            for leaf, parameter in peer.named_parameters():
                parameter.normal_(3.0 if leaf == "logit_scale" else 1.0 if "norm" in leaf else 0.0, 0.3)
        directory = tmp_path_factory.mktemp("dual")
        peer.eval().save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        pixels = np.random.default_rng(0).standard_normal((IMAGES, 16, 16, 3)).astype(np.float32)

        def theirs(texts):
            batch = tokenizer(texts, padding="max_length", return_tensors="pt")
            with torch.no_grad():
                return peer(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), **batch)

        backbone = jt.load(str(directory))
        classifier = zero_shot.text_classifier(backbone, NAMES, TEMPLATES, batch=BATCH)
        headed = models.Headed(backbone.model, classifier.head, "head")
        outputs = jax.jit(partial(models.apply, headed))(
            backbone.params | classifier.leaves(), {"pixel_values": pixels}
        )
        embeds, logits = (np.asarray(outputs[key]) for key in ("image_embeds", "logits"))
        return SimpleNamespace(
            peer=peer, of=theirs, backbone=backbone, classifier=classifier, embeds=embeds, logits=logits
        )

    return loaded


@pytest.fixture(params=PEERS)
def case(request, make):
    """Each of them."""
    return make(request.param)


@pytest.fixture
def one(make):
    """One of them, for what is the same of all."""
    return make("clip")


def ensembled(case):
    """Logits by the protocol in float64, on the embeddings of texts that transformers gives."""
    means = []
    for name in NAMES:
        texts = [template.replace("{}", name) for template in TEMPLATES]
        mean = np.mean([x / np.linalg.norm(x) for x in case.of(texts).text_embeds.double().numpy()], axis=0)
        means.append(mean / np.linalg.norm(mean))
    bias = case.peer.logit_bias.item() if hasattr(case.peer, "logit_bias") else 0
    return np.exp(case.peer.logit_scale.item()) * case.of(NAMES[0]).image_embeds.numpy() @ np.array(means).T + bias


def test_with_one_template_the_logits_are_those_of_transformers(case):
    ours = zero_shot.text_classifier(case.backbone, NAMES, batch=BATCH)(case.embeds)
    theirs = case.of([f"a photo of a {name}." for name in NAMES]).logits_per_image.numpy()
    assert theirs.std(0).min() > 0.1 and theirs.std(1).min() > 0.1  # so that every image and every name counts
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_with_several_templates_each_embedding_and_then_their_mean_has_length_1(case):
    np.testing.assert_allclose(case.classifier(case.embeds), ensembled(case), atol=1e-4)


def test_embeddings_of_any_length_are_scaled_to_length_1(one):
    scaled = one.embeds * np.linspace(0.1, 9, IMAGES, dtype=np.float32)[:, None]
    np.testing.assert_allclose(one.classifier(scaled), one.classifier(one.embeds), atol=1e-4)


def test_as_the_head_of_the_backbone_it_gives_these_logits_from_pixels(case):
    np.testing.assert_allclose(case.logits, ensembled(case), atol=1e-4)


def test_a_saved_classifier_is_loaded_to_the_bit_and_only_for_its_own_backbone(one, tmp_path):
    one.classifier.save(tmp_path / "head.npz")
    loaded = zero_shot.load(tmp_path / "head.npz", one.backbone)
    np.testing.assert_array_equal(loaded(one.embeds), one.classifier(one.embeds))
    assert (loaded.names, loaded.templates, loaded.fingerprint) == (NAMES, TEMPLATES, one.backbone.fingerprint)
    other = jt.load("glyphs-vit")
    with pytest.raises(InputError, match=f"{one.backbone.fingerprint}, but backbone 'glyphs-vit' has"):
        zero_shot.load(tmp_path / "head.npz", other)


class Spy:
    """A backbone that notes what it is called with."""

    def __init__(self, backbone):
        self.backbone, self.calls = backbone, []

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def __call__(self, batch):
        self.calls.append({name: x.shape for name, x in batch.items()})
        return self.backbone(batch)


def test_texts_are_embedded_in_batches_of_one_shape_and_no_image_with_them(one):
    spy = Spy(one.backbone)
    again = zero_shot.text_classifier(spy, NAMES, TEMPLATES, batch=BATCH)
    assert len(spy.calls) == 3 and all(call == spy.calls[0] for call in spy.calls)  # of 24 texts
    assert spy.calls[0]["input_ids"][0] == BATCH and "pixel_values" not in spy.calls[0]
    whole = zero_shot.text_classifier(one.backbone, NAMES, TEMPLATES, batch=100)
    np.testing.assert_allclose(again.kernel, whole.kernel, atol=1e-5)


def test_the_report_is_that_of_the_logits(one):
    logits = ensembled(one)
    labels = np.where(np.arange(IMAGES) % 3, logits.argmax(1), 2)
    report = zero_shot.zero_shot(one.embeds, labels, one.classifier)
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    classes = np.unique(labels)
    each = [(logits.argmax(1) == labels)[labels == c].mean() for c in classes]
    assert report.top1 == metrics.accuracy(logits, labels) < 1
    assert report.top5 == np.mean([label in np.argsort(-row)[:5] for row, label in zip(logits, labels, strict=True)])
    np.testing.assert_allclose(report.per_class[classes], each)
    assert np.isnan(report.per_class).sum() == len(NAMES) - len(classes)
    assert report.mean_per_class == pytest.approx(np.mean(each))
    assert report.nll == pytest.approx(-np.log(probabilities[np.arange(IMAGES), labels]).mean(), abs=1e-4)
    assert report.ece == pytest.approx(metrics.ece(probabilities, labels), abs=1e-4)


def test_a_name_that_stands_twice_is_refused_unless_that_is_meant(one):
    twice = ("dog", "very big tree", "dog")
    with pytest.raises(InputError, match="class names: 'dog' stands 2 times; expected each name once"):
        zero_shot.text_classifier(one.backbone, twice)
    kernel = zero_shot.text_classifier(one.backbone, twice, TEMPLATES, distinct=False, batch=BATCH).kernel
    np.testing.assert_array_equal(kernel[:, 0], kernel[:, 2])
    assert np.abs(kernel[:, 0] - kernel[:, 1]).max() > 0.1


def test_names_and_templates_are_read_from_a_json_list_or_one_a_line(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(["dog", " sports car "]))
    (tmp_path / "names.txt").write_text("dog\r\nsports car\n\n")
    for file in ("names.json", "names.txt"):
        assert zero_shot.read_texts(tmp_path / file) == ("dog", "sports car")
    (tmp_path / "map.json").write_text('{"0": "dog"}')
    (tmp_path / "broken.json").write_text('["dog"')
    for file, message in (("map.json", "expected a JSON list"), ("broken.json", "delimiter"), ("none.txt", "No such")):
        with pytest.raises(InputError, match=f"{file}: .*{message}"):
            zero_shot.read_texts(tmp_path / file)


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_the_published_names_of_imagenet_are_taken_with_their_doubles_where_that_is_meant(one):
    names = zero_shot.read_texts(SHARED / "imagenet_classes.json")
    templates = zero_shot.read_texts(SHARED / "imagenet_templates.json")
    assert (len(names), len(templates)) == (1000, 80)
    with pytest.raises(InputError, match="'missile' stands 2 times"):
        zero_shot.text_classifier(one.backbone, names, templates)
    some = [name for name in names if name in ("missile", "sunglasses", "tench")]
    classifier = zero_shot.text_classifier(one.backbone, some, templates, distinct=False, batch=BATCH)
    assert classifier.names == tuple(some) and len(some) == 5 and classifier.templates == templates
    for i, name in enumerate(some):
        np.testing.assert_array_equal(classifier.kernel[:, i], classifier.kernel[:, some.index(name)])
    assert len(np.unique(classifier.kernel, axis=1).T) == 3


def test_what_cannot_classify_is_refused_before_anything_is_embedded(one, tmp_path):
    spy = Spy(one.backbone)
    for names, templates, message in (
        ([], TEMPLATES, "class names are empty"),
        (["dog", " "], TEMPLATES, "class names: number 1 is ' '; expected a text"),
        (NAMES, [], "templates are empty"),
        (NAMES, ["a {}", "a photo"], r"templates: number 1 is 'a photo'; expected a text with \{\}"),
    ):
        with pytest.raises(InputError, match=message):
            zero_shot.text_classifier(spy, names, templates)
    with pytest.raises(InputError, match="batch is 0"):
        zero_shot.embed(spy, ["dog"], batch=0)
    assert not spy.calls
    with pytest.raises(InputError, match="'glyphs-vit' takes pixel_values; zero-shot needs towers of both"):
        zero_shot.text_classifier(jt.load("glyphs-vit"), NAMES)
    checkpoints.save(tmp_path, one.backbone.model, one.backbone.params)
    with pytest.raises(InputError, match="our own layout, which keeps no tokenizer"):
        zero_shot.text_classifier(jt.load(str(tmp_path)), NAMES)


def test_embeddings_labels_and_files_that_do_not_fit_are_refused(one, tmp_path):
    labels = np.arange(IMAGES) % len(NAMES)
    for embeds, ys, message in (
        (one.embeds[:, :5], labels, "image embeddings are 5 wide; the text classifier's"),
        (np.where(np.arange(IMAGES)[:, None] == 7, 0, one.embeds), labels, "row 7 is zero"),
        (one.embeds, labels + 1, r"labels: row 5 is 6; expected 0\.\.5"),
        (one.embeds, labels[:3], "labels: 3 where 40 are expected"),
        (one.embeds, np.array(NAMES)[labels], "expected .n. integers"),
    ):
        with pytest.raises(InputError, match=message):
            zero_shot.zero_shot(embeds, ys, one.classifier)
    np.save(tmp_path / "kernel.npy", one.classifier.kernel)
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04")
    for file in ("kernel.npy", "half.npz", "none.npz"):
        with pytest.raises(InputError, match=f"{file}: expected a text classifier"):
            zero_shot.load(tmp_path / file)


@pytest.fixture(scope="module")
def dual(make, tmp_path_factory):
    """A CLIP with an image processor of its own, and images of three classes, as a config names them."""
    directory = tmp_path_factory.mktemp("task")
    backbone = make("clip").backbone
    sides = {"height": 16, "width": 16}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=sides)
    processor.save_pretrained(backbone.origin.directory)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (rng.integers(0, 120, (60, 16, 16, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(directory / "data.npz", images=images, labels=labels, classes=NAMES[:3])
    return {"backbone": str(backbone.origin.directory), "data": f"npz:{directory / 'data.npz'}"}


def resolved(command, keys):
    file = {"curve": "configs/quickstart.py", "evaluate": "configs/evaluate.py"}[command]
    return config.load(command, file, [f"--config.{key}={value}" for key, value in keys.items()])[1]


def test_evaluate_and_curve_take_a_dual_encoder_and_agree_on_it(dual, tmp_path):
    keys = {"protocols": "zero_shot,typographic(seed=1)", "store": str(tmp_path / "store")}
    evaluation = run.prepare(resolved("evaluate", dual | keys))
    rows = run.run(evaluation, tmp_path / "evaluate", lambda *_: None)
    backbone = jt.load(dual["backbone"])
    dataset = evaluation.task.dataset
    pixels = backbone.preprocess(images=(dataset.inputs[dataset.test] * 255).round().astype(np.uint8))
    embeds = np.asarray(backbone(pixels)["image_embeds"])
    classifier = zero_shot.text_classifier(backbone, NAMES[:3])
    expected = zero_shot.zero_shot(embeds, dataset.labels[dataset.test], classifier)
    metrics_of = {row["protocol"]: row["metrics"] for row in rows}
    assert metrics_of["zero_shot"]["accuracy"] == pytest.approx(expected.top1)
    assert metrics_of["zero_shot"]["ECE"] == pytest.approx(expected.ece, abs=1e-4)
    attack = metrics_of["typographic(seed=1)"]
    assert attack["accuracy without"] == pytest.approx(expected.top1)
    lost = attack["accuracy with a neutral word"] - attack["accuracy with a wrong name"]
    assert attack["share lost to the name"] == pytest.approx(lost)

    keys = {"methods": "zero_shot,ridge,prototypes('euclidean')", "shots": "(1,2,5)", "seeds": 2}
    curve = curves.prepare(resolved("curve", dual | keys))
    found = curves.run(curve, tmp_path / "curve", lambda *_: None)
    assert [row["test_accuracy"] for row in found if row["method"] == "zero_shot"] == [pytest.approx(expected.top1)]
    assert len(found) == 1 + 2 * 3 * 2
    said = " ".join(curves.protocol(curve, found))
    assert "the template 'a photo of a {}.', read by the text tower" in said
    assert "zero_shot is worth" in said and "labels per class of ridge" in said


def test_retrieval_ranks_images_and_all_their_captions_as_counted_in_float64(
    dual, make, prepare_dataset, png, tmp_path
):
    rng, case = np.random.default_rng(1), make("clip")
    images = rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    said = [["".join(rng.choice([*LETTERS], 6)) for _ in range(1 + i % 3)] for i in range(30)]
    examples = [
        {"image": png(x), "label": i % 2, "said": own, "title": f"title {own[0]}"}
        for i, (x, own) in enumerate(zip(images, said, strict=True))
    ]

    def features(f):
        texts = {"said": f.Sequence(f.Text()), "title": f.Text()}
        return texts | {"image": f.Image(shape=(None, None, 3)), "label": f.ClassLabel(num_classes=2)}

    prepare_dataset(tmp_path, "scenes", features, {"train": examples[:6], "test": examples[6:]})
    keys = {"data": "tfds:scenes?caption=title+said", "protocols": "retrieval", "data_dir": str(tmp_path)}
    evaluation = run.prepare(resolved("evaluate", dual | keys | {"store": str(tmp_path / "store")}))
    (row,) = run.run(evaluation, tmp_path / "run", lambda *_: None)

    texts = [text for example in examples[6:] for text in (example["title"], *example["said"])]
    owners = np.repeat(np.arange(24), [1 + len(own) for own in said[6:]])
    pixels = torch.from_numpy(np.array(case.backbone.preprocess(images=images[6:])["pixel_values"]))
    with torch.no_grad():
        states = case.peer.vision_model(pixel_values=pixels.permute(0, 3, 1, 2)).pooler_output
        embeds = case.peer.visual_projection(states).double().numpy(), case.of(texts).text_embeds.double().numpy()
    x, t = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in embeds)
    match = owners == np.arange(24)[:, None]
    for way, scores, matches in (("image to text", x @ t.T, match), ("text to image", t @ x.T, match.T)):
        order = np.argsort(-scores, axis=1)
        for k in (1, 5, 10):
            hits = np.take_along_axis(matches, order[:, :k], 1).any(1)
            assert row["metrics"][f"{way} R@{k}"] == pytest.approx(hits.mean())
    assert 0 < row["metrics"]["image to text R@5"] < row["metrics"]["image to text R@10"] < 1
    assert f"24 test images and their {len(texts)} captions" in row["how"]


def test_retrieval_is_done_again_where_the_captions_alone_are_others(dual, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    keys = dual | {"data": f"npz:{tmp_path / 'data.npz'}", "protocols": "retrieval", "store": str(tmp_path / "store")}

    def recalls(captions):
        np.savez(tmp_path / "data.npz", images=images, labels=np.arange(24) % 2, captions=captions)
        did, evaluation = [], run.prepare(resolved("evaluate", keys))
        (row,) = run.run(evaluation, tmp_path / "run", lambda protocol, rows: did.extend(rows))
        return row["metrics"], len(did)

    said = np.array([f"{LETTERS[i % 5]} {LETTERS[i // 5]}" for i in range(24)])
    first, once = recalls(said)
    assert recalls(said) == (first, 0) and once == 1
    assert recalls(said[::-1])[1] == 1


def test_a_dual_encoder_whose_texts_cannot_be_read_is_refused_before_anything_runs(dual, tmp_path):
    (tmp_path / "templates.txt").write_text("a photo of\n")
    keys = dual | {"methods": "zero_shot", "templates": str(tmp_path / "templates.txt"), "shots": "(1,)"}
    with pytest.raises(InputError, match="templates: number 0 is 'a photo of'; expected a text with {} for the name"):
        curves.prepare(resolved("curve", keys))
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    keys = dual | {"protocols": f"zero_shot(names='{tmp_path / 'names.txt'}')", "store": str(tmp_path)}
    with pytest.raises(InputError, match="names.txt has 2 names, npz:.* 3 classes"):
        run.prepare(resolved("evaluate", keys))


def test_a_file_of_texts_that_is_none_is_refused_at_once_and_a_mark_at_its_beginning_is_no_letter(tmp_path):
    import os

    def file(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(zero_shot.LARGEST + 1)
    for path, message in (
        (tmp_path / "pipe", "a pipe or device, not a file"),
        (tmp_path, "a directory, not a file"),
        (tmp_path / "large", "at most 268,435,456 are read"),
        (file("latin", "café".encode("latin-1")), "can't decode"),
        (file("deep.json", b"[" * 100_000), "recursion"),
        (file("half.json", b'["a", '), "Expecting value"),
        (file("numbers.json", b"[1, 2]"), "expected a JSON list of texts"),
        (file("object.json", b'{"a": 1}'), "expected a JSON list of texts"),
    ):
        with pytest.raises(InputError, match=message) as error:
            zero_shot.read_texts(path)
        assert "\n" not in str(error.value)
    assert zero_shot.read_texts(file("marked", b"\xef\xbb\xbfcat\r\ndog\r\n")) == ("cat", "dog")
