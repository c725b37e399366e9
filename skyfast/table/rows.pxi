# Rows: the arena that provides memory for rows, the slabs that contain rows, and the index that
# finds rows by hash. The structs are in `_table.pxd`.
#
# This code serves all kinds of rows. It may only use the size of a row and the fields in `RowHead`.
# It is plain C, because most of it runs under the table's mutex. If memory runs out, functions
# return False, 0 or NULL, and existing data stays intact. An insert must never visit all rows.
#
# `_checked.pyx` finds memory errors only if this code follows these rules:
#
# * Code that allocates a row must call `row_used`. Code that frees a row must call `row_unused`.
# * All memory must come from functions that `_checked.pyx` replaces.

cdef enum:
    # Size of the part of a row that stays valid while the row is free. This part contains the link
    # to the next free row, and the field that marks the row as free.
    FREE_ROW_BYTES = 16


cdef bint reserve_pointer(void ***pointers, uint32_t used, uint32_t *capacity) noexcept nogil:
    # Makes space for one more pointer, or returns False if out of memory.
    cdef uint32_t larger
    cdef void *moved
    if used < capacity[0]:
        return True
    larger = capacity[0] * 2 if capacity[0] else 16
    moved = realloc(pointers[0], larger * sizeof(void *))
    if moved == NULL:
        return False
    pointers[0] = <void **>moved
    capacity[0] = larger
    return True


cdef void *arena_allocate(Arena *arena, size_t size) noexcept nogil:
    # Returns memory that is aligned to a cache line, or NULL.
    cdef size_t block_size
    cdef void *memory = NULL
    size = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    if size > arena.free_bytes:
        if not reserve_pointer(<void ***>&arena.blocks, arena.block_count, &arena.block_capacity):
            return NULL
        block_size = FIRST_BLOCK_BYTES if arena.block_count == 0 else BLOCK_BYTES
        block_size = max(size, block_size)
        if posix_memalign(&memory, HUGE_PAGE_BYTES, block_size) != 0:
            return NULL
        if arena.block_count:
            madvise(memory, block_size, MADV_HUGEPAGE)   # only a hint, which may have no effect
        arena.blocks[arena.block_count] = <char *>memory
        arena.block_count += 1
        arena.free = <char *>memory
        arena.free_bytes = block_size
    memory = arena.free
    arena.free += size
    arena.free_bytes -= size
    arena.bytes += size
    return memory


cdef void arena_destroy(Arena *arena) noexcept nogil:
    cdef uint32_t i
    for i in range(arena.block_count):
        free(arena.blocks[i])
    free(arena.blocks)


cdef inline char *row_at(const Rows *rows, uint32_t number) noexcept nogil:
    return (rows.slabs[number >> SLAB_SHIFT]
            + <size_t>(number & (SLAB_ROWS - 1)) * rows.stride)


cdef inline RowHead *head_at(const Rows *rows, uint32_t number) noexcept nogil:
    return <RowHead *>row_at(rows, number)


cdef inline uint32_t *bucket_at(const Rows *rows, uint32_t bucket) noexcept nogil:
    return rows.segments[bucket >> SEGMENT_SHIFT] + (bucket & (SEGMENT_BUCKETS - 1))


cdef inline uint32_t *bucket_of(const Rows *rows, uint32_t hash) noexcept nogil:
    # Linear hashing: if the bucket of a hash does not exist yet, the rows with this hash are in the
    # bucket that will be split to create the missing one.
    cdef uint32_t bucket = hash & rows.mask
    if bucket >= rows.buckets:
        bucket &= rows.mask >> 1
    return bucket_at(rows, bucket)


cdef bint rows_add_segment(Rows *rows) noexcept nogil:
    cdef void *segment
    if not reserve_pointer(<void ***>&rows.segments, rows.segment_count, &rows.segment_capacity):
        return False
    segment = arena_allocate(rows.arena, SEGMENT_BUCKETS * sizeof(uint32_t))
    if segment == NULL:
        return False
    memset(segment, 0, SEGMENT_BUCKETS * sizeof(uint32_t))
    rows.segments[rows.segment_count] = <uint32_t *>segment
    rows.segment_count += 1
    return True


