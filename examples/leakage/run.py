"""What leakage does to a model: one model, three training sets of the same labels. docs/example.md tells it.

    run.py [--work DIR] [--plots DIR] [--check FILE]

It makes up a CRM, has loam take it in, asks for features of the same labels in three ways, trains the same model on each, and
measures what its backtest promises and what it delivers. It needs the Python package with pandas, scikit-learn and
matplotlib, and finds the binary by LOAM_BINARY or PATH. Figures go to stdout as JSON; --plots writes pictures, and --check holds
the figures against those of an earlier run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.dates
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

from loam import Store

HERE = Path(__file__).resolve().parent
START = pd.Timestamp("2025-01-01", tz="UTC")
DAYS = 240
DAY = pd.Timedelta(days=1)
END = START + DAYS * DAY
HORIZON = 14 * DAY
SPLIT = pd.Timestamp("2025-06-01", tz="UTC")  # trained on what was known by then, tested on later weeks
STAGES = ["prospecting", "qualified", "proposal", "negotiation", "won", "lost"]
TOLERANCE = 0.02  # between figures of two machines

# The three ways, with what they are called in pictures and their colours.
WAYS = {
    "today": ("today's values", "#c1440e"),
    "event": ("clock event", "#e3a008"),
    "served": ("clock served", "#1f7a8c"),
}


def make_events(store_path: Path, work: Path, loam: Path) -> list[dict[str, Any]]:
    """Makes up a CRM and has loam take it in. Returns the events of deals.

    Sellers of this company enter what happened to their deals on Friday at 17:00 for the week, with the days on which it
    happened. So the event time of a deal's change is true, and loam receives it up to a week later.
    """
    simulated = ["--contacts", "6000", "--days", str(DAYS), "--start", START.isoformat(), "--late", "0", "--malformed", "0"]
    subprocess.run([loam, "simulate", *simulated, "--out", work], check=True, stdout=subprocess.DEVNULL)
    deals = []
    with (work / "events.jsonl").open() as made, (work / "entered.jsonl").open("w") as entered:
        for line in made:
            if '"event_type":"Opportunity.' in line:
                event = json.loads(line)
                event["envelope"]["received_at"] = friday(pd.Timestamp(event["payload"]["updated_at"])).isoformat()
                deals.append(event)
                line = json.dumps(event) + "\n"
            entered.write(line)
    shutil.copytree(HERE, store_path)
    subprocess.run([loam, "-C", store_path, "backfill", work / "entered.jsonl"], check=True, stdout=subprocess.DEVNULL)
    return deals


def friday(t: pd.Timestamp) -> pd.Timestamp:
    """The first Friday at 17:00 that is not before t."""
    at = t.normalize() + pd.Timedelta(days=(4 - t.weekday()) % 7, hours=17)
    return at if at >= t else at + 7 * DAY


def make_labels(events: list[dict[str, Any]]) -> pd.DataFrame:
    """A label for each Wednesday at 8:00 and deal that is open then: is it won within HORIZON? Unripe weeks are left out."""
    newest = {e["payload"]["opportunity_id"]: e["payload"]["stages"]["history"] for e in sorted(events, key=event_time)}
    deals = pd.DataFrame(
        {
            "opportunity_id": list(newest),
            # The made-up CRM numbers the deals of a contact: o12-1 is the first of c12.
            "contact_id": ["c" + key[1:].split("-")[0] for key in newest],
            "opened": pd.to_datetime([h[0]["entered_at"] for h in newest.values()], utc=True),
            "ended": pd.to_datetime(
                [h[-1]["entered_at"] if h[-1]["stage"] in STAGES[4:] else None for h in newest.values()], utc=True
            ),
            "outcome": [h[-1]["stage"] for h in newest.values()],
        }
    )
    weeks = pd.DataFrame({"event_timestamp": pd.date_range(START + pd.Timedelta(hours=8), END - HORIZON, freq="7D")})
    rows = deals.merge(weeks, how="cross")
    rows = rows[(rows.opened <= rows.event_timestamp) & ~(rows.ended <= rows.event_timestamp)].reset_index(drop=True)
    rows["won"] = (rows.outcome == "won") & (rows.ended <= rows.event_timestamp + HORIZON)
    return rows[["opportunity_id", "contact_id", "event_timestamp", "won"]]


def event_time(event: dict[str, Any]) -> str:
    return str(event["payload"]["updated_at"])


def training_sets(store: Store, labels: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The features of the same labels in three ways, each with the label's own time."""
    sets = {way: store.get_historical_features(labels, "win_v1", as_of=way).to_df() for way in ("served", "event")}
    # The join that is written first and wrong: each deal's newest values, as they stand in the CRM when the model is trained.
    newest = store.get_historical_features(labels.assign(event_timestamp=END), "win_v1", as_of="event").to_df()
    return {**sets, "today": newest.assign(event_timestamp=labels.event_timestamp)}


