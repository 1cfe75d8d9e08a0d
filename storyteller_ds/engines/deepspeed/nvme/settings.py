"""The NVMe settings of a DeepSpeed JSON, and what DeepSpeed 0.19.8 needs there."""

from collections.abc import Mapping
from typing import Any

_SECTIONS = ("offload_optimizer", "offload_param")


def nvme_sections(ds_config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections of zero_optimization that offload to NVMe, by name."""
    zero = ds_config.get("zero_optimization", {})
    return {name: zero[name] for name in _SECTIONS if (zero.get(name) or {}).get("device") == "nvme"}


def swaps_weights(ds_config: Mapping[str, Any]) -> bool:
    """Whether the weights themselves go to NVMe, not only the optimizer state."""
    return "offload_param" in nvme_sections(ds_config)


def with_nvme_settings(ds_config: Mapping[str, Any], largest_parameter: int) -> dict[str, Any]:
    """The JSON with what DeepSpeed 0.19.8 needs to swap weights to NVMe; unchanged if they stay in memory.

    Each gathered weight occupies one of buffer_count buffers, and a prefetched weight keeps its buffer even across the
    step: with reuse and prefetch on, training fails an assertion as soon as the model has more weights than buffers.
    Each buffer holds one weight; the default of 1e8 elements locks 2 GB per rank.

    Args:
        ds_config: the DeepSpeed JSON.
        largest_parameter: elements of the largest single parameter.
    """
    if not swaps_weights(ds_config):
        return dict(ds_config)
    zero = ds_config["zero_optimization"]
    given = zero["offload_param"].get("buffer_size")
    size = max(largest_parameter, int(given) if isinstance(given, int | float) else 0)
    offload = {**zero["offload_param"], "buffer_size": size}
    needed = {"offload_param": offload, "stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
    return {**ds_config, "zero_optimization": {**zero, **needed}}
