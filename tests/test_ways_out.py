"""From training to use: every run says before its first step what it can go out as, and goes out without its data."""

import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer as jt
from jtransfer.checkpoints import to_huggingface
from jtransfer.checkpoints.export import write
from jtransfer.cli import main
from jtransfer.config import train_defaults
from jtransfer.errors import Damaged, InputError
from jtransfer.train import loop, results, runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 2e-5, "rtol": 0}
SHORT = {"batch": 8, "steps": 2, "log_every": 2, "eval_every": 2, "checkpoint_every": 2}
MODEL = {"architecture": "vit", "image": (8, 8), "channels": 3, "patch": 4, "width": 16, "depth": 1, "heads": 2}
TEXTS = ["the film was good", "bad", "a plot not very bad"]
POOLS = {
    "mean_tokens": lambda x, mask: (x * mask).sum(1) / mask.sum(1),
    "cls_token": lambda x, mask: x[:, 0],
}


def prepared(**options):
    values = train_defaults() | SHORT | options
    return runs.prepare(ConfigDict(values | {"load": train_defaults()["load"] | options.get("load", {})}))


def train(directory, **options):
    loop.train(prepared(**options), directory, lambda row, speed: None)
    return directory


@pytest.fixture(scope="module")
def encoders(bert, tmp_path_factory):
    """`encoders(pooling, normalize)`: a directory of sentence-transformers with a small BERT."""

    def make(pooling, normalize):
        directory = tmp_path_factory.mktemp("encoder") / "it"
        shutil.copytree(bert, directory)
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
        paths = ["", "1_Pooling", "2_Normalize"]
        modules = [
            {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        (directory / "modules.json").write_text(json.dumps(modules))
        (directory / "1_Pooling").mkdir()
        values = {"word_embedding_dimension": 16, f"pooling_mode_{pooling}": True}
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(values))
        (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
        (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        return directory

    return make


def of_torch(model, directory, pooling, normalize, batch):
    """The embeddings by torch, and the logits of the head in a directory, as its documentation says to compute them."""
    from safetensors.torch import load_file

    inputs = {name: torch.from_numpy(np.asarray(x)).long() for name, x in batch.items()}
    with torch.no_grad():
        pooled = POOLS[pooling](model.eval()(**inputs).last_hidden_state, inputs["attention_mask"][..., None])
        head = load_file(directory / "head.safetensors")
        linear = torch.nn.Linear(*reversed(head["weight"].shape))
        linear.load_state_dict(head)
        unit = torch.nn.functional.normalize(pooled) if normalize else pooled
        return unit.numpy(), linear(pooled).numpy()


@pytest.fixture(scope="module")
def text_runs(encoders, reviews, tmp_path_factory):
    """Runs on sentence encoders: of each the encoder, how it pools, and the workdir."""
    made = {}
    for method, pooling, normalize in (("lora(rank=2)", "mean_tokens", True), ("finetune", "cls_token", False)):
        base, workdir = encoders(pooling, normalize), tmp_path_factory.mktemp("run")
        rate = {"optimiser": train_defaults()["optimiser"] | {"rate": 0.1}}
        train(workdir, backbone=str(base), data="tfds:reviews", data_dir=reviews, method=method, **rate)
        made[method] = base, pooling, normalize, workdir
    return made


@pytest.fixture(autouse=True)
def _no_data(monkeypatch, text_runs):
    """The datasets are where no export looks."""
    monkeypatch.setattr("jtransfer.data.sources.load", lambda *_: pytest.fail("the data were read"))


@pytest.mark.parametrize("method", ["lora(rank=2)", "finetune"])
@pytest.mark.parametrize("adapters", ["merged", "apart"])
def test_a_sentence_encoder_goes_out_with_its_modules_and_its_head_beside_it(text_runs, method, adapters, tmp_path):
    _, pooling, normalize, workdir = text_runs[method]
    if (method, adapters) == ("finetune", "apart"):
        assert main(["export", f"--workdir={workdir}", "--format=hf", f"--out={tmp_path}/o", "--adapters=apart"]) == 2
        return
    flags = [f"--workdir={workdir}", "--format=hf", f"--out={tmp_path / 'out'}", f"--adapters={adapters}"]
    assert main(["export", *flags]) == 0
    trained = jt.load(str(workdir / "model"))
    batch = trained.preprocess(TEXTS)
    expected = trained(batch)
    assert np.ptp(expected["logits"]) > 1e-3
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    embeddings, logits = of_torch(model, tmp_path / "out", pooling, normalize, batch)
    np.testing.assert_allclose(embeddings, expected["sentence_embedding"], **CLOSE)
    np.testing.assert_allclose(logits, expected["logits"], **CLOSE)
    ours = jt.load(str(tmp_path / "out"))
    assert ours.classes == trained.classes == ("yes", "no")
    if adapters == "apart":
        ours = jt.load_adapter(ours, str(tmp_path / "out"))
    np.testing.assert_allclose(ours(batch)["logits"], expected["logits"], **CLOSE)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"modules.json", "1_Pooling", "vocab.txt", "sentence_bert_config.json", "head.json"} <= there


def test_peft_takes_the_adapter_of_a_sentence_encoder_and_its_head_stands_beside_it(text_runs, tmp_path):
    peft = pytest.importorskip("peft")
    base, pooling, normalize, workdir = text_runs["lora(rank=2)"]
    assert main(["export", f"--workdir={workdir}", "--format=peft", f"--out={tmp_path / 'out'}"]) == 0
    trained = jt.load(str(workdir / "model"))
    batch = trained.preprocess(TEXTS)
    model = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(base), tmp_path / "out")
    embeddings, logits = of_torch(model, tmp_path / "out", pooling, normalize, batch)
    np.testing.assert_allclose(embeddings, trained(batch)["sentence_embedding"], **CLOSE)
    np.testing.assert_allclose(logits, trained(batch)["logits"], **CLOSE)
    again = jt.load_adapter(jt.load(str(base)), str(tmp_path / "out"))
    np.testing.assert_allclose(again(batch)["logits"], trained(batch)["logits"], **CLOSE)
    assert again.classes == ("yes", "no")


@pytest.mark.parametrize("model_type", ["DistilBert", "Electra", "Bert"])
def test_an_encoder_without_a_pooler_goes_out_with_the_head_on_its_first_token(
    model_type, bert, reviews, tmp_path, monkeypatch
):
    monkeypatch.undo()
    peft = pytest.importorskip("peft")
    sizes = {"vocab_size": 20, "max_position_embeddings": 40, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 24}
    if model_type == "DistilBert":
        sizes = {"vocab_size": 20, "max_position_embeddings": 40, "dim": 16, "n_layers": 1, "n_heads": 2}
    config = getattr(transformers, f"{model_type}Config")(**sizes)
    options = {"add_pooling_layer": False} if model_type == "Bert" else {}
    getattr(transformers, f"{model_type}Model")(config, **options).save_pretrained(tmp_path / "base")
    shutil.copy(f"{bert}/vocab.txt", tmp_path / "base")
    rate = {"optimiser": train_defaults()["optimiser"] | {"rate": 0.1}}
    data = {"data": "tfds:reviews", "data_dir": reviews, "method": "lora(rank=2)"}
    workdir = train(tmp_path / "run", backbone=str(tmp_path / "base"), **data, **rate)
    for format in ("hf", "peft"):
        assert main(["export", f"--workdir={workdir}", f"--format={format}", f"--out={tmp_path / format}"]) == 0
    trained = jt.load(str(workdir / "model"))
    batch = trained.preprocess(TEXTS)
    expected = trained(batch)["logits"]
    assert np.ptp(expected) > 1e-3
    merged = transformers.AutoModel.from_pretrained(tmp_path / "hf")
    base = transformers.AutoModel.from_pretrained(tmp_path / "base")
    given = {name: x for name, x in batch.items() if model_type != "DistilBert" or name != "token_type_ids"}
    for model, out in ((merged, "hf"), (peft.PeftModel.from_pretrained(base, tmp_path / "peft"), "peft")):
        _, logits = of_torch(model, tmp_path / out, "cls_token", False, given)
        np.testing.assert_allclose(logits, expected, **CLOSE)
    adapter = jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "peft"))
    for again in (jt.load(str(tmp_path / "hf")), adapter):
        np.testing.assert_allclose(again(batch)["logits"], expected, **CLOSE)
    to_huggingface(tmp_path / "plain", jt.load(str(tmp_path / "base")))
    assert not (tmp_path / "plain" / "modules.json").exists(), "of itself it is no sentence encoder"