def inputs(rows: pd.DataFrame) -> pd.DataFrame:
    """What the model sees of a training set's rows: the features as numbers, and times as days before or after the label."""

    def days(times: pd.Series) -> pd.Series:
        return (pd.to_datetime(times, utc=True) - rows.event_timestamp) / DAY

    return pd.DataFrame(
        {
            "stage": rows.deal__stage.map(STAGES.index, na_action="ignore").astype(float),
            "amount": rows.deal__amount.astype(float),
            "days_to_close": days(rows.deal__close_date),
            "days_open": -days(rows.deal__opened_at),
            "days_in_stage": -days(rows.deal__entered_at),
            "lead_score": rows.buyer__lead_score.astype(float),
            "churn_risk": rows.buyer__churn_risk.astype(float),
            "emails_opened_30d": rows.touches__emails_opened_30d,
            "talks_30d": rows.touches__talks_30d,
        }
    )


def measure(sets: dict[str, pd.DataFrame]) -> tuple[dict[str, Any], dict[str, np.ndarray], pd.DataFrame]:
    """Trains the model on each training set. Its backtest is on later weeks of the same; what it delivers is measured on what
    loam would have served in those weeks. Returns the figures, and what each predicts in production of which rows."""
    rows = sets["served"]
    won = rows.won.to_numpy()
    train, test = (rows.event_timestamp < SPLIT - HORIZON).to_numpy(), (rows.event_timestamp >= SPLIT).to_numpy()
    other = (sets["event"].deal__stage.fillna("") != rows.deal__stage.fillna("")).mean()
    figures: dict[str, Any] = {
        "labels": {"train": int(train.sum()), "test": int(test.sum()), "won": share(won[test]), "stage_differs": share(other)}
    }
    predicted = {}
    for way in WAYS:
        model = HistGradientBoostingClassifier(max_depth=4, learning_rate=0.05, max_iter=200, random_state=0)
        model.fit(inputs(sets[way])[train], won[train])
        promised, delivered = (model.predict_proba(inputs(sets[of])[test])[:, 1] for of in (way, "served"))
        predicted[way] = delivered
        figures[way] = {
            name: {
                "auc": round(roc_auc_score(won[test], p), 3),
                "average_precision": round(average_precision_score(won[test], p), 3),
                "wins_expected": share(p),
            }
            for name, p in (("promised", promised), ("delivered", delivered))
        }
    return figures, predicted, rows[test]


def share(of: Any) -> float:
    return round(float(np.mean(of)), 4)


def plot_promises(figures: dict[str, Any], path: Path) -> None:
    fig, ax = plt.subplots(figsize=(7, 2.9), layout="constrained")
    for i, (way, (text, colour)) in enumerate(reversed(WAYS.items())):
        promised, delivered = (figures[way][k]["average_precision"] for k in ("promised", "delivered"))
        ax.barh(i + 0.19, promised, 0.36, facecolor="white", edgecolor=colour, hatch="////", linewidth=1.2)
        ax.barh(i - 0.19, delivered, 0.36, color=colour)
        for y, value, what in ((i + 0.19, promised, "promised"), (i - 0.19, delivered, "delivered")):
            ax.text(value + 0.012, y, f"{value:.2f} {what}", va="center", fontsize=9)
        ax.text(-0.015, i, text, va="center", ha="right", fontsize=10)
    base = figures["labels"]["won"]
    ax.axvline(base, color="0.4", linewidth=1, linestyle=":")
    ax.text(base, 2.5, " by chance", fontsize=8, color="0.4", va="bottom")
    ax.set(xlim=(0, 1.18), ylim=(-0.5, 2.65), yticks=[], xlabel="average precision over the weeks after training")
    ax.set_xticks(np.arange(0, 1.1, 0.2))
    save(fig, path)


def plot_forecast(predicted: dict[str, np.ndarray], tested: pd.DataFrame, path: Path) -> None:
    """What is forecast of each week in production, and what came."""
    fig, ax = plt.subplots(figsize=(7, 2.9), layout="constrained")
    weeks = tested.assign(**predicted).groupby("event_timestamp")[["won", *WAYS]].sum()
    ax.fill_between(weeks.index, weeks.won, color="0.88")
    ax.text(weeks.index[1], weeks.won.iloc[1] / 2, "what was won", va="center", fontsize=9, color="0.35")
    for way, (text, colour) in WAYS.items():
        ax.plot(weeks.index, weeks[way], color=colour, linewidth=2.2)
        ax.text(weeks.index[-1], weeks[way].iloc[-1], f"  {text}", va="center", fontsize=9, color=colour)
    ax.set(ylim=(0, None), xlim=(weeks.index[0], weeks.index[-1]), ylabel="deals won in the next 14 days")
    ax.xaxis.set_major_formatter(mpl.dates.DateFormatter("%b %d"))
    save(fig, path)


