"""A tiny student with answers of several words, for tests of the server."""

from __future__ import annotations

from pathlib import Path

import torch

from hub import tiny_student
from kava.backbone.artifact import write_student
from kava.infer.student import Student

QUESTIONS = ["3+4*2?", "-3+4?", "--5-3?", "How many?", "1", "9*9*9*9-8+7?", "What is two and two and two and two?"]


def lively_student(folder: Path) -> Student:
    """A student whose weights are larger than the usual start, in float64."""
    student = Student.from_pretrained(tiny_student(folder))
    student.model.double()
    torch.manual_seed(0)
    for weight in student.model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return student


def lively_checkpoint(folder: Path) -> Path:
    """The same, saved."""
    student = lively_student(folder.with_name("start"))
    write_student(student.model.float(), student.tokenizer, student.recipe, folder)
    return folder
