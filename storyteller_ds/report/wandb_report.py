"""The report on Weights & Biases, with the same panels, for runs that were tracked there."""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from storyteller_ds.errors import UserError
from storyteller_ds.records.run_folder import WANDB_RUN_ID
from storyteller_ds.redaction import one_line
from storyteller_ds.report import summary
from storyteller_ds.report.figures import COST, LEARNING, ROUTING, Curves
from storyteller_ds.report.run_records import RunRecords

_REPORTS = "wandb_workspaces.reports.v2"
_COLUMNS, _PANEL = 2, (12, 8)
"""On a grid that is 24 units wide."""


def publish(runs: Sequence[RunRecords]) -> str:
    """Create the report on the server that wandb is logged in to.

    Returns:
        Its URL.

    Raises:
        UserError: wandb-workspaces is missing, a run was not tracked, or the server refuses.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb needs a package: pip install wandb-workspaces")
    import wandb

    try:
        entity = wandb.Api().default_entity
        report = wandb_report(runs, entity or "")
        report.save()
    except UserError:
        raise
    except Exception as error:  # wandb's errors have no common base class
        raise UserError(f"no report on Weights & Biases: {one_line(error)}; run `wandb login`, then again") from None
    return str(report.url)


def wandb_report(runs: Sequence[RunRecords], entity: str) -> Any:
    """The report, not yet saved.

    Args:
        runs: the runs to show.
        entity: the user or team on Weights & Biases that owns the runs.

    Raises:
        UserError: a run was not tracked there, or the runs belong to several projects.
    """
    wr: Any = importlib.import_module(_REPORTS)
    ids, projects = [], set()
    for run in runs:
        run_id = run.saved.get(WANDB_RUN_ID)
        if not isinstance(run_id, str) or run.config is None:
            raise UserError(f"{run.folder} was not tracked by Weights & Biases; train with tracking.wandb=online")
        ids.append(run_id)
        projects.add(os.environ.get("WANDB_PROJECT") or run.config.tracking.project)
    if len(projects) > 1:
        raise UserError(f"the runs are in several projects ({', '.join(sorted(projects))}); give those of one")
    (project,) = projects
    is_one = len(runs) == 1
    blocks: list[object] = [wr.TableOfContents(), wr.MarkdownBlock(text=_lead(runs))]
    for title, every in (("How it learned", LEARNING), ("What the routers did", ROUTING), ("What it took", COST)):
        runset = wr.Runset(
            entity=entity, project=project, name="runs", filters=f"ID in [{', '.join(repr(each) for each in ids)}]"
        )
        panels = [_panel(curves, is_one, i) for i, curves in enumerate(every)]
        blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[runset], panels=panels)]
    name = runs[0].name if is_one else f"{len(runs)} runs"
    return wr.Report(
        entity=entity, project=project, title=f"storyteller_ds: {name}", description=_lead(runs), blocks=blocks
    )


def _panel(curves: Curves, is_one: bool, i: int) -> Any:
    wr: Any = importlib.import_module(_REPORTS)
    keys = [*curves.lines.values()] if is_one else [*curves.lines.values()][:1]
    if curves.validated is not None:
        keys = [*keys, curves.validated] if is_one else [curves.validated]
    width, height = _PANEL
    return wr.LinePlot(
        title=curves.title,
        x="tokens",
        y=keys,
        title_x="tokens",
        title_y=curves.unit or None,
        log_y=curves.is_log,
        layout=wr.Layout(x=(i % _COLUMNS) * width, y=(i // _COLUMNS) * height, w=width, h=height),
    )


def _lead(runs: Sequence[RunRecords]) -> str:
    return "\n\n".join(f"{run.name}: {summary.sentence(run)}" for run in runs)