@pytest.mark.parametrize("method", ["lora(rank=2)", "finetune"])
@pytest.mark.parametrize("head", [None, ""])
def test_what_a_workdir_keeps_embeds_the_same_in_sentence_transformers(text_runs, method, head, tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    *_, workdir = text_runs[method]
    trained = jt.load(str(workdir / "model"), head=head)
    to_huggingface(tmp_path / "out", trained)
    encoder = sentences.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = trained(trained.preprocess(TEXTS))["sentence_embedding"]
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, **CLOSE)
    assert encoder.max_seq_length == 20
    assert (tmp_path / "out" / "head.safetensors").exists() == (head is None)


def older_name(directory):
    settings = json.dumps({"max_seq_length": 4, "do_lower_case": True})
    (directory / "sentence_bert_config.json").unlink()
    (directory / "sentence_roberta_config.json").write_text(settings)


def other_places(directory):
    (directory / "1_Pooling").rename(directory / "pooling")
    modules = json.loads((directory / "modules.json").read_text())
    paths = ["", "pooling", "unit"]
    described = [module | {"path": path} for module, path in zip(modules, paths, strict=True)]
    (directory / "modules.json").write_text(json.dumps(described))


def a_prompt(directory):
    settings = {"prompts": {"passage": "the plot "}, "default_prompt_name": "passage"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("change", [older_name, other_places, a_prompt])
def test_an_encoder_goes_out_with_all_that_its_directory_says_of_texts_and_pooling(encoders, change, tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    directory = encoders("cls_token", True)
    plain = jt.load(str(directory))(jt.load(str(directory)).preprocess(TEXTS))["sentence_embedding"]
    change(directory)
    to_huggingface(tmp_path / "out", jt.load(str(directory)))
    before, after = (sentences.SentenceTransformer(str(it), device="cpu") for it in (directory, tmp_path / "out"))
    expected = before.encode(TEXTS)
    np.testing.assert_allclose(after.encode(TEXTS), expected, **CLOSE)
    assert change is other_places or np.abs(expected - plain).max() > 1e-2


def test_a_head_beside_an_encoder_that_is_not_whole_is_refused_in_one_line(text_runs, tmp_path):
    *_, workdir = text_runs["finetune"]
    trained = jt.load(str(workdir / "model"))

    def error(change):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write(tmp_path / "out", trained, "hf")
        (tmp_path / "out" / "jtransfer.json").unlink()  # as somebody else's, which has no checksums
        change(tmp_path / "out")
        with pytest.raises(InputError) as caught:
            jt.load(str(tmp_path / "out"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "head.json is missing" in error(lambda out: (out / "head.json").unlink())
    assert "head.safetensors is missing" in error(lambda out: (out / "head.safetensors").unlink())
    assert "expected the list 'classes'" in error(lambda out: (out / "head.json").write_text('{"classes": 3}'))
    assert "has 1 classes" in error(lambda out: (out / "head.json").write_text('{"classes": ["a"]}'))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "pictures.npz"
    images = rng.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    np.savez(file, images=images, labels=np.arange(24) % 3, classes=np.array(["a", "b", "c"]))
    return file


@pytest.mark.parametrize("options", [{"pool": "mean"}, {"pool": "cls_mean", "layer_scale": 0.5}])
def test_a_model_of_images_keeps_how_they_are_made_and_predicts_in_a_pipeline(options, pictures, tmp_path, monkeypatch):
    monkeypatch.undo()
    from PIL import Image

    file = shutil.copy(pictures, tmp_path / "mine.npz")
    run = {"data": f"npz:{file}", "model": MODEL | options, "optimiser": train_defaults()["optimiser"] | {"rate": 0.1}}
    workdir = train(tmp_path / "run", **run)
    (tmp_path / "mine.npz").unlink()
    assert main(["export", f"--workdir={workdir}", "--format=hf", f"--out={tmp_path / 'out'}"]) == 0
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path / "out"))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (21, 30, 3)).astype(np.uint8))
    trained = jt.load(str(workdir / "model"))
    logits = np.asarray(trained(trained.preprocess([picture]))["logits"][0])
    expected = dict(zip("abc", np.exp(logits) / np.exp(logits).sum(), strict=True))
    found = {one["label"]: one["score"] for one in pipeline(picture)}
    assert max(abs(found[name] - expected[name]) for name in "abc") < 5e-3, "torchvision resizes a little otherwise"
    assert json.loads((workdir / "model" / "config.json").read_text())["preprocessor"]["size"] == {
        "height": 8,
        "width": 8,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": MODEL | {"pool": "map"}}, "pool='map'.*with pool 'cls' or 'mean' has one; --format=orbax"),
        ({"model": MODEL | {"pool": "mean", "registers": 2}}, "registers=2.*; --format=orbax writes it as it is"),
        ({"model": MODEL | {"pool": "mean"}, "method": "scratch + lora(rank=2)"}, "format=peft.*no checkpoint of"),
        ({"model": MODEL | {"pool": "mean"}}, ""),
        ({"model": MODEL | {"pool": "cls"}}, ""),
    ],
)
def test_each_way_that_is_closed_is_one_line_and_open_ones_are_none(options, said, pictures, monkeypatch):
    monkeypatch.undo()
    lines = results.ways_out(prepared(data=f"npz:{pictures}", **options))
    assert len(lines) == bool(said) and all(re.search(said, line) and "\n" not in line for line in lines)


