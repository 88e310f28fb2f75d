"""Training sets of a loam project, point-in-time right, in pandas, polars and Arrow.

The work is done by the binary `loam`, which this package runs. Nothing here reads a lake or joins anything, so what Python
gives is what `loam dataset build` gives. Names are Feast's where Feast has one.

What is refused, by this package or by the binary, is a LoamError whose text says what is wrong and what to do.
"""

from loam.binary import BinaryNotFoundError, LoamError
from loam.definitions import Entity, FeatureService, FeatureView, Field
from loam.job import RetrievalJob
from loam.store import Store

__version__ = "0.1.0"

__all__ = [
    "BinaryNotFoundError",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "LoamError",
    "RetrievalJob",
    "Store",
]
