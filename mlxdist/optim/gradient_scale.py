"""What the mean gradients are multiplied by: the inverse loss scale, and clipping."""

from __future__ import annotations

import mlx.core as mx

from ..arrays.types import Array
from .grad_norm import Norm, clip_scale
from .loss_scale import make_loss_scale
from .options import Options


class GradientScale:
    """The loss scale and the norm of an optimizer's gradients, from step to step.

    Attributes:
        loss_scale: doubles and halves where it is dynamic.
        norm: of the last mean gradients, where it was measured outside of mx.compile.
    """

    def __init__(self, options: Options):
        self._max_norm = options.max_norm
        self._scales_losses = options.loss_scale is not None
        self.loss_scale = make_loss_scale(options.loss_scale)
        self.norm: Array | None = None

    @property
    def of_loss(self) -> Array | None:
        """What a loss is multiplied by, a float32 scalar; None where it isn't."""
        return mx.array(self.loss_scale.value) if self._scales_losses else None

    def require_norm(self) -> Array:
        """Return the last step's norm; ValueError where it was not measured."""
        if self._max_norm is None:
            raise ValueError(
                "grad_norm is measured with max_norm only; max_norm=math.inf measures "
                "without clipping"
            )
        if self.norm is None:
            raise ValueError(
                "there is no grad_norm yet: nothing was updated, or inside mx.compile"
            )
        return self.norm

    def of_means(self, norm: Norm) -> Array | None:
        """The factor on mean gradients that unscales and clips them."""
        max_norm, value, scale = self._max_norm, norm.value, None
        if self._scales_losses:
            scale = mx.array(1 / self.loss_scale.value)
            value = None if value is None else value * scale
        if max_norm is not None and value is not None:
            self.norm = None if norm.is_traced else value
            clip = clip_scale(value, max_norm)
            scale = clip if scale is None else clip * scale
        return scale

    def overflowed(self, norm: Norm) -> bool:
        """Lower the loss scale where gradients are not finite; False if it can't be."""
        self.norm = None if self._max_norm is None else norm.value
        return self.loss_scale.overflowed()
