"""Label-assisted distillation: the teacher is a small network that also sees the labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segtailor.config import ModelConfig, OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step, channel_kl, cross_entropy, valid_counts
from segtailor.methods.base import (
    Channels,
    Method,
    MethodOptions,
    Pretraining,
    PretrainObjective,
    VariantOptions,
    option,
)
from segtailor.models.label_assisted import (
    Codes,
    LabelAssisted,
    LabelAssistedTeacher,
    add_label_plane,
    load_assisted,
    save_assisted,
)
from segtailor.models.network import SegOutput
from segtailor.models.segmenter import create_model
from segtailor.models.teacher import Teacher

CODE = "LAD's code"
LOG = "our choice; published: read from the log of the student's training"


class DualPath(PretrainObjective):
    """Two codings of the same labels, two outputs: each must be right, and they must agree.

    Terms ``task`` and ``task_aux`` (weight 0.4), each summed over both paths, and ``consistency``: channel-wise KL from
    each path to the other, which is a constant in it.
    """

    def __init__(self, assisted: LabelAssisted, options: LabelAssistedOptions) -> None:
        super().__init__()
        self.assisted, self.options = assisted, options

    @property
    def subject(self) -> nn.Module:
        """The network, scored with labels."""
        return self.assisted

    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, step: Step) -> dict[str, Tensor]:
        """Return the terms."""
        first, second = self.assisted(images, target), self.assisted(images, target)
        terms = {"task": self._task(first.logits, target, step) + self._task(second.logits, target, step)}
        if first.aux_logits is not None:
            aux = self._task(first.aux_logits, target, step) + self._task(second.aux_logits, target, step)
            terms["task_aux"] = 0.4 * aux
        if self.options.consistency:
            temperature, grid = self.options.consistency_temperature, first.logits.shape[-2:]
            valid = valid_counts(target, grid).unsqueeze(1) if self.options.clean else None
            both = channel_kl(first.logits, second.logits, temperature, valid)
            both = both + channel_kl(second.logits, first.logits, temperature, valid)
            terms["consistency"] = self.options.consistency * both
        return terms

    def _task(self, logits: Tensor, target: Tensor, step: Step) -> Tensor:
        size = (target.shape[-2], target.shape[-1])
        return cross_entropy(self.assisted.upsample(logits, size), target, step)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LabelAssistedOptions(VariantOptions):
    """Options of ``lad``."""

    lad: NonNegativeFloat = option(1.0, "weight of all the base method's terms", source=CODE)
    base: Annotated[dict[str, Any], BeforeValidator(_named)] = option(
        {"name": "cwd", "logits": 3.0, "feature": 0.0, "temperature": 4.0},
        "the method that the label-assisted teacher teaches by: a name, or a mapping with its options",
        source="LAD's code: channel-wise KL of the logits, T = 4, weight 3",
    )
    teacher: str | None = option(
        None, "the label-assisted network; default: the student's", source="LAD's code: the student's own"
    )
    pretrained: bool | str | None = option(
        None, "its ImageNet encoder; default: as the student's", source="our choice: the student's own"
    )
    codes: Codes = option(
        "random",
        "the labels' codes while the student learns: drawn at random, or fixed",
        published="fixed",
        source="our choice; published: fixed",
    )
    noise: NonNegativeFloat = option(0.02, "noise on the coded labels while the student learns", source=CODE)
    teacher_noise: NonNegativeFloat = option(0.03, "noise on the coded labels while the teacher learns", source=CODE)
    consistency: NonNegativeFloat = option(5.0, "weight of the dual-path consistency", source=CODE)
    consistency_temperature: PositiveFloat = option(4.0, "temperature of the dual-path consistency", source=CODE)
    dropout: Annotated[float, Field(ge=0, lt=1)] = option(0.01, "every dropout of the teacher", source=CODE)
    teacher_steps: PositiveInt | None = option(
        None, "steps of the teacher's training; default: the run's", published=40000, source=LOG
    )
    teacher_optimizer: OptimizerConfig | None = option(
        None,
        "its optimizer; default: the run's",
        published={"name": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001},
        source=LOG,
    )
    teacher_schedule: ScheduleConfig | None = option(
        None, "its schedule; default: the run's", published={"power": 0.9}, source=LOG
    )
    teacher_file: str | None = option(
        None, "a label-assisted network to use instead of training one", source="our choice"
    )


class TeacherPretraining(Pretraining):
    """Trains the network of a :class:`LabelAssistedTeacher` and hands it its weights."""

    name = "lad"
    about = "the label-assisted teacher"
    uses_teacher = False
    file_option = "teacher_file"

    def __init__(self, teacher: LabelAssistedTeacher, options: LabelAssistedOptions) -> None:
        self.teacher, self.options = teacher, options
        self.steps, self.optimizer = options.teacher_steps, options.teacher_optimizer
        self.schedule, self.file = options.teacher_schedule, options.teacher_file

    def key(self) -> dict[str, Any]:
        """Return what the trained network depends on."""
        options = self.options
        return {
            "model": self.teacher.model.spec(),
            "noise": options.teacher_noise,
            "consistency": options.consistency,
            "temperature": options.consistency_temperature,
            "masked": options.clean,
            "pretrained": options.pretrained,
            "dropout": options.dropout,
        }

    def objective(self, teacher: Teacher | None) -> PretrainObjective:
        """Return a copy of the teacher's network with its losses."""
        network = copy.deepcopy(self.teacher.model).requires_grad_(True)
        return DualPath(LabelAssisted(network, "random", self.options.teacher_noise), self.options)

    def save(self, objective: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write the network."""
        assert isinstance(objective, DualPath)
        save_assisted(objective.assisted.model, path, card)

    def load(self, path: Path, fingerprint: str | None) -> None:
        """Give the teacher its weights."""
        load_assisted(self.teacher.model, path)
        self.done = True


class LabelAssistedDistillation(Method[LabelAssistedOptions]):
    """Distillation from a network that takes the image and noised labels (privileged information, ECCV 2024).

    No large teacher is needed. A pre-training trains it: the student's network (or ``teacher``) with a fourth input
    plane for the labels, coded by random numbers so that it learns where labels change rather than what they are, and
    two codings of each image that must give the same output. The student, an ordinary network over three planes, then
    learns from it by the ``base`` method, whose terms keep their names. ``published`` gives the student's training the
    fixed codes of the public code, which its teacher was not trained with; ``clean`` draws codes as in the teacher's
    training and leaves void out of the consistency. The fixed codes are 0.1 apart: (k - 11) / 10 for 21 classes, as in
    the public code, and centered likewise for another number. The public code also lowers the auxiliary cross-entropy
    to 0.02 (`train.aux_weight`) and every dropout of the student to 0.01 (`student.dropout`), and fine-tunes a trained
    student (`student.weights`). How that one was trained is not known; its file has the name of a student alone, so
    the recipes `published-lad-*` start from that of `published-none-*`.

        teacher: CE(z1) + CE(z2) + 5 [chKL_4(z1, z2) + chKL_4(z2, z1)], z = network(image, code(label) + noise)
        student: the base method's terms; by default 3 chKL_4(student, teacher)

    - Extra modules: the label-assisted teacher, trained before the student
    - Published figures: VOC val, DeepLabV3-R18: 75.0, alone 73.21 (LAD's authors; the student that they fine-tune has
      74.98 after the first 800 steps)
    - Limitations: data without labels; a good large teacher at hand, whose mistakes are more informative than the
      labels' shapes; budgets where training a second network first is too much
    - Source: Label-Assisted Distillation, ECCV 2024 (arXiv 2407.13254), and its public code
    """

    name = "lad"
    summary = "label-assisted: the teacher is small and takes the labels as a fourth plane"
    channel_alignment = "as the base method's; the teacher is as wide as the student unless another is named"
    labels = "classes"
    teacher = "own"
    sparse_gradients = True

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make what the options ask for."""
        self.base = self._base(student, teacher)
        self.inputs = self.base.inputs
        self.sparse_gradients = self.base.sparse_gradients

    def _base(self, student: Channels, teacher: Channels) -> Method:
        from segtailor.methods import create_method  # late: the table of methods holds this one

        chosen = {"variant": self.options.variant, **self.options.base}
        name = str(chosen.pop("name", None))
        refused = SegtailorError(
            f"method 'lad', option 'base': '{name}' cannot be the base; choose one without pre-training, adversary or "
            "its own teacher, as cwd, kd, dist or kt"
        )
        if "name" not in self.options.base:
            raise refused
        try:
            base = create_method(name, self.num_classes, student, teacher, **chosen)
        except SegtailorError as error:
            if "variant" in self.options.base or "'variant'" not in str(error):
                raise
            del chosen["variant"]  # a base without published code
            base = create_method(name, self.num_classes, student, teacher, **chosen)
        if base.teacher != "recipe" or base.pretraining is not None or base.adversary is not None:
            raise refused
        return base

    @classmethod
    def build_teacher(cls, options: MethodOptions, student: ModelConfig, num_classes: int, seed: int) -> Teacher:
        """Return the untrained label-assisted teacher for a student built as ``student`` says."""
        assert isinstance(options, LabelAssistedOptions)
        name = options.teacher or student.model
        own = name == student.model
        pretrained = options.pretrained if options.pretrained is not None else (student.pretrained if own else False)
        torch.manual_seed(seed)
        model = create_model(name, num_classes, pretrained=pretrained, **(student.options() if own else {}))
        return LabelAssistedTeacher(add_label_plane(model, options.dropout), options.codes, options.noise)

    def use_teacher(self, teacher: Teacher) -> None:
        """Take ``teacher`` as this method's own, and its training as the pre-training."""
        assert isinstance(teacher, LabelAssistedTeacher)
        super().use_teacher(teacher)
        self.pretraining = TeacherPretraining(teacher, self.options)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the base method's terms."""
        if not self.options.lad:
            return {}
        terms = self.base(student, teacher, target, step)
        return {name: self.options.lad * value for name, value in terms.items()}
