"""What the files of each method of PEFT have: the tensors beside a layer's weight, the keys of the config, and both in
terms of a method of ours. One `Format` for each `peft_type`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jtransfer import methods
from jtransfer.checkpoints.names import CONVOLUTION, ONE_BY_ONE, SAME, TRANSPOSED, LayerKind, Layout
from jtransfer.errors import InputError
from jtransfer.methods import Method
from jtransfer.methods.fourier import FourierFT
from jtransfer.methods.ia3 import IA3
from jtransfer.methods.lora import FROM_BASE, LoRA
from jtransfer.methods.products import LoHa, LoKr
from jtransfer.methods.rotations import BOFT, HRA, OFT
from jtransfer.methods.updates import Site, by_rule
from jtransfer.methods.vera import SHARED, VeRA

EMBEDDING = "embedding"
"""Stands for the layout of a table, among those of kernels."""
Config = Mapping[str, Any]
Own = Callable[[str], dict[str, Any]]
"""Of a key of patterns, the values of layers that differ from the default, by patterns of ours."""


@dataclass(frozen=True)
class Format:
    """The files of one method.

    Attributes:
        part: The type of the options of the method.
        folder: Of its leaves beside a layer.
        ends: Tensors beside a weight, as in the rows of a table, by how the weight lies.
        read: From the config, the pattern of the adapted layers, their sites and their own values to the method.
        write: From the options and the sites to the values of the config, of which a mapping of patterns is by layer.
        numbers: Keys of the config with a number: the default and a key of `KINDS`.
        patterns: Keys with numbers by pattern, and the key of the number for all else.
        flags: Other keys that are read, and the values that are supported.
        bias: What its `bias` says of those of its layers; "" where it has no such key.
        shared: Tensors of all layers together, as `ends`.
        whole: Whether it has copies of modules, and none beside a weight.
    """

    part: type | None
    folder: str
    ends: Mapping[Layout | str, LayerKind]
    read: Callable[[Config, str, dict[str, Site], Own], Method]
    write: Callable[[Any, list[Site]], dict[str, Any]]
    numbers: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    patterns: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, tuple] = field(default_factory=dict)
    bias: str = ""
    shared: LayerKind = field(default_factory=dict)
    whole: bool = False

    @property
    def first(self) -> str:
        """What a tensor of it is called."""
        return (
            next(iter(next(iter(self.ends.values()))), "").removesuffix(".weight").strip(".")
            if self.ends
            else "ln_tuning_layers"
        )

    def shapes(self, part: Any, site: Site, kernel: Any = None) -> dict[str, tuple[int, ...]]:
        """The shapes of the leaves beside a layer, by name."""
        if isinstance(part, IA3):
            return {"scale": part.shape(site.path, site.shape)}
        return {name: shape for name, (_, shape) in part.makes(site, kernel).items()}


def _ends(folder: str, layouts: Mapping[Layout | str, Mapping[str, tuple[str, Layout]]]):
    return {
        lies: {end: (f"{{}}/{folder}/{leaf}", layout) for end, (leaf, layout) in ends.items()}
        for lies, ends in layouts.items()
    }


def _alike(ends, *layouts):
    """One set of tensors for several layouts."""
    return dict.fromkeys(layouts, ends)


COLUMN = Layout(lambda x: (x.reshape(-1),), lambda x: x[:, None])
ROW = Layout(lambda x: (x.reshape(-1),), lambda x: x[None])
CHANNELS = Layout(lambda x: (x.reshape(-1),), lambda x: x[None, :, None, None])
"""A number for each output: `[out, 1]`, `[1, out]`, and that of a convolution `[1, out, 1, 1]`."""


def _lora_ends():
    a, b, norms = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
    dense = {a: ("a", TRANSPOSED), b: ("b", TRANSPOSED), norms: ("magnitude", SAME)}
    one = {a: ("a", ONE_BY_ONE), b: ("b", ONE_BY_ONE), norms: ("magnitude", CHANNELS)}
    table = {".lora_embedding_A": ("a", TRANSPOSED), ".lora_embedding_B": ("b", TRANSPOSED), norms: ("magnitude", SAME)}
    layouts = {TRANSPOSED: dense, SAME: dense, ONE_BY_ONE: one, CONVOLUTION: one | {a: ("a", CONVOLUTION)}}
    return _ends("lora", layouts | {EMBEDDING: table})


def _read_lora(config, target, sites, own):
    return methods.lora(
        rank=config["r"],
        alpha=config["lora_alpha"],
        target=target,
        rs=bool(config.get("use_rslora")),
        dropout=config["lora_dropout"],
        ranks=own("rank_pattern"),
        alphas=own("alpha_pattern"),
        start=start if (start := config.get("init_lora_weights")) in FROM_BASE else "uniform",
        dora=bool(config.get("use_dora")),
    )


def _write_lora(part, sites):
    """A start from the kernel is written as the difference of two products, of twice the rank."""
    rank, alpha = part.ranks[-1][1], part.alphas[-1][1]
    own, rs = {site.path: part.of(site.path) for site in sites}, part.rs
    if part.start in FROM_BASE:
        own, rs = {layer: (2 * r, 2 * r * part.scale(layer)) for layer, (r, _) in own.items()}, False
        rank, alpha = next(iter(own.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": part.dropout,
        "use_rslora": rs,
        "use_dora": part.dora,
        "rank_pattern": {layer: r for layer, (r, _) in own.items()},
        "alpha_pattern": {layer: x for layer, (_, x) in own.items()},
        "init_lora_weights": True,
    }


def _write_products(part, sites):
    rank, alpha = part.ranks[-1][1], part.alphas[-1][1]
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": {x.path: by_rule(part.ranks, x.path) for x in sites},
        "alpha_pattern": {x.path: by_rule(part.alphas, x.path) for x in sites},
    }


def _products(config, target, own):
    ranks = {"ranks": own("rank_pattern"), "alphas": own("alpha_pattern")}
    return {"rank": config["r"], "alpha": config["alpha"], "target": target} | ranks


PRODUCTS = {"r": (8, "whole"), "alpha": (8, "number")}
RANKS_AND_ALPHAS = {"rank_pattern": "r", "alpha_pattern": "alpha"}
HADAMARD = {f".hada_w{i}_{end}": (f"{leaf}_{i}", TRANSPOSED) for i in (1, 2) for end, leaf in (("a", "b"), ("b", "a"))}


def _kronecker(kernel):
    return {
        ".lokr_w1": ("outer", TRANSPOSED),
        ".lokr_w1_a": ("outer_b", TRANSPOSED),
        ".lokr_w1_b": ("outer_a", TRANSPOSED),
        ".lokr_w2": ("inner", kernel),
        ".lokr_w2_a": ("inner_b", TRANSPOSED),
        ".lokr_w2_b": ("inner_a", TRANSPOSED),
    }


def _read_oft(config, target, sites, own):
    asked, number = config["oft_block_size"], config["r"]
    if bool(asked) == bool(number):
        raise InputError(f"oft_block_size is {asked} and r is {number}; expected one of them to be 0")
    sizes = {
        layer: s.rows // _fitting(s.rows, number) if number else _fitting(s.rows, asked) for layer, s in sites.items()
    }
    return methods.oft(
        block=asked or next(iter(sizes.values()), 2),
        target=target,
        blocks={re.escape(layer): size for layer, size in sizes.items() if size != asked},
        share=bool(config.get("block_share")),
        terms=config["num_cayley_neumann_terms"] if config.get("use_cayley_neumann", True) else None,
    )


def _fitting(rows: int, asked: int) -> int:
    """The divisor that PEFT takes where the number asked for is none: the nearest, the smaller of two."""
    if rows % asked == 0:
        return asked
    if asked >= rows:
        return rows
    higher = next(n for n in range(asked, rows + 1) if rows % n == 0)
    lower = next(n for n in range(asked, 0, -1) if rows % n == 0)
    return lower if asked - lower <= higher - asked else higher


def _write_oft(part, sites):
    sizes = {site.path: by_rule(part.blocks, site.path) for site in sites}
    for asked in range(2, 2 * max(sizes.values())):
        if all(_fitting(site.rows, asked) == sizes[site.path] for site in sites):
            values = {"r": 0, "oft_block_size": asked, "block_share": part.share}
            return values | {"use_cayley_neumann": bool(part.terms), "num_cayley_neumann_terms": part.terms or 5}
    raise InputError(f"peft: OFT has one block size for all layers, and these have {sorted(set(sizes.values()))}")


def _read_boft(config, target, sites, own):
    asked, number = config["boft_block_size"], config["boft_block_num"]
    if bool(asked) == bool(number):
        raise InputError(f"boft_block_size is {asked} and boft_block_num is {number}; expected one of them to be 0")
    sizes = {asked or site.rows // number for site in sites.values()} or {asked or 2}
    if len(sizes) > 1:
        raise InputError(f"boft_block_num is {number} for layers of several widths; expected one boft_block_size")
    return methods.boft(block=sizes.pop(), factors=config["boft_n_butterfly_factor"], target=target)


def _write_vera(part, sites):
    projection = {"projection_prng_key": part.seed, "save_projection": True}
    return {"r": part.rank, "d_initial": part.start, "vera_dropout": part.dropout} | projection


def _read_ia3(config, target, sites, own):
    turned = own("feedforward_modules")
    inputs = "|".join(turned) or "(?!)"
    outputs = "|".join(re.escape(layer) for layer in sites if re.escape(layer) not in turned) or "(?!)"
    return methods.ia3(outputs=outputs, inputs=inputs)


LYING = (TRANSPOSED, CONVOLUTION, ONE_BY_ONE)
FORMATS: dict[str, Format] = {
    "LORA": Format(
        LoRA,
        "lora",
        _lora_ends(),
        _read_lora,
        _write_lora,
        {"r": (8, "whole"), "lora_alpha": (8, "number"), "lora_dropout": (0.0, "share")},
        {"rank_pattern": "r", "alpha_pattern": "lora_alpha"},
        {
            "use_rslora": (True, False),
            "use_dora": (True, False),
            "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica", *FROM_BASE),
        },
        bias="lora_only",
    ),
    "VERA": Format(
        VeRA,
        "vera",
        _ends("vera", _alike({".vera_lambda_b": ("b", SAME), ".vera_lambda_d": ("d", SAME)}, TRANSPOSED, SAME)),
        lambda config, target, sites, own: methods.vera(
            rank=config["r"],
            start=config["d_initial"],
            target=target,
            dropout=config["vera_dropout"],
            seed=config["projection_prng_key"],
        ),
        _write_vera,
        {
            "r": (256, "whole"),
            "d_initial": (0.1, "number"),
            "vera_dropout": (0.0, "share"),
            "projection_prng_key": (0, "count"),
        },
        flags={"save_projection": (True, None)},
        bias="vera_only",
        shared={"vera_A": (f"{SHARED}/a", TRANSPOSED), "vera_B": (f"{SHARED}/b", TRANSPOSED)},
    ),
    "LOHA": Format(
        LoHa,
        "loha",
        _ends("loha", _alike(HADAMARD, *LYING)),
        lambda config, target, sites, own: methods.loha(**_products(config, target, own)),
        _write_products,
        PRODUCTS,
        RANKS_AND_ALPHAS,
    ),
    "LOKR": Format(
        LoKr,
        "lokr",
        _ends("lokr", {lies: _kronecker(lies) for lies in LYING}),
        lambda config, target, sites, own: methods.lokr(
            **_products(config, target, own), factor=config["decompose_factor"], both=bool(config.get("decompose_both"))
        ),
        lambda part, sites: (
            _write_products(part, sites) | {"decompose_factor": part.factor, "decompose_both": part.both}
        ),
        PRODUCTS | {"decompose_factor": (-1, "factor")},
        RANKS_AND_ALPHAS,
        {"decompose_both": (True, False)},
    ),
    "OFT": Format(
        OFT,
        "oft",
        _ends("oft", _alike({".oft_R.weight": ("r", SAME)}, *LYING)),
        _read_oft,
        _write_oft,
        {
            "r": (0, "count"),
            "oft_block_size": (32, "count"),
            "num_cayley_neumann_terms": (5, "terms"),
        },
        flags={"block_share": (True, False), "use_cayley_neumann": (True, False, None)},
        bias="oft_only",
    ),
    "BOFT": Format(
        BOFT,
        "boft",
        _ends(
            "boft",
            {
                lies: {".boft_R": ("r", SAME), ".boft_s": ("scale", layout)}
                for lies, layout in ((TRANSPOSED, COLUMN), (CONVOLUTION, ROW), (ONE_BY_ONE, ROW))
            },
        ),
        _read_boft,
        lambda part, sites: {
            "boft_block_size": part.block,
            "boft_block_num": 0,
            "boft_n_butterfly_factor": part.factors,
        },
        {
            "boft_block_size": (4, "count"),
            "boft_block_num": (0, "count"),
            "boft_n_butterfly_factor": (1, "whole"),
        },
        bias="boft_only",
    ),
    "HRA": Format(
        HRA,
        "hra",
        _ends("hra", _alike({".hra_u": ("u", SAME)}, *LYING)),
        lambda config, target, sites, own: methods.hra(rank=config["r"], target=target),
        lambda part, sites: {"r": part.rank, "apply_GS": False},
        {"r": (8, "whole")},
        bias="hra_only",
    ),
    "FOURIERFT": Format(
        FourierFT,
        "fourierft",
        _ends("fourierft", _alike({".fourierft_spectrum": ("spectrum", SAME)}, TRANSPOSED, SAME)),
        lambda config, target, sites, own: methods.fourierft(
            number=config["n_frequency"],
            scale=config["scaling"],
            target=target,
            numbers=own("n_frequency_pattern"),
            seed=config["random_loc_seed"],
        ),
        lambda part, sites: {
            "n_frequency": part.numbers[-1][1],
            "scaling": part.scale,
            "random_loc_seed": part.seed,
            "n_frequency_pattern": {x.path: by_rule(part.numbers, x.path) for x in sites},
        },
        {"n_frequency": (1000, "whole"), "scaling": (150.0, "number"), "random_loc_seed": (777, "count")},
        {"n_frequency_pattern": "n_frequency"},
        bias="fourier_only",
    ),
    "IA3": Format(
        IA3,
        "ia3",
        _ends(
            "ia3",
            _alike({".ia3_l": ("scale", COLUMN)}, TRANSPOSED, SAME)
            | _alike({".ia3_l": ("scale", CHANNELS)}, CONVOLUTION, ONE_BY_ONE),
        ),
        _read_ia3,
        lambda part, sites: {"feedforward_modules": [x.path for x in sites if re.fullmatch(part.inputs, x.path)]},
        flags={"feedforward_modules": ()},
    ),
    "LN_TUNING": Format(
        None,
        "",
        {},
        lambda config, target, sites, own: Method("ln", methods.learn()),
        lambda part, sites: {},
        whole=True,
    ),
}
"""By `peft_type`."""

BESIDE = re.compile(f"(.*)/({'|'.join(format.folder for format in FORMATS.values() if format.folder)})/[^/]+")
"""Paths of leaves that a method adds: the layer, and the folder of the method."""
