#!/bin/sh
# One night: short runs, trend page, retention. For systemd, cron and scrontab; CI systems have their own files.
# The exit status is pytest's: 0 only if every verdict passed and nothing regressed.
set -u
cd "$(dirname "$0")/.." || exit
: "${NIGHTS:=$HOME/internlm-acceptance}" # results, history and trend page
: "${PYTHON:=python3}"                   # your torch and InternLM; `pip install -e .` was run with it once
: "${SELECT:=-k 7B}"
: "${KEEP:=30}" # nights whose evidence stays

mkdir -p "$NIGHTS"
# shellcheck disable=SC2086 # SELECT is a list of options
"$PYTHON" -m pytest acceptance $SELECT -m "not long" \
    --results "$NIGHTS/$(date +%F-%H%M%S)" \
    --history "$NIGHTS/nightly.sqlite" --fail-on-regression --summary "$NIGHTS/summary.md"
status=$?
"$PYTHON" -m reports history page --history "$NIGHTS/nightly.sqlite" --out "$NIGHTS/trend.html" || status=1
"$PYTHON" -m reports history prune --keep "$KEEP" --history "$NIGHTS/nightly.sqlite" || status=1
exit $status
