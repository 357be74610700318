"""What the benchmarks read of a kernel's schedule: which of its parts a grid step may leave out."""

import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
# Units: eleven columns, the first the matrix unit's; the first row says how many slots a bundle has.
UTILIZATION = "4 1 1 1 1 1 1 1 1 1 1\n" + "2 0 0 0 0 0 0 0 0 0 0\n" * 48
# A loop from 4 on: at 8 a branch over the beginning to 16, at 16 one over the work to 32, at 32 one over the end to 40.
BUNDLES = """
     0   :  { %s1 = smov.u32 0 }
   0x4 LB: > { %s2 = sphi %s1 }
   0x8   : > { %9 = sbr.rel (%p1) target = $region5 }
  0x10 PF: > { %s3 = smov.u32 1 } /* Start/End empty region 5 :: Start region 6 */
  0x11   : > { %10 = sbr.rel (%p2) target = $region9 }
  0x20 PF: > { %s4 = smov.u32 1 } /* Start/End empty region 9 */
  0x21   : > { %11 = sbr.rel (%p3) target = $region12 }
  0x28 PF: > { %s5 = smov.u32 1 } /* Start/End empty region 12 */
  0x30   : > { %12 = sbr.rel (!%p4) target = $region2 }
"""


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "tpu_schedule", raising=False)
    import tpu_schedule

    utilization, bundles = tmp_path / "utilization.txt", tmp_path / "bundles.txt"
    utilization.write_text(UTILIZATION)
    bundles.write_text(BUNDLES)
    return tpu_schedule._read(utilization, bundles)


def test_beginning_and_end_are_what_is_jumped_over_and_the_work_is_not(kernel):
    assert kernel.bundles == 48 and kernel.entry == 4 and kernel.matrix_share() == 0.5
    assert kernel.jumps == [(8, 16), (17, 32), (33, 40)]
    assert kernel.ends() == [(8, 16), (33, 40)]  # the largest, from 17 to 32, is a step's work


def test_what_is_skipped_together(kernel):
    assert kernel.skipped_with((33, 40), running=(17, 32)) == [(33, 40)]
    assert kernel.skipped_with((32, 33), running=(17, 32)) == []  # every step runs it
