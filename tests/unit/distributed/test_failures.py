"""NCCL errors in one line."""

import pytest
import torch.distributed as dist

from storyteller_ds.distributed.failures import backend_failure, says_peer_is_lost

UNREACHABLE = """NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, remote process exited or there was a \
network error, NCCL version 2.27.5
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
Last error:
socketPollConnect: connect returned Connection refused, exceeded error retry count after 35 attempts
"""


def test_what_happened_and_its_cause_are_kept():
    line = backend_failure(dist.DistBackendError(UNREACHABLE))
    assert line is not None
    assert "\n" not in line
    assert line.startswith(
        "the cards could not talk to each other, remote process exited or there was a network error, NCCL version "
        "2.27.5: socketPollConnect: connect returned Connection refused, exceeded error retry count after 35 attempts; "
    )
    assert "NCCL_SOCKET_IFNAME" in line


@pytest.mark.parametrize("text", ["", "NCCL error in: x.cpp:1, unhandled cuda error", "something new"])
def test_other_forms_are_no_problem(text):
    line = backend_failure(dist.DistBackendError(text))
    assert line is not None
    assert "\n" not in line


def test_other_errors_are_none_of_its_business():
    assert backend_failure(RuntimeError(UNREACHABLE)) is None


def test_a_lost_peer_is_known_by_its_words():
    assert says_peer_is_lost(dist.DistBackendError(UNREACHABLE))
    assert not says_peer_is_lost(RuntimeError("CUDA error: out of memory"))
