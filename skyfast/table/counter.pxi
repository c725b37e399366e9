# `Counter`: a hash table with open addressing that counts how often each key occurs.
#
# A `Counter` exists only during one call of a method. This code may run under the table's mutex, so
# it is plain C.

cdef struct Counter:
    uint64_t *keys              # one key per slot; 0 in a free slot
    uint32_t *counts            # by slot: number of occurrences of its key
    size_t capacity             # number of slots: a power of two, or 0
    size_t used                 # number of slots that are not free


cdef void counter_init(Counter *counter) noexcept nogil:
    memset(counter, 0, sizeof(Counter))


cdef void counter_destroy(Counter *counter) noexcept nogil:
    free(counter.keys)
    free(counter.counts)


cdef bint counter_grow(Counter *counter) noexcept nogil:
    cdef Counter larger
    cdef size_t i, slot
    larger.used = counter.used
    larger.capacity = 2 * counter.capacity if counter.capacity else 1024
    larger.keys = <uint64_t *>calloc(larger.capacity, sizeof(uint64_t))
    larger.counts = <uint32_t *>calloc(larger.capacity, sizeof(uint32_t))
    if larger.keys == NULL or larger.counts == NULL:
        counter_destroy(&larger)
        return False
    for i in range(counter.capacity):
        if counter.keys[i]:
            slot = counter_place(&larger, counter.keys[i])
            larger.keys[slot] = counter.keys[i]
            larger.counts[slot] = counter.counts[i]
    counter_destroy(counter)
    counter[0] = larger
    return True


cdef inline size_t counter_place(const Counter *counter, uint64_t key) noexcept nogil:
    cdef size_t slot = mix64(key) & (counter.capacity - 1)
    while counter.keys[slot] and counter.keys[slot] != key:
        slot = (slot + 1) & (counter.capacity - 1)
    return slot


cdef bint counter_count(Counter *counter, uint64_t key) noexcept nogil:
    # Returns False if out of memory. Key 0 is counted as key 1, because 0 marks a free slot.
    cdef size_t slot
    key = max(key, <uint64_t>1)
    if 2 * counter.used >= counter.capacity and not counter_grow(counter):
        return False
    slot = counter_place(counter, key)
    if counter.keys[slot] == 0:
        counter.keys[slot] = key
        counter.used += 1
    counter.counts[slot] += 1
    return True
