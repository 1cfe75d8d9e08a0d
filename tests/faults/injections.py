"""Faults that are injected into a rank from outside: the product has no code for them.

Each fault is a mapping with `do`, the name of a function below, and its arguments; `rank` limits it to one rank. The
functions hook into what the product calls (Python's audit events, safetensors, torch), or into a seam between two of
its parts that is there by design (the batches of a step, the restoring of a checkpoint).

Run as a script, it sets up the faults listed in the environment, then runs the script given as its arguments.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "STORYTELLER_TEST_FAULTS"
"""Environment variable with a JSON list of faults."""
_STEP = re.compile(r"step_(\d{8})")


def prepare(faults: list[dict[str, Any]], rank: int) -> None:
    """Set up this rank's faults, before the product runs."""
    for fault in faults:
        arguments = {key: value for key, value in fault.items() if key not in ("do", "rank")}
        if fault.get("rank") in (None, rank):
            _FAULTS[fault["do"]](**arguments)


def _strike(how: str) -> None:
    """Send a signal to this process (the one that trains), its supervisor, or all processes of the run at once."""
    victim, _, name = how.partition(":")
    number = signal.Signals[name]
    if victim == "all":
        os.killpg(0, number)
    else:
        os.kill({"self": os.getpid(), "supervisor": os.getppid()}[victim], number)
    if number == signal.SIGKILL:
        time.sleep(60)  # do nothing more until the signal has taken effect, in an instant


def _before_step(step: int, action: Callable[[], None]) -> None:
    """Act once, when this process asks for the batch of the optimizer step after `step` steps."""
    from storyteller_ds.data.batching.batches import TrainBatches

    original, done = TrainBatches.step, []

    def asked(self: TrainBatches, samples_seen: int) -> Any:
        if samples_seen // self._split.global_batch_size == step and not done:
            done.append(True)
            action()
        return original(self, samples_seen)

    TrainBatches.step = asked


def at_step(step: int, how: str, after: str | None = None) -> None:
    """Strike between two optimizer steps, once the file or folder `after` exists (it is written in the background)."""

    def act() -> None:
        if after is not None:
            _wait_for(Path(after))
        _strike(how)

    _before_step(step, act)


def hold(step: int, reached: str, until: str) -> None:
    """Halt between two optimizer steps: create the file `reached`, and continue once the file `until` exists."""

    def act() -> None:
        Path(reached).touch()
        _wait_for(Path(until))

    _before_step(step, act)


def in_corpus(
    reading: int, document: int, how: str | None = None, reached: str | None = None, until: str | None = None
) -> None:
    """Strike, or halt as in hold(), at the given document in the given reading of the built-in corpus.

    The first reading is for the tokenizer, the second for the training tokens, the third for the validation tokens.
    """
    from storyteller_ds.data.sources.builtin import BuiltinSource

    original, readings = BuiltinSource.documents, []

    def read(self: BuiltinSource) -> Any:
        readings.append(self)
        for number, text in enumerate(original(self)):
            if (len(readings), number) == (reading, document):
                if how is not None:
                    _strike(how)
                else:
                    Path(str(reached)).touch()
                    _wait_for(Path(str(until)))
            yield text

    BuiltinSource.documents = read


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear")
        time.sleep(0.01)


def at_rename(step: int, how: str) -> None:
    """Strike when a checkpoint is completely written, with its manifest, but not yet renamed."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(os.fsdecode(arguments[1])).name == f"step_{step:08d}":
            _strike(how)

    sys.addaudithook(audit)


def at_folder(step: int, how: str) -> None:
    """Strike just before the temporary folder of a step's checkpoint is created (by rank 0)."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and Path(os.fsdecode(arguments[0])).name == f"step_{step:08d}.tmp":
            _strike(how)

    sys.addaudithook(audit)


def in_shard(part: str, step: int, fraction: float, how: str) -> None:
    """Strike when this fraction of a shard's bytes is in its file."""
    _around_shards(part, step, lambda whole: _cut(whole, fraction, how))


def _cut(path: Path, fraction: float, how: str) -> None:
    with path.open("rb+") as file:
        file.truncate(int(fraction * path.stat().st_size))
        os.fsync(file.fileno())
    _strike(how)


def fill_disk(part: str, step: int, ballast: str) -> None:
    """When a shard is written, fill the rest of the disk, as another process might."""

    def fill(path: Path) -> None:
        with contextlib.suppress(OSError), Path(ballast).open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass

    _around_shards(part, step, fill)


def remove(step: int, path: str) -> None:
    """Remove a file between two optimizer steps."""
    _before_step(step, lambda: Path(path).unlink())


