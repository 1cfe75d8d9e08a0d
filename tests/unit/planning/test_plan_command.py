"""storyteller plan: what it prints, and that the commands it suggests can be run."""

import json
import shlex

import pytest
import torch
from click.testing import CliRunner

from storyteller_ds.certify.traffic import routed_bytes
from storyteller_ds.cli.plan import plan
from storyteller_ds.config import load_config
from storyteller_ds.config.deepspeed import OURS
from storyteller_ds.config.files import preset_names, preset_summary
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.errors import ConfigError, UserError
from storyteller_ds.planning import here
from storyteller_ds.planning.devices import DEVICES, GB, published
from storyteller_ds.planning.estimate import Ranks
from storyteller_ds.planning.speed import PRODUCTS
from storyteller_ds.planning.strategies import SCALES, Asked, recommended, rows


def planned(*arguments):
    result = CliRunner().invoke(plan, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_has_an_estimate_on_every_device(preset, device):
    estimate = Asked(preset, (), published(device), Ranks(1, 1)).estimate(None)
    assert 0 < estimate.speed.mfu < 1
    assert estimate.needed > 16 * sum(group.numel for group in estimate.groups) * 0.7
    assert estimate.largest_micro_batch >= 1


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_passes_and_fits_a_card(preset):
    found = planned("--config", preset, "--device", "rtx4090-24")
    assert found["memory"]["fits"]
    assert found["recommended"] == "none"  # one card: nothing to share, nothing to offload
    assert shlex.split(found["command"])[:4] == ["storyteller", "train", "--config", preset]
    weights = 4 * preset_summary(preset).parameters
    assert found["memory"]["parts"]["parameters"] == weights
    assert found["parameters"] == preset_summary(preset).parameters
    assert 2 * weights <= found["checkpoint_bytes"] <= 3 * weights


def test_this_machine_is_planned_for_by_what_training_would_use(monkeypatch, tmp_path):
    record = {
        "products_flop_per_s": {"fp32": 1e11},
        "copy_byte_per_s": 1e10,
        "launch_s": 1e-6,
        "messages_byte_per_s": {"all_reduce": 2e9, "all_to_all": 1e9},
    }
    monkeypatch.setattr(here, "recorded", lambda device: record if device.type == "cpu" else None)
    by_default, named = planned("--config", "tiny_test"), planned("--config", "tiny_test", "--device", "cpu")
    assert by_default["device"] == named["device"] == "cpu"
    assert "measured on this machine" in by_default["rates"]
    with pytest.raises(UserError, match="this machine has only: cpu"):
        here.this_machine("mps", print)


def test_a_card_of_this_machine_is_planned_for_by_its_record(monkeypatch):
    record = {
        "products_flop_per_s": {"fp32": 6e13, "fp16": 9e14, "bf16": 8e14},
        "copy_byte_per_s": 3e12,
        "launch_s": 4e-6,
        "messages_byte_per_s": {},
    }
    monkeypatch.setattr(here, "pick_device", lambda name, rank, option: torch.device("cuda"))
    monkeypatch.setattr(here, "recorded", lambda device: record)
    monkeypatch.setattr(here, "_memory", lambda device: 80 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    card = here.this_machine("here", print)
    assert (card.name, card.kind, card.dtype, card.per_machine) == ("A Card", "cuda", "bf16", 1)
    estimate = Asked("moe_model", (), card, Ranks(1, 1)).estimate(None)
    published_card = Asked("moe_model", (), published("h100-80"), Ranks(1, 1)).estimate(None)
    assert estimate.needed == published_card.needed
    by_rates = PRODUCTS * 989.5e12 / 8e14  # measured rates count in full, published ones in part
    assert estimate.speed.products_s / published_card.speed.products_s == pytest.approx(by_rates)


def test_every_json_has_a_row_and_one_is_recommended():
    found = planned("--config", "moe_model", "--device", "h100-80", "--gpus", "4")
    assert {row["name"] for row in found["strategies"]} == {path.stem for path in OURS.glob("*.json")}
    assert found["recommended"] in {row["name"] for row in found["strategies"] if row["fits"]}
    sizes = {row["estimate"]["ep_size"] for row in found["strategies"] if row["name"] == "zero2"}
    assert sizes == {1, 2, 4}


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_command_is_one_that_loads(gpus):
    words = shlex.split(planned("--config", "tiny_test", "--device", "t4-16", "--gpus", str(gpus), "seed=3")["command"])
    assert words[:2] == (["storyteller", "train"] if gpus == 1 else ["storyteller", "launch"])
    typed = words[2:] if gpus == 1 else words[words.index("--") + 1 :]
    options = dict(zip(typed[0:4:2], typed[1:4:2], strict=False))
    settings = [word for word in typed if "=" in word]
    loaded = load_config(options["--config"], settings, ds_config=options.get("--ds_config"), ranks=gpus)
    assert loaded.run.seed == 3
    assert make_plan(loaded.run, gpus, loaded).world_size == gpus


def test_what_does_not_fit_says_what_to_lower():
    large = ("train.global_batch_size=4096", "train.micro_batch_size=4096")
    result = CliRunner().invoke(plan, ["--config", "moe_model", "--device", "t4-16", "--ds_config", "zero0", *large])
    assert "does not fit; lower what it needs" in result.stdout
    assert "train.micro_batch_size=2048 (now 4096)" in result.stdout


def test_where_a_smaller_micro_batch_fits_the_command_has_it():
    found = planned("--config", "moe_model", "--device", "t4-16", "train.micro_batch_size=128")
    fitting = next(row for row in found["strategies"] if row["name"] == found["recommended"])
    assert any(setting in found["command"] for setting in fitting["settings"] if "micro_batch" in setting)
    assert found["memory"]["needed"] <= found["memory"]["available"]


def test_why_a_strategy_cannot_run_stands_once_below_the_table():
    arguments = ["--config", "moe_model", "--device", "h100-80", "--gpus", "2", "parallel.strategy=stock"]
    printed = CliRunner().invoke(plan, arguments, catch_exceptions=False).stdout
    found = planned(*arguments)["strategies"]
    reasons = {row["obstacle"] for row in found if row["obstacle"]}
    assert reasons
    for reason in reasons:
        (line,) = [line for line in printed.splitlines() if reason in line]
        assert all(row["name"] in line for row in found if row["obstacle"] == reason)


def test_a_batch_that_no_strategy_can_divide_is_refused_for_that_reason():
    with pytest.raises(ConfigError, match=r"cannot be split over .* x 3 rank\(s\)"):
        planned("--config", "moe_model", "--device", "h100-80", "--gpus", "3")


@pytest.mark.parametrize("price", ["nan", "inf"])
def test_a_price_is_a_number(price):
    result = CliRunner().invoke(plan, ["--device", "t4-16", "--price_per_hour", price])
    assert isinstance(result.exception, UserError)


def test_an_unknown_device_is_named_with_the_nearest():
    with pytest.raises(UserError, match="h100-80"):
        published("h100")


def test_the_cost_is_hours_times_price_times_devices():
    found = planned("--config", "moe_model", "--device", "a100-80", "--gpus", "2", "--price_per_hour", "3")
    assert found["cost"] == pytest.approx(found["hours"] * 3 * 2)


def test_the_scale_table_goes_to_4096_devices():
    found = planned("--config", "moe_model", "--device", "h100-80", "--scale")
    assert [each.get("ranks", each.get("devices")) for each in found["scale"]] == [*SCALES]
    speeds = [each["speed"]["tokens_per_s"] for each in found["scale"] if "speed" in each]
    assert speeds == sorted(speeds)


def test_all_to_all_carries_what_routing_has_to_move():
    asked = Asked("quickstart", ("precision.dtype=fp32",), published("h100-80"), Ranks(1, 2))
    estimate = asked.estimate("zero2")
    assert 2 * estimate.messages.sent["all-to-all"] == routed_bytes(estimate.run, 1)


def test_a_ring_sends_twice_for_a_reduction():
    estimate = Asked("quickstart", (), published("h100-80"), Ranks(1, 4)).estimate("zero1")
    messages = estimate.messages
    assert messages.on_the_wire("all-reduce") == 2 * 3 / 4 * messages.sent["all-reduce"]
    assert messages.on_the_wire("all-gather") == 3 / 4 * messages.sent["all-gather"]


def test_one_device_sends_nothing():
    estimate = Asked("quickstart", (), published("h100-80"), Ranks(1, 1)).estimate("zero2")
    assert not any(estimate.messages.sent.values())


def test_fp16_and_a_disk_are_not_recommended_unasked():
    found = rows(Asked("fast_train", (), published("rtx4090-24"), Ranks(1, 2)))
    best = recommended(found)
    assert best is not None
    assert not best.is_special
    assert not best.is_roundabout


def test_an_offload_is_recommended_where_nothing_else_fits():
    # A billion parameters: 16 GB of fp32 weights, gradients and moments.
    settings = ("model.num_layers=24", "precision.dtype=bf16", "optimizer.kind=adamw", "train.micro_batch_size=1")
    best = recommended(rows(Asked("moe_model", settings, published("t4-16"), Ranks(1, 1))))
    assert best is not None
    assert best.is_roundabout


def test_a_checkpoint_has_weights_and_moments_of_all_experts():
    estimate = Asked("moe_model", ("optimizer.kind=adamw",), published("h100-80"), Ranks(1, 8)).estimate("zero2")
    total = 3 * 4 * 510_636_288
    assert estimate.checkpoint_bytes == pytest.approx(total, rel=1e-3)


def test_tables_have_the_parts_and_the_assumptions():
    result = CliRunner().invoke(plan, ["--config", "moe_model", "--device", "h100-80", "--gpus", "2"])
    for words in ("optimizer state", "needed, most", "assumed: products at", "rates: NVIDIA H100", "recommended:"):
        assert words in result.stdout
