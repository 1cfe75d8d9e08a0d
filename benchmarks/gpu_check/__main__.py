"""Runs the parts one after another, and prints a line for each."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from benchmarks.gpu_check.plan import Part, Request, parts

REPOSITORY = Path(__file__).resolve().parents[2]
TAIL = 3
"""Lines shown from the log of a part that fails."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="Where.")
@click.option("--quick", is_flag=True, help="Small sizes: does every part work?")
@click.option("--parts", "only", metavar="PART[,PART...]", help="Only these.  [default: all]")
@click.option("--text", type=click.Path(exists=True, path_type=Path), help="Stories to train on.  [default: built in]")
@click.option("--validation", type=click.Path(exists=True, path_type=Path), help="Stories that are held out.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/gpu_check"),
    show_default=True,
    help="Folder of the records.",
)
@click.option("--seconds", type=click.FloatRange(1), default=530, show_default=True, help="For all parts together.")
def main(
    device: str, quick: bool, only: str | None, text: Path | None, validation: Path | None, out: Path, seconds: float
) -> None:
    """Check and measure this project on one card. Exit code 1: a part has failed."""
    out.mkdir(parents=True, exist_ok=True)
    given = {"data.source": text, "data.validation": validation}
    stories = tuple(f"{name}={path.resolve()}" for name, path in given.items() if path is not None)
    planned = parts(Request(device, quick, out.resolve(), stories))
    names = [part.name for part in planned]
    wanted = names if only is None else only.split(",")
    if unknown := set(wanted) - set(names):
        raise click.UsageError(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    deadline, failed = time.monotonic() + seconds, 0
    for part in planned:
        if part.name in wanted:
            failed += not _run(part, device, out, deadline - time.monotonic())
    sys.exit(1 if failed else 0)


def _run(part: Part, device: str, out: Path, left_s: float) -> bool:
    """Run one part with its output in a log, and print the outcome."""
    if left_s <= 0:
        print(f"{part.name:12} left out: no time is left", flush=True)
        return False
    log, began = out / f"{part.name}.log", time.monotonic()
    environment = {**os.environ, "DS_ACCELERATOR": device, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            part.command,
            cwd=REPOSITORY,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(min(part.limit_s, left_s))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:  # with all processes that it has started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    outcome = "passed" if code == 0 else "took too long" if code is None else f"exit code {code}"
    print(f"{part.name:12} {time.monotonic() - began:5.0f} s  {outcome}", flush=True)
    if code != 0:
        print(*(f"    {line}" for line in lines[-TAIL:]), sep="\n", flush=True)
    return code == 0


if __name__ == "__main__":
    main()
