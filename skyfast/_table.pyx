# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table: flows, connections, expiry wheel, rendering. No clock, no socket, no log inside.

Data structures
    Two levels. A *flow* row is one report stream of an agent, known by its UUID, with its last
    known totals. A *connection* row is one label tuple of the page; its values are sums of the
    deltas of its flows. Label values are numbers: an interned text (bit 31 set) or a small integer.
    All three kinds of rows (texts, flows, connections) live in slabs under one allocator with
    one index (`Rows`): linear hashing, which splits one bucket at a time, so that no insert ever
    pays for a million rows. The shapes are in ``_table.pxd``.

    The wheel has one slot a second. A flow stands in the slot of the deadline it had when it was
    filed; a report only writes a later deadline into the row. When the slot's turn comes, the flow
    is filed again or leaves, and a connection leaves with its last flow.

Costs
    A report of a known flow: one look-up, two cache lines of rows. A new flow: two look-ups and one
    for each text of its labels. Expiry: what expires, and one re-filing a flow and time-out.
    A page: one pass over the connections a family.

Memory
    Slabs and index segments come from an arena of large pieces (`Arena`), texts longer than 48
    bytes from malloc. Slabs and segments are kept until the table goes; freed rows are used again
    first. No Python object is kept but the names and types of the fields. When memory runs out,
    `update` raises MemoryError with the table as if the flow at hand had not come.

Lock
    One mutex, held for a batch of reports, a slice of expiry, or about a thousand lines of a page.
    Only one thread may call `update` and `expire`; it reads without the lock what it alone
    changes. Any thread may read pages. Whoever holds the mutex never waits for the GIL:
    everything under it is plain C, as a thread that has the GIL may be waiting for the mutex.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import os
import typing

import msgspec

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject *Py_TYPE(PyObject *)
    bint PyLong_CheckExact(PyObject *)
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *) except? -1
    bint PyUnicode_CheckExact(PyObject *)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *)
    void *PyUnicode_DATA(PyObject *)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *)
    const char *PyUnicode_AsUTF8AndSize(PyObject *, Py_ssize_t *) except NULL
    PyObject *PyObject_GetAttr(PyObject *, PyObject *) except NULL
    PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1

cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        int type
        Py_ssize_t offset
    int T_OBJECT_EX

cdef extern from "Python.h":
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "sys/mman.h" nogil:
    int madvise(void *, size_t, int)
    int MADV_HUGEPAGE

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **, size_t, size_t)
    void free(void *)

cdef extern from *:
    """
    #define prefetch(address) __builtin_prefetch(address)
    #define likely(x) __builtin_expect(!!(x), 1)
    #define unlikely(x) __builtin_expect(!!(x), 0)
    """
    void prefetch(const void *) noexcept nogil
    bint likely(bint) noexcept nogil
    bint unlikely(bint) noexcept nogil


MAX_TEXT_BYTES = 1024           # of a label value or UUID; a longer one skips its flow
MAX_ROWS = 1 << 30              # row numbers share their 32 bits with a flag

cdef enum:
    MAX_TEXT = 1024
    MAX_CELL = 2 * MAX_TEXT     # every byte escaped
    MAX_INTEGER_DIGITS = 20
    MAX_COUNTERS = 32           # counters and gauges of one plan
    MAX_COLUMNS = 32
    INLINE_TEXT = 48
    BATCH = 128                 # reports between two turns of the lock
    RENDER_ROWS = 2048          # connections looked at between two turns of the lock
    AHEAD = 16                  # connections, or buckets, whose rows are fetched before their turn
    SLAB_SHIFT = 12
    SLAB_ROWS = 1 << SLAB_SHIFT
    BUCKETS_PER_ROW = 2         # what the index grows to: chains are short, and 8 bytes a row
    SEGMENT_SHIFT = 12
    SEGMENT_BUCKETS = 1 << SEGMENT_SHIFT
    MAX_WHEEL_SLOTS = 4096
    CACHE_LINE = 64
    HUGE_PAGE_BYTES = 2 << 20
    FIRST_PIECE_BYTES = 4 << 20
    PIECE_BYTES = 8 << 20

cdef uint32_t IS_TEXT = <uint32_t>1 << 31       # in a cell
cdef uint32_t TEXT_KEY = <uint32_t>1 << 31      # in a flow's `connection`
cdef int64_t MAX_INTEGER = <int64_t>1 << 62     # on the wire; larger ones skip the flow

cdef uint64_t EACH_BYTE = 0x0101010101010101

cdef enum:
    SKIP_NONE
    SKIP_INVALID
    SKIP_NO_UUID
    SKIP_OUT_OF_RANGE
    SKIP_TEXT_TOO_LONG
    SKIP_LATE
    SKIP_TABLE_FULL
    SKIP_REQUIRED               # and one more for each requirement of the plan
    MAX_SKIPS = 32

cdef tuple SKIP_NAMES = (
    "", "invalid", "no_uuid", "out_of_range", "text_too_long", "late", "table_full"
)
cdef tuple FINISH_NAMES = ("other", "timeout", "fin", "rst")


# ---------------------------------------------------------------------------------------------
# Rows: slabs and index

cdef bint pointer_room(void ***pointers, uint32_t used, uint32_t *room) noexcept nogil:
    # Room for one more pointer; the arrays of pointers are small enough to be copied.
    cdef uint32_t larger
    cdef void *moved
    if used < room[0]:
        return True
    larger = room[0] * 2 if room[0] else 16
    moved = PyMem_RawRealloc(pointers[0], larger * sizeof(void *))
    if moved == NULL:
        return False
    pointers[0] = <void **>moved
    room[0] = larger
    return True


cdef void *arena_take(Arena *arena, size_t size) noexcept nogil:
    # Memory that begins at a cache line, or NULL.
    cdef size_t piece_size
    cdef void *piece = NULL
    size = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    if size > arena.free_bytes:
        if not pointer_room(<void ***>&arena.pieces, arena.piece_count, &arena.piece_room):
            return NULL
        piece_size = max(size, FIRST_PIECE_BYTES if arena.piece_count == 0 else PIECE_BYTES)
        if posix_memalign(&piece, HUGE_PAGE_BYTES, piece_size) != 0:
            return NULL
        if arena.piece_count:
            madvise(piece, piece_size, MADV_HUGEPAGE)   # a wish: nothing depends on it
        arena.pieces[arena.piece_count] = <char *>piece
        arena.piece_count += 1
        arena.free = <char *>piece
        arena.free_bytes = piece_size
    piece = arena.free
    arena.free += size
    arena.free_bytes -= size
    arena.bytes += size
    return piece


cdef void arena_destroy(Arena *arena) noexcept nogil:
    cdef uint32_t i
    for i in range(arena.piece_count):
        free(arena.pieces[i])
    PyMem_RawFree(arena.pieces)


cdef inline char *row_at(const Rows *rows, uint32_t number) noexcept nogil:
    return (rows.slabs[number >> SLAB_SHIFT]
            + <size_t>(number & (SLAB_ROWS - 1)) * rows.stride)


cdef inline RowHead *head_at(const Rows *rows, uint32_t number) noexcept nogil:
    return <RowHead *>row_at(rows, number)


cdef inline uint32_t *bucket_at(const Rows *rows, uint32_t bucket) noexcept nogil:
    return rows.segments[bucket >> SEGMENT_SHIFT] + (bucket & (SEGMENT_BUCKETS - 1))


cdef inline uint32_t *bucket_of(const Rows *rows, uint32_t hash) noexcept nogil:
    # Linear hashing: buckets above the split position use one bit more of the hash.
    cdef uint32_t bucket = hash & rows.mask
    if bucket >= rows.buckets:
        bucket &= rows.mask >> 1
    return bucket_at(rows, bucket)


