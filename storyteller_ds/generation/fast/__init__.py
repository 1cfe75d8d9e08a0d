"""A decode step on the CPU as one function of machine code, where numba is installed.

At batch 1 a step of a small model is a hundred products of a few microseconds each, and torch takes longer to begin one than to
compute it. step.py is the step, compiled once for all models; packed.py lays the weights out for it.
"""
