"""The DeepSpeed engine: every ZeRO stage, expert parallelism, AutoEP, NVMe."""
