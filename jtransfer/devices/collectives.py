"""What a compiled program sends between its devices, read from its HLO text."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
DONE = 'custom_call_target="AsyncCollectiveDone"'


class Collective(NamedTuple):
    """A collective operation of a program, as one device sees it.

    Attributes:
        kind: One of `KINDS`.
        bytes: Of the array that it makes or takes on one device, whichever is larger; of several arrays together.
        group: Number of devices that take part in it together.
        times: How often a run of the program does it; more than once within a loop.
    """

    kind: str
    bytes: int
    group: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a run, by the textbook's ring of n devices and an array of S bytes.

        `2 S (n - 1) / n` for an all-reduce (a reduce-scatter and an all-gather), `S (n - 1) / n` for an all-gather (of
        its result), a reduce-scatter (of its operand) and an all-to-all, and S for a permutation (Thakur et al. 2005,
        "Optimization of collective communication operations in MPICH").
        """
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * factor * self.bytes


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a program that XLA has compiled, from `compiled.as_text()`.

    Sync and async forms count once, the second by its start. A collective of several arrays, as of all gradients, is
    one, of their bytes together. In the body of a loop it counts as often as the loop runs: as XLA says
    ("known_trip_count"), or as often as the counter is below a constant, from 0 on, as JAX's loops count; if neither is
    there, once. On TPUs the start of a collective is a fusion, what is computed meanwhile another that names it again,
    and its end a third; the first counts. An all-reduce of which a fusion keeps a device's part alone is a
    reduce-scatter, as TPUs do it. What moves within a device, and a collective of a single device, is none.

    Args:
        hlo: Text of the module after partitioning, in which shapes are those of one device.
    """
    return [one for one in _walk(_computations(hlo), _entry(hlo), 1, "", _devices(hlo)) if one.group > 1]


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """For each kind that is there, how many a run does (`count`) and the bytes that one device sends (`bytes`)."""
    counts, sent = Counter(), Counter()
    for one in found:
        counts[one.kind] += one.times
        sent[one.kind] += one.sent
    return {kind: {"count": counts[kind], "bytes": sent[kind]} for kind in KINDS if counts[kind]}


def _walk(bodies, name, times, around, devices) -> Iterator[Collective]:
    """Every collective of a computation that runs so many times, and of those that it calls."""
    for line in bodies.get(name, ()):
        parsed = _instruction(line)
        if parsed is None:
            continue
        shape, opcode, rest = parsed
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            yield _collective(kind, opcode.endswith("-start"), shape, rest, times, around, devices)
        elif opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", rest)
            yield from _walk(bodies, body[1], times * _trips(bodies, rest), around, devices)
        elif opcode in ("fusion", "call", "conditional", "async-start"):
            for inner in _called(rest):
                if opcode == "fusion" and (
                    inner.startswith("async_collective_fusion") or any(DONE in line for line in bodies.get(inner, ()))
                ):
                    continue
                scatters = opcode == "fusion" and any(" dynamic-slice(" in line for line in bodies.get(inner, ()))
                yield from _walk(bodies, inner, times, "reduce-scatter" if scatters else around, devices)


def _trips(bodies, rest):
    """How often a loop runs."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
        return int(known[1])
    condition = "\n".join(bodies.get(re.search(r"condition=%?([\w.\-]+)", rest)[1], ()))
    below = re.search(r"ROOT [^\n]* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", condition)
    bound = below and re.search(rf"^ +%?{re.escape(below[1])} = s32[^\n]* constant\((\d+)\)", condition, re.MULTILINE)
    return int(bound[1]) if bound else 1


def _collective(kind, start, shape, rest, times, around, devices) -> Collective:
    if start and kind != "all-reduce":  # (operands, results, ...)
        shape = _parts(shape)[1]
    group = 2 if kind == "collective-permute" else _group(rest, devices)
    size = _bytes(shape) * (group if kind == "reduce-scatter" else 1)
    if kind == "all-reduce" and around:
        kind = around
    return Collective(kind, size, group, times)


def _computations(hlo):
    """The lines of each computation of a module, by its name."""
    found, name = {}, ""
    for line in hlo.splitlines():
        if line.endswith("{") and (head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line)):
            name, found[head[1]] = head[1], []
        elif line.startswith("}"):
            name = ""
        elif name:
            found[name].append(line)
    return found


def _entry(hlo):
    entry = re.search(r"^ENTRY %?([\w.\-]+) ", hlo, re.MULTILINE)
    return entry[1] if entry else ""


def _devices(hlo):
    """Number of devices that a module runs on."""
    counts = [int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo.partition("\n")[0])]
    return math.prod(counts)


def _instruction(line):
    """The shape, the opcode and what follows it of `  ROOT %name = shape opcode(operands), attributes`."""
    _, equals, text = line.partition(" = ")
    if not equals:
        return None
    end = _closing(text) if text.startswith("(") else text.find(" ")
    opcode = re.match(r" *([a-z][\w\-]*)\(", text[end:])
    return (text[:end], opcode[1], text[end:]) if opcode else None


def _closing(text):
    """Where the parenthesis that a text begins with is closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    return len(text)


def _parts(shape):
    """The shapes in a tuple."""
    found, depth, start = [], 0, 1
    for i, letter in enumerate(shape):
        if depth == 1 and letter == ",":
            found.append(shape[start:i].strip())
            start = i + 1
        depth += (letter in "([{") - (letter in ")]}")
    return [*found, shape[start:-1].strip()]


def _bytes(shape):
    """Bytes of an array, or of all in a tuple."""
    total = 0
    for dtype, sides in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        total += bits * math.prod(int(side) for side in sides.split(",") if side) // 8
    return total


def _group(rest, devices):
    """Number of devices of each group of a collective.

    Groups are listed, `{{0,1},{2,3}}`; or counted, `[2,4]<=[8]`; or axes of a mesh and their parts,
    `mesh['axis_0'=2,'axis_1'=4] {'axis_1'}` and `mesh['axis_0'=8] {'axis_0':(2)4}`.
    """
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return len(listed[1].split(",")) if listed else devices


def _called(rest):
    """Names of the computations that an instruction calls."""
    names = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", rest)
    for branches in re.findall(r"branch_computations=\{([^}]*)\}", rest):
        names += [name.strip(" %") for name in branches.split(",")]
    return names
