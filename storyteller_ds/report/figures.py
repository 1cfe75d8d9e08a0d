"""The figures of a report, from the records of one run, or of several overlaid."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from storyteller_ds.atlas import plots
from storyteller_ds.records.metrics import Record
from storyteller_ds.report.look import HEIGHT, WIDTH
from storyteller_ds.report.run_records import RunRecords

MIN_STEPS = 5
"""With fewer logged steps than this, a curve shows nothing."""
_POINTS = 400
"""At most this many points in a curve, each the mean of the same number of steps."""
_COLUMNS = 200
"""At most this many columns in a heat map over time."""
_PANEL_INCHES = 0.95


@dataclass(frozen=True)
class Drawing:
    """A figure of the report."""

    name: str
    """Also the name of its file."""
    title: str
    caption: str
    """What it shows, and what to look for."""
    figure: Figure

    @property
    def width(self) -> int:
        """Maximum width (CSS pixels): beyond that, its text would be larger than the page's."""
        return round(140 * self.figure.get_figwidth())

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width of a page."""
        return bool(self.figure.get_figwidth() > 1.5 * WIDTH)


@dataclass(frozen=True)
class Curves:
    """Curves plotted against trained tokens."""

    name: str
    title: str
    unit: str
    caption: str
    lines: dict[str, str]
    """Label -> key of a training record. The first one is compared between runs."""
    validated: str | None = None
    """Key of a validation, drawn as points."""
    by_layer: bool = False
    """Whether `layer_KEY` has a value for each layer."""
    scale: float = 1.0
    is_log: bool = False
    is_per_token: bool = False
    """Whether it cannot be compared between runs with different tokenizers."""


_OF_SEVERAL = "At each validation; lower is better. Lines that end earlier are of runs that trained on less."

LEARNING = (
    Curves(
        "loss",
        "Loss",
        "nats per token",
        "How surprised the model is by the next token: of the text it trains on (line), and of stories kept back "
        "(points). Where the points rise while the line falls, it learns by heart.",
        {"training": "train_loss"},
        validated="val_loss",
        is_per_token=True,
    ),
    Curves(
        "bits-per-byte",
        "Bits per byte of held-out stories",
        "bits per byte",
        "The same, whatever the tokenizer: the size that these stories would have if the model compressed them.",
        {},
        validated="val_bpb",
    ),
    Curves(
        "learning-rate",
        "Learning rate",
        "",
        "It rises during the warm-up, then falls to the end of the schedule.",
        {"learning rate": "lr"},
    ),
    Curves(
        "gradient-norm",
        "Gradient norm",
        "",
        "Before clipping. Peaks are batches that would have thrown the model off; parts where they are recorded.",
        {
            "all": "grad_norm",
            "routers": "grad_norm_router",
            "experts": "grad_norm_experts",
            "the rest": "grad_norm_rest",
        },
        is_log=True,
    ),
)
ROUTING = (
    Curves(
        "balance",
        "How unevenly experts are used",
        "coefficient of variation",
        "0 is a fair share for each; a layer whose line climbs sends more and more to a few.",
        {"mean": "expert_load_cv"},
        by_layer=True,
    ),
    Curves(
        "entropy",
        "How undecided the routers are",
        "nats",
        "Entropy of the probabilities of a token's experts. It begins near the logarithm of their number, and falls "
        "as the router learns to choose.",
        {"mean": "router_entropy"},
        by_layer=True,
    ),
    Curves(
        "margin",
        "Lead of the first choice",
        "probability",
        "The best expert's probability less the second's.",
        {"mean": "router_margin"},
        by_layer=True,
    ),
    Curves(
        "drift",
        "Change of load between logged steps",
        "part of the tokens",
        "That went to other experts than at the step logged before. Of a router that stands still it is the difference "
        "between two batches, not 0.",
        {"mean": "router_drift"},
        by_layer=True,
    ),
)
COST = (
    Curves(
        "throughput",
        "Throughput",
        "tokens/s",
        "Over all devices. Dips are other work on the machine, or text that came late.",
        {"tokens/s": "tokens_per_s"},
    ),
    Curves(
        "memory",
        "Memory",
        "GiB",
        "Of the process of rank 0 (host), and of its GPU.",
        {"host": "host_memory_bytes", "GPU": "memory_bytes", "GPU, peak": "memory_peak_bytes"},
        scale=2**-30,
    ),
)


def learning(runs: Sequence[RunRecords], same_tokens: bool) -> list[Drawing]:
    """Loss, bits per byte, learning rate and gradient norms."""
    return _drawn(LEARNING, runs, same_tokens)


def routing(runs: Sequence[RunRecords]) -> list[Drawing]:
    """For a single run the load of each expert over time, and curves of how the routers choose."""
    heat = _loads(runs[0]) if len(runs) == 1 else None
    return [*([heat] if heat else []), *_drawn(ROUTING, runs, True)]


def cost(runs: Sequence[RunRecords]) -> list[Drawing]:
    """Throughput, memory and, for a single run, what a step spends its time on."""
    parts = _step_time(runs[0]) if len(runs) == 1 else None
    return [*_drawn(COST, runs, True), *([parts] if parts else [])]


def evaluation(run: RunRecords) -> list[Drawing]:
    """How confident and how accurate the model is, and where in a story it does well."""
    checkpoints = (run.evaluation or {}).get("checkpoints")
    if not isinstance(checkpoints, list) or len(checkpoints) != 1:
        return []
    (found,) = checkpoints
    drawn = []
    bins = found.get("reliability", [])
    if bins:
        figure, axes = _axes()
        sure, right = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
        axes.plot([0, 1], [0, 1], color="#8a8d91", linewidth=1, linestyle="--", label="as sure as right")
        axes.plot(sure, right, marker="o", markersize=4, label=run.name)
        axes.set(xlabel="probability of the likeliest token", ylabel="how often it was right")
        _legend(figure)
        caption = "Points below the diagonal: surer than right. Points above: more cautious than need be."
        drawn.append(Drawing("reliability", "As sure as right?", caption, figure))
    strata = [each for each in found.get("bits_per_byte_by_position", []) if each["value"] is not None]
    if strata:
        figure, axes = _axes()
        axes.bar([each["name"] for each in strata], [each["value"] for each in strata], width=0.7)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="bytes from the beginning of the story", ylabel="bits per byte")
        caption = (
            "A model that uses what it has read so far predicts the later parts better. Where all stories begin alike, "
            "the beginning is easier."
        )
        drawn.append(Drawing("by-position", "Where in a story", caption, figure))
    return drawn


def atlas(run: RunRecords) -> list[Drawing]:
    """What each expert serves, and what is lost without it."""
    found = run.atlas
    if found is None:
        return []
    drawn = [
        Drawing(
            "atlas-kinds",
            "What each expert serves",
            "Red: kinds of tokens that go to an expert more often than they occur. Rows are layer.expert.",
            plots.kinds(found),
        ),
    ]
    if found.costs:
        caption = "Bits per byte lost when one expert is taken out, with 95 % intervals over stories."
        drawn.append(Drawing("atlas-knock-out", "What is lost without each expert", caption, plots.knock_out(found)))
    if found.layers[0].pairs_EE is not None:
        caption = "Red: experts chosen for the same token more often than by chance."
        drawn.append(Drawing("atlas-pairs", "Experts that are chosen together", caption, plots.pairs(found)))
    return drawn


def _drawn(every: Iterable[Curves], runs: Sequence[RunRecords], same_tokens: bool) -> list[Drawing]:
    drawn = []
    for curves in every:
        if curves.is_per_token and not same_tokens:
            continue
        figure, axes = _axes()
        (_lines_of_one if len(runs) == 1 else _lines_of_several)(axes, curves, runs)
        if not axes.lines:
            continue
        axes.set(xlabel="million tokens", ylabel=curves.unit)
        if curves.is_log:
            axes.set_yscale("log")
        if len(axes.lines) > 1 or len(runs) > 1:
            _legend(figure)
        is_compared = len(runs) > 1 and curves.validated is not None
        title = f"{curves.title} on held-out stories" if is_compared and curves.lines else curves.title
        drawn.append(Drawing(curves.name, title, _OF_SEVERAL if is_compared else curves.caption, figure))
    return drawn


def _lines_of_one(axes: Axes, curves: Curves, runs: Sequence[RunRecords]) -> None:
    (run,) = runs
    for label, key in curves.lines.items():
        if curves.by_layer and run.layers:
            for i, block in enumerate(run.layers):
                _line(axes, run.train, _of_layer(f"layer_{key}", i), curves.scale, f"layer {block}")
            if axes.lines:
                continue  # records from before layers were recorded have only the mean
        _line(axes, run.train, _of(key), curves.scale, label)
    if curves.validated is not None:
        _points(axes, run.evals, curves.validated, "held-out stories")


def _lines_of_several(axes: Axes, curves: Curves, runs: Sequence[RunRecords]) -> None:
    for run in runs:
        if curves.validated is not None:
            _points(axes, run.evals, curves.validated, run.name)
        else:
            _line(axes, run.train, _of(next(iter(curves.lines.values()))), curves.scale, run.name)


def _line(axes: Axes, records: Sequence[Record], value: Callable[[Record], float], scale: float, label: str) -> None:
    values = np.array([value(record) for record in records])
    if np.isfinite(values).sum() < MIN_STEPS:
        return
    tokens, values = _thinned(np.array([record["tokens"] for record in records]) / 1e6, scale * values)
    axes.plot(tokens, values, label=label)


def _points(axes: Axes, records: Sequence[Record], key: str, label: str) -> None:
    known = [record for record in records if record.get(key) is not None]
    if known:
        tokens = [record["tokens"] / 1e6 for record in known]
        axes.plot(tokens, [record[key] for record in known], marker="o", markersize=4, label=label)


def _thinned(x: np.ndarray, y: np.ndarray, most: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighboring points, to have at most `most` of them; unknown values are left out."""
    each = math.ceil(len(x) / most)
    if each == 1:
        return x, y
    x, y = (np.pad(value, (0, -len(value) % each), constant_values=np.nan).reshape(-1, each) for value in (x, y))
    known = np.isfinite(y).any(axis=1)
    means = np.full(len(y), np.nan)
    means[known] = np.nanmean(y[known], axis=1)
    return np.nanmean(x, axis=1), means


