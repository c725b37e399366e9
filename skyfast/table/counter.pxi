# Counters: how often each of many keys occurs, by open addressing. Part of `_table.pyx`, which
# includes it.
#
# A counter belongs to one call and is not part of the table's memory. It counts and grows under the
# table's mutex, for one slice of rows at a time, so it is plain C. Keys cannot be removed: a used
# slot keeps its key.

cdef struct Counter:
    uint64_t *keys              # 0: a free slot
    uint32_t *counts
    size_t room                 # a power of two, or 0
    size_t used


cdef void counter_init(Counter *counter) noexcept nogil:
    memset(counter, 0, sizeof(Counter))


cdef void counter_destroy(Counter *counter) noexcept nogil:
    free(counter.keys)
    free(counter.counts)


cdef bint counter_grow(Counter *counter) noexcept nogil:
    cdef Counter larger
    cdef size_t i, at
    larger.used = counter.used
    larger.room = 2 * counter.room if counter.room else 1024
    larger.keys = <uint64_t *>calloc(larger.room, sizeof(uint64_t))
    larger.counts = <uint32_t *>calloc(larger.room, sizeof(uint32_t))
    if larger.keys == NULL or larger.counts == NULL:
        counter_destroy(&larger)
        return False
    for i in range(counter.room):
        if counter.keys[i]:
            at = counter_place(&larger, counter.keys[i])
            larger.keys[at] = counter.keys[i]
            larger.counts[at] = counter.counts[i]
    counter_destroy(counter)
    counter[0] = larger
    return True


cdef inline size_t counter_place(const Counter *counter, uint64_t key) noexcept nogil:
    cdef size_t at = mix64(key) & (counter.room - 1)
    while counter.keys[at] and counter.keys[at] != key:
        at = (at + 1) & (counter.room - 1)
    return at


cdef bint counter_count(Counter *counter, uint64_t key) noexcept nogil:
    # False if out of memory. Key 0 is counted as 1, because 0 marks free slots.
    cdef size_t at
    key = max(key, <uint64_t>1)
    if 2 * counter.used >= counter.room and not counter_grow(counter):
        return False
    at = counter_place(counter, key)
    if counter.keys[at] == 0:
        counter.keys[at] = key
        counter.used += 1
    counter.counts[at] += 1
    return True
