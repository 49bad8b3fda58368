"""A gradient that was flushed becomes an update of its state, wherever that is."""

from collections.abc import Callable
from functools import partial

from slideformer.engine.durable import DurableState
from slideformer.engine.updates import StepUpdates, Updates
from slideformer.lanes.lanes import Lanes
from slideformer.memory.device_state import DeviceState
from slideformer.memory.gradients import HostGradient
from slideformer.optim.adamw import AdamWStep

ON_DEVICE_FIRST = -2  # it takes the worker no time


class Submission:
    """Submits updates of states to the worker, or to the device."""

    def __init__(self, lanes: Lanes, updates: Updates):
        self._lanes, self._updates = lanes, updates

    def submit(self, step: StepUpdates, state: DurableState, next_use: int, landed: HostGradient) -> None:
        """Queue the update of a state with a gradient [trained_numel]."""
        if isinstance(state, DeviceState):
            self.submit_on_device(step, state, [landed], partial(state.apply, landed.flat, landed.reached))
            return

        def update(hyper: AdamWStep) -> None:
            state.update(landed.flat, landed.reached, hyper)

        self._updates.submit(step, state.name, next_use, [landed], update)

    def submit_on_device(
        self, step: StepUpdates, state: DeviceState, landed: list[HostGradient], apply: Callable[..., None]
    ) -> None:
        """Queue the update of a state on the device.

        Without a norm to wait for, it follows at once, where the gradient was computed.

        Args:
            apply: (hyper, gates) -> None, in whichever lane; unless all gates are finite, it changes nothing.
        """
        if step.max_norm is None:
            for gradient in landed:
                if gradient.copied is not None:
                    self._lanes.compute.wait(gradient.copied)
            self._updates.about_to_change(state.name, step)
            state.change(self._lanes.compute, apply, step.hyper, [gradient.device_squares for gradient in landed])
            self._updates.submit(step, state.name, ON_DEVICE_FIRST, landed, None)
            return
        on_update_lane = partial(state.change, self._lanes.update, apply)
        self._updates.submit(step, state.name, ON_DEVICE_FIRST, landed, lambda hyper: on_update_lane(hyper, ()))
