"""Importing this module registers all faults, in the order of the table in docs/reliability.md."""

# ruff: noqa: F401, I001  # imported for what they register, in this order

from . import faults_kills
from . import faults_signals
from . import faults_console
from . import faults_preparing
from . import faults_disk
from . import faults_memory
from . import faults_numbers
from . import faults_topology
from . import faults_files
from . import faults_hostile
from . import faults_controls
from .registry import FAULTS as FAULTS
