"""One target and six systems in the order of their years: what each makes of few labels.

    python experiments/from_scratch_to_bert/run.py --encoder=DIR --data_dir=DIR --workdir=runs/from_scratch_to_bert

pretrains word2vec, an ELMo, an AWD-LSTM and a BERT on the same 245,000 words of wikitext2, lets the AWD-LSTM go on with
the target's texts, and draws the curve of each (curve.py). `--encoder` is a sentence encoder that others pretrained.
`results.csv`, `table.md` and `curve.png` show all of them. Runs that are done are read, and those that were stopped
go on.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from jtransfer.cli import run
from jtransfer.curves import report

HERE = Path(__file__).parent
TEXT = HERE.parents[1] / "configs" / "text"
PRETRAINED = {
    "word2vec": "word2vec.py:data=tfds:wikitext2?train=validation&test=test,steps=225,eval_every=225",
    "elmo": "elmo_small.py",
    "awd_lstm": "awd_lstm_small.py",
    "ulmfit": "ulmfit_lm.py:backbone={}/awd_lstm/model",
    "bert": "bert_small.py",
}
"""By the directory in the workdir: the config of the pretraining."""
SYSTEMS = {
    "bag of words": "words",
    "word2vec": "word2vec",
    "ELMo": "elmo",
    "ULMFiT": "ulmfit",
    "BERT, ours": "bert",
    "sentence encoder": "encoder",
}
"""By the name in the figure: that in curve.py, and of the directory of its model if it is pretrained here."""
COLUMNS = ("method", "shots", "seed", "rate", "val_accuracy", "test_accuracy")


def main(argv):
    """Pretrain, draw each curve, show all as one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("encoder", "data_dir", "workdir"):
        parser.add_argument(f"--{flag}", required=True)
    asked = parser.parse_args(argv)
    workdir, found = Path(asked.workdir), f"--config.data_dir={asked.data_dir}"
    for name, config in PRETRAINED.items():
        run("train", f"--config={TEXT / config.format(workdir)}", f"--workdir={workdir / name}", found)
    rows = []
    for system, name in SYSTEMS.items():
        backbone, place = workdir / name / "model" if name in PRETRAINED else asked.encoder, workdir / "curves" / name
        run("curve", f"--config={HERE / 'curve.py'}:on={name},backbone={backbone}", f"--workdir={place}", found)
        rows += [json.loads(line) | {"method": system} for line in (place / "results.jsonl").open()]
    with (workdir / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(row | row["hyper"] for row in rows)
    report.write(rows, workdir, [], "AG News from a bag of words to BERT")


if __name__ == "__main__":
    main(sys.argv[1:])
