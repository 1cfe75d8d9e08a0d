"""storyteller evaluate: what a model has learned, in figures."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.device_name import DeviceName
from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.given_data import given_data
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    import torch

    from storyteller_ds.evaluation.evaluate import Asked, Evaluated


@click.command()
@click.option(
    "--checkpoint",
    "checkpoints",
    required=True,
    multiple=True,
    type=UserPath(),
    help="Run folder, step folder, or export for transformers; may be given several times.",
)
@click.option(
    "--data",
    type=UserPath(or_word=True),
    help="Text; anything that data.validation takes.  [default: what each run was validated on]",
)
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON, with the stories.")
@click.option(
    "--stories",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Number of stories to tell from held-out openings; 0: none.",
)
@click.option("--max_new_tokens", type=click.IntRange(1), default=200, show_default=True, help="Longest story.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the openings and the stories.")
@click.option("--judge_url", metavar="URL", help="OpenAI-compatible endpoint of a model that grades the stories.")
@click.option("--judge_model", metavar="NAME", help="Name of that model at the endpoint.")
@click.option("--device", type=DeviceName(), default="auto", show_default=True)
@click.argument("overrides", nargs=-1, metavar="[data.field=value]...")
def evaluate(
    checkpoints: tuple[Path, ...],
    data: str | None,
    as_json: bool,
    stories: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    judge_url: str | None,
    judge_model: str | None,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Measure how models predict held-out stories, what their own stories are like, and how much is copied.

    Prints a table to stdout and progress to stderr. A judge gets the stories, and the key in STORYTELLER_JUDGE_KEY.
    Settings of data say how --data is read.
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    if (judge_url is None) != (judge_model is None):
        raise UserError("--judge_url and --judge_model go together; give both, or none")
    # Imported here, with torch: --help need not wait for it.
    from storyteller_kernels.cpu_sharing import shared_cores

    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.distributed.world import pick_device
    from storyteller_ds.evaluation import report
    from storyteller_ds.evaluation.evaluate import Asked
    from storyteller_ds.evaluation.judge import Judge
    from storyteller_ds.generation.sampling import sampling_config

    sampling = sampling_config({"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}, "--")
    judge = None if judge_url is None or judge_model is None else Judge(judge_url, judge_model)
    asked = Asked(given_data(data, overrides), stories, sampling, judge)
    place = pick_device(device, None, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    found, failed = _evaluated(checkpoints, asked, place)
    if found:
        if as_json:
            print(report.as_json(found))
        else:
            log = lines_to(stderr_console())
            for line in report.heading(found):
                print(line)
            print_table(report.table(found))
            for line in report.verdict(found):
                print(line)
            for line in report.remarks(found):
                log(line)
    if failed:
        others = f"; of {len(found)} checkpoint(s) the figures are above" if found else ""
        raise UserError("; ".join(failed) + others)


def _evaluated(
    checkpoints: tuple[Path, ...], asked: "Asked", place: "torch.device"
) -> tuple[list["Evaluated"], list[str]]:
    """The results of checkpoints that can be evaluated, and the errors of the others, which must not stop the rest."""
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.evaluation.evaluate import evaluate as evaluate_one

    log = lines_to(stderr_console())
    found: list[Evaluated] = []
    failed = []
    for path in checkpoints:
        try:
            found.append(evaluate_one(path, asked, place, log))
        except UserError as error:
            failed.append(str(error))
            continue
        judged = None if found[-1].generation is None else found[-1].generation.judged
        if judged is not None and not judged.graded:
            failed.append(f"the judge has graded no story of {path}: {judged.first_problem}")
    return found, failed
