"""Ranks that cannot connect exit with code 2 and one line, and none waits forever."""

import os
import socket
import sys

from tests.support.distributed import DS_CONFIGS, TINY_RUN, TRAIN, run_command, train_command


def test_a_busy_port_ends_all_ranks(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        command = train_command(2, "zero2", "--output_dir", str(tmp_path / "run"), *TINY_RUN, "--quiet")
        command[command.index("--master_port") + 1] = str(port)
        outcome = run_command(command, 120)
    assert outcome.exit_code == 2, outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("storyteller: ")]
    assert f"at 127.0.0.1:{port} " in line
    assert f"address already in use, by pid {os.getpid()} (" in line
    assert not (tmp_path / "run").exists()


def test_a_stranger_at_the_port_of_another_machine(tmp_path):
    # As seen by rank 1 on a second machine: another process listens where rank 0 should be and never answers. torch
    # would wait without a limit.
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(TRAIN), "--ds_config", str(DS_CONFIGS / "zero2.json"), *TINY_RUN]
        command += ["--output_dir", str(tmp_path / "run"), "parallel.timeout_minutes=0.01"]
        outcome = run_command(command, 120, env)
    assert outcome.exit_code == 2, outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("storyteller: ")]
    assert f"rank 1 could not join the 2 ranks at 127.0.0.1:{port}" in line
