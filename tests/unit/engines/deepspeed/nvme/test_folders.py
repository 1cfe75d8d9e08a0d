"""The checks before DeepSpeed may swap to an NVMe path, and which run may use which folder below it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storyteller_ds.distributed.world import World
from storyteller_ds.engines.deepspeed.nvme.folders import check_nvme, own_swap_folders
from storyteller_ds.engines.deepspeed.nvme.settings import with_nvme_settings
from storyteller_ds.errors import ConfigError

ALONE = World(rank=0, local_rank=0, size=1, local_size=1)
PARAMETERS = 1_000_000
FP32 = 4


def json(path: Path, *sections: str, **settings: Any) -> dict[str, Any]:
    offload = {"device": "nvme", "nvme_path": str(path), **settings}
    names = sections or ("offload_optimizer", "offload_param")
    return {"zero_optimization": {"stage": 3} | {name: dict(offload) for name in names}}


def check(config: dict[str, Any], world: World = ALONE) -> None:
    check_nvme(config, PARAMETERS, FP32, world)


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=free, used=0, free=free))


def test_a_good_path_is_left_as_it_was(tmp_path: Path):
    check(json(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_json_without_nvme_is_not_looked_at():
    check({})
    check({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "nvme_path": "/nowhere"}}})


def test_a_path_that_is_missing(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"\.offload_param\.nvme_path: .*nowhere cannot be .*\(No such file"):
        check(json(tmp_path / "nowhere", "offload_param"))


def test_a_file_in_the_place_of_a_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file cannot be written .*\(Not a directory\)"):
        check(json(tmp_path / "file"))


def test_a_folder_that_cannot_be_written():
    # Nobody can create files in /proc, not even root.
    with pytest.raises(ConfigError, match="/proc cannot be written"):
        check(json(Path("/proc")))


def test_a_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    really_open = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="direct I/O"):
        check(json(tmp_path))


@pytest.mark.parametrize(
    ("sections", "bytes_per_parameter"),
    [(["offload_optimizer"], 16), (["offload_param"], 4), (["offload_optimizer", "offload_param"], 20)],
)
def test_exactly_the_room_that_is_needed_is_enough(tmp_path, monkeypatch, sections, bytes_per_parameter):
    needed = PARAMETERS * bytes_per_parameter
    room(monkeypatch, needed)
    check(json(tmp_path, *sections))
    room(monkeypatch, needed - 1)
    with pytest.raises(ConfigError, match=rf"{tmp_path} has .* MB free, but this run swaps {needed / 1e6:.2f} MB"):
        check(json(tmp_path, *sections))


def test_a_machine_holds_the_share_of_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    room(monkeypatch, PARAMETERS * 20 // 4)
    check(json(tmp_path), World(rank=2, local_rank=0, size=8, local_size=2))
    with pytest.raises(ConfigError, match="free"):
        check(json(tmp_path), World(rank=4, local_rank=0, size=8, local_size=4))


@pytest.mark.parametrize("name", ["pipeline_read", "pipeline_write"])
def test_what_checkpoints_cannot_read_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match=name):
        check(json(tmp_path, "offload_optimizer", **{name: True}))


def swap_path(config: dict[str, Any], section: str = "offload_optimizer") -> Path:
    return Path(config["zero_optimization"][section]["nvme_path"])


def own(config: dict[str, Any]):
    return own_swap_folders(config, ALONE)


def test_two_runs_on_one_path_do_not_meet(tmp_path: Path):
    config = json(tmp_path)
    with own(config) as first, own(config) as second:
        assert swap_path(first) != swap_path(second)
        assert swap_path(first) == swap_path(first, "offload_param")
        assert swap_path(first).parent == swap_path(second).parent == tmp_path
        (swap_path(first) / "rank0.swp").write_bytes(bytes(10))
    assert list(tmp_path.iterdir()) == []
    assert config == json(tmp_path)


def test_the_folder_goes_when_the_run_fails(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), own(json(tmp_path)):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


TAKE_AND_WAIT = """
import sys
from storyteller_ds.engines.deepspeed.nvme.folders import own_swap_folders
from storyteller_ds.distributed.world import World
config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": sys.argv[1]}}}
with own_swap_folders(config, World(0, 0, 1, 1)) as own:
    print(own["zero_optimization"]["offload_optimizer"]["nvme_path"], flush=True)
    sys.stdin.read()
"""


def test_a_living_run_keeps_its_folder_and_a_killed_one_leaves_nothing(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", TAKE_AND_WAIT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            theirs = Path(other.stdout.readline().strip())
            (theirs / "rank0.swp").write_bytes(bytes(4_000_000))
            check(json(tmp_path, "offload_optimizer"))
            assert (theirs / "rank0.swp").exists()
        finally:
            other.kill()
            other.wait(timeout=60)
    assert theirs.is_dir()
    check(json(tmp_path, "offload_optimizer"))
    assert not theirs.exists()


def test_settings_without_which_weights_cannot_be_swapped():
    given = json(Path("/nvme"), buffer_count=3)
    zero = with_nvme_settings(given, 123_456)["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == zero["stage3_max_reuse_distance"] == 0
    assert zero["offload_param"] == {"device": "nvme", "nvme_path": "/nvme", "buffer_count": 3, "buffer_size": 123_456}
    assert given == json(Path("/nvme"), buffer_count=3)
    larger = with_nvme_settings(json(Path("/nvme"), buffer_size=1e8), 123_456)["zero_optimization"]
    assert larger["offload_param"]["buffer_size"] == 100_000_000


def test_settings_of_weights_in_memory_stay():
    given = json(Path("/nvme"), "offload_optimizer")
    assert with_nvme_settings(given, 123_456) == given
