#!/bin/sh
# Print the path of a Chromium that `make test-browser` can drive, and install one where there is none.
#
#   scripts/find_browser.sh PYTHON
#
# Looked for in this order: $CHROME, a Chromium or Chrome on the PATH, one that playwright has installed before.
# Installed, where none is found: Debian's package with apt-get (as root), else playwright's own download, which
# needs a network and the libraries that `playwright install-deps` names.
set -u
python=${1:?give the Python of the virtual environment}

playwrights() {
	"$python" - <<'PY'
import os
from playwright.sync_api import sync_playwright
with sync_playwright() as play:
    path = play.chromium.executable_path
    print(path if os.access(path, os.X_OK) else "")
PY
}

found() {
	if [ -n "${CHROME:-}" ]; then
		command -v "$CHROME" && return 0
		echo "error: CHROME is $CHROME, which cannot be run; name a Chromium or unset it" >&2
		exit 1
	fi
	for name in chromium chromium-browser google-chrome google-chrome-stable; do
		command -v "$name" && return 0
	done
	own=$(playwrights 2>/dev/null) && [ -n "$own" ] && echo "$own"
}

found && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "no Chromium found: installing Debian's" >&2
	apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >&2
	found && exit 0
fi
echo "no Chromium found: fetching playwright's" >&2
"$python" -m playwright install chromium >&2
found && exit 0
echo "error: no Chromium, and none could be installed; install one (Debian: apt-get install chromium) or set CHROME to its path" >&2
exit 1
