"""Run the trials of a whole curve in jtransfer, and the same trials as a loop in PyTorch, in turns in one process.

    python experiments/speed/curve.py --repeats 3 --out curve.json
    python experiments/speed/curve.py --texts --checkpoint DIR --tfds DIR     # a sentence encoder on ag_news_subset
    taskset -c 0 python experiments/speed/curve.py --cpu-time                 # on a CPU with other work
    python experiments/speed/curve.py --tiny                                  # does it run, and do the results agree?

Needs torch, transformers and peft beside jtransfer. README.md beside this file says what is compared and what came out.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from steps import PEER, adamw, surroundings, with_lora
from torch.nn import functional
from transformers import AutoModel
from transformers.utils import logging

from jtransfer import checkpoints
from jtransfer import config as configs
from jtransfer.curves import run as curves
from jtransfer.curves.arms import Examples
from jtransfer.curves.trained import Trained
from jtransfer.data.coded import take
from jtransfer.data.subsets import batches
from jtransfer.train import TrialData, make_trial

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
RANK, ALPHA = 4, 8.0
"""Of LoRA; alpha is the default of jtransfer and of PEFT."""
METHODS = ("probe", "finetune", f"lora(rank={RANK})")
TEXTS = {
    "data": "tfds:ag_news_subset",
    "load": {"tokens": 32},
    "shots": (1, 4, 16),
    "seeds": 2,
    "test_rows": 200,
    "batch": 8,
    "steps": 24,
    "hyper": {
        "probe": {"rate": (0.003, 0.01, 0.03), "steps": 100},
        "finetune": {"rate": (0.0001, 0.0005)},
        "lora": {"rate": (0.001, 0.005)},
    },
}
TINY = {
    "shots": (1, 2),
    "seeds": 2,
    "steps": 4,
    "hyper": {
        "probe": {"rate": (0.01, 0.1), "steps": 4},
        "finetune": {"rate": (0.0003, 0.001)},
        "lora": {"rate": (0.001, 0.01)},
    },
}
BLOCK = 256
"""Rows that PyTorch predicts at once; jtransfer's number too."""
TOLERANCE = {"loss": 1e-3, "points": 2.0}
"""How far the loss of any step of a trial, and the mean accuracy of a cell in points, may be from PyTorch's."""

Seconds = dict[str, float]
"""What passed on the wall, and of processor time, by "wall" and "processor"."""


class Draw(NamedTuple):
    """What the trials of one method, number of shots and seed have in common.

    Attributes:
        key: What the trials of jtransfer start from.
        order: Rows of each step, `[steps, batch]`, as numbers of the examples of the curve; so are all rows.
        validation: Rows that choose the rate.
        start: The leaves that learn beside the backbone's, at their start.
    """

    key: jax.Array
    order: np.ndarray
    validation: np.ndarray
    start: dict[str, np.ndarray]


def draw(arm: Trained, shots: int, seed: int) -> Draw:
    """The draw of a cell, as `jtransfer.curves.trained` makes it."""
    train, validation = arm.examples.drawn(shots, seed)
    order = batches(train, arm.batch, sum(arm.plan.steps), seed=(seed, shots))
    key = jax.random.fold_in(jax.random.key(seed), shots)
    tree, _ = arm.adapted.start(jax.random.split(key)[0], arm.adapted.base)
    start = {path: np.asarray(tree[path]) for path in tree.keys() - arm.adapted.base.keys()}
    return Draw(key, order, validation, start)


