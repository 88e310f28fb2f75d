"""Training sets of a loam project, point-in-time right, in pandas, polars and Arrow.

The work is done by the binary `loam`, which a Store runs and a Client asks over HTTP. Nothing here reads a lake or joins
anything, so what Python gives is what `loam dataset build` gives. Names are Feast's where Feast has one.

What is refused, by this package, the binary or a server, is a LoamError whose text says what is wrong and what to do.
"""

from loam.binary import BinaryNotFoundError, LoamError
from loam.client import Client, ServerError
from loam.definitions import Entity, FeatureService, FeatureView, Field
from loam.job import RetrievalJob
from loam.labels import LakeTable, Query
from loam.online import OnlineResponse
from loam.store import Store

__version__ = "0.1.0"

__all__ = [
    "BinaryNotFoundError",
    "Client",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "LakeTable",
    "LoamError",
    "OnlineResponse",
    "Query",
    "RetrievalJob",
    "ServerError",
    "Store",
]
