"""Checksums of arrays, computed where their parts lie: whatever the mesh and the number of hosts, the sum is one."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
"""What the bits of a number are read as, by its bytes."""


def sums(tree: Any) -> dict[str, str]:
    """Shape, type and 64 bits of sum of every array of a pytree, by its place.

    Every word of an array is mixed with its place by the finaliser of MurmurHash3 (Appleby 2011), and the mixed words
    are added modulo 2^32, twice with different seeds. Addition does not care in which order, on which device and by
    which process it is done: the sum found at a save on two hosts is the one found when one host restores. It tells
    damage (a flipped bit is always seen, other damage but for one in 2^64), and is no defence against forgery.

    Args:
        tree: Of arrays, no typed keys; each process has its part.

    Returns:
        `{"['params']['head/kernel']": "float32[64,10] 0123456789abcdef"}`.
    """
    leaves = [
        (jax.tree_util.keystr(path), jnp.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    # On the CPU one after the other: many programs at once that join several devices can wait for each other there.
    ready = jax.block_until_ready if jax.default_backend() == "cpu" else lambda x: x
    found = jax.device_get([ready(_summed(_everywhere(leaf))(leaf)) for _, leaf in leaves])
    return {
        path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}] {int(two[0]):08x}{int(two[1]):08x}"
        for (path, leaf), two in zip(leaves, found, strict=True)
    }


def _everywhere(leaf):
    """The sharding of a sum that every process can read."""
    return NamedSharding(leaf.sharding.mesh, PartitionSpec()) if isinstance(leaf.sharding, NamedSharding) else None


@lru_cache(maxsize=8)
def _summed(out_sharding):
    return jax.jit(_sum, out_shardings=out_sharding)


def _sum(x):
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize])
    strides = np.cumprod([1, *words.shape[:0:-1]])[::-1] if words.ndim else []
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(int(stride) % 2**32)
    words = words.astype(jnp.uint32)
    return jnp.stack([jnp.sum(_mix(words ^ _mix(place + seed)), dtype=jnp.uint32) for seed in SEEDS])


SEEDS = (np.uint32(0x9E3779B9), np.uint32(0x7F4A7C15))


def _mix(x):
    x ^= x >> 16
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
