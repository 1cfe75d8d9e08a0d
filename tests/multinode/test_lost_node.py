"""If a node is lost, the run soon ends on the other one too, with a nonzero exit code and the lost rank named."""

from pathlib import Path

import pytest

from .commands import WAYS, Command, main_job, start_linked
from .linked_machines import LinkedMachines
from .processes import wait_until
from .same_run import RUN, TIMEOUT_S, last_step
from .ssh_nodes import SshNodes

ENDED_WITHIN_S = 30
ENDLESS = ("train.max_steps=1000000", "parallel.ep_size=2")

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


def wait_for_training(folder: Path, commands: list[Command]) -> None:
    def trains() -> bool:
        for command in commands:
            assert command.process.poll() is None, command.output()
        return last_step(folder) >= 2

    wait_until(trains, TIMEOUT_S, "".join(command.output() for command in commands))


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("way", ["ssh", "no_ssh", "torchrun"])
def test_all_processes_of_a_node_are_killed(way: str, lost: int, ssh_nodes: SshNodes, tmp_path: Path):
    commands = WAYS[way](ssh_nodes, 1, main_job(tmp_path / "run", *RUN, *ENDLESS), tmp_path)
    wait_for_training(tmp_path / "run", commands)
    other = ssh_nodes.nodes[1 - lost]
    # If each node has its own command, the lost node's dies with it.
    survivors = commands if len(commands) == 1 else [commands[1 - lost]]

    ssh_nodes.nodes[lost].kill()

    wait_until(lambda: not other.processes(), ENDED_WITHIN_S, "the other node goes on")
    for command in survivors:
        assert command.wait(ENDED_WITHIN_S) != 0, command.output()
        assert f"lost rank {lost} " in command.output()


def test_the_cable_between_two_machines_is_pulled(machines: LinkedMachines, tmp_path: Path):
    commands = start_linked(machines, main_job(tmp_path / "run", *RUN, *ENDLESS), tmp_path)
    wait_for_training(tmp_path / "run", commands)

    machines.pull_the_cable()

    for machine, command in enumerate(commands):
        assert command.wait(ENDED_WITHIN_S) != 0, command.output()
        wait_until(lambda machine=machine: not machines.processes(machine), ENDED_WITHIN_S, "ranks go on")
        assert f"lost rank {1 - machine} " in command.output()
