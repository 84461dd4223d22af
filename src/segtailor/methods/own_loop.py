"""A method in your own training loop: two networks of any library in, named losses out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict, Field, PositiveInt, validate_call
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown
from segtailor.files import VOID
from segtailor.losses import Step
from segtailor.methods.base import Channels, Method, MissingTapError
from segtailor.models.adapters.in_place import Foreign, Ours, bare, view_of
from segtailor.models.network import SegOutput


class DistillationLoss(nn.Module):
    """The terms of a method for a student and a teacher of any library: ``loss(images, target)``.

    Made by :func:`segtailor.create_method`. A call runs both networks, the teacher in eval mode and without gradients,
    and returns the weighted terms; the student's output is ``loss.student_output``. Both networks get ``images`` as
    they are (a network of segtailor prepares raw ones itself), the teacher ``teacher_images`` where given. Where
    something else calls a network, a trainer for example, pass its result as ``student_output`` or ``teacher_output``:
    the inner tensors are those of its last forward, of the student's last one with gradients.

    Its parameters are the method's projectors, for your optimizer; never the student's or the teacher's. For data
    parallelism pass ``student=DistributedDataParallel(net)``; projectors are then averaged over the processes, and
    means are over the global batch. A method's adversary is trained inside, one step a call.

    ``student_taps`` and ``teacher_taps`` name module paths: ``{"feature": "decoder.last", "logits": "head"}``; what is
    left out is found by running the network on a small image, or on one of ``image_size`` (height, width).
    ``total_steps`` is how often the loss will be called, for methods that change over the run; :meth:`set_progress`
    replaces it. Targets are (B,H,W) class indices, ``ignore_index`` for void, as large as the images or smaller or
    larger by a whole factor.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        kind: Any,
        build: Callable[[Channels, Channels], Any],
        num_classes: Annotated[int, Field(ge=1, le=255)],
        student: nn.Module,
        teacher: nn.Module | None = None,
        total_steps: PositiveInt | None = None,
        student_taps: Mapping[str, str] | None = None,
        teacher_taps: Mapping[str, str] | None = None,
        image_size: tuple[PositiveInt, PositiveInt] | None = None,
        ignore_index: int = VOID,
    ) -> None:
        super().__init__()
        if kind.teacher == "own":
            raise SegtailorError(
                f"method {kind.name} builds and trains its teacher first, which your own loop cannot do; use "
                "`segtailor distill`, or a method that learns from your teacher, as cwd"
            )
        if kind.teacher == "recipe" and teacher is None:
            raise SegtailorError(f"method {kind.name} learns from a teacher; pass teacher=, a torch.nn.Module")
        theirs = set() if teacher is None else {value.data_ptr() for value in bare(teacher).parameters()} - {0}
        shared = [name for name, value in bare(student).named_parameters() if value.data_ptr() in theirs]
        if shared:
            raise SegtailorError(
                f"student and teacher share parameters ({shared[0]}), and a teacher must not learn; pass "
                "teacher=copy.deepcopy(teacher)"
            )
        networks = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
        taps = {"student": student_taps or {}, "teacher": teacher_taps or {}}
        # In a plain dict, so that neither network's parameters are this module's.
        self._views: dict[str, Foreign | Ours] = {}
        try:
            for role, module in networks.items():
                self._views[role] = view_of(role, module, num_classes, taps[role], image_size)
            self.method = self._built(kind, build, taps)
        except BaseException:
            self.close()
            raise
        self.total_steps, self.ignore_index = total_steps, ignore_index
        self.student_output: Any = None
        self.adversary_loss: Tensor | None = None
        self._calls = 0
        self._progress: float | None = None
        self._runner: list[nn.Module] = []
        self._adversary = _Adversary(self.method) if self.method.adversary is not None else None
        self.to(next((value.device for value in student.parameters()), torch.device("cpu")))
        if teacher is not None:
            bare(teacher).requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        target: Tensor | None = None,
        *,
        student_output: Any = None,
        teacher_output: Any = None,
        teacher_images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the method's terms, already weighted, for ``images`` (B,3,H,W) and ``target`` (B,H,W).

        Raises :class:`SegtailorError` for a target that is not these images', and where a network does not return what
        the method reads.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise SegtailorError("images are a tensor (B,3,H,W)")
        labels = None if target is None else self._labels(images, target)
        if self._adversary is not None:
            self._adversary.step()
        student = self._views["student"]
        self.student_output = student.run_whole(images) if student_output is None else student_output
        own = student.collect(self.student_output, images)
        guide = own.detach() if "teacher" not in self._views else self._teach(teacher_output, images, teacher_images)
        for view, output in zip(self._views.values(), (own, guide), strict=False):
            if len(output.logits) != len(images):
                raise SegtailorError(f"{view.name} was run on {len(output.logits)} images; the batch has {len(images)}")
        step = self._step(labels)
        own, guide = self.method.select(own), self.method.select(guide)
        terms: dict[str, Tensor] = self._synchronized()(own, guide, labels, step)
        if self._adversary is not None and torch.is_grad_enabled():
            if labels is None:
                labels = torch.zeros_like(own.logits[:, 0], dtype=torch.uint8)
            self.adversary_loss = self._adversary.learn(own.detach(), guide, labels, step)
        return terms

    def set_progress(self, progress: float) -> None:
        """Set how much of the training is done, from 0 to 1, in place of counting calls."""
        if not 0 <= progress <= 1:
            raise SegtailorError(f"progress is between 0 and 1, not {progress}")
        self._progress = float(progress)

    def close(self) -> None:
        """Remove the hooks from both networks, for example before the student is pickled."""
        for view in self._views.values():
            view.close()

    @property
    def taps(self) -> dict[str, dict[str, str]]:
        """Where the tensors of both networks are read, by role and tap."""
        return {role: view.places for role, view in self._views.items()}

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the projectors."""
        return {"calls": self._calls, "adversary": None if self._adversary is None else self._adversary.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` returned."""
        self._calls = state["calls"]
        if self._adversary is not None and state["adversary"] is not None:
            self._adversary.load(state["adversary"])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: not the last call's graph, which cannot be copied."""
        return {**self.__dict__, "student_output": None, "_runner": []}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationLoss:
        if self._adversary is not None:
            self._adversary.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def _built(
        self, kind: type[Method[Any]], build: Callable[..., Any], taps: Mapping[str, Mapping[str, str]]
    ) -> Method[Any]:
        widths = [self._views.get(role, self._views["student"]).tap_channels for role in taps]
        try:
            method: Method[Any] = build(*widths)
        except MissingTapError as missing:
            raise SegtailorError(
                f"method {kind.name} reads '{missing.tap}' of the {missing.role}, and none was found in "
                f"{self._views[missing.role].name}; name a module: {missing.role}_taps={{'{missing.tap}': 'PATH'}}"
            ) from None
        read = {"logits"} | method.inputs | ({"feature"} if "classifier_input" in method.inputs else set())
        for role, paths in taps.items():
            for tap in paths.keys() - read:
                raise unknown(f"tap in {role}_taps", tap, read, f"method {kind.name} reads no other")
        pretraining = method.pretraining
        if pretraining is not None and not pretraining.done:
            raise SegtailorError(
                f"method {kind.name} needs {pretraining.about}, which `segtailor distill` trains first, into the "
                f"folder stages/ beside its runs; pass that file: {pretraining.file_option}='...'"
            )
        return method

    def _teach(self, output: Any, images: Tensor, other: Tensor | None) -> SegOutput:
        teacher = self._views["teacher"]
        images = images if other is None else other
        with torch.no_grad():
            if output is None:
                teacher.net.eval()
                output = teacher.run_whole(images)
            # a tensor made in inference mode may not take part in the student's graph
            found = teacher.collect(output, images).detach()
            return found.map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def _labels(self, images: Tensor, target: Tensor) -> Tensor:
        """Return ``target``, 255 where it is void."""
        fits = isinstance(target, Tensor) and target.ndim == 3 and len(target) == len(images)
        if fits:
            (height, width), (rows, columns) = images.shape[-2:], target.shape[-2:]
            fits = rows * width == columns * height and 0 in (height % rows, rows % height)
        if not fits or target.dtype.is_floating_point:
            given = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
            raise SegtailorError(
                f"the target of images {list(images.shape)} is {given}; it holds class indices (B,H,W) as integers, as "
                "large as the images or smaller or larger by a whole factor"
            )
        if self.ignore_index != VOID and target.element_size() == 1:
            target = target.short()  # one byte does not hold both 255 and negative numbers
        # Reading values back makes an accelerator wait for all queued work, so there only the first call pays for it.
        if self._calls == 0 or target.device.type == "cpu":
            wrong = (target != self.ignore_index) & ((target < 0) | (target >= self.method.num_classes))
            if wrong.any():
                values = sorted(set(target[wrong].tolist()))[:5]
                raise SegtailorError(
                    f"the target holds {', '.join(map(str, values))}; classes are 0 to "
                    f"{self.method.num_classes - 1}, void is ignore_index={self.ignore_index}"
                )
        return target if self.ignore_index == VOID else torch.where(target == self.ignore_index, VOID, target)

    def _step(self, target: Tensor | None) -> Step:
        self._calls += 1
        targets = [target] if target is not None and _processes() > 1 else []
        progress = self._progress
        if progress is None and self.total_steps is not None:
            progress = min(1.0, self._calls / self.total_steps)
        if progress is None:
            return _StepWithoutProgress(self.method.name, targets)
        return Step(progress, targets)

    def _synchronized(self) -> nn.Module:
        """Return the method, its parameters averaged over the processes where there are several."""
        trained = any(value.requires_grad for value in self.method.parameters())
        if _processes() < 2 or not trained:
            return self.method
        if not self._runner:
            self._runner.append(
                nn.parallel.DistributedDataParallel(
                    self.method, broadcast_buffers=False, find_unused_parameters=self.method.sparse_gradients
                )
            )
        return self._runner[0]


