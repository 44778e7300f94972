"""The model, its KV cache and what a step runs on the device.

Imported before torch is: what its OpenMP runtime reads from the environment is set here.
"""

import os

# Threads that wait for each other at the end of a parallel loop spin this often and then sleep. By default they spin
# on, and when another busy process (the front end, a neighbour) has taken the core of the one they wait for, they keep
# that one from running: on two cores with such company the limit was worth a factor of 1.4 to 3. The gap between two
# loops of a step is shorter than the limit, so that alone on its cores the engine loses nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