cdef bint rows_add_segment(Rows *rows) noexcept nogil:
    cdef void *segment
    if not pointer_room(<void ***>&rows.segments, rows.segment_count, &rows.segment_room):
        return False
    segment = arena_take(rows.arena, SEGMENT_BUCKETS * sizeof(uint32_t))
    if segment == NULL:
        return False
    memset(segment, 0, SEGMENT_BUCKETS * sizeof(uint32_t))
    rows.segments[rows.segment_count] = <uint32_t *>segment
    rows.segment_count += 1
    return True


cdef bint rows_add_slab(Rows *rows) noexcept nogil:
    cdef void *slab
    if not pointer_room(<void ***>&rows.slabs, rows.slab_count, &rows.slab_room):
        return False
    slab = arena_take(rows.arena, <size_t>SLAB_ROWS * rows.stride)
    if slab == NULL:
        return False
    rows.slabs[rows.slab_count] = <char *>slab
    rows.slab_count += 1
    return True


cdef bint rows_init(Rows *rows, Arena *arena, uint32_t stride) noexcept nogil:
    memset(rows, 0, sizeof(Rows))
    rows.arena = arena
    rows.stride = stride
    rows.fresh = 1
    rows.buckets = SEGMENT_BUCKETS
    rows.mask = 2 * SEGMENT_BUCKETS - 1
    return rows_add_segment(rows) and rows_add_slab(rows)


cdef void rows_destroy(Rows *rows) noexcept nogil:
    # The slabs and segments themselves are the arena's.
    PyMem_RawFree(rows.slabs)
    PyMem_RawFree(rows.segments)


cdef uint32_t row_new(Rows *rows) noexcept nogil:
    # A row's number, its content undefined; 0 when there is no memory.
    cdef uint32_t number = rows.free_head
    if number:
        rows.free_head = head_at(rows, number).next
    else:
        number = rows.fresh
        if number >> SLAB_SHIFT == rows.slab_count and not rows_add_slab(rows):
            return 0
        rows.fresh += 1
    rows.live += 1
    return number


cdef void row_release(Rows *rows, uint32_t number) noexcept nogil:
    cdef RowHead *row = head_at(rows, number)
    row.next = rows.free_head
    rows.free_head = number
    rows.live -= 1


cdef void index_split(Rows *rows) noexcept nogil:
    # Divide the next bucket in turn between itself and a new last one.
    cdef uint32_t fresh = rows.buckets
    cdef uint32_t number
    cdef uint32_t *old
    cdef uint32_t *link
    cdef uint32_t *new
    cdef RowHead *row
    if fresh >> SEGMENT_SHIFT == rows.segment_count and not rows_add_segment(rows):
        return                  # longer chains are all that a lack of memory costs here
    # Buckets are divided in order, so the rows of those to come can be fetched in time: the first
    # of a chain, and when that is there, the second.
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
        if rows.buckets >= <uint64_t>rows.live * BUCKETS_PER_ROW:
            break
        index_split(rows)


cdef void index_remove(Rows *rows, uint32_t number) noexcept nogil:
    cdef RowHead *row = head_at(rows, number)
    cdef uint32_t *link = bucket_of(rows, row.hash)
    while link[0] != number:
        link = &head_at(rows, link[0]).next
    link[0] = row.next


# ---------------------------------------------------------------------------------------------
# Hashes. Seeded, since strangers choose addresses and could otherwise choose collisions.

cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014). It is a bijection, so that a
    # flow row can keep a mixed UUID as its key and nothing else.
    x ^= x >> 30
    x *= <uint64_t>0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t load(const char *text, uint32_t length) noexcept nogil:
    # The first `length` bytes of a text, 8 at most, without a call.
    cdef uint64_t word
    cdef uint32_t low, high
    if length >= 8:
        memcpy(&word, text, 8)
        return word
    if length >= 4:
        memcpy(&low, text, 4)
        memcpy(&high, text + length - 4, 4)
        return low | <uint64_t>high << 8 * (length - 4)
    if length == 0:
        return 0
    return (<uint64_t><uint8_t>text[0]
            | <uint64_t><uint8_t>text[length >> 1] << 8 * (length >> 1)
            | <uint64_t><uint8_t>text[length - 1] << 8 * (length - 1))


cdef inline uint32_t text_hash(const char *text, uint32_t length, uint64_t seed) noexcept nogil:
    cdef uint64_t h = seed ^ length
    while length >= 8:
        h = mixed(h ^ load(text, 8))
        text += 8
        length -= 8
    if length:
        h = mixed(h ^ load(text, length))
    return <uint32_t>(h ^ (h >> 32))


cdef uint8_t HEX[256]
memset(HEX, 0xFF, 256)
for _digit in range(16):
    HEX[<uint8_t>ord("0123456789abcdef"[_digit])] = _digit


cdef inline bint parse_key(const char *text, Py_ssize_t length, uint64_t *key) noexcept nogil:
    # Whether a UUID is what Skydive makes: 1 to 16 hexadecimal digits without leading zeros.
    cdef uint64_t value = 0
    cdef uint8_t digit, wrong = 0
    cdef Py_ssize_t i
    if length < 1 or length > 16 or (text[0] == c'0' and length > 1):
        return False
    for i in range(length):
        digit = HEX[<uint8_t>text[i]]
        wrong |= digit
        value = (value << 4) | (digit & 15)
    key[0] = value
    return wrong < 16


# ---------------------------------------------------------------------------------------------
# Interned texts

cdef inline const char *text_bytes(const Text *text) noexcept nogil:
    if likely(text.length <= INLINE_TEXT):
        return text.inline
    return (<char **>text.inline)[0]


cdef inline uint32_t text_find(
    const Rows *texts, const char *text, uint32_t length, uint32_t hash
) noexcept nogil:
    cdef uint32_t number = bucket_of(texts, hash)[0]
    cdef Text *row
    while number:
        row = <Text *>row_at(texts, number)
        if (row.hash == hash and row.length == length
                and memcmp(text_bytes(row), text, length) == 0):
            return number
        number = row.next
    return 0


cdef uint32_t text_intern(
    Rows *texts, const char *text, uint32_t length, uint64_t seed
) noexcept nogil:
    # The number of an escaped text, with one reference more; 0 when there is no memory.
    cdef uint32_t hash = text_hash(text, length, seed)
    cdef uint32_t number = text_find(texts, text, length, hash)
    cdef char *copy
    cdef Text *row
    if number:
        (<Text *>row_at(texts, number)).refs += 1
        return number
    number = row_new(texts)
    if not number:
        return 0
    row = <Text *>row_at(texts, number)
    row.hash = hash
    row.refs = 1
    row.length = length
    if length <= INLINE_TEXT:
        memcpy(row.inline, text, length)
    else:
        copy = <char *>PyMem_RawMalloc(length + 16)     # copied out in blocks of 16
        if copy == NULL:
            row.refs = 0
            row_release(texts, number)
            return 0
        memcpy(copy, text, length)
        (<char **>row.inline)[0] = copy
        texts.arena.bytes += length + 16
    index_add(texts, number)
    return number


cdef void text_release(Rows *texts, uint32_t number) noexcept nogil:
    cdef Text *row = <Text *>row_at(texts, number)
    row.refs -= 1
    if row.refs:
        return
    index_remove(texts, number)
    if row.length > INLINE_TEXT:
        PyMem_RawFree((<char **>row.inline)[0])
        texts.arena.bytes -= row.length + 16
    row_release(texts, number)


cdef uint32_t escape(const char *text, uint32_t length, char *out) noexcept nogil:
    # The escapes of a label value: https://prometheus.io/docs/instrumenting/exposition_formats/
    cdef char *start = out
    cdef uint32_t i
    cdef char c
    for i in range(length):
        c = text[i]
        if c == c'\\' or c == c'"':
            out[0] = c'\\'
            out[1] = c
            out += 2
        elif c == c'\n':
            out[0] = c'\\'
            out[1] = c'n'
            out += 2
        else:
            out[0] = c
            out += 1
    return <uint32_t>(out - start)


