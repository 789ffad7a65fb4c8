"""The cell over time, and its one linearisation.

Everything in a vanilla network that is not the recurrence is one large matrix product::

    forward   zs = xs U^T + b                  one product over all steps
              h_t = f(zs_t + W h_{t-1})        a scan: one small product, one activation
    tangent   dz = dxs U^T + xs dU^T + hprev dW^T + db       one product over all steps
              dh_t = f'(a_t) (dz_t + W dh_{t-1})             a linear scan

`reference` is the definition: a plain scan of `jaxrnn.step`. `rule` has `unroll`, the first two
lines, and the other two as their ``custom_jvp`` rule. `plan` chooses how the products are formed,
`chunks` cuts them in time. `parallel` is an option: chunks of one sequence that run `side_by_side`.
"""

from jaxrnn.recurrence.parallel import Parallel
from jaxrnn.recurrence.reference import unroll_plain
from jaxrnn.recurrence.rule import unroll

__all__ = ["Parallel", "unroll", "unroll_plain"]
