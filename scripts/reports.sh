#!/usr/bin/env bash
# Makes the committed reports anew from committed results: the same bytes each time (tests/reports.rs holds that).
#   scripts/reports.sh [FOLDER]        HEADROOM names another binary than target/release/headroom
set -euo pipefail
cd "$(dirname "$0")/.."
headroom=${HEADROOM:-target/release/headroom}
out=${1:-reports}
"$headroom" --quiet report accuracy --results results --reports "$out" >/dev/null
"$headroom" --quiet report guides --reports "$out" >/dev/null
"$headroom" --quiet report results/runs/builtin --name builtin --results results/runs --reports "$out" >/dev/null
"$headroom" --quiet sweep m1-8g --results results --reports "$out" >/dev/null
