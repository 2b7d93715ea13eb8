"""Transfer learning in JAX: which leaves of a parameter tree exist, which of them learn, at which rate.

Names are imported when they are first used, so that `import jtransfer` alone does not even import JAX.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "tree": "jtransfer.tree",
    "methods": "jtransfer.methods",
    "models": "jtransfer.models",
    "train": "jtransfer.train",
    "data": "jtransfer.data",
    "checkpoints": "jtransfer.checkpoints",
    "load": "jtransfer.checkpoints:load",
    "families": "jtransfer.checkpoints:families",
    "load_adapter": "jtransfer.checkpoints:load_adapter",
    "Adapters": "jtransfer.checkpoints:Adapters",
    "InputError": "jtransfer.errors:InputError",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'jtransfer' has no attribute '{name}'")
    module, _, attribute = _HOME[name].partition(":")
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__():
    return sorted(__all__)
