"""Activation checkpointing: blocks save less for the backward pass and recompute the rest (Chen et al. 2016).

Results do not change, bit for bit where the device's own operations are reproducible: dropout and gating
noise are redrawn from the same random state, tokens go to the same experts, and a router's statistics are
outputs of the block in the first pass, so nothing is counted twice.
"""

import logging
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from storyteller_kernels import MATRIX_PRODUCTS
from torch.utils import checkpoint as torch_checkpoint

from storyteller_ds.config.model import ModelConfig

T = TypeVar("T")

_aten = torch.ops.aten
_ATTENTION = frozenset({
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
})  # fmt: skip
_EXCHANGES = frozenset({
    torch.ops._c10d_functional.all_to_all_single.default,
    torch.ops._c10d_functional.wait_tensor.default,
})  # fmt: skip
"""Exchanges of routed tokens and their counts with other ranks (engines/deepspeed/expert_parallel.py). DeepSpeed's own
layers, AutoEP and stock, use collectives that fill a buffer of the caller's; these cannot be kept and are repeated."""
_VARIANTS = 64
"""Most compiled variants of a model's blocks: for different layers, training and validation, and each batch shape.
torch's own limit is 8."""


class BlockRunner:
    """Runs blocks, saving for the backward pass only what model.activation_checkpointing allows.

    - none: everything that autograd saves.
    - block: only the inputs; the backward pass runs the whole block again. Least memory, a third more
      arithmetic, and under expert parallelism tokens are exchanged once more in both directions.
    - selective: the inputs and the results of all matrix products with weights, of fused attention (output
      and logsumexp) and of exchanges with other ranks, as in torchtitan; norms, rotations, activations,
      sorting of tokens and the combine step are recomputed. The router's logits are among the products, so
      it chooses from the same bits. On a GPU the router's own kernel runs again. Attention products without
      a fused kernel are recomputed, and so is fused attention with dropout: if it did not run again, it
      would not redraw its random numbers, and all later draws in the block would differ.

    Recomputation never stops early: ZeRO-3 must see the end of every submodule whose start it saw, and all
    ranks of an expert group must take part in the same exchanges.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.mode = config.activation_checkpointing
        self._compiled: Callable[..., Any] | None = None
        self._needs_compiler = True
        self.kept = [*MATRIX_PRODUCTS, *_EXCHANGES, *(_ATTENTION if config.dropout == 0 else ())]

    def compile(self, backend: str | Callable[..., Any] = "inductor", is_needed: bool = True) -> None:
        """Compile each block as a whole from now on (torch.compile), once for all blocks that are alike.

        Args:
            backend: backend of torch.compile.
            is_needed: raise if compilation fails; otherwise warn and run blocks as before.
        """
        self._needs_compiler = is_needed
        # It warns about in-place operations under selective checkpointing; blocks have none.
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
        # torch attaches compiled code to a code object. Each model gets its own, so that successive models in a process
        # do not use up one recompilation limit, and a model's compiled code is freed with it.
        shared = BlockRunner._run
        own = types.FunctionType(shared.__code__.replace(), shared.__globals__, shared.__name__)
        self._compiled = torch.compile(types.MethodType(own, self), fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, block: Callable[..., T], *inputs: Any) -> T:
        """Return block(*inputs), which may depend only on the inputs, the parameters and the random state."""
        if self._compiled is None:
            return self._run(block, *inputs)
        # Under expert parallelism the host reads counts, which become tensor sizes.
        try:
            with torch._dynamo.config.patch(capture_scalar_outputs=True, recompile_limit=_VARIANTS):
                result: T = self._compiled(block, *inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            if self._needs_compiler:
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"blocks are not compiled, which is slower: {reason}", RuntimeWarning, stacklevel=2)
            self._compiled = None
            return self._run(block, *inputs)
        return result

    def _run(self, block: Callable[..., T], *inputs: Any) -> T:
        if self.mode == "none" or not torch.is_grad_enabled():
            return block(*inputs)
        again = partial(torch_checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=True, early_stop=False)
        if self.mode == "block":
            result: T = again(block, *inputs)
        else:
            contexts = partial(torch_checkpoint.create_selective_checkpoint_contexts, self.kept)
            result = again(block, *inputs, context_fn=contexts)
        return result
