"""How the learning rate and the moving average's decay change over the training."""

from __future__ import annotations

from stages.core.elementary import PI, cos


def scheduled(learning_rate: float, schedule: str, progress: float) -> float:
    """Return the learning rate at `progress`, the part of the training that is done (0 to 1).

    Args:
        learning_rate: its peak.
        schedule: `constant`; `step`: a tenth of it from 1/2 on, a hundredth from 3/4 on;
            `cosine`: along half a cosine down to 0 (Loshchilov and Hutter 2017, eq. 5);
            `one_cycle`: linearly up from 1/25 of it during the first 30 %, then along half a
            cosine down to 0 (after Smith and Topin 2019).
        progress: at least 0, below 1.
    """
    if schedule == "step":
        return learning_rate * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    if schedule == "cosine":
        return learning_rate * 0.5 * (1.0 + cos(PI * progress))
    if schedule == "one_cycle":
        if progress < 0.3:
            return learning_rate * (0.04 + 0.96 * progress / 0.3)
        return learning_rate * 0.5 * (1.0 + cos(PI * (progress - 0.3) / 0.7))
    return learning_rate


def effective_decay(ema_decay: float, step: int) -> float:
    """Return the moving average's decay in a step, numbered from 1.

    It grows to its full size: a short training's average must not be its start.
    """
    return min(ema_decay, (1.0 + step) / (10.0 + step))
