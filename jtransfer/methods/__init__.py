"""Ways of transferring, one file per family. To add one, write a function that returns a `Method`."""

import ast
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jtransfer import expressions, kinds
from jtransfer.errors import InputError
from jtransfer.methods.bottlenecks import adaptformer, compacter, houlsby, pfeiffer
from jtransfer.methods.clip import clip_adapter, coop
from jtransfer.methods.fourier import fourierft
from jtransfer.methods.freezing import (
    bitfit,
    finetune,
    frozen_norm,
    layerwise,
    norm,
    probe,
    rules,
    scratch,
    top_blocks,
    unfreeze,
)
from jtransfer.methods.ia3 import ia3
from jtransfer.methods.lora import lora
from jtransfer.methods.method import Adapted, Given, Method, Phase, adapt, learn
from jtransfer.methods.patch_dropout import patch_dropout
from jtransfer.methods.penalties import l2sp
from jtransfer.methods.prefixes import prefix
from jtransfer.methods.products import loha, lokr
from jtransfer.methods.prompts import prompt, vpt
from jtransfer.methods.remembering import RECORDED, SOURCE, ewc, lwf
from jtransfer.methods.rotations import boft, hra, oft
from jtransfer.methods.scalar_mix import scalar_mix
from jtransfer.methods.teachers import (
    TEACHER_FEATURES,
    TEACHER_MAP,
    distill,
    distill_attention,
    distill_features,
)
from jtransfer.methods.vera import vera
from jtransfer.methods.wise_ft import wise_ft
from jtransfer.solvers.few_shot import FITS

__all__ = [
    "METHODS",
    "Adapted",
    "Given",
    "Method",
    "Phase",
    "adapt",
    "adaptformer",
    "bitfit",
    "boft",
    "check_needs",
    "check_rows",
    "clip_adapter",
    "compacter",
    "coop",
    "distill",
    "distill_attention",
    "distill_features",
    "ewc",
    "finetune",
    "fourierft",
    "frozen_norm",
    "houlsby",
    "hra",
    "ia3",
    "l2sp",
    "layerwise",
    "learn",
    "loha",
    "lokr",
    "lora",
    "lwf",
    "named_phases",
    "norm",
    "oft",
    "parse",
    "patch_dropout",
    "pfeiffer",
    "prefix",
    "probe",
    "prompt",
    "rules",
    "scalar_mix",
    "scratch",
    "top_blocks",
    "unfreeze",
    "vera",
    "vpt",
]

METHODS: dict[str, Callable[..., Method]] = {
    "probe": probe,
    "finetune": finetune,
    "scratch": scratch,
    "top_blocks": top_blocks,
    "layerwise": layerwise,
    "unfreeze": unfreeze,
    "bitfit": bitfit,
    "norm": norm,
    "frozen_norm": frozen_norm,
    "lora": lora,
    "vera": vera,
    "loha": loha,
    "lokr": lokr,
    "fourierft": fourierft,
    "oft": oft,
    "boft": boft,
    "hra": hra,
    "ia3": ia3,
    "houlsby": houlsby,
    "pfeiffer": pfeiffer,
    "adaptformer": adaptformer,
    "compacter": compacter,
    "prompt": prompt,
    "prefix": prefix,
    "vpt": vpt,
    "scalar_mix": scalar_mix,
    "clip_adapter": clip_adapter,
    "coop": coop,
    "l2sp": l2sp,
    "ewc": ewc,
    "lwf": lwf,
    "wise_ft": wise_ft,
    "patch_dropout": patch_dropout,
    "distill": distill,
    "distill_features": distill_features,
    "distill_attention": distill_attention,
    "rules": rules,
}


def named_phases(name: str, adapted: Adapted) -> list[tuple[str, Adapted]]:
    """The phases of a method, each under a name of its own: `probe >> finetune (1 of 2)`."""
    count = len(adapted.phases)
    return [(f"{name} ({i} of {count})" if count > 1 else name, one) for i, one in enumerate(adapted.phases, 1)]


KEYS = {RECORDED: "", TEACHER_FEATURES: "teacher", TEACHER_MAP: "teacher"}
"""Of what methods need, what has another name than the key of the config that gives it; empty where none does."""


