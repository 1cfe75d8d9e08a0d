#!/bin/sh
# The main job on the built-in corpus, then three stories. Called by `make quickstart`.
#   OUT   run folder    BIN   bin folder of the environment    PORT   a free port
set -eu

if "$BIN/python" -c 'import deepspeed' >/dev/null 2>&1; then
    "$BIN/deepspeed" --quiet --num_accelerators 2 --master_port "$PORT" \
        launch/train.py --ds_config ds_configs/zero2.json --output_dir "$OUT"
else
    echo "deepspeed is not installed: training the same model on one device" >&2
    "$BIN/storyteller" train --config quickstart --output_dir "$OUT"
fi

for prompt in "Once upon a time" "One day, a little girl" "There was a small rabbit"; do
    echo
    "$BIN/storyteller" generate --checkpoint "$OUT" --prompt "$prompt" --temperature 0.6
done
