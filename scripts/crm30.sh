#!/usr/bin/env bash
# 30 days of a CRM, from its raw export to a training set, and what each stage takes.
#
#   crm30.sh [DIR]      works in DIR (default: build/crm30), which must be empty or not be there
#
#   EVENTS   how many good events, about; contacts and labels are one for each 20 of them   (default 20000000)
#   LOAM     the binary                                                                     (default bin/loam)
#
# 20M events take some 2.2 GB as they come, gzipped JSON, and 8 GB of disk in all. Times are by the wall and include fsync.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
loam=${LOAM:-$root/bin/loam}
dir=${1:-$root/build/crm30}
events=${EVENTS:-20000000}
people=$((events / 20))

[ -x "$loam" ] || { echo "crm30.sh: error: there is no binary $loam: run make build" >&2; exit 1; }
[ -z "$(ls -A "$dir" 2>/dev/null)" ] || { echo "crm30.sh: error: $dir is not empty: name another folder, or remove it" >&2; exit 1; }
mkdir -p "$dir"
cp -r "$root/examples/crm30/." "$dir"
cd "$dir"

rows=()
# stage NAME MADE COMMAND...: runs a stage, and keeps its minutes, its peak of memory and the size of what it made.
stage() {
  local name=$1 made=$2 begin memory=- peak; shift 2
  printf '\n$ %s\n' "$(sed "s|^$loam |loam |" <<<"$*")"
  begin=$(date +%s%N)
  if [ -x /usr/bin/time ]; then
    /usr/bin/time -f %M -o .peak "$@"
    peak=$(tail -n 1 .peak)
    memory="$((peak / 1024)) MiB"
  else
    "$@"
  fi
  rows+=("$(awk -v name="$name" -v ns=$(($(date +%s%N) - begin)) -v memory="$memory" -v size="$(du -shL "$made" | cut -f1)" \
    'BEGIN {printf "  %-34s %8.2f min  %10s peak  %6s", name, ns / 60e9, memory, size}')")
}

stage "raw export, by simulate" export "$loam" simulate --contacts "$people" --days 30 --events "$events" --deletes 0.001 \
  --labels "$people" --format jsonl.gz --out export
stage "to the lake, by backfill" .loam "$loam" backfill export/events.jsonl.gz
stage "compacted, by maintain" .loam "$loam" maintain
stage "a training set, by dataset build" churn.parquet "$loam" dataset build churn

printf '\n30 days of a CRM: %s events, %s contacts, %s labels, 20 attributes, 10 windows; on %s cores\n' "$events" "$people" "$people" "$(nproc)"
printf '%s\n' "${rows[@]}"