def _around_shards(part: str, step: int, after: Callable[[Path], None]) -> None:
    import safetensors.torch

    original = safetensors.torch.serialize_file

    def writing(tensors: Any, filename: Any, *arguments: Any, **named: Any) -> None:
        path = Path(filename)
        original(tensors, filename, *arguments, **named)
        found = _STEP.search(path.parent.name)
        if path.name.startswith(f"{part}-") and found and int(found[1]) == step:
            after(path)

    safetensors.torch.serialize_file = writing


def limit_file_size(step: int, limit_bytes: int) -> None:
    """Limit the size of files from this step on; the kernel refuses with EFBIG, as a quota does with EDQUOT."""
    _before_step(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)))


def clock_jump(step: int, seconds: float) -> None:
    """Make the time of day jump, as when ntpd first reaches a server; the monotonic clock never jumps."""
    original, jump = time.time, [0.0]
    time.time = lambda: original() + jump[0]
    _before_step(step, lambda: jump.__setitem__(0, seconds))


def nan_gradient(step: int, times: int) -> None:
    """Make the gradients of this rank NaN, but not its loss, in `times` optimizer steps in a row after `step` steps."""
    import torch

    from storyteller_ds.data.batching.batches import TrainBatches

    fetch, backward = TrainBatches.step, torch.Tensor.backward
    remaining, poisoned = [times], [False]

    def fetched(self: TrainBatches, samples_seen: int) -> Any:
        poisoned[0] = samples_seen // self._split.global_batch_size >= step and remaining[0] > 0
        remaining[0] -= poisoned[0]
        return fetch(self, samples_seen)

    def through(self: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return backward(self * float("nan") if poisoned[0] else self, *arguments, **named)

    TrainBatches.step, torch.Tensor.backward = fetched, through


def out_of_memory(step: int, after: str) -> None:
    """Raise torch's CUDA out-of-memory error between two optimizer steps, once the folder `after` exists."""
    import torch

    def act() -> None:
        _wait_for(Path(after))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of …")

    _before_step(step, act)


def digest_state(step: int, path: str) -> None:
    """Write digests of all weights and moments before and after the optimizer step that follows `step` steps."""
    from storyteller_ds.engines.deepspeed.engine import DeepSpeedEngine
    from storyteller_ds.engines.single import SingleEngine

    due: list[bool] = []

    def digest(engine: Any) -> str:
        whole = hashlib.sha256()
        for kind, name, tensor in engine.named_state():
            whole.update(f"{kind}/{name}".encode() + tensor.numpy().tobytes())
        return whole.hexdigest()

    def watched(begin_step: Callable[..., Any]) -> Callable[..., Any]:
        def training(self: Any, *arguments: Any) -> Any:
            if not due:
                return begin_step(self, *arguments)
            due.clear()
            before = digest(self)
            result = begin_step(self, *arguments)
            Path(f"{path}.{self.world.rank}").write_text(f"{before} {digest(self)}")
            return result

        return training

    for engine in (SingleEngine, DeepSpeedEngine):
        engine.begin_step = watched(engine.begin_step)
    _before_step(step, lambda: due.append(True))


def loss_spike(step: int, factor: float) -> None:
    """Multiply the loss of the global batch by `factor`, once, in the optimizer step after `step` steps."""
    from storyteller_ds.engines import step as steps

    original, factors = steps.mean_loss, [1.0]
    steps.mean_loss = lambda *arguments: original(*arguments) * (factors.pop() if len(factors) > 1 else 1.0)
    _before_step(step, lambda: factors.append(factor))


def without_rng() -> None:
    """Do not restore the random streams on resume."""
    from storyteller_ds.checkpoint import resume

    resume.set_rng_state = lambda *arguments: None


def without_moments() -> None:
    """Load zeros for AdamW's moments on resume."""
    from storyteller_ds.engines.deepspeed.engine import DeepSpeedEngine

    load = DeepSpeedEngine.load_named_state

    def loading(self: Any, read: Callable[[str, str], Any], *rest: Any) -> None:
        load(self, lambda kind, name: read(kind, name) * (kind == "weight"), *rest)

    DeepSpeedEngine.load_named_state = loading


def without_cursor() -> None:
    """Start the data from the beginning on resume."""
    from storyteller_ds.data.batching.batches import TrainBatches

    original, first = TrainBatches.step, []

    def asked(self: TrainBatches, samples_seen: int) -> Any:
        first.append(samples_seen)
        return original(self, samples_seen - first[0])

    TrainBatches.step = asked


_FAULTS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        at_step,
        hold,
        in_corpus,
        at_rename,
        at_folder,
        in_shard,
        fill_disk,
        remove,
        limit_file_size,
        clock_jump,
        nan_gradient,
        out_of_memory,
        digest_state,
        loss_spike,
        without_rng,
        without_moments,
        without_cursor,
    )
}

if __name__ == "__main__":
    prepare(json.loads(os.environ[VARIABLE]), int(os.environ.get("RANK", "0")))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
