"""Devices, ranks, and the engines that train on them."""
