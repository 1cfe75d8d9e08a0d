"""How long a token takes with weights in fp32, 8 and 4 bits: python -m benchmarks.quantized

Times the decode step in machine code on the CPU, for single tokens with all three in turn, of a mixture with random
weights too large for any last-level cache. The machine should be idle; OMP_NUM_THREADS sets the number of threads.
Prints the median and the quartiles of the time, and how many bytes of weights a token reads.
"""

import statistics
import time

import torch

from storyteller_ds.checkpoint.quantized import stored_bytes
from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.fast.packed import PackedDecoder
from storyteller_ds.machine import machine
from storyteller_ds.model.canonical import is_embedding, is_expert, placed_parameters
from storyteller_ds.model.counts import count_parameters
from storyteller_ds.model.decoder import Decoder, empty_decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.quantized import bits_of, fill, hold_quantized, quantize

ROUNDS, CONTEXT = 120, 256
KINDS = {"fp32": None, "8 bits": 8, "4 bits": 4}
RUN = RunConfig.model_validate(
    {
        "model": {
            "hidden_size": 768,
            "num_layers": 8,
            "num_heads": 12,
            "intermediate_size": 1024,
            "tie_embeddings": False,
        },
        "moe": {"num_experts": 8, "top_k": 2},
        "data": {"sequence_length": CONTEXT},
        "tokenizer": {"vocab_size": 8192},
    }
)


def main() -> None:
    """Measure and print."""
    decoders = models()
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {kind: [] for kind in decoders}
    for decoder in decoders.values():
        decoder.begin([0], CONTEXT)
        decoder.step(0)
    for number in range(ROUNDS):
        token = int(torch.randint(RUN.tokenizer.vocab_size, (), generator=generator))
        order = list(decoders)[number % 3 :] + list(decoders)[: number % 3]
        for kind in order:
            began = time.perf_counter()
            decoders[kind].step(token)
            times[kind].append(1000 * (time.perf_counter() - began))
    count = count_parameters(RUN)
    print(f"{count.total / 1e6:.0f}M parameters, {count.active / 1e6:.0f}M active; {machine()}\n")
    print("| weights | MB a token | ms a token | quartiles | of fp32 |\n|---|---|---|---|---|")
    for kind, taken in times.items():
        lower, middle, upper = statistics.quantiles(taken, n=4)
        speed = statistics.median(times["fp32"]) / middle
        read = read_bytes(KINDS[kind]) / 1e6
        print(f"| {kind} | {read:.0f} | {middle:.2f} | {lower:.2f} to {upper:.2f} | {speed:.2f} |")


def models() -> dict[str, PackedDecoder]:
    """The same weights in all three formats."""
    plain = Decoder(RUN).eval()
    init_parameters(plain, RUN.model, 0)
    weights = {name: parameter.detach() for name, parameter, *_ in placed_parameters(plain)}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    made = {}
    for kind, bits in KINDS.items():
        decoder = empty_decoder(RUN).eval()
        chosen = bits_of(shapes, bits) if bits else {}
        hold_quantized(decoder, chosen)
        decoder.to_empty(device="cpu")
        for name, weight in weights.items():
            fill(decoder, name, quantize(weight, chosen[name]) if name in chosen else weight)
        made[kind] = PackedDecoder(decoder, RUN)
    return made


def read_bytes(bits: int | None) -> int:
    """Bytes of weights that a token reads: only the experts that it is sent to, and one row of each table."""
    shapes = {}
    for name, parameter, *_ in placed_parameters(empty_decoder(RUN)):
        rows = RUN.moe.top_k if is_expert(name) else 1 if is_embedding(name) else len(parameter)
        shapes[name] = (rows, *parameter.shape[1:])
    return stored_bytes(shapes, bits)


if __name__ == "__main__":
    main()
