"""Checks of what DeepSpeed's launcher passes on, unchecked, to ssh and to a remote shell.

The formats are DeepSpeed's (deepspeed/launcher/runner.py): a hostfile has a line `HOST slots=N` for each machine, a
filter is `HOST[:SLOT,SLOT...]`, several joined by `@`, an environment file has lines `NAME=VALUE`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from storyteller_ds.config.files import read_text
from storyteller_ds.errors import ConfigError
from storyteller_ds.redaction import is_secret_name, secret_in

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")
_LINE = re.compile(r"(\S+)\s+slots=(\S+)\s*(?:#.*)?")
_FOR_THE_SHELL = re.compile(r"[^\w@+=:,./ \[\]-]")  # also for pdsh, which replaces %n
_EXPORTED_NAMES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Prefixes of the names that DeepSpeed exports by itself: EXPORT_ENVS of runner.py, export_envs() of CUDA."""


def check_host(host: str, where: str) -> None:
    """Check a host name or an IPv4 address.

    Raises:
        ConfigError: ssh or a shell could mistake it for something else.
    """
    if host.startswith("-"):
        raise ConfigError(f"{where}: the host '{host}' begins with '-', and ssh would take it for an option")
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"{where}: '{host}' is not a host name or an IPv4 address (letters, digits, '.', '-' and '_'); user names "
            "and ports belong in ~/.ssh/config"
        )


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots of each host, in the order of the file.

    Raises:
        ConfigError: the file is missing, or a line cannot be used.
    """
    slots: dict[str, int] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, read_text(path, "the hostfile").splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        match = _LINE.fullmatch(line)
        host = match[1] if match else line.split()[0]
        check_host(host, where)
        if not match:
            raise ConfigError(f"{where}: '{line}' is not of the form HOST slots=NUMBER")
        if not match[2].isdecimal() or int(match[2]) == 0:
            raise ConfigError(f"{where}: slots={match[2]} is not a number of processes; use 1 or more")
        if (first := seen.setdefault(host.lower(), number)) != number:
            raise ConfigError(f"{where}: the host '{host}' is already in line {first}; give it one line with all slots")
        slots[host] = int(match[2])
    if not slots:
        raise ConfigError(f"{path} names no host; it needs lines of the form HOST slots=NUMBER")
    return slots


def check_filter(text: str, option: str, slots: Mapping[str, int | None]) -> None:
    """Check a filter of hosts and slots.

    Args:
        text: e.g. `worker-0@worker-1:0,2`.
        option: --include or --exclude.
        slots: number of slots of each host; None if not known.

    Raises:
        ConfigError: it is malformed, or names a host or slot that does not exist.
    """
    for part in text.split("@"):
        host, colon, numbers = part.partition(":")
        if host not in slots:
            raise ConfigError(f"{option}={text}: no host is called '{host}'; there are: {', '.join(slots)}")
        for number in numbers.split(",") if colon else ():
            count = slots[host]
            if not number.isdecimal():
                raise ConfigError(f"{option}={text}: '{number}' is not the number of a slot; use HOST:0,1")
            if count is not None and int(number) >= count:
                raise ConfigError(f"{option}={text}: '{host}' has no slot {number}, its slots are 0 to {count - 1}")


def check_environment_file(path: Path) -> None:
    """Check the variables that DeepSpeed would export on every machine, on a remote command line.

    Raises:
        ConfigError: a line is not NAME=VALUE, would be interpreted by a shell, or holds a secret.
    """
    for number, line in enumerate(read_text(path, "the environment file").splitlines(), start=1):
        where = f"{path}, line {number}"
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            raise ConfigError(f"{where}: not of the form NAME=VALUE, which every line must be")
        if is_secret_name(name) or secret_in(value):
            raise ConfigError(
                f"{where}: {name.strip()} looks like a secret, and DeepSpeed would put it on a command line that every "
                "user of those machines can read; set it in the login environment of each machine"
            )
        _refuse_shell_characters(value.strip(), where)


def check_exported_environment(environment: Mapping[str, str]) -> None:
    """Check the environment variables that DeepSpeed exports by itself, on the same remote command line.

    Raises:
        ConfigError: one of them is a secret.
    """
    for name, value in environment.items():
        if name.startswith(_EXPORTED_NAMES) and (is_secret_name(name) or secret_in(value, environment)):
            raise ConfigError(
                f"the environment variable {name} looks like a secret, and DeepSpeed would put it on a command line "
                f"that every user of those machines can read; unset it here (env -u {name} storyteller launch ...)"
            )


def check_arguments(arguments: Sequence[str]) -> None:
    """Check arguments that pass through a remote shell.

    Raises:
        ConfigError: the shell would change one, or one holds a secret.
    """
    for argument in arguments:
        if name := secret_in(argument):
            raise ConfigError(
                f"an argument for all hosts holds the value of {name}, and every user of those machines could read it; "
                f"leave it out, and set {name} in the login environment of each machine"
            )
        _refuse_shell_characters(argument, f"'{argument}' for all hosts")


def _refuse_shell_characters(text: str, where: str) -> None:
    if found := _FOR_THE_SHELL.search(text):
        raise ConfigError(
            f"{where}: a remote shell would interpret {found[0]!r}; set it in a file that all machines read, such as "
            "--config FILE"
        )
