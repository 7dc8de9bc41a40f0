"""Rules of moments: what each op does to E[x] and E[x x'], forward and backward.

`domain` holds what is known of a tensor, `strata` the bookkeeping of index pairs, `gaussian`
functions of Gaussian tensors, `notes` what rules tell each other, `algebra` sums and products of
tensors that may share ancestors, `registry` the decorators. Each other module holds the rules of one
family; importing this package registers them all.
"""

from __future__ import annotations

from . import arithmetic as arithmetic
from . import attention as attention
from . import channelnorm as channelnorm
from . import choice as choice
from . import complexes as complexes
from . import contract as contract
from . import conv as conv
from . import distance as distance
from . import einsum as einsum
from . import elementary as elementary
from . import embedding as embedding
from . import experts as experts
from . import frames as frames
from . import index as index
from . import maxpool as maxpool
from . import norm as norm
from . import parts as parts
from . import pointwise as pointwise
from . import pool as pool
from . import rank as rank
from . import recurrent as recurrent
from . import reduce as reduce
from . import resample as resample
from . import scan as scan
from . import scatter as scatter
from . import shuffles as shuffles
from . import slopes as slopes
from . import softmax as softmax
from . import spectral as spectral
from . import spread as spread
from . import views as views
from . import windows as windows
from . import write as write
