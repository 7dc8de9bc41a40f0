"""The engine `fanin-1`: every random number is a function of (seed, name, row, column).

No global state, no order: two tensors, two shards or two machines that ask for the same element
get the same bits. `draws` is the specification, in numpy; docs/engine.md states it in words;
`kernels` draws the same, compiled.
"""

from . import laws as laws
from .backend import Draw as Draw
from .backend import Memory as Memory
from .draws import bounded_normal as bounded_normal
from .draws import normal as normal
from .draws import ranked as ranked
from .draws import thresholds as thresholds
from .draws import truncated_normal as truncated_normal
from .draws import uniform as uniform
from .orthogonal import haar as haar
from .philox import Elements as Elements
from .stream import ENGINE as ENGINE
from .stream import Stream as Stream
