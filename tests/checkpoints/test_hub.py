"""A name on the hub at a revision and in a folder, from a cache as the hub's library leaves it; there is no network."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import errors

import jtransfer as jt
from jtransfer import checkpoints, cli, methods
from jtransfer.checkpoints import Adapter, deltas, peft_writing
from jtransfer.errors import InputError
from jtransfer.models import Head, Headed

MAIN, OLDER, SHORT = "a" * 40, "b" * 40, "refs/pr/3"


def put(cache, name, commit, refs, *checkpoints_of):
    """Files of a repository at a commit into a cache: blobs, links to them in a snapshot, and refs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    for directory, folder in checkpoints_of:
        target = repository / "snapshots" / commit / folder
        target.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            blob = repository / "blobs" / f"{commit[0]}{folder}{path.name}".replace("/", "-")
            shutil.copy(path, blob)
            (target / path.name).symlink_to(blob)
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return repository


@pytest.fixture(scope="module")
def sources(write_checkpoint, split, tmp_path_factory):
    """A ViT, another one, and a CLIP in shards, each in a directory of its own."""
    root = tmp_path_factory.mktemp("sources")
    vit, other = write_checkpoint(root / "vit", "huggingface"), write_checkpoint(root / "timm", "timm")
    return vit, other, split(write_checkpoint(root / "clip", "open_clip"))


@pytest.fixture
def cache(sources, tmp_path, monkeypatch):
    """`some/body` in a cache: a ViT on main, another at the tag v1 and a pull request, a CLIP in a folder of main."""
    vit, other, clip = sources
    put(tmp_path, "some/body", MAIN, ["main"], (vit, ""), (clip, "towers/clip"))
    put(tmp_path, "some/body", OLDER, ["v1", SHORT], (other, ""))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def load(name="some/body", **options):
    return jt.load(name, sharding="host", **options)


def test_a_branch_a_tag_a_pull_request_and_a_commit_name_the_weights_at_it(cache, sources):
    vit, other, _ = (load(str(directory)).fingerprint for directory in sources)
    assert load().fingerprint == load(revision="main").fingerprint == load(revision=MAIN).fingerprint == vit
    assert {load(revision=revision).fingerprint for revision in ("v1", SHORT, OLDER)} == {other} != {vit}
    assert load(revision="v1").origin.options == {"revision": "v1"}


def test_a_folder_of_a_repository_or_a_directory_is_a_checkpoint_of_its_own(cache, sources):
    clip = load(str(sources[2]))
    there = load(subfolder="towers/clip")
    assert there.fingerprint == clip.fingerprint and there.config == clip.config
    assert load(str(sources[0].parent), subfolder="clip").fingerprint == clip.fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"revision": "v2"}, "'v2' is not in the hub's cache.*some/body --revision v2 .*one of main, refs/pr/3, v1"),
        ({"subfolder": "towers/clap"}, "the hub's cache has no folder 'towers/clap' of it, and cannot be filled"),
        ({"subfolder": "towers"}, "'some/body' has its weights in towers/clip; name one of them by subfolder="),
        ({"revision": "../main"}, "revision='../main': expected the name of a branch or tag, or a commit"),
        ({"revision": "v1; rm"}, "revision='v1; rm': expected the name of a branch or tag"),
        ({"revision": 1}, "revision=1: expected the name of a branch"),
        ({"subfolder": "../body"}, "subfolder='../body': expected the path of a folder within"),
        ({"subfolder": "/etc"}, "subfolder='/etc': expected the path of a folder within"),
        ({"subfolder": ""}, "subfolder='': expected the path of a folder within"),
    ],
)
def test_what_is_not_there_or_leads_out_is_one_line(cache, options, said):
    with pytest.raises(InputError, match=said) as refused:
        load(**options)
    assert "\n" not in str(refused.value)


def test_a_revision_is_of_the_hub_and_a_folder_of_what_has_folders(sources):
    directory, file = str(sources[0]), str(sources[0] / "model.safetensors")
    for name, options, said in (
        (directory, {"revision": "v1"}, "is a directory; revision='v1' is of a name on the Hugging Face hub"),
        (file, {"subfolder": "a"}, "is a file; subfolder='a' is of a directory or of a name on"),
        ("glyphs-vit", {"revision": "v1"}, "is embedded; revision='v1'"),
        (str(sources[0].parent), {"subfolder": "clap"}, "has no folder 'clap'; did you mean 'clip'"),
    ):
        with pytest.raises(InputError, match=said):
            load(name, **options)


def test_a_shard_that_was_never_downloaded_is_named(cache):
    shard = next((cache / "models--some--body" / "snapshots" / MAIN / "towers" / "clip").glob("*-of-*"))
    shard.unlink()
    with pytest.raises(InputError, match=f"shard '{shard.name}' is missing"):
        load(subfolder="towers/clip")


