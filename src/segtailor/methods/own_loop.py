"""A method in your own training loop: two networks of any library in, named losses out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.files import VOID
from segtailor.losses import Step
from segtailor.methods.base import Channels, Method, MissingTapError
from segtailor.models.adapters.wrapper import Adapted, read_result
from segtailor.models.network import Network, Preprocess, SegOutput
from segtailor.models.taps import Capture
from segtailor.models.teacher import Teacher


class DistillationLoss(nn.Module):
    """The terms of a method for a student and a teacher of any library: ``loss(images, target)``.

    Made by :func:`segtailor.create_method`. A call runs both networks, the teacher in eval mode and without gradients,
    and returns the weighted terms; the student's output is ``loss.student_output``. Both networks get ``images`` as
    they are (a network of segtailor prepares raw ones itself), the teacher ``teacher_images`` where given. Where
    something else calls the student, a trainer for example, pass its result as ``student_output``: the inner tensors
    are those of the student's last forward.

    Its parameters are the method's projectors, for your optimizer; never the student's or the teacher's. For data
    parallelism pass ``student=DistributedDataParallel(net)``; projectors are then averaged over the processes, and
    means are over the global batch. A method's adversary is trained inside, one step a call.

    ``student_taps`` and ``teacher_taps`` name module paths: ``{"feature": "decoder.last", "logits": "head"}``; what is
    left out is found by running the network on a small image, or on one of ``image_size`` (height, width).
    ``total_steps`` is how often the loss will be called, for methods that change over the run; :meth:`set_progress`
    replaces it. Targets are (B,H,W) class indices, with ``ignore_index`` for void.
    """

    def __init__(
        self,
        kind: type[Method[Any]],
        build: Callable[[Channels, Channels], Method[Any]],
        num_classes: int,
        student: nn.Module,
        teacher: nn.Module | None = None,
        total_steps: int | None = None,
        student_taps: Mapping[str, str] | None = None,
        teacher_taps: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
        ignore_index: int = VOID,
    ) -> None:
        super().__init__()
        if kind.teacher == "own":
            raise SegtailorError(
                f"method {kind.name} builds and trains its teacher first, which your own loop cannot do; use "
                "`segtailor distill`, or a method that learns from your teacher, as cwd"
            )
        if kind.teacher == "recipe" and not isinstance(teacher, nn.Module):
            raise SegtailorError(f"method {kind.name} learns from a teacher; pass teacher=, a torch.nn.Module")
        if teacher is not None and _bare(teacher) is _bare(student):
            raise SegtailorError("student and teacher are the same module; pass teacher=copy.deepcopy(student)")
        # In a plain dict, so that neither network's parameters are this module's.
        self._views = {"student": _view("student", student, num_classes, student_taps or {}, image_size)}
        if teacher is not None:
            _bare(teacher).requires_grad_(False)
            self._views["teacher"] = _view("teacher", teacher, num_classes, teacher_taps or {}, image_size)
        widths = [self._views.get(role, self._views["student"]).tap_channels for role in ("student", "teacher")]
        try:
            self.method = build(widths[0], widths[1])
        except MissingTapError as missing:
            raise SegtailorError(
                f"method {kind.name} reads '{missing.tap}' of the {missing.role}, and none was found in "
                f"{self._views[missing.role].name}; name a module: {missing.role}_taps={{'{missing.tap}': 'PATH'}}"
            ) from None
        pretraining = self.method.pretraining
        if pretraining is not None and not pretraining.done:
            raise SegtailorError(
                f"method {kind.name} needs {pretraining.about}, which `segtailor distill` trains first, into the "
                f"folder stages/ beside its runs; pass that file: {pretraining.file_option}='...'"
            )
        self.method.to(next((value.device for value in student.parameters()), torch.device("cpu")))
        self.total_steps, self.ignore_index = total_steps, ignore_index
        self.student_output: Any = None
        self.adversary_loss: Tensor | None = None
        self._calls = 0
        self._progress: float | None = None
        self._runner: list[nn.Module] = []
        self._adversary = _Adversary(self.method) if self.method.adversary is not None else None

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

        Raises :class:`SegtailorError` where a network does not return what the method reads.
        """
        if self._adversary is not None:
            self.adversary_loss = self._adversary.step()
        student = self._views["student"]
        given = student_output is not None
        self.student_output = student_output if given else student.run_whole(images)
        own = student.collect(self.student_output, images)
        guide = own.detach() if "teacher" not in self._views else self._teach(teacher_output, images, teacher_images)
        step, labels = self._step(target)
        own, guide = self.method.select(own), self.method.select(guide)
        terms: dict[str, Tensor] = self._synchronized()(own, guide, labels, step)
        if self._adversary is not None and torch.is_grad_enabled():
            if labels is None:
                labels = torch.zeros_like(own.logits[:, 0], dtype=torch.uint8)
            self._adversary.wait_with(own.detach(), guide, labels, step)
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

    def _teach(self, output: Any, images: Tensor, other: Tensor | None) -> SegOutput:
        teacher = self._views["teacher"]
        images = images if other is None else other
        with torch.no_grad():
            if output is None:
                teacher.net.eval()
                output = teacher.run_whole(images)
            return teacher.collect(output, images).detach()

    def _step(self, target: Tensor | None) -> tuple[Step, Tensor | None]:
        if target is not None and self.ignore_index != VOID:
            target = torch.where(target == self.ignore_index, VOID, target)
        # Reading values back makes an accelerator wait for all queued work, so there only the first call pays for it.
        if target is not None and (self._calls == 0 or target.device.type == "cpu"):
            values = torch.unique(target).tolist()
            wrong = [value for value in values if value != VOID and not 0 <= value < self.method.num_classes]
            if wrong:
                raise SegtailorError(
                    f"the target holds {', '.join(map(str, wrong[:5]))}; classes are 0 to "
                    f"{self.method.num_classes - 1}, void is ignore_index={self.ignore_index}"
                )
        self._calls += 1
        targets = [target] if target is not None and _processes() > 1 else []
        progress = self._progress
        if progress is None and self.total_steps is not None:
            progress = min(1.0, self._calls / self.total_steps)
        if progress is None:
            return _StepWithoutProgress(self.method.name, targets), target
        return Step(progress, targets), target

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


