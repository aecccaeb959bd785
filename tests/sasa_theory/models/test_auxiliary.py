"""The auxiliary loss of fixed shape against the one that gathers the dead units."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.models import auxiliary, build


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 6),
    st.booleans(),
    st.floats(0, 1),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
def test_equals_the_gathering_one_while_there_is_room(units, rank, n_best, signed, share, spare, seed):
    g = torch.Generator().manual_seed(seed)
    dead = torch.rand(units, generator=g) < share
    x, xhat = torch.randn(9, 7, generator=g), torch.randn(9, 7, generator=g)
    room = min(units, max(1, int(dead.sum()) + spare))

    def loss_and_gradients(loss, *more):
        model = build("sasa", width_in=7, n_groups=units, group_rank=rank, active_groups=1, encoder_bias=True)
        model.initialise(torch.Generator().manual_seed(seed))
        value = loss(model, x, xhat, dead, n_best, signed, *more)
        if value.requires_grad:
            value.backward()
        names = ("W_enc", "b_enc", "W_dec")
        grads = [getattr(model, name).grad for name in names]
        return [
            value.detach(),
            *(torch.zeros_like(getattr(model, n)) if t is None else t for n, t in zip(names, grads, strict=True)),
        ]

    ours = loss_and_gradients(auxiliary.fixed_shapes, room)
    theirs = loss_and_gradients(auxiliary.auxiliary_loss)
    # numbers of order one go in: where they cancel, their rounding is left
    rounding = 1e-6 * (1 + max(float(b.abs().max()) for b in theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=rounding)


def test_with_too_little_room_the_first_dead_units_compete():
    dead = torch.tensor([False, True, True, False, True])
    which, real = auxiliary.places(dead, 2)
    assert which.tolist() == [1, 2]
    assert real.all()
    which, real = auxiliary.places(dead, 9)
    assert which.tolist() == [1, 2, 4, 0, 3]
    assert real.tolist() == [True, True, True, False, False]
