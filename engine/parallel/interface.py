"""Which network interface leads to the other hosts of a run. gloo takes the one that the host's own name leads to: on
many that is loopback (127.0.1.1 beside the name in /etc/hosts), where no other host finds it. NCCL looks for itself,
and not there.
"""

import os
import socket
from contextlib import suppress
from ipaddress import ip_address

import psutil
import torch.distributed as dist

from engine.parallel.parts import Rank

GLOO = "GLOO_SOCKET_IFNAME"  # gloo's own; who sets it has chosen


def choose_interface(store: dist.Store, rank: Rank, first: str) -> None:
    """Have gloo use the interface by which this host reaches `first`, the address where all meet. All ranks call it
    before they connect. Raises RuntimeError where one is not heard of."""
    mine = _own_address(first)
    store.set(_key(rank.number), mine)
    others = [store.get(_key(number)).decode() for number in range(rank.world)]
    if _inward(mine):  # on the first host its name may be loopback's: it is reached as it reaches another
        mine = next((_own_address(other) for other in others if not _inward(other)), mine)
    name = _interface(mine)
    if name:
        os.environ.setdefault(GLOO, name)


def _inward(address: str) -> bool:
    return not address or ip_address(address).is_loopback


def _own_address(other: str) -> str:
    """The address from which this host would speak to another; "" where nothing leads there. Nothing is sent."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind) as asked:
                asked.connect(address)
                return str(asked.getsockname()[0])
    return ""


def _interface(address: str) -> str:
    """The name of the one that has an address; "": none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return ""


def _key(rank: int) -> str:
    return f"wanlora/reached/{rank}"
