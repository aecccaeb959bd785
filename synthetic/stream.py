"""An endless stream of a world's batches that can be stopped and resumed bit for bit.

A stream is a generator seeded by the world's fingerprint and the stream's name: "train" and "eval" are different
data, and so are "train:0" and "train:1". Random numbers are drawn on the CPU whatever the device, so index, coords,
theta and noise are the same everywhere; x, their sum, can differ between devices in the last bit of float32.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from synthetic.batch import Batch
from synthetic.errors import UsageError
from synthetic.source import State

if TYPE_CHECKING:
    from synthetic.world import World


def derived_generator(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread inside: a batch is many small operations, whose threads mostly wait for one another.

    Alone on two cores that takes a third longer; beside other processes it took 3 to 50 times less processor time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class WorldStream:
    """Batches of `size` rows of `world`: a Source (next gives x), with `batch` for the rows and their truth."""

    def __init__(self, world: "World", size: int, device: "torch.device | str" = "cpu", stream: str = "train") -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"the batch size is {size!r}; expected an integer >= 1")
        if not isinstance(stream, str) or not stream:
            raise UsageError(f"the stream is {stream!r}; expected a name such as 'train' or 'eval'")
        self.world, self.size, self.device, self.stream = world, size, torch.device(device), stream
        self.width = world.width
        self.position = 0
        self._identity = f"{world.fingerprint()}/{stream}/{size}"
        self._generator = derived_generator(world.fingerprint(), "stream", stream)

    def __iter__(self) -> "WorldStream":
        return self

    def __next__(self) -> "Float[Tensor, 'B D']":
        x = self.world.rows(self.size, self._generator, self.device)
        self.position += 1
        return x

    def batch(self) -> Batch:
        """The next rows with their truth."""
        batch = self.world.sample(self.size, self._generator, self.device)
        self.position += 1
        return batch

    def state_dict(self) -> State:
        """Where the stream stands: generator state and number of batches given, with the stream's identity."""
        return {
            "identity": self._identity,
            "position": self.position,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state` was taken; raises UsageError when it is of another world, stream or batch size."""
        if state.get("identity") != self._identity:
            raise UsageError(
                f"this state is of stream {state.get('identity')!r}, not {self._identity!r} (world/stream/batch size); "
                "resume with the settings the run was started with"
            )
        self.position = int(state["position"])
        self._generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8).cpu())
