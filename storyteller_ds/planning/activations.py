"""What the forward pass keeps for the backward pass, and what either holds temporarily (bytes of one rank).

Counted from the code of model/ and kernels/: every line below is a tensor that an operation saves. A tensor that two
operations save counts once. Expert loads are assumed to be balanced, as the balance loss makes them.
"""

from dataclasses import dataclass
from functools import cached_property

from storyteller_kernels.cpu_products import onednn_is_faster
from storyteller_kernels.cross_entropy.autograd import MIN_CHUNK

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.model.feed_forward import up_width

_ONEDNN_COPIES = 4
"""Copies of a weight's gradient: in the shape that a convolution asks for, its result, and two memory layouts inside it
(kernels/storyteller_kernels/cpu_products.py)."""


@dataclass(frozen=True)
class Activations:
    """Activations of one micro-batch.

    Args:
        run: the run config.
        plan: shares of the batch and of the experts.
        device: cpu, cuda or mps.
        size: bytes per element in the run's number format.
        cast: whether weights are cast where they are used, and the copies kept.
    """

    run: RunConfig
    plan: ParallelPlan
    device: str
    size: int
    cast: bool

    @cached_property
    def tokens(self) -> int:
        """T, the tokens of a micro-batch."""
        return self.plan.micro_batch_size * self.run.data.sequence_length

    @property
    def _width(self) -> int:
        """Bytes of a [T, D] tensor."""
        return self.tokens * self.run.model.hidden_size * self.size

    @property
    def _has_kernels(self) -> bool:
        """Whether norms and routing use Triton kernels."""
        return self.device == "cuda"

    @property
    def _copies(self) -> int:
        """Copies of a weight's gradient while it is computed."""
        return _ONEDNN_COPIES if self.device == "cpu" and self.size == 4 and onednn_is_faster() else 0

    def _norm(self, width: int | None = None) -> int:
        """What a norm saves besides its input and output."""
        model = self.run.model
        values = self.tokens * (model.hidden_size if width is None else width)
        if self.run.model.norm == "layernorm" and width is None:
            return 2 * 4 * self.tokens
        if self._has_kernels:
            return 4 * self.tokens
        # fp32 keeps the normalized values before the gain; other formats also keep an fp32 copy of the input.
        return self.size * values + (0 if self.size == 4 else 4 * values)

    def _attention(self) -> int:
        model, e, T = self.run.model, self.size, self.tokens
        kv = model.kv_heads * model.head_dim
        qkv = T * (model.hidden_size + 2 * kv) * e
        # Input and output of attention. The output has the memory layout of the queries: by tokens, or by heads if a
        # norm wrote them, and then it is copied for the output projection.
        total = qkv + self._width * (2 if model.qk_norm else 1)
        if model.qk_norm:
            total += self._norm(model.hidden_size) + self._norm(kv)
            total += T * (model.hidden_size + kv) * e if model.position == "rope" else 0
        total += T * model.num_heads * 4  # logsumexp
        if model.dropout and self.device == "cpu":
            # No fused kernel: the attention weights before and after dropout, and its mask.
            total += T * self.run.data.sequence_length * model.num_heads * (3 * e)
        return total

    def _feed_forward(self) -> int:
        model, T = self.run.model, self.tokens
        widths = {"swiglu": 4, "gelu": 2, "relu": 1, "relu2": 2}
        return T * widths[model.activation] * model.intermediate_size * self.size

    def _experts(self) -> int:
        model, moe, e, T = self.run.model, self.run.moe, self.size, self.tokens
        rows = T * moe.top_k
        router = T * moe.num_experts * (4 if self._has_kernels else 4 + 4 + 4 + 8)  # probabilities; logits, two sorts
        choices = rows * (8 + 8 + 8 + 4)  # expert, row and token of each choice, and its weight
        in_order = rows * model.hidden_size * e
        hidden = rows * up_width(model) * e
        if self.device != "cpu" or e != 4:
            hidden += 0 if model.activation == "swiglu" and self._has_kernels else rows * model.intermediate_size * e
        out = rows * model.hidden_size * e
        copied = 0 if self._has_kernels or e == 4 else 4 * T * model.hidden_size  # for the router
        exchange = 2 * 8 * rows if self.plan.ep_size > 1 else 0
        return router + choices + in_order + hidden + out + copied + exchange

    def _is_moe(self, block: int) -> bool:
        return self.run.moe.is_moe_layer(block)

    def saved(self, block: int) -> int:
        """Everything that a block saves without checkpointing."""
        model = self.run.model
        streams = 3 if model.residual_scales else 2
        total = streams * self._width + 2 * self._norm() + 2 * self._width + self._attention()
        total += self._experts() if self._is_moe(block) else self._feed_forward()
        if model.has_value_embedding(block):
            total += self.tokens * model.kv_heads * (model.head_dim + 2) * self.size
        if model.dropout:
            total += 2 * self.tokens * model.hidden_size
        return total + (self.weights_of(block) if self.cast and self.size != 4 else 0)

    def weights_of(self, block: int) -> int:
        """Copies of a block's matrices in the run's number format."""
        model, share = self.run.model, self.plan.ep_size
        kv = model.kv_heads * model.head_dim
        attention = model.hidden_size * (2 * model.hidden_size + 2 * kv)
        one = model.hidden_size * (up_width(model) + model.intermediate_size)
        feed_forward = one * self.run.moe.num_experts // share if self._is_moe(block) else one
        return (attention + feed_forward) * self.size

    def kept(self, block: int) -> int:
        """What a block keeps under model.activation_checkpointing."""
        model, T = self.run.model, self.tokens
        mode = model.activation_checkpointing
        if mode == "none":
            return self.saved(block)
        # The router's statistics are outputs of the block.
        inputs = self._width + (
            T * (self.run.moe.num_experts * 4 + self.run.moe.top_k * 8) if self._is_moe(block) else 0
        )
        if mode == "block":
            return inputs
        kv = model.kv_heads * model.head_dim
        attention = T * (2 * model.hidden_size + 2 * kv) * self.size + self._width + T * model.num_heads * 4
        rows = T * (self.run.moe.top_k if self._is_moe(block) else 1)
        return inputs + attention + rows * (up_width(model) + model.hidden_size) * self.size

    def again(self, block: int) -> int:
        """What the backward pass of a block recomputes first."""
        return self.saved(block) - self.kept(block) if self.run.model.activation_checkpointing != "none" else 0

    def backward(self, block: int) -> int:
        """What the backward pass of a block holds temporarily, on top of what was kept."""
        model, moe, e, T = self.run.model, self.run.moe, self.size, self.tokens
        one = model.hidden_size * model.intermediate_size
        if not self._is_moe(block):
            wide = 2 if model.activation == "swiglu" else 1
            acts = T * model.intermediate_size * e
            down = acts + self._copies * one * e
            return 2 * self._width + max(wide * acts, down)
        rows = T * moe.top_k * model.hidden_size * e
        an_expert = (
            T * moe.top_k // moe.num_experts * 2 * up_width(model) * e
            + self._copies * up_width(model) // (model.intermediate_size) * one * e
        )
        if self._has_kernels:
            an_expert = T * moe.top_k * (up_width(model) + model.intermediate_size) * e
        return self._width + max(2 * rows, rows + an_expert)

    def base(self) -> int:
        """What all blocks share: tokens, targets, rotary embeddings, the document mask."""
        run = self.run
        rotary = 2 * run.data.sequence_length * run.model.head_dim * 4 if run.model.position == "rope" else 0
        mask = self.tokens * run.data.sequence_length if run.data.document_mask else 0
        return 2 * 8 * self.tokens + rotary + mask

    def loss_kept(self) -> int:
        """Kept from the loss to its backward pass: the last norm, and the gradients of its output and the weights."""
        head = self.run.tokenizer.vocab_size * self.run.model.hidden_size * 4
        return self._width + self._norm() + 2 * self._width + head

    def loss(self) -> int:
        """What the loss holds temporarily: the logits of a chunk, and copies of the weights' gradient."""
        run = self.run
        vocabulary, width = run.tokenizer.vocab_size, run.model.hidden_size
        chunk = min(self.tokens, max(MIN_CHUNK, self.tokens * width // vocabulary))
        logits = chunk * vocabulary * (2 * self.size if self._has_kernels else self.size + 4)
        logits += chunk * vocabulary * 4 if run.model.logit_softcap and not self._has_kernels else 0
        copies = self._copies * 4 if self.size == 4 else 2 * self.size
        return logits + chunk * width * self.size + vocabulary * width * copies
