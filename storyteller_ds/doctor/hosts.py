"""The machines of a hostfile: all are contacted by ssh at once and asked for their versions and their code."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storyteller_ds.doctor.finding import Finding, error
from storyteller_ds.doctor.versions import versions_here
from storyteller_ds.untrusted import UntrustedFileError, parse_json

_CONNECT_S = 5
_ANSWER_S = 8
"""Time to connect, start Python there and read the code: the doctor should be done in ten seconds."""
_AT_ONCE = 64


def check_hosts(slots: Mapping[str, int]) -> list[Finding]:
    """What keeps the machines from training together.

    Args:
        slots: the slots of each host, as returned by read_hostfile.
    """
    here = versions_here()
    with ThreadPoolExecutor(min(_AT_ONCE, len(slots)), thread_name_prefix="ssh") as threads:
        return [each for found in threads.map(lambda host: [*_check(host, here)], slots) for each in found]


def _check(host: str, here: Mapping[str, str]) -> Iterator[Finding]:
    try:
        # Use the same folder and the same Python as here, as DeepSpeed's launcher does for the ranks.
        path = os.environ.get("PYTHONPATH", "")
        start = f"cd {shlex.quote(str(Path.cwd()))} && PYTHONPATH={shlex.quote(path)} {shlex.quote(sys.executable)}"
        done = subprocess.run(
            ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", host,
             f"{start} -m storyteller_ds.doctor.versions"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        yield error(f"ssh is not installed, and {host} is reached with it", "apt-get install openssh-client pdsh")
        return
    except subprocess.TimeoutExpired:
        yield error(
            f"{host} has not answered within {_ANSWER_S} s", f"ssh {host} true; is it up, and is the name right?"
        )
        return
    lines = (done.stderr.strip() or "no message").splitlines()
    if done.returncode == 255:
        if "resolve" in lines[-1]:
            yield error(f"{host} is not known here ({lines[-1]:.200})", "correct the hostfile, DNS or /etc/hosts")
            return
        yield error(
            f"{host} cannot be reached by ssh ({lines[-1]:.200})",
            f"ssh-copy-id {host}, and let `ssh -o BatchMode=yes {host} true` work",
        )
        return
    if done.returncode != 0:
        yield error(
            f"storyteller_ds does not start on {host} ({lines[-1]:.200})",
            f"install it there at the same place: {sys.executable}, started in {Path.cwd()}",
        )
        return
    try:
        there = parse_json(done.stdout.strip().splitlines()[-1], host)
    except (IndexError, UntrustedFileError):
        there = {}
    for name, wanted in here.items():
        found = there.get(name, "nothing") if isinstance(there, dict) else "nothing"
        if found == wanted:
            continue
        if name == "storyteller_ds":
            yield error(
                f"{host} has other code of storyteller_ds (fingerprint {found!s:.40}, here {wanted})",
                f"copy this one: rsync -a {Path(__file__).parents[1]}/ {host}:{Path(__file__).parents[1]}/",
            )
        else:
            yield error(
                f"{host} has {name} {found!s:.40}, and this machine {wanted}",
                f"install the same on both: pip install '{name}=={wanted}'" if name != "python" else "use one Python",
            )