LOOP_ARGUMENTS = tuple(inspect.signature(DistillationLoss).parameters)[4:]
"""What `create_method` passes on, beside a method's options."""


class _StepWithoutProgress(Step):
    """A step of a run whose length is unknown."""

    def __init__(self, method: str, targets: Sequence[Tensor]) -> None:
        self.method, self.targets = method, targets

    @property
    def progress(self) -> float:  # type: ignore[override]
        raise SegtailorError(
            f"method {self.method} changes over the run: pass total_steps= (how often the loss is called), or call "
            "set_progress"
        )


class _Adversary:
    """A method's adversary and its optimizer, whose step waits for the student's backward, until the next call."""

    def __init__(self, method: Method[Any]) -> None:
        assert method.adversary is not None
        self.network = method.adversary
        self.network.trained = True
        self.network.requires_grad_(False)
        self.optimizer: torch.optim.Optimizer | None = None
        self._shared = False
        self._gradients: list[Tensor | None] = []

    def step(self) -> None:
        """Do the step that waits, if any."""
        if _processes() > 1 and not self._shared and torch.is_grad_enabled():
            for value in (*self.network.parameters(), *self.network.buffers()):
                dist.broadcast(value.data, 0)
            self._shared = True
        if self._gradients:
            for value, gradient in zip(self.network.parameters(), self._gradients, strict=True):
                value.grad = None if gradient is None else gradient.to(value.device)
            self.prepare().step()
            self.prepare().zero_grad(set_to_none=True)
            self._gradients = []

    def learn(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> Tensor:
        """Return the loss, whose gradients are those of the next step."""
        network = self.network.requires_grad_(True)
        loss: Tensor = network(student, teacher, target, step)
        self._gradients = list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))
        network.requires_grad_(False)
        for gradient in self._gradients if _processes() > 1 else []:
            if gradient is not None:
                dist.all_reduce(gradient)
                gradient /= _processes()
        return loss.detach()

    def prepare(self) -> torch.optim.Optimizer:
        """Return the optimizer, made late; without communication, since one process alone may save a checkpoint."""
        if self.optimizer is None:
            self.optimizer = self.network.build_optimizer(self.network.parameters())
        return self.optimizer

    def state(self) -> dict[str, Any]:
        network, optimizer = self.network.state_dict(), self.prepare().state_dict()
        return {"network": network, "optimizer": optimizer, "gradients": self._gradients}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.prepare().load_state_dict(state["optimizer"])
        self._gradients = state.get("gradients", [])


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
