"""Seeds of a comparison handed to a Ray cluster that is there already, or to one on this machine."""

from __future__ import annotations

from typing import Any

from segtailor.config import CompareRecipe
from segtailor.errors import SegtailorError, reason


def train_on_ray(recipe: CompareRecipe) -> None:
    """Train every seed of ``recipe`` as a Ray task; the run folder must lie where all nodes see it.

    Joins the cluster that ``RAY_ADDRESS`` names, else starts one on this machine. Each task asks for a GPU where the
    recipe's accelerator is one. Raises ``SegtailorError`` when Ray is not installed, not reachable, or a task fails.
    """
    try:
        import ray
    except ImportError:
        raise SegtailorError("--executor ray needs Ray: pip install 'segtailor[ray]'") from None
    from segtailor.jobs.compare import train_seeds

    started = not ray.is_initialized()
    try:
        if started:
            ray.init(log_to_driver=True)
    except Exception as error:
        raise SegtailorError(f"cannot reach a Ray cluster: {reason(error)}; see RAY_ADDRESS") from error
    resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wants_gpu = recipe.train.accelerator == "cuda" or (
        recipe.train.accelerator == "auto" and resources.get("GPU", 0) > 0
    )
    try:
        first, *rest = recipe.seeds
        # The first seed opens the folder; the others start when it is there.
        task: Any = ray.remote(num_cpus=1, num_gpus=1 if wants_gpu else 0)(train_seeds)
        running = [task.remote(recipe, [first])]
        running += [task.remote(recipe, [seed], fresh=False) for seed in rest]
        ray.get(running)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, SegtailorError) else error
        raise SegtailorError(f"a task of the comparison failed: {reason(cause)}") from error
    finally:
        if started:
            ray.shutdown()
