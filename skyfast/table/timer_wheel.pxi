# Timer wheels: one list of rows a second, by the deadline that a row had when it was filed. Part of
# `_table.pyx`, which includes it.
#
# A wheel knows numbers alone. The link to the next of a list is in the row, where whoever calls
# says. A list can only be left at its head, so a row that was filed stays in use until its turn
# comes: then it is taken, and leaves or is filed again. A deadline that became later meanwhile
# costs nothing but that. Applying, relabelling and expiry call this, under the table's mutex.

cdef inline void wheel_file(TimerWheel *wheel, uint32_t deadline_s, uint32_t number,
                            uint32_t *next) noexcept nogil:
    # Into the slot of its deadline, or the farthest one when that is beyond the wheel.
    cdef uint32_t slot_s = max(min(deadline_s, wheel.next_s + wheel.mask), wheel.next_s)
    cdef uint32_t *head = &wheel.slots[slot_s & wheel.mask]
    next[0] = head[0]
    head[0] = number


cdef inline uint32_t wheel_due(TimerWheel *wheel, uint32_t live, uint32_t now_s,
                               uint32_t *max_rows) noexcept nogil:
    # The first row of the slot whose turn it is; 0 when there is none by now, which `next_s` then
    # tells, or when no more may be looked at. `live` rows are in the wheel.
    cdef uint32_t number
    while wheel.next_s <= now_s:
        if live == 0:
            wheel.next_s = now_s + 1
            break
        if max_rows[0] == 0:
            break
        max_rows[0] -= 1
        number = wheel.slots[wheel.next_s & wheel.mask]
        if number:
            return number
        wheel.next_s += 1
    return 0


cdef inline void wheel_take(TimerWheel *wheel, uint32_t next) noexcept nogil:
    # Out of its slot with the row that is due, behind which `next` stands.
    wheel.slots[wheel.next_s & wheel.mask] = next