cdef inline bint same_text(const Cell *a, const Cell *b) noexcept nogil:
    return (a.text != NULL and a.length == b.length
            and memcmp(a.text, b.text, a.length) == 0)


cdef inline uint64_t zero_bytes(uint64_t word) noexcept nogil:
    # Not 0 when one of the word's bytes is.
    return (word - EACH_BYTE) & ~word & (EACH_BYTE << 7)


cdef inline bint needs_escape(const char *text, uint32_t length) noexcept nogil:
    cdef uint64_t word, found = 0
    cdef uint32_t taken
    while length:
        taken = min(length, <uint32_t>8)
        word = load(text, taken)
        found |= (zero_bytes(word ^ EACH_BYTE * c'\\') | zero_bytes(word ^ EACH_BYTE * c'"')
                  | zero_bytes(word ^ EACH_BYTE * c'\n'))
        text += taken
        length -= taken
    return found != 0


# ---------------------------------------------------------------------------------------------
# Reading the fields of a flow

cdef struct Field:
    # Where a value stands in a decoded flow. Offsets are those of the types' own slots; the
    # names serve where slots cannot be read. Names and types are owned by the table's `keep`.
    Py_ssize_t outer
    Py_ssize_t inner            # -1: the value is the flow's own field
    PyTypeObject *inner_type
    PyObject *outer_name
    PyObject *inner_name
    bint is_text


cdef struct Reader:
    # The fields of one of the plan's two flow types.
    PyTypeObject *type
    bint full
    Field uuid
    Field last
    Field finish
    Field start                 # from here on: full types only
    Field update_start
    Field update_last
    Field amounts[MAX_COUNTERS]
    Field totals[MAX_COUNTERS]  # counters, then gauges; both types again
    Field columns[MAX_COLUMNS]
    Field required[MAX_SKIPS]


cdef inline PyObject *slot(PyObject *owner, Py_ssize_t offset, PyObject *name,
                           bint slots) except? NULL:
    # Borrowed: the struct keeps it alive.
    cdef PyObject *value
    if likely(slots):
        return (<PyObject **>(<char *>owner + offset))[0]
    value = PyObject_GetAttr(owner, name)
    Py_DECREF(<object>value)
    return value


cdef inline PyObject *part(PyObject *flow, const Field *field, bint slots) except? NULL:
    # The sub-struct that holds a nested field; NULL when the flow has none, or another thing.
    cdef PyObject *owner = slot(flow, field.outer, field.outer_name, slots)
    if owner == NULL or Py_TYPE(owner) != field.inner_type:
        return NULL
    return owner


cdef inline PyObject *value_of(PyObject *flow, const Field *field, bint slots) except? NULL:
    cdef PyObject *owner
    if field.inner < 0:
        return slot(flow, field.outer, field.outer_name, slots)
    owner = part(flow, field, slots)
    if owner == NULL:
        return NULL
    return slot(owner, field.inner, field.inner_name, slots)


