"""What a training set must hold, found the slow way: for each label a look at all events, in plain Python.

It shares nothing with loam: it reads the file of events that loam was given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pandas as pd

Clock = Literal["served", "event"]
CLOCKS: tuple[Clock, ...] = ("served", "event")


class Events:
    """The events of a file, each once, in the order in which they stand there."""

    def __init__(self, path: Path) -> None:
        self.contacts: dict[str, list[dict[str, Any]]] = {}
        self.deals: dict[str, list[dict[str, Any]]] = {}
        self.engagements: dict[str, list[dict[str, Any]]] = {}
        seen = set()
        for offset, line in enumerate(path.read_text().splitlines()):
            event = json.loads(line)
            envelope, payload = event["envelope"], event["payload"]
            if envelope["event_id"] in seen:
                continue
            seen.add(envelope["event_id"])
            kind, verb = envelope["event_type"].split(".")
            deleted = verb == "deleted"
            at = payload["occurred_at"] if kind == "Engagement" else envelope["occurred_at"] if deleted else payload["updated_at"]
            row = {
                "event": pd.Timestamp(at),
                "served": pd.Timestamp(envelope["received_at"]),
                "offset": offset,
                "deleted": deleted,
                "payload": payload,
            }
            if kind == "Contact":
                self.contacts.setdefault(payload["contact_id"], []).append(row)
            elif kind == "Opportunity":
                self.deals.setdefault(payload["opportunity_id"], []).append(row)
            else:
                self.engagements.setdefault(payload["contact_id"], []).append(row)

    def lively(self) -> tuple[str, str, pd.Timestamp]:
        """A contact and a deal of it, and a time at which both clocks give each a state."""
        for deal, changes in sorted(self.deals.items()):
            contact = "c" + deal[1:].split("-")[0]
            for t in (e["served"] + pd.Timedelta(hours=1) for e in changes):
                if all(self.contact(contact, t, clock) and self.state(self.deals, deal, t, clock) for clock in CLOCKS):
                    return contact, deal, t.floor("s")
        raise AssertionError("no contact with a deal has a state")

    def state(
        self, of: dict[str, list[dict[str, Any]]], key: str | None, t: pd.Timestamp, clock: Clock, ttl: pd.Timedelta | None = None
    ) -> dict[str, Any] | None:
        """The payload that an entity had at t, None where there is none."""
        known = [e for e in of.get(key or "", []) if e[clock] <= t]
        if not known:
            return None
        newest = max(known, key=lambda e: (e["event"], e["offset"]))
        if newest["deleted"] or (ttl is not None and t - newest["event"] > ttl):
            return None
        payload: dict[str, Any] = newest["payload"]
        return payload

    def contact(self, key: str | None, t: pd.Timestamp, clock: Clock) -> dict[str, Any] | None:
        return self.state(self.contacts, key, t, clock, ttl=pd.Timedelta(days=7))

    def window(self, key: str | None, t: pd.Timestamp, clock: Clock, days: int) -> list[dict[str, Any]]:
        """The engagements in the window of so many days that ends at t, whose tail moves in hops."""
        begin = (t - pd.Timedelta(days=days)).floor("h" if days < 12 else "D")
        return [e["payload"] for e in self.engagements.get(key or "", []) if e["event"] >= begin and e[clock] <= t]
