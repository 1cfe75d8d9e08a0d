"""Two nodes compute the same as one process, and each continues a run that the other began."""

from pathlib import Path

import pytest

from tests.support.runs import read_metrics

from .commands import WAYS, main_job
from .same_run import RUN, SAVED_EVERY, TIMEOUT_S, TOLERANCE, assert_same_run, copy_up_to, train_alone
from .ssh_nodes import SshNodes

pytestmark = pytest.mark.timeout(4 * TIMEOUT_S)  # some train three times


def train(way: str, nodes: SshNodes, slots: int, folder: Path, *arguments: str) -> Path:
    """Run the main job on both nodes to its end, and check that no process of it is left."""
    commands = WAYS[way](nodes, slots, main_job(folder, *RUN, *arguments), folder.with_name("logs"))
    for command in commands:
        assert command.wait(TIMEOUT_S) == 0, command.output()
    assert [node.processes() for node in nodes.nodes] == [[], []]
    return folder


@pytest.mark.parametrize(
    ("way", "slots", "ep_size"),
    [
        ("ssh", 1, 2),  # the experts are split across the nodes
        ("ssh", 2, 4),
        ("ssh", 2, 2),  # the experts are split within each node, and the nodes are data-parallel
        ("storyteller", 1, 2),
        ("no_ssh", 1, 2),
        ("torchrun", 1, 2),
    ],
)
def test_two_nodes_and_one_process(
    way: str, slots: int, ep_size: int, ssh_nodes: SshNodes, single: Path, tmp_path: Path
):
    assert_same_run(train(way, ssh_nodes, slots, tmp_path / "run", f"parallel.ep_size={ep_size}"), single)


def test_one_process_continues_what_two_nodes_began_and_back(ssh_nodes: SshNodes, single: Path, tmp_path: Path):
    two = train("ssh", ssh_nodes, 1, tmp_path / "two", "parallel.ep_size=2")
    one = train_alone(copy_up_to(two, tmp_path / "one", SAVED_EVERY))
    assert_same_run(one, single)
    half_way = copy_up_to(one, tmp_path / "back", 2 * SAVED_EVERY)
    assert_same_run(train("ssh", ssh_nodes, 1, half_way, "parallel.ep_size=2"), single)


def test_another_seed_is_another_run(single: Path, tmp_path: Path):
    """Control: the comparison fails for a run with another seed."""
    first, expected = (read_metrics(run)[0] for run in (train_alone(tmp_path, "seed=1"), single))
    assert abs(first["train_loss"] - expected["train_loss"]) > 100 * TOLERANCE
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, single)
