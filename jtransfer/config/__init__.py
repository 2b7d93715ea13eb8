"""Configs: every key has a default and a kind of values; a file and the command line change some keys.

`defaults` has the keys, `checks` what each may be, and `reading` makes a config from a file and flags.
"""

from jtransfer.config.checks import check
from jtransfer.config.defaults import DEFAULTS, advise_defaults, curve_defaults, evaluate_defaults, train_defaults
from jtransfer.config.reading import arguments, completed, defaults, folder, load, once, one_of, resolved, slug

__all__ = [
    "DEFAULTS",
    "advise_defaults",
    "arguments",
    "check",
    "completed",
    "curve_defaults",
    "defaults",
    "evaluate_defaults",
    "folder",
    "load",
    "once",
    "one_of",
    "resolved",
    "slug",
    "train_defaults",
]
