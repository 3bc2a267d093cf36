"""A line between two network interfaces, `near` and `far`, as a bad line is: each packet
takes a while, some are lost. Standard input says how: `DELAY_MS LOSS_PERCENT`, a line for
each change; 100 percent is a partition. Says `ready` when there are interfaces, and `ok`
after each change. Needs no netem in the kernel."""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
PACKET = 65536


def interface(name):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    return tun


def put(tun, packet):
    try:
        os.write(tun, packet)
    except OSError:
        pass  # The interface is not up, or its queue is full: lost, as on any line.


def main():
    near, far = interface("near"), interface("far")
    print("ready", flush=True)
    other = {near: far, far: near}
    delay, loss, under_way, count = 0.0, 0.0, [], 0
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([near, far, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            line = sys.stdin.readline()
            if not line:
                return
            delay, loss = (float(word) for word in line.split())
            delay, loss = delay / 1000, loss / 100
            print("ok", flush=True)
        for tun in readable:
            if tun is sys.stdin:
                continue
            try:
                packet = os.read(tun, PACKET)
            except OSError:
                continue
            if random.random() >= loss:
                # The count keeps the order of packets that are due together.
                heapq.heappush(under_way, (time.monotonic() + delay, count, other[tun], packet))
                count += 1
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(under_way)
            put(tun, packet)


main()
