#!/bin/sh
# The main job on the built-in corpus, its report with evaluation and atlas, then three stories. Called by `make quickstart`.
#   OUT   run folder    BIN   bin folder of the environment
set -eu

# Training uses sequences of 256 tokens, as everywhere; most stories are longer and should be told to the end.
context=model.context_length=384
if "$BIN/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("deepspeed") is None)'; then
    gpus=$("$BIN/python" -c 'import torch; print(torch.cuda.device_count())')
    "$BIN/storyteller" launch --num_accelerators "$((gpus > 0 ? gpus : 2))" \
        -- --ds_config ds_configs/zero2.json --output_dir "$OUT" "$context"
else
    echo "deepspeed is not installed: training the same model on one device" >&2
    "$BIN/storyteller" train --config quickstart --output_dir "$OUT" "$context"
fi

echo "looking at what it has learned, for the report" >&2
"$BIN/storyteller" report "$OUT" --measure >/dev/null

for prompt in "Once upon a time" "One day, a little girl" "There was a small rabbit"; do
    echo
    "$BIN/storyteller" generate --checkpoint "$OUT" --prompt "$prompt" --temperature 0.6
done
