#!/usr/bin/env bash
# Makes the README's picture from the committed report of a finished run. Needs Chromium.
#   scripts/picture.sh                 CHROMIUM names another binary than chromium
set -euo pipefail
cd "$(dirname "$0")/.."
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking \
    --user-data-dir="$profile" --force-device-scale-factor=1.5 --window-size=860,1455 \
    --screenshot="$PWD/docs/picture.png" "file://$PWD/reports/builtin/index.html" 2>/dev/null
