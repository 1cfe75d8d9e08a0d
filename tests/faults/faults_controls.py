"""Negative controls: if a resume leaves something out, the bit-for-bit comparison must fail."""

from .case import PAIR, Case, differences
from .registry import fault

NOTICED = "negative control: the comparison with the undisturbed run fails"


for _left_out, _injection in (
    ("the random streams", "without_rng"),
    ("AdamW's moments", "without_moments"),
    ("the data cursor", "without_cursor"),
):

    @fault(f"a resume that leaves out {_left_out}", NOTICED, quick=_injection == "without_rng")
    def _(case: Case, injection: str = _injection) -> None:
        case.copy_of_undisturbed(PAIR, 4)
        run = case.train(PAIR, faults=[{"do": injection}])
        assert run.code == 0, run.stderr
        different = differences(case.run_folder, case.undisturbed(PAIR))
        assert "head" in different or "embed" in different, f"only these differ: {different}"
        assert "metrics.jsonl" in different
        case.saw("weights and losses differ")


@fault("a resume that leaves out nothing", "the comparison holds, bit for bit")
def _(case: Case) -> None:
    case.copy_of_undisturbed(PAIR, 4)
    case.continues_exactly(PAIR)