class _View(Adapted):
    """A network of another library, whose taps are read by hooks in its forward."""

    def __init__(
        self, role: str, module: nn.Module, num_classes: int, taps: Mapping[str, str], size: tuple[int, int] | None
    ) -> None:
        net = _bare(module)
        kinds = [(part, type(part)) for part in net.modules()]
        paths = dict(taps)
        classifier = paths.pop("logits", None)
        try:
            super().__init__(
                f"the {role} {type(net).__name__}", num_classes, net, Preprocess((0, 0, 0), (1, 1, 1), 1.0, size=size),
                classifier=classifier, taps=paths,
            )  # fmt: skip
        finally:
            for part, kind in kinds:
                part.__class__ = kind
        self._whole = [module]
        self._begin = net.register_forward_pre_hook(_Begin(self._taps))

    def run_whole(self, images: Tensor) -> Any:
        """Return what the module, wrapped as it was given, returns for ``images``."""
        self._taps.begin()
        return self._whole[0](images)

    def collect(self, result: Any, images: Tensor) -> SegOutput:
        """Return ``result`` with the inner tensors of the forward that gave it."""
        seen = self._taps.take()
        lacking = sorted(self._taps.sources.keys() - seen.keys())
        if lacking:
            path = self._taps.sources[lacking[0]].path
            raise SegtailorError(
                f"{self.name}: {path} was not run since the last call, or by code that was "
                "compiled before create_method; call the student with gradients once before each loss, and compile it "
                "after create_method (torch.compiler.reset() forgets earlier code)"
            )
        return self.assemble(read_result(result, self.name), seen, images.shape[-2:])

    def close(self) -> None:
        self._begin.remove()
        for part in self.net.modules():
            for key, hook in list(part._forward_hooks.items()):
                if isinstance(hook, Capture) and hook.taps is self._taps:
                    part._forward_hooks.pop(key)
                    part._forward_hooks_with_kwargs.pop(key, None)

    @property
    def places(self) -> dict[str, str]:
        return {name: source.path for name, source in self.tap_sources.items()}


class _Ours:
    """A network of segtailor, which returns all taps."""

    def __init__(self, role: str, module: nn.Module, net: Network | Teacher) -> None:
        self.net, self.run_whole = net, module
        self.name, self.tap_channels = f"the {role} {net.name}", net.tap_channels
        self.places: dict[str, str] = {}

    def collect(self, result: Any, images: Tensor) -> SegOutput:
        if not isinstance(result, SegOutput):
            raise SegtailorError(f"{self.name} returns a SegOutput, not {type(result).__name__}; pass that")
        return result

    def close(self) -> None:
        pass


class _Begin:
    """Opens a store when its network is run to be trained, whoever runs it."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            self.store.begin()


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
    """A method's adversary and its optimizer; its step is done when the next one begins, after the student's."""

    def __init__(self, method: Method[Any]) -> None:
        assert method.adversary is not None
        self.network = method.adversary
        self.network.trained = True
        self.network.requires_grad_(False)
        self.optimizer: torch.optim.Optimizer | None = None
        self._shared = False
        self._waiting: tuple[SegOutput, SegOutput, Tensor, Step] | None = None

    def wait_with(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> None:
        self._waiting = (student, teacher, target, step)

    def step(self) -> Tensor | None:
        """Do the step that waits, if any, and return its loss."""
        if _processes() > 1 and not self._shared and torch.is_grad_enabled():
            for value in (*self.network.parameters(), *self.network.buffers()):
                dist.broadcast(value.data, 0)
            self._shared = True
        if self._waiting is None:
            return None
        waiting, self._waiting = self._waiting, None
        network = self.network.requires_grad_(True)
        with torch.enable_grad():
            loss: Tensor = network(*waiting)
            torch.autograd.backward(loss)
        parameters = [value for value in network.parameters() if value.grad is not None]
        if _processes() > 1:
            for value in parameters:
                assert value.grad is not None
                dist.all_reduce(value.grad)
                value.grad /= _processes()
        self.prepare().step()
        self.prepare().zero_grad(set_to_none=True)
        network.requires_grad_(False)
        return loss.detach()

    def prepare(self) -> torch.optim.Optimizer:
        """Return the optimizer, made late; without communication, since one process alone may save a checkpoint."""
        if self.optimizer is None:
            self.optimizer = self.network.build_optimizer(self.network.parameters())
        return self.optimizer

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.prepare().state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.prepare().load_state_dict(state["optimizer"])


def _view(
    role: str, module: nn.Module, num_classes: int, taps: Mapping[str, str], size: tuple[int, int] | None
) -> _View | _Ours:
    net = _bare(module)
    if not isinstance(net, Network | Teacher):
        return _View(role, module, num_classes, taps, size)
    if net.num_classes != num_classes:
        raise SegtailorError(f"the {role} has {net.num_classes} classes, not num_classes={num_classes}")
    return _Ours(role, module, net)


def _bare(module: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of data parallelism and compilation."""
    if not isinstance(module, nn.Module):
        raise SegtailorError(f"a network is a torch.nn.Module, not {type(module).__name__}")
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
