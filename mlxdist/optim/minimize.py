"""Loss and gradients in one call that owns them, so that none is held by the caller.

In `loss, grads = ...; optimizer.update(model, grads)` the caller's name holds all
gradients until the next step. Here each is dropped when its bucket has been sent, or
stepped (ZeRO stage 2: Rajbhandari et al., SC 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx.nn import Module

from ..arrays.trees import leaves_of, structure, trainable
from ..arrays.types import Array, Tree
from ..comm.agreement import error_text
from .batch import Batch, TreeIndexes, read_batch

LossFunction = Callable[..., Tree]
CALL = "minimize"


class Computation(NamedTuple):
    """A loss function and what it is called with.

    Attributes:
        model: a module, whose trainable parameters the gradients are for, or a tree.
        loss_scale: what the loss is multiplied by before gradients are taken, or None.
    """

    loss_fn: LossFunction
    model: Tree
    batch: Sequence[object]
    keywords: Mapping[str, object]
    loss_scale: Array = None

    def run(
        self, index: TreeIndexes | None, weight: float | None
    ) -> tuple[Tree, Batch]:
        """Return what the loss function returns, and its gradients, all lazy.

        Nothing else refers to the gradients.

        Args:
            index: of the trees of earlier steps.
            weight: how much this rank's gradients count.
        """
        value, gradients = self._value_and_gradients()
        outputs = [a for a in leaves_of(value).values() if isinstance(a, mx.array)]
        batch = read_batch(index, gradients, self.model, weight)
        batch.tree, batch.call, batch.outputs = structure(gradients), CALL, outputs
        return value, batch

    def _value_and_gradients(self) -> tuple[Tree, Tree]:
        """As `nn.value_and_grad`, of a loss that is scaled; the one returned is not."""
        model = self.model
        is_module = isinstance(model, Module)
        parameters = trainable(model)

        def scaled(parameters: Tree, *batch: object, **keywords: object) -> Tree:
            if is_module:
                model.update(parameters)
            value = self.loss_fn(model if is_module else parameters, *batch, **keywords)
            if self.loss_scale is None:
                return value
            loss = value[0] if isinstance(value, tuple) else value
            return loss * self.loss_scale, value

        value, gradients = mx.value_and_grad(scaled)(
            parameters, *self.batch, **self.keywords
        )
        return (value if self.loss_scale is None else value[1]), gradients


def nothing_trainable(model: Tree) -> str | None:
    """Return why no gradients can be taken, where there are no parameters for them."""
    if leaves_of(trainable(model)):
        return None
    return (
        "the model has no trainable parameters: unfreeze those that `minimize` is to "
        "step, as model.unfreeze() does with all of them"
    )


def failed(error: Exception, model: Tree, weight: float | None) -> Batch:
    """Return the batch of a rank whose loss function raised an error.

    Parameters stand for the gradients that it has not.
    """
    parameters = leaves_of(trainable(model))
    problem = nothing_trainable(model) or (
        f"the loss function raised {error_text(error)}"
    )
    return Batch(dict(parameters), parameters, weight, problem, call=CALL)
