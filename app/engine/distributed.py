"""Several processes as one trainer: FSDP2 over a device mesh, and what they must agree on.

Each of R processes (ranks) holds a 1/R shard of every weight, gradient and moment and reads a 1/R slice of every batch.
A layer's weights are gathered just before it runs and freed after; gradients are averaged as they are scattered:

    grad = (1 / R) sum_r grad_r,     loss = (1 / R) sum_r loss_r

======  ==========================================================================  =====
symbol  meaning                                                                     unit
======  ==========================================================================  =====
R, r    processes (``WORLD_SIZE``), one of them (``RANK``), as torchrun sets them   -
loss_r  mean over the sequences of the rank's slice; slices are equally long        nats
======  ==========================================================================  =====

So both are means over the whole batch, as with one process, up to the order of the sums. Only rank 0 (main) writes
the run directory; what rank 0 finds there reaches the others through :meth:`Agreement.from_main`. One process needs
none of this: no process group, no sharding, and every method returns what it was given. FSDP2: Zhao et al., arXiv
2304.11277, redone per parameter in torch's ``fully_shard``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from app.engine.data import share_of_rank
from app.engine.launch import Launch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Small messages between all ranks over the CPU; every method must be called by all of them in the same order.

    Two of them on different groups may be used by two threads at once.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_main(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns or raises on rank 0, on every rank: they go on alike or fail alike."""
        if self.size == 1:
            return compute()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = compute()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0, group=self.group)
        value, failure = answer
        if failure is not None:
            raise failure
        return cast(T, value)

    def together(self, compute: Callable[[], T]) -> list[T]:
        """Every rank's ``compute()``; an exception of any rank, the lowest first, is raised on all."""
        if self.size == 1:
            return [compute()]
        mine: tuple[Any, Exception | None]
        try:
            mine = compute(), None
        except Exception as error:
            mine = None, error
        answers = self.gather(mine)
        for _, failure in answers:
            if failure is not None:
                raise failure
        return [cast(T, value) for value, _ in answers]

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags)


class World:
    """The processes of one run as one of them sees them.

    Attributes:
        device: where this rank trains.
        main: agreement of the threads that train.
        saving: agreement of the threads that save in the background.

    Args:
        launch: this process's place among all.
        device_type: ``cpu`` (gloo) or ``cuda`` (nccl, one device a rank).
    """

    def __init__(self, launch: Launch, device_type: str) -> None:
        self.rank, self.size = launch.rank, launch.size
        self._mesh: DeviceMesh | None = None
        if launch.size == 1:
            self.device = torch.device(device_type)
            self.main = self.saving = Agreement()
            return
        if device_type == "cuda":
            self.device = torch.device("cuda", launch.local_rank)
            torch.cuda.set_device(self.device)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=self.device)
        else:
            self.device = torch.device("cpu")
            dist.init_process_group("gloo")
        self._mesh = init_device_mesh(device_type, (launch.size,), mesh_dim_names=("shard",))
        self.main, self.saving = (
            Agreement(rank=launch.rank, size=launch.size, group=dist.new_group(backend="gloo")) for _ in range(2)
        )

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes the run directory."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's slice of ``count`` things, which the number of ranks must divide."""
        return share_of_rank(count, rank=self.rank, size=self.size)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a scalar over the ranks, on the device and without waiting for it there."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def place(self, model: torch.nn.Module) -> None:
        """Bring a whole model to the device, in place; over several ranks sharded, layer by layer and then the rest.

        Every rank must hold the same weights, on any device. Activation checkpointing and compilation of layers come
        before this, the optimizer after it.
        """
        if self._mesh is None:
            model.to(self.device)
            return
        for layer in _layers(model):
            fully_shard(layer, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)

    def close(self) -> None:
        """Leave the group; the last thing a rank does, after its saves."""
        if self._mesh is not None:
            dist.destroy_process_group()


def _layers(model: torch.nn.Module) -> Iterable[torch.nn.Module]:
    """The model's stack of layers: its longest list of modules."""
    return max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len, default=())


def reshard(model: torch.nn.Module) -> None:
    """Free what a forward pass without a backward pass left gathered: else its parameters are copies, without state."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's whole value, gathered on its device where it is sharded (then all ranks must call this)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole ``value``, the same on all ranks, into ``target``; a rank takes only its shard, none is sent."""
    value = value.detach().to(target.device)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def gather_into(target: torch.nn.Module, source: torch.nn.Module) -> None:
    """Copy the whole weights of a sharded model into an unsharded one of its shape, one tensor at a time."""
    parameters = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        put(parameter, whole(parameters[name].detach()))
