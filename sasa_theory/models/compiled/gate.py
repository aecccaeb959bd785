"""Which units win: a product in int8 lists the candidates, their exact coefficients decide.

A row's candidates are the units that, with SIGMAS rounding errors in their favour, reach the s-th largest norm with as
many against it: some more than s. Their coefficients are then computed in float32 and the s largest stay on. A row is
sure when the least of them exceeds what an unlisted unit can reach; the others (a few in a thousand) are chosen
from a float32 product. The choice is that of exact coefficients, except with the probability that errors exceed SIGMAS
deviations. Where the weights are few, or the processor has no fast int8, the float32 product alone decides.

BatchTopK chooses one level for all rows. A guess of it (the last batch's, or a sample of the rows) is set a little low,
the product lists the latents that lie above it, or may, and their exact values give the level. If that is above the
guess, nothing unlisted can be above it; else the guess was too high, and is lowered.

An l1 autoencoder takes all that is positive, JumpReLU all that exceeds a threshold, which the product lists in the same
way. Where that is much, dense products are less work: there is no answer then.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from sasa_theory import parallel
from sasa_theory.models.compiled import gate_loops as loops
from sasa_theory.models.compiled import level_loops
from sasa_theory.models.compiled.gradient_loops import by_unit
from sasa_theory.models.compiled.screen import Products, Screen
from sasa_theory.models.compiled.workspace import Workspace
from sasa_theory.models.form import WINDOW
from sasa_theory.models.rounding import int8_is_faster
from sasa_theory.threads import split

#: a row lists at most 3 s + SPARE candidates
SPARE = 16
#: weights up to which a float32 product costs less than listing and computing candidates
SMALL = 1 << 18
#: rows whose products give BatchTopK's first guess, the surplus it aims at, and where it starts below a known level
SAMPLE, SURPLUS, BELOW = 64, 1.25, 0.95
#: share of the coefficients above which plain dense products are less work, and times that in one row. In one run of
#: ReLU a step with a quarter on took about .6 to .8 of the dense step's time at D = 64 to 768, with a third .7 to 1.05
MOST, ROOM = 1 / 4, 2


class Chosen(NamedTuple):
    """x - shift (B, D); the units on (B, m), -1 in an empty slot; their coefficients (B, m, r).

    Of BatchTopK also the smallest value that is on, 0 if there is none; of JumpReLU which coefficients lay in their
    threshold's window.
    """

    x: "Float[ndarray, 'B D']"
    units: "Int[ndarray, 'B m']"
    values: "Float[ndarray, 'B m r']"
    smallest: float = 0.0
    near: "Bool[ndarray, 'B m'] | None" = None


class Thresholds(NamedTuple):
    """theta (K,), and the window around it."""

    theta: "Float[ndarray, ' K']"
    bandwidth: float


class Then(NamedTuple):
    """What follows the choice, for rows [start, stop): call(start, stop, chosen, this thread's row of `totals`).

    work: multiply-adds of all rows, see `threads.split`.
    """

    call: Callable[[int, int, Chosen, ndarray], None]
    totals: "ndarray"
    work: int


class Gate:
    """The gate by group norm, rectified or signed. Results lie in buffers that the next call writes over.

    What follows the choice, row by row, is handed in as `then`: where the products are few, threads are woken once for
    both.
    """

    def __init__(self, space: Workspace, name: str, rank: int, rectify: bool) -> None:
        self.space, self.name, self.rank, self.rectify = space, name, rank, rectify
        self.screen = Screen(space, name, rank)
        #: rows that were chosen again from a float32 product, and rows in all
        self.doubted = self.rows = 0
        #: BatchTopK's last level, where the next is looked for; 0: unknown
        self.level = 0.0
        #: places for what exceeds a level in a row: a quarter more, and SPARE, than the last batch's fullest row had
        self.slots = SPARE

    def per_row(
        self,
        x: ndarray,
        shift: "ndarray | None",
        rows: ndarray,
        bias: ndarray,
        n_best: int,
        then: "Then | None" = None,
    ) -> Chosen:
        """For each row the `n_best` units of largest norm of (x - shift) rows^T + bias, and `then`.

        rows (K r, D) are the encoder's columns.
        """
        batch = len(x)
        index = self._held("index", (batch, n_best), np.int64)
        values = self._held("values", (batch, n_best, self.rank))
        moved = x if shift is None else self._held("shifted", x.shape)
        chosen = Chosen(moved, index, values)
        if not screens(rows):

            def before(start: int, stop: int) -> None:
                if shift is not None:
                    loops.subtract(start, stop, x, shift, moved)

            def select(count: int, first: int, pre: ndarray, thread: int) -> None:
                loops.select(0, count, first, pre, bias, self.rank, self.rectify, index, values)
                if then is not None:
                    then.call(first, first + count, chosen, then.totals[thread])

            self.screen.float32(moved, rows, select, before)
            return chosen
        if shift is not None:
            split(loops.subtract, batch, x, shift, moved, work=x.size)
        slots = min(len(rows) // self.rank, 3 * n_best + SPARE)
        listed, bound = self._held("listed", (batch, slots), np.int64), self._held("bound", (batch,))

        def visitor(count: int, first: int, pre: ndarray, products: Products) -> None:
            loops.shortlist(0, count, first, pre, *products, self.rank, self.rectify, n_best, listed, bound)

        self.screen.int8(moved, rows, bias, visitor)
        found, sure = self._exact(moved, rows, bias, listed), self._held("sure", (batch,), np.bool_)
        split(loops.keep, batch, listed, found, bound, index, values, sure, work=8 * listed.size)
        doubtful = np.flatnonzero(~sure)
        self.rows, self.doubted = self.rows + batch, self.doubted + len(doubtful)
        if len(doubtful):
            again = index[doubtful], values[doubtful]
            self._select(moved[doubtful], rows, bias, *again)
            index[doubtful], values[doubtful] = again
        if then is not None:
            split(then.call, batch, chosen, own=then.totals, work=then.work)
        return chosen

    def per_batch(
        self,
        x: ndarray,
        shift: ndarray,
        rows: ndarray,
        bias: ndarray,
        n_best: int,
        then: "Then | None" = None,
    ) -> Chosen:
        """The len(x) n_best largest of relu((x - shift) rows^T + bias), but for zeros, and `then`; for r = 1.

        Where processes train together, as many for each of them, chosen among the entries of all.
        """
        moved, batch = self._held("shifted", x.shape), len(x)
        split(loops.subtract, batch, x, shift, moved, work=x.size)
        x = moved
        wanted = batch * n_best * parallel.world_size()
        guesses = self._guesses(x, rows, bias, n_best)
        level = next(guesses)
        while True:
            found = self._listed(x, rows, bias, np.full(len(rows), level, np.float32), False, self.slots, len(rows))
            assert found is not None  # every row has room for all
            listed, values = found
            flat = values.ravel()
            on = np.flatnonzero((listed.ravel() >= 0) & ~(flat <= 0))  # NaN stays, for the loss to see
            kept, least = _largest(flat[on], wanted)
            on = on[kept]
            if level == 0 or not least < level:  # NaN ends it too
                break
            level = next(guesses)
        smallest = float(parallel.least(torch.tensor(flat[on].min() if len(on) else np.inf)))
        smallest = smallest if math.isfinite(smallest) else 0.0
        off = np.ones(listed.shape, np.bool_)
        off.ravel()[on] = False
        listed[off], values[off] = -1, 0
        self.level = smallest
        chosen = Chosen(x, listed, values, smallest)
        if then is not None:
            split(then.call, batch, chosen, own=then.totals, work=then.work)
        return chosen

    def exceeding(
        self,
        x: ndarray,
        shift: ndarray,
        rows: ndarray,
        bias: ndarray,
        jump: "Thresholds | None" = None,
        then: "Then | None" = None,
    ) -> "Chosen | None":
        """For each row every unit (r = 1) of positive (x - shift) rows^T + bias, and `then`; None where these are many.

        With `jump` those of p = that > theta, and with the coefficient 0 those in the window below it. Many are more
        than MOST of the units in the rows of a chunk, or ROOM times that in one. Units that int8 could not rule out
        have the coefficient 0 too.
        """
        moved, counts = self._held("shifted", x.shape), self._held("counts", (len(x),), np.int64)
        n_units, screened = len(rows), screens(rows)
        level = np.zeros(n_units, np.float32)
        if jump is not None:
            level = jump.theta - np.float32(WINDOW * jump.bandwidth)
        if screened:
            split(loops.subtract, len(x), x, shift, moved, work=x.size)
        crowded: list[int] = []

        def many(first: int, count: int) -> bool:
            here = counts[first : first + count]
            if here.sum() > MOST * count * n_units or here.max() > ROOM * MOST * n_units:
                crowded.append(first)
            return bool(crowded)

        def before(start: int, stop: int) -> None:
            loops.subtract(start, stop, x, shift, moved)

        def follow(start: int, stop: int, chosen: Chosen, total: ndarray) -> None:
            if jump is not None:
                level_loops.jump(start, stop, chosen.units, chosen.values, *jump, chosen.near)
            if then is not None:
                then.call(start, stop, chosen, total)

        totals = np.empty(torch.get_num_threads()) if then is None else then.totals
        while True:
            slots = min(n_units, self.slots)
            index, values = self._held("listed", (len(x), slots), np.int64), self._held("found", (len(x), slots, 1))
            near = None if jump is None else self._held("near", index.shape, np.bool_)
            chosen = Chosen(moved, index, values, near=near)

            def visitor(count: int, first: int, pre: ndarray, thread: int, chosen: Chosen = chosen) -> bool:
                listed = chosen.units, chosen.values, counts
                level_loops.list_exceeding(0, count, first, pre, bias, level, 1, False, *listed)
                if many(first, count):
                    return True
                follow(first, first + count, chosen, totals[thread])
                return False

            if screened:
                self._list_candidates(moved, rows, bias - level, index, counts, many)
            else:
                self.screen.float32(moved, rows, visitor, before)
            if crowded:
                return None
            if self._fullest(counts) <= slots:
                break
            totals[:] = 0
        if screened:
            chosen = chosen._replace(values=self._exact(moved, rows, bias, index))
            chosen.values[index < 0] = 0
            split(follow, len(x), chosen, own=totals, work=int(counts.sum()) * x.shape[1])
        return chosen

    def above(
        self, x: ndarray, rows: ndarray, bias: ndarray, level: ndarray, by_norm: bool, slots: int, room: int
    ) -> "tuple[ndarray, ndarray, ndarray] | None":
        """Row, unit and coefficients (P, r) of what exceeds its unit's level in x rows^T + bias, row by row.

        By its norm, or a column by its value; `slots` is a guess of how many there are in the fullest row. None where
        that has more than `room`.
        """
        found = self._listed(x, rows, bias, level, by_norm, slots, room)
        if found is None:
            return None
        listed, values = found
        units, of_units = listed.ravel(), values.reshape(-1, self.rank)
        on = np.flatnonzero(units >= 0)
        if not by_norm:
            on = on[~(of_units[on, 0] <= level[units[on]])]  # int8 lists some that do not
        return on // listed.shape[1], units[on], of_units[on]

    def _listed(
        self, x: ndarray, rows: ndarray, bias: ndarray, level: ndarray, by_norm: bool, slots: int, room: int
    ) -> "tuple[ndarray, ndarray] | None":
        """Units (B, m) that exceed their level, or that int8 cannot rule out, -1 in an empty slot; their coefficients.

        As `above`, to which m >= `slots` is a guess.
        """
        screened = not by_norm and screens(rows)
        counts = self._held("counts", (len(x),), np.int64)
        slots = min(slots, len(level))
        while True:
            listed = self._held("listed", (len(x), slots), np.int64)
            values = self._held("found", (len(x), slots, self.rank))

            def visitor(
                count: int, first: int, pre: ndarray, _: int, listed: ndarray = listed, values: ndarray = values
            ) -> None:
                level_loops.list_exceeding(
                    0, count, first, pre, bias, level, self.rank, by_norm, listed, values, counts
                )

            if screened:
                self._list_candidates(x, rows, bias - level, listed, counts)
            else:
                self.screen.float32(x, rows, visitor)
            fullest = self._fullest(counts)
            if fullest <= slots:
                return listed, self._exact(x, rows, bias, listed) if screened else values
            if fullest > room:
                return None
            slots = fullest

    def _fullest(self, counts: ndarray) -> int:
        """The largest of the counts, by which the next batch's rows are given their places."""
        fullest = int(counts.max())
        self.slots = fullest + fullest // 4 + SPARE
        return fullest

    def _select(self, x: ndarray, rows: ndarray, bias: ndarray, index: ndarray, values: ndarray) -> None:
        """The choice from a float32 product itself."""

        def visitor(count: int, first: int, pre: ndarray, _: int) -> None:
            loops.select(0, count, first, pre, bias, self.rank, self.rectify, index, values)

        self.screen.float32(x, rows, visitor)

    def _list_candidates(
        self,
        x: ndarray,
        rows: ndarray,
        bias: ndarray,
        listed: ndarray,
        counts: ndarray,
        enough: "Callable[[int, int], bool]" = lambda first, count: False,
    ) -> None:
        """List what may be positive, and how many that are in each row; enough(first, count) ends it."""

        def visitor(count: int, first: int, pre: ndarray, products: Products) -> bool:
            level_loops.list_candidates(0, count, first, pre, *products, listed, counts)
            return enough(first, count)

        self.screen.int8(x, rows, bias, visitor)

    def _exact(self, x: ndarray, rows: ndarray, bias: ndarray, listed: ndarray) -> ndarray:
        """Coefficients (B, m, r) of the listed units, in float32."""
        n_units = len(rows) // self.rank
        found = self._held("found", (*listed.shape, self.rank))
        starts, pairs = by_unit(listed, n_units)
        work = len(pairs) * self.rank * x.shape[1]
        split(loops.exact, n_units, starts, pairs, x, rows, bias, self.rectify, found, cuts=even(starts), work=work)
        return found

    def _guesses(self, x: ndarray, rows: ndarray, bias: ndarray, n_best: int) -> Iterator[float]:
        """Levels to try: a little below the last batch's, by a sample of the rows, half of that, zero."""
        if self.level > 0:
            yield BELOW * self.level
        few = x[:: max(1, len(x) // SAMPLE)]
        values = np.maximum(few @ rows.T + bias, 0).ravel()
        at = len(values) - min(len(values), math.ceil(SURPLUS * n_best * len(few)))
        level = float(parallel.mean(torch.tensor(np.partition(values, at)[at])))
        if level > 0:
            yield level
            yield level / 2
        yield 0.0

    def _held(self, what: str, shape: tuple[int, ...], dtype: type = np.float32) -> ndarray:
        return self.space(f"{self.name} {what}", shape, dtype)


def screens(rows: ndarray) -> bool:
    """Whether a product in int8 comes before the exact coefficients."""
    return rows.size > SMALL and int8_is_faster()


def _largest(values: ndarray, n: int) -> tuple[ndarray, float]:
    """Which values are among the n largest of all processes, and the n-th; all, and 0, where there are fewer."""
    if parallel.world_size() > 1:
        least = float(parallel.nth_largest(torch.from_numpy(values), n))
        return np.flatnonzero(~(values < least)), least
    if len(values) < n:
        return np.arange(len(values)), 0.0
    top = np.argpartition(values, len(values) - n)[len(values) - n :]
    return top, float(values[top].min())


def even(starts: ndarray) -> list[int]:
    """Where to cut the units so that each thread has as many pairs: units fire unequally often."""
    threads, pairs = torch.get_num_threads(), int(starts[-1])
    return [int(starts.searchsorted(pairs * i // threads)) for i in range(1, min(threads, len(starts) - 1))]
