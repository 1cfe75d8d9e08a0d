#!/bin/sh
# Installs Chromium from Debian's or Ubuntu's archive for the browser tests of the report, unless a browser is present.
set -eu

for program in chromium chromium-browser google-chrome; do
    ! command -v "$program" >/dev/null || exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: the browser tests need Chromium; install the package chromium" >&2
    exit 1
fi
echo "installing chromium (about 100 MB)"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
