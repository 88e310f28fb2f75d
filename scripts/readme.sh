#!/usr/bin/env bash
# Runs the commands of README.md, as a reader would: in order, in one shell, in a fresh clone of the last commit.
#
#   readme.sh [FILE]
#
# What runs are the ```sh blocks between <!-- ci:begin --> and <!-- ci:end -->. The first command that fails ends it, and at the end
# what the commands have started in the background ends, too. A port of theirs that somebody listens on is replaced by a free one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readme=${1:-$root/README.md}
[ -f "$readme" ] || { echo "readme.sh: error: there is no $readme" >&2; exit 1; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# -v: the shell shows every command as it is written, before it runs.
awk '
  /^<!-- ci:begin -->/ {if (on) bad = "ci:begin twice"; on = 1; next}
  /^<!-- ci:end -->/   {if (!on || block) bad = "ci:end out of place"; on = 0; next}
  on && !block && /^```sh[ \t]*$/ {block = 1; next}
  on && block && /^```/           {block = 0; next}
  on && block {print; lines++}
  END {
    if (!bad && (on || block)) bad = "no ci:end"
    if (!bad && !lines) bad = "no commands between ci:begin and ci:end"
    if (bad) {print "readme.sh: error: " FILENAME ": " bad >"/dev/stderr"; exit 1}
  }' "$readme" >"$tmp/commands.sh"

# free_port FROM: the first port from there on that nobody listens on.
free_port() {
  local port=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}

redis=$(free_port 6390) http=$(free_port 6566)
sed -i.bak -e "s/6390/$redis/g" -e "s/6566/$http/g" -e "s/loam serve/& --addr 127.0.0.1:$http/" "$tmp/commands.sh"

git clone -q "$root" "$tmp/loam"
cd "$tmp/loam"
bash -euvo pipefail -c 'trap "jobs -p | xargs kill 2>/dev/null; wait" EXIT; . "$1"' readme "$tmp/commands.sh"
