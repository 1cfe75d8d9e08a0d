"""A trained model against a compressor: python -m benchmarks.compare_with_xz RUN_FOLDER VALIDATION_TEXT"""

import sys
from pathlib import Path

import click

from benchmarks.against_xz import final_val_bpb, xz_bits_per_byte
from storyteller_ds.cli.main import run_command
from storyteller_ds.cli.paths import UserPath


@click.command()
@click.argument("run_folder", type=UserPath())
@click.argument("text_file", type=UserPath())
def compare(run_folder: Path, text_file: Path) -> None:
    """Print the final_val_bpb of RUN_FOLDER and what `xz -9` needs for TEXT_FILE; exit code 1 if xz needs less."""
    model, xz = final_val_bpb(run_folder), xz_bits_per_byte(text_file)
    print(f"model: {model:.4f} bits per byte (final_val_bpb of {run_folder})")
    print(f"xz -9: {xz:.4f} bits per byte ({text_file})")
    sys.exit(0 if model < xz else 1)


if __name__ == "__main__":
    run_command(compare)