def _of(key: str) -> Callable[[Record], float]:
    return lambda record: _number(record.get(key))


def _of_layer(key: str, i: int) -> Callable[[Record], float]:
    def value(record: Record) -> float:
        values = record.get(key)
        return _number(values[i]) if isinstance(values, list) and i < len(values) else math.nan

    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _loads(run: RunRecords) -> Drawing | None:
    """A panel for each layer: the load of each expert over time, as log2 of its multiple of a fair share."""
    if run.config is None or not run.layers:
        return None
    shape = (len(run.layers), run.config.moe.num_experts)
    records = [record for record in run.train if np.shape(record.get("layer_expert_load") or []) == shape]
    if len(records) < MIN_STEPS:
        return None
    load_SLE = np.array([record["layer_expert_load"] for record in records], np.float64)
    each = math.ceil(len(records) / _COLUMNS)
    starts = range(0, len(records), each)
    load_LET = np.stack([load_SLE[start : start + each].mean(axis=0) for start in starts], axis=2)
    first, last = (records[i]["tokens"] / 1e6 for i in (0, -1))
    figure = Figure((WIDTH, 0.6 + _PANEL_INCHES * shape[0]), layout="constrained")
    panels = figure.subplots(shape[0], 1, sharex=True, squeeze=False)[:, 0]
    image = None
    for axes, block, load_ET in zip(panels, run.layers, load_LET, strict=True):
        extent = (first, last, shape[1] - 0.5, -0.5)
        image = axes.imshow(plots.doublings(load_ET * shape[1]), **plots.SCALE, aspect="auto", extent=extent)
        axes.grid(visible=False)
        axes.set(ylabel=f"layer {block}", yticks=range(0, shape[1], max(1, shape[1] // 4)))
    panels[-1].set_xlabel("million tokens")
    plots.doublings_bar(figure, image, list(panels), "times a fair share")
    caption = (
        "A row for each expert, from left to right as the run went on. White is a fair share of the tokens, red more, "
        "blue less."
    )
    return Drawing("expert-load", "Load of each expert over time", caption, figure)


def _step_time(run: RunRecords) -> Drawing | None:
    """Parts of a step over time, stacked."""
    records = [record for record in run.train if "forward_s" in record]
    if len(records) < MIN_STEPS:
        return None
    step = np.array([_number(record["step_time_s"]) for record in records])
    parts = {
        "waiting for text": step * [_number(record.get("data_wait", 0)) for record in records],
        **{
            name: np.array([_number(record.get(f"{name}_s", 0)) for record in records])
            for name in ("forward", "backward", "optimizer")
        },
    }
    parts["the rest"] = np.maximum(0, step - sum(parts.values()))
    tokens = np.array([record["tokens"] for record in records]) / 1e6
    thin = {name: _thinned(tokens, 1000 * seconds)[1] for name, seconds in parts.items()}
    figure, axes = _axes()
    axes.stackplot(_thinned(tokens, step)[0], *thin.values(), labels=[*thin])
    # Cut off the top: one slow step would flatten all others.
    axes.set(xlabel="million tokens", ylabel="ms a step", ylim=(0, 1500 * float(np.nanmedian(step))))
    _legend(figure)
    return Drawing("step-time", "What a step spends its time on", "On rank 0, stacked.", figure)


def _legend(figure: Figure) -> None:
    """Place the legend above the curves, so that it never covers them."""
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.2)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    return figure, figure.subplots()
