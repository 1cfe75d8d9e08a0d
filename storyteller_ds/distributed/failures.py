"""Interpretation of the errors of gloo, NCCL and torch's store."""

import re

import torch.distributed as dist

_LOST_PEER = ("by peer", "Broken pipe", "remote process exited", "Connection was likely closed")
"""Parts of the errors of gloo (the first two), NCCL and torch's store when the other end is gone."""


def says_peer_is_lost(error: BaseException) -> bool:
    """Whether an error only says that the other end of a connection, such as another rank, is gone."""
    return any(words in str(error) for words in _LOST_PEER)


def backend_failure(error: BaseException) -> str | None:
    """One line with what NCCL's error says and what to do; None if the error is not NCCL's."""
    if not isinstance(error, dist.DistBackendError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # "NCCL error in: FILE:LINE, what happened, NCCL version N", then the meaning, and after "Last error:" the cause.
    happened = re.sub(r"^.*NCCL error in: [^,]*, ", "", lines[0]) if lines else "unknown error"
    causes = [line for line in lines[1:] if not line.startswith("Last error")]
    cause = f": {causes[-1]}" if causes else ""
    return (
        f"the cards could not talk to each other, {happened}{cause}; NCCL_DEBUG=INFO prints more, NCCL_SOCKET_IFNAME "
        "names the network interface, NCCL_P2P_DISABLE=1 does without direct links between cards"
    )