def test_a_revision_or_folder_that_the_hub_does_not_have_is_said(cache, monkeypatch):
    def absent(name, allow_patterns, local_files_only, revision):
        asked.append((revision, allow_patterns[1]))
        raise errors.RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None, status_code=404))

    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(InputError, match="backbone 'some/body' has no revision 'v9' on the Hugging Face hub"):
        load(revision="v9", subfolder="a[1]")
    assert asked == [("v9", "a[[]1]/*.safetensors")]
    there = SimpleNamespace(siblings=[SimpleNamespace(rfilename="text/model.safetensors")])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(cache))
    monkeypatch.setattr("huggingface_hub.model_info", lambda name, **_: there)
    with pytest.raises(InputError, match="'some/body' has no folder 'txt'; did you mean 'text'"):
        load(subfolder="txt")


def lora_on(backbone):
    """An adapter on a backbone, its leaves and head made at random."""
    method, model = methods.parse("lora(rank=2)"), Headed(backbone.model, Head(2), "head")
    adapted = methods.adapt(method, model, backbone.params, backbone.config.inputs)
    rng = np.random.default_rng(0)
    new = {p: rng.normal(size=x.shape).astype("f") for p, x in adapted.shapes.items() if p not in backbone.params}
    return Adapter(backbone, method, new, Head(2), ("x", "y"))


def test_an_adapter_finds_its_base_at_the_revision_and_in_the_folder_that_it_was_made_on(cache, sources, tmp_path):
    put(cache, "some/body", OLDER, [], (sources[0], "older"))
    base = load(revision="v1", subfolder="older", head="")
    deltas.save(tmp_path / "adapter", lora_on(base))
    about = json.loads((tmp_path / "adapter" / "config.json").read_text())["base"]
    assert (about["name"], about["revision"], about["subfolder"]) == ("some/body", "v1", "older")
    assert jt.load(str(tmp_path / "adapter")).classes == ("x", "y")
    (cache / "models--some--body" / "refs" / "v1").write_text(MAIN)  # a tag that was moved
    with pytest.raises(InputError, match="has no folder|no folder 'older'"):
        jt.load(str(tmp_path / "adapter"))


def test_peft_is_told_the_revision_of_the_base_and_refuses_what_it_cannot_say(cache, tmp_path):
    values, _ = peft_writing.to_peft(lora_on(load(revision=MAIN, head="")))
    assert (values["base_model_name_or_path"], values["revision"]) == ("some/body", MAIN)
    folder = cache / "models--some--body" / "snapshots" / MAIN / "vit"
    folder.mkdir()
    for path in folder.parent.glob("*.*"):
        (folder / path.name).symlink_to(path.resolve())
    for options, said in (
        ({"subfolder": "vit"}, "is in a folder of its repository"),
        (
            {"include": "encoder/.*"},
            "has leaves that are not the checkpoint's",
        ),
    ):
        with pytest.raises(InputError, match=f"peft: the base 'some/body' {said}, which PEFT cannot say"):
            checkpoints.export.check_result(lora_on(load(head="", **options)), "peft")


@pytest.fixture
def data(tmp_path):
    """24 images of 8x8 of two classes."""
    images = np.random.default_rng(0).random((24, 8, 8, 3), np.float32)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(24) % 2)
    return f"npz:{tmp_path / 'some.npz'}"


def test_a_config_names_the_revision_and_a_run_is_of_it(cache, data, capsys, tmp_path):
    command = ["train", "--config=configs/pretrain_glyphs.py", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.data={data}", "--config.backbone=some/body", "--config.method=probe"]
    command += ["--config.steps=1", "--config.batch=8", "--config.load.revision=v1"]
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["load"]["revision"] == "v1"
    assert cli.main([*command[:-1], "--config.load.revision=main"]) == 2
    assert "load.revision is" in capsys.readouterr().err


def test_a_second_backbone_is_not_looked_for_at_the_revision_of_the_first(cache, data, tmp_path):
    command = [
        "evaluate",
        f"--config=configs/evaluate.py:backbone=some/body,data={data}",
        f"--workdir={tmp_path / 'e'}",
    ]
    command += ["--config.protocols=(\"cka(reference='some/body')\",)", "--config.load.revision=v1"]
    assert cli.main([*command, f"--config.store={tmp_path / 'store'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "e" / "results.jsonl").read_text().splitlines()]
    assert load(head="").fingerprint != load(revision="v1", head="").fingerprint
    assert load().fingerprint in rows[0]["also"] and load(revision="v1").fingerprint not in rows[0]["also"]
