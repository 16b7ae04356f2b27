"""The environments' steps in Triton, for the fused engine on a GPU; importing this needs Triton.

Scalars of one environment: `observe(s0, …, s4)` gives four numbers, of which a family uses as many as it has
dimensions, and `step(s0, …, s4, p0, …, p3, action, u0, …, u4)` the next state and the reward. Fields and parameters
are in the order of the state and of the task; what a family does not have is passed through.
"""

import triton
import triton.language as tl

# Constants of the compiler: a plain number with a name of its own becomes one of single precision.
PI = tl.constexpr(3.141592653589793)
KEEP = tl.constexpr(0.7**0.5)
INNOVATION = tl.constexpr((0.3 * 2.5) ** 0.5)


@triton.jit
def _clip(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def observe_pendulum(s0, s1, s2, s3, s4):
    """(θ, θ̇)."""
    return s0, s1, s0, s0


@triton.jit
def step_pendulum(s0, s1, s2, s3, s4, p0, p1, p2, p3, action, u0, u1, u2, u3, u4):
    """envs.pendulum.Pendulum.step with its default constants."""
    torque = -2.0 + action.to(s0.dtype) * (4.0 / 9.0)
    reward = -(s0 * s0 + 0.1 * s1 * s1 + 0.1 * torque * torque)
    acceleration = 15.0 / p1 * tl.sin(s0) + 3.0 * torque / (p0 * p1 * p1)
    speed = _clip(s1 + acceleration * 0.05, -8.0, 8.0)
    moved = s0 + speed * 0.05 + PI
    wrapped = tl.where(moved >= 2.0 * PI, moved - 2.0 * PI, tl.where(moved < 0, moved + 2.0 * PI, moved))
    return wrapped - PI, speed, s2, s3, s4, reward


@triton.jit
def observe_wireless(s0, s1, s2, s3, s4):
    """(gain, occupied, queue, battery)."""
    return s0 * s0 + s1 * s1, s2, s3, s4


@triton.jit
def step_wireless(s0, s1, s2, s3, s4, p0, p1, p2, p3, action, u0, u1, u2, u3, u4):
    """envs.wireless.Wireless.step with its default constants."""
    power = tl.minimum(action.to(s0.dtype) * (2.0 / 9.0), s4)
    gain = s0 * s0 + s1 * s1
    rate = tl.log2(1.0 + gain * power) * (1.0 - s2) * (s4 > 0).to(s0.dtype)
    battery = _clip(s4 - power + p0 * (u3 < p1).to(s0.dtype), 0.0, 10.0)
    queue = _clip(s3 - rate + p2 * (u4 < p3).to(s0.dtype), 0.0, 10.0)
    reward = 1.5 * tl.log(1.0 + battery) - 0.5 * queue
    radius, angle = tl.sqrt(-2.0 * tl.log(1.0 - u0)), 6.283185307179586 * u1
    real = KEEP * s0 + INNOVATION * radius * tl.cos(angle)
    imaginary = KEEP * s1 + INNOVATION * radius * tl.sin(angle)
    return real, imaginary, (u2 < 0.2).to(s0.dtype), queue, battery, reward


STEPS = {"pendulum": (observe_pendulum, step_pendulum), "wireless": (observe_wireless, step_wireless)}
