"""The alignment of two networks: its lines, and its refusal where none is possible."""

from __future__ import annotations

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.jobs.alignment import align, align_method
from segtailor.methods import create_method
from segtailor.models import SegOutput, Teacher, create_model


def outputs(own: tuple[int, int], guide: tuple[int, int], aux: bool = True) -> tuple[SegOutput, SegOutput]:
    def made(width: int, size: tuple[int, int], has_aux: bool) -> SegOutput:
        logits, feature = torch.zeros(1, 4, *size), torch.zeros(1, width, *size)
        return SegOutput(logits, logits if has_aux else None, feature, feature)

    return made(8, own, aux), made(16, guide, True)


def test_a_cnn_and_a_transformer() -> None:
    student, teacher = create_model("deeplabv3-resnet18", 4), Teacher(create_model("segformer-mit_b0", 4))
    options = {"kd_aux": 1, "feature_taps": ["decoder", "stages.0"]}
    methods = {"kt": create_method("kt", 4, student.tap_channels, teacher.tap_channels, **options)}
    lines = align(student, teacher, methods, (64, 128))
    assert lines == [
        "kt, logits: student 4 x 8 x 16, teacher 4 x 16 x 32: teacher resized to 8 x 16, bilinear",
        "kt, aux_logits: left out, the teacher has none",
        f"kt, feature: student 128 x 8 x 16, teacher 256 x 16 x 32: teacher resized to 8 x 16, bilinear; "
        f"{methods['kt'].channel_alignment}",
        f"kt, stages.0: student 64 x 16 x 32, teacher 32 x 16 x 32: equal grids; {methods['kt'].channel_alignment}",
    ]


def test_methods_without_a_teacher_have_no_lines() -> None:
    student = create_model("deeplabv3plus-lcnet_035", 4)
    assert align(student, None, {"none": create_method("none", 4, 8, 8)}, (32, 32)) == []


def test_grids_of_other_proportions_are_refused() -> None:
    method = create_method("kd", 4, 8, 16)
    assert align_method("kd", method, *outputs((8, 16), (9, 16)))  # rounding is no other image
    with pytest.raises(SegtailorError, match="cannot align logits: the student's grid is 8 x 16, the teacher's 16 x 8"):
        align_method("kd", method, *outputs((8, 16), (16, 8)))
