# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table: flows, connections, expiry wheel, rendering. No clock, no socket, no log inside.

Data structures
    Two levels. A *flow* row is one report stream of an agent, known by its UUID, with its last
    known totals. A *connection* row is one label tuple of the page; its values are sums of the
    deltas of its flows. Label values are numbers: an interned text (bit 31 set) or a small integer.
    There is one set of connection rows for each of the plan's views. A flow leads to its row of the
    first view. That row leads to those of the views whose labels are among its own, for they are
    the same for all of its flows; the rows of all other views are led to by the flow itself.
    All kinds of rows (texts, flows, connections, conversations) live in slabs under one allocator
    with one index (`Rows`): linear hashing, which splits one bucket at a time, so that no insert
    ever pays for a million rows. The shapes are in ``_table.pxd``.

    A wheel has one slot a second. A flow stands in the slot of the deadline it had when it was
    filed; a report only writes a later deadline into the row. When the slot's turn comes, the flow
    is filed again or becomes dormant, and a connection of the first view leaves with its last flow.
    The other views have wheels for their connections, which stay longer than any flow of theirs.

    A *dormant* flow keeps its row, its key and its totals, and leads nowhere: its next report adds
    the difference to what is known. Dormant rows are in one of two lists, in the order in which
    they became dormant; the links of the lists are the fields that lead a live flow to its
    connection and through the wheel, so a live row is no larger for it. The first of a list is the
    first to be forgotten, when its time is over or another flow needs the room. A connection that
    leaves with other counters than its last flow's totals keeps them in such a row as well, whose
    key is a hash of its labels. See ``table/dormant.pxi``.

Costs
    A report of a known flow: one look-up, two cache lines of rows. A new flow, and one that was
    dormant: two look-ups and one for each text of its labels. Expiry: what expires, and one
    re-filing a flow and time-out. Becoming dormant and being forgotten: the neighbours in a list.
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
    Even memory comes from C's own functions: Python's may take the GIL, where it is traced.

Files
    The methods of `Table` are here, and what only they need. Functions that need no table are in
    files of their own: ``table/rows.pxi`` has arena, slabs and index, ``table/strings.pxi`` hashes
    and interned texts, ``table/fields.pxi`` what reads a flow, ``table/text_format.pxi`` what
    writes a page's lines, ``table/timer_wheel.pxi`` the wheels, ``table/dormant.pxi`` the lists of
    dormant flows, ``table/top_k.pxi`` and ``table/counter.pxi`` what has most and what is
    commonest. They are included because the C compiler needs all of it in one unit, to inline the
    small ones. Constants that several of them share are here.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

import heapq
import os
import re
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
    PyObject *PyObject_GetItem(PyObject *, PyObject *) except NULL
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

cdef extern from "string.h" nogil:
    void *memmem(const void *, size_t, const void *, size_t)

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **, size_t, size_t)

cdef extern from *:
    """
    #define prefetch(address) __builtin_prefetch(address)
    #define likely(x) __builtin_expect(!!(x), 1)
    #define unlikely(x) __builtin_expect(!!(x), 0)
    """
    void prefetch(const void *) noexcept nogil
    bint likely(bint) noexcept nogil
    bint unlikely(bint) noexcept nogil


MAX_NUMBER = 1 << 62            # of a flow's field; a larger one skips its flow

cdef enum:
    # Fields of a flow that it can do without, beside its values.
    MARK_FINISH
    MARK_START
    MARK_UPDATE_START
    MARK_UPDATE_LAST
    MARKS

cdef enum:
    MAX_TEXT = MAX_TEXT_BYTES
    MAX_CELL = 2 * MAX_TEXT     # every byte escaped
    MAX_INTEGER_DIGITS = 20
    MAX_DECIMALS = 18
    MAX_VIEWS_ = MAX_VIEWS
    MAX_FIELDS = 4 * MAX_VALUES + MARKS     # whose values can be left out
    INLINE_TEXT = 48
    FLOW_TYPES = 3
    BATCH = 128                 # reports between two turns of the lock
    ROOM_ROWS = 2               # dormant rows that make room for those that one report adds
    BUCKETS_PER_ROW = 2         # what the index grows to: chains are short, and 8 bytes a row
    CACHE_LINE = 64

# How it grows, and in what steps it goes. _checked.pyx has smaller ones, so that few rows come
# to all of that, and tells the sanitizer which rows are in use.
cdef extern from *:
    """
    #ifndef SKYFAST_CHECKED
    enum {
        RENDER_ROWS = 2048,
        AHEAD = 16,
        SLAB_SHIFT = 12,
        SEGMENT_SHIFT = 12,
        MAX_WHEEL_SLOTS = 4096,
        HUGE_PAGE_BYTES = 2 << 20,
        FIRST_PIECE_BYTES = 4 << 20,
        PIECE_BYTES = 8 << 20
    };
    #define row_unused(address, size) ((void)0)
    #define row_used(address, size) ((void)0)
    #endif
    #define SLAB_ROWS (1 << SLAB_SHIFT)
    #define SEGMENT_BUCKETS (1 << SEGMENT_SHIFT)
    """
    enum:
        RENDER_ROWS             # connections looked at between two turns of the lock
        AHEAD                   # connections, or buckets, whose rows are fetched before their turn
        SLAB_SHIFT
        SLAB_ROWS
        SEGMENT_SHIFT
        SEGMENT_BUCKETS
        MAX_WHEEL_SLOTS
        HUGE_PAGE_BYTES
        FIRST_PIECE_BYTES
        PIECE_BYTES
    void row_unused(void *address, size_t size) noexcept nogil
    void row_used(void *address, size_t size) noexcept nogil


cdef uint32_t IS_TEXT = <uint32_t>1 << 31       # in a cell
cdef uint32_t TEXT_KEY = <uint32_t>1 << 31      # in a flow's `connection`, as the next three
cdef uint32_t LABELS_KEY = <uint32_t>1 << 30
cdef uint32_t DORMANT = <uint32_t>1 << 29
cdef uint32_t ENDED = <uint32_t>1 << 28
cdef uint32_t ROW = ((<uint32_t>1) << 28) - 1   # the number that is left beside them
cdef uint32_t BACK = <uint32_t>1 << 31          # in a connection's `flows`
cdef int64_t ABSENT = -1                        # of an optional counter: no report had the part
cdef uint32_t FLOWS = <uint32_t>-1              # of a family: the row's number of flows
cdef uint32_t NEVER_S = <uint32_t>-1            # a deadline
cdef uint64_t SHARE_SEED = 0x9E3779B97F4A7C15   # never another: shares would overlap meanwhile
cdef uint32_t OLD = <uint32_t>1 << 30           # births: see `aged`

cdef enum:
    SKIP_NONE
    SKIP_INVALID
    SKIP_NO_UUID
    SKIP_OUT_OF_RANGE
    SKIP_TEXT_TOO_LONG
    SKIP_LATE
    SKIP_DUPLICATE
    SKIP_TABLE_FULL
    SKIP_OTHER_SHARD
    SKIP_ENDED
    SKIP_REQUIRED               # and one more for each requirement of the plan
    MAX_SKIPS = 32

cdef tuple SKIP_NAMES = (
    "", "invalid", "no_uuid", "out_of_range", "text_too_long", "late", "duplicate", "table_full",
    "other_shard", "ended",
)
cdef tuple FINISH_NAMES = ("other", "timeout", "fin", "rst")

cdef enum:
    CLOSING = 1                 # the FinishType of the last report: others stand in updates

# How late a report can come, beside the time until its agent's next update: an analyzer holds a
# batch for up to 5 s; the rest is for transport, and for sockets that wait to be read.
cdef double BATCH_S = 15.0

cdef enum:
    # What an unknown flow's report counts for where it is not the first of its row.
    WORTH_UNREAD                # its type does not have the fields that tell
    WORTH_TOTAL
    WORTH_AMOUNTS               # what its latest update added
    WORTH_AMOUNTS_UNREAD        # likewise; its type does not have them

cdef enum:
    # What a report says of a flow whose totals are known.
    NOTHING_NEW
    GREW
    STARTED_OVER

cdef enum:
    KEEP_LATEST
    KEEP_LEAST
    KEEP_MOST

cdef tuple GAUGE_KINDS = ("latest", "least", "most")

cdef object ESCAPES = re.compile(r"\\(.)", re.DOTALL)
cdef dict UNESCAPED = {r"\\": "\\", r'\"': '"', r"\n": "\n"}


include "table/rows.pxi"
include "table/strings.pxi"
include "table/fields.pxi"
include "table/text_format.pxi"
include "table/timer_wheel.pxi"
include "table/dormant.pxi"
include "table/top_k.pxi"


# ---------------------------------------------------------------------------------------------
# Births: a page shows what was born before it began. Numbers of 32 bits are compared by their
# distance, so that those of living rows are kept within 2^30 of the newest.

cdef inline bint born_before(uint32_t birth, uint32_t page) noexcept nogil:
    return <int32_t>(birth - page) < 0


cdef inline void aged(Connection *row, uint32_t births) noexcept nogil:
    # To be called for every row at least once in 2^30 births.
    if unlikely(births - row.birth > OLD):
        row.birth = births - OLD


# ---------------------------------------------------------------------------------------------

cdef struct Kept:
    # What rows had, by their number from 1 on, and which labels: a row can be another's by now.
    int64_t *values
    uint32_t *hashes
    uint32_t rows


cdef struct Cursor:
    # How far a page has been rendered.
    uint32_t now_s
    uint32_t family
    uint32_t row                # 0: the family's head comes next
    uint32_t births             # connections born from this number on are not on the page
    uint32_t head               # which of the heads


