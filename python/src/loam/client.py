"""What a `loam serve` is asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.parse
import uuid
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from loam import labels as label_tables
from loam import online
from loam.binary import LoamError
from loam.exchange import card_beside, labels_beside, plain
from loam.job import RetrievalJob
from loam.request import Features, asked_features, flags

ARROW = "application/vnd.apache.arrow.stream"


class ServerError(LoamError):
    """Something that a server refused or could not do. Its text is the server's: what is wrong, and the remedy.

    status is that of HTTP, and None where no answer came; code names the case for machines; details are all that the server told.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = dict(details or {})


class Client:
    """A `loam serve`, at its address.

    api_key is one of serve.keys in the server's loam.yaml. timeout is how many seconds an answer may take; that of a training set
    may take dataset_timeout. ssl_context says how the server's certificate is checked, where no known authority has signed it.

    Connections are kept, one a thread; close ends that of the thread which calls it. It may be used by many threads at once.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        dataset_timeout: float = 3600.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoamError(f"{url!r} is no address of a server: write it as http://127.0.0.1:6566")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.dataset_timeout = dataset_timeout
        self._parts = parts
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._ssl = ssl_context
        self._of_thread = threading.local()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection of this thread."""
        connection = getattr(self._of_thread, "connection", None)
        if connection is not None:
            connection.close()
            self._of_thread.connection = None

    def get_online_features(
        self,
        features: Features,
        entity_rows: Any,
        *,
        full_feature_names: bool = True,
        request_data: Mapping[str, Sequence[Any]] | None = None,
    ) -> online.OnlineResponse:
        """The features of entities as of now.

        features are view:feature, view:* or a FeatureView for all of a view; or the name of a feature service, or one itself.
        entity_rows are the entities' join keys: a list of dicts, columns, a DataFrame or an Arrow table. request_data has columns
        that views on demand take of the request, a value for each entity.

        full_feature_names=False names columns <feature> in place of <view>__<feature>, as Feast does unless it is told otherwise.
        """
        [(kind, names)] = asked_features(features)
        asked: dict[str, Any] = {"feature_service": names} if kind == "service" else {"features": names.split(",")}
        asked |= {"entities": online.entity_columns(entity_rows), "full_feature_names": full_feature_names}
        if request_data is not None:
            asked["request_data"] = {name: list(column) for name, column in request_data.items()}
        return online.of_answer(self._json("POST", "/get-online-features", asked, again=True))

    def push(self, push_source_name: str, df: Any, *, idempotency_key: str | None = None) -> int:
        """Pushes rows of features that were computed elsewhere to a stream, or to the stream of a feature view.

        df is a DataFrame, an Arrow table, or a dict of columns: the columns of the stream, by their names, with the event time as
        event_timestamp or under its own name. The rows become events of the stream's topic, which makes both stores.
        Returns how many there are, once the topic has them all. If the stream would refuse a row, nothing is pushed.

        Each push has a key, so that one whose answer was lost is sent again, and counts once. To send one again yourself, give
        the same idempotency_key both times. A stream whose ids are positions can't keep that: "" gives no key and no second try.
        """
        headers = {"Content-Type": ARROW}
        key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        if key:
            headers["Idempotency-Key"] = key
        if isinstance(df, Mapping):
            columns = {name: list(column) for name, column in df.items()}
            body = _body({"push_source_name": push_source_name, "df": columns, "to": "online_and_offline"})
            headers["Content-Type"] = "application/json"
            path = "/push"
        else:
            table = label_tables.take(df).table
            if table is None:
                raise LoamError("rows to push are a DataFrame, an Arrow table or a dict of columns")
            body = _stream(table)
            path = "/push?" + urllib.parse.urlencode({"push_source_name": push_source_name, "to": "online_and_offline"})
        _, answer = self._ask("POST", path, body, headers, self.timeout, again=bool(key))
        accepted: int = json.loads(answer)["accepted"]
        return accepted

    def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        full_feature_names: bool = True,
        as_of: Literal["served", "event"] = "served",
        known_at: datetime | str | None = None,
        time_column: str = "event_timestamp",
        at_label_time: Literal["include", "exclude"] = "include",
        require_complete: bool = False,
        join_keys: Mapping[str, str] | None = None,
        outcomes: Mapping[str, str] | None = None,
        sample: int | float | None = None,
        split: str | None = None,
        seed: int | None = None,
    ) -> RetrievalJob:
        """Asks for the features of labels, each as it was at the label's time, as Store.get_historical_features does, which tells
        what the arguments mean. The server builds the training set; labels go there, and it comes back, as Arrow. They are in
        memory or in a file, which is read here: a table or a query of the lake is a Store's to read.
        """
        asked = flags(
            features,
            as_of=as_of,
            known_at=known_at,
            time_column=time_column,
            at_label_time=at_label_time,
            require_complete=require_complete,
            join_keys=join_keys,
            outcomes=outcomes,
            sample=sample,
            split=split,
            seed=seed,
        )
        labels = label_tables.in_memory(label_tables.take(entity_df))
        own = outcomes or sample is not None or split is not None

        def build(out: Path | None) -> Fetched:
            fetched = self._dataset(labels, asked)
            if labels.table is not None and not own and fetched.table.num_rows != labels.table.num_rows:
                raise LoamError(
                    f"{labels.table.num_rows} labels went in and {fetched.table.num_rows} rows came out: a defect of loam"
                )
            if out is not None:
                fetched.keep(out, labels_given=True)
            return fetched

        return RetrievalJob(labels, build, full_feature_names, whole=bool(own))

    def _dataset(self, labels: label_tables.Labels, asked: Sequence[tuple[str, str]]) -> Fetched:
        query = urllib.parse.urlencode([(name.replace("-", "_"), value) for name, value in asked])
        body = _stream(labels.table)
        headers, answer = self._ask(
            "POST", f"/v1/datasets?{query}", body, {"Content-Type": ARROW}, self.dataset_timeout, again=False
        )
        name = headers["Loam-Dataset"]
        with pa.ipc.open_stream(pa.py_buffer(answer)) as reader:
            table = reader.read_all()
        return Fetched(self, name, table, labels)

    def list_datasets(self) -> list[dict[str, Any]]:
        """The training sets that were built, the newest first: id, name, created_at, rows, features and as_of of each."""
        datasets: list[dict[str, Any]] = self._json("GET", "/v1/datasets", None, again=True)["datasets"]
        return datasets

    def get_dataset(self, dataset_id: str) -> dict[str, Any]:
        """The card of a training set."""
        card: dict[str, Any] = self._json("GET", f"/v1/datasets/{urllib.parse.quote(dataset_id, safe='')}", None, again=True)
        return card

    def unpin_dataset(self, dataset_id: str) -> None:
        """Lets the snapshots that a training set was made from expire; then it can't be made again. Its card stays."""
        self._ask("DELETE", f"/v1/datasets/{urllib.parse.quote(dataset_id, safe='')}", None, {}, self.timeout, again=True)

    def _json(self, method: str, path: str, asked: Any, again: bool) -> Any:
        body = None if asked is None else _body(asked)
        _, answer = self._ask(method, path, body, {"Content-Type": "application/json"} if body else {}, self.timeout, again)
        return json.loads(answer)

    def _ask(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], timeout: float, again: bool
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Asks, and gives headers and body of the answer. A kept connection that the server has ended by now is opened anew; what
        may have been taken is asked again only where that does no harm."""
        for last in (False, True):
            kept = getattr(self._of_thread, "connection", None)
            connection = kept or self._connect()
            connection.timeout = timeout
            try:
                if connection.sock is None:
                    connection.connect()
                opened: Any = connection.sock
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.settimeout(timeout)
                connection.request(method, self._parts.path.rstrip("/") + path, body, {**self._headers, **headers})
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as e:
                self.close()
                if kept is not None and again and not last and not isinstance(e, TimeoutError):
                    continue
                raise ServerError(_lost(self.url, e, timeout, method == "POST" and not again)) from e
            except BaseException:
                self.close()  # what is left of the answer must not be taken for the next one's
                raise
            if response.status >= 300:
                raise _refused(response.status, answer)
            return response.headers, answer
        raise AssertionError("the second try either answers or raises")

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, context=self._ssl or ssl.create_default_context())
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port)
        )
        self._of_thread.connection = connection
        return connection


def _lost(url: str, e: Exception, timeout: float, unknown: bool) -> str:
    what = f"no answer within {timeout:g} s" if isinstance(e, TimeoutError) else str(e) or type(e).__name__
    happened = "; whether it was done nobody knows" if unknown else ""
    return f"the server at {url} gave no answer: {what}{happened}; see whether `loam serve` runs there"


def _refused(status: int, answer: bytes) -> ServerError:
    try:
        details = json.loads(answer)["error"]
        text = details["message"]
        if details.get("field"):
            text = f"{details['field']}: {text}"
        return ServerError(f"{text}; {details['remedy']}", status=status, code=details["code"], details=details)
    except (ValueError, KeyError, TypeError):
        return ServerError(f"HTTP {status}: {answer[:500].decode(errors='replace')}", status=status)


def _body(asked: Any) -> bytes:
    try:
        return json.dumps(asked, default=online.encode, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as e:
        raise LoamError(f"what is asked can't be made JSON: {e}") from e


def _stream(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    try:
        table = plain(table)
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    except (pa.ArrowException, NotImplementedError) as e:
        raise LoamError(f"the rows can't be written as Arrow: {e}") from e
    return out.getvalue().to_pybytes()  # type: ignore[no-any-return]


class Fetched:
    """A training set that a server built. When it goes, the snapshots that it was made from are unpinned, unless it was kept."""

    def __init__(self, client: Client, dataset_id: str, table: pa.Table, labels: label_tables.Labels) -> None:
        self.id = dataset_id
        self.out: Path | None = None
        self.table = table
        self.labels = labels
        self.card = client.get_dataset(dataset_id)
        self._kept: list[Path] = []
        weakref.finalize(self, _forget, client, dataset_id, self._kept)

    def features(self) -> pa.Table:
        """The columns of features, as many rows as there are labels, in their order."""
        return self.table.select([f["column"] for f in self.card["features"]])

    def whole(self) -> pa.Table:
        """All columns: those of the labels, then the features."""
        return self.table

    def keep(self, out: Path, labels_given: bool) -> None:
        """Writes the training set, its card and, where they were given in memory, its labels to where they stay."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if labels_given:
            pq.write_table(plain(self.labels.table), labels_beside(out), store_schema=False)
        card_beside(out).write_text(json.dumps(self.card, indent=2, ensure_ascii=False) + "\n")
        pq.write_table(self.table, out, store_schema=False)
        self._kept.append(out)
        self.out = out


def _forget(client: Client, dataset_id: str, kept: list[Path]) -> None:
    if not kept:
        with contextlib.suppress(LoamError, RuntimeError):
            client.unpin_dataset(dataset_id)
