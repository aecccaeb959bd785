"""How every loop here is compiled."""

import numba
import numpy as np

#: sums may be reordered and fused, as a BLAS does; NaN and Inf keep their meaning, and a division by zero is not looked
#: for (the test would keep the processor from dividing sixteen numbers at once)
compiled = numba.njit(nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy", cache=True)

ZERO = np.float32(0.0)
