"""A disk of a few hundred kilobytes that can be filled, made read-only and taken away, without being root."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """A tmpfs in a mount namespace of its own, which other processes reach through the one that holds it.

    Args:
        holder: a shell in that namespace.
        mounted: where it is mounted there.
    """

    def __init__(self, holder: "subprocess.Popen[str]", mounted: Path) -> None:
        self._holder, self._mounted = holder, mounted
        self.path = Path(f"/proc/{holder.pid}/root") / mounted.relative_to("/")

    def fill(self) -> Path:
        """Take all the room that is left; returns the file to remove."""
        ballast = self.path / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        return ballast

    def make_read_only(self, folder: Path) -> None:
        """Nothing can be written in this folder of the disk any more."""
        inside = self._mounted / folder.relative_to(self.path)
        self.tell(f"mount --bind {inside} {inside} && mount -o remount,bind,ro {inside}")

    def unmount(self) -> None:
        """The disk is gone, as when a network file system is."""
        self.tell(f"umount --lazy {self._mounted}")

    def tell(self, command: str) -> None:
        """A shell command in the namespace."""
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
    # --map-root-user: mounting is allowed to root of a user namespace of one's own, which any user may have.
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
