#!/bin/sh
# install_libaio.sh VENV: puts libaio, which is needed to compile DeepSpeed's NVMe offload, into the virtual environment
# if the system has none. For Debian and Ubuntu; needs no root. Without it, everything but NVMe offload works.
set -u
venv=$(cd "$1" && pwd) || exit 1
if [ -e /usr/include/libaio.h ] || [ -e "$venv/include/libaio.h" ] || ! command -v apt-get >/dev/null; then
    exit 0
fi
echo "fetching libaio, for NVMe offload"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1

unpack() {
    # The library's own package has a different name in each release.
    library=$(apt-cache depends libaio-dev 2>/dev/null | sed -n 's/.*Depends: \(libaio1[^ ]*\)$/\1/p')
    [ -n "$library" ] && apt-get download libaio-dev "$library" >/dev/null 2>&1 || return 1
    for package in *.deb; do dpkg-deb --extract "$package" . || return 1; done
    mkdir -p "$venv/include" "$venv/lib"
    find . -name 'libaio.so.*' -exec cp -L {} "$venv/lib/" \; || return 1
    cp "$(find . -name 'libaio.so.*' -type f | head -n 1)" "$venv/lib/libaio.so" || return 1
    # Copied last: its presence means that everything is in place.
    cp usr/include/libaio.h "$venv/include/"
}

if ! unpack; then
    # A fresh container has no package lists yet; only root can update them.
    { [ "$(id -u)" = 0 ] && apt-get update >/dev/null 2>&1 && unpack; } ||
        echo "libaio could not be fetched: for NVMe offload (ds_configs/zero3_nvme.json) install libaio-dev" >&2
fi
exit 0
