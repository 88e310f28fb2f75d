#!/usr/bin/env bash
# Installs PyIceberg into a virtualenv below $SVC_HOME, and prints the path of its Python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../services/lib.sh"
venv=$SVC_HOME/pyiceberg

one_at_a_time virtualenv "$venv" "$here/requirements.txt" PyIceberg
echo "$venv/bin/python"
