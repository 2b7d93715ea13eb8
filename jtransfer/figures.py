"""How all figures look, and how they become bytes: no pyplot, and no style of the user's enters."""

import contextlib
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Five of Okabe & Ito (2008) and Tol's indigo, told apart with any colour vision; light ones darkened to serve as text.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3588f", "#b87f00", "#332288")
MARKERS = ("o", "s", "^", "D", "v", "p", "h")


@contextlib.contextmanager
def style():
    """Matplotlib's defaults with ours on top, for as long as we draw; then what the user had."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 11,
                "text.parse_math": False,  # a method's name may hold dollars
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": "#888888",
                "axes.axisbelow": True,
                "axes.grid": True,
                "grid.color": "#e6e6e6",
                "grid.linewidth": 0.8,
                "xtick.color": "#888888",
                "ytick.color": "#888888",
                "xtick.labelcolor": "#222222",
                "ytick.labelcolor": "#222222",
                "svg.hashsalt": "jtransfer",
            }
        )
        yield


def render(figure: "Figure", kind: str) -> bytes:
    """The bytes of a figure as "png" or "svg": the same figure gives the same bytes."""
    buffer = io.BytesIO()
    unsigned = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    with style():
        figure.savefig(buffer, format=kind, metadata=unsigned)
    return buffer.getvalue()
