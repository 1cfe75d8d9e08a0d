"""Every fault of the registry: see docs/reliability.md, and `make test-faults`."""

import sys
from collections.abc import Callable

import pytest

from . import all_faults
from .case import Case
from .registry import Fault

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and /proc are those of Linux"),
    pytest.mark.timeout(900),  # some train a dozen times
]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=() if fault.quick else pytest.mark.faults)
        for fault in all_faults.FAULTS
    ],
)
def test_fault(fault: Fault, case: Case, record_property: Callable[[str, object], None]):
    record_property("fault", fault.name)
    record_property("promised", fault.promise)
    fault.function(case)