def check_needs(named: Iterable[Method], has: Iterable[str]) -> None:
    """Refuse methods that need what is not there, and a teacher that none of them reads.

    Args:
        named: The methods of a run.
        has: The keys of the config that give what methods need, as "teacher" and "source", and are set.

    Raises:
        InputError: naming the key.
    """
    needs = {method.name: [KEYS.get(part, part) for part in method.needs] for method in named}
    has = list(has)
    for name, keys in needs.items():
        if missing := [key for key in keys if key and key not in has]:
            raise InputError(f"method '{name}' needs a {missing[0]}: name one in config.{missing[0]}")
    # A source is read without a method too: what is forgotten of it is measured.
    if unused := [key for key in has if key != SOURCE and not any(key in keys for keys in needs.values())]:
        raise InputError(f"config.{unused[0]} is read by no method here; add one that does, as in 'finetune + distill'")


def check_rows(method: Method) -> None:
    """Refuse a method that needs more of every example, where batches are of pairs or of several tasks.

    Raises:
        InputError: naming what it needs.
    """
    if method.needs:
        raise InputError(f"method '{method.name}' needs '{method.needs[0]}', which is of a single task of rows")
    if method.names:
        raise InputError(f"method '{method.name}' reads names of classes, which are of a single task of rows")


MOST_PARTS = 200
"""Methods that one text may join."""
JOINS = {ast.Add: operator.add, ast.RShift: operator.rshift}


def parse(text: str, others: Iterable[str] = ()) -> Method:
    """A method as a config writes it: `probe`, `lora(rank=4)`, `lora(rank=4) + bitfit`, `probe >> finetune`.

    One of `solvers.few_shot.FITS` may stand before the first `>>`, as in `logistic >> finetune`: the head starts there.

    Args:
        text: What the config says.
        others: Names that may stand in its place, for the error.

    Raises:
        InputError: an unknown method or option (with the nearest that exists), or text of another form.
    """
    node = expressions.parse(text, "method")
    if (parts := 1 + sum(isinstance(part, ast.BinOp) for part in ast.walk(node))) > MOST_PARTS:
        raise InputError(f"method {kinds.shown(text)} has {parts} parts; expected {MOST_PARTS} at most")
    method = _built(node, text, others, FITS)
    if method.kept:
        method = replace(method, kept=replace(method.kept, name=ast.unparse(_Kept(text).visit(node))))
    return replace(method, name=text.strip())


@dataclass
class _Kept(ast.NodeTransformer):
    """Puts the text of what is kept of each method in the place of its own."""

    text: str

    def visit_Call(self, node):
        kept = None if _first(node) in FITS else expressions.call(node, self.text, "method", METHODS)().kept
        return ast.parse(kept.name, mode="eval").body if kept else node


def _built(node: ast.expr, text: str, others: Iterable[str], solvers: Iterable[str]) -> Method:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift) and _first(node.left) in solvers:
        method = _built(node.right, text, others, ())
        if not method.pretrained:
            raise InputError(
                f"method '{text.strip()}': a head of the backbone's features is of no use to other weights"
            )
        fit = expressions.call(node.left, text, "method", FITS)()
        return replace(method, solves=(fit,), names=method.names or ("head" if fit.names else ""))
    if isinstance(node, ast.BinOp) and type(node.op) in JOINS:
        left, right = _built(node.left, text, others, solvers), _built(node.right, text, others, ())
        return JOINS[type(node.op)](left, right)
    if (name := _first(node)) in FITS:
        raise InputError(
            f"method {kinds.shown(text)}: '{name}' solves for a head and trains nothing; expected it to stand first, "
            f"as in '{name} >> finetune'"
        )
    method = expressions.call(node, text, "method", METHODS, others=(*others, *solvers))()
    # What the user's function calls it tells no part of the text; the text tells them apart.
    dotted = isinstance(node.func if isinstance(node, ast.Call) else node, ast.Attribute)
    return replace(method, name=ast.unparse(node)) if dotted else method


def _first(node: ast.expr) -> str:
    """The name of a call or of a name alone."""
    name = node.func if isinstance(node, ast.Call) else node
    return name.id if isinstance(name, ast.Name) else ""
