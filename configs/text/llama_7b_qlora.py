"""QLoRA on one GPU: a Llama of 7 billion parameters whose kernels are in four bits, and LoRA beside all of them.

jtransfer train --config=configs/text/llama_7b_qlora.py:data=texts:FILE --workdir=runs/llama_7b
jtransfer train --config=configs/text/llama_7b_qlora.py:data=texts:FILE,backbone=Qwen/Qwen2.5-7B --workdir=runs/7b
jtransfer train --config="configs/text/llama_7b_qlora.py:objective=lm(answers=True),packing=documents" \
    --config.data="table:FILE.jsonl?input=prompt+answer" --workdir=runs/answers_7b
jtransfer inspect --config=configs/text/llama_7b_qlora.py --topology=v5p:1x1x1 --config.model.depth=4

The values are those of QLoRA for 7B (Dettmers et al. 2023, arXiv:2305.14314, appendix B.2 and table 9), compared with
artidoro/qlora, scripts/finetune_guanaco_7b.sh and the model card of Guanaco there: NF4 with quantised scales, rank 64,
alpha 16 and dropout 0.1 beside every dense layer of the blocks, 1875 steps of 16 sequences at a constant rate of
0.0002 (the script's warm-up of 3% is not read by that schedule), AdamW with moments of 0.9 and 0.999, no decay,
gradients clipped at 0.3.

Unlike there: texts are joined in rows of 2048 tokens, one of which is computed at a time, where theirs are rows of
OASST1 of at most 528 tokens, four at a time and grouped by length; LoRA is float32, where theirs is bfloat16, and its
state stays on the device, where theirs is paged. Nothing of it was trained here.

The 160 million parameters of LoRA, their state and the rest of the model take 6.3 GB, where full finetuning holds
80.9 GB before any gradient. The step compiled for a TPU v5p has its peak at 4.0 GB with four blocks, and at 10.2 GB
with all 32 (docs/text.md).
"""

from ml_collections import ConfigDict

from jtransfer.config import arguments


def get_config(arg: str = ""):
    """Any key of `jtransfer.config.train_defaults` changes the rest; `model` stands for a backbone that is not here."""
    config = ConfigDict(
        {
            "data": "tfds:wikitext2",
            "backbone": "meta-llama/Llama-2-7b-hf",
            "model": {"architecture": "llama", "epsilon": 1e-5},
            "load": {"bits": 4, "remat": True, "dtype": "bfloat16", "tokens": 2048},
            "objective": "lm",
            "packing": "joined",
            "method": "lora(rank=64, alpha=16, target='.*/(attention|mlp)/.*', dropout=0.1, head_rate=0)",
            "batch": 16,
            "accumulate": 16,
            "steps": 1875,
            "optimiser": {"rate": 2e-4, "schedule": "constant", "warmup": 0, "clip": 0.3},
            "log_every": 5,
            "eval_every": 125,
            "checkpoint_every": 125,
        }
    )
    config.update(arguments(arg))
    return config
