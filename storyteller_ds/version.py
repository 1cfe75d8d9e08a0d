"""The version, where every module can import it."""

VERSION = "0.1.0"
