"""Whether a data set is fit to learn a quadratic Q-function from: persistence of excitation.     [LMI, Remark 1]"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from torchq.quadratic import forms
from torchq.quadratic.forms import Quadratic, Sample, action_features

_CONDITION_LIMIT = 1e6
_DUPLICATE_SHARE = 0.1
_WEAK_EXPLORATION = 1e-3
_PESSIMISTIC_SHARE = 1e-3
_STABLE_MARGIN = 0.05
_ITERATIONS = 200


class Excitation(NamedTuple):
    """What the stacked features of a data set can identify."""

    num_samples: int
    num_distinct: int
    """Samples that are not copies of another."""
    num_parameters: int
    """Entries of triu P, S and triu R."""
    rank: int
    """Numerical rank of the features, columns scaled to unit length."""
    condition: float
    """Largest over smallest singular value of the scaled features; infinite below full rank."""
    weakest: tuple[str, ...]
    """The monomials that dominate the direction that the data say least about."""
    baseline_radius: float
    """√γ·ρ of the least-squares model φ⁺ ≈ Aφ + Bũ at ũ = 0: 1 or more means that V_b may not be finite;
    NaN if the samples are too few to tell."""
    curvature: float
    """Smallest eigenvalue of R by `least_squares_iteration`; NaN if the samples are too few to tell."""
    pessimism: float
    """Share of Σ|V − V_b| where the V of that iteration is above V_b; NaN if it did not converge to an R ≻ 0."""
    noise: float
    """Root mean square of its residuals over that of V − V_b: what falls below it may be chance. NaN likewise."""

    @property
    def pessimistic(self) -> bool:
        """Whether V_b seems to lie below the best values, by more than chance: then `dev` gives wrong gains."""
        return self.pessimism > _PESSIMISTIC_SHARE + 2.0 * self.noise


def least_squares_iteration(sample: Sample, gamma: float, num_iterations: int = _ITERATIONS) -> Quadratic:
    """Quadratic Q-function by fitted value iteration without inequalities: quick, exact without noise, else rough.

        z ← argmin ‖Ψz − (r + γ(V_b⁺ + φ⁺ᵀ(P + SR⁻¹Sᵀ)φ⁺) − V_b)‖₂             (Bradtke 1993; Ernst et al. 2005)

    A data set where R is not positive goes no further. Any leading batch dimensions.
    """
    p, m = sample.phi.shape[-1], sample.deviation.shape[-1]
    inverse = torch.linalg.pinv(action_features(sample.phi, sample.deviation))
    constant = forms.linear(sample.reward + gamma * sample.next_value - sample.value, inverse)
    # Of the upper triangle of P + W: (*batch, parameters, entries).
    following = gamma * (inverse.unsqueeze(-1) * forms.monomials(sample.next_phi).unsqueeze(-3)).sum(-2)
    q = Quadratic(*(part.expand(*sample.phi.shape[:-2], *part.shape) for part in forms.baseline(p, m)))
    going = torch.ones(sample.phi.shape[:-2], dtype=torch.bool)
    for _ in range(num_iterations):
        mask = going[..., None, None]
        whole = q._replace(R=torch.where(mask, q.R, torch.eye(m, dtype=q.R.dtype)))  # The others may have no R⁻¹.
        z = constant + forms.linear(forms.to_triangle(whole.P + forms.coupling(whole)), following)
        q = Quadratic(*(torch.where(mask, new, old) for new, old in zip(forms.unpack(z, p, m), q, strict=True)))
        going = going & (torch.linalg.eigvalsh(torch.nan_to_num(q.R))[..., 0] > 0)
        if not going.any():
            break
    return q


def excitation(
    sample: Sample, gamma: float, names: Sequence[str] | None = None, rough: Quadratic | None = None
) -> Excitation:
    """Rank and conditioning of the features of Q(x, u), and a test of the baseline.

    Args:
        sample: the data.
        gamma: discount γ.
        names: of the features φ; default φ1, φ2, …
        rough: what `least_squares_iteration` finds, where that is known already.

    Raises:
        ValueError: if shapes do not fit each other, or a number is not finite: it names the field.
    """
    _check(sample)
    num_samples, p = sample.phi.shape
    m = sample.deviation.shape[1]
    features = action_features(sample.phi, sample.deviation)
    lengths = features.norm(dim=0)
    typical = sample.phi.abs().mean()
    floor = torch.finfo(features.dtype).tiny
    scaled = features / lengths.clamp_min(floor)
    # A control that hardly moves is not excited, however well its columns could be scaled up.
    weak = sample.deviation.abs().amax(0) < _WEAK_EXPLORATION * typical
    labels = _labels(list(names) if names is not None else [f"φ{i + 1}" for i in range(p)], m)
    silent = torch.tensor([any(weak[j] and f"ũ{j + 1}" in label for j in range(m)) for label in labels])
    scaled = torch.where(silent, 0.0, scaled)
    _, values, directions = torch.linalg.svd(scaled, full_matrices=True)
    full = torch.zeros(len(labels), dtype=features.dtype)
    full[: len(values)] = values
    rank = int((full > full[0] / _CONDITION_LIMIT / 10).sum())
    order = directions[-1].abs().argsort(descending=True)
    weakest = tuple(labels[i] for i in order.tolist() if directions[-1][i].abs() > 0.4 * directions[-1].abs().max())
    stacked = torch.cat((sample.phi, sample.deviation), dim=1)
    model = torch.linalg.lstsq(stacked, sample.next_phi, driver="gelsd").solution[:p].mT
    rows = torch.cat((stacked, sample.next_phi), dim=1)
    return Excitation(
        num_samples,
        len(rows.unique(dim=0)),
        len(labels),
        rank,
        float(full[0] / full[-1]) if full[-1] > 0 else float("inf"),
        weakest,
        gamma**0.5 * torch.linalg.eigvals(model).abs().max().item() if num_samples >= 2 * len(labels) else math.nan,
        *_rough_value(sample, gamma, rough, enough=rank == len(labels) and num_samples >= 2 * len(labels)),
    )


def _rough_value(sample: Sample, gamma: float, rough: Quadratic | None, *, enough: bool) -> tuple[float, float, float]:
    """`curvature`, `pessimism` and `noise`, or NaN."""
    if not enough:
        return math.nan, math.nan, math.nan
    q = least_squares_iteration(sample, gamma) if rough is None else rough
    curvature = torch.linalg.eigvalsh(torch.nan_to_num(q.R)).min().item()
    if curvature <= 0:
        return curvature, math.nan, math.nan
    gained = forms.form(sample.phi, q.P + forms.coupling(q))
    # One that grew without bound is no estimate of anything.
    if not gained.abs().max() < 1e6 * (sample.value.abs().max() + sample.reward.abs().max()):
        return curvature, math.nan, math.nan
    above = gained.clamp_min(0.0).sum() / gained.abs().sum().clamp_min(1e-300)
    residual = forms.bellman_residuals(sample, gamma, q)
    return curvature, above.item(), (residual.norm() / gained.norm().clamp_min(1e-300)).item()


def diagnose(
    sample: Sample,
    gamma: float,
    names: Sequence[str] | None = None,
    *,
    constraint: str = "tot",
    rough: Quadratic | None = None,
) -> list[str]:
    """What is wrong with a data set and what to do, one sentence each; empty if nothing was found.

    Arguments and errors as in `excitation`.

    Args:
        sample: the data.
        gamma: discount γ.
        names: of the features.
        constraint: "dev" if the learner keeps the deviation from V_b below zero: then V_b must not be pessimistic.
        rough: as in `excitation`.
    """
    found = excitation(sample, gamma, names, rough)
    sentences = []
    if found.num_distinct <= (1 - _DUPLICATE_SHARE) * found.num_samples:
        sentences.append(
            f"only {found.num_distinct} of {found.num_samples} samples are distinct: remove copies and collect more"
        )
    if found.num_distinct < found.num_parameters:
        sentences.append(
            f"{found.num_distinct} distinct samples interpolate {found.num_parameters} parameters: collect twice as "
            "many samples as parameters or more"
        )
    if found.rank < found.num_parameters or found.condition > _CONDITION_LIMIT:
        sentences.append(
            f"the data do not excite {', '.join(found.weakest)} (rank {found.rank} of {found.num_parameters}): explore "
            "more in control and state, or drop the feature"
        )
    if found.baseline_radius >= 1.0 + _STABLE_MARGIN:
        sentences.append(
            f"the baseline seems not to stabilise (√γ·ρ is about {found.baseline_radius:.2f}): LMI-QL may find a wrong "
            "root, which LMI-QLi does not: take that, or a better baseline"
        )
    if found.curvature <= 0:
        sentences.append(
            f"the data suggest a Q that is not concave in the control (R about {found.curvature:.1e}): explore more "
            "strongly, or collect more samples; LSPI would take such an R"
        )
    if constraint == "dev" and found.pessimistic:
        sentences.append(
            f"V_b seems pessimistic (better values at {found.pessimism:.1%} of the deviation), but the constraint dev "
            "keeps all values below it: use the constraint tot, or a more optimistic V_b"
        )
    return sentences


def explain(error: str, sample: Sample, gamma: float, *, constraint: str = "tot") -> str:
    """A failed solve in one line: what the solver said, then what the data say about it."""
    try:
        findings = diagnose(sample, gamma, constraint=constraint)
    except (ValueError, RuntimeError) as problem:
        findings = [str(problem)]
    return "; ".join([error, *(findings or ["the data show no fault: scale them to the order of 1"])])


def _labels(names: list[str], m: int) -> list[str]:
    """Names of the columns of `action_features`."""
    controls = [f"ũ{j + 1}" for j in range(m)]

    def square(labels: list[str]) -> list[str]:
        return [f"{a}²" if i == j else f"{a}·{labels[j]}" for i, a in enumerate(labels) for j in range(i, len(labels))]

    return square(names) + [f"{a}·{c}" for a in names for c in controls] + square(controls)


def _check(sample: Sample) -> None:
    num_samples, p = sample.phi.shape if sample.phi.dim() == 2 else (-1, -1)
    m = sample.deviation.shape[-1]
    expected = {
        "phi": (num_samples, p),
        "deviation": (num_samples, m),
        "reward": (num_samples,),
        "next_phi": (num_samples, p),
        "value": (num_samples,),
        "next_value": (num_samples,),
    }
    for name, shape in expected.items():
        tensor = getattr(sample, name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape (samples, …) = {shape}, got {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; remove those samples")
