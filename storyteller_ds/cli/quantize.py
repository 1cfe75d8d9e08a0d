"""storyteller quantize: a model at a quarter or an eighth of its size."""

from pathlib import Path

import click

from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath


@click.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option("--bits", required=True, type=click.Choice(["8", "4"]), help="Bits per weight.")
@click.option("--output_dir", required=True, type=UserPath(), help="Run folder to write; must not exist yet.")
@click.option("--data", type=UserPath(), help="Text to measure on.  [default: what the run was validated on]")
def quantize(checkpoint: Path, bits: str, output_dir: Path, data: Path | None) -> None:
    """Quantize the weights to 8 or 4 bits and measure the cost in bits per byte.

    The result can generate and be exported. It cannot continue training, but can start a new run (--init_from).
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    # Imported here, with torch: --help need not wait for it.
    from rich.filesize import decimal

    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.conversion.quantize import quantize_run
    from storyteller_ds.distributed.world import pick_device

    log = lines_to(stderr_console())
    done = quantize_run(checkpoint, int(bits), output_dir, data, pick_device("auto", None), log)
    before, after = (score.bits_per_byte for score in done.scores)
    print(
        f"bits per byte of {done.scores[0].tokens:,} tokens of {done.text}: "
        f"{before:.4f} in fp32, {after:.4f} in {bits} bits ({after / before - 1:+.2%})"
    )
    print(f"weights: {decimal(done.bytes[0])} in fp32, {decimal(done.bytes[1])} in {bits} bits")
    print(f"checkpoint: {done.checkpoint}")
