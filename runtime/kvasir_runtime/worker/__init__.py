"""The model, its KV cache and what a step runs on the device.

Imported before torch is: what torch and its OpenMP runtime read from the environment is set here.
"""

import os

# Threads that wait for each other at the end of a parallel loop spin this often and then sleep. By default they spin
# on, and when another busy process (the front end, a neighbour) has taken the core of the one they wait for, they keep
# that one from running: on two cores with such company the limit was worth a factor of 1.4 to 3.
# It is some tens of microseconds: most gaps between two loops of a step are still spun through.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# torch asks the kernel for huge pages: weights are read from beginning to end in each step, and with small pages a core
# reads them at little more than half the speed (16 against 31 GB/s in one run of benchmarks/cpu_kernels.py).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
