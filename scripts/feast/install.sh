#!/usr/bin/env bash
# Installs Feast into a virtualenv below $SVC_HOME, and prints the path of its Python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../services/lib.sh"
venv=$SVC_HOME/feast

one_at_a_time virtualenv "$venv" "$here/requirements.txt" Feast
echo "$venv/bin/python"
