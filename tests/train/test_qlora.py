"""`jtransfer train --config.load.bits=4`: LoRA learns beside a Llama in four bits, and is kept."""

import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import jtransfer as jt
from jtransfer import checkpoints, config
from jtransfer.cli import main
from jtransfer.errors import InputError
from jtransfer.models import Headed, build, complete, quantized
from jtransfer.train import runs

WORDS = ["[PAD]", "the", "red", "green", "cat", "dog", "sits", "runs"]
FILE = """
from ml_collections import ConfigDict

def get_config():
    often = dict(log_every=2, eval_every=4, checkpoint_every=2)
    load = dict(bits=4, remat=True, tokens=8)
    rest = dict(batch=8, steps=4, optimiser=dict(rate=1e-2), packing="joined")
    learned = dict(objective="lm", backbone={base!r}, data="texts:{texts}", method="lora(rank=2, head_rate=0)")
    return ConfigDict(dict(load=load, **learned, **often, **rest))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A config whose base is a small language model in our own layout."""
    where = tmp_path_factory.mktemp("qlora")
    model = build("llama", vocabulary=len(WORDS), positions=16, width=64, depth=1, heads=2, kv_heads=1, hidden=64)
    whole = Headed(model, model.config.language_head)
    tree = jax.jit(lambda key: complete(whole, key, {}, model.config.inputs))(jax.random.key(0))
    tree["source_head/kernel"] = np.random.default_rng(0).normal(size=(64, len(WORDS))).astype(np.float32)
    tokenizer = Tokenizer(models.WordLevel(dict(zip(WORDS, range(len(WORDS)), strict=True)), unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    beside = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizer", "pad_token": "[PAD]"}).encode(),
    }
    checkpoints.save(where / "base", model, tree, head=model.config.language_head, beside=beside)
    draw = np.random.default_rng(0).choice
    texts = [
        f"the {draw(WORDS[2:4])} {animal} {'sits' if animal == 'cat' else 'runs'}" for animal in draw(WORDS[4:6], 200)
    ]
    (where / "texts.txt").write_text("\n".join(texts))
    (where / "train.py").write_text(FILE.format(base=str(where / "base"), texts=where / "texts.txt"))
    return where / "train.py"


def test_a_run_keeps_what_was_learned_beside_a_base_in_four_bits(file, tmp_path):
    assert main(["train", f"--config={file}", f"--workdir={tmp_path / 'whole'}"]) == 0
    base, trained = jt.load(str(file.parent / "base"), bits=4), jt.load(str(tmp_path / "whole/model"))
    assert json.loads((tmp_path / "whole/model/config.json").read_text())["base"]["bits"] == 4
    assert trained.config.bits == 4 and trained.methods[0].text == "lora(rank=2, head_rate=0)"
    added = trained.params.keys() - base.params.keys()
    assert added and all("/lora/" in path for path in added)
    assert all(np.array_equal(trained.params[path], x) for path, x in base.params.items())
    assert np.abs(trained.params["encoder/block_0/attention/query/lora/b"]).max() > 1e-3
    assert any(quantized.is_part(path) for path in base.params)
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_method_that_would_train_the_kernels_is_refused_before_anything_is_compiled(file):
    with pytest.raises(InputError, match="a part of a quantised kernel, which never learns; .* config.load.bits"):
        runs.prepare(config.load("train", str(file), ["--config.method=finetune"])[1])