def timed(call: Callable) -> tuple[Any, Seconds]:
    """The result of a call, and what passed."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def ours(config: ConfigDict, whole: bool) -> tuple[list[dict], dict[str, Seconds]]:
    """The rows of a curve; and what each method took, `compile NAME` and then its cells `NAME`, and `whole`.

    The whole is `jtransfer.curves.run` in a new directory, of which nothing is kept for the methods; or else their sum.
    """
    rows, took = [], {}
    for arm in curves.prepare(config).arms:
        cell, took[f"compile {arm.name}"] = timed(lambda arm=arm: arm.compile(config.seeds))
        found, took[arm.name] = timed(lambda cell=cell: [cell(shots, range(config.seeds)) for shots in config.shots])
        rows += itertools.chain(*found)
    if whole:
        curve = curves.prepare(config)
        with tempfile.TemporaryDirectory() as directory:
            _, all_of_it = timed(lambda: curves.run(curve, Path(directory) / "run", lambda *_: None))
    else:
        all_of_it = {clock: sum(one[clock] for one in took.values()) for clock in ("wall", "processor")}
    return rows, took | {"whole": all_of_it}


def losses(arm: Trained, draw: Draw, hyper: Mapping[str, float]) -> np.ndarray:
    """The loss of each step of one trial of jtransfer, alone and with nothing cached."""
    examples = arm.examples
    trial = make_trial(arm.adapted, arm.objective, arm.optimiser, arm.plan, examples.metric)
    data = TrialData(draw.order, draw.validation, jnp.ones(len(draw.validation)))
    hyper = {name: jnp.float32(value) for name, value in hyper.items()}
    return np.asarray(jax.jit(trial)(draw.key, hyper, arm.adapted.base, examples.on_device, data).losses)


class Classifier(torch.nn.Module):
    """A backbone of transformers under a linear head on its pooled output, or on the mean of the tokens of a text."""

    def __init__(self, backbone: torch.nn.Module, classes: int):
        super().__init__()
        self.backbone, self.head = backbone, torch.nn.Linear(backbone.config.hidden_size, classes)

    def features(self, **inputs: torch.Tensor) -> torch.Tensor:
        """What the head reads, `[batch, width]`."""
        outputs = self.backbone(**inputs)
        if "attention_mask" not in inputs:
            return outputs.pooler_output
        mask = inputs["attention_mask"][:, :, None].float()
        return (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]`."""
        return self.head(self.features(**inputs))


