#!/bin/sh
# Installs the programs that the multi-node tests need from Debian's or Ubuntu's archive:
# sh tests/multinode/install.sh ssh|slurm
# Does nothing if they are installed. No daemon is started or enabled: the tests run their own, as the user, in a
# temporary folder.
set -eu

case "${1:-}" in
ssh)
    packages="openssh-client openssh-server pdsh iproute2 util-linux"
    programs="ssh ssh-keygen sshd pdsh ip unshare nsenter setpriv"
    ;;
slurm)
    packages="slurm-wlm munge"
    programs="slurmctld slurmd sbatch scontrol scancel srun munged"
    ;;
*)
    echo "usage: $0 ssh|slurm" >&2
    exit 2
    ;;
esac

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
missing=""
for program in $programs; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

give_up() {
    echo "error: the multi-node tests need$missing and $1; install the Debian or Ubuntu packages: $packages" >&2
    exit 2
}
command -v apt-get >/dev/null || give_up "this system has no apt-get"
if [ "$(id -u)" -eq 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; then
    as_root="sudo"
else
    give_up "only root or sudo can install them"
fi

# Debian starts a daemon when it is installed, unless this file forbids it. A machine must not end up with an open ssh
# server on port 22 because of a test.
policy=/usr/sbin/policy-rc.d
remove_policy() { :; }
if [ ! -e "$policy" ]; then
    remove_policy() { $as_root rm -f "$policy"; }
    trap remove_policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
services=""
for service in ssh slurmd slurmctld munge; do
    [ -e "/lib/systemd/system/$service.service" ] || services="$services $service"
done

echo "installing $packages with apt-get" >&2
log=$(mktemp)
install_packages() {
    $as_root apt-get update &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages
}
if ! install_packages >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    give_up "apt-get could not install them (its log: $log)"
fi
rm -f "$log"
if command -v systemctl >/dev/null; then
    for service in $services; do
        [ ! -e "/lib/systemd/system/$service.service" ] || $as_root systemctl --quiet disable "$service" 2>/dev/null || :
    done
fi
