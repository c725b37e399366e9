# Top k: which rows have most, by a min-heap of k. Part of `_table.pyx`, which
# includes it.
#
# It belongs to the one call that asks. The heap never grows: there is room for all of it
# before the first row is looked at, as that happens under the table's mutex.

cdef struct Kept:
    # What rows had, by their number from 1 on, and which labels: a row can be another's by now.
    int64_t *values
    uint32_t *hashes
    uint32_t rows


cdef struct TopRow:
    # A row that is among the first, in a heap whose root is the last of them.
    int64_t rank
    uint32_t row
    uint32_t hash               # of the labels it had


cdef struct TopK:
    const Family *family
    const Kept *since      # or NULL
    bint is_gauge
    const char *part            # that a label must have
    uint32_t part_length
    TopRow *heap
    uint32_t count, room


cdef inline bint top_k_takes(const TopK *top, int64_t rank) noexcept nogil:
    # Whether a row of this rank is among the first.
    return top.count < top.room or (top.room != 0 and rank > top.heap[0].rank)


cdef inline void top_k_add(TopK *top, int64_t rank, uint32_t row,
                           uint32_t hash) noexcept nogil:
    # Into the heap, in place of its root where it is full.
    cdef TopRow *heap = top.heap
    cdef uint32_t at, child
    if top.count < top.room:
        at = top.count
        top.count += 1
        while at and heap[(at - 1) / 2].rank > rank:
            heap[at] = heap[(at - 1) / 2]
            at = (at - 1) / 2
    else:
        at = 0
        while True:
            child = 2 * at + 1
            if child + 1 < top.count and heap[child + 1].rank < heap[child].rank:
                child += 1
            if child >= top.count or heap[child].rank >= rank:
                break
            heap[at] = heap[child]
            at = child
    heap[at].rank = rank
    heap[at].row = row
    heap[at].hash = hash


cdef int compare_ranks(const void *one, const void *other) noexcept nogil:
    # The greatest first, and of those alike the one that stands first on the page.
    cdef const TopRow *a = <const TopRow *>one
    cdef const TopRow *b = <const TopRow *>other
    if a.rank != b.rank:
        return (a.rank < b.rank) - (a.rank > b.rank)
    return (a.row > b.row) - (a.row < b.row)
