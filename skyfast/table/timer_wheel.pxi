# Timer wheels: a wheel has a ring of slots, and each slot has a list of rows for one second. A row
# is added to the slot of its deadline, and stays there if its deadline becomes later.
#
# Each row contains the link to the next row of its list. Callers pass the location of this link.
# Only the first row of a list can be removed, so a row must not be freed before its slot is due.
# When the slot is due, the row expires. However, if its deadline has become later, the row is added
# again instead. This code needs the table's mutex.

cdef inline void wheel_add(TimerWheel *wheel, uint32_t deadline_s, uint32_t number,
                           uint32_t *next) noexcept nogil:
    # Adds a row to the slot of its deadline. If the deadline is later than all slots of the wheel,
    # adds the row to the last slot.
    cdef uint32_t slot_s = max(min(deadline_s, wheel.next_s + wheel.mask), wheel.next_s)
    cdef uint32_t *head = &wheel.slots[slot_s & wheel.mask]
    next[0] = head[0]
    head[0] = number


cdef inline uint32_t wheel_due(TimerWheel *wheel, uint32_t count, uint32_t now_s,
                               uint32_t *max_rows) noexcept nogil:
    # Returns the first row whose slot is due, or 0 if no row is due. `count` is the number of rows
    # in the wheel. Each returned row and each empty slot reduces `max_rows` by 1. If `max_rows` is
    # 0, the search stops: then the result is 0, and `next_s` is not later than `now_s`.
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
    # Removes the row that `wheel_due` has returned. `next` is the next row of the list.
    wheel.slots[wheel.next_s & wheel.mask] = next
