"""storyteller doctor: what is wrong with a run before it begins."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.paths import UserPath

if TYPE_CHECKING:
    from storyteller_ds.doctor.finding import Finding


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON; without one, a single device.")
@click.option(
    "--world_size", type=click.IntRange(1), help="Number of ranks of the run.  [default: of the hostfile, or 1]"
)
@click.option("--hostfile", "-H", type=UserPath(), help="Also check the machines in this file, by ssh.")
@click.option("--output_dir", type=UserPath(), help="Output folder of the run.  [default: runs/NAME]")
@click.option("--fix", is_flag=True, help="Fix what can be fixed safely, and list it.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON array.")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def doctor(
    config: str | None,
    ds_config: Path | None,
    world_size: int | None,
    hostfile: Path | None,
    output_dir: Path | None,
    fix: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Find what is wrong with a run before it starts: machine, hosts, text and settings.

    Takes the arguments of train. Each finding is an error (it cannot work), a warning or a note, with what was seen
    and how to fix it. Exits with 2 if there is an error.
    """
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.doctor.consult import consult
    from storyteller_ds.errors import EXIT_USER_ERROR, UserError

    if world_size is not None and hostfile is not None:
        raise UserError("--hostfile has the number of ranks; leave out --world_size")
    found = consult(config, overrides, ds_config, hostfile, output_dir, world_size)
    if fix:
        found = [_fixed(each) for each in found]
    if as_json:
        fields = ("severity", "check", "evidence", "fix")
        print(json.dumps([{field: getattr(each, field) for field in fields} for each in found], indent=2))
    else:
        _print(found)
    if any(each.severity == "error" for each in found):
        sys.exit(EXIT_USER_ERROR)


def _fixed(finding: "Finding") -> "Finding":
    """Repair the finding if possible; its fix then says what was done."""
    if finding.repair is None:
        return finding
    try:
        return replace(finding, severity="note", fix=f"done: {finding.repair()}")
    except OSError as failure:
        return replace(finding, fix=f"{finding.fix} (could not be fixed: {failure.strerror or failure})")


def _print(found: "list[Finding]") -> None:
    from storyteller_ds.redaction import redacted
    from storyteller_ds.untrusted import for_terminal

    for each in found:
        print(for_terminal(redacted(f"{each.severity}: {each.evidence}  [{each.check}]\n    fix: {each.fix}")))
    counts = {kind: sum(each.severity == kind for each in found) for kind in ("error", "warning", "note")}
    said = [f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count]
    print(", ".join(said) if said else "nothing is wrong")
