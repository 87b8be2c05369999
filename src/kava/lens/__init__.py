"""Looks into a student's latents: nearest tokens, the answer's attention, the diagonal, what each slot is worth.

from kava import lens
report = lens.look("outputs/first/best_checkpoint", ["3+4*2-1?", "2*4+1?"])
print(report.questions[0].rounds[-1].says[0][0].token)
"""

from kava.lens.look import look
from kava.lens.records import LensReport

__all__ = ["LensReport", "look"]
