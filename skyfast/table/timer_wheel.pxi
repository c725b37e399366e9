# Timer wheels: one list of rows per second. A row is added to the list of its deadline, and stays
# there if the deadline becomes later.
#
# Each row contains the link to the next row of its list; callers pass the location of this link.
# Only the first row of a list can be removed, so a row must not be freed before its slot is due.
# When the slot is due, the row expires, or is added again if its deadline is later. This code needs
# the table's mutex.

cdef inline void wheel_add(TimerWheel *wheel, uint32_t deadline_s, uint32_t number,
                           uint32_t *next) noexcept nogil:
    # Add a row to the slot of its deadline, or to the farthest slot if the deadline is beyond the
    # wheel.
    cdef uint32_t slot_s = max(min(deadline_s, wheel.next_s + wheel.mask), wheel.next_s)
    cdef uint32_t *head = &wheel.slots[slot_s & wheel.mask]
    next[0] = head[0]
    head[0] = number


cdef inline uint32_t wheel_due(TimerWheel *wheel, uint32_t count, uint32_t now_s,
                               uint32_t *max_rows) noexcept nogil:
    # The first due row. The result is 0 if no row is due, or if `max_rows` is used up. In the
    # second case, `next_s` is not later than `now_s`. `count` is the number of rows in the wheel.
    cdef uint32_t number
    while wheel.next_s <= now_s:
        if count == 0:
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


cdef inline void wheel_remove(TimerWheel *wheel, uint32_t next) noexcept nogil:
    # `next` is the row after the due row.
    wheel.slots[wheel.next_s & wheel.mask] = next
