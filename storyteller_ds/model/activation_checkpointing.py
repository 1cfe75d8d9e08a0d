"""Blocks that keep less for the backward pass and compute the rest again (Chen et al. 2016).

The same numbers come out, bit for bit where the device's own operations are reproducible: dropout and
gating noise are drawn from the same random state again, tokens go to the same experts, and a router's
statistics are those of the first pass, which are the outputs of the block, so nothing is counted twice.
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
"""Routed tokens from and to other ranks, and their counts (engines/deepspeed/expert_parallel.py). A collective that
fills a buffer of the caller's cannot be kept and is repeated: so DeepSpeed's own layers, AutoEP and stock, exchange
tokens."""
_VARIANTS = 64
"""Most of one model's blocks: of layers that differ, in training and validation, with each shape of a batch. torch's
own limit is 8."""


class BlockRunner:
    """Runs blocks so that they keep for the backward pass what model.activation_checkpointing allows.

    - none: everything that autograd keeps.
    - block: the inputs only; the backward pass runs the whole block again. Least memory, a third more
      arithmetic, and under expert parallelism tokens are exchanged once more there and back.
    - selective: the inputs, the results of all matrix products with weights, of fused attention (output and
      logsumexp), and of exchanges with other ranks, as torchtitan does; norms, rotations, activations, the
      sorting of tokens and the combination are computed again. The router's logits are among the products,
      so its choice is taken from the same bits. On a GPU the router's own kernel is computed again.
      Products of attention without a fused kernel are computed again, and so is fused attention with dropout:
      what is not run again does not draw its random numbers again, and all later draws of the block would be
      others.

    The recomputation is never stopped early: ZeRO-3 has to see the end of every submodule that it saw the
    start of, and all ranks of an expert group have to join in the same exchanges.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.mode = config.activation_checkpointing
        self._compiled: Callable[..., Any] | None = None
        self._needs_compiler = True
        self.kept = [*MATRIX_PRODUCTS, *_EXCHANGES, *(_ATTENTION if config.dropout == 0 else ())]

    def compile(self, backend: str | Callable[..., Any] = "inductor", is_needed: bool = True) -> None:
        """Compile blocks from now on, each as a whole (torch.compile), once for all that are alike.

        Args:
            backend: of torch.compile.
            is_needed: a failure is raised; else warned of, and blocks run as before.
        """
        self._needs_compiler = is_needed
        # It warns of in-place operations under selective checkpointing, of which blocks have none.
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
        # What torch has compiled belongs to a code object. One for each model, so that the models of a process, one
        # after the other, do not use up one limit, and what was compiled for a model goes with it.
        shared = BlockRunner._run
        own = types.FunctionType(shared.__code__.replace(), shared.__globals__, shared.__name__)
        self._compiled = torch.compile(types.MethodType(own, self), fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, block: Callable[..., T], *inputs: Any) -> T:
        """block(*inputs); its outputs may depend on these, on parameters and on the random state only."""
        if self._compiled is None:
            return self._run(block, *inputs)
        # Under expert parallelism the host asks for counts, which become sizes of tensors.
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