class Peer:
    """The trials of one method in PyTorch: one model, whose learning parameters go back to their start for each trial.

    Args:
        arm: The method in jtransfer.
        directory: Its backbone, as transformers loads it.
        inputs: Of all examples of the curve, by name, as transformers takes them.
        labels: Of all examples.
    """

    def __init__(self, arm: Trained, directory: str, inputs: dict[str, torch.Tensor], labels: torch.Tensor):
        self.arm, self.inputs, self.labels = arm, inputs, labels
        backbone = AutoModel.from_pretrained(directory)
        self.plain = model = Classifier(backbone, arm.examples.dataset.outputs)
        if arm.name == "probe":
            backbone.requires_grad_(False)
        if arm.name.startswith("lora"):
            targets = ["query", "value"] if "input_ids" in inputs else ["q_proj", "v_proj"]
            model = with_lora(model, targets, "head", RANK, ALPHA)
        self.model = model.train()
        self.learning = {name: x for name, x in model.named_parameters() if x.requires_grad}
        if (learns := sum(x.numel() for x in self.learning.values())) != arm.trainable:
            raise SystemExit(f"{arm.name}: {arm.trainable} parameters learn in jtransfer, {learns} in PyTorch")
        self.first = {name: x.detach().clone() for name, x in self.learning.items()}
        test = arm.examples.places(arm.examples.test)
        self.test = torch.from_numpy(test)
        self.schedule = [float(arm.optimiser.rate_at(sum(arm.plan.steps))(i)) for i in range(sum(arm.plan.steps))]

    def read(self) -> None:
        """Where the head alone learns, compute once what it reads of all examples."""
        if self.arm.name != "probe":
            return
        with torch.no_grad():
            rows = torch.arange(len(self.labels)).split(BLOCK)
            self.inputs = {"input": torch.cat([self.plain.features(**self.of(some)) for some in rows])}
        self.model = self.plain.head

    def of(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The inputs of some rows."""
        return {name: x[rows] for name, x in self.inputs.items()}

    def begin(self, draw: Draw) -> None:
        """Put every parameter that learns where jtransfer has it at the start of a trial."""
        with torch.no_grad():
            for name, x in self.learning.items():
                own = draw.start.get(path_of(name))
                x.copy_(self.first[name] if own is None else torch.from_numpy(own.T.copy()))

    def train(self, draw: Draw, hyper: Mapping[str, float]) -> torch.Tensor:
        """Train from the start, and return the loss of each step."""
        self.begin(draw)
        learning, found = list(self.learning.values()), []
        optimiser = adamw(learning, hyper["rate"], hyper["decay"])
        for factor, rows in zip(self.schedule, torch.from_numpy(draw.order), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = factor * hyper["rate"]
            loss = functional.cross_entropy(self.model(**self.of(rows)), self.labels[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, self.arm.optimiser.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            found.append(loss.detach())
        return torch.stack(found)

    @torch.no_grad()
    def predict(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits of some rows, in blocks."""
        return torch.cat([self.model(**self.of(some)) for some in rows.split(BLOCK)])

    def cell(self, draw: Draw) -> tuple[float, float]:
        """The rate that is best on validation rows, and the accuracy of its model on test rows."""
        validation, best = torch.from_numpy(draw.validation), (-1.0, 0.0)
        for hyper in self.arm.grid:
            found = self.train(draw, hyper)
            logits, labels = self.predict(validation), self.labels[validation]
            loss = functional.cross_entropy(logits, labels)
            if not (loss.isfinite() and found.isfinite().all()):
                continue
            score = (logits.argmax(1) == labels).float().mean().item(), -loss.item()
            if score > best:
                best, rate = score, hyper["rate"]
                kept = {name: x.detach().clone() for name, x in self.learning.items()}
        with torch.no_grad():
            for name, x in self.learning.items():
                x.copy_(kept[name])
        correct = self.predict(self.test).argmax(1) == self.labels[self.test]
        return rate, correct.float().mean().item()


def path_of(name: str) -> str:
    """The path of a parameter that starts elsewhere than in the checkpoint: of a head, or of LoRA."""
    if found := re.search(r"head\.(?:modules_to_save\.default\.)?(weight|bias)$", name):
        return f"head/{'kernel' if found[1] == 'weight' else 'bias'}"
    if found := re.search(r"layers?\.(\d+)\..*\b(q|v)\w*\.lora_([AB])\.", name):
        layer = "query" if found[2] == "q" else "value"
        return f"encoder/block_{found[1]}/attention/{layer}/lora/{found[3].lower()}"
    return ""


def theirs(arms: list[Trained], backbone: str, config, seeds: int) -> tuple[dict, dict[str, Seconds], dict[str, Peer]]:
    """Run every cell of some seeds in PyTorch.

    Returns:
        The chosen rate and the accuracy by method, shots and seed; what each method took,
        `read NAME` once and its cells `NAME`; and the methods themselves.
    """
    examples, found, took, peers = arms[0].examples, {}, {}, {}
    inputs, labels = tensors(examples), torch.from_numpy(np.array(examples.on_device["labels"])).long()
    for arm in arms:
        peers[arm.name] = peer = Peer(arm, backbone, inputs, labels)
        draws = {(shots, seed): draw(arm, shots, seed) for shots in config.shots for seed in range(seeds)}

        _, took[f"read {arm.name}"] = timed(peer.read)
        cells, took[arm.name] = timed(lambda peer=peer, draws=draws: [peer.cell(one) for one in draws.values()])
        found |= {(arm.name, *place): cell for place, cell in zip(draws, cells, strict=True)}
    return found, took, peers


def tensors(examples: Examples) -> dict[str, torch.Tensor]:
    """The inputs of all examples as transformers takes them, made once."""
    found = {}
    for name, x in take(examples.on_device["inputs"], np.arange(len(examples.rows))).items():
        x = np.array(x)
        found[name] = torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x)
    return found


