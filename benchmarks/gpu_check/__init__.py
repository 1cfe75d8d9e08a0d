"""What one CUDA card does with this project: launch/gpu_check.sh.

Each part is a process of its own with a time limit, and writes its record as it ends, so that one that fails or hangs
costs the others nothing:

    environment   what is installed, and how fast the card multiplies and copies
    tests         the tests marked `gpu`
    parity        one training step against the CPU in fp64
    presets       one training step of every preset
    certify       the rows of `storyteller certify` that fit one card
    kernels       our operations against their peers
    training      a real run of two presets, with a profile of three steps of each
    decoding      tokens a second of the model that was trained
"""
