"""What every method must do; a method's test inherits it and names the method and its options."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segtailor.methods import Method, create_method
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, changed, labels, output, tensors
from .processes import Pair, Prepare, step_gradients

EARLY, LATE = 0.1, 0.9
PHASES = pytest.mark.parametrize("progress", [EARLY, LATE], ids=["early", "late"])

FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "one_hot", "item")


class NoSyncNoFullSize(TorchDispatchMode):
    """Refuses operators that wait for the device, and float tensors with a value for each class and label pixel."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise AssertionError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_"):
            indices = [index for index in args[1] if index is not None]
            assert all(index.dtype != torch.bool for index in indices), "a boolean index waits for the device"
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor) and item.is_floating_point():
                assert item.numel() < self.limit, f"{name} makes a float tensor of label size: {tuple(item.shape)}"
        return result


class MethodTester:
    """Set ``name`` and ``options``; ``void_matters`` and ``size_matters`` say what a variant does not promise."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    void_matters: ClassVar[bool] = False
    size_matters: ClassVar[bool] = False
    """The published divisor makes the value depend on the crop's size."""
    phased: ClassVar[bool] = False
    """It depends on the progress of the run; tests of ``progress`` then look late in the run, too."""
    minimal: ClassVar[frozenset[str]] = frozenset()
    """Terms that are least where the student's output equals the teacher's."""
    couples_images: ClassVar[bool] = False
    """The value does not split over ranks and micro-batches."""
    random: ClassVar[bool] = False
    """It draws random numbers, so that parts of a batch see other ones than the whole."""
    prepare: ClassVar[Prepare | None] = None
    """Does what the method's stage would; set it as ``staticmethod(function)``."""
    terms: ClassVar[frozenset[str]]
    """Names of all terms, in both phases."""

    def method(self, teacher: dict[str, int] = TEACHER, **options: Any) -> Method:
        torch.manual_seed(7)
        method = create_method(self.name, CLASSES, STUDENT, teacher, **{**self.options, **options})
        if self.prepare is not None:
            self.prepare(method)
        return method

    def call(self, method: Any, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> Any:
        """Return the terms; random draws are the same at every call."""
        torch.manual_seed(11)
        return method(student, teacher, target, progress)

    def pair_of_outputs(self, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[SegOutput, SegOutput]:
        return output(STUDENT, batch, dtype=dtype), output(TEACHER, batch, seed=2, dtype=dtype)

    def test_names_its_terms(self, progress: float) -> None:
        assert set(self.call(self.method(), *self.pair_of_outputs(), labels(), progress)) == self.terms

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_values_and_gradients_are_finite(self, progress: float, dtype: torch.dtype) -> None:
        for case in ("usual", "void image", "all void", "one image", "no positive logits", "flat"):
            batch = 1 if case == "one image" else 2
            student, teacher = self.pair_of_outputs(batch, dtype)
            target = labels(batch)
            if case in ("void image", "all void"):
                target[0 if case == "void image" else slice(None)] = 255
            if case == "no positive logits":
                student, teacher = (changed(value, lambda tensor: -tensor.abs() - 1) for value in (student, teacher))
            if case == "flat":
                student, teacher = (changed(value, torch.zeros_like) for value in (student, teacher))
            method = self.method()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                terms = self.call(method, student, teacher, target, progress)
            for term, value in terms.items():
                assert value.dtype == torch.float32, (case, term)
                assert value.shape == (), (case, term)
                assert value.isfinite(), (case, term)
            total = sum(terms.values(), torch.zeros((), requires_grad=True))
            total.backward()
            for key, value in (tensors(student) | dict(method.named_parameters())).items():
                assert value.grad is None or value.grad.isfinite().all(), (case, key)

    def test_autocast_changes_nothing(self, progress: float) -> None:
        method, (student, teacher) = self.method(), self.pair_of_outputs()
        expected = self.call(method, student, teacher, labels(), progress)
        with torch.autocast("cpu", torch.bfloat16):
            terms = self.call(method, student, teacher, labels(), progress)
        torch.testing.assert_close(terms, expected, rtol=0, atol=0)

    def test_gradient_reaches_student_and_projectors_never_the_teacher(self) -> None:
        method, (student, teacher) = self.method(), self.pair_of_outputs()
        trained = {key for key, value in method.named_parameters() if value.requires_grad}
        reached: set[str] = set()
        for progress in (EARLY, LATE):
            for term, value in self.call(method, student, teacher, labels(), progress).items():
                gradients = torch.autograd.grad(
                    value, list(tensors(student).values()), allow_unused=True, retain_graph=True
                )
                assert any(item is not None and item.abs().sum() > 0 for item in gradients), (
                    f"{term} leaves the student"
                )
                value.backward(retain_graph=True)
        reached = {key for key, value in method.named_parameters() if value.grad is not None and value.grad.abs().sum()}
        assert reached == trained
        assert all(value.grad is None for value in tensors(teacher).values())

    def test_declared_terms_are_minimal_where_the_student_equals_the_teacher(self, progress: float) -> None:
        method, teacher = self.method(teacher=STUDENT), output(STUDENT, seed=2)
        equal = changed(teacher, lambda tensor: tensor)
        best = self.call(method, equal, teacher, labels(), progress)
        assert self.minimal <= set(best)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            other = changed(teacher, lambda tensor: tensor + 0.3 * torch.randn(tensor.shape, generator=generator))  # noqa: B023
            values = self.call(method, other, teacher, labels(), progress)
            for term in self.minimal:
                assert values[term] > best[term], term
        for term in self.minimal:
            leaves = list(tensors(equal).values())
            gradients = torch.autograd.grad(best[term], leaves, allow_unused=True, retain_graph=True)
            found = [gradient for gradient in gradients if gradient is not None]
            assert found, term
            assert all(gradient.abs().max() < 1e-6 for gradient in found), term

    def test_void_pixels_do_not_matter(self, progress: float) -> None:
        method, (student, teacher), target = self.method(), self.pair_of_outputs(), labels()
        student_stage, rows = student.stages[0].shape[2], student.logits.shape[2]

        def disturb(tensor: Tensor) -> Tensor:
            void_rows = (
                (2 if tensor.shape[2] == student_stage else 1) if tensor.shape[2] in (rows, student_stage) else 0
            )
            tensor[:, :, tensor.shape[2] - void_rows :] = 50 * torch.rand_like(tensor[:, :, :void_rows])
            return tensor

        before = self.call(method, student, teacher, target, progress)
        after = self.call(method, changed(student, disturb), changed(teacher, disturb), target, progress)
        differs = any(not torch.allclose(before[term], after[term], rtol=1e-5, atol=1e-6) for term in before)
        assert differs == (self.void_matters and bool(before))

    def test_means_do_not_change_with_the_crop_size(self, progress: float) -> None:
        method, (student, teacher), target = self.method(), self.pair_of_outputs(), labels()
        twice = [changed(value, lambda tensor: torch.cat((tensor, tensor), 2)) for value in (student, teacher)]
        before = self.call(method, student, teacher, target, progress)
        after = self.call(method, *twice, torch.cat((target, target), 1), progress)
        if self.size_matters:
            assert any(not torch.allclose(after[term], value, rtol=1e-3) for term, value in before.items())
            return
        for term, value in before.items():
            torch.testing.assert_close(after[term], value, rtol=1e-4, atol=1e-6, msg=term)

    def test_teacher_on_a_finer_grid_counts_like_its_resized_output(self, progress: float) -> None:
        method, student, teacher = self.method(), output(STUDENT), output(TEACHER, size=(12, 16), seed=2)

        def shrink(tensor: Tensor) -> Tensor:
            size = (tensor.shape[2] // 2, tensor.shape[3] // 2)
            return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)

        expected = self.call(method, student, changed(teacher, shrink), labels(), progress)
        for term, value in self.call(method, student, teacher, labels(), progress).items():
            torch.testing.assert_close(value, expected[term], rtol=1e-4, atol=1e-6, msg=term)

    def test_eager_equals_compiled(self, progress: float) -> None:
        torch.compiler.reset()
        results = []
        method = self.method()
        for runner in (method, torch.compile(method, backend="aot_eager")):
            student, teacher = self.pair_of_outputs()
            terms = self.call(runner, student, teacher, labels(), progress)
            sum(terms.values(), torch.zeros((), requires_grad=True)).backward()
            gradients = {key: value.grad for key, value in tensors(student).items() if value.grad is not None}
            results.append((terms, gradients))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)

    def test_state_round_trips(self, progress: float) -> None:
        first, outputs = self.method(), self.pair_of_outputs()
        with torch.no_grad():
            for value in first.state_dict().values():
                value.add_(0.1 if value.is_floating_point() else 1)
        second = self.method()
        second.load_state_dict(first.state_dict())
        expected = self.call(first, *outputs, labels(), progress)
        torch.testing.assert_close(self.call(second, *outputs, labels(), progress), expected, rtol=0, atol=0)

    def test_nothing_waits_for_the_device_or_has_label_size(self, progress: float) -> None:
        method, (student, teacher) = self.method(), self.pair_of_outputs()
        # Labels this fine make B*K*H*W the largest tensor by far.
        target = labels().repeat_interleave(4, 1).repeat_interleave(4, 2)
        with NoSyncNoFullSize(CLASSES * target[0].numel()):
            terms = self.call(method, student, teacher, target, progress)
            sum(terms.values(), torch.zeros((), requires_grad=True)).backward()

    def test_micro_batches_equal_one_batch(self, progress: float) -> None:
        alone = step_gradients(self.name, self.options, progress, uneven_labels(), 1, self.prepare)
        parts = step_gradients(self.name, self.options, progress, uneven_labels(), 2, self.prepare)
        if not (self.couples_images or self.random):
            torch.testing.assert_close(parts, alone, rtol=1e-4, atol=1e-5)

    def test_two_processes_equal_one(self, progress: float, pair: Pair) -> None:
        alone = step_gradients(self.name, self.options, progress, uneven_labels(), 1, self.prepare)
        shared = pair.step(self.name, self.options, progress, uneven_labels(), 1, self.prepare)
        both = pair.step(self.name, self.options, progress, uneven_labels(), 2, self.prepare)
        if not (self.couples_images or self.random):
            # Data parallelism fills in zeros for parameters that a phase does not use.
            for key in shared:
                expected = alone.get(key, torch.zeros_like(shared[key]))
                torch.testing.assert_close(shared[key], expected, rtol=1e-4, atol=1e-5, msg=key)
                torch.testing.assert_close(both[key], expected, rtol=1e-4, atol=1e-5, msg=key)
            assert set(alone) <= set(shared)

    def test_select_keeps_what_is_read(self) -> None:
        method, (student, teacher) = self.method(), self.pair_of_outputs()
        for progress in (EARLY, LATE):
            expected = self.call(method, student, teacher, labels(), progress)
            slim = self.call(method, method.select(student), method.select(teacher), labels(), progress)
            torch.testing.assert_close(slim, expected, rtol=0, atol=0)


def uneven_labels() -> Tensor:
    """Four label maps with different numbers of void pixels, so that means over a part are not means over all."""
    target = labels(4)
    target[0, :30] = 255
    target[3, :, :10] = 255
    return target