cdef inline int read_integer(PyObject *value, int64_t *out) except -1:
    # SKIP_NONE, or why the flow is to be skipped. A missing value is 0.
    cdef int overflow
    out[0] = 0
    if value == NULL:
        return SKIP_NONE
    if unlikely(not PyLong_CheckExact(value)):
        return SKIP_INVALID
    out[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    if unlikely(overflow or out[0] < 0 or out[0] > MAX_INTEGER):
        return SKIP_OUT_OF_RANGE
    return SKIP_NONE


cdef inline int read_text(PyObject *value, const char **text, uint32_t *length) except -1:
    cdef Py_ssize_t size
    text[0] = ""
    length[0] = 0
    if value == NULL:
        return SKIP_NONE
    if unlikely(not PyUnicode_CheckExact(value)):
        return SKIP_INVALID
    if likely(PyUnicode_IS_COMPACT_ASCII(value)):
        text[0] = <const char *>PyUnicode_DATA(value)
        size = PyUnicode_GET_LENGTH(value)
    else:
        try:
            text[0] = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:      # a lone surrogate
            return SKIP_INVALID
    if unlikely(size > MAX_TEXT):
        return SKIP_TEXT_TOO_LONG
    length[0] = <uint32_t>size
    return SKIP_NONE


cdef Py_ssize_t member_offset(owner, str name):
    # Where `owner` keeps its field `name`; -1 when that is no plain slot.
    descriptor = owner.__dict__.get(name)
    if type(descriptor).__name__ != "member_descriptor":
        return -1
    cdef PyMemberDef *member = (<PyMemberDescrObject *><PyObject *>descriptor).d_member
    return member.offset if member.type == T_OBJECT_EX else -1


cdef bint slot_reads_as(owner, str name, Py_ssize_t offset):
    # Put an object into the field and look whether it can be seen at the offset.
    if offset <= 0:
        return False
    sample = owner()
    marker = object()
    setattr(sample, name, marker)
    return (<PyObject **>(<char *><PyObject *>sample + offset))[0] == <PyObject *>marker


# ---------------------------------------------------------------------------------------------
# Writing lines

cdef const char *DIGITS = (
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
    "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
    "8081828384858687888990919293949596979899"
)


cdef inline char *put(char *out, const char *text, uint32_t length) noexcept nogil:
    # In whole blocks of 16: both sides have room for it, and the common texts need no loop.
    cdef uint32_t i = 16
    memcpy(out, text, 16)
    while i < length:
        memcpy(out + i, text + i, 16)
        i += 16
    return out + length


cdef inline char *put_number(char *out, uint64_t number) noexcept nogil:
    # Two digits at a time, from the end of a scratch buffer.
    cdef char scratch[2 * MAX_INTEGER_DIGITS]
    cdef char *end = scratch + MAX_INTEGER_DIGITS
    cdef char *at = end
    cdef uint64_t rest
    while number >= 100:
        rest = number / 100
        at -= 2
        memcpy(at, DIGITS + 2 * (number - rest * 100), 2)
        number = rest
    if number >= 10:
        at -= 2
        memcpy(at, DIGITS + 2 * number, 2)
    else:
        at -= 1
        at[0] = <char>(c'0' + number)
    memcpy(out, at, MAX_INTEGER_DIGITS)     # the scratch buffer is longer than its digits
    return out + (end - at)


cdef inline char *put_cell(char *out, uint32_t cell, const Rows *texts) noexcept nogil:
    cdef Text *text
    if cell & IS_TEXT:
        text = <Text *>row_at(texts, cell & ~IS_TEXT)
        return put(out, text_bytes(text), text.length)
    return put_number(out, cell)


# ---------------------------------------------------------------------------------------------

cdef struct Cursor:
    # How far a page has been rendered.
    uint32_t now_s
    uint32_t family
    uint32_t row                # 0: the family's head comes next
    uint64_t births             # connections born from this number on are not on the page


cdef class Table:
    """The flows and connections of one plan.

    :param plan: labels, values and families (`skyfast.plan.Plan`).
    :param types: the structs that `update` takes (`skyfast.wire.flow_types` of the same plan).
    :param max_connections: rows kept at most; what would need one more is skipped.
    :param max_flows: likewise, for flow rows.
    :param timeout_s: a flow leaves when it was not reported for so long, rounded up to the next
        full second of the caller's clock.
    :param slots: read the structs' slots at their offsets, where that can be shown to work;
        with False the fields are read as attributes. Results are the same.

    `now` is everywhere a time in seconds that never runs backwards; its origin does not matter.
    """

    cdef pthread_mutex_t lock
    cdef Arena arena
    cdef Rows texts
    cdef Rows flow_rows
    cdef Rows connection_rows
    cdef uint32_t counters, values, columns, requirements
    cdef uint32_t max_flows_, max_connections_
    cdef bint complete
    cdef bint slots
    cdef double timeout_s
    cdef uint64_t seed
    cdef list keep                      # owns what `Field` borrows
    cdef Reader *readers                # two: the plan's Flow and FullFlow
    # the wheel
    cdef uint32_t *wheel
    cdef uint32_t wheel_mask
    cdef uint32_t wheel_s               # the second whose slot comes next
    # a batch between reading and applying
    cdef Report reports[BATCH]
    cdef int64_t *batch_values          # BATCH x values
    cdef int64_t *batch_amounts         # BATCH x counters
    cdef Cell *batch_cells              # BATCH x columns
    cdef uint32_t *row_cells            # columns: the cells of the flow being added
    cdef char *escaped                  # MAX_CELL
    # rendering
    cdef Family *families
    cdef uint32_t family_count
    cdef uint32_t direction_at          # the literal that tells the two sides apart
    cdef size_t max_lines               # bytes that one connection's lines can take
    # counts
    cdef uint64_t births
    cdef uint64_t expired
    cdef uint64_t rejected
    cdef uint64_t skips[MAX_SKIPS]
    cdef uint64_t finishes[4]
    cdef tuple skip_names

    def __cinit__(self, plan, types, *, max_connections, max_flows, timeout_s, slots=True):
        cdef uint32_t wheel_slots = 4
        pthread_mutex_init(&self.lock, NULL)
        if not 0 < max_connections <= MAX_ROWS or not 0 < max_flows <= MAX_ROWS:
            raise ValueError(f"max_connections and max_flows are 1 to {MAX_ROWS}")
        if not 0 < timeout_s <= 1 << 30:
            raise ValueError("timeout_s is above 0 and at most 2^30")
        if (len(plan.counters) + len(plan.gauges) > MAX_COUNTERS
                or len(plan.columns) > MAX_COLUMNS
                or len(plan.requirements) > MAX_SKIPS - SKIP_REQUIRED):
            raise ValueError("the plan has more fields than the table can keep")
        self.max_connections_ = max_connections
        self.max_flows_ = max_flows
        self.timeout_s = timeout_s
        self.counters = len(plan.counters)
        self.values = self.counters + len(plan.gauges)
        self.columns = len(plan.columns)
        self.requirements = len(plan.requirements)
        self.complete = plan.complete
        self.skip_names = SKIP_NAMES + tuple(r.reason for r in plan.requirements)
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.keep = []

        while wheel_slots < timeout_s + 2 and wheel_slots < MAX_WHEEL_SLOTS:
            wheel_slots *= 2
        self.wheel_mask = wheel_slots - 1
        self.wheel = <uint32_t *>self._allocate(wheel_slots * sizeof(uint32_t))
        self.readers = <Reader *>self._allocate(2 * sizeof(Reader))
        self.batch_values = <int64_t *>self._allocate(BATCH * self.values * sizeof(int64_t))
        self.batch_amounts = <int64_t *>self._allocate(BATCH * self.counters * sizeof(int64_t))
        self.batch_cells = <Cell *>self._allocate(BATCH * self.columns * sizeof(Cell))
        self.row_cells = <uint32_t *>self._allocate(self.columns * sizeof(uint32_t))
        self.escaped = <char *>self._allocate(MAX_CELL)
        if not (
            rows_init(&self.texts, &self.arena, sizeof(Text))
            and rows_init(&self.flow_rows, &self.arena, sizeof(Flow) + 8 * self.counters)
            and rows_init(
                &self.connection_rows,
                &self.arena,
                (sizeof(Connection) + 8 * self.values + 4 * self.columns + 7) & ~7,
            )
        ):
            raise MemoryError

        self.slots = slots
        self._read_by(&self.readers[0], types.Flow, plan, types.Flow is types.FullFlow)
        self._read_by(&self.readers[1], types.FullFlow, plan, True)
        self._prepare_families(plan)

    def __dealloc__(self):
        cdef uint32_t i, j
        cdef Text *text
        for i in range(1, self.texts.fresh):
            text = <Text *>row_at(&self.texts, i)
            if text.refs and text.length > INLINE_TEXT:
                PyMem_RawFree((<char **>text.inline)[0])
        rows_destroy(&self.texts)
        rows_destroy(&self.flow_rows)
        rows_destroy(&self.connection_rows)
        arena_destroy(&self.arena)
        for i in range(self.family_count):
            for j in range(self.columns + 1):
                PyMem_RawFree(self.families[i].literals[j].text)
            PyMem_RawFree(self.families[i].literals)
            PyMem_RawFree(self.families[i].second.text)
            PyMem_RawFree(self.families[i].head)
        PyMem_RawFree(self.families)
        PyMem_RawFree(self.wheel)
        PyMem_RawFree(self.readers)
        PyMem_RawFree(self.batch_values)
        PyMem_RawFree(self.batch_amounts)
        PyMem_RawFree(self.batch_cells)
        PyMem_RawFree(self.row_cells)
        PyMem_RawFree(self.escaped)
        pthread_mutex_destroy(&self.lock)

    # -- set-up ---------------------------------------------------------------------------------

    cdef void *_allocate(self, size_t size) except NULL:
        cdef void *memory = PyMem_RawMalloc(size if size else 1)
        if memory == NULL:
            raise MemoryError
        memset(memory, 0, size)
        return memory

    cdef int _field(self, Field *field, owner, tuple path) except -1:
        # Resolve a path into offsets; `slots` is cleared when they cannot be trusted.
        cdef str name = path[0]
        inner = None
        self.keep.append((owner, path))
        field.outer_name = <PyObject *>name
        field.outer = member_offset(owner, name)
        field.inner = -1
        if not slot_reads_as(owner, name, field.outer):
            self.slots = False
        described = {f.name: f for f in msgspec.structs.fields(owner)}
        kind = described[name].type
        if len(path) > 1:
            inner = next(t for t in typing.get_args(kind) if t is not type(None))
            self.keep.append(inner)
            field.inner_type = <PyTypeObject *><PyObject *>inner
            field.inner_name = <PyObject *>path[1]
            if not path[1]:
                return 0
            field.inner = member_offset(inner, path[1])
            if not slot_reads_as(inner, path[1], field.inner):
                self.slots = False
                field.inner = 0
            kind = {f.name: f.type for f in msgspec.structs.fields(inner)}[path[1]]
        field.is_text = kind is str
        return 0

    cdef int _read_by(self, Reader *reader, owner, plan, bint full) except -1:
        cdef uint32_t i
        self.keep.append(owner)
        reader.type = <PyTypeObject *><PyObject *>owner
        reader.full = full
        self._field(&reader.uuid, owner, ("UUID",))
        self._field(&reader.last, owner, ("Last",))
        self._field(&reader.finish, owner, ("FinishType",))
        if full:
            self._field(&reader.start, owner, ("Start",))
            self._field(&reader.update_start, owner, ("LastUpdateMetric", "Start"))
            self._field(&reader.update_last, owner, ("LastUpdateMetric", "Last"))
            for i, counter in enumerate(plan.counters):
                self._field(&reader.amounts[i], owner, counter.amount)
        for i, valued in enumerate((*plan.counters, *plan.gauges)):
            self._field(&reader.totals[i], owner, valued.path)
        for i, column in enumerate(plan.columns):
            self._field(&reader.columns[i], owner, column.path)
        for i, requirement in enumerate(plan.requirements):
            self._field(&reader.required[i], owner, (*requirement.path, ""))
        return 0

    cdef int _literal(self, Literal *literal, str text) except -1:
        cdef bytes encoded = text.encode()
        literal.length = len(encoded)
        literal.text = <char *>self._allocate(literal.length + 32)
        memcpy(literal.text, PyBytes_AS_STRING(encoded), literal.length)
        return 0

    cdef int _prepare_families(self, plan) except -1:
        # Every line is literal, cell, literal, cell, …, literal, value. The direction is part of
        # a literal; the second side's line differs from the first in that literal alone.
        cdef Family *family
        cdef uint32_t i, j
        cdef size_t fixed, longest = 0
        direction = plan.direction
        names = [column.name for column in plan.columns]
        self.direction_at = direction.position
        self.families = <Family *>self._allocate(len(plan.families) * sizeof(Family))
        for i, declared in enumerate(plan.families):
            family = &self.families[i]
            family.sides = len(declared.values)
            for j in range(family.sides):
                if not 0 <= declared.values[j] < self.values:
                    raise ValueError(f"{declared.name} has a value that the plan does not keep")
                family.values[j] = declared.values[j]
            family.omit_zero = declared.omit_zero
            head = (
                f"# HELP {declared.name} {declared.help}\n# TYPE {declared.name} {declared.type}\n"
            ).encode()
            family.head = <char *>self._allocate(len(head))
            family.head_length = len(head)
            memcpy(family.head, PyBytes_AS_STRING(head), family.head_length)
            family.literals = <Literal *>self._allocate((self.columns + 1) * sizeof(Literal))
            self.family_count = i + 1
            sides = [
                line_literals(declared.name, names, direction.name, direction.position, value)
                for value in direction.values
            ]
            for j in range(self.columns + 1):
                self._literal(&family.literals[j], sides[0][j])
            self._literal(&family.second, sides[1][direction.position])
            fixed = sum(len(text.encode()) for side in sides for text in side)
            fixed += 2 * (self.columns * MAX_CELL + MAX_INTEGER_DIGITS + 1)
            longest = max(longest, fixed, family.head_length)
        self.max_lines = longest + 64       # whole blocks may be written beyond the last line
        return 0

    # -- reports --------------------------------------------------------------------------------

    def update(self, list flows not None, double now, Py_ssize_t start=0):
        """Apply ``flows[start:]`` in their order; return how far it came.

        :param flows: values of one of the plan's types, all of the same one.
        :returns: ``len(flows)``; or the index of the first flow that can only be judged by its
            ``LastUpdateMetric``, where the flows are of the type without it. Nothing from there
            on was applied or counted: decode again as ``FullFlow``, and go on from that index.
        :raises TypeError: a value of another type; what stands before it was applied.
        :raises MemoryError: likewise, before the flow that found no memory.

        The rules are those of docs/architecture.md: a known flow adds its deltas; a report that
        is not newer and nowhere higher is late; one that is newer and anywhere lower started over.
        An unknown flow adds its total in its first report, or where it creates a connection that
        the labels tell from all others; elsewhere it adds what its last update added. Skipped
        flows are counted in `skipped`.
        """
        cdef Py_ssize_t count = PyList_GET_SIZE(flows)
        cdef Py_ssize_t at = start
        cdef uint32_t size
        cdef int done
        cdef uint32_t deadline_s = <uint32_t>ceil(now + self.timeout_s)
        if self.flow_rows.live == 0:
            self.wheel_s = <uint32_t>floor(now)
        while at < count:
            size = <uint32_t>min(count - at, <Py_ssize_t>BATCH)
            size = self._read(flows, at, size)
            if size == 0:
                raise TypeError(f"not a flow of this table's plan: {type(flows[at]).__name__}")
            self._find(size)
            self._read_unknown(flows, at, size)
            self._find_labels(size)
            pthread_mutex_lock(&self.lock)
            done = self._apply(size, deadline_s)
            pthread_mutex_unlock(&self.lock)
            if done < 0:
                raise MemoryError
            at += done
            if <uint32_t>done < size:
                break
        return at

    cdef Reader *_reader_of(self, PyObject *flow) noexcept:
        if Py_TYPE(flow) == self.readers[0].type:
            return &self.readers[0]
        if Py_TYPE(flow) == self.readers[1].type:
            return &self.readers[1]
        return NULL

    cdef uint32_t _read(self, list flows, Py_ssize_t start, uint32_t size) except? 0:
        # Fill `reports` with what known flows need. Returns how many were read: fewer than asked
        # for where something is no flow at all.
        cdef uint32_t i
        cdef Reader *reader
        cdef PyObject *flow
        for i in range(size):
            flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
            reader = self._reader_of(flow)
            if reader == NULL:
                return i
            self.reports[i].skip = self._read_report(
                flow, reader, &self.reports[i], self.batch_values + <size_t>i * self.values
            )
        return size

    cdef int _read_report(self, PyObject *flow, const Reader *reader, Report *report,
                          int64_t *values) except -1:
        cdef const char *text
        cdef uint32_t length, i
        cdef uint64_t number
        cdef int64_t finish
        cdef int wrong
        report.flow = 0
        report.key_text = NULL
        wrong = read_text(value_of(flow, &reader.uuid, self.slots), &text, &length)
        if unlikely(wrong):
            return wrong
        if unlikely(length == 0):
            return SKIP_NO_UUID
        for i in range(self.requirements):
            if unlikely(part(flow, &reader.required[i], self.slots) == NULL):
                return SKIP_REQUIRED + <int>i
        for i in range(self.values):
            wrong = read_integer(value_of(flow, &reader.totals[i], self.slots), &values[i])
            if unlikely(wrong):
                return wrong
        wrong = read_integer(value_of(flow, &reader.last, self.slots), &report.last_ms)
        if unlikely(wrong):
            return wrong
        wrong = read_integer(value_of(flow, &reader.finish, self.slots), &finish)
        if unlikely(wrong):
            return wrong
        report.finish = <int>finish if finish < 4 else 4
        if likely(parse_key(text, length, &number)):
            report.key = mixed(number ^ self.seed)
            prefetch(bucket_of(&self.flow_rows, <uint32_t>report.key))
        else:
            report.key_text = text
            report.key_length = length
        return SKIP_NONE

    cdef void _find(self, uint32_t size) noexcept:
        # Three passes, so that the memory of one flow is on its way while others are looked at.
        cdef uint32_t i, number
        cdef Report *report
        for i in range(size):
            report = &self.reports[i]
            if report.skip == SKIP_NONE and report.key_text == NULL:
                number = bucket_of(&self.flow_rows, <uint32_t>report.key)[0]
                if number:
                    prefetch(row_at(&self.flow_rows, number))
        for i in range(size):
            report = &self.reports[i]
            if report.skip == SKIP_NONE:
                report.flow = self._known(report)
                if report.flow:
                    number = (<Flow *>row_at(&self.flow_rows, report.flow)).connection & ~TEXT_KEY
                    prefetch(row_at(&self.connection_rows, number))
                    prefetch(row_at(&self.connection_rows, number) + CACHE_LINE)

    cdef uint32_t _known(self, Report *report) noexcept nogil:
        # The row of the report's flow, or 0.
        cdef uint64_t key = report.key
        cdef uint32_t kind = 0
        cdef uint32_t number
        cdef Flow *row
        if unlikely(report.key_text != NULL):
            number = text_find(
                &self.texts, report.key_text, report.key_length,
                text_hash(report.key_text, report.key_length, self.seed),
            )
            if number == 0:
                return 0
            key = text_key(number)
            kind = TEXT_KEY
        number = bucket_of(&self.flow_rows, <uint32_t>key)[0]
        while number:
            row = <Flow *>row_at(&self.flow_rows, number)
            if (row.hash == <uint32_t>key and row.key_high == <uint32_t>(key >> 32)
                    and row.connection & TEXT_KEY == kind):
                return number
            number = row.next
        return 0

    cdef int _read_unknown(self, list flows, Py_ssize_t start, uint32_t size) except -1:
        # Labels, and what tells a first report from others, of the flows that are not known.
        cdef uint32_t i
        cdef PyObject *flow
        cdef Report *report
        cdef Cell *cells
        cdef const Cell *previous = NULL
        for i in range(size):
            report = &self.reports[i]
            if report.skip == SKIP_NONE and report.flow == 0:
                flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
                cells = self.batch_cells + <size_t>i * self.columns
                report.skip_new = self._read_labels(
                    flow, self._reader_of(flow), report, cells, previous,
                    self.batch_amounts + <size_t>i * self.counters,
                )
                if report.skip_new == SKIP_NONE:
                    previous = cells
        return 0

    cdef int _read_labels(self, PyObject *flow, const Reader *reader, Report *report,
                          Cell *cells, const Cell *previous, int64_t *amounts) except -1:
        # `previous` are the labels of another flow, or NULL: many of a message have the same
        # protocol and the same interface, whose hash is then known.
        cdef PyObject *value
        cdef uint32_t i
        cdef int wrong
        for i in range(self.columns):
            value = value_of(flow, &reader.columns[i], self.slots)
            cells[i].found = 0
            if reader.columns[i].is_text:
                wrong = read_text(value, &cells[i].text, &cells[i].length)
            else:
                cells[i].text = NULL
                wrong = read_integer(value, &cells[i].number)
            if unlikely(wrong):
                return wrong
            if cells[i].text != NULL:
                cells[i].repeats = previous != NULL and same_text(&previous[i], &cells[i])
                if cells[i].repeats:
                    cells[i].escapes = previous[i].escapes
                    cells[i].hash = previous[i].hash
                else:
                    cells[i].escapes = needs_escape(cells[i].text, cells[i].length)
                    cells[i].hash = text_hash(cells[i].text, cells[i].length, self.seed)
                    prefetch(bucket_of(&self.texts, cells[i].hash))
        report.has_amounts = reader.full
        if reader.full:
            report.first = False
            report.skip_amounts = self._read_amounts(flow, reader, report, amounts)
        return SKIP_NONE

    cdef int _read_amounts(self, PyObject *flow, const Reader *reader, Report *report,
                           int64_t *amounts) except -1:
        cdef int64_t start, update_start, update_last
        cdef uint32_t i
        cdef int wrong
        cdef bint repeat
        if part(flow, &reader.update_start, self.slots) == NULL:
            report.first = True
            return SKIP_NONE
        wrong = read_integer(value_of(flow, &reader.start, self.slots), &start)
        if unlikely(wrong):
            return wrong
        wrong = read_integer(value_of(flow, &reader.update_start, self.slots), &update_start)
        if unlikely(wrong):
            return wrong
        report.first = update_start == start
        if report.first:
            return SKIP_NONE
        wrong = read_integer(value_of(flow, &reader.update_last, self.slots), &update_last)
        if unlikely(wrong):
            return wrong
        repeat = report.finish != 0 and update_last != report.last_ms
        for i in range(self.counters):
            wrong = read_integer(value_of(flow, &reader.amounts[i], self.slots), &amounts[i])
            if unlikely(wrong):
                return wrong
            if repeat:
                amounts[i] = 0
        return SKIP_NONE

    cdef void _find_labels(self, uint32_t size) noexcept:
        # Look the unknown flows' texts and connections up, in passes as in `_find`. What is found
        # stays valid for the batch, as nothing leaves the table in between.
        cdef uint32_t i, j, number
        cdef Cell *cells
        cdef const Cell *previous = NULL
        for i in range(size):
            if self._is_unknown(&self.reports[i]):
                cells = self.batch_cells + <size_t>i * self.columns
                for j in range(self.columns):
                    if cells[j].text != NULL and not cells[j].repeats:
                        number = bucket_of(&self.texts, cells[j].hash)[0]
                        if number:
                            prefetch(row_at(&self.texts, number))
        for i in range(size):
            if self._is_unknown(&self.reports[i]):
                cells = self.batch_cells + <size_t>i * self.columns
                self._find_texts(&self.reports[i], cells, previous)
                previous = cells
        for i in range(size):
            if self._is_unknown(&self.reports[i]) and self.reports[i].connection_hash:
                number = bucket_of(&self.connection_rows, self.reports[i].connection_hash)[0]
                if number:
                    prefetch(row_at(&self.connection_rows, number))

    cdef inline bint _is_unknown(self, const Report *report) noexcept nogil:
        return (report.skip == SKIP_NONE and report.flow == 0
                and report.skip_new == SKIP_NONE)

    cdef void _find_texts(self, Report *report, Cell *cells,
                          const Cell *previous) noexcept nogil:
        # The numbers of the texts; where all are known, the hash of the connection too.
        cdef uint32_t i
        cdef bint all_found = True
        report.connection_hash = 0
        for i in range(self.columns):
            if cells[i].text == NULL:
                all_found &= cells[i].number < <int64_t>IS_TEXT
                self.row_cells[i] = <uint32_t>cells[i].number
                continue
            if cells[i].repeats:
                cells[i].found = previous[i].found
            elif not cells[i].escapes:  # the others are looked up when they have got them
                cells[i].found = text_find(
                    &self.texts, cells[i].text, cells[i].length, cells[i].hash
                )
            all_found &= cells[i].found != 0
            self.row_cells[i] = cells[i].found | IS_TEXT
        if all_found:
            report.connection_hash = self._cells_hash()
            prefetch(bucket_of(&self.connection_rows, report.connection_hash))

    cdef inline uint32_t _cells_hash(self) noexcept nogil:
        return text_hash(<const char *>self.row_cells, 4 * self.columns, self.seed)

    # Everything from here to `expire` runs under the lock.

    cdef int _apply(self, uint32_t size, uint32_t deadline_s) noexcept nogil:
        # How many reports of the batch were dealt with, or -1 when memory ran out.
        cdef uint32_t i
        cdef Report *report
        cdef int64_t *values
        for i in range(size):
            report = &self.reports[i]
            values = self.batch_values + <size_t>i * self.values
            if likely(report.skip == SKIP_NONE):
                if report.flow == 0:
                    report.flow = self._known(report)   # an earlier one of this very batch
                if likely(report.flow != 0):
                    report.skip = self._apply_known(report, values, deadline_s)
                elif unlikely(report.skip_new != SKIP_NONE):
                    report.skip = report.skip_new
                else:
                    report.skip = self._apply_unknown(
                        report, values, self.batch_cells + <size_t>i * self.columns,
                        self.batch_amounts + <size_t>i * self.counters, deadline_s,
                    )
                    if unlikely(report.skip == APPLY_STOP):
                        return <int>i
                    if unlikely(report.skip == APPLY_NO_MEMORY):
                        return -1
                if report.finish and (report.skip == SKIP_NONE or report.skip == SKIP_LATE
                                      or report.skip == SKIP_TABLE_FULL):
                    self.finishes[report.finish & 3] += 1
            if unlikely(report.skip != SKIP_NONE):
                self.skips[report.skip] += 1
        return <int>size

    cdef int _apply_known(self, const Report *report, const int64_t *values,
                          uint32_t deadline_s) noexcept nogil:
        cdef Flow *flow = <Flow *>row_at(&self.flow_rows, report.flow)
        cdef int64_t *totals = <int64_t *>(flow + 1)
        cdef Connection *connection = <Connection *>row_at(
            &self.connection_rows, flow.connection & ~TEXT_KEY
        )
        cdef int64_t *sums = <int64_t *>(connection + 1)
        cdef bint newer = report.last_ms > flow.last_ms
        cdef bint higher = False
        cdef bint lower = False
        cdef uint32_t i
        for i in range(self.counters):
            higher |= values[i] > totals[i]
            lower |= values[i] < totals[i]
        if unlikely(not newer and not higher):
            return SKIP_LATE
        if unlikely(newer and lower):           # the flow started over
            for i in range(self.counters):
                add(&sums[i], values[i])
                totals[i] = values[i]
        else:
            for i in range(self.counters):
                if values[i] > totals[i]:
                    add(&sums[i], values[i] - totals[i])
                    totals[i] = values[i]
        if newer:
            flow.last_ms = report.last_ms
        self._touch(flow, connection, values, deadline_s)
        return SKIP_NONE

    cdef inline void _touch(self, Flow *flow, Connection *connection, const int64_t *values,
                            uint32_t deadline_s) noexcept nogil:
        cdef int64_t *sums = <int64_t *>(connection + 1)
        cdef uint32_t i
        for i in range(self.counters, self.values):
            if values[i]:
                sums[i] = values[i]
        if deadline_s > flow.deadline_s:
            flow.deadline_s = deadline_s
        if deadline_s > connection.deadline_s:
            connection.deadline_s = deadline_s

    cdef int _apply_unknown(self, Report *report, const int64_t *values, const Cell *cells,
                            const int64_t *amounts, uint32_t deadline_s) noexcept nogil:
        cdef uint32_t number, hash
        cdef int wrong
        cdef bint creates
        cdef const int64_t *news
        if not self._intern(cells):
            return APPLY_NO_MEMORY
        hash = self._cells_hash()
        number = self._connection(hash)
        creates = number == 0
        if creates and self.connection_rows.live >= self.max_connections_:
            self.rejected += 1
            wrong = SKIP_TABLE_FULL
        elif self.flow_rows.live >= self.max_flows_:
            wrong = SKIP_TABLE_FULL
        elif not report.has_amounts and not (creates and self.complete):
            wrong = APPLY_STOP
        else:
            news = values
            wrong = SKIP_NONE
            if not (creates and self.complete) and not report.first:
                news = amounts
                wrong = report.skip_amounts
            if likely(wrong == SKIP_NONE):
                wrong = self._add_flow(report, number, hash, values, news, deadline_s)
        if wrong != SKIP_NONE or not creates:
            self._release_cells(self.row_cells, self.columns)
        return wrong

    cdef bint _intern(self, const Cell *cells) noexcept nogil:
        # `row_cells` for these label values, with a reference each; False without memory.
        cdef char digits[32]
        cdef const char *text
        cdef uint32_t i, length, number
        for i in range(self.columns):
            text = cells[i].text
            length = cells[i].length
            if likely(cells[i].found != 0):
                (<Text *>row_at(&self.texts, cells[i].found)).refs += 1
                self.row_cells[i] = cells[i].found | IS_TEXT
                continue
            if text == NULL:
                if cells[i].number < <int64_t>IS_TEXT:
                    self.row_cells[i] = <uint32_t>cells[i].number
                    continue
                text = digits           # an integer that does not fit is kept as a text
                length = <uint32_t>(put_number(digits, cells[i].number) - digits)
            elif unlikely(cells[i].escapes):
                length = escape(text, length, self.escaped)
                text = self.escaped
            number = text_intern(&self.texts, text, length, self.seed)
            if number == 0:
                self._release_cells(self.row_cells, i)
                return False
            self.row_cells[i] = number | IS_TEXT
        return True

    cdef void _release_cells(self, const uint32_t *cells, uint32_t count) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            if cells[i] & IS_TEXT:
                text_release(&self.texts, cells[i] & ~IS_TEXT)

    cdef inline uint32_t *_cells(self, Connection *connection) noexcept nogil:
        return <uint32_t *>(<int64_t *>(connection + 1) + self.values)

    cdef uint32_t _connection(self, uint32_t hash) noexcept nogil:
        # The connection whose labels are `row_cells`, or 0.
        cdef uint32_t number = bucket_of(&self.connection_rows, hash)[0]
        cdef Connection *row
        while number:
            row = <Connection *>row_at(&self.connection_rows, number)
            if (row.hash == hash
                    and memcmp(self._cells(row), self.row_cells, 4 * self.columns) == 0):
                return number
            number = row.next
        return 0

    cdef int _add_flow(self, const Report *report, uint32_t number, uint32_t hash,
                       const int64_t *values, const int64_t *news,
                       uint32_t deadline_s) noexcept nogil:
        # A new flow row, and the connection too when `number` is 0; all of it or nothing.
        cdef Connection *connection
        cdef Flow *flow
        cdef uint64_t key = report.key
        cdef uint32_t text = 0
        cdef uint32_t row, i
        if report.key_text != NULL:
            text = text_intern(&self.texts, report.key_text, report.key_length, self.seed)
            if text == 0:
                return APPLY_NO_MEMORY
            key = text_key(text)
        row = row_new(&self.flow_rows)
        if row == 0:
            if text:
                text_release(&self.texts, text)
            return APPLY_NO_MEMORY
        if number == 0:
            number = self._new_connection(hash)
            if number == 0:
                row_release(&self.flow_rows, row)
                if text:
                    text_release(&self.texts, text)
                return APPLY_NO_MEMORY
        connection = <Connection *>row_at(&self.connection_rows, number)
        connection.flows += 1
        flow = <Flow *>row_at(&self.flow_rows, row)
        flow.hash = <uint32_t>key
        flow.key_high = <uint32_t>(key >> 32)
        flow.connection = number | (TEXT_KEY if text else 0)
        flow.last_ms = report.last_ms
        flow.deadline_s = 0
        memcpy(flow + 1, values, self.counters * sizeof(int64_t))
        for i in range(self.counters):
            add(<int64_t *>(connection + 1) + i, news[i])
        self._touch(flow, connection, values, deadline_s)
        index_add(&self.flow_rows, row)
        self._file(flow, row)
        return SKIP_NONE

    cdef uint32_t _new_connection(self, uint32_t hash) noexcept nogil:
        cdef uint32_t number = row_new(&self.connection_rows)
        cdef Connection *row
        if number == 0:
            return 0
        row = <Connection *>row_at(&self.connection_rows, number)
        memset(row, 0, self.connection_rows.stride)
        row.hash = hash
        row.birth = self.births
        self.births += 1
        memcpy(self._cells(row), self.row_cells, 4 * self.columns)
        index_add(&self.connection_rows, number)
        return number

    # -- expiry ---------------------------------------------------------------------------------

    cdef inline void _file(self, Flow *flow, uint32_t number) noexcept nogil:
        # Into the slot of its deadline, or the farthest one when that is beyond the wheel.
        cdef uint32_t slot_s = min(flow.deadline_s, self.wheel_s + self.wheel_mask)
        cdef uint32_t *head = &self.wheel[max(slot_s, self.wheel_s) & self.wheel_mask]
        flow.wheel_next = head[0]
        head[0] = number

    def expire(self, double now, uint32_t max_rows):
        """Take out the flows whose deadline has come, and the connections they leave empty.

        :param max_rows: rows (and empty slots) looked at, at most: a bound on the time it takes,
            about 0.2 µs each.
        :returns: whether there is more to do at this `now`.

        A row past its deadline is not on any page any more, but stays known until this takes
        it: a report that was waiting meanwhile continues it.
        """
        cdef bint more
        with nogil:
            pthread_mutex_lock(&self.lock)
            more = self._expire(<uint32_t>floor(now), max_rows)
            pthread_mutex_unlock(&self.lock)
        return more

    cdef bint _expire(self, uint32_t now_s, uint32_t max_rows) noexcept nogil:
        cdef uint32_t *head
        cdef uint32_t number
        cdef Flow *flow
        while self.wheel_s <= now_s:
            if self.flow_rows.live == 0:
                self.wheel_s = now_s + 1
                return False
            if max_rows == 0:
                return True
            max_rows -= 1
            head = &self.wheel[self.wheel_s & self.wheel_mask]
            number = head[0]
            if number == 0:
                self.wheel_s += 1
                continue
            flow = <Flow *>row_at(&self.flow_rows, number)
            head[0] = flow.wheel_next
            if flow.wheel_next:
                prefetch(row_at(&self.flow_rows, flow.wheel_next))
            if flow.deadline_s > self.wheel_s:
                self._file(flow, number)
            else:
                self._remove(flow, number)
        return False

    cdef void _remove(self, Flow *flow, uint32_t number) noexcept nogil:
        cdef uint32_t at = flow.connection & ~TEXT_KEY
        cdef Connection *connection = <Connection *>row_at(&self.connection_rows, at)
        index_remove(&self.flow_rows, number)
        if flow.connection & TEXT_KEY:
            text_release(&self.texts, flow.key_high)
        row_release(&self.flow_rows, number)
        connection.flows -= 1
        if connection.flows == 0:
            index_remove(&self.connection_rows, at)
            self._release_cells(self._cells(connection), self.columns)
            row_release(&self.connection_rows, at)
            self.expired += 1

    # -- pages and counts -----------------------------------------------------------------------

    def page(self, double now):
        """Begin a page: it shows the connections that are alive at `now`, and none born later.

        It may be read from any thread, by one at a time, and however slowly.
        """
        cdef Page page = Page.__new__(Page)
        page.table = self
        page.cursor.now_s = <uint32_t>floor(now)
        page.cursor.births = self.births
        return page

    cdef char *_render(self, Cursor *cursor, char *out, const char *limit) noexcept nogil:
        # Lines until `limit` is reached or the page ends. The last connection's lines, or a
        # family's head, may go beyond the limit, by up to `max_lines`.
        cdef const Family *family
        while cursor.family < self.family_count and out < limit:
            family = &self.families[cursor.family]
            if cursor.row == 0:
                memcpy(out, family.head, family.head_length)
                out += family.head_length
                cursor.row = 1
            pthread_mutex_lock(&self.lock)
            out = self._render_rows(cursor, family, out, limit)
            if cursor.row >= self.connection_rows.fresh:
                cursor.family += 1
                cursor.row = 0
            pthread_mutex_unlock(&self.lock)
        return out

    cdef char *_render_rows(self, Cursor *cursor, const Family *family, char *out,
                            const char *limit) noexcept nogil:
        cdef const Rows *rows = &self.connection_rows
        cdef uint32_t row = cursor.row
        cdef uint32_t stop = min(rows.fresh, row + RENDER_ROWS)
        cdef Connection *connection
        while row < stop and out < limit:
            if row + 2 * AHEAD < rows.fresh:
                prefetch(row_at(rows, row + 2 * AHEAD))
                prefetch(row_at(rows, row + 2 * AHEAD) + CACHE_LINE)
            if row + AHEAD < rows.fresh:
                self._prefetch_texts(<Connection *>row_at(rows, row + AHEAD))
            connection = <Connection *>row_at(rows, row)
            if (connection.flows and connection.deadline_s > cursor.now_s
                    and connection.birth < cursor.births):
                out = self._render_connection(family, connection, out)
            row += 1
        cursor.row = row
        return out

    cdef inline void _prefetch_texts(self, Connection *connection) noexcept nogil:
        cdef const uint32_t *cells = self._cells(connection)
        cdef uint32_t i
        if connection.flows:
            for i in range(self.columns):
                if cells[i] & IS_TEXT:
                    prefetch(row_at(&self.texts, cells[i] & ~IS_TEXT))

    cdef inline char *_render_connection(self, const Family *family, Connection *connection,
                                         char *out) noexcept nogil:
        # The labels are composed once; the second side's line is a copy with another direction.
        cdef const int64_t *values = <const int64_t *>(connection + 1)
        cdef const uint32_t *cells = self._cells(connection)
        cdef const Literal *literals = family.literals
        cdef char *start = out
        cdef char *direction = out
        cdef char *rest
        cdef uint32_t i
        cdef Py_ssize_t before, after
        if family.omit_zero and values[family.values[0]] == 0:
            return out
        for i in range(self.columns):
            if i == self.direction_at:
                direction = out
            out = put(out, literals[i].text, literals[i].length)
            out = put_cell(out, cells[i], &self.texts)
        if self.direction_at == self.columns:
            direction = out
        out = put(out, literals[self.columns].text, literals[self.columns].length)
        rest = direction + literals[self.direction_at].length
        before = direction - start
        after = out - rest
        out = put_number(out, values[family.values[0]])
        out[0] = c'\n'
        out += 1
        if family.sides == 2:
            memcpy(out, start, before)
            out = put(out + before, family.second.text, family.second.length)
            memcpy(out, rest, after)
            out = put_number(out + after, values[family.values[1]])
            out[0] = c'\n'
            out += 1
        return out

    @property
    def connections(self):
        """Connection rows in use."""
        return self.connection_rows.live

    @property
    def flows(self):
        """Flow rows in use."""
        return self.flow_rows.live

    @property
    def bytes(self):
        """Memory that the rows, indexes and texts hold, in bytes, whether in use or free."""
        return self.arena.bytes

    @property
    def created_total(self):
        """Connections that were ever created."""
        return self.births

    @property
    def expired_total(self):
        """Connections that left."""
        return self.expired

    @property
    def rejected_total(self):
        """Reports that found no room for the connection they would have created."""
        return self.rejected

    @property
    def skipped(self):
        """Flows that changed nothing, by reason."""
        cdef uint32_t i
        return {
            self.skip_names[i]: self.skips[i]
            for i in range(1, SKIP_REQUIRED + self.requirements)
        }

    @property
    def finished(self):
        """Reports whose ``FinishType`` was set, by its meaning, whether they were news or not."""
        cdef uint32_t i
        return {FINISH_NAMES[i]: self.finishes[i] for i in range(4)}

    @property
    def reads_slots(self):
        """Whether fields are read at their offsets, or as attributes."""
        return self.slots


cdef enum:
    # Outcomes of `_apply_unknown` beside the reasons to skip.
    APPLY_STOP = MAX_SKIPS
    APPLY_NO_MEMORY


cdef inline uint64_t text_key(uint32_t text) noexcept nogil:
    # The key of a flow whose UUID is an interned text: its number above, a hash of that below.
    return (<uint64_t>text << 32) | <uint32_t>mixed(text)


cdef inline void add(int64_t *total, int64_t amount) noexcept nogil:
    # Saturating: a counter that cannot grow stays, where wrapping would be a reset.
    if unlikely(total[0] > INT64_MAX - amount):
        total[0] = INT64_MAX
    else:
        total[0] += amount


def line_literals(metric, columns, direction, position, value):
    """Return what stands before, between and behind the label values of a line.

    `columns` are the label names without the direction's, which is set at `position` with its
    text. One literal more than there are columns; the last one ends where the value begins.
    """
    literals = []
    text = metric + "{"
    for at in range(len(columns) + 1):
        if at == position:
            text += f'{direction}="{value}"' + ("," if at < len(columns) else "")
        if at < len(columns):
            literals.append(f'{text}{columns[at]}="')
            last = at + 1 == len(columns) and position != at + 1
            text = '"' if last else '",'
    literals.append(text + "} ")
    return literals


cdef class Page:
    """A page being read. Made by `Table.page`."""

    cdef Table table
    cdef Cursor cursor

    def read(self, Py_ssize_t size):
        """Return the next lines, whole ones, about `size` bytes; ``b""`` at the end.

        Renders without the GIL. The lock is given up now and then, so that other threads' calls
        come in between.
        """
        cdef Table table = self.table
        cdef Py_ssize_t wanted = max(size, <Py_ssize_t>1)
        cdef PyObject *out = PyBytes_FromStringAndSize(NULL, wanted + table.max_lines)
        cdef char *start = PyBytes_AS_STRING(<object>out)
        cdef char *end
        with nogil:
            end = table._render(&self.cursor, start, start + wanted)
        _PyBytes_Resize(&out, end - start)
        lines = <object>out
        Py_DECREF(lines)            # `out` was a reference of its own
        return lines
