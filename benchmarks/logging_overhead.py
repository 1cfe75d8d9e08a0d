"""What a logged step costs compared with one that is not: python -m benchmarks.logging_overhead [PRESET]

Every third step of a run is logged: to metrics.jsonl, wandb (offline), TensorBoard, and as lines. The time from the
result of a step to the end of its logging is measured directly. Logged steps are also compared with the steps two
before and two after: if Muon updates the experts every second step, these do the same work.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import storyteller_ds as st

STEPS, ROUNDS = 90, 3
_WARM_UP = 10
"""First steps, which do not count."""


class Clock(st.Callback):
    """Runs after all callbacks that log."""

    def __init__(self) -> None:
        self.resulted = self.began = 0.0
        self.logging: list[float] = []
        self.iterations: list[tuple[bool, float]] = []
        """Whether a step was logged, and the time of the whole step."""
        self._is_logged = False

    def on_result(self, state: st.TrainState, result: st.StepResult) -> st.TrainState:
        """The step is over, and logging begins."""
        self.resulted = time.perf_counter()
        return state

    def on_train(self, record: st.Record) -> None:
        """The trackers before this one have logged the record."""
        self._is_logged = True
        self.logging.append(time.perf_counter() - self.resulted)

    def on_step_end(self, state: st.TrainState, last: bool) -> None:
        """The next step begins."""
        now = time.perf_counter()
        if self.began:
            self.iterations.append((self._is_logged, now - self.began))
        self.began, self._is_logged = now, False


def main() -> None:
    """Measure and print."""
    (preset,) = sys.argv[1:] or ["quickstart"]
    shares, ratios = [], []
    for turn in range(ROUNDS):
        clock, quiet = Clock(), {"train.eval_every_steps": 0, "checkpoint.every_steps": 0, "train.sample_prompts": []}
        trackers = {"tracking.wandb": "offline", "tracking.tensorboard": True, "train.log_every_steps": 3}
        with tempfile.TemporaryDirectory() as folder:
            st.train(preset, {**quiet, **trackers, "train.max_steps": STEPS}, output_dir=folder, callbacks=[clock])
        iterations = clock.iterations[_WARM_UP:]
        step = statistics.median(seconds for logged, seconds in iterations if not logged)
        shares.append(statistics.median(clock.logging[_WARM_UP // 3 :]) / step)
        ratios.append(_of_neighbors(iterations))
        print(f"round {turn}: logging {shares[-1]:.3%} of a step of {step:.3f} s, {ratios[-1]:.4f} times", flush=True)
    share, ratio = statistics.median(shares), statistics.median(ratios)
    print(f"{preset}: logging takes {share:.3%} of a step (median of {ROUNDS} rounds); beside its neighbors ", end="")
    print(f"a logged step takes {ratio:.4f} times as long")


def _of_neighbors(iterations: Sequence[tuple[bool, float]]) -> float:
    """Median ratio of the time of a logged step to the mean of the steps two before and two after it."""
    return statistics.median(
        2 * seconds / (iterations[i - 2][1] + iterations[i + 2][1])
        for i, (logged, seconds) in enumerate(iterations)
        if logged and 1 < i < len(iterations) - 2
    )


if __name__ == "__main__":
    main()
