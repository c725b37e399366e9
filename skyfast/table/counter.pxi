# Tallies: how often each of many numbers occurs, by open addressing. Part of `_table.pyx`, which
# includes it.
#
# A tally belongs to the one call that asks, and is none of the table's memory. It counts and
# grows under the table's mutex, a slice of rows at a time, so it is plain C. There is no taking
# out: a place that has a key keeps it.

cdef struct Tally:
    uint64_t *keys              # 0: a free place
    uint32_t *counts
    size_t room                 # a power of two, or 0
    size_t used


cdef void tally_init(Tally *tally) noexcept nogil:
    memset(tally, 0, sizeof(Tally))


cdef void tally_destroy(Tally *tally) noexcept nogil:
    free(tally.keys)
    free(tally.counts)


cdef bint tally_grow(Tally *tally) noexcept nogil:
    cdef Tally larger
    cdef size_t i, at
    larger.used = tally.used
    larger.room = 2 * tally.room if tally.room else 1024
    larger.keys = <uint64_t *>calloc(larger.room, sizeof(uint64_t))
    larger.counts = <uint32_t *>calloc(larger.room, sizeof(uint32_t))
    if larger.keys == NULL or larger.counts == NULL:
        tally_destroy(&larger)
        return False
    for i in range(tally.room):
        if tally.keys[i]:
            at = tally_place(&larger, tally.keys[i])
            larger.keys[at] = tally.keys[i]
            larger.counts[at] = tally.counts[i]
    tally_destroy(tally)
    tally[0] = larger
    return True


cdef inline size_t tally_place(const Tally *tally, uint64_t key) noexcept nogil:
    cdef size_t at = mixed(key) & (tally.room - 1)
    while tally.keys[at] and tally.keys[at] != key:
        at = (at + 1) & (tally.room - 1)
    return at


cdef bint tally_count(Tally *tally, uint64_t key) noexcept nogil:
    # False when there is no memory. Keys are not 0.
    cdef size_t at
    key = max(key, <uint64_t>1)
    if 2 * tally.used >= tally.room and not tally_grow(tally):
        return False
    at = tally_place(tally, key)
    if tally.keys[at] == 0:
        tally.keys[at] = key
        tally.used += 1
    tally.counts[at] += 1
    return True