def test_what_cannot_go_out_is_said_before_the_first_step_and_again_by_the_export(
    pictures, tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.undo()
    values = SHORT | {"data": f"npz:{pictures}", "model": MODEL | {"pool": "map"}}
    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    assert main(["train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]) == 0
    (line,) = [record.message for record in caplog.records if "will refuse" in record.message]
    capsys.readouterr()
    assert main(["export", f"--workdir={tmp_path / 'run'}", "--format=hf", f"--out={tmp_path / 'out'}"]) == 2
    assert line.partition(" comes to: ")[2] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_of_the_data_is_named_and_without_it_the_data_are_read(text_runs, tmp_path, monkeypatch):
    *_, workdir = text_runs["finetune"]
    shutil.copytree(workdir, tmp_path / "run")
    file = tmp_path / "run" / "task.json"
    whole = file.read_text()
    for damaged in (whole.replace('"yes"', '"yep"'), whole[:50], "[]", "{}", '{"kind": "text", "row": 3}'):
        file.write_text(damaged)
        with pytest.raises(Damaged, match=r"task.json is damaged .*; remove it, and the data are read in its place"):
            results.result(tmp_path / "run")
    file.unlink()
    monkeypatch.undo()
    _, adapter, _ = results.result(tmp_path / "run")
    assert adapter.classes == ("yes", "no")


@pytest.mark.slow
def test_pairs_go_out_without_their_data(captioned, tmp_path, monkeypatch):
    monkeypatch.undo()
    tower = {"width": 8, "depth": 1, "heads": 2, "dtype": "float32"}
    vision = {"architecture": "vit", "image": (8, 8), "channels": 3, "patch": 4, "norm_pooled": True} | tower
    vision |= {"patch_bias": False, "embedding_norm": True, "epsilon": 1e-5}
    text = {"architecture": "clip_text", "vocabulary": 514, "positions": 32, "pool": "eos", "eos_token": 513} | tower
    model = {"architecture": "clip", "vision": vision, "text": text, "projection": 8}
    model["logit_scale"] = 2.6592
    root = shutil.copytree(captioned, tmp_path / "data")
    options = {"objective": "clip", "data": "tfds:things?caption=name", "data_dir": str(root), "model": model}
    workdir = train(tmp_path / "run", **options)
    shutil.rmtree(root)
    assert main(["export", f"--workdir={workdir}", "--format=orbax", f"--out={tmp_path / 'orbax'}"]) == 0
    assert main(["export", f"--workdir={workdir}", "--format=hf", f"--out={tmp_path / 'out'}"]) == 0
    trained = jt.load(str(workdir / "model"))
    pixels = trained.preprocess(images=np.zeros((2, 20, 9, 3), np.uint8))
    peer = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = peer.get_image_features(pixel_values=torch.from_numpy(pixels["pixel_values"]).permute(0, 3, 1, 2))
    found = found.pooler_output
    expected = trained(pixels | trained.preprocess(text=["a", "b"]))["image_embeds"]
    np.testing.assert_allclose(found / found.norm(dim=-1, keepdim=True), expected, **CLOSE)
