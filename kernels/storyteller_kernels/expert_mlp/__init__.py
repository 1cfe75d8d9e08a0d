"""The experts themselves: one small feed-forward network each, over contiguous rows."""

from storyteller_kernels.expert_mlp.reference import Activation, activate, expert_mlp

__all__ = ["Activation", "activate", "expert_mlp"]
