"""A small disk that can be filled, made read-only and unmounted, without being root."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """A tmpfs in its own mount namespace, which other processes reach through the process that holds it.

    Args:
        holder: a shell in that namespace.
        mounted: the mount point there.
    """

    def __init__(self, holder: "subprocess.Popen[str]", mounted: Path) -> None:
        self._holder, self._mounted = holder, mounted
        self.path = Path(f"/proc/{holder.pid}/root") / mounted.relative_to("/")

    def fill(self) -> Path:
        """Use up all free space; returns the file to remove."""
        ballast = self.path / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        return ballast

    def make_read_only(self, folder: Path) -> None:
        """Make this folder of the disk read-only."""
        inside = self._mounted / folder.relative_to(self.path)
        self.tell(f"mount --bind {inside} {inside} && mount -o remount,bind,ro {inside}")

    def unmount(self) -> None:
        """Make the disk disappear, as a network file system can."""
        self.tell(f"umount --lazy {self._mounted}")

    def tell(self, command: str) -> None:
        """Run a shell command in the namespace."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(f"{command} && echo done || echo failed\n")
        self._holder.stdin.flush()
        answer = self._holder.stdout.readline()
        assert answer == "done\n", f"{command}: {answer}"


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Disk]:
    """A disk of this size; it is taken down after the block."""
    folder.mkdir()
    # --map-root-user: root of a user namespace may mount, and any user may create such a namespace.
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        disk = Disk(holder, folder)
        disk.tell(f"mount -t tmpfs -o size={kilobytes}k tmpfs {folder}")
        yield disk
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