def plot_clocks(events: list[dict[str, Any]], labels: pd.DataFrame, path: Path) -> None:
    """One deal on both clocks: the first that makes a picture."""
    lives: dict[str, list[Change]] = {}
    for e in sorted(events, key=event_time):
        change = Change(
            pd.Timestamp(event_time(e)), pd.Timestamp(e["envelope"]["received_at"]), e["payload"]["stages"]["current"]
        )
        lives.setdefault(e["payload"]["opportunity_id"], []).append(change)
    asked = labels.groupby("opportunity_id").event_timestamp.agg(list)
    key = next(k for k, life in lives.items() if k in asked and telling(life, asked[k]))
    life, begin = lives[key], lives[key][0].event.normalize() - DAY
    end = max(c.served for c in life) + 2 * DAY

    def x(t: pd.Timestamp) -> float:
        return float((t - begin) / DAY)

    shades = dict(zip(STAGES, ["#e3eef0", "#b9d6db", "#84b6c0", "#4a93a1", "#17616f", "#999999"], strict=True))
    fig, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
    for y, clock in ((1, "event"), (0, "served")):
        times = sorted({getattr(c, clock) for c in life})
        for t, until in itertools.pairwise([*times, end]):
            ax.barh(y, x(until) - x(t), 0.5, left=x(t), color=shades[str(state(life, t, clock))])
    entered = [c for i, c in enumerate(life) if i == 0 or c.stage != life[i - 1].stage]
    for c, until in zip(entered, [*(c.event for c in entered[1:]), end], strict=True):
        ax.text((x(c.event) + x(until)) / 2, 1.3, c.stage, fontsize=8, ha="center", va="bottom")
    for t in asked[key]:
        differs = state(life, t, "event") != state(life, t, "served")
        ax.plot([x(t)] * 2, [-0.3, 1.28], color="#c1440e", linewidth=1.6 if differs else 0.8, linestyle="-" if differs else ":")
    ax.text(
        x(asked[key][0]),
        -0.36,
        "a label each Wednesday: where the line is solid, the clocks differ",
        fontsize=8,
        color="#c1440e",
        va="top",
    )
    ax.set(xlim=(0, x(end)), ylim=(-0.75, 1.6), xlabel=f"days of deal {key}")
    ax.set_yticks([1, 0], ["event: what was true", "served: what was known"])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    save(fig, path)


class Change(NamedTuple):
    """A change of a deal: when it happened, when loam was told, and the stage it led to."""

    event: pd.Timestamp
    served: pd.Timestamp
    stage: str


def state(life: list[Change], t: pd.Timestamp, clock: str) -> str | None:
    """The stage at t by a clock, of changes in the order of their event times."""
    known = [c for c in life if getattr(c, clock) <= t]
    return known[-1].stage if known else None


def telling(life: list[Change], times: list[pd.Timestamp]) -> bool:
    """Whether a deal makes a picture: won within 50 days, by way of stages of four days at least, seen two ways by two labels."""
    entered = [c.event for i, c in enumerate(life) if i == 0 or c.stage != life[i - 1].stage]
    apart = [t for t in times if state(life, t, "event") != state(life, t, "served") and state(life, t, "served")]
    return (
        life[-1].stage == "won"
        and life[-1].event - life[0].event < 50 * DAY
        and len(entered) == 5
        and min(b - a for a, b in itertools.pairwise(entered)) > 4 * DAY
        and len(apart) >= 2
        and all(abs(t - at) > DAY / 2 for t in apart for at in entered)
    )


def save(fig: Any, path: Path) -> None:
    for side in ("top", "right"):
        fig.axes[0].spines[side].set_visible(False)
    fig.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(fig)


def drift(figures: Any, want: Any, at: str = "") -> list[str]:
    """Where figures differ from those wanted by more than machines do."""
    if isinstance(want, dict):
        return [d for key in want for d in drift(figures[key], want[key], f"{at}.{key}")]
    return [] if abs(figures - want) <= TOLERANCE * max(1, abs(want)) else [f"{at[1:]} is {figures}, and was {want}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/leakage"), help="folder to work in; what is in it goes")
    parser.add_argument("--plots", type=Path, help="folder to write pictures to")
    parser.add_argument("--check", type=Path, help="figures of an earlier run; where these differ it fails")
    args = parser.parse_args()
    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.linewidth": 0.8, "hatch.linewidth": 0.8})
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    events = make_events(args.work / "sales", args.work, Store(HERE).binary)
    labels = make_labels(events)
    figures, predicted, tested = measure(training_sets(Store(args.work / "sales"), labels))
    print(json.dumps(figures, indent=2))
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        plot_promises(figures, args.plots / "promises.png")
        plot_forecast(predicted, tested, args.plots / "forecast.png")
        plot_clocks(events, labels, args.plots / "clocks.png")
        (args.plots / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if args.check and (found := drift(figures, json.loads(args.check.read_text()))):
        sys.exit("run.py: the figures are no longer those of " + str(args.check) + ":\n  " + "\n  ".join(found))


if __name__ == "__main__":
    main()
