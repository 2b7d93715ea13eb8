"""What finetuning a Llama of 7 billion parameters takes in memory, without weights.

What it holds is counted on shapes of its step, and what it takes altogether on the step as compiled for a TPU. XLA's
CPU backend takes out the barriers behind which blocks and kernels are made again, and the compiler of a GPU needs one.
"""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jtransfer import methods, models
from jtransfer.cli import main
from jtransfer.config import load
from jtransfer.objectives import lm
from jtransfer.optimiser import Optimiser
from jtransfer.train import costs
from jtransfer.tree import partition, size

CONFIG = Path(__file__).parents[2] / "configs/text/llama_7b_qlora.py"
TOKENS, GPU = 2048, 80e9


@pytest.fixture(scope="module")
def method():
    return load("train", str(CONFIG), [])[1].method


def seven_billion(method, bits, **options):
    """The step of one row of 2048 tokens, computed in bfloat16 with its blocks computed again."""
    config = models.LlamaConfig(epsilon=1e-5, bits=bits, remat=True, dtype="bfloat16", **options)
    model = models.Headed(models.of_config(config), config.language_head, "head")
    example = dict.fromkeys(("input_ids", "attention_mask"), jax.ShapeDtypeStruct((1, TOKENS), jnp.int32))
    adapted = methods.adapt(methods.parse(method), model, models.shapes_of(model, example), example)
    return adapted, costs.step_shapes(adapted, lm(), Optimiser(), 1, parts={})


def held(shapes):
    """Bytes of the state, the frozen leaves and the batch."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes.arguments))


@pytest.mark.slow
def test_weights_in_four_bits_with_the_state_of_lora_are_a_thirteenth_of_those_of_finetuning(method):
    adapted, few = seven_billion(method, 4)
    trainable, frozen = partition(adapted.shapes, adapted.rates)
    assert size(trainable) == 32 * 64 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert all("/lora/" in path for path in trainable) and "head/kernel" in frozen
    held_by = {
        "qlora": held(few),
        "lora": held(seven_billion(method, 0)[1]),
        "finetune": held(seven_billion("finetune", 0)[1]),
    }
    gigabytes = {name: round(found / 1e9, 1) for name, found in held_by.items()}
    assert gigabytes == {"qlora": 6.3, "lora": 28.9, "finetune": 80.9}
    assert held_by["finetune"] > GPU, "before any gradient"


def peak(depth, capsys):
    """Bytes of a chip that the step of the config needs with so many blocks."""
    flags = ["--topology=v5p:1x1x1", f"--config.model.depth={depth}", "--json"]
    assert main(["inspect", f"--config={CONFIG}", *flags]) == 0
    return json.loads(capsys.readouterr().out)[0]["peak_bytes"]


@pytest.mark.slow
def test_the_compiled_step_needs_less_than_the_floats_of_a_block_for_each_block_more(capsys):
    pytest.importorskip("libtpu", reason="needs a compiler for TPUs: pip install -e '.[pod]'")
    one, two = peak(1, capsys), peak(2, capsys)
    kernels = 4 * 4096**2 + 3 * 4096 * 11008
    assert two - one < 2 * kernels, "a block more costs less than its kernels in bfloat16"
    assert two + 30 * (two - one) < GPU / 7, "10.2 GB with all 32 compiled, in which 16 GB are taken"
