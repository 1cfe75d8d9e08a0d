"""The printed encoding speed is what was measured."""

from click.testing import CliRunner

from storyteller_ds.bench import encoding
from storyteller_ds.cli.bench import bench


def test_a_small_text() -> None:
    found = encoding.measure(0.3)
    assert 0.3 <= found.megabytes < 0.31
    trained, encoded, memory = found.lines()
    assert f"{found.training_s:.1f} s for 4,096 tokens" in trained
    assert f"({found.alone_s / found.seconds:.0%})" in encoded
    assert f"{found.peak_bytes / 1e6:.0f} MB at most" in memory
    assert 3e7 < found.peak_bytes < 3e9


def test_the_command_prints_a_line_for_each() -> None:
    result = CliRunner().invoke(bench, ["data", "--megabytes", "0.2"])
    assert result.exit_code == 0, result.output
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [
        "tokenizer",
        "encoding",
        "memory",
        "batches",
        "batches",
        "batches",
        "preprocess",
    ]
