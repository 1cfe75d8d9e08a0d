"""A decoder that has shapes but no data."""

import subprocess
import sys

import pytest

from storyteller_ds.config.load import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.decoder import Decoder, empty_decoder


@pytest.mark.parametrize("preset", ["tiny_test", "storyllm"])
def test_names_and_shapes_are_those_of_the_decoder(preset):
    small = ["model.hidden_size=48", "model.intermediate_size=32", "tokenizer.vocab_size=300"]
    run: RunConfig = load_config(preset, overrides=small).run

    def shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}

    empty = empty_decoder(run)
    assert shapes(empty) == shapes(Decoder(run))
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_torch_loads_no_compiler_for_it():
    code = (
        "import sys; from storyteller_ds.config.load import load_config; "
        "from storyteller_ds.model.decoder import empty_decoder; "
        "empty_decoder(load_config('gpt2_small').run); empty_decoder(load_config('base_model').run); "
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
