"""What a run watches on other data is what `jtransfer evaluate` finds of the model that it leaves."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jtransfer import checkpoints, config
from jtransfer.cli import inspection
from jtransfer.config import completed
from jtransfer.errors import InputError
from jtransfer.evaluate import run as evaluations
from jtransfer.train import loop, results, runs, watched

CLIP = {
    "architecture": "clip",
    "vision": {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 1, "heads": 2},
    "text": {"width": 16, "depth": 1, "heads": 2, "vocabulary": 514, "positions": 32, "eos_token": 513},
    "projection": 8,
}


@pytest.fixture(scope="module")
def shades(images, tmp_path_factory):
    """Bright, grey and dark images of 6x7 pixels in a file, which an image processor has to resize."""
    file, (pictures, labels) = tmp_path_factory.mktemp("shades") / "my shades.npz", images
    bytes_of = (pictures[:, :6, :7] * 255).round().astype(np.uint8)
    half = {"images": bytes_of[:24], "labels": labels[:24], "test_images": bytes_of[24:], "test_labels": labels[24:]}
    np.savez(file, **half, classes=["dark", "grey", "bright"])
    return file


@pytest.fixture(scope="module")
def start(backbone, vit, tmp_path_factory):
    """The directory of a backbone."""
    directory = tmp_path_factory.mktemp("start") / "backbone"
    checkpoints.save(directory, vit, {p.replace("source_head", "head"): x for p, x in backbone.items()}, tuple("abcde"))
    return directory


def prepared(**keys):
    every = {"log_every": 2, "eval_every": 2, "checkpoint_every": 4, "steps": 4, "batch": 16, "data": "digits"}
    return runs.prepare(ConfigDict(completed("train", every | keys)))


def trained(directory, **keys):
    """The last row of metrics of a short training."""
    return loop.train(prepared(**keys), directory, lambda row, speed: None)[-1]


def evaluated(directory, data, *protocols, **more):
    """The metrics of each protocol on the model that a run has left."""
    keys = {"backbone": str(directory / "model"), "data": data, "protocols": protocols, "store": str(directory / "x")}
    evaluation = evaluations.prepare(ConfigDict(completed("evaluate", keys | more)))
    return [row["metrics"] for row in evaluations.run(evaluation, directory / "evaluated", lambda *_: None)]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp", "replicated"])
def test_few_shots_in_the_last_row_are_those_of_evaluate_to_the_digit_over_all_devices_and_phases(
    sharding, shades, start, tmp_path
):
    """The frozen layers of the first phase are computed once; the run has eight devices, `evaluate` its own mesh."""
    few, own = "few_shot(shots=(1, 4), seeds=2)", tmp_path / "shades.npz"
    own.write_bytes(shades.read_bytes())
    data = f"npz:{own}"
    row = trained(
        tmp_path / "run",
        backbone=str(start),
        method="probe >> finetune",
        watch=(f"{few} on {data}", f"prototypes on {data}"),
        optimiser={"rate": 0.03},
        sharding=sharding,
    )
    by_shots, by_means = evaluated(tmp_path / "run", data, few, "prototypes")
    assert (row["shades_1shot"], row["shades_4shot"]) == tuple(by_shots.values())
    assert row["shades_prototypes"] == by_means["accuracy"]
    own.unlink()
    assert results.result(tmp_path / "run")[0] == 4, "exporting needs nothing of what was watched"


@pytest.mark.slow
def test_zero_shot_of_a_dual_encoder_in_training_is_that_of_evaluate(shades, tmp_path):
    row = trained(
        tmp_path,
        data="letter_captions",
        objective="clip",
        model=CLIP,
        tokenizer="bytes",
        watch=(f"zero_shot on npz:{shades}", f"few_shot(shots=(2,)) on npz:{shades}"),
        optimiser={"rate": 0.01},
    )
    names, few = evaluated(tmp_path, f"npz:{shades}", "zero_shot", "few_shot(shots=(2,))")
    assert row["my_shades_zero_shot"] == names["accuracy"]
    assert row["my_shades_2shot"] == few["accuracy at 2 shots"]


def of_words(tmp_path):
    """Keys of a BERT that starts at random on 64 texts of words, and their table with labels."""
    rng, words = np.random.default_rng(0), ["good", "bad", "film", "plot", "very", "not"]
    texts = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(64)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    rows = [f"{text},{('no', 'yes')['good' in text]}" for text in texts]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    model = {"architecture": "bert", "width": 8, "depth": 1, "heads": 2, "hidden": 8, "positions": 32}
    learned = {"objective": "masked_lm", "tokenizer": "wordpiece(size=300, least=1)", "packing": "joined"}
    keys = {"data": f"texts:{tmp_path / 'texts.txt'}", "model": model, "load": {"tokens": 16}} | learned
    return keys, f"table:{tmp_path / 'rows.csv'}?input=text&label=label"


def test_texts_are_watched_by_the_tokenizer_that_is_trained_with_the_model(tmp_path):
    keys, data = of_words(tmp_path)
    run = prepared(**keys)
    about = {"options": {"tokens": 16}, "data_dir": "", "mesh": run.mesh, "batch": 16}
    (one,) = watched.of((f"knn on {data}",), run.task.start, **about).each
    assert one.prepare.tokens == 16 and one.prepare.tokenizer.files == run.task.start.tokenizer
    ids = one.prepare(["good film"])["input_ids"]
    np.testing.assert_array_equal(ids, run.task.data.prepare.tokenizer(["good film"], length=16)["input_ids"])


@pytest.mark.slow
def test_few_shots_of_texts_from_scratch_are_those_of_evaluate(tmp_path):
    keys, data = of_words(tmp_path)
    few = "few_shot(shots=(2, 4), seeds=2)"
    row = trained(tmp_path / "run", watch=(f"{few} on {data}",), optimiser={"rate": 0.03}, **keys)
    (metrics,) = evaluated(tmp_path / "run", data, few, load={"tokens": 16})
    assert tuple(x for name, x in row.items() if name.startswith("rows_")) == tuple(metrics.values())


def test_a_tower_that_is_finetuned_on_labels_is_told_by_names_through_the_projection_it_came_with(tmp_path):
    """A probe leaves the tower as it is, so that the accuracy is the one that the README gives of the embedded CLIP."""
    keys = {"backbone": "glyphs-clip", "watch": ("zero_shot on digits",), "steps": 2, "checkpoint_every": 2}
    assert round(100 * trained(tmp_path, method="probe", **keys)["digits_zero_shot"], 1) == 70.0


def test_a_run_watches_nothing_by_default_and_an_older_run_is_of_the_same_identity(start):
    assert completed("train", {})["watch"] == ()
    assert "watch" not in prepared(backbone=str(start), method="probe").fingerprints
    one, other = (prepared(backbone=str(start), method="probe", watch=(f"{x} on digits",)) for x in ("knn", "ridge"))
    assert one.fingerprints["watch"] != other.fingerprints["watch"]


@pytest.mark.parametrize(
    ("watch", "said"),
    [
        ("few_shot", r"'few_shot': expected PROTOCOL on DATA, as 'few_shot\(shots=\(10,\)\) on tfds:cifar100'"),
        ("fewshot on digits", "unknown protocol 'fewshot'; did you mean 'few_shot'"),
        ("few_shot(shot=(1,)) on digits", "has no option 'shot'; did you mean 'shots'"),
        ("cka on digits", "unknown protocol 'cka'; "),
        ("my_protocols.mine(k=1) on digits", "protocol 'my_protocols.mine' is not watched; expected one of few_shot"),
        ("knn on digit", "dataset 'digit' is unknown; did you mean 'digits'"),
        ("few_shot(shots=(500,)) on digits", "a class of digits has 9[0-9] labelled rows; expected numbers of 1 to"),
        ("zero_shot on digits", "zero-shot needs towers of both images and texts"),
    ],
)
def test_what_cannot_be_watched_is_one_line_before_anything_compiles(watch, said, start):
    with pytest.raises(InputError, match=f"^config.watch: .*{said}"):
        prepared(backbone=str(start), method="probe", watch=(watch,))


def test_inspecting_a_step_needs_none_of_the_data_that_are_watched(start):
    keys = {"backbone": str(start), "method": "probe", "data": "digits", "watch": ("knn on tfds:not_there",)}
    (report,) = inspection.of_train(ConfigDict(completed("train", keys)))
    assert report["trainable"] == 17 * 10


def test_two_metrics_of_one_name_are_refused(start):
    with pytest.raises(InputError, match="config.watch: two are called 'digits_few_shot' in the metrics"):
        prepared(backbone=str(start), watch=("few_shot on digits", "few_shot(seeds=1) on digits"))


def test_flags_take_several_with_commas_of_their_own(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'log_every': 1})\n")
    flag = "--config.watch=few_shot(shots=(1, 5)) on digits,knn on tfds:cifar10"
    found = config.load("train", str(file), [flag])[1]
    assert found.watch == ("few_shot(shots=(1, 5)) on digits", "knn on tfds:cifar10")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits", "digits"),
        ("tfds:oxford_iiit_pet:3.2.0?test=test[:100]", "oxford_iiit_pet"),
        ("tfds:uc_merced?train=train[:1000]", "uc_merced"),
        ("npz:data/my digits.npz", "my_digits"),
        ("folder:some/where/", "where"),
        ("my_data.shards:DIR", "DIR"),
    ],
)
def test_metrics_are_called_by_the_last_part_of_the_name_of_the_data(name, said):
    assert watched.label(name) == said


def test_every_row_of_metrics_is_valid_json_with_what_is_watched(tmp_path, start):
    trained(tmp_path, backbone=str(start), method="probe", watch=("knn(k=(1,)) on digits",))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "digits_knn" in row] == [2, 4]
