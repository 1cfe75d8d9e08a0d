"""How fast the models from the part `training` tell stories, and how fast with torch's operators one by one."""

import time
from typing import Any

import storyteller_ds as st
from benchmarks.gpu_check.part import Options, run_part
from storyteller_ds.generation.decode import generate_ids, prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig

TOKENS, QUICK_TOKENS = 256, 32


def measure(options: Options) -> dict[str, Any]:
    """Tokens per second of each model, one story at a time."""
    found: dict[str, Any] = {}
    for folder in sorted((options.out / "runs").iterdir()):
        model = st.load(folder, device=options.device.type)
        wanted = QUICK_TOKENS if options.quick else TOKENS
        config = SamplingConfig(seed=1, max_new_tokens=wanted)
        prompt = prompt_ids(model.tokenizer, "Once upon a time")
        found[folder.name] = {"dtype": str(model.decoder.embedding.weight.dtype)}
        for name, stepper in (("tokens_per_s", model.stepper), ("torch_tokens_per_s", None)):
            for _ in range(2):  # the first time compiles
                began = time.perf_counter()
                ids = list(generate_ids(model.decoder, model.run, prompt, config, None, stepper=stepper))
                seconds = time.perf_counter() - began
            found[folder.name] |= {"tokens": len(ids), name: len(ids) / seconds}
    return found


if __name__ == "__main__":
    run_part("decoding", measure)