cdef bint rows_add_slab(Rows *rows) noexcept nogil:
    cdef void *slab
    if not reserve_pointer(<void ***>&rows.slabs, rows.slab_count, &rows.slab_capacity):
        return False
    slab = arena_allocate(rows.arena, <size_t>SLAB_ROWS * rows.stride)
    if slab == NULL:
        return False
    row_unused(slab, <size_t>SLAB_ROWS * rows.stride)
    rows.slabs[rows.slab_count] = <char *>slab
    rows.slab_count += 1
    return True


cdef bint rows_init(Rows *rows, Arena *arena, uint32_t stride) noexcept nogil:
    memset(rows, 0, sizeof(Rows))
    rows.arena = arena
    rows.stride = stride
    rows.end = 1
    rows.buckets = SEGMENT_BUCKETS
    rows.mask = 2 * SEGMENT_BUCKETS - 1
    return rows_add_segment(rows) and rows_add_slab(rows)


cdef void rows_destroy(Rows *rows) noexcept nogil:
    # Frees only the arrays of pointers, because slabs and segments belong to the arena.
    free(rows.slabs)
    free(rows.segments)


cdef uint32_t row_new(Rows *rows) noexcept nogil:
    # Returns the number of a new row, or 0 if out of memory. The contents of the row are undefined.
    cdef uint32_t number = rows.free_head
    if number:
        rows.free_head = head_at(rows, number).next
    else:
        number = rows.end
        if number >> SLAB_SHIFT == rows.slab_count and not rows_add_slab(rows):
            return 0
        rows.end += 1
    rows.used += 1
    row_used(row_at(rows, number), rows.stride)
    return number


cdef void row_release(Rows *rows, uint32_t number) noexcept nogil:
    cdef RowHead *row = head_at(rows, number)
    row.next = rows.free_head
    rows.free_head = number
    rows.used -= 1
    row_unused(<char *>row + FREE_ROW_BYTES, rows.stride - FREE_ROW_BYTES)


cdef void index_split(Rows *rows) noexcept nogil:
    # Splits the next bucket in order: moves some of its rows to a new bucket at the end.
    cdef uint32_t fresh = rows.buckets
    cdef uint32_t number
    cdef uint32_t *old
    cdef uint32_t *link
    cdef uint32_t *new
    cdef RowHead *row
    if fresh >> SEGMENT_SHIFT == rows.segment_count and not rows_add_segment(rows):
        return                  # out of memory: does no harm, but buckets get longer
    # Prefetch the first two rows of buckets that are split later.
    number = bucket_at(rows, (fresh + 2 * AHEAD) & (rows.mask >> 1))[0]
    if number:
        prefetch(row_at(rows, number))
    number = bucket_at(rows, (fresh + AHEAD) & (rows.mask >> 1))[0]
    if number:
        number = head_at(rows, number).next
        if number:
            prefetch(row_at(rows, number))
    old = bucket_at(rows, fresh & (rows.mask >> 1))
    new = bucket_at(rows, fresh)
    link = old
    while link[0]:
        row = head_at(rows, link[0])
        if row.hash & rows.mask == fresh:
            new[0] = link[0]
            link[0] = row.next
            new = &row.next
        else:
            link = &row.next
    new[0] = 0
    rows.buckets += 1
    if rows.buckets > rows.mask:
        rows.mask = 2 * rows.mask + 1


cdef void index_add(Rows *rows, uint32_t number) noexcept nogil:
    cdef RowHead *row = head_at(rows, number)
    cdef uint32_t *bucket = bucket_of(rows, row.hash)
    cdef uint32_t _split
    row.next = bucket[0]
    bucket[0] = number
    for _split in range(BUCKETS_PER_ROW + 1):
        if rows.buckets >= <uint64_t>rows.used * BUCKETS_PER_ROW:
            break
        index_split(rows)


cdef void index_remove(Rows *rows, uint32_t number) noexcept nogil:
    cdef RowHead *row = head_at(rows, number)
    cdef uint32_t *link = bucket_of(rows, row.hash)
    while link[0] != number:
        link = &head_at(rows, link[0]).next
    link[0] = row.next
