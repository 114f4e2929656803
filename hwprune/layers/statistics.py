"""The statistics that calibration collects of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hwprune.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Statistics of one linear or convolution layer.

    Sizes: the weight is (out, in / G, *kernel) with G groups; d = in / G * kernel positions is the number of columns of one
    group, numbered as in ``weight.flatten(1)``. What was not collected is None. Means are over examples and output positions.

    Attributes:
        groups: G.
        weight_outputs, weight_inputs: out and in / G.
        rows: positions that `covariance`, `mean` and `input_square` were averaged over.
        covariance, mean: (G, d, d) and (G, d) of the columns; kept apart, because the second moment of inputs with a large
            mean loses their covariance to rounding.
        input_square: (G, d), mean of x^2.
        channel_mean, channel_variance, channel_abs, channel_zero: (in,), of the inputs themselves: mean, variance, mean
            absolute value, share of exact zeros (APoZ: Hu et al. 2016).
        grad_abs: the weight's shape, mean over examples of abs(gradient of the example's loss).
        fisher: the weight's shape, mean over examples of the squared gradient: the diagonal of the empirical Fisher information.
        taylor_in, taylor_out: (examples, in) and (examples, out): sum of weight * gradient over everything that an input
            or output channel owns, for each example.
    """

    groups: int = 1
    rows: int = 0
    weight_outputs: int | None = None
    weight_inputs: int | None = None
    covariance: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    input_square: torch.Tensor | None = None
    channel_mean: torch.Tensor | None = None
    channel_variance: torch.Tensor | None = None
    channel_abs: torch.Tensor | None = None
    channel_zero: torch.Tensor | None = None
    grad_abs: torch.Tensor | None = None
    fisher: torch.Tensor | None = None
    taylor_in: torch.Tensor | None = None
    taylor_out: torch.Tensor | None = None

    @classmethod
    def of_inputs(cls, inputs: torch.Tensor) -> LayerStatistics:
        """The statistics of a linear layer that was fed ``inputs`` (..., in): Gram matrix, norms and channel statistics."""
        x = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        if not len(x) or not bool(torch.isfinite(x).all()):
            raise UsageError("statistics need at least one row of inputs, all of them finite")
        mean = x.mean(dim=0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        return cls(
            weight_inputs=x.shape[1],
            rows=len(x),
            covariance=covariance.float()[None],
            mean=mean.float()[None],
            input_square=x.square().mean(dim=0).float()[None],
            channel_mean=x.mean(dim=0).float(),
            channel_variance=x.var(dim=0, unbiased=False).float(),
            channel_abs=x.abs().mean(dim=0).float(),
            channel_zero=(x == 0).double().mean(dim=0).float(),
        )

    def missing(self, names: Iterable[str]) -> list[str]:
        """The fields among ``names`` that were not collected."""
        return [name for name in names if getattr(self, "covariance" if name == "gram" else name) is None]

    @property
    def gram(self) -> torch.Tensor | None:
        """(G, d, d) float64: second moment of the columns; None if it was not collected."""
        return None if self.covariance is None else self.hessian(centred=False)

    def hessian(self, *, centred: bool) -> torch.Tensor:
        """(G, d, d) float64, not damped: second moment of the inputs, or their covariance if the layer's bias is free to move."""
        if self.covariance is None or self.mean is None:
            raise UsageError("this needs Gram matrices, which were not collected")
        mean = self.mean.double()
        return self.covariance.double() if centred else self.covariance.double() + mean[:, :, None] * mean[:, None, :]

    def restricted(self, out: torch.Tensor, inner: torch.Tensor) -> LayerStatistics:
        """The statistics of the layer after a cut, or with channels in another order.

        Args:
            out: positions of the outputs that are left; a group without any is gone.
            inner: positions of the inputs of each group that are left.
        """
        group = torch.zeros(1, dtype=torch.int64)
        if self.groups > 1 and self.weight_outputs is not None:
            group = torch.unique_consecutive(out // (self.weight_outputs // self.groups))

        def columns(d: int, channels: int) -> torch.Tensor:
            kernel = d // channels
            return (inner[:, None] * kernel + torch.arange(kernel)).reshape(-1)

        def channels(x: torch.Tensor | None) -> torch.Tensor | None:
            if x is None:
                return None
            grouped_values = x.reshape(*x.shape[:-1], self.groups, -1)
            return grouped_values[..., group, :][..., inner].flatten(-2)

        def weights(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[out][:, inner]

        covariance, mean, square = self.covariance, self.mean, self.input_square
        if square is not None and self.weight_inputs is not None:
            picked = columns(square.shape[-1], self.weight_inputs)
            square = square[group][:, picked]
            if covariance is not None and mean is not None:
                covariance, mean = covariance[group][:, picked][:, :, picked], mean[group][:, picked]
        return dataclasses.replace(
            self,
            groups=len(group),
            weight_outputs=len(out),
            weight_inputs=len(inner),
            covariance=covariance,
            mean=mean,
            input_square=square,
            channel_mean=channels(self.channel_mean),
            channel_variance=channels(self.channel_variance),
            channel_abs=channels(self.channel_abs),
            channel_zero=channels(self.channel_zero),
            grad_abs=weights(self.grad_abs),
            fisher=weights(self.fisher),
            taylor_in=channels(self.taylor_in),
            taylor_out=None if self.taylor_out is None else self.taylor_out[:, out],
        )
