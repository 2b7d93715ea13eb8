"""Files that claim what cannot be are refused at once: nothing of a claimed size is read, made or matched."""

import json
import re
import struct
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jtransfer import checkpoints, patterns
from jtransfer.checkpoints import leaves, peft_config
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError, nearest
from jtransfer.models import Head, Headed, ViT, ViTConfig, described, shapes_of
from jtransfer.models.gpt2 import GPT2, GPT2Config

CONFIG = ViTConfig(image=(8, 8), patch=4, width=8, depth=1, heads=2, hidden=12, epsilon=1e-3)
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


@pytest.fixture
def directory(tmp_path):
    """A small ViT with three classes."""
    shapes = shapes_of(Headed(ViT(CONFIG), Head(3)), CONFIG.inputs)
    tree = {path: np.full(x.shape, 0.1, np.float32) for path, x in shapes.items()}
    save_file(FAMILIES["vit"].names(CONFIG, "classification").write(tree), tmp_path / "model.safetensors")
    values = FAMILIES["vit"].write(CONFIG) | {"architectures": ["ViTForImageClassification"], "num_labels": 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def refusal(path, **options):
    """The line with which a checkpoint is refused, short and for little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            checkpoints.load(str(path), **options)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 100_000_000 and len(str(error.value)) < 1200 and "\n" not in str(error.value)
    return str(error.value)


def write_header(directory, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({f"h.{i}.x.weight": EMPTY for i in range(100_000)}, "bytes; expected at most 4,000,000"),
        ({f"h.{i}": EMPTY for i in range(6000)}, "has 6,000 tensors, as h.0, h.1, h.2, h.3, h.4 and 5,995 more"),
        (b"[" * 3_000_000, "the header is damaged"),
        (b'{"a":' * 500_000, "the header is damaged"),
        ({"a": EMPTY | {"shape": [2] * 400_000}}, "'a' needs dtype, shape and data_offsets"),
        ({"a": EMPTY | {"shape": [10**4000] * 300}}, "'a' needs dtype, shape and data_offsets"),
        ({"a": EMPTY | {"shape": [10**17]}}, "cannot be 0 bytes long"),
        ({"a": EMPTY | {"shape": [0, 10**17]}}, "does not fit its config.json"),
        ({"a" * 2_000_000: EMPTY}, "is no name of a tensor, of 2,000,000 characters"),
        ({"a\nb": EMPTY}, "is no name of a tensor"),
        ({"a": EMPTY, "b": EMPTY | {"data_offsets": [0, 8], "shape": [2]}}, "is truncated: 'b' ends at byte"),
        (json.dumps({f"a{i}": 1 for i in range(100_000)}).encode()[:-1] + b',"a9":1}', "key 'a9' stands there twice"),
        ({f"a{i}": 1 for i in range(100_000)}, "has 100,000 tensors, as a0, a1, a2, a3, a4 and 99,995 more"),
        ({"__metadata__": {f"a{i}": "a" for i in range(100_000)}, "a": EMPTY}, "has 100,001 tensors, as a, a0, a1"),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "header",
)
def test_a_header_that_claims_what_cannot_be_is_refused(directory, header, said):
    write_header(directory, header)
    assert said in refusal(directory)


def test_many_tensors_that_fit_nothing_are_counted_and_a_few_named(directory):
    write_header(directory, {f"vit.encoder.layer.{i}.x.weight": EMPTY for i in range(3000)})
    line = refusal(directory)
    assert "of 3000 tensors, 22 missing, 3000 unknown: 'embeddings.cls_token' is missing for embeddings/cls" in line


def work(function, *arguments):
    """How many functions a call calls: what takes its time, whatever the machine does beside."""
    count = 0

    def called(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def in_own_layout(directory):
    (directory / "config.json").write_text(json.dumps(described(CONFIG) | {"classes": []}))


@pytest.mark.parametrize("name", ["vit.encoder.layer.{}.x.weight", "x{}", "encoder/block_{}/x/kernel"])
@pytest.mark.parametrize("settle", [lambda directory: None, in_own_layout], ids=["huggingface", "jtransfer"])
def test_twice_the_unknown_tensors_are_twice_the_work(directory, settle, name):
    def refused():
        with pytest.raises(InputError, match=f"of {count} tensors"):
            checkpoints.load(str(directory))

    settle(directory)
    of_each = []
    for count in (500, 500, 1000, 2000):  # the first call traces the model
        write_header(directory, {name.format(i): EMPTY for i in range(count)})
        of_each.append(work(refused))
    assert of_each[3] - of_each[2] < 2.5 * (of_each[2] - of_each[1]) < 2.5 * 500 * 200


@pytest.mark.parametrize("name", ["{0}", "{}", "{a}", "{0.__class__}", "a{}b", "{", "a}"])
def test_a_name_that_python_would_format_is_a_name_of_no_leaf(directory, name):
    in_own_layout(directory)
    write_header(directory, {name: EMPTY})
    assert f"'{name}' belongs to no leaf" in refusal(directory)


def test_the_nearest_of_very_many_choices_is_looked_for_beside_the_name_in_the_alphabet():
    choices = [f"n{i:08d}" for i in range(100_000)]
    assert nearest("n00050000x", choices) == "did you mean 'n00050000'?"
    assert work(nearest, "n00050000x", choices) < 2 * work(nearest, "n00050000x", choices[50_000:50_500])
    assert nearest("a" * 5000, ["a" * 4999]) == f"did you mean '{'a' * 100}...'?"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({f"a{i}": "x.safetensors" for i in range(200_000)}, "at most 4,000,000 are read"),
        ({"a": "../model.safetensors"}, "points outside the directory"),
        ({"a": "/etc/passwd"}, "points outside the directory"),
        ({"a": "x\n.safetensors"}, "is no name"),
        ({"a": "weights.pt"}, "weights.pt is pickled"),
        ({f"a{i}": "b.safetensors" for i in range(900)}, "a0, a1, a2, a3, a4 and 895 more are in none of the shards"),
    ],
)
def test_an_index_that_claims_what_cannot_be_is_refused(directory, index, said):
    (directory / "model.safetensors").rename(directory / "b.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert said in refusal(directory)


def test_an_archive_of_very_many_members_is_refused_before_its_directory_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", b"")
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    at = whole.rindex(b"PK\5\6")
    whole[at + 12 : at + 16] = struct.pack("<I", 2**31)
    (tmp_path / "a.npz").write_bytes(whole)
    assert "its list of arrays has 2,147,483,648 bytes" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(("array", "said"), [(np.array([{}], object), "pickled"), (np.array(["a"]), "")])
def test_an_archive_of_objects_or_words_is_refused(tmp_path, array, said):
    np.savez(tmp_path / "a.npz", x=array)
    assert said in refusal(tmp_path / "a.npz")


def test_a_config_of_any_length_is_refused_before_it_is_read(directory):
    (directory / "config.json").write_text('{"a": "' + "x" * 20_000_000 + '"}')
    assert "at most 8,388,608 are read" in refusal(directory)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": 10**6}, "image=[1000000, 1000000] has 62,500,000,000 patches of 4x4"),
        ({"image": (4, 4 * 10**6)}, "image=[4, 4000000] has 1,000,000 patches of 4x4"),
        ({"image": 10**9 * 4}, "has 1,000,000,000,000,000,000 patches"),
        ({"classes": 10**9}, "classes=1000000000: expected at most 1,000,000"),
        ({"channels": 10**9}, "channels=1000000000: the checkpoint takes 3"),
    ],
)
def test_an_option_of_a_size_that_no_machine_has_is_refused_with_its_number(directory, options, said):
    assert said in refusal(directory, **options)


def test_a_processor_that_asks_for_images_of_such_a_size_is_not_followed(tmp_path, caplog):
    config = ViTConfig(image=(8, 8), patch=4, width=8, depth=1, heads=2, hidden=32, pool="cls_mean", layer_scale=1.0)
    shapes = shapes_of(ViT(config), config.inputs)
    tree = {path: np.full(x.shape, 0.1, np.float32) for path, x in shapes.items()}
    save_file(FAMILIES["dinov2"].names(config, "").write(tree), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["dinov2"].write(config)))
    size = {"height": 400_000, "width": 400_000}
    processor = {"image_processor_type": "BitImageProcessor", "do_resize": True, "size": size, "crop_size": size}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"do_center_crop": True}))
    assert checkpoints.load(str(tmp_path)).config.image == (8, 8)
    assert "keeps the size of its config" in caplog.text


def test_a_head_that_starts_anew_is_no_larger_than_a_gigabyte_or_what_the_files_hold(directory, monkeypatch):
    monkeypatch.setattr(leaves, "MOST_FRESH", 100)
    there = sum(x.size for x in load_file(directory / "model.safetensors").values())
    said = refusal(directory, classes=5000)
    assert f"source_head/kernel of [8, 5000] has 40,000 values; expected {there:,} at most" in said


ENDLESS = [
    "(a+)+$",
    "(a|a)*b",
    "(.*)*",
    "(a*){30}",
    "(a{0,9}){0,9}",
    ".*" * 9 + "x",
    "(a|a)" * 30,
    "a?" * 40,
    "^(?=(a+)+b)",
]


@pytest.mark.parametrize(
    "key", ["target_modules", "rank_pattern", "alpha_pattern", "layers_pattern", "exclude_modules"]
)
@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_could_take_for_ever_is_refused_wherever_it_stands(pattern, key, tmp_path):
    value = {pattern: 2} if key in ("rank_pattern", "alpha_pattern") else pattern
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", key: value}))
    with pytest.raises(InputError, match="could take for ever to match"):
        peft_config.read(tmp_path / "adapter_config.json")


PLAIN = [
    r".*layers\.(0|1|2|10|11)\..*\.(q_proj|v_proj)",
    r"bert\.encoder.*(self\.(query|value)|output\.dense)|bert.pooler.dense",
    r"model\.layers\.\d+\.self_attn\.[qkvo]_proj",
    r"(?:.*?)(?:attention|attn).*?(?:query|key)",
    r"h\.[0-9]{1,2}\.attn\.c_attn",
    r"(vit\.)?encoder\.layer\.1\.output\.dense",
    "fc1",
]


@pytest.mark.parametrize("pattern", PLAIN)
def test_patterns_as_people_write_them_are_taken(pattern):
    patterns.check([pattern])


def test_what_is_taken_matches_in_no_time():
    worst = [".*a.*b.*c", "a?" * 15, "(a|ab|abc)" * 9]
    for pattern in filter(lambda pattern: patterns.steps(pattern) <= patterns.MOST_STEPS, worst):
        start = time.process_time()
        re.fullmatch(pattern, "ab" * 32)
        assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 10**9}, "r is 1000000000; expected a whole number above 0, up to 1,048,576"),
        ({"rank_pattern": {"a": 2**63}}, "rank_pattern is 9223372036854775808; expected a whole number"),
        ({"rank_pattern": {f"a{i}": 2 for i in range(20_000)}}, "its patterns are too many"),
        ({"target_modules": "a" * 5000}, "expected a pattern of at most 4,000"),
        ({"modules_to_save": ["(a+)+"]}, 'modules_to_save is "(a+)+"; expected names of modules'),
        ({f"key_{i}": 1 for i in range(99)}, "and 94 more"),
        ({"target_parameters": "x" * 100_000}, "..."),
    ],
)
def test_an_adapter_that_claims_what_cannot_be_is_refused_in_a_short_line(values, said, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | values))
    with pytest.raises(InputError) as error:
        peft_config.read(tmp_path / "adapter_config.json")
    assert said in str(error.value) and len(str(error.value)) < 600


def test_code_that_a_checkpoint_names_is_never_imported(directory, monkeypatch):
    values = json.loads((directory / "config.json").read_text())
    (directory / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(directory)
    auto = {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, "trust_remote_code": True}
    (directory / "config.json").write_text(json.dumps(values | auto))
    assert checkpoints.load(str(directory), sharding="host").classes == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.fixture
def tied(tmp_path):
    """A tied GPT-2 whose file has the output kernel, and the table of words by another name in its metadata."""
    config = GPT2Config(vocabulary=11, positions=8, width=8, depth=1, heads=2)
    rng = np.random.default_rng(0)
    shapes = shapes_of(GPT2(config), config.inputs)
    tree = {path: rng.random(x.shape, np.float32) for path, x in shapes.items()}
    tensors = FAMILIES["gpt2"].names(config, "causal_lm").write(tree, "transformer.")
    values = FAMILIES["gpt2"].write(config) | {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    return tmp_path, tensors, tree


ALIAS = {"transformer.wte.weight": "lm_head.weight"}


@pytest.mark.parametrize("more", [{}, {"format": "pt", "author": "lm_head.weights", "step": "3"}])
def test_a_tensor_that_the_metadata_call_by_another_name_is_read_by_it(tied, more):
    directory, tensors, tree = tied
    save_file(tensors, directory / "model.safetensors", ALIAS | more)
    found = checkpoints.load(str(directory), sharding="host").params
    assert found.keys() == tree.keys()
    np.testing.assert_array_equal(found["embeddings/word/embedding"], tree["embeddings/word/embedding"])


@pytest.mark.parametrize("in_index", [True, False])
def test_shards_say_it_in_their_index_or_in_themselves(tied, in_index):
    directory, tensors, tree = tied
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, directory / file, {} if in_index else ALIAS)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    index["metadata"] = {"total_size": 3} | (ALIAS if in_index else {})
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    found = checkpoints.load(str(directory), sharding="host").params
    np.testing.assert_array_equal(found["embeddings/word/embedding"], tree["embeddings/word/embedding"])


@pytest.mark.parametrize(
    ("metadata", "added", "said"),
    [
        ({}, {}, "'wte.weight' is missing for embeddings/word/embedding"),
        ({"transformer.wte.weight": "lm_head.wieght"}, {}, "'wte.weight' is missing"),
        (
            {"transformer.wte.weight": "other.weight"},
            {},
            "'transformer.wte.weight' is 'other.weight', which is",
        ),
        (ALIAS, {"transformer.wte.weight": np.zeros((11, 8), np.float32)}, "and the file has both, which differ"),
    ],
)
def test_metadata_that_name_a_missing_tensor_or_contradict_the_file_are_refused(tied, metadata, added, said):
    directory, tensors, _ = tied
    save_file(tensors | added, directory / "model.safetensors", metadata)
    assert said in refusal(directory)


def test_another_name_of_no_use_is_no_hindrance(directory):
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors, directory / "model.safetensors", {"my.own.weight": "classifier.weight"})
    assert checkpoints.load(str(directory), sharding="host").head == Head(3)