def compare(arm: Trained, rows: list[dict], cells: dict, peer: Peer, seeds: int) -> dict[str, float]:
    """How far the results of one method are apart.

    Returns:
        `points`: the largest difference of mean accuracies in a cell; `same_rate`: the share of choices that are equal;
        `loss`: the largest difference in the loss of any step of one trial, at middle shots and rate.
    """
    pairs: dict[int, list] = {}
    for row in rows:
        if row["method"] == arm.name and row["seed"] < seeds:
            rate, accuracy = cells[arm.name, row["shots"], row["seed"]]
            pairs.setdefault(row["shots"], []).append((row["test_accuracy"], accuracy, row["hyper"]["rate"] == rate))
    apart = [100 * abs(mean(x for x, _, _ in cell) - mean(y for _, y, _ in cell)) for cell in pairs.values()]
    one, hyper = draw(arm, sorted(pairs)[len(pairs) // 2], 0), arm.grid[len(arm.grid) // 2]
    difference = np.abs(losses(arm, one, hyper) - peer.train(one, hyper).numpy())
    return {
        "points": max(apart),
        "same_rate": mean(same for cell in pairs.values() for _, _, same in cell),
        "loss": float(difference.max()),
    }


def summary(arms: list[Trained], turns: list[dict], of: dict[str, dict], config, seeds: int, clock: str) -> list[dict]:
    """A row for each method, its trials alone, and one for the whole curve, in seconds on `clock`.

    What PyTorch took for cells is scaled from `seeds` to all seeds. The features of a probe are in the whole alone, as
    they are computed while jtransfer compiles.
    """

    def took(name):
        return [turn["ours"][name][clock] for turn in turns]

    def peer(name):
        return [turn["theirs"][name][clock] * config.seeds / seeds for turn in turns]

    def row(name, trials, gflop, own, other):
        ratios = [y / x for x, y in zip(own, other, strict=True)]
        return {
            "method": name,
            "trials": trials,
            "gflop": gflop,
            "ours": median(own),
            "torch": median(other),
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }

    rows = []
    for arm in arms:
        trials = len(config.shots) * config.seeds * len(arm.grid)
        gflop = trials * sum(arm.plan.steps) * arm.flops_per_step() / 1e9
        compiling = {"compile": median(took(f"compile {arm.name}"))}
        rows.append(row(arm.name, trials, gflop, took(arm.name), peer(arm.name)) | compiling | of[arm.name])
    once = [sum(turn["theirs"][f"read {arm.name}"][clock] for arm in arms) for turn in turns]
    totals = [sum(one) for one in zip(once, *(peer(arm.name) for arm in arms), strict=True)]
    whole = row("whole", sum(x["trials"] for x in rows), sum(x["gflop"] for x in rows), took("whole"), totals)
    return [*rows, whole | {"compile": sum(x["compile"] for x in rows)}]


def table(rows: list[dict]) -> str:
    """The rows as Markdown; a ratio above 1 means that jtransfer is faster."""
    columns = {
        "method": "{method}",
        "trials": "{trials}",
        "GFLOP": "{gflop:,.0f}",
        "compile s": "{compile:.1f}",
        "s ours": "{ours:.1f}",
        "s PyTorch": "{torch:.1f}",
        "PyTorch / ours (min to max)": "{ratio:.2f} ({ratio_min:.2f} to {ratio_max:.2f})",
        "GFLOP/s ours, PyTorch": "{own:.0f}, {peer:.0f}",
        "loss apart": "{loss}",
        "accuracy apart": "{points}",
        "same rate": "{same_rate}",
    }
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for one in rows:
        rates = {"own": one["gflop"] / one["ours"], "peer": one["gflop"] / one["torch"]}
        apart = {"loss": "", "points": "", "same_rate": ""}
        if "loss" in one:
            apart = {"loss": f"{one['loss']:.0e}", "points": f"{one['points']:.1f}"}
            apart |= {"same_rate": f"{one['same_rate']:.0%}"}
        lines.append(" | ".join(cell.format(**one | rates | apart) for cell in columns.values()))
    return "\n".join(f"| {line} |" for line in lines)


def faster_threads(arm: Trained, backbone: str, cores: int) -> int:
    """The number of threads with which PyTorch takes least time for one cell, of one thread and all cores."""
    if cores == 1:
        return 1
    inputs, labels = tensors(arm.examples), torch.from_numpy(np.array(arm.examples.on_device["labels"])).long()
    peer, one = Peer(arm, backbone, inputs, labels), draw(arm, min(arm.examples.shots), 0)
    took = {}
    for threads in (1, cores, 1, cores):
        torch.set_num_threads(threads)
        took[threads] = timed(lambda: peer.cell(one))[1]["wall"]  # the second time decides
    return min(took, key=took.get)


def without_dropout(checkpoint: str, directory: Path) -> str:
    """A copy of a BERT that drops nothing, as both frameworks draw other numbers."""
    shutil.copytree(checkpoint, directory)
    path = directory / "config.json"
    values = json.loads(path.read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(values))
    return str(directory)


def read_config(options: argparse.Namespace) -> ConfigDict:
    """The config of the curve."""
    if options.texts:
        values = TEXTS | {"backbone": options.checkpoint, "data_dir": options.tfds}
    else:
        values = configs.load("curve", str(QUICKSTART), [])[1].to_dict()
    return ConfigDict(configs.completed("curve", values | {"methods": METHODS} | (TINY if options.tiny else {})))


def main() -> None:
    """Parse, run in turns, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="turns of each framework")
    parser.add_argument("--texts", action="store_true", help="a sentence encoder on texts, instead of the quickstart")
    parser.add_argument("--checkpoint", help="the sentence encoder")
    parser.add_argument("--tfds", help="where ag_news_subset lies")
    parser.add_argument("--peer-seeds", type=int, help="seeds that PyTorch runs, its sum scaled to all (default all)")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: one or all cores, whichever is faster)")
    parser.add_argument("--tiny", action="store_true", help="the quickstart with a few steps")
    parser.add_argument(
        "--cpu-time", action="store_true", help="compare processor time, under 'taskset -c 0' on a busy CPU"
    )
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    options = parser.parse_args()
    logging.disable_progress_bar()
    cores = len(os.sched_getaffinity(0))
    if options.cpu_time and cores > 1:
        parser.error("--cpu-time needs one core, as under 'taskset -c 0'")
    if options.texts and not (options.checkpoint and options.tfds):
        parser.error("--texts needs --checkpoint and --tfds")
    about = {"settings": vars(options) | {"out": None}} | surroundings(PEER)
    turns = []
    with tempfile.TemporaryDirectory() as directory:
        if options.texts:
            options.checkpoint = without_dropout(options.checkpoint, Path(directory) / "checkpoint")
        config = read_config(options)
        seeds = options.peer_seeds or config.seeds
        arms = curves.prepare(config).arms
        backbone = str(Path(directory) / "backbone")
        checkpoints.to_huggingface(backbone, arms[0].backbone)
        torch.set_num_threads(options.threads or faster_threads(arms[1], backbone, cores))
        print(json.dumps(about | {"torch_threads": torch.get_num_threads()}), flush=True)
        for _ in range(options.repeats):
            rows, own = ours(config, whole=not (options.tiny or options.texts))
            print(json.dumps({"ours": own}), flush=True)
            cells, other, peers = theirs(arms, backbone, config, seeds)
            print(json.dumps({"theirs": other}), flush=True)
            turns.append({"ours": own, "theirs": other})
    apart = {arm.name: compare(arm, rows, cells, peers[arm.name], seeds) for arm in arms}
    found = summary(arms, turns, apart, config, seeds, "processor" if options.cpu_time else "wall")
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps(about | {"turns": turns, "rows": found}, indent=1))
    for name, one in apart.items():
        if one["loss"] > TOLERANCE["loss"] or one["points"] > TOLERANCE["points"]:
            raise SystemExit(f"{name}: the results are apart: {one}; expected at most {TOLERANCE}")


if __name__ == "__main__":
    main()
