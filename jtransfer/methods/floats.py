"""Which leaves may learn: floats, and no part of a kernel that is kept in few bits."""

from collections.abc import Mapping

from jtransfer.errors import InputError
from jtransfer.models import quantized
from jtransfer.tree import FROZEN


def check_floats(name: str, rates: Mapping[str, float]) -> None:
    """Refuse a method that trains a quantised kernel.

    Args:
        name: Of the method, for the error.
        rates: Of every leaf.

    Raises:
        InputError: with the first such leaf.
    """
    if kept := sorted(path for path, rate in rates.items() if rate != FROZEN and quantized.is_part(path)):
        raise InputError(
            f"method '{name}' trains '{kept[0]}', a part of a quantised kernel, which never learns; expected what "
            "learns beside it, as lora, or a backbone without config.load.bits"
        )
