"""Published evaluations by name.

A protocol is a function `protocol(task, options...)` that checks what it needs and returns a function without arguments
that does the work and gives the rows of results. So what cannot be evaluated is refused before features are extracted.
To add one, write such a function and name it here.
"""

from collections.abc import Callable, Collection

from jtransfer import expressions
from jtransfer.evaluate.protocols.classifiers import episodes, few_shot, knn, linear_grid, probe, prototypes, ridge
from jtransfer.evaluate.protocols.names import attributes, retrieval, typographic, zero_shot
from jtransfer.evaluate.protocols.prompts import in_context
from jtransfer.evaluate.protocols.rows import ProtocolRun
from jtransfer.evaluate.protocols.structure import cka, clusters, domain_gap, transferability
from jtransfer.evaluate.protocols.words import analogies, neighbours, word_similarity
from jtransfer.evaluate.task import TargetTask

PROTOCOLS: dict[str, Callable[..., ProtocolRun]] = {
    "probe": probe,
    "linear_grid": linear_grid,
    "ridge": ridge,
    "few_shot": few_shot,
    "prototypes": prototypes,
    "episodes": episodes,
    "knn": knn,
    "zero_shot": zero_shot,
    "typographic": typographic,
    "attributes": attributes,
    "retrieval": retrieval,
    "in_context": in_context,
    "clusters": clusters,
    "transferability": transferability,
    "cka": cka,
    "domain_gap": domain_gap,
    "analogies": analogies,
    "word_similarity": word_similarity,
    "neighbours": neighbours,
}


OF_TABLES = ("analogies", "word_similarity", "neighbours")
"""Those that look at the table of word vectors alone, and need no data of their own."""

WATCHED = ("few_shot", "zero_shot", "ridge", "prototypes", "knn", "probe")
"""Those that may be measured while a model trains: they read its features, or its embeddings of images, alone."""


def parse(text: str, among: Collection[str] = PROTOCOLS) -> Callable[[TargetTask], ProtocolRun]:
    """A protocol as a config writes it, to be put on a task: `knn`, `knn(k=(5, 10))`.

    Args:
        text: What the config says.
        among: Names of those that serve.

    Raises:
        InputError: an unknown protocol or option, with the nearest that exists.
    """
    return expressions.call(
        expressions.parse(text, "protocol"), text, "protocol", {name: PROTOCOLS[name] for name in among}, given=1
    )