@cython.final
cdef class Table:
    """The flows and connections of one plan.

    :param plan: labels, values and families (`skyfast.flows.plan.Plan`).
    :param types: the structs that `update` takes (`skyfast.flows.fields.flow_types` of the same
        plan).
    :param slots: read the structs' slots at their offsets, where that can be shown to work;
        with False the fields are read as attributes. Results are the same.

    The other parameters are those of `limit`. `now` is everywhere a time in seconds that never
    runs backwards; its origin does not matter.
    """

    cdef pthread_mutex_t lock
    cdef Arena arena
    cdef Rows texts
    cdef Rows flow_rows
    cdef Rows conversations
    cdef View *views                    # of which the first is that of the connections
    cdef uint32_t view_count
    cdef uint32_t counters, values      # of a flow
    cdef uint32_t columns, cells        # labels of any view; and keys of volatile ones
    cdef uint32_t requirements
    cdef uint32_t max_flows_, max_connections_
    cdef bint converses                 # there are conversation rows
    cdef uint64_t share, shares         # which of how many shares is kept: 0 of 1 is everything
    cdef bint wants_slots, slots
    cdef uint64_t seed
    cdef object plan
    cdef list paths                     # of the columns, and of keys
    cdef list keep                      # owns what `Field` borrows
    cdef list held                      # owns what rewrites returned for the batch at hand
    cdef list volatile                  # (rewrite, slot, column) of each volatile column
    cdef PyObject *rewrites[MAX_COLUMNS]
    cdef Reader *readers                # of the plan's Flow, NewFlow and FullFlow
    cdef bint optional[MAX_VALUES]
    cdef int keeps[MAX_VALUES]          # of gauges
    # where things stand among a flow row's links
    cdef uint32_t links_at              # bytes from the row's beginning
    cdef uint32_t keys_at               # links; the conversation is the first where there are any
    cdef Wheel wheel
    # dormant flows
    cdef DormantList dormant            # and the counters of connections that have left
    cdef DormantList ended              # flows whose closing report came
    cdef uint32_t kept_connections      # rows of `dormant` that have a connection's counters
    cdef double memory_s                # how long a flow is dormant until it is forgotten
    cdef double least_timeout_s         # of the first view, ever
    cdef bint begun                     # there is a horizon
    cdef double horizon_s_              # unknown flows that began later were never counted
    cdef double flow_update_s_
    # Keys of flows that were forgotten during a batch: a report can forget its own flow, too.
    cdef uint32_t dead_texts[(ROOM_ROWS + 1) * BATCH]
    cdef uint32_t dead_text_count
    cdef bint in_batch
    cdef double now                     # of the latest update
    # a batch between reading and applying
    cdef Report reports[BATCH]
    cdef int64_t *batch_values          # BATCH x values
    cdef int64_t *batch_amounts         # BATCH x counters
    cdef Cell *batch_cells              # BATCH x cells
    cdef uint32_t *row_cells            # cells: those of the flow being added
    cdef uint32_t *view_cells           # those of them that one view has
    cdef uint32_t interned[MAX_COLUMNS]  # texts of them that were not known before
    cdef uint32_t interned_count
    cdef int64_t *news                  # what a report adds to each counter
    cdef uint32_t targets[MAX_VIEWS_]   # the rows that a new flow leads to
    cdef bint created[MAX_VIEWS_]       # for it
    cdef char *escaped                  # MAX_CELL
    cdef bint met_unknown
    cdef int64_t oldest_ms, newest_ms       # of `Last` in the reports of the latest update
    # values that are left out: which field of all each of them comes from
    cdef list field_names
    cdef uint32_t value_fields[2 * MAX_VALUES]
    cdef uint32_t amount_fields[2 * MAX_VALUES]
    cdef uint32_t mark_fields[MARKS]
    cdef uint64_t values_left_out[MAX_FIELDS]
    # overflow
    cdef bint overflows                 # what finds no room is added up in `other` rows
    cdef bint overflowed                # ... and some was
    cdef bytes other                    # the text of their labels
    cdef const char *other_text
    cdef uint32_t other_length
    # relabelling
    cdef Change *changes
    cdef uint32_t change_count, change_room
    cdef uint32_t *new_cells            # columns; 0 where the label stays
    # rendering
    cdef Family *families
    cdef uint32_t family_count
    cdef size_t max_lines               # bytes that one connection's lines can take
    # counts
    cdef uint64_t births
    cdef uint64_t connections_created
    cdef uint64_t expired
    cdef uint64_t rejected
    cdef uint64_t overflow_reports
    cdef uint64_t skips[MAX_SKIPS]
    cdef uint64_t finishes[4]
    cdef tuple skip_names
    cdef tuple label_names

    def __cinit__(self, plan, types, *, max_connections, max_flows, timeout_s, memory_s=0,
                  view_timeouts_s=(), slots=True):
        pthread_mutex_init(&self.lock, NULL)
        if (not 0 < len(plan.views) <= MAX_VIEWS_
                or len(plan.counters) + len(plan.gauges) > MAX_VALUES
                or len(plan.requirements) > MAX_SKIPS - SKIP_REQUIRED):
            raise ValueError("the plan has more than the table can keep")
        self.counters = len(plan.counters)
        self.values = self.counters + len(plan.gauges)
        self.requirements = len(plan.requirements)
        self.skip_names = SKIP_NAMES + tuple(r.reason for r in plan.requirements)
        self.label_names = tuple(column.name for column in plan.views[0].columns)
        self.converses = plan.conversation is not None
        self.shares = 1
        if plan.share is not None:
            if not 0 <= plan.share.index < plan.share.count:
                raise ValueError("there is no such share")
            self.share = plan.share.index
            self.shares = plan.share.count
        self.overflows = plan.overflow is not None
        self.other = (plan.overflow or "").encode()
        self.other_text = self.other
        self.other_length = len(self.other)
        if len(self.other) > MAX_TEXT or needs_escape(self.other_text, self.other_length):
            raise ValueError("the text for what finds no room is too long, or not plain")
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.plan = plan
        self.held = []
        self.wants_slots = slots
        self.paths = self._number_columns(plan)
        self._number_fields(plan)
        self.least_timeout_s = timeout_s
        self.flow_update_s_ = 60

        self.batch_values = <int64_t *>self._allocate(BATCH * self.values * sizeof(int64_t))
        self.batch_amounts = <int64_t *>self._allocate(BATCH * self.counters * sizeof(int64_t))
        self.batch_cells = <Cell *>self._allocate(BATCH * self.cells * sizeof(Cell))
        self.row_cells = <uint32_t *>self._allocate(self.cells * sizeof(uint32_t))
        self.view_cells = <uint32_t *>self._allocate(self.cells * sizeof(uint32_t))
        self.new_cells = <uint32_t *>self._allocate(self.cells * sizeof(uint32_t))
        self.news = <int64_t *>self._allocate(self.counters * sizeof(int64_t))
        self.escaped = <char *>self._allocate(MAX_CELL)
        if not rows_init(&self.texts, &self.arena, sizeof(Text)):
            raise MemoryError
        self.use(types)
        self._prepare_views(plan)
        self._prepare_families(plan)
        self._new_wheel(&self.wheel, timeout_s)
        self.limit(max_connections=max_connections, max_flows=max_flows, timeout_s=timeout_s,
                   memory_s=memory_s, view_timeouts_s=view_timeouts_s)

    def __dealloc__(self):
        cdef uint32_t i, j
        cdef Text *text
        for i in range(1, self.texts.fresh):
            text = <Text *>row_at(&self.texts, i)
            if text.refs and text.length > INLINE_TEXT:
                free((<char **>text.inline)[0])
        rows_destroy(&self.texts)
        rows_destroy(&self.flow_rows)
        rows_destroy(&self.conversations)
        for i in range(self.family_count):
            for j in range(self.views[self.families[i].view].columns + 1):
                free(self.families[i].literals[j].text)
            free(self.families[i].literals)
            free(self.families[i].second.text)
            free(self.families[i].heads[0])
            free(self.families[i].heads[1])
        for i in range(self.view_count):
            rows_destroy(&self.views[i].rows)
            free(self.views[i].wheel.slots)
        arena_destroy(&self.arena)
        free(self.views)
        free(self.families)
        free(self.wheel.slots)
        free(self.readers)
        free(self.batch_values)
        free(self.batch_amounts)
        free(self.batch_cells)
        free(self.row_cells)
        free(self.view_cells)
        free(self.new_cells)
        free(self.news)
        free(self.escaped)
        free(self.changes)
        pthread_mutex_destroy(&self.lock)

    # -- set-up ---------------------------------------------------------------------------------

    cdef void *_allocate(self, size_t size) except NULL:
        cdef void *memory = malloc(size if size else 1)
        if memory == NULL:
            raise MemoryError
        memset(memory, 0, size)
        return memory

    cdef int _new_wheel(self, Wheel *wheel, double timeout_s) except -1:
        # As many slots as the time-out has seconds, if it is a usual one. A longer one, now or
        # later, costs more rounds and nothing else.
        cdef uint32_t slots = 4
        while slots < timeout_s + 2 and slots < MAX_WHEEL_SLOTS:
            slots *= 2
        wheel.mask = slots - 1
        wheel.slots = <uint32_t *>self._allocate(slots * sizeof(uint32_t))
        return 0

    def limit(self, *, max_connections, max_flows, timeout_s, memory_s=0, view_timeouts_s=()):
        """Set the bounds, now or at any later time. What is kept already stays.

        :param max_connections: rows kept at most of each view; what needs one more is not kept.
        :param max_flows: likewise, flow rows. A live flow takes the room of a dormant one. Where
            more are dormant than a lower limit leaves room for, `expire` forgets them.
        :param timeout_s: a flow becomes dormant when it was not reported for so long, rounded up to
            the next full second of the caller's clock; from its next report on.
        :param memory_s: a dormant flow is forgotten after so long, rounded up; 0 is at once.
        :param view_timeouts_s: the same for the connections of the second and further views, none
            of them less than `timeout_s`.
        """
        cdef uint32_t i
        if not 0 < max_connections <= MAX_ROWS or not 0 < max_flows <= MAX_ROWS:
            raise ValueError(f"max_connections and max_flows are 1 to {MAX_ROWS}")
        if not 0 < timeout_s <= 1 << 30:
            raise ValueError("timeout_s is above 0 and at most 2^30")
        if not 0 <= memory_s <= 1 << 30:
            raise ValueError("memory_s is 0 to 2^30")
        if len(view_timeouts_s) != self.view_count - 1:
            raise ValueError("there is one time-out for each view but the first")
        if not all(timeout_s <= each <= 1 << 30 for each in view_timeouts_s):
            raise ValueError("a view's time-out is at least timeout_s and at most 2^30")
        self.max_connections_ = max_connections
        self.max_flows_ = max_flows
        self.memory_s = memory_s
        self.least_timeout_s = min(self.least_timeout_s, <double>timeout_s)
        self.views[0].timeout_s = timeout_s
        for i in range(1, self.view_count):
            self.views[i].timeout_s = view_timeouts_s[i - 1]
            if self.views[i].wheel.slots == NULL:
                self._new_wheel(&self.views[i].wheel, self.views[i].timeout_s)

    def begin(self, now):
        """Assume that unknown flows that begin after `now` were never counted.

        To be called when reports begin to arrive, and when flows arrive that were excluded before.
        Until the first call, no unknown flow's total counts for that reason.
        """
        self.horizon_s_ = max(self.horizon_s_, <double>now) if self.begun else now
        self.begun = True

    def use(self, types):
        """Take flows of these types from now on, those of the same plan, and of no others."""
        cdef Reader *readers = <Reader *>self._allocate(FLOW_TYPES * sizeof(Reader))
        cdef list keep = self.keep
        cdef bint slots = self.slots
        self.keep = []
        self.slots = self.wants_slots
        readers[1].marks = readers[2].marks = readers[2].full = True
        try:
            self._read_by(&readers[0], types.Flow, self.plan)
            self._read_by(&readers[1], types.NewFlow, self.plan)
            self._read_by(&readers[2], types.FullFlow, self.plan)
        except BaseException:
            self.keep, self.slots = keep, slots
            free(readers)
            raise
        free(self.readers)
        self.readers = readers

    cdef list _number_columns(self, plan):
        # The paths of the plan's columns, and of the keys that volatile ones are asked with.
        cdef uint32_t i
        keys = []
        self.volatile = []
        for i, column in enumerate(plan.columns):
            if column.volatile:
                if column.path not in keys:
                    keys.append(column.path)
                self.volatile.append((column.rewrite, keys.index(column.path), i))
        paths = [column.path for column in plan.columns]
        self.columns = len(paths)
        paths += keys
        if len(paths) > MAX_COLUMNS:
            raise ValueError("the plan has more labels than the table can keep")
        self.cells = len(paths)
        for i, column in enumerate(plan.columns):
            if column.rewrite is not None:
                self.rewrites[i] = <PyObject *>column.rewrite
        return paths

    cdef int _number_fields(self, plan) except -1:
        # The fields whose values can be left out.
        cdef uint32_t i, j
        numbers = {}

        def number(path):
            return numbers.setdefault(path, len(numbers))

        update = "LastUpdateMetric"
        marks = (("FinishType",), ("Start",), (update, "Start"), (update, "Last"))
        for i, path in enumerate(marks):
            self.mark_fields[i] = number(path)
        for i, counter in enumerate(plan.counters):
            for j, path in enumerate(counter.paths):
                self.value_fields[2 * i + j] = number(path)
            for j, path in enumerate(counter.amounts):
                self.amount_fields[2 * i + j] = number(path)
        for i, gauge in enumerate(plan.gauges, self.counters):
            self.value_fields[2 * i] = number(gauge.path)
        required = {
            path for counter in plan.counters if not counter.optional for path in counter.paths
        }
        self.field_names = [
            None if path in required else ".".join(path) for path in numbers
        ]
        return 0

    cdef int _field(self, Field *field, owner, tuple path) except -1:
        # Resolve a path into offsets; `slots` is cleared when they cannot be trusted.
        if not path:
            field.whole = True
            return 0
        cdef str name = path[0]
        self.keep.append((owner, path))
        field.outer_name = <PyObject *>name
        field.outer = member_offset(owner, name)
        field.inner = -1
        if not slot_reads_as(owner, name, field.outer):
            self.slots = False
        kind = {f.name: f.type for f in msgspec.structs.fields(owner)}[name]
        inner = next((t for t in typing.get_args(kind) if t is not type(None)), None)
        if inner is None:
            field.is_text = kind is str
            return 0
        self.keep.append(inner)
        field.inner_type = <PyTypeObject *><PyObject *>inner
        if len(path) == 1:              # the part itself: whether it is there
            return 0
        field.inner_name = <PyObject *>path[1]
        field.inner = member_offset(inner, path[1])
        if not slot_reads_as(inner, path[1], field.inner):
            self.slots = False
            field.inner = 0
        field.is_text = {f.name: f.type for f in msgspec.structs.fields(inner)}[path[1]] is str
        return 0

    cdef int _number(self, Number *number, owner, tuple paths, bint optional) except -1:
        if len(paths) > 2:
            raise ValueError("a counter is one field, or the sum of two")
        number.read = len(paths) > 0
        number.pair = len(paths) == 2
        number.optional = optional
        if number.read:
            self._field(&number.first, owner, paths[0])
        if number.pair:
            self._field(&number.second, owner, paths[1])
        return 0

    cdef int _read_by(self, Reader *reader, owner, plan) except -1:
        cdef uint32_t i, j
        self.keep.append(owner)
        reader.type = <PyTypeObject *><PyObject *>owner
        self._field(&reader.uuid, owner, ("UUID",))
        self._field(&reader.last, owner, ("Last",))
        self._field(&reader.finish, owner, ("FinishType",))
        if reader.marks:
            self._field(&reader.start, owner, ("Start",))
            self._field(&reader.update_start, owner, ("LastUpdateMetric", "Start"))
            self._field(&reader.update_last, owner, ("LastUpdateMetric", "Last"))
        if reader.full:
            for i, counter in enumerate(plan.counters):
                self._number(&reader.amounts[i], owner, counter.amounts, False)
        for i, counter in enumerate(plan.counters):
            self._number(&reader.totals[i], owner, counter.paths, counter.optional)
            self.optional[i] = counter.optional
        for i, gauge in enumerate(plan.gauges, self.counters):
            self._number(&reader.totals[i], owner, (gauge.path,), False)
            self.keeps[i] = GAUGE_KINDS.index(gauge.keep)
        for i, path in enumerate(self.paths):
            self._field(&reader.columns[i], owner, path)
            if i >= self.columns and not reader.columns[i].is_text:
                raise ValueError("a volatile label is made of a text")
        for i, requirement in enumerate(plan.requirements):
            if not requirement.paths or len(requirement.reads) > 2:
                raise ValueError("a requirement is one part of a flow, or one of two")
            reader.required[i].pair = len(requirement.reads) == 2
            reader.required[i].absent = len(requirement.or_without) > 0
            for j, path in enumerate(requirement.reads):
                self._field(&reader.required[i].parts[j], owner, path)
        for known in (plan.conversation, plan.share and plan.share.conversation):
            if known is not None:
                for i, path in enumerate(known.paths):
                    self._field(&reader.conversation[i], owner, path)
        if self.converses:
            self._field(&reader.point, owner, plan.conversation.point)
        return 0

    cdef int _prepare_views(self, plan) except -1:
        cdef uint32_t i, j, by_connection = 0
        cdef uint32_t links = 1 if self.converses else 0
        cdef View *view
        numbers = {column: i for i, column in enumerate(plan.columns)}
        values = {value: i for i, value in enumerate((*plan.counters, *plan.gauges))}
        first = set(plan.views[0].columns)
        self.views = <View *>self._allocate(len(plan.views) * sizeof(View))
        self.view_count = len(plan.views)
        for i, declared in enumerate(plan.views):
            view = &self.views[i]
            kept = sorted(
                {values[v] for family in declared.families for v in family.values if v in values}
            )
            if len(declared.columns) > MAX_VIEW_COLUMNS or len(kept) > MAX_VIEW_VALUES:
                raise ValueError("a view has more labels or values than the table can keep")
            view.columns = len(declared.columns)
            for j, column in enumerate(declared.columns):
                view.cells[j] = numbers[column]
            view.values = len(kept)
            for j, source in enumerate(kept):
                view.sources[j] = source
                if source < self.counters:
                    view.counters = j + 1
            view.complete = declared.complete
            view.direction_at = 0 if declared.direction is None else declared.direction.position
            if view.direction_at > view.columns:
                raise ValueError("a direction stands among a view's labels, or behind them")
            if i == 0:
                continue
            view.by_flow = not first.issuperset(declared.columns)
            if view.by_flow:
                view.link = links
                links += 1
            else:
                view.link = by_connection
                by_connection += 1
        self.keys_at = links
        links += self.cells - self.columns
        self.links_at = sizeof(Flow) + 8 * self.counters
        if not (
            rows_init(&self.flow_rows, &self.arena, (self.links_at + 4 * links + 7) & ~7)
            and (not self.converses
                 or rows_init(&self.conversations, &self.arena, sizeof(Conversation)))
        ):
            raise MemoryError
        for i in range(self.view_count):
            view = &self.views[i]
            view.values_at = sizeof(Connection)
            if i == 0 and by_connection > 1:
                view.values_at = (sizeof(Connection) + 4 * (by_connection - 1) + 7) & ~7
            view.cells_at = view.values_at + 8 * view.values
            if not rows_init(
                &view.rows, &self.arena, (view.cells_at + 4 * view.columns + 7) & ~7
            ):
                raise MemoryError
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
        cdef View *view
        cdef uint32_t i, j, number = 0
        cdef size_t fixed, longest = 0
        cdef bytes head
        values = {value: i for i, value in enumerate((*plan.counters, *plan.gauges))}
        self.families = <Family *>self._allocate(
            sum(len(each.families) for each in plan.views) * sizeof(Family)
        )
        for i, planned in enumerate(plan.views):
            view = &self.views[i]
            names = [column.name for column in planned.columns]
            for declared in planned.families:
                family = &self.families[number]
                family.literals = <Literal *>self._allocate(
                    (view.columns + 1) * sizeof(Literal)
                )
                number += 1
                self.family_count = number
                family.view = i
                family.sides = len(declared.values)
                if not 1 <= family.sides <= (1 if planned.direction is None else 2):
                    raise ValueError(f"{declared.name} has more values than directions")
                for j, value in enumerate(declared.values):
                    family.values[j] = FLOWS
                    if value in values:
                        family.values[j] = [
                            view.sources[k] for k in range(view.values)
                        ].index(values[value])
                family.absent = 0 if declared.values[0] in plan.gauges else ABSENT
                family.decimals = declared.decimals
                if family.decimals > MAX_DECIMALS:
                    raise ValueError(f"{declared.name} has more decimals than a value has digits")
                for j in range(2):
                    head = declared.head(openmetrics=j == 1).encode()
                    family.heads[j] = <char *>self._allocate(len(head))
                    family.head_lengths[j] = len(head)
                    memcpy(family.heads[j], PyBytes_AS_STRING(head), len(head))
                    longest = max(longest, <size_t>len(head))
                sides = line_literals(declared.name, names, planned.direction)
                for j in range(view.columns + 1):
                    self._literal(&family.literals[j], sides[0][j])
                self._literal(&family.second, sides[len(sides) - 1][view.direction_at])
                fixed = sum(len(text.encode()) for side in sides for text in side)
                fixed += 2 * (view.columns * MAX_CELL + MAX_INTEGER_DIGITS + 2)
                longest = max(longest, fixed)
        self.max_lines = longest + 64       # whole blocks may be written beyond the last line
        return 0

    # -- reports --------------------------------------------------------------------------------

    def update(self, list flows not None, double now, Py_ssize_t start=0):
        """Apply ``flows[start:]`` in their order; return how far it came.

        :param flows: values of one of the plan's types, all of the same one.
        :returns: ``len(flows)``; or the index of the first flow that can only be judged by its
            ``LastUpdateMetric``, where the flows are of a type without it. Nothing from there
            on was applied or counted: decode again as ``FullFlow``, and go on from that index.
        :raises TypeError: a value of another type; what stands before it was applied.
        :raises MemoryError: likewise, before the flow that found no memory.
        :raises ValueError: ``start`` is below 0.

        What a column's rewrite raises comes through; then some flows from ``start`` on were
        applied, but none that stands behind the one it was asked for.

        The rules are those of docs/architecture.md: a known flow adds its deltas; a report that
        is not newer and nowhere higher is late; one that is newer and anywhere lower started over.
        One that was dormant adds its deltas to the rows that it comes to. An unknown flow adds its
        total in its first report, where it cannot have been counted before, or where it creates a
        connection that the labels tell from all others; elsewhere it adds what its last update
        added. Skipped flows are counted in `skipped`, values that are left out in `values_skipped`.
        """
        cdef Py_ssize_t count = PyList_GET_SIZE(flows)
        cdef Py_ssize_t at = start
        cdef uint32_t i, size
        cdef int done
        cdef View *view
        if start < 0:
            raise ValueError("start counts from the beginning")
        self.now = now
        if self._live_flows() == 0:
            self.wheel.next_s = <uint32_t>floor(now)
        for i in range(self.view_count):
            view = &self.views[i]
            view.deadline_s = <uint32_t>ceil(now + view.timeout_s)
            if view.rows.live == 0:
                view.wheel.next_s = <uint32_t>floor(now)
        self.met_unknown = False
        self.oldest_ms = INT64_MAX
        self.newest_ms = 0
        while at < count:
            size = <uint32_t>min(count - at, <Py_ssize_t>BATCH)
            size = self._read(flows, at, size)
            if size == 0:
                raise TypeError(f"not a flow of this table's plan: {type(flows[at]).__name__}")
            self._find(size)
            try:
                self._read_unknown(flows, at, size)
            except BaseException:       # a rewrite's
                self.held.clear()
                raise
            self._find_labels(size)
            pthread_mutex_lock(&self.lock)
            done = self._apply(size)
            pthread_mutex_unlock(&self.lock)
            if self.held:
                self.held.clear()
            if done < 0:
                raise MemoryError
            at += done
            if <uint32_t>done < size:
                break
        return at

    cdef Reader *_reader_of(self, PyObject *flow) noexcept:
        cdef uint32_t i
        for i in range(FLOW_TYPES):
            if Py_TYPE(flow) == self.readers[i].type:
                return &self.readers[i]
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
        cdef int wrong, too_long
        report.flow = 0
        report.dormant = False
        report.leaves_out = False
        report.key_text = NULL
        too_long = read_text(value_of(flow, &reader.uuid, self.slots), &text, &length)
        if unlikely(too_long == SKIP_INVALID):
            return SKIP_INVALID
        if unlikely(length == 0 and too_long == SKIP_NONE):
            return SKIP_NO_UUID
        for i in range(self.requirements):
            if unlikely(part(flow, &reader.required[i].parts[0], self.slots) == NULL):
                if (not reader.required[i].pair
                        or (part(flow, &reader.required[i].parts[1], self.slots) == NULL)
                        != reader.required[i].absent):
                    return SKIP_REQUIRED + <int>i
        for i in range(self.values):
            wrong = read_number(flow, &reader.totals[i], self.slots, &values[i])
            if unlikely(wrong):
                if i < self.counters and not self.optional[i]:
                    return wrong & ~SECOND_FIELD
                values[i] = ABSENT if i < self.counters else 0
                leave_out(report, &report.values_left_out, i, wrong)
        wrong = read_integer(value_of(flow, &reader.last, self.slots), &report.last_ms)
        if unlikely(wrong):
            return wrong
        self.newest_ms = max(self.newest_ms, report.last_ms)
        if likely(report.last_ms):
            self.oldest_ms = min(self.oldest_ms, report.last_ms)
        if unlikely(read_integer(value_of(flow, &reader.finish, self.slots), &finish)):
            finish = 0
            leave_out_mark(report, MARK_FINISH)
        if unlikely(too_long):          # what is missing, or no number, is told first
            return too_long
        report.finish = <int>finish if finish < 4 else 4
        if likely(parse_key(text, length, &number)):
            report.key = mixed(number ^ self.seed)
            prefetch(bucket_of(&self.flow_rows, <uint32_t>report.key))
        else:
            report.key_text = text
            report.key_length = length
        return SKIP_NONE

    cdef void _find(self, uint32_t size) noexcept:
        # Passes, so that the memory of one flow is on its way while others are looked at.
        cdef uint32_t i, j, number
        cdef Flow *flow
        cdef Connection *connection
        cdef Report *report
        cdef const Rows *rows = &self.views[0].rows
        for i in range(size):
            report = &self.reports[i]
            if report.skip == SKIP_NONE and report.key_text == NULL:
                number = bucket_of(&self.flow_rows, <uint32_t>report.key)[0]
                if number:
                    prefetch(row_at(&self.flow_rows, number))
                    prefetch(row_at(&self.flow_rows, number) + self.flow_rows.stride - 1)
        for i in range(size):
            report = &self.reports[i]
            if report.skip == SKIP_NONE:
                report.flow = self._known(report)
                if report.flow:
                    number = (<Flow *>row_at(&self.flow_rows, report.flow)).connection
                    report.dormant = number & DORMANT != 0
                    if likely(not report.dormant):
                        prefetch(row_at(rows, number & ROW))
                        prefetch(row_at(rows, number & ROW) + CACHE_LINE)
        if self.view_count > 1:
            for i in range(size):
                report = &self.reports[i]
                if report.skip == SKIP_NONE and report.flow and not report.dormant:
                    flow = <Flow *>row_at(&self.flow_rows, report.flow)
                    connection = self._row(&self.views[0], flow.connection & ROW)
                    for j in range(1, self.view_count):
                        number = self._link(&self.views[j], flow, connection)[0]
                        if number:
                            prefetch(row_at(&self.views[j].rows, number))

    cdef uint32_t _known(self, Report *report) noexcept nogil:
        # The row of the report's flow, or 0.
        cdef uint64_t key = report.key
        cdef uint32_t kind = 0
        cdef uint32_t number
        if unlikely(report.key_text != NULL):
            number = text_find(
                &self.texts, report.key_text, report.key_length,
                text_hash(report.key_text, report.key_length, self.seed),
            )
            if number == 0:
                return 0
            key = text_key(number)
            kind = TEXT_KEY
        return flow_find(&self.flow_rows, key, kind)

    cdef int _read_unknown(self, list flows, Py_ssize_t start, uint32_t size) except -1:
        # Labels, and what tells a first report from others, of the flows that are not live.
        cdef uint32_t i
        cdef PyObject *flow
        cdef Report *report
        cdef Cell *cells
        cdef const Cell *previous = NULL
        for i in range(size):
            report = &self.reports[i]
            if report.skip == SKIP_NONE and (report.flow == 0 or report.dormant):
                flow = <PyObject *>PyList_GET_ITEM(flows, start + i)
                cells = self.batch_cells + <size_t>i * self.cells
                report.skip_new = self._read_labels(
                    flow, self._reader_of(flow), report, cells, previous,
                    self.batch_values + <size_t>i * self.values,
                    self.batch_amounts + <size_t>i * self.counters,
                )
                if report.skip_new == SKIP_NONE:
                    previous = cells
        return 0

    cdef int _read_labels(self, PyObject *flow, const Reader *reader, Report *report,
                          Cell *cells, const Cell *previous, const int64_t *values,
                          int64_t *amounts) except -1:
        # `previous` are the labels of another flow, or NULL: many of a message have the same
        # protocol and the same interface, whose hash is then known.
        cdef uint32_t i
        cdef int wrong
        if self.shares > 1:
            wrong = self._read_conversation(flow, reader, SHARE_SEED, &report.conversation)
            if unlikely(wrong):
                return wrong
            if report.conversation % self.shares != self.share:
                return SKIP_OTHER_SHARD
        for i in range(self.cells):
            wrong = self._read_cell(flow, &reader.columns[i], self.rewrites[i], &cells[i])
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
        if self.converses:
            wrong = self._read_point(flow, reader, report)
            if unlikely(wrong):
                return wrong
        report.worth = WORTH_UNREAD
        report.repeats = False
        report.age_ms = -1
        if reader.marks:
            self._read_marks(flow, reader, report, values, amounts)
        return SKIP_NONE

    cdef inline int _read_cell(self, PyObject *flow, const Field *field, PyObject *rewrite,
                               Cell *cell) except -1:
        cdef PyObject *value = value_of(flow, field, self.slots)
        cdef bint is_text = field.is_text
        cell.found = 0
        cell.text = NULL
        if rewrite != NULL and value != NULL:
            value = PyObject_GetItem(rewrite, value)
            self.held.append(<object>value)
            Py_DECREF(<object>value)
            is_text = not PyLong_CheckExact(value)
        if is_text or value == NULL:            # a part that is missing is an empty text
            return read_text(value, &cell.text, &cell.length)
        return read_integer(value, &cell.number)

    cdef int _read_point(self, PyObject *flow, const Reader *reader, Report *report) except -1:
        # Hashes of what a conversation is known by, and of where it was captured.
        cdef const char *text
        cdef uint32_t length
        cdef int wrong = read_text(value_of(flow, &reader.point, self.slots), &text, &length)
        if unlikely(wrong):
            return wrong
        report.point = long_hash(text, length, self.seed)
        return self._read_conversation(flow, reader, self.seed, &report.conversation)

    cdef int _read_conversation(self, PyObject *flow, const Reader *reader, uint64_t seed,
                                uint64_t *hash) except -1:
        # The same for both ways round.
        cdef uint64_t hashes[3]                 # of the protocol, and of either end
        cdef const char *text
        cdef uint32_t length, i
        cdef int64_t port
        cdef int wrong
        for i in range(3):
            wrong = read_text(
                value_of(flow, &reader.conversation[2 * i - 1 if i else 0], self.slots),
                &text, &length,
            )
            if unlikely(wrong):
                return wrong
            hashes[i] = long_hash(text, length, seed)
        for i in range(1, 3):
            wrong = read_integer(value_of(flow, &reader.conversation[2 * i], self.slots), &port)
            if unlikely(wrong):
                return wrong
            hashes[i] = mixed(hashes[i] ^ <uint64_t>port)
        hash[0] = mixed(
            hashes[0] ^ mixed(min(hashes[1], hashes[2])) ^ max(hashes[1], hashes[2])
        )
        return SKIP_NONE

    cdef int _read_marks(self, PyObject *flow, const Reader *reader, Report *report,
                         const int64_t *values, int64_t *amounts) except -1:
        # What the report counts for if the flow is not known; `amounts` if that is what its latest
        # update added. It is zero where nobody knows whether the report is the first.
        cdef int64_t start, update_start, update_last
        cdef bint wrong_start, wrong_update_start, wrong_last
        # Then it may be a closing report that repeats the one before.
        cdef bint wrong_finish = report.leaves_out and report.leaves_out_marks >> MARK_FINISH & 1
        cdef uint32_t i
        cdef int wrong
        report.worth = WORTH_TOTAL
        if part(flow, &reader.update_start, self.slots) == NULL and likely(not wrong_finish):
            return 0
        wrong_start = read_integer(value_of(flow, &reader.start, self.slots), &start)
        wrong_update_start = read_integer(
            value_of(flow, &reader.update_start, self.slots), &update_start
        )
        wrong_last = read_integer(value_of(flow, &reader.update_last, self.slots), &update_last)
        if unlikely(wrong_start or wrong_update_start or wrong_last):
            if wrong_start:
                leave_out_mark(report, MARK_START)
            if wrong_update_start:
                leave_out_mark(report, MARK_UPDATE_START)
            if wrong_last:
                leave_out_mark(report, MARK_UPDATE_LAST)
        report.repeats = (report.finish == CLOSING
                          and (wrong_last or update_last != report.last_ms))
        if not wrong_start and not wrong_last and update_last >= start:
            report.age_ms = update_last - start
        for i in range(self.counters):
            amounts[i] = min(values[i], <int64_t>0)     # ABSENT where the total is
        report.worth = WORTH_AMOUNTS
        if unlikely(wrong_start or wrong_update_start or wrong_finish):
            if not report.repeats:
                report.age_ms = -1
        elif update_start == start:
            report.worth = WORTH_TOTAL
        elif not reader.full:
            report.worth = WORTH_AMOUNTS_UNREAD
        else:
            for i in range(self.counters):
                if reader.amounts[i].read and amounts[i] == 0:
                    wrong = read_number(flow, &reader.amounts[i], self.slots, &amounts[i])
                    if unlikely(wrong):
                        amounts[i] = 0
                        leave_out(report, &report.amounts_left_out, i, wrong)
        return 0

    cdef void _find_labels(self, uint32_t size) noexcept:
        # Look up the texts and connections of flows that are not live, in passes as in `_find`.
        # What is found stays valid for the batch: no text leaves the table in between.
        cdef uint32_t i, j, number
        cdef Cell *cells
        cdef const Cell *previous = NULL
        cdef const Rows *rows = &self.views[0].rows
        for i in range(size):
            if self._needs_rows(&self.reports[i]):
                cells = self.batch_cells + <size_t>i * self.cells
                for j in range(self.cells):
                    if cells[j].text != NULL and not cells[j].repeats:
                        number = bucket_of(&self.texts, cells[j].hash)[0]
                        if number:
                            prefetch(row_at(&self.texts, number))
        for i in range(size):
            if self._needs_rows(&self.reports[i]):
                cells = self.batch_cells + <size_t>i * self.cells
                self._find_texts(&self.reports[i], cells, previous)
                previous = cells
        for i in range(size):
            if self._needs_rows(&self.reports[i]) and self.reports[i].connection_hash:
                number = bucket_of(rows, self.reports[i].connection_hash)[0]
                if number:
                    prefetch(row_at(rows, number))

    cdef inline bint _needs_rows(self, const Report *report) noexcept nogil:
        return (report.skip == SKIP_NONE and (report.flow == 0 or report.dormant)
                and report.skip_new == SKIP_NONE)

    cdef void _find_texts(self, Report *report, Cell *cells,
                          const Cell *previous) noexcept nogil:
        # The numbers of the texts; where all are known, the hash of the connection too.
        cdef uint32_t i
        cdef bint all_found = True
        report.connection_hash = 0
        for i in range(self.cells):
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
            report.connection_hash = self._gather(&self.views[0])
            prefetch(bucket_of(&self.views[0].rows, report.connection_hash))

    cdef inline uint32_t _gather(self, const View *view) noexcept nogil:
        # `view_cells` of `row_cells`; returns their hash.
        cdef uint32_t i
        for i in range(view.columns):
            self.view_cells[i] = self.row_cells[view.cells[i]]
        return text_hash(<const char *>self.view_cells, 4 * view.columns, self.seed)

    # Everything from here to `expire` runs under the lock.

    cdef int _apply(self, uint32_t size) noexcept nogil:
        # How many reports of the batch were dealt with, or -1 when memory ran out.
        cdef uint32_t i
        cdef int done = <int>size
        cdef Report *report
        cdef int64_t *values
        self.in_batch = True
        for i in range(size):
            report = &self.reports[i]
            values = self.batch_values + <size_t>i * self.values
            if likely(report.skip == SKIP_NONE):
                if likely(report.flow != 0 and not report.dormant):
                    report.skip = self._apply_known(report, values)
                else:
                    report.skip = self._apply_new(
                        report, values, self.batch_cells + <size_t>i * self.cells,
                        self.batch_amounts + <size_t>i * self.counters,
                    )
                    if unlikely(report.skip == APPLY_STOP):
                        done = <int>i
                        break
                    if unlikely(report.skip == APPLY_NO_MEMORY):
                        done = -1
                        break
                if unlikely(report.finish or report.leaves_out) and (
                    report.skip == SKIP_NONE or report.skip == SKIP_LATE
                    or report.skip == SKIP_ENDED or report.skip == SKIP_TABLE_FULL
                ):
                    if report.finish:
                        self.finishes[report.finish & 3] += 1
                    if report.leaves_out:
                        self._count_left_out(report)
            if unlikely(report.skip != SKIP_NONE):
                self.skips[report.skip] += 1
        self.in_batch = False
        for i in range(self.dead_text_count):
            text_release(&self.texts, self.dead_texts[i])
        self.dead_text_count = 0
        return done

    cdef int _apply_new(self, Report *report, const int64_t *values, const Cell *cells,
                        const int64_t *amounts) noexcept nogil:
        # A report of a flow that was not live when the batch was read. Earlier reports of the batch
        # may have made it live, or may have taken its room.
        report.flow = self._known(report)
        report.uses_marks = report.uses_amounts = False
        if report.flow:
            if not self._flow(report.flow).connection & DORMANT:
                return self._apply_known(report, values)
            return self._wake(report, values, cells, amounts)
        if unlikely(report.skip_new != SKIP_NONE):
            return report.skip_new
        self.met_unknown = True
        return self._apply_unknown(report, values, cells, amounts)

    cdef void _count_left_out(self, const Report *report) noexcept nogil:
        # Each field once, whatever it is used for.
        cdef bint seen[MAX_FIELDS]
        cdef uint32_t i
        memset(seen, 0, sizeof(seen))
        for i in range(2 * self.values):
            if is_left_out(&report.values_left_out, i):
                seen[self.value_fields[i]] = True
        for i in range(MARKS):
            if report.leaves_out_marks >> i & 1 and (i == MARK_FINISH or report.uses_marks):
                seen[self.mark_fields[i]] = True
        if report.uses_amounts:
            for i in range(2 * self.counters):
                if is_left_out(&report.amounts_left_out, i):
                    seen[self.amount_fields[i]] = True
        for i in range(MAX_FIELDS):
            self.values_left_out[i] += seen[i]

    cdef inline Flow *_flow(self, uint32_t number) noexcept nogil:
        return <Flow *>row_at(&self.flow_rows, number)

    cdef inline uint32_t _live_flows(self) noexcept nogil:
        return self.flow_rows.live - self.dormant.count - self.ended.count

    cdef inline uint32_t *_links(self, Flow *flow) noexcept nogil:
        return <uint32_t *>(<char *>flow + self.links_at)

    cdef inline uint32_t *_link(self, const View *view, Flow *flow,
                                Connection *connection) noexcept nogil:
        # Where the number of a row of any view but the first is kept.
        if view.by_flow:
            return self._links(flow) + view.link
        return connection.links + view.link

    cdef inline Connection *_row(self, const View *view, uint32_t number) noexcept nogil:
        return <Connection *>row_at(&view.rows, number)

    cdef inline int _difference(self, const Flow *flow, const Report *report,
                                const int64_t *values) noexcept nogil:
        # What a report says of a flow, and `news` if that is anything.
        cdef const int64_t *totals = <const int64_t *>(flow + 1)
        cdef int64_t *news = self.news
        cdef int64_t total
        cdef bint newer = report.last_ms > flow.last_ms
        cdef bint higher = False
        cdef bint lower = False
        cdef uint32_t i
        for i in range(self.counters):
            # ABSENT is never higher, and as an unsigned number never lower.
            total = max(totals[i], <int64_t>0)
            higher |= values[i] > total
            lower |= <uint64_t>values[i] < <uint64_t>total
        if unlikely(not newer and not higher):
            return NOTHING_NEW
        if unlikely(newer and lower):
            for i in range(self.counters):
                news[i] = values[i]
            return STARTED_OVER
        for i in range(self.counters):
            news[i] = min(values[i], <int64_t>0)
            if values[i] > totals[i]:
                news[i] = values[i] - max(totals[i], <int64_t>0)
        return GREW

    cdef inline void _learn(self, Flow *flow, const Report *report, const int64_t *values,
                            int change) noexcept nogil:
        cdef int64_t *totals = <int64_t *>(flow + 1)
        cdef uint32_t i
        for i in range(self.counters):
            if values[i] > totals[i] or change == STARTED_OVER:
                totals[i] = values[i]
        flow.last_ms = max(flow.last_ms, report.last_ms)

    cdef int _apply_known(self, const Report *report, const int64_t *values) noexcept nogil:
        cdef Flow *flow = self._flow(report.flow)
        cdef Connection *connection = self._row(&self.views[0], flow.connection & ROW)
        cdef int change = self._difference(flow, report, values)
        cdef uint32_t i, number
        if unlikely(report.finish == CLOSING):
            flow.connection |= ENDED
        elif unlikely(flow.connection & ENDED) and report.last_ms > flow.last_ms:
            flow.connection &= ~ENDED
        if unlikely(change == NOTHING_NEW):
            return SKIP_LATE
        self._learn(flow, report, values, change)
        flow.deadline_s = max(flow.deadline_s, self.views[0].deadline_s)
        self._feed(&self.views[0], connection, self.news, values)
        for i in range(1, self.view_count):
            number = self._link(&self.views[i], flow, connection)[0]
            if number:
                self._feed(&self.views[i], self._row(&self.views[i], number), self.news, values)
        return SKIP_NONE

    cdef inline void _feed(self, const View *view, Connection *row, const int64_t *news,
                           const int64_t *values) noexcept nogil:
        # Add a report to a row: `news` to its counters, of `values` what its gauges keep (those
        # of an `other` row nothing).
        cdef int64_t *sums = <int64_t *>(<char *>row + view.values_at)
        cdef int64_t value
        cdef uint32_t i
        self._add_counters(view, row, news)
        for i in range(view.counters, view.values):
            value = values[view.sources[i]]
            if (value and row.deadline_s != NEVER_S
                    and keeps(self.keeps[view.sources[i]], value, sums[i])):
                sums[i] = value
        row.deadline_s = max(row.deadline_s, view.deadline_s)

    cdef int _apply_unknown(self, Report *report, const int64_t *values, const Cell *cells,
                            const int64_t *amounts) noexcept nogil:
        cdef View *first = &self.views[0]
        cdef uint32_t number, kept, conversation = 0
        cdef int wrong
        cdef bint creates, full
        if self.converses:
            conversation = self._conversation(report.conversation)
            if self._is_taken(conversation, report):
                return SKIP_DUPLICATE
        if report.finish == CLOSING:
            if report.worth == WORTH_UNREAD:
                return APPLY_STOP
            report.uses_marks = True
        if self._was_never_counted(report):
            report.worth = WORTH_TOTAL
        elif report.repeats:
            return SKIP_ENDED
        if not self._intern(cells):
            return APPLY_NO_MEMORY
        number = self._find_row(first, self._gather(first))
        creates = number == 0
        kept = self._kept_of(self.view_cells) if creates else 0
        full = creates and not report.repeats and self._is_full(first)
        if full or self._live_flows() >= self.max_flows_:
            wrong = self._overflow(report, values, amounts)
            self.rejected += full and wrong == SKIP_TABLE_FULL
        elif report.repeats:
            wrong = self._add_ended_flow(report, number, kept, values)
        elif (report.worth == WORTH_UNREAD or report.worth == WORTH_AMOUNTS_UNREAD) and (
            self.view_count > 1 or not self._counts_whole(first, creates and not kept)
        ):
            wrong = APPLY_STOP
        else:
            if unlikely(report.leaves_out) and self._needs_worth(number, kept):
                report.uses_marks = True
                report.uses_amounts = report.worth == WORTH_AMOUNTS
            wrong = self._add_flow(report, number, kept, conversation, values, amounts)
        self._release_interned()
        return wrong

    cdef inline bint _counts_whole(self, const View *view, bint creates) noexcept nogil:
        # Whether a flow's total is news for the row that it creates, or not, in any report: no
        # other flow can have been in that row.
        return creates and view.complete and not self.overflowed

    cdef inline bint _was_never_counted(self, const Report *report) noexcept nogil:
        # Whether an unknown flow began after the latest report of all flows that were known once.
        # Only durations of the agent's clock are used. Nothing is known about duplicates.
        return (self.begun and report.age_ms >= 0 and not self.converses
                and (self.now - report.age_ms / 1000.0 - self.flow_update_s_ - BATCH_S
                     > self.horizon_s_))

    cdef bint _needs_worth(self, uint32_t number, uint32_t kept) noexcept nogil:
        # Whether the flow whose row of the first view is `number`, or is to be made, comes to a row
        # in any view where its total is not news for that reason alone. `kept` has the counters of
        # that row of the first view, or is 0.
        cdef View *view
        cdef uint32_t i
        for i in range(self.view_count):
            view = &self.views[i]
            if i and not view.by_flow and self._follows(number):
                if self._row(&self.views[0], number).links[view.link]:
                    return True
                continue
            if self._find_row(view, self._gather(view)):
                return True
            if self._is_full(view):
                if self.overflows:
                    return True
            elif not self._counts_whole(view, i or not kept):
                return True
        return False

    cdef inline bint _is_full(self, const View *view) noexcept nogil:
        return view.rows.live - (1 if view.other else 0) >= self.max_connections_

    cdef bint _intern(self, const Cell *cells) noexcept nogil:
        # `row_cells` for these label values, until `_release_interned`; False without memory. What
        # was found stays where it is meanwhile; what was not has a reference for that time.
        cdef char digits[32]
        cdef const char *text
        cdef uint32_t i, length, number
        self.interned_count = 0
        for i in range(self.cells):
            if likely(cells[i].found != 0):
                self.row_cells[i] = cells[i].found | IS_TEXT
                continue
            text = cells[i].text
            length = cells[i].length
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
                self._release_interned()
                return False
            self.row_cells[i] = number | IS_TEXT
            self.interned[self.interned_count] = number
            self.interned_count += 1
        return True

    cdef void _release_interned(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.interned_count):
            text_release(&self.texts, self.interned[i])

    cdef inline void _retain_cells(self, const uint32_t *cells, uint32_t count) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            if cells[i] & IS_TEXT:
                (<Text *>row_at(&self.texts, cells[i] & ~IS_TEXT)).refs += 1

    cdef void _release_cells(self, const uint32_t *cells, uint32_t count) noexcept nogil:
        cdef uint32_t i
        for i in range(count):
            if cells[i] & IS_TEXT:
                text_release(&self.texts, cells[i] & ~IS_TEXT)

    cdef inline uint32_t *_cells(self, const View *view, Connection *row) noexcept nogil:
        return <uint32_t *>(<char *>row + view.cells_at)

    cdef uint32_t _find_row(self, const View *view, uint32_t hash) noexcept nogil:
        # The row whose labels are `view_cells`, or 0.
        cdef uint32_t number = bucket_of(&view.rows, hash)[0]
        cdef Connection *row
        while number:
            row = self._row(view, number)
            if (row.hash == hash
                    and memcmp(self._cells(view, row), self.view_cells, 4 * view.columns) == 0):
                return number
            number = row.next
        return 0

    cdef uint32_t _new_row(self, View *view, uint32_t hash) noexcept nogil:
        # A row with the labels `view_cells`, of no flow yet and in no wheel; 0 without memory.
        cdef uint32_t number = row_new(&view.rows)
        cdef uint32_t i
        cdef int64_t *sums
        cdef Connection *row
        if number == 0:
            return 0
        row = self._row(view, number)
        memset(row, 0, view.rows.stride)
        row.hash = hash
        row.birth = <uint32_t>self.births
        self.births += 1
        sums = <int64_t *>(<char *>row + view.values_at)
        for i in range(view.counters):
            if self.optional[view.sources[i]]:
                sums[i] = ABSENT
        memcpy(self._cells(view, row), self.view_cells, 4 * view.columns)
        self._retain_cells(self.view_cells, view.columns)
        index_add(&view.rows, number)
        return number

    cdef void _drop_row(self, View *view, uint32_t number) noexcept nogil:
        index_remove(&view.rows, number)
        self._free_row(view, number)

    cdef void _free_row(self, View *view, uint32_t number) noexcept nogil:
        cdef Connection *row = self._row(view, number)
        self._release_cells(self._cells(view, row), view.columns)
        row.deadline_s = 0
        row_release(&view.rows, number)

    cdef uint32_t _row_of(self, View *view, bint *created) noexcept nogil:
        # The row of any view but the first for `row_cells`: found or made, or what stands for
        # it where there is no room for another (0 if nothing does).
        cdef uint32_t hash = self._gather(view)
        cdef uint32_t number = self._find_row(view, hash)
        created[0] = False
        if number:
            return number
        if unlikely(self._is_full(view)):
            view.rejected += 1
            if not self.overflows:
                return 0
            self.overflowed = True
            return self._other_row(view)
        created[0] = True
        return self._new_row(view, hash)

    cdef int _add_flow(self, const Report *report, uint32_t number, uint32_t kept,
                       uint32_t conversation, const int64_t *values,
                       const int64_t *amounts) noexcept nogil:
        # A new flow row, and what it needs of the other kinds; all of it or nothing. `number` is
        # its row in the first view, or 0, and `kept` has that row's counters, or is 0.
        cdef uint32_t row = self._new_flow(report, values)
        if row == 0:
            return APPLY_NO_MEMORY
        if not self._find_places(report, number, &conversation):
            self._drop_flow(row)
            return APPLY_NO_MEMORY
        self._attach(row, report, conversation, kept, values, amounts)
        self._make_room()
        return SKIP_NONE

    cdef uint32_t _new_flow(self, const Report *report, const int64_t *values) noexcept nogil:
        # The row of an unknown flow, which is neither live nor in a list yet; 0 without memory.
        cdef uint64_t key = report.key
        cdef uint32_t text = 0
        cdef uint32_t row
        if report.key_text != NULL:
            text = text_intern(&self.texts, report.key_text, report.key_length, self.seed)
            if text == 0:
                return 0
            key = text_key(text)
        row = flow_new(&self.flow_rows, key, TEXT_KEY if text else 0)
        if row == 0:
            if text:
                text_release(&self.texts, text)
            return 0
        self._flow(row).last_ms = report.last_ms
        if self.converses:
            self._links(self._flow(row))[0] = 0
        memcpy(self._flow(row) + 1, values, self.counters * sizeof(int64_t))
        return row

    cdef void _drop_flow(self, uint32_t number) noexcept nogil:
        # Take a row that is neither live nor in a list out of the table.
        cdef Flow *flow = self._flow(number)
        if self.converses and self._links(flow)[0]:
            self._conversation_at(self._links(flow)[0]).dormant -= 1
            self._leave_conversation(self._links(flow)[0])
        index_remove(&self.flow_rows, number)
        if flow.connection & TEXT_KEY:
            if self.in_batch:
                # The number may have been found for a label of the batch.
                self.dead_texts[self.dead_text_count] = flow.key_high
                self.dead_text_count += 1
            else:
                text_release(&self.texts, flow.key_high)
        flow.connection = 0
        row_release(&self.flow_rows, number)

    cdef bint _find_places(self, const Report *report, uint32_t number,
                           uint32_t *conversation) noexcept nogil:
        # `targets` and the conversation of a flow that becomes live, found or made; all of them, or
        # False without memory.
        cdef uint32_t before = conversation[0]
        cdef bint makes_conversation = self.converses and (
            before == 0 or self._conversation_at(before).point != report.point
        )
        cdef uint32_t at
        if makes_conversation:
            conversation[0] = self._new_conversation(report)
            if conversation[0] == 0:
                return False
        at = self._find_targets(number)
        if at == self.view_count:
            if makes_conversation and before:
                self._conversation_at(before).superseded = True
            return True
        while at:
            at -= 1
            if self.created[at]:
                self._drop_row(&self.views[at], self.targets[at])
        if makes_conversation:
            self._leave_conversation(conversation[0])
        return False

    cdef inline bint _follows(self, uint32_t number) noexcept nogil:
        # Whether a row of the first view, or 0, has links. That of "other" may be without flows;
        # then what it had links to may be gone.
        return number != 0 and flows_of(self._row(&self.views[0], number)) != 0

    cdef uint32_t _find_targets(self, uint32_t number) noexcept nogil:
        # The rows that the flow at hand is to lead to, `number` being that of the first view.
        # Returns how many views have theirs: all, unless memory ran out.
        cdef View *view
        cdef uint32_t i
        for i in range(self.view_count):
            view = &self.views[i]
            if i == 0:
                self.created[0] = number == 0
                self.targets[0] = number if number else self._new_row(view, self._gather(view))
            elif not view.by_flow and self._follows(number):
                self.created[i] = False
                self.targets[i] = self._row(&self.views[0], number).links[view.link]
                continue
            else:
                self.targets[i] = self._row_of(view, &self.created[i])
            if self.targets[i] == 0 and (i == 0 or self.created[i] or self.overflows):
                return i
        return self.view_count

    cdef void _attach(self, uint32_t row, const Report *report, uint32_t conversation,
                      uint32_t kept, const int64_t *values,
                      const int64_t *amounts) noexcept nogil:
        # Make a flow live, in the rows of `targets`. Without `amounts`, it is one that was dormant:
        # then it adds `news`.
        cdef Flow *flow = self._flow(row)
        cdef Connection *connection = self._row(&self.views[0], self.targets[0])
        cdef Connection *target
        cdef const int64_t *news
        cdef View *view
        cdef uint32_t *links = self._links(flow)
        cdef uint32_t i
        flow.connection = flow.connection & TEXT_KEY | self.targets[0]
        if report.finish == CLOSING:
            flow.connection |= ENDED
        flow.deadline_s = self.views[0].deadline_s
        wheel_file(&self.wheel, flow.deadline_s, row, &flow.wheel_next)
        if conversation:
            self._conversation_at(conversation).flows += 1
            if links[0]:
                self._conversation_at(links[0]).dormant -= 1
                self._leave_conversation(links[0])
            links[0] = conversation
        for i in range(self.columns, self.cells):
            links[self.keys_at + i - self.columns] = self.row_cells[i] & ~IS_TEXT
        self._retain_cells(self.row_cells + self.columns, self.cells - self.columns)
        for i in range(self.view_count):
            view = &self.views[i]
            if i:
                self._link(view, flow, connection)[0] = self.targets[i]
                if self.targets[i] == 0:
                    continue
            target = self._row(view, self.targets[i])
            if i and self.created[i]:
                self._file_row(view, self.targets[i], view.deadline_s)
            target.flows += 1
            if amounts == NULL:
                news = self.news
            elif (report.worth == WORTH_TOTAL
                    or self._counts_whole(view, self.created[i] and (i or not kept))):
                news = values
            else:
                news = amounts
            if i == 0 and self.created[0]:
                if kept:
                    self._take_kept(kept, target)
                elif amounts == NULL and view.complete:
                    target.flows |= BACK
                    self._add_counters(view, target, <const int64_t *>(flow + 1))
            self._feed(view, target, news, values)
        self.connections_created += self.created[0]

    cdef inline void _add_counters(self, const View *view, Connection *row,
                                   const int64_t *news) noexcept nogil:
        cdef int64_t *sums = <int64_t *>(<char *>row + view.values_at)
        cdef uint32_t i
        for i in range(view.counters):
            add(&sums[i], news[view.sources[i]])

    cdef inline void _file_row(self, View *view, uint32_t number,
                               uint32_t deadline_s) noexcept nogil:
        cdef Connection *row = self._row(view, number)
        row.deadline_s = deadline_s
        wheel_file(&view.wheel, deadline_s, number, row.links)

    # Conversations

    cdef inline Conversation *_conversation_at(self, uint32_t number) noexcept nogil:
        return <Conversation *>row_at(&self.conversations, number)

    cdef uint32_t _conversation(self, uint64_t key) noexcept nogil:
        cdef uint32_t number = bucket_of(&self.conversations, <uint32_t>key)[0]
        cdef Conversation *row
        while number:
            row = self._conversation_at(number)
            if (row.hash == <uint32_t>key and row.key_high == <uint32_t>(key >> 32)
                    and not row.superseded):
                return number
            number = row.next
        return 0

    cdef bint _is_taken(self, uint32_t number, const Report *report) noexcept nogil:
        # Whether a conversation, or 0, is reported by another point. With dormant flows alone, it
        # is free.
        cdef const Conversation *row
        if number == 0:
            return False
        row = self._conversation_at(number)
        return row.flows != 0 and row.point != report.point

    cdef uint32_t _new_conversation(self, const Report *report) noexcept nogil:
        cdef uint32_t number = row_new(&self.conversations)
        cdef Conversation *row
        if number:
            row = self._conversation_at(number)
            row.hash = <uint32_t>report.conversation
            row.key_high = <uint32_t>(report.conversation >> 32)
            row.flows = row.dormant = 0
            row.point = report.point
            row.superseded = False
            index_add(&self.conversations, number)
        return number

    cdef void _leave_conversation(self, uint32_t number) noexcept nogil:
        # Take a row out of the table that no flow leads to any more.
        if self._conversation_at(number).flows == 0 and self._conversation_at(number).dormant == 0:
            index_remove(&self.conversations, number)
            row_release(&self.conversations, number)

    # Overflow

    cdef uint32_t _other_row(self, View *view) noexcept nogil:
        # The row of what found no room, made when it is first needed; 0 without memory. It is
        # known by its deadline.
        cdef uint32_t text, i, hash
        cdef Connection *row
        if view.other:
            return view.other
        text = text_intern(&self.texts, self.other_text, self.other_length, self.seed)
        if text == 0:
            return 0
        for i in range(view.columns):
            self.view_cells[i] = text | IS_TEXT
        hash = text_hash(<const char *>self.view_cells, 4 * view.columns, self.seed)
        view.other = self._find_row(view, hash)     # a flow may have such labels
        if view.other == 0:
            view.other = self._new_row(view, hash)
            self.connections_created += view.other != 0 and view == &self.views[0]
        if view.other:
            row = self._row(view, view.other)
            row.deadline_s = NEVER_S
            for i in range(view.counters, view.values):
                (<int64_t *>(<char *>row + view.values_at))[i] = 0
        text_release(&self.texts, text)
        return view.other

    cdef int _overflow(self, Report *report, const int64_t *values,
                       const int64_t *amounts) noexcept nogil:
        # An unknown flow that is not kept: what its report counts for goes to the first view's
        # `other` row, and to its own rows of the other views.
        cdef int wrong
        if not self.overflows:
            return SKIP_TABLE_FULL
        if report.worth == WORTH_UNREAD or report.worth == WORTH_AMOUNTS_UNREAD:
            return APPLY_STOP
        report.uses_marks = True
        report.uses_amounts = report.worth == WORTH_AMOUNTS
        wrong = self._add_to_other(
            values if report.worth == WORTH_TOTAL else amounts, values
        )
        if wrong == SKIP_TABLE_FULL:
            self.horizon_s_ = max(self.horizon_s_, self.now)
        return wrong

    cdef int _add_to_other(self, const int64_t *news, const int64_t *values) noexcept nogil:
        cdef View *view
        cdef uint32_t i
        for i in range(self.view_count):
            view = &self.views[i]
            self.created[i] = False
            self.targets[i] = self._row_of(view, &self.created[i]) if i else self._other_row(view)
            if self.targets[i] == 0:
                return APPLY_NO_MEMORY
            if self.created[i]:
                self._file_row(view, self.targets[i], view.deadline_s)
        self.overflowed = True
        self.overflow_reports += 1
        for i in range(self.view_count):
            view = &self.views[i]
            self._feed(view, self._row(view, self.targets[i]), news, values)
        return SKIP_TABLE_FULL

    # Dormant flows

    cdef int _wake(self, Report *report, const int64_t *values, const Cell *cells,
                   const int64_t *amounts) noexcept nogil:
        # A report of a flow that is dormant.
        cdef View *first = &self.views[0]
        cdef Flow *flow = self._flow(report.flow)
        cdef int change = self._difference(flow, report, values)
        cdef bint closing = report.finish == CLOSING
        cdef uint32_t number, conversation = 0
        cdef int done
        if change == NOTHING_NEW:
            if closing:
                self._unlink(report.flow)
                self._end(report.flow)
            return SKIP_LATE
        if unlikely(report.skip_new != SKIP_NONE):
            return report.skip_new
        if self.converses:
            conversation = self._conversation(report.conversation)
            if self._is_taken(conversation, report):
                self._forget(report.flow)
                return SKIP_DUPLICATE
            number = self._links(flow)[0]
            if number and self._conversation_at(number).superseded:
                # What it adds may have been counted at another point.
                self._forget(report.flow)
                report.flow = 0
                self.met_unknown = True
                return self._apply_unknown(report, values, cells, amounts)
        if closing:
            if report.worth == WORTH_UNREAD:
                return APPLY_STOP
            report.leaves_out_marks &= ~((1 << MARK_START) | (1 << MARK_UPDATE_START))
            report.uses_marks = report.repeats
        if not self._intern(cells):
            return APPLY_NO_MEMORY
        number = self._find_row(first, self._gather(first))
        if closing and report.repeats:
            done = self._wake_ended(report, number, values, change)
        elif number == 0 and self._is_full(first):
            done = self._wake_without_room(report, values, change)
        elif self._find_places(report, number, &conversation):
            self._unlink(report.flow)
            self._attach(report.flow, report, conversation,
                         self._kept_of_new_row(), values, NULL)
            self._learn(flow, report, values, change)
            self._make_room()
            done = SKIP_NONE
        else:
            done = APPLY_NO_MEMORY
        self._release_interned()
        return done

    cdef int _wake_ended(self, const Report *report, uint32_t number, const int64_t *values,
                         int change) noexcept nogil:
        # The closing report of a dormant flow that has more than was known.
        cdef uint32_t kept = 0 if number else self._kept_of(self.view_cells)
        if not self._credit(number, kept, self.news, values):
            return APPLY_NO_MEMORY
        self._learn(self._flow(report.flow), report, values, change)
        self._unlink(report.flow)
        self._make_room()
        self._end(report.flow)
        return SKIP_NONE

    cdef int _wake_without_room(self, const Report *report, const int64_t *values,
                                int change) noexcept nogil:
        # There is no room for the connection of a dormant flow.
        if self.overflows:
            if self._add_to_other(self.news, values) == APPLY_NO_MEMORY:
                return APPLY_NO_MEMORY
            self._learn(self._flow(report.flow), report, values, change)
        self.rejected += 1
        self._unlink(report.flow)
        if report.finish == CLOSING:
            self._end(report.flow)
        else:
            self._flow(report.flow).connection &= ~ENDED
            dormant_append(&self.dormant, &self.flow_rows, report.flow,
                           <uint32_t>floor(self.now))
        return SKIP_TABLE_FULL

    cdef int _add_ended_flow(self, const Report *report, uint32_t number, uint32_t kept,
                             const int64_t *values) noexcept nogil:
        # The closing report of an unknown flow. The flow is remembered for a while, because its
        # other reports may still be under way.
        cdef uint32_t row = self._new_flow(report, values)
        if row == 0:
            return APPLY_NO_MEMORY
        if not self._credit(number, kept, values, values):
            self._drop_flow(row)
            return APPLY_NO_MEMORY
        self._make_room()
        self._end(row)
        return SKIP_NONE

    cdef bint _credit(self, uint32_t number, uint32_t kept, const int64_t *news,
                      const int64_t *values) noexcept nogil:
        # Add `news` to all rows of a flow without showing it: no row of the first view is made.
        # `number` is the row there, or 0, and `kept` has its counters, or is 0. False without
        # memory.
        cdef View *first = &self.views[0]
        cdef View *view
        cdef uint32_t i, done = 1
        if number == 0 and kept == 0 and not first.complete and self.memory_s > 0:
            self._gather(first)
            kept = self._new_kept(self.view_cells, <uint32_t>floor(self.now))
            if kept == 0:
                return False
            for i in range(self.counters):
                (<int64_t *>(self._flow(kept) + 1))[i] = ABSENT if self.optional[i] else 0
        while done < self.view_count:
            view = &self.views[done]
            self.created[done] = False
            if not view.by_flow and self._follows(number):
                self.targets[done] = self._row(first, number).links[view.link]
            else:
                self.targets[done] = self._row_of(view, &self.created[done])
                if self.targets[done] == 0 and (self.created[done] or self.overflows):
                    break
            done += 1
        if done < self.view_count:
            # An empty row that is kept does no harm.
            while done > 1:
                done -= 1
                if self.created[done]:
                    self._drop_row(&self.views[done], self.targets[done])
            return False
        for i in range(1, self.view_count):
            view = &self.views[i]
            if self.targets[i] == 0:
                continue
            if self.created[i]:
                self._file_row(view, self.targets[i], view.deadline_s)
            self._feed(view, self._row(view, self.targets[i]), news, values)
        if number:
            self._add_counters(first, self._row(first, number), news)
        elif kept:
            for i in range(first.counters):
                add(<int64_t *>(self._flow(kept) + 1) + first.sources[i], news[first.sources[i]])
        return True

    cdef uint32_t _kept_of(self, const uint32_t *cells) noexcept nogil:
        # The dormant row that has the counters of the connection with these labels, or 0.
        if self.kept_connections == 0:
            return 0
        return flow_find(&self.flow_rows, self._labels_key(cells), LABELS_KEY)

    cdef uint32_t _kept_of_new_row(self) noexcept nogil:
        # That of the row of the first view which was made for the flow at hand, or 0.
        if not self.created[0]:
            return 0
        return self._kept_of(
            self._cells(&self.views[0], self._row(&self.views[0], self.targets[0]))
        )

    cdef uint64_t _labels_key(self, const uint32_t *cells) noexcept nogil:
        # A hash of the label values themselves: the numbers of texts can be others' by now.
        cdef const Text *text
        cdef uint64_t key = self.seed
        cdef uint32_t i
        for i in range(self.views[0].columns):
            if cells[i] & IS_TEXT:
                text = <const Text *>row_at(&self.texts, cells[i] & ~IS_TEXT)
                key = mixed(key ^ long_hash(text_bytes(text), text.length, self.seed))
            else:
                key = mixed(key + cells[i])
        return key

    cdef uint32_t _new_kept(self, const uint32_t *cells, uint32_t now_s) noexcept nogil:
        # A dormant row for the counters of the connection with these labels; 0 without memory.
        cdef uint32_t number = flow_new(&self.flow_rows, self._labels_key(cells), LABELS_KEY)
        if number:
            self._flow(number).last_ms = 0
            if self.converses:
                self._links(self._flow(number))[0] = 0
            memset(self._flow(number) + 1, 0, self.counters * sizeof(int64_t))
            dormant_append(&self.dormant, &self.flow_rows, number, now_s)
            self.kept_connections += 1
        return number

    cdef void _take_kept(self, uint32_t number, Connection *row) noexcept nogil:
        # Continue the counters of a connection that is back.
        cdef const View *first = &self.views[0]
        cdef const int64_t *totals = <const int64_t *>(self._flow(number) + 1)
        cdef int64_t *sums = <int64_t *>(<char *>row + first.values_at)
        cdef uint32_t i
        row.flows |= BACK
        for i in range(first.counters):
            sums[i] = totals[first.sources[i]]
        self._forget(number)

    cdef void _keep_counters(self, const Flow *flow, Connection *row,
                             uint32_t now_s) noexcept nogil:
        # Keep the counters of a connection that leaves with its last flow, unless they are the
        # flow's totals.
        cdef const View *first = &self.views[0]
        cdef const int64_t *totals = <const int64_t *>(flow + 1)
        cdef const int64_t *sums = <const int64_t *>(<char *>row + first.values_at)
        cdef bint differs = not first.complete
        cdef uint32_t i, number
        for i in range(first.counters):
            differs |= sums[i] != totals[first.sources[i]]
        if not differs or self.memory_s == 0:
            return
        number = self._new_kept(self._cells(first, row), now_s)
        if number:
            for i in range(first.counters):
                (<int64_t *>(self._flow(number) + 1))[first.sources[i]] = sums[i]
            self._make_room()

    cdef void _unlink(self, uint32_t number) noexcept nogil:
        cdef bint ended = self._flow(number).connection & ENDED != 0
        dormant_remove(&self.ended if ended else &self.dormant, &self.flow_rows, number)

    cdef void _end(self, uint32_t number) noexcept nogil:
        # Remember a flow that is in no list only while reports of it may still be under way.
        self._flow(number).connection |= ENDED
        dormant_append(&self.ended, &self.flow_rows, number, <uint32_t>floor(self.now))

    cdef void _forget(self, uint32_t number) noexcept nogil:
        # Take a dormant row out of the table.
        cdef Flow *flow = self._flow(number)
        cdef double reported_s
        if flow.connection & LABELS_KEY:
            self.kept_connections -= 1
        elif not flow.connection & ENDED and self.begun:
            reported_s = max(0.0, flow.deadline_s - floor(self.least_timeout_s))
            self.horizon_s_ = max(self.horizon_s_, reported_s)
        self._unlink(number)
        self._drop_flow(number)

    cdef inline void _make_room(self) noexcept nogil:
        # Forget what has been dormant for longest, where there are more rows than there is room.
        # After a limit was lowered, `expire` does the rest: a report takes bounded time.
        cdef uint32_t _row
        for _row in range(ROOM_ROWS):
            if likely(self.flow_rows.live <= self.max_flows_) or not self._forget_first():
                break

    cdef bint _forget_first(self) noexcept nogil:
        # False if no row is dormant. Flows that have ended go first, but not while one of their
        # reports may still be under way: it would count again.
        cdef uint32_t number = self.ended.head
        if self.dormant.head and (
            number == 0 or self._flow(number).deadline_s + BATCH_S > floor(self.now)
        ):
            number = self.dormant.head
        if number:
            self._forget(number)
        return number != 0

    # -- expiry ---------------------------------------------------------------------------------

    def expire(self, double now, uint32_t max_rows):
        """Make flows dormant at their deadlines, and remove connections without live flows.

        Flows that have been dormant for long enough are forgotten, and those beyond the limit.

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
        cdef uint32_t i
        self.now = max(self.now, <double>now_s)
        # Flows go first: then no row of a view has flows left when its own time has come.
        if self._expire_flows(now_s, &max_rows) or self._expire_dormant(now_s, &max_rows):
            return True
        for i in range(self.view_count):
            if self.views[i].other:
                aged(self._row(&self.views[i], self.views[i].other), <uint32_t>self.births)
            if i and self._expire_rows(&self.views[i], now_s, &max_rows):
                return True
        return False

    cdef bint _expire_flows(self, uint32_t now_s, uint32_t *max_rows) noexcept nogil:
        cdef Wheel *wheel = &self.wheel
        cdef uint32_t number
        cdef Flow *flow
        while True:
            number = wheel_due(wheel, self._live_flows(), now_s, max_rows)
            if number == 0:
                return wheel.next_s <= now_s
            flow = self._flow(number)
            wheel_take(wheel, flow.wheel_next)
            if flow.wheel_next:
                prefetch(row_at(&self.flow_rows, flow.wheel_next))
            if flow.deadline_s > wheel.next_s:
                wheel_file(wheel, flow.deadline_s, number, &flow.wheel_next)
                aged(self._row(&self.views[0], flow.connection & ROW), <uint32_t>self.births)
            else:
                self._retire(flow, number, now_s)

    cdef bint _expire_dormant(self, uint32_t now_s, uint32_t *max_rows) noexcept nogil:
        # Whether there is more to forget by now.
        cdef DormantList *rows
        cdef double memory_s
        cdef uint32_t i, number
        while self.flow_rows.live > self.max_flows_ and (self.ended.head or self.dormant.head):
            if max_rows[0] == 0:
                return True
            max_rows[0] -= 1
            self._forget_first()
        for i in range(2):
            rows = &self.ended if i else &self.dormant
            memory_s = ceil(self.views[0].timeout_s if i else self.memory_s)
            while rows.head:
                number = rows.head
                if self._flow(number).deadline_s + memory_s > now_s:
                    break
                if max_rows[0] == 0:
                    return True
                max_rows[0] -= 1
                self._prefetch_after(number)
                self._forget(number)
        return False

    cdef inline void _prefetch_after(self, uint32_t number) noexcept nogil:
        # Rows became dormant in no order of memory, and a bucket is far from its rows.
        cdef uint32_t next = self._flow(number).wheel_next
        if next:
            prefetch(bucket_of(&self.flow_rows, self._flow(next).hash))
            next = self._flow(next).wheel_next
            if next:
                prefetch(self._flow(next))

    cdef bint _expire_rows(self, View *view, uint32_t now_s, uint32_t *max_rows) noexcept nogil:
        cdef Wheel *wheel = &view.wheel
        cdef uint32_t number
        cdef Connection *row
        while True:
            number = wheel_due(wheel, view.rows.live, now_s, max_rows)
            if number == 0:
                return wheel.next_s <= now_s
            row = self._row(view, number)
            wheel_take(wheel, row.links[0])
            if row.links[0]:
                prefetch(self._row(view, row.links[0]))
            if row.flows and row.deadline_s <= wheel.next_s:
                row.deadline_s = wheel.next_s + 1       # never before the last of its flows
            if row.deadline_s > wheel.next_s:
                wheel_file(wheel, row.deadline_s, number, row.links)
                aged(row, <uint32_t>self.births)
            else:
                self._drop_row(view, number)

    cdef void _retire(self, Flow *flow, uint32_t number, uint32_t now_s) noexcept nogil:
        # Make a live flow dormant. Its connection leaves the first view if it was the last.
        cdef uint32_t at = flow.connection & ROW
        cdef Connection *connection = self._row(&self.views[0], at)
        cdef uint32_t *links = self._links(flow)
        cdef bint ended = flow.connection & ENDED != 0
        cdef uint32_t i, link
        for i in range(1, self.view_count):
            link = self._link(&self.views[i], flow, connection)[0]
            if link:
                self._row(&self.views[i], link).flows -= 1
        if self.converses:
            self._conversation_at(links[0]).flows -= 1
            self._conversation_at(links[0]).dormant += 1
        for i in range(self.cells - self.columns):
            text_release(&self.texts, links[self.keys_at + i])
        dormant_append(&self.ended if ended else &self.dormant, &self.flow_rows, number, now_s)
        connection.flows -= 1
        if flows_of(connection) == 0 and at != self.views[0].other:
            self._keep_counters(flow, connection, now_s)
            self._drop_row(&self.views[0], at)
            self.expired += 1
        if self.memory_s == 0 and not ended:
            self._forget(number)

    # -- volatile labels ------------------------------------------------------------------------

    def relabel(self, list renamed not None):
        """Move flows to other connections after a rewrite's answers have changed.

        :param renamed: pairs of a volatile column's rewrite and the keys of which it makes another
            label than before.
        :raises MemoryError: then some flows may have their old labels still.

        A connection that is new begins at zero; one that was there goes on, also where it has left
        and its counters are kept. Every flow is looked at, dormant ones too, which takes some 10 ns
        each, and 0.5 µs for those that go over.
        """
        cdef bint done
        try:
            for rewrite, keys in renamed:
                for column_rewrite, slot, column in self.volatile:
                    if column_rewrite is rewrite:
                        for key in keys:
                            self._add_change(rewrite, key, slot, column)
            if self.change_count == 0:
                return
            qsort(self.changes, self.change_count, sizeof(Change), compare_changes)
            with nogil:
                pthread_mutex_lock(&self.lock)
                done = self._relabel()
                pthread_mutex_unlock(&self.lock)
            if not done:
                raise MemoryError
        finally:
            pthread_mutex_lock(&self.lock)
            self._forget_changes()
            pthread_mutex_unlock(&self.lock)

    cdef int _add_change(self, rewrite, str key, uint32_t slot, uint32_t column) except -1:
        cdef const char *text
        cdef uint32_t length, known, label
        cdef Change *change
        cdef void *moved
        if read_text(<PyObject *>key, &text, &length):
            return 0
        text = self._escaped(text, &length)
        known = text_find(&self.texts, text, length, text_hash(text, length, self.seed))
        if known == 0:
            return 0                    # no flow has it
        if self.change_count == self.change_room:
            moved = realloc(self.changes, (2 * self.change_room + 64) * sizeof(Change))
            if moved == NULL:
                raise MemoryError
            self.changes = <Change *>moved
            self.change_room = 2 * self.change_room + 64
        answer = rewrite[key]
        if read_text(<PyObject *>answer, &text, &length):
            return 0
        text = self._escaped(text, &length)
        pthread_mutex_lock(&self.lock)
        label = text_intern(&self.texts, text, length, self.seed)
        (<Text *>row_at(&self.texts, known)).refs += label != 0
        pthread_mutex_unlock(&self.lock)
        if label == 0:
            raise MemoryError
        change = &self.changes[self.change_count]
        change.key = known
        change.slot = slot
        change.column = column
        change.cell = label | IS_TEXT
        self.change_count += 1
        return 0

    cdef const char *_escaped(self, const char *text, uint32_t *length) noexcept:
        if needs_escape(text, length[0]):
            length[0] = escape(text, length[0], self.escaped)
            return self.escaped
        return text

    cdef void _forget_changes(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.change_count):
            text_release(&self.texts, self.changes[i].key)
            text_release(&self.texts, self.changes[i].cell & ~IS_TEXT)
        self.change_count = 0

    cdef bint _relabel(self) noexcept nogil:
        # All leave before the first comes: their order is not to be seen.
        cdef uint32_t *moving = NULL
        cdef uint32_t *emptied
        cdef uint32_t *longer
        cdef uint32_t i, number, count = 0, room = 0, emptied_count = 0
        cdef Flow *flow
        cdef bint done = True
        for number in range(1, self.flow_rows.fresh):
            flow = self._flow(number)
            if flow.connection and not flow.connection & DORMANT and self._changes_of(flow):
                if count == room:
                    room = 2 * room + 1024
                    longer = <uint32_t *>realloc(moving, room * sizeof(uint32_t))
                    if longer == NULL:
                        free(moving)
                        return False
                    moving = longer
                moving[count] = number
                count += 1
        emptied = <uint32_t *>malloc((count + 1) * sizeof(uint32_t))
        if emptied == NULL:
            free(moving)
            return False
        for i in range(count):
            number = self._leave_rows(<Flow *>row_at(&self.flow_rows, moving[i]))
            if number:
                emptied[emptied_count] = number
                emptied_count += 1
        for i in range(count):
            done &= self._join_rows(<Flow *>row_at(&self.flow_rows, moving[i]))
        for i in range(emptied_count):
            if flows_of(self._row(&self.views[0], emptied[i])) == 0:
                self._free_row(&self.views[0], emptied[i])
                self.expired += 1
        free(moving)
        free(emptied)
        return done

    cdef bint _changes_of(self, Flow *flow) noexcept nogil:
        # Fill `new_cells`; whether there is any.
        cdef const uint32_t *keys = self._links(flow) + self.keys_at
        cdef uint32_t slot, low, high, middle
        cdef bint found = False
        memset(self.new_cells, 0, self.cells * sizeof(uint32_t))
        for slot in range(self.cells - self.columns):
            low = 0
            high = self.change_count
            while low < high:
                middle = (low + high) / 2
                if self.changes[middle].key < keys[slot]:
                    low = middle + 1
                else:
                    high = middle
            while low < self.change_count and self.changes[low].key == keys[slot]:
                if self.changes[low].slot == slot:
                    self.new_cells[self.changes[low].column] = self.changes[low].cell
                    found = True
                low += 1
        return found

    cdef bint _relabelled(self, const View *view, uint32_t number) noexcept nogil:
        # Fill the view's part of `row_cells` with the new labels of a flow in this row; whether
        # they are others. Without a row, or in that of "other", there are none.
        cdef const uint32_t *cells
        cdef uint32_t i, column
        cdef bint differs = False
        if number == 0 or number == view.other:
            return False
        cells = self._cells(view, self._row(view, number))
        for i in range(view.columns):
            column = view.cells[i]
            self.row_cells[column] = self.new_cells[column] if self.new_cells[column] else cells[i]
            differs |= self.row_cells[column] != cells[i]
        return differs

    cdef uint32_t _leave_rows(self, Flow *flow) noexcept nogil:
        # Returns the row of the first view that has no flow any more, for flows not to find, or 0.
        cdef uint32_t at = flow.connection & ROW
        cdef Connection *connection = self._row(&self.views[0], at)
        cdef View *view
        cdef uint32_t i, number
        cdef bint moves
        self._changes_of(flow)
        moves = self._relabelled(&self.views[0], at)
        for i in range(1, self.view_count):
            view = &self.views[i]
            number = self._link(view, flow, connection)[0]
            if number and (self._relabelled(view, number) if view.by_flow else moves):
                self._row(view, number).flows -= 1
        if not moves:
            return 0
        connection.flows -= 1
        if flows_of(connection):
            return 0
        index_remove(&self.views[0].rows, at)
        return at

    cdef bint _join_rows(self, Flow *flow) noexcept nogil:
        # False without memory: then the flow keeps its labels, in some views.
        cdef View *first = &self.views[0]
        cdef View *view
        cdef uint32_t at = flow.connection & ROW
        cdef Connection *old = self._row(first, at)
        cdef Connection *connection
        cdef uint32_t *link
        cdef uint32_t i, number, kept
        cdef bint created = False
        cdef bint leads                 # to rows of the other views already
        cdef bint done = True
        self._changes_of(flow)
        for i in range(1, self.view_count):
            view = &self.views[i]
            if view.by_flow:
                link = self._link(view, flow, old)
                if self._relabelled(view, link[0]):
                    done &= self._go_over(view, link, flow)
                    self._join(view, link[0], flow)
        if not self._relabelled(first, at):
            return done
        number = self._find_row(first, self._gather(first))
        leads = self._follows(number)
        if number == 0:
            number = self._new_row(first, self._gather(first))
            created = number != 0
        if number == 0:
            done = False
            leads = True
            # Others that left may have made a row with the labels that this one keeps.
            memcpy(self.view_cells, self._cells(first, old), 4 * first.columns)
            number = self._find_row(first, old.hash)
            if number == 0:
                number = at
                index_add(&first.rows, at)
        connection = self._row(first, number)
        if created:
            self.connections_created += 1
            kept = self._kept_of(self.view_cells)
            if kept:
                self._take_kept(kept, connection)
        for i in range(1, self.view_count):
            view = &self.views[i]
            if not view.by_flow:
                link = self._link(view, flow, connection)
                if not leads:
                    link[0] = self._link(view, flow, old)[0]
                    if self._relabelled(view, link[0]):
                        done &= self._go_over(view, link, flow)
                if link[0]:
                    self._join(view, link[0], flow)
        flow.connection = flow.connection & ~ROW | number
        self._join(first, number, flow)
        return done

    cdef bint _go_over(self, View *view, uint32_t *link, const Flow *flow) noexcept nogil:
        # To the row of `row_cells`, in any view but the first; it stays without memory.
        cdef uint32_t number = self._find_row(view, self._gather(view))
        if number == 0:
            number = self._new_row(view, self._gather(view))
            if number == 0:
                return False
            self._file_row(view, number, self._due_s(view, flow))
        link[0] = number
        return True

    cdef inline uint32_t _due_s(self, const View *view, const Flow *flow) noexcept nogil:
        # The deadline that the flow's latest report gave to its row of a view.
        return flow.deadline_s + <uint32_t>ceil(view.timeout_s - self.views[0].timeout_s)

    cdef void _join(self, View *view, uint32_t number, Flow *flow) noexcept nogil:
        cdef const int64_t *totals = <const int64_t *>(flow + 1)
        cdef Connection *row = self._row(view, number)
        cdef int64_t *sums = <int64_t *>(<char *>row + view.values_at)
        cdef uint32_t i
        row.flows += 1
        row.deadline_s = max(row.deadline_s, self._due_s(view, flow))
        for i in range(view.counters):
            if totals[view.sources[i]] != ABSENT:
                sums[i] = max(sums[i], <int64_t>0)

    # -- pages ----------------------------------------------------------------------------------

    def page(self, double now, openmetrics=False):
        """Begin a page: it shows the connections that are alive at `now`, and none born later.

        :param openmetrics: whether the families' heads are those of OpenMetrics 1.0, which needs
            names that suit it, or of the text format 0.0.4. The samples are the same.

        It may be read from any thread, by one at a time, and however slowly.
        """
        cdef Page page = Page.__new__(Page)
        page.table = self
        page.cursor.now_s = <uint32_t>floor(now)
        with nogil:
            pthread_mutex_lock(&self.lock)
            page.cursor.births = <uint32_t>self.births
            pthread_mutex_unlock(&self.lock)
        page.cursor.head = 1 if openmetrics else 0
        return page

    cdef char *_render(self, Cursor *cursor, char *out, const char *limit) noexcept nogil:
        # Lines until `limit` is reached or the page ends. The last connection's lines, or a
        # family's head, may go beyond the limit, by up to `max_lines`.
        cdef const Family *family
        while cursor.family < self.family_count and out < limit:
            family = &self.families[cursor.family]
            if cursor.row == 0:
                memcpy(out, family.heads[cursor.head], family.head_lengths[cursor.head])
                out += family.head_lengths[cursor.head]
                cursor.row = 1
            pthread_mutex_lock(&self.lock)
            out = self._render_rows(cursor, family, out, limit)
            if cursor.row >= self.views[family.view].rows.fresh:
                cursor.family += 1
                cursor.row = 0
            pthread_mutex_unlock(&self.lock)
        return out

    cdef char *_render_rows(self, Cursor *cursor, const Family *family, char *out,
                            const char *limit) noexcept nogil:
        cdef const View *view = &self.views[family.view]
        cdef const Rows *rows = &view.rows
        cdef uint32_t row = cursor.row
        cdef uint32_t stop = min(rows.fresh, row + RENDER_ROWS)
        cdef Connection *connection
        while row < stop and out < limit:
            if row + 2 * AHEAD < rows.fresh:
                prefetch(row_at(rows, row + 2 * AHEAD))
                prefetch(row_at(rows, row + 2 * AHEAD) + CACHE_LINE)
            if row + AHEAD < rows.fresh:
                self._prefetch_texts(view, <Connection *>row_at(rows, row + AHEAD))
            connection = <Connection *>row_at(rows, row)
            if (connection.deadline_s > cursor.now_s
                    and born_before(connection.birth, cursor.births)):
                out = self._render_connection(family, view, connection, out)
            row += 1
        cursor.row = row
        return out

    cdef inline void _prefetch_texts(self, const View *view, Connection *row) noexcept nogil:
        cdef const uint32_t *cells = self._cells(view, row)
        cdef uint32_t i
        if row.deadline_s:
            for i in range(view.columns):
                if cells[i] & IS_TEXT:
                    prefetch(row_at(&self.texts, cells[i] & ~IS_TEXT))

    cdef inline int64_t _value(self, const Family *family, const View *view, Connection *row,
                               uint32_t side) noexcept nogil:
        if unlikely(family.values[side] == FLOWS):
            return flows_of(row)
        return (<const int64_t *>(<char *>row + view.values_at))[family.values[side]]

    cdef inline char *_render_connection(self, const Family *family, const View *view,
                                         Connection *row, char *out) noexcept nogil:
        # The labels are composed once; the second side's line is a copy with another direction.
        cdef const uint32_t *cells = self._cells(view, row)
        cdef const Literal *literals = family.literals
        cdef int64_t value = self._value(family, view, row, 0)
        cdef int64_t second = family.absent
        cdef char *start = out
        cdef char *direction = out
        cdef char *rest
        cdef char *first
        cdef uint32_t i
        cdef Py_ssize_t before, after
        if family.sides == 2:
            second = self._value(family, view, row, 1)
        if value <= family.absent and second <= family.absent:
            return out
        for i in range(view.columns):
            if i == view.direction_at:
                direction = out
            out = put(out, literals[i].text, literals[i].length)
            out = put_cell(out, cells[i], &self.texts)
        if view.direction_at == view.columns:
            direction = out
        out = put(out, literals[view.columns].text, literals[view.columns].length)
        rest = direction + literals[view.direction_at].length
        before = direction - start
        after = out - rest
        first = out = put_value(out, max(value, <int64_t>0), family.decimals)
        if second > family.absent:
            memcpy(out, start, before)
            out = put(out + before, family.second.text, family.second.length)
            memcpy(out, rest, after)
            out = put_value(out + after, second, family.decimals)
            if unlikely(value <= family.absent):    # there is the second line alone
                memmove(start, first, out - first)
                out = start + (out - first)
        return out

    # -- what the labels have for values --------------------------------------------------------

    def label_values(self):
        """Return how many different values each label of the first view has now.

        Takes about a nanosecond a connection and label, without the GIL; may be called from any
        thread. Connections that come or go meanwhile may be counted or not.
        """
        cdef View *view = &self.views[0]
        cdef uint32_t i
        cdef uint32_t texts = self._fresh(&self.texts)
        cdef size_t words = (texts + (1 << 16)) / 64 + 2
        cdef uint64_t *seen = <uint64_t *>self._allocate(words * view.columns * sizeof(uint64_t))
        cdef uint64_t *counts = NULL
        cdef uint32_t row = 1
        try:
            counts = <uint64_t *>self._allocate(view.columns * sizeof(uint64_t))
            with nogil:
                while row:
                    pthread_mutex_lock(&self.lock)
                    row = self._see_rows(row, texts, words, seen, counts)
                    pthread_mutex_unlock(&self.lock)
            return {name: counts[i] for i, name in enumerate(self.label_names)}
        finally:
            free(seen)
            free(counts)

    cdef uint32_t _fresh(self, const Rows *rows):
        # The lowest number that was never in use by now, as any thread may ask.
        cdef uint32_t fresh
        with nogil:
            pthread_mutex_lock(&self.lock)
            fresh = rows.fresh
            pthread_mutex_unlock(&self.lock)
        return fresh

    cdef uint32_t _see_rows(self, uint32_t row, uint32_t texts, size_t words, uint64_t *seen,
                            uint64_t *counts) noexcept nogil:
        # Mark the values of some rows, and count those that were not marked; the row to go on
        # with, or 0. An integer of 2^16 or more shares its mark with those of its last 16 bits.
        cdef const View *view = &self.views[0]
        cdef uint32_t stop = min(view.rows.fresh, row + RENDER_ROWS)
        cdef const uint32_t *cells
        cdef Connection *connection
        cdef uint32_t i, at
        cdef uint64_t *word
        cdef uint64_t bit
        while row < stop:
            connection = self._row(view, row)
            row += 1
            if row + AHEAD < view.rows.fresh:
                prefetch(row_at(&view.rows, row + AHEAD))
                prefetch(row_at(&view.rows, row + AHEAD) + CACHE_LINE)
            if connection.deadline_s == 0:
                continue
            cells = self._cells(view, connection)
            for i in range(view.columns):
                at = cells[i] & ~IS_TEXT
                if cells[i] & IS_TEXT:
                    if at >= texts:     # interned since
                        continue
                    at += 1 << 16
                else:
                    at &= 0xFFFF
                word = &seen[i * words + at / 64]
                bit = <uint64_t>1 << at % 64
                counts[i] += not word[0] & bit
                word[0] |= bit
        return row if row < view.rows.fresh else 0

    def cardinality(self, uint32_t count, str without=None):
        """Return what the labels of the first view have for values, all of the same connections.

        :param count: how many values of each label.
        :param without: a label to leave out.
        :returns: the number of connections; by label, how many values it has and the commonest of
            them, as pairs of value and connections with the greatest number first, but for values
            that left meanwhile; and how many connections there would be without that label, None
            where there is no such.

        One scan, which takes some 10 ns a connection and label, and 30 ns to leave one out,
        without the GIL; 24 to 48 bytes for each value of each label, and for each connection to
        leave one out. Any thread may call it. Connections that come or go meanwhile may be counted
        or not.
        """
        cdef Tally tallies[MAX_VIEW_COLUMNS + 1]    # the last is of the connections without
        cdef uint32_t columns = self.views[0].columns
        cdef int32_t column = -1
        cdef uint32_t row = 1
        cdef uint32_t connections = 0
        cdef bint enough = True
        cdef uint32_t i
        if without is not None:
            column = self.label_names.index(without)
        for i in range(columns + 1):
            tally_init(&tallies[i])
        try:
            with nogil:
                while row and enough:
                    pthread_mutex_lock(&self.lock)
                    enough = self._tally_rows(tallies, &row, &connections, column)
                    pthread_mutex_unlock(&self.lock)
            if not enough:
                raise MemoryError
            labels = {}
            for i in range(columns):
                labels[self.label_names[i]] = (
                    tallies[i].used, self._commonest(&tallies[i], count)
                )
            return connections, labels, None if column < 0 else tallies[columns].used
        finally:
            for i in range(columns + 1):
                tally_destroy(&tallies[i])

    cdef bint _tally_rows(self, Tally *tallies, uint32_t *at, uint32_t *connections,
                          int32_t without) noexcept nogil:
        # Count some rows by the value of each label, and by all but one; False without memory.
        cdef const View *view = &self.views[0]
        cdef uint32_t stop = min(view.rows.fresh, at[0] + RENDER_ROWS)
        cdef uint32_t cells[MAX_VIEW_COLUMNS]
        cdef Connection *connection
        cdef uint32_t i
        cdef uint64_t key
        while at[0] < stop:
            connection = self._row(view, at[0])
            at[0] += 1
            if connection.deadline_s == 0:
                continue
            connections[0] += 1
            memcpy(cells, self._cells(view, connection), 4 * view.columns)
            for i in range(view.columns):
                key = cells[i]
                if not tally_count(&tallies[i], key + 1):
                    return False
            if without >= 0:
                cells[without] = 0
                key = long_hash(<const char *>cells, 4 * view.columns, self.seed)
                if not tally_count(&tallies[view.columns], key + 1):
                    return False
        if at[0] >= view.rows.fresh:
            at[0] = 0
        return True

    cdef list _commonest(self, const Tally *tally, uint32_t count):
        # The values with most rows, from a heap of so many: a label can have a million.
        cdef list heap = []
        cdef uint32_t least = 0
        cdef size_t at
        if count == 0:
            return heap
        for at in range(tally.room):
            if tally.keys[at] == 0 or tally.counts[at] < least:
                continue
            if <uint32_t>len(heap) < count:
                heapq.heappush(heap, (tally.counts[at], tally.keys[at]))
            else:
                heapq.heappushpop(heap, (tally.counts[at], tally.keys[at]))
            if <uint32_t>len(heap) == count:
                least = heap[0][0]
        named = [(self._cell_text(cell - 1), number) for number, cell in sorted(heap, reverse=True)]
        return [(text, number) for text, number in named if text is not None]

    cdef str _cell_text(self, uint32_t cell):
        # None where the text has left meanwhile.
        cdef char copied[MAX_CELL]
        cdef uint32_t length
        cdef Text *text
        cdef bint is_there
        if not cell & IS_TEXT:
            return str(cell)
        pthread_mutex_lock(&self.lock)
        text = <Text *>row_at(&self.texts, cell & ~IS_TEXT)
        is_there = text.refs != 0
        if is_there:
            length = text.length
            memcpy(copied, text_bytes(text), length)
        pthread_mutex_unlock(&self.lock)
        if not is_there:
            return None
        return unescaped(copied[:length].decode())

    # -- which connections have most ------------------------------------------------------------

    def top(self, uint32_t family, uint32_t count, Snapshot since=None, str containing=""):
        """Return the connections of the first view that have most of one of its families.

        :param family: its position among the first view's.
        :param count: how many connections, up to 65,536.
        :param since: rank by what a counter has grown by since then, and not by the whole.
        :param containing: leave out connections of which no label has this in it, as it stands on
            the page.
        :returns: triples of the rank, the values of the labels, and those of the view's families
            in their order, undivided by their decimals: None where there is no such series. The
            greatest rank first. A counter's is the sum of both directions, a gauge's the larger.

        Without connections that have no such value or did not grow, and with `since` without those
        that came back later with the counters they had. Takes some 10 ns a connection, and up to
        30 ns a label with `containing`, without the GIL; may be called from any thread. Connections
        that change meanwhile may be seen before or afterwards.
        """
        cdef Ranking ranking
        cdef uint32_t i
        cdef char *texts = NULL
        cdef int64_t *values = NULL
        cdef bytes part = containing.encode()
        if count > MAX_RANKED:
            raise ValueError(f"not more than {MAX_RANKED} connections at once")
        ranking.family = self._family_of_first(family)
        ranking.is_gauge = self._is_gauge(family)
        ranking.since = NULL
        if since is not None:
            if since.table is not self or since.family != family:
                raise ValueError("the snapshot is of something else")
            ranking.since = &since.kept
        ranking.part = part
        ranking.part_length = len(part)
        ranking.count = 0
        ranking.room = count
        ranking.heap = <Ranked *>self._allocate(count * sizeof(Ranked))
        try:
            texts = <char *>self._allocate(self.views[0].columns * MAX_CELL)
            values = <int64_t *>self._allocate(2 * self.family_count * sizeof(int64_t))
            with nogil:
                self._rank(&ranking)
            qsort(ranking.heap, ranking.count, sizeof(Ranked), compare_ranks)
            found = []
            for i in range(ranking.count):
                shown = self._shown(&ranking.heap[i], texts, values)
                if shown is not None:
                    found.append(shown)
            return found
        finally:
            free(ranking.heap)
            free(texts)
            free(values)

    def snapshot(self, uint32_t family):
        """Keep what connections of the first view have now of a counter's family, for `top`.

        Takes some 10 ns a connection without the GIL, and 12 bytes for as long as it is kept.

        :raises ValueError: for a gauge, which does not grow.
        :raises MemoryError: there is no room for it.
        """
        cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
        cdef uint32_t row = 1
        cdef const Family *kept = self._family_of_first(family)
        if self._is_gauge(family):
            raise ValueError("a gauge does not grow")
        snapshot.table = self
        snapshot.family = family
        snapshot.kept.rows = self._fresh(&self.views[0].rows)
        snapshot.kept.values = <int64_t *>malloc(snapshot.kept.rows * sizeof(int64_t))
        snapshot.kept.hashes = <uint32_t *>malloc(snapshot.kept.rows * sizeof(uint32_t))
        if snapshot.kept.values == NULL or snapshot.kept.hashes == NULL:
            raise MemoryError
        with nogil:
            while row < snapshot.kept.rows:
                pthread_mutex_lock(&self.lock)
                row = self._keep_rows(kept, row, &snapshot.kept)
                pthread_mutex_unlock(&self.lock)
        return snapshot

    cdef const Family *_family_of_first(self, uint32_t family) except NULL:
        if family >= self.family_count or self.families[family].view != 0:
            raise IndexError("the first view has no such family")
        return &self.families[family]

    cdef bint _is_gauge(self, uint32_t family):
        return self.plan.views[0].families[family].type == "gauge"

    cdef uint32_t _keep_rows(self, const Family *family, uint32_t row,
                             Kept *kept) noexcept nogil:
        cdef const View *view = &self.views[0]
        cdef uint32_t stop = min(kept.rows, row + RENDER_ROWS)
        cdef Connection *connection
        while row < stop:
            if row + AHEAD < view.rows.fresh:
                prefetch(row_at(&view.rows, row + AHEAD))
            connection = self._row(view, row)
            kept.values[row] = self._rank_of(family, connection, False)
            kept.hashes[row] = connection.hash
            row += 1
        return row

    cdef inline int64_t _rank_of(self, const Family *family, Connection *row,
                                 bint is_gauge) noexcept nogil:
        # -1 where the row is free or has no such series.
        cdef const View *view = &self.views[0]
        cdef int64_t value, second
        if row.deadline_s == 0:
            return -1
        value = self._value(family, view, row, 0)
        if value <= family.absent:
            value = -1
        if family.sides == 2:
            second = self._value(family, view, row, 1)
            if second > family.absent:
                if is_gauge or value < 0:
                    value = max(value, second)
                else:
                    add(&value, second)
        return value

    cdef void _rank(self, Ranking *ranking) noexcept nogil:
        cdef uint32_t row = 1
        while row:
            pthread_mutex_lock(&self.lock)
            row = self._rank_rows(ranking, row)
            pthread_mutex_unlock(&self.lock)

    cdef uint32_t _rank_rows(self, Ranking *ranking, uint32_t row) noexcept nogil:
        # Look at some rows; the one to go on with, or 0.
        cdef const View *view = &self.views[0]
        cdef const Kept *since = ranking.since
        cdef uint32_t stop = min(view.rows.fresh, row + RENDER_ROWS)
        cdef Connection *connection
        cdef int64_t rank
        while row < stop:
            if row + AHEAD < view.rows.fresh:
                prefetch(row_at(&view.rows, row + AHEAD))
            connection = self._row(view, row)
            rank = self._rank_of(ranking.family, connection, ranking.is_gauge)
            if since != NULL:
                if (row < since.rows and since.hashes[row] == connection.hash
                        and 0 <= since.values[row] <= rank):
                    rank -= since.values[row]
                elif connection.flows & BACK:
                    rank = -1           # the counter that it began with is not known
                if rank == 0:
                    rank = -1
            if (rank >= 0 and (ranking.count < ranking.room
                               or (ranking.room and rank > ranking.heap[0].rank))
                    and self._has_part(view, connection, ranking)):
                rank_add(ranking, rank, row, connection.hash)
            row += 1
        return row if row < view.rows.fresh else 0

    cdef bint _has_part(self, const View *view, Connection *row,
                        const Ranking *ranking) noexcept nogil:
        cdef const uint32_t *cells = self._cells(view, row)
        cdef char digits[2 * MAX_INTEGER_DIGITS]
        cdef const char *text
        cdef const Text *interned
        cdef uint32_t i, length
        if ranking.part_length == 0:
            return True
        for i in range(view.columns):
            if cells[i] & IS_TEXT:
                interned = <const Text *>row_at(&self.texts, cells[i] & ~IS_TEXT)
                text = text_bytes(interned)
                length = interned.length
            else:
                text = digits
                length = <uint32_t>(put_number(digits, cells[i]) - digits)
            if memmem(text, length, ranking.part, ranking.part_length) != NULL:
                return True
        return False

    cdef tuple _shown(self, const Ranked *ranked, char *texts, int64_t *values):
        # Rank, labels and values of a row; None where it is gone or another's. `texts` and `values`
        # have room for its own: nothing is allocated under the lock.
        cdef const View *view = &self.views[0]
        cdef Connection *row
        cdef const uint32_t *cells
        cdef uint32_t lengths[MAX_VIEW_COLUMNS]
        cdef const Text *text
        cdef const Family *family
        cdef uint32_t i, side, count = 0
        cdef bint is_there
        pthread_mutex_lock(&self.lock)
        row = self._row(view, ranked.row)
        is_there = row.deadline_s != 0 and row.hash == ranked.hash
        if is_there:
            cells = self._cells(view, row)
            for i in range(view.columns):
                if cells[i] & IS_TEXT:
                    text = <const Text *>row_at(&self.texts, cells[i] & ~IS_TEXT)
                    lengths[i] = text.length
                    memcpy(texts + i * MAX_CELL, text_bytes(text), text.length)
                else:
                    lengths[i] = <uint32_t>(
                        put_number(texts + i * MAX_CELL, cells[i]) - (texts + i * MAX_CELL)
                    )
            for i in range(self.family_count):
                family = &self.families[i]
                if family.view:
                    break
                for side in range(family.sides):
                    values[count] = self._value(family, view, row, side)
                    if values[count] <= family.absent:
                        values[count] = -1
                    count += 1
        pthread_mutex_unlock(&self.lock)
        if not is_there:
            return None
        labels = [
            unescaped(texts[i * MAX_CELL:i * MAX_CELL + lengths[i]].decode())
            for i in range(view.columns)
        ]
        shown = [values[i] if values[i] >= 0 else None for i in range(count)]
        return ranked.rank, tuple(labels), tuple(shown)

    # -- counts ---------------------------------------------------------------------------------

    # All but the first are for the thread that updates.

    @property
    def connections(self):
        """Connection rows of the first view in use. Any thread may ask."""
        cdef uint32_t live
        with nogil:
            pthread_mutex_lock(&self.lock)
            live = self.views[0].rows.live
            pthread_mutex_unlock(&self.lock)
        return live

    @property
    def view_connections(self):
        """The same of each further view."""
        cdef uint32_t i
        return tuple(self.views[i].rows.live for i in range(1, self.view_count))

    @property
    def flows(self):
        """Flows that connections consist of: the live ones."""
        return self._live_flows()

    @property
    def dormant_flows(self):
        """Flows that are not live, but whose totals are known."""
        return self.dormant.count + self.ended.count - self.kept_connections

    @property
    def dormant_connections(self):
        """Connections that have left, whose counters are kept in rows of their own."""
        return self.kept_connections

    def dormant_uuids(self):
        """Return the UUIDs of the dormant flows, the first to be forgotten of each list first."""
        cdef uint32_t number
        cdef Flow *flow
        cdef uint64_t key
        uuids = []
        for number in (self.ended.head, self.dormant.head):
            while number:
                flow = self._flow(number)
                if flow.connection & TEXT_KEY:
                    uuids.append(unescaped_key(<Text *>row_at(&self.texts, flow.key_high)))
                elif not flow.connection & LABELS_KEY:
                    key = (<uint64_t>flow.key_high << 32) | flow.hash
                    uuids.append(f"{unmixed(key) ^ self.seed:x}")
                number = flow.wheel_next
        return uuids

    def known(self, str uuid):
        """Return what is known of a flow: its totals, and the time of its latest report.

        :returns: None, or a tuple of the plan's counters (-1 where no report had one), the latest
            ``Last`` in Unix milliseconds and the time of the latest report in seconds of the
            caller's clock, up to a second later; of a dormant flow, up to a time-out earlier.
        """
        cdef Report report
        cdef const char *text
        cdef uint32_t length, i
        cdef uint64_t number
        cdef Flow *flow
        if read_text(<PyObject *>uuid, &text, &length) or length == 0:
            return None
        report.key_text = NULL
        if parse_key(text, length, &number):
            report.key = mixed(number ^ self.seed)
        else:
            report.key_text = text
            report.key_length = length
        report.flow = self._known(&report)
        if report.flow == 0:
            return None
        flow = self._flow(report.flow)
        reported_s = <double>flow.deadline_s
        if flow.connection & DORMANT:
            reported_s -= floor(self.least_timeout_s)
        else:
            reported_s -= floor(self.views[0].timeout_s)
        totals = tuple((<const int64_t *>(flow + 1))[i] for i in range(self.counters))
        return totals, flow.last_ms, reported_s

    @property
    def horizon_s(self):
        """The time of the latest report of any flow that was forgotten.

        Seconds of the caller's clock, None before `begin`. Unknown flows that began later were
        never counted.
        """
        return self.horizon_s_ if self.begun else None

    @property
    def flow_update_s(self):
        """The agents' ``flow.update``, in seconds: how late a flow's first report can be."""
        return self.flow_update_s_

    @flow_update_s.setter
    def flow_update_s(self, double seconds):
        self.flow_update_s_ = seconds

    @property
    def bytes(self):
        """Memory that the rows, indexes and texts hold, in bytes, whether in use or free."""
        return self.arena.bytes

    @property
    def row_bytes(self):
        """Memory that a connection of one flow takes in the first view, its texts left out."""
        cdef uint32_t taken = self.flow_rows.stride + self.views[0].rows.stride
        cdef uint32_t rows = 2
        if self.converses:
            taken += self.conversations.stride
            rows += 1
        return taken + rows * BUCKETS_PER_ROW * sizeof(uint32_t)

    @property
    def created_total(self):
        """Connections of the first view that were ever created."""
        return self.connections_created

    @property
    def expired_total(self):
        """Connections of the first view that left."""
        return self.expired

    @property
    def rejected_total(self):
        """Reports that found no room for the connection they would have created."""
        return self.rejected

    @property
    def view_rejected_totals(self):
        """The same of each further view."""
        cdef uint32_t i
        return tuple(self.views[i].rejected for i in range(1, self.view_count))

    @property
    def overflowed_total(self):
        """Reports that were added up in the connection of what finds no room."""
        return self.overflow_reports

    @property
    def skipped(self):
        """Flows that changed nothing, by reason."""
        cdef uint32_t i
        return {
            self.skip_names[i]: self.skips[i]
            for i in range(1, SKIP_REQUIRED + self.requirements)
        }

    @property
    def late_total(self):
        """Reports that were skipped as ``late``."""
        return self.skips[SKIP_LATE]

    @property
    def values_skipped(self):
        """Values that were left out of reports which counted otherwise, by field."""
        cdef uint32_t i
        return {
            name: self.values_left_out[i]
            for i, name in enumerate(self.field_names)
            if name is not None
        }

    @property
    def finished(self):
        """Reports whose ``FinishType`` was set, by its meaning, whether they were news or not."""
        cdef uint32_t i
        return {FINISH_NAMES[i]: self.finishes[i] for i in range(4)}

    @property
    def times_ms(self):
        """The earliest and the latest ``Last`` in the latest `update`, in Unix milliseconds.

        Reports that have none are left out; without any, the latest is 0 and before the earliest.
        """
        return self.oldest_ms, self.newest_ms

    @property
    def met_unknown_flow(self):
        """Whether the latest `update` met a flow that the table did not know."""
        return self.met_unknown

    @property
    def reads_slots(self):
        """Whether fields are read at their offsets, or as attributes."""
        return self.slots


cdef enum:
    # Outcomes of `_apply_unknown` beside the reasons to skip.
    APPLY_STOP = MAX_SKIPS
    APPLY_NO_MEMORY


cdef int compare_changes(const void *one, const void *other) noexcept nogil:
    cdef const Change *a = <const Change *>one
    cdef const Change *b = <const Change *>other
    return (a.key > b.key) - (a.key < b.key)


cdef inline uint64_t text_key(uint32_t text) noexcept nogil:
    # The key of a flow whose UUID is an interned text: its number above, a hash of that below.
    return (<uint64_t>text << 32) | <uint32_t>mixed(text)


cdef inline uint32_t flows_of(const Connection *row) noexcept nogil:
    return row.flows & ~BACK


cdef inline bint keeps(int kind, int64_t value, int64_t kept) noexcept nogil:
    # Whether a gauge of this kind takes a new value, which is not 0.
    if kind == KEEP_LATEST or kept == 0:
        return True
    return value < kept if kind == KEEP_LEAST else value > kept


cdef inline void add(int64_t *total, int64_t amount) noexcept nogil:
    # Saturating: a counter that cannot grow stays, where wrapping would be a reset.
    cdef int64_t base = max(total[0], <int64_t>0)
    if unlikely(amount == ABSENT):
        return
    if unlikely(base > INT64_MAX - amount):
        total[0] = INT64_MAX
    else:
        total[0] = base + amount


cdef str unescaped(str text):
    return ESCAPES.sub(lambda match: UNESCAPED[match[0]], text) if "\\" in text else text


@cython.final
cdef class Snapshot:
    """What each connection had of one family at some time: see `Table.snapshot`."""

    cdef Table table
    cdef uint32_t family
    cdef Kept kept

    def __dealloc__(self):
        free(self.kept.values)
        free(self.kept.hashes)

    @property
    def bytes(self):
        """Memory that it holds."""
        return self.kept.rows * (sizeof(int64_t) + sizeof(uint32_t))


def line_literals(metric, columns, direction):
    """Return what stands before, between and behind the label values of a line.

    One list for each value of `direction`, or one where that is None. `columns` are the other
    labels' names. Each list has one literal more than there are columns; the last one ends where
    the sample's value begins.
    """
    if direction is None:
        names = [f'{name}="' for name in columns]
        if not names:
            return [[f"{metric} "]]
        return [[f"{metric}{{{names[0]}", *(f'",{name}' for name in names[1:]), '"} ']]
    sides = []
    for value in direction.values:
        literals = []
        text = metric + "{"
        for at in range(len(columns) + 1):
            if at == direction.position:
                text += f'{direction.name}="{value}"' + ("," if at < len(columns) else "")
            if at < len(columns):
                literals.append(f'{text}{columns[at]}="')
                last = at + 1 == len(columns) and direction.position != at + 1
                text = '"' if last else '",'
        literals.append(text + "} ")
        sides.append(literals)
    return sides


include "table/counter.pxi"


@cython.final
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
