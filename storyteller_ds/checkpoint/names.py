"""Layout of a checkpoint on disk: a folder of safetensors and JSON, complete if and only if its manifest is.

step_00000100/
  weights-00000-of-00002.safetensors     canonical fp32 weights, each tensor in one of the files
  optimizer-00000-of-00002.safetensors   AdamW's moments: exp_avg/NAME and exp_avg_sq/NAME
  rng-00000-of-00002.safetensors         random streams of one rank
  trainer.json config.json tokenizer.json
  manifest.json                          written last: size and sha256 of every other file

Nothing else is read: the last step is the newest folder, and there is no pointer file.

A copy may leave out the optimizer and rng files: weights are enough to generate, and only training needs all parts.
An imported, pruned or quantized model has neither; quantized.py describes weights in 8 or 4 bits.
"""

FORMAT_VERSION = 1
CHECKPOINTS = "checkpoints"
"""Subfolder of a run folder that holds the step folders."""
MANIFEST = "manifest.json"
TRAINER = "trainer.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PARTS = ("weights", "optimizer", "rng")
"""Each rank writes a file for each part; all parts are needed to continue training."""
WEIGHTS = PARTS[:1]
"""The part that is enough to generate."""
STEP_PREFIX = "step_"


def step_folder_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"{STEP_PREFIX}{step:08d}"


def shard_name(part: str, rank: int, world_size: int) -> str:
    """Name of one rank's file of `weights`, `optimizer` or `rng`."""
    return f"{part}-{rank:05d}-of-{world_size:05d}.safetensors"
