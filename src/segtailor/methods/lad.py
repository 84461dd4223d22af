"""Label-assisted distillation: the teacher is a small network that was also shown the labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from segtailor.config import ModelConfig, OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step
from segtailor.methods.assistance import TeacherPretraining
from segtailor.methods.base import Channels, Method, MethodOptions, VariantOptions
from segtailor.models.label_assisted import Codes, LabelAssistedTeacher, add_label_plane
from segtailor.models.network import SegOutput
from segtailor.models.segmenter import create_model
from segtailor.models.teacher import Teacher


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LabelAssistedOptions(VariantOptions):
    """Options of ``lad``."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {
            "codes": "fixed",
            "teacher_steps": 40_000,
            "teacher_optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0001},
            "teacher_schedule": {"power": 0.9},
        }
    }
    sources: ClassVar[dict[str, str]] = {
        "lad": "LAD's code",
        "base": "LAD's code: channel-wise KL of the logits, T = 4, weight 3",
        "teacher": "LAD's code: the student's own",
        "pretrained": "our choice: the student's own",
        "codes": "our choice; published: fixed",
        "noise": "LAD's code",
        "teacher_noise": "LAD's code",
        "consistency": "LAD's code",
        "consistency_temperature": "LAD's code",
        "dropout": "LAD's code",
        "teacher_steps": "our choice; published: read from the log of the student's training",
        "teacher_optimizer": "our choice; published: read from the log of the student's training",
        "teacher_schedule": "our choice; published: read from the log of the student's training",
        "teacher_file": "our choice",
    }
    lad: NonNegativeFloat = Field(1.0, description="weight of all the base method's terms")
    base: Annotated[dict[str, Any], BeforeValidator(_named)] = Field(
        {"name": "cwd", "logits": 3.0, "feature": 0.0, "temperature": 4.0},
        description="the method that the label-assisted teacher teaches by: a name, or a mapping with its options",
    )
    teacher: str | None = Field(None, description="the label-assisted network; default: the student's")
    pretrained: bool | str | None = Field(None, description="its ImageNet encoder; default: as the student's")
    codes: Codes = Field("random", description="the labels' codes while the student learns: drawn anew, or fixed")
    noise: NonNegativeFloat = Field(0.02, description="noise on the coded labels while the student learns")
    teacher_noise: NonNegativeFloat = Field(0.03, description="noise on the coded labels while the teacher learns")
    consistency: NonNegativeFloat = Field(5.0, description="weight of the dual-path consistency")
    consistency_temperature: PositiveFloat = Field(4.0, description="temperature of the dual-path consistency")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.01, description="every dropout of the teacher")
    teacher_steps: PositiveInt | None = Field(None, description="steps of the teacher's training; default: the run's")
    teacher_optimizer: OptimizerConfig | None = Field(None, description="its optimizer; default: the run's")
    teacher_schedule: ScheduleConfig | None = Field(None, description="its schedule; default: the run's")
    teacher_file: str | None = Field(None, description="a label-assisted network to use instead of training one")


class LabelAssistedDistillation(Method[LabelAssistedOptions]):
    """Distillation from a network with privileged information (ECCV 2024): image and noised labels go in.

    No big teacher is needed. A stage trains the teacher: the student's network (or ``teacher``) with a fourth input
    plane for the labels, coded by random numbers so that it learns where labels change rather than what they are, and
    two codings of each image that must give the same output. The student, an ordinary network over three planes, then
    learns from it by the ``base`` method, whose terms keep their names. ``published`` gives the student's training the
    fixed codes of the public code, which its teacher was not trained with; ``clean`` draws codes as in the teacher's
    training and leaves void out of the consistency. The public code also lowers the auxiliary cross-entropy to 0.02
    (`train.aux_weight`) and starts from a trained student (`student.weights`).
    """

    name: ClassVar[str] = "lad"
    summary: ClassVar[str] = "label-assisted: the teacher is small, and was shown the labels as a fourth plane"
    formula: ClassVar[str] = (
        "teacher: CE(z1) + CE(z2) + 5 [chKL_4(z1, z2) + chKL_4(z2, z1)], z = network(image, code(label) + noise)\n"
        "student: the base method's terms; by default 3 chKL_4(student, teacher)"
    )
    source: ClassVar[str] = "Label-Assisted Distillation, ECCV 2024 (arXiv 2407.13254), and its public code"
    widths: ClassVar[str] = "as the base method's; the teacher is as wide as the student unless another is named"
    extra_modules: ClassVar[str] = "the label-assisted teacher, trained by a stage of its own before the student"
    figures: ClassVar[str] = (
        "VOC val: DeepLabV3-R18 75.0 (alone 73.21), PSPNet-R18 75.4 (73.33), by LAD's authors; Cityscapes val, "
        "DeepLabV3-R18: LAD 75.60, LAD* 77.70 in KT's README, which does not say what LAD* is"
    )
    unsuited: ClassVar[str] = (
        "data without labels; a good big teacher at hand, whose mistakes are more telling than the labels' shapes; "
        "budgets where training a second network first is too much"
    )
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
        """Take ``teacher`` as this method's own, and its training as the stage."""
        assert isinstance(teacher, LabelAssistedTeacher)
        options = self.options
        super().use_teacher(teacher)
        self.pretraining = TeacherPretraining(
            teacher,
            options.teacher_steps,
            options.teacher_optimizer,
            options.teacher_schedule,
            noise=options.teacher_noise,
            consistency=options.consistency,
            temperature=options.consistency_temperature,
            masked=options.variant == "clean",
            origin={"pretrained": options.pretrained, "dropout": options.dropout},
        )
        self.pretraining.file = options.teacher_file

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the base method's terms."""
        if not self.options.lad:
            return {}
        terms = self.base(student, teacher, target, step)
        return {name: self.options.lad * value for name, value in terms.items()}
