"""Which network joins the machines of a run: gloo guesses it by the host's name, often wrongly, and then waits."""

import os
import socket

import psutil

from lorasmith.engine import this_engine

GLOO = "GLOO_SOCKET_IFNAME"


def choose_interface() -> tuple[str, str] | None:
    """Tell gloo the network interface through which the first machine is reached, before it is asked for one.

    Returns:
        The interface and the first machine's address; None on one machine, or where the user has named one.
    """
    address = os.environ.get("MASTER_ADDR")
    if this_engine().machines == 1 or not address or GLOO in os.environ:
        return None
    name = interface_to(address)
    if name is None:
        return None
    os.environ[GLOO] = name
    return name, address


def interface_to(address: str) -> str | None:
    """The network interface of this machine that packets for an address are sent from, if there is one."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect(target)  # sends nothing
            own = asking.getsockname()[0]
    except OSError:
        return None
    held = psutil.net_if_addrs().items()
    return next((name for name, found in held if any(one.address.partition("%")[0] == own for one in found)), None)
