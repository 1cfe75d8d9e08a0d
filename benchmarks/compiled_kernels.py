"""What torch.compile makes of a block: python -m benchmarks.compiled_kernels PRESET...

Counts the operators that a block runs forward and backward in bf16, and the calls in the code that the compiler
generates for it: fused loops, and what it leaves to libraries (products, attention, experts). The code is for a CPU:
loops are fused by the same rules as on a GPU, but one function may contain several.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.utils import run_and_get_code

import storyteller_ds as st
from storyteller_ds.bench.roofline import Operators
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters

TOKENS = 64
FUSED = re.compile(r"^\s+(?:cpp_fused\w*|\w+\.run)\(", re.MULTILINE)
LEFT_TO_LIBRARIES = re.compile(r"^\s+(?:\w+ = )?(?:extern_kernels|torch\.ops)\.[\w.]+\(", re.MULTILINE)


def main() -> None:
    """Print a row for each preset."""
    print("| preset | operators of a block | calls when compiled | of which fused loops |\n|---|---|---|---|")
    for preset in sys.argv[1:]:
        step, block = _a_block(st.load_config(preset).run)
        eager = Operators()
        with eager:
            step(block)
        _, codes = run_and_get_code(step, torch.compile(block, fullgraph=True))
        fused = sum(len(FUSED.findall(code)) for code in codes)
        others = sum(len(LEFT_TO_LIBRARIES.findall(code)) for code in codes)
        print(f"| `{preset}` | {eager.number} | {fused + others} | {fused} |", flush=True)


def _a_block(run: st.RunConfig) -> tuple[Callable[[Any], None], torch.nn.Module]:
    """The second block of a model, and a function that runs it forward and backward."""
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 0)
    decoder.dtype = torch.bfloat16
    x_BSD = torch.randn(1, TOKENS, run.model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    first_BSD, token_BS = torch.randn_like(x_BSD), torch.randint(run.tokenizer.vocab_size, (1, TOKENS))
    rotary = None if decoder.rotary is None else decoder.rotary(torch.arange(TOKENS))

    def step(block: Any) -> None:
        out_BSD, stats = block(first_BSD, x_BSD, token_BS, rotary, None, None)
        loss = out_BSD.float().sum()
        (loss if stats is None else loss + stats.prob_sum_E.square().sum() + stats.z_sum).backward()

    return step, decoder.blocks[1]


if __name__ == "__main__":
    main()
