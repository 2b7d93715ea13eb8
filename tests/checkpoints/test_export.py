"""`jtransfer export`: what a run came to, as Hugging Face, PEFT and Orbax read it, with equal outputs."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, config, files, methods, models
from jtransfer.checkpoints import Adapter, to_huggingface, to_orbax
from jtransfer.checkpoints.export import write
from jtransfer.cli import main
from jtransfer.errors import InputError
from jtransfer.models import Head, build
from jtransfer.train import loop, runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CLOSE = {"atol": 1e-4, "rtol": 0}
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=4, eval_every=4, checkpoint_every=4)
    rest = dict(data="digits", batch=8, steps=8, optimiser=dict(rate=2e-2), mesh=dict(data=4, rest=-1))
    return ConfigDict(dict({options}, **often, **rest))
"""
SIDES = {"image_size": 8, "patch_size": 4, "num_channels": 1}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}


def make(name, **options):
    """A peer in evaluation mode with every parameter random."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    peer = kind(kind.config_class(**BLOCKS | options)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0.1, 0.2)
    return peer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of a small vision transformer of Hugging Face, with its image processor."""
    directory = tmp_path_factory.mktemp("base")
    make("ViTForImageClassification", **SIDES, num_labels=3).save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(SIZE))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(options of the config) -> workdir`."""

    def train(**options):
        directory = tmp_path_factory.mktemp("run")
        file = directory / "config.py"
        file.write_text(FILE.format(options=", ".join(f"{key}={value!r}" for key, value in options.items())))
        _, loaded = config.load("train", str(file), [])
        loop.train(runs.prepare(loaded), directory / "workdir", lambda row, speed: None)
        return directory / "workdir"

    return train


@pytest.fixture(scope="module")
def adapted(trained, base):
    """A run that put rank-stabilised LoRA on the checkpoint of Hugging Face."""
    return trained(backbone=str(base), method="lora(rank=2, rs=True, ranks={'.*1/.*/query': 3})", ema=0.5)


@pytest.fixture(scope="module")
def pretrained(trained):
    """A run that trained a model of ours from a random start."""
    model = {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 1, "heads": 2}
    return trained(model=model, method="scratch")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((6, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(adapted, pretrained, images):
    """Logits of the models that the runs left in their workdirs, in our own layout."""
    return {run: jt.load(str(run / "model"))({"pixel_values": images})["logits"] for run in (adapted, pretrained)}


def export(run, out, *flags):
    assert main(["export", f"--workdir={run}", f"--out={out}", *flags]) == 0
    return out


def logits_of(peer, images):
    return peer.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.detach().numpy()


def from_pretrained(directory, **options):
    """The model, from which nothing of the files was left out and to which nothing was added."""
    load = transformers.AutoModelForImageClassification.from_pretrained
    peer, info = load(directory, output_loading_info=True, **options)
    assert not any(info.values()), info
    return peer


def test_merged_weights_load_in_transformers_with_equal_outputs_and_the_classes(adapted, expected, images, tmp_path):
    out = export(adapted, tmp_path / "out", "--format=hf")
    peer = from_pretrained(out)
    np.testing.assert_allclose(logits_of(peer, images), expected[adapted], **CLOSE)
    assert peer.config.id2label == {i: str(i) for i in range(10)} and peer.config.label2id["7"] == 7
    assert not getattr(peer, "peft_config", None)
    assert json.loads((out / "preprocessor_config.json").read_text()) == SIZE
    assert json.loads((out / "jtransfer.json").read_text())["step"] == 8
    np.testing.assert_allclose(jt.load(str(out))({"pixel_values": images})["logits"], expected[adapted], atol=1e-6)


def test_adapters_kept_apart_are_put_on_by_transformers_from_any_directory(
    adapted, base, expected, images, tmp_path, monkeypatch
):
    out = export(adapted, tmp_path / "out", "--format=hf", "--adapters=apart")
    moved = shutil.move(out, tmp_path / "moved")
    monkeypatch.chdir("/")
    peer = from_pretrained(moved)
    np.testing.assert_allclose(logits_of(peer, images), expected[adapted], **CLOSE)
    assert peer.peft_config["default"].use_rslora
    before, after = (jt.load(str(directory)).params for directory in (base, moved))
    assert all((after[path] == before[path]).all() for path in before if not path.startswith("source_head"))
    plain = transformers.AutoModelForImageClassification.from_pretrained(
        base, num_labels=10, ignore_mismatched_sizes=True
    )
    np.testing.assert_allclose(
        logits_of(peft.PeftModel.from_pretrained(plain, moved), images), expected[adapted], **CLOSE
    )
    again = jt.load_adapter(jt.load(str(moved)), str(moved))
    np.testing.assert_allclose(again({"pixel_values": images})["logits"], expected[adapted], **CLOSE)


def test_an_adapter_alone_gives_equal_outputs_on_the_base_with_its_head(adapted, base, expected, images, tmp_path):
    out = export(adapted, tmp_path / "out", "--format=peft")
    assert sorted(os.listdir(out)) == ["adapter_config.json", "adapter_model.safetensors", "jtransfer.json"]
    plain = transformers.AutoModelForImageClassification.from_pretrained(
        base, num_labels=10, ignore_mismatched_sizes=True
    )
    found = peft.PeftModel.from_pretrained(plain, out)
    np.testing.assert_allclose(logits_of(found, images), expected[adapted], **CLOSE)
    values = found.peft_config["default"]
    assert (values.r, values.lora_alpha, values.modules_to_save) == (2, 8, ["classifier"])
    assert values.base_model_name_or_path == str(base)


@pytest.mark.parametrize("adapters", ["merged", "apart"])
def test_orbax_restores_the_variables_that_flax_takes(adapters, adapted, expected, images, tmp_path):
    import orbax.checkpoint as ocp

    odd = export(adapted, tmp_path / "lr[1e-3]", "--format=orbax", f"--adapters={adapters}")
    out = odd.rename(tmp_path / "out")  # Orbax reads no directory of that name
    variables = ocp.StandardCheckpointer().restore(out / "variables")
    values = json.loads((out / "config.json").read_text())
    head, classes, method = (values.pop(key) for key in ("head", "classes", "method"))
    model = models.Headed(build(**values), Head(**head), "head")
    if adapters == "apart":
        from jtransfer.methods.method import Intercepted

        assert variables["params"]["encoder"]["block_1"]["attention"]["query"]["lora"]["a"].shape == (16, 3)
        model = Intercepted(model, methods.parse(method).adds)
    assert len(classes) == 10
    logits = jax.jit(model.apply)(variables, images)["logits"]
    np.testing.assert_allclose(logits, expected[adapted], atol=1e-6)


def test_a_model_of_ours_becomes_one_of_hugging_face(pretrained, expected, images, tmp_path):
    out = export(pretrained, tmp_path / "out", "--format=hf")
    np.testing.assert_allclose(logits_of(from_pretrained(out), images), expected[pretrained], **CLOSE)


def test_an_earlier_export_is_replaced_as_a_whole(base, tmp_path):
    to_huggingface(tmp_path / "out", jt.load(str(base)))
    to_orbax(tmp_path / "out", jt.load(str(base)))
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "jtransfer.json", "variables"]
    assert os.listdir(tmp_path) == ["out"]


def line_of(capsys, *flags):
    assert main(["export", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("jtransfer: error: ") and not captured.out
    return captured.err


def test_a_mistake_gets_one_line_and_writes_nothing(adapted, pretrained, tmp_path, capsys, monkeypatch):
    def error(workdir, format, out=tmp_path / "out", *more):
        line = line_of(capsys, f"--workdir={workdir}", f"--format={format}", f"--out={out}", *more)
        assert not (tmp_path / "out").exists()
        return line

    assert "unknown format 'hff'; did you mean 'hf'?" in error(adapted, "hff")
    assert "unknown adapters 'merge'; did you mean 'merged'?" in error(
        adapted, "hf", tmp_path / "out", "--adapters=merge"
    )
    assert "has no config.json; expected the directory of a 'jtransfer train' run" in error(tmp_path, "hf")
    (tmp_path / "curve").mkdir()
    (tmp_path / "curve" / "config.json").write_text('{"methods": ["probe"], "shots": [1]}')
    assert "is of no 'jtransfer train', which alone keeps weights" in error(tmp_path / "curve", "hf")
    (tmp_path / "new").mkdir()
    shutil.copy(pretrained / "config.json", tmp_path / "new")
    assert "there is no checkpoint yet" in error(tmp_path / "new", "hf")
    assert os.listdir(tmp_path / "new") == ["config.json"]
    assert "is not empty, and holds no earlier export" in error(adapted, "hf", adapted)
    monkeypatch.setitem(files.SCHEMES, "gs", "json")  # a package that is there
    assert "gs://bucket/out: an object store cannot" in error(adapted, "hf", "gs://bucket/out")
    _, values = files.read_record(adapted / "config.json", "")
    values["fingerprints"]["backbone"] = "0"
    files.write_record(tmp_path / "new" / "config.json", values)
    assert "the backbone changed since the run was started" in error(tmp_path / "new", "hf")


def test_adapters_are_kept_apart_only_where_peft_can_have_them(base, vit, backbone, tmp_path):
    ours = Adapter(checkpoints.Backbone("glyphs", vit, backbone), methods.probe(), {}, Head(5), tuple("abcde"))
    with pytest.raises(InputError, match="the base, backbone 'glyphs', is no checkpoint of Hugging Face"):
        write(tmp_path / "out", ours, "peft")
    probe = Adapter(jt.load(str(base)), methods.probe(), {}, None, tuple("abc"))
    with pytest.raises(InputError, match="method 'probe' has 0 updates of kernels"):
        to_huggingface(tmp_path / "out", probe, adapters="apart")
    with pytest.raises(InputError, match="has no adapter"):
        write(tmp_path / "out", probe.backbone, "peft")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pool", ["map", "patches", "cls_mean"])
def test_a_model_that_pools_as_no_class_does_is_refused_with_the_pools_that_one_has(vit, backbone, tmp_path, pool):
    other = models.of_config(dataclasses.replace(vit.config, pool=pool))
    ours = checkpoints.Backbone("glyphs", other, backbone, tuple("abcde"), Head(5))
    said = f"pool='{pool}'.*cannot be written as model_type 'vit'; a model with pool 'cls' or 'mean' has one; .*orbax"
    with pytest.raises(InputError, match=said):
        to_huggingface(tmp_path / "out", ours)
    assert not list(tmp_path.iterdir())


def test_the_mean_of_the_patches_goes_out_as_the_class_that_takes_it(vit, backbone, images, tmp_path):
    ours = checkpoints.Backbone("glyphs", vit, backbone, tuple("abcde"), Head(5))
    to_huggingface(tmp_path / "out", ours)
    peer = from_pretrained(tmp_path / "out")
    assert type(peer).__name__ == "SiglipForImageClassification"
    np.testing.assert_allclose(logits_of(peer, images), ours({"pixel_values": images})["logits"], **CLOSE)
    np.testing.assert_allclose(
        jt.load(str(tmp_path / "out"))({"pixel_values": images})["logits"],
        ours({"pixel_values": images})["logits"],
        atol=1e-6,
    )


LANGUAGE = {"vocab_size": 31, "max_position_embeddings": 12}
PIXELS = {"image_size": 8, "patch_size": 4}
HEADS = {
    "BertModel": (LANGUAGE, None),
    "RobertaModel": (LANGUAGE, "reads 'features'.*RobertaForSequenceClassification"),
    "GPT2Model": (
        {"vocab_size": 31, "n_embd": 16, "n_layer": 1, "n_head": 2},
        r"reads 'features' \(by a layer with a bias.*GPT2ForSequenceClassification",
    ),
    "CLIPVisionModel": (PIXELS, "reads 'features'.*CLIPVisionModelWithProjection"),
    "ViTModel": (PIXELS, None),  # with a pooler, which the class with a head does not have
    "DeiTModel": (PIXELS, None),
    "Dinov2Model": (PIXELS, None),
    "ResNetModel": ({"embedding_size": 6, "hidden_sizes": [8, 16], "depths": [1, 1]}, None),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_written_only_where_hugging_face_has_one_that_computes_the_same(name, tmp_path, images):
    """Heads on the first token of an encoder without a pooler stand beside it: see `test_ways_out`."""
    options, refusal = HEADS[name]
    make(name, **options).save_pretrained(tmp_path / "base")
    base = jt.load(str(tmp_path / "base"), head="")
    ids = {"input_ids": np.array([[3, 4, 5, 6]])}
    batch = ids if options.keys() & {"vocab_size"} else {"pixel_values": np.repeat(images, 3, axis=-1)}
    width = jax.eval_shape(lambda: base(batch)["features"]).shape[-1]
    rng = np.random.default_rng(0)
    head = {"head/kernel": rng.random((width, 3), np.float32), "head/bias": np.arange(3, dtype=np.float32)}
    result = Adapter(base, methods.probe(), head, Head(3), ("a", "b", "c"))
    if refusal:
        with pytest.raises(InputError, match=refusal):
            to_huggingface(tmp_path / "out", result)
        assert not (tmp_path / "out").exists()
        return
    to_huggingface(tmp_path / "out", result)
    if "pixel_values" in batch:
        found = logits_of(from_pretrained(tmp_path / "out"), batch["pixel_values"])
    else:
        peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        found = peer(torch.from_numpy(ids["input_ids"])).logits.detach()
    np.testing.assert_allclose(found, result(batch)["logits"], **CLOSE)


def test_a_checkpoint_written_again_is_the_same_to_the_bit_with_all_that_lies_beside_it(tmp_path):
    from safetensors.numpy import load_file

    peer = make("BertForSequenceClassification", **LANGUAGE, num_labels=3, problem_type="multi_label_classification")
    peer.config.id2label, peer.config.label2id = {0: "x", 1: "y", 2: "z"}, {"x": 0, "y": 1, "z": 2}
    peer.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "base" / name).write_text(f"the {name}")
    (tmp_path / "base" / "pytorch_model.bin").write_text("old")
    to_huggingface(tmp_path / "out", jt.load(str(tmp_path / "base")))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert before.keys() == after.keys() and all((after[name] == x).all() for name, x in before.items())
    there = ["config.json", "jtransfer.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert sorted(os.listdir(tmp_path / "out")) == there
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "out"))
    left_out = {"transformers_version", "dtype", "architectures", "_name_or_path"}
    assert {key: x for key, x in before.items() if key not in left_out and after.get(key) != x} == {}
    assert after["architectures"] == ["BertForSequenceClassification"]


def test_a_model_for_other_sizes_is_written_with_a_processor_for_them(tmp_path):
    peer = make("ViTForImageClassification", image_size=8, patch_size=4, num_labels=3)
    peer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(SIZE))
    ours = jt.load(str(tmp_path / "base"), image=(12, 16))
    to_huggingface(tmp_path / "out", ours)
    again = from_pretrained(tmp_path / "out")
    photographs = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    theirs = processor(list(photographs), return_tensors="pt")["pixel_values"]
    pixels = ours.preprocess(photographs)["pixel_values"]
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), pixels, atol=1 / 255)
    np.testing.assert_allclose(logits_of(again, pixels), ours({"pixel_values": pixels})["logits"], **CLOSE)


def test_the_processor_of_both_towers_follows_the_images_too(tmp_path):
    text = BLOCKS | {"vocab_size": 31, "max_position_embeddings": 12, "eos_token_id": 30}
    towers = {"vision_config": BLOCKS | PIXELS, "text_config": text, "projection_dim": 6}
    transformers.CLIPModel(transformers.CLIPConfig(**towers)).save_pretrained(tmp_path / "base")
    size = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 8}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(size))
    ours = jt.load(str(tmp_path / "base"), image=12)
    to_huggingface(tmp_path / "out", ours)
    photographs = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    theirs = processor(list(photographs), return_tensors="pt")["pixel_values"]
    assert theirs.shape == (2, 3, 12, 12)
    pixels = ours.preprocess(images=photographs)["pixel_values"]
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), pixels, atol=0.02)
    peer = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    features = peer.get_image_features(pixel_values=theirs).pooler_output.detach()
    ids = np.array([[3, 30]])
    outputs = ours({"pixel_values": theirs.permute(0, 2, 3, 1).numpy(), "input_ids": ids})
    normed = features / features.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(outputs["image_embeds"], normed, **CLOSE)


def lora_on(base):
    """A LoRA of one layer, at its start, with a head for three classes."""
    kernel = np.ones((16, 2), np.float32)
    head = {"head/kernel": np.ones((16, 3), np.float32), "head/bias": np.zeros(3, np.float32)}
    layer = "encoder/block_0/attention/query/lora"
    params = {f"{layer}/a": kernel, f"{layer}/b": 0 * kernel.T} | head
    return Adapter(base, methods.parse("lora(rank=2)"), params, Head(3), ("a", "b", "c"))


@pytest.mark.parametrize(("change", "ours"), [({"image": 12}, "12x12x3"), ({"channels": 1}, "8x8x1")])
def test_an_adapter_alone_is_refused_where_its_base_was_changed_for_other_images(change, ours, tmp_path):
    make("ViTForImageClassification", image_size=8, patch_size=4).save_pretrained(tmp_path / "base")
    result = lora_on(jt.load(str(tmp_path / "base"), **change))
    with pytest.raises(InputError, match=f"takes images of 8x8x3.* of {ours}.*--format=hf --adapters=apart"):
        write(tmp_path / "out", result, "peft")
    assert os.listdir(tmp_path) == ["base"]
    write(tmp_path / "out", lora_on(jt.load(str(tmp_path / "base"))), "peft")


def test_a_base_that_transformers_resizes_by_itself_takes_an_adapter_for_another_size(tmp_path):
    make("Dinov2ForImageClassification", image_size=8, patch_size=4).save_pretrained(tmp_path / "base")
    base = jt.load(str(tmp_path / "base"), image=12, head="")
    result = lora_on(base)
    wide = {"head/kernel": np.ones((32, 3), np.float32)}
    result = dataclasses.replace(result, params=dict(result.params) | wide)
    write(tmp_path / "out", result, "peft")
    with pytest.raises(InputError, match="of 12x12x1"):
        grey = jt.load(str(tmp_path / "base"), image=12, channels=1, head="")
        write(tmp_path / "grey", dataclasses.replace(result, backbone=grey), "peft")


def test_classes_are_told_by_their_numbers_whatever_the_order_of_a_file(tmp_path):
    peer = make("BertForSequenceClassification", **LANGUAGE, num_labels=12, problem_type="multi_label_classification")
    peer.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    values = json.loads(file.read_text())
    labels = {str(i): f"class {i}" for i in range(12)}
    file.write_text(json.dumps(values | {"id2label": dict(sorted(labels.items()))}))
    to_huggingface(tmp_path / "out", jt.load(str(tmp_path / "base")))
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after["problem_type"] == "multi_label_classification" and after["id2label"] == labels


def changed(run, tmp_path, file, change):
    """A copy of a run's directory in which a sealed record says something else."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    values = json.loads((copy / file).read_text())
    files.write_record(copy / file, change({key: x for key, x in values.items() if key not in ("version", "sha256")}))
    return copy


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", lambda x: x | {"fingerprints": ["a"]}, "fingerprints are no object"),
        ("task.json", lambda x: x | {"row": x["row"] | {"dtype": "O"}}, "object"),
        ("task.json", lambda x: x | {"row": x["row"] | {"dtype": "V1000000000"}}, "void"),
        ("task.json", lambda x: x | {"row": x["row"] | {"dtype": "f4,(1000000,)f8"}}, "void"),
        ("task.json", lambda x: x | {"row": x["row"] | {"shape": [10**9, 10**9]}}, "1000000000"),
        ("task.json", lambda x: x | {"kind": "evil"}, "evil"),
    ],
)
def test_a_record_of_a_run_that_says_what_cannot_be_is_damaged(adapted, tmp_path, capsys, file, change, said):
    run = changed(adapted, tmp_path, file, change)
    assert main(["export", f"--workdir={run}", "--format=hf", f"--out={tmp_path / 'out'}"]) == 2
    line = capsys.readouterr().err
    assert f"{file} is damaged" in line and said in line and line.count("\n") == 1


def test_a_directory_starts_no_download_of_what_its_config_names(adapted, tmp_path, capsys, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns, local_files_only):
        asked.append((name, local_files_only))
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    run = changed(adapted, tmp_path, "config.json", lambda x: x | {"backbone": "somebody/model"})
    assert main(["export", f"--workdir={run}", "--format=hf", f"--out={tmp_path / 'out'}"]) == 2
    assert asked == [("somebody/model", True)] and "hf download somebody/model" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_a_checkpoint_with_a_pipe_or_a_link_in_it_is_not_waited_for(adapted, tmp_path, capsys, what):
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    newest = max((path for path in (run / "checkpoints").iterdir() if path.name.isdigit()), key=lambda x: int(x.name))
    inside = newest / "about" / "metadata"
    inside.unlink()
    os.mkfifo(inside) if what == "pipe" else inside.symlink_to("/etc/passwd")
    assert main(["export", f"--workdir={run}", "--format=hf", f"--out={tmp_path / 'out'}"]) == 2
    assert f"{inside} is a link, a pipe or a device; expected a file" in capsys.readouterr().err
