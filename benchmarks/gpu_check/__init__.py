"""Checks and measures this project on one CUDA GPU: launch/gpu_check.sh.

Each part is a separate process with a time limit and writes its record when it ends, so that a part that fails or hangs
does not affect the others:

    environment   what is installed, and how fast the GPU multiplies and copies
    tests         the tests marked `gpu`
    parity        one training step against the CPU in fp64
    presets       two training steps of every preset
    certify       the rows of `storyteller certify` that fit one GPU
    kernels       our operations against their peers
    training      a real run of two presets, with a profile of three steps of each
    decoding      tokens per second of the trained models
"""
