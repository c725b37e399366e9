# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table: flows, connections, expiry and rendering, without clock, sockets or logging.

Data structures
    Two levels. A *flow* row is one report stream of an agent, identified by its UUID, with its
    latest totals. A *connection* row is one label tuple of the page; its values are sums of the
    deltas of its flows. Label values are numbers: an interned string (bit 31 set) or a small
    integer. There is one set of connection rows per view of the plan. A flow links to its row of
    the first view. That row links to the rows of views whose labels are a subset of its own,
    because all its flows share them. For other views, the flow row has the link. All kinds of rows
    (strings, flows, connections, conversations) use the same slab allocator and index (`Rows`):
    linear hashing, which splits one bucket at a time, so that no insert has to rehash a million
    rows. The structs are in ``_table.pxd``.

    A timer wheel has one slot per second. A flow is in the slot of the deadline that it had when
    it was added to the wheel; a report only writes a later deadline into the row. When the slot is
    due, the flow is added again or becomes dormant. A connection of the first view is removed with
    its last live flow. The other views have wheels for their connections, which are kept longer
    than their flows.

    A *dormant* flow keeps its row, its key and its totals, but is not part of a connection: its
    next report adds the difference to these totals. Dormant rows are in one of two lists, in the
    order in which they became dormant. The list links reuse the fields that link a live flow to
    its connection and its wheel slot, so rows need no extra space. The first row of a list is the
    first to be forgotten, when its time is over or another flow needs the space. If a removed
    connection's counters differ from the totals of its last flow, a dormant row keeps them too,
    keyed by a hash of the labels. See ``table/dormant.pxi``.

Costs
    Report of a known flow: one lookup, two cache lines of rows. Report of a new or a dormant flow:
    two lookups, plus one per label string. Expiry: the expired rows, plus one re-insertion per
    flow and timeout. Adding to or removing from a dormant list: constant time. Page: one pass over
    all connections per family.

Memory
    Slabs and index segments are allocated from an arena of large pieces (`Arena`), strings longer
    than 48 bytes with malloc. Slabs and segments are kept until the table is destroyed; freed rows
    are reused first. The table keeps no Python objects per flow or connection, only the plan and
    the names and types of fields. If an allocation fails, `update` raises MemoryError, and the
    current flow has no effect.

Lock
    One mutex, held for a batch of reports, a slice of expiry, or up to RENDER_ROWS connections of
    a page. Only one thread may call `update`, `expire` and `relabel`; no other thread changes
    rows, so it reads them without the lock. Any thread may read pages. A thread that holds the
    mutex never waits for the GIL: all code under the mutex is plain C, because a thread that has
    the GIL may be waiting for the mutex. Even memory is allocated with C functions: Python's may
    take the GIL if allocations are traced.

Files
    This file contains `Table`, the interface for Python, its state, and the constants that several
    files share. Its methods are implemented in ``table/``, one file per concern, as free functions
    on `TableState`. Cython includes these files, because the C compiler can only inline small
    functions within one unit. ``include`` is not possible in a class body, so the state is a
    struct.

    Structures that do not depend on the table:
        ``rows`` (arena, slabs, index), ``strings`` (hashes, interned strings), ``fields`` (reading
        decoded flows), ``text_format`` (writing lines), ``timer_wheel``, ``top_k``, ``counter``.
    Kinds of rows:
        ``labels``, ``flows``, ``connections``, ``conversations``, ``dormant``, ``overflow``.
    Implementation of the methods of `Table`:
        ``layout`` (from a plan to offsets), ``reports``, ``lookup`` and ``update`` (the three steps
        of an update), ``expiry``, ``relabel``, ``render`` (pages), ``scan`` (label values, top
        connections, snapshots).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_SIZE
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
    PyObject *PyDict_GetItemWithError(PyObject *, PyObject *) except? NULL
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)
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
    /* GCC removes calls of functions that do nothing but prefetch: it considers them free of side
       effects. The empty assembler statement is one. */
    #define prefetch(address) do { __builtin_prefetch(address); __asm__ volatile (""); } while (0)
    #define likely(x) __builtin_expect(!!(x), 1)
    #define unlikely(x) __builtin_expect(!!(x), 0)
    """
    void prefetch(const void *) noexcept nogil
    bint likely(bint) noexcept nogil
    bint unlikely(bint) noexcept nogil


MAX_NUMBER = 1 << 62            # largest valid number in a field of a flow

cdef enum:
    # Fields besides the values that are omitted if they are invalid.
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
    MAX_FIELDS = 4 * MAX_VALUES + MARKS     # fields that can be omitted
    INLINE_STRING = 48
    FLOW_TYPES = 3
    BATCH = 128                 # reports per acquisition of the lock
    ROOM_ROWS = 2               # dormant rows that one report can replace by its own
    BUCKETS_PER_ROW = 2         # target size of the index: short chains, and 8 bytes per row
    CACHE_LINE = 64

# Sizes and steps of growth. _checked.pyx has smaller ones, so that a few rows cover all of them,
# and tells the sanitizer which rows are in use.
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
        RENDER_ROWS             # connections per acquisition of the lock
        AHEAD                   # distance of prefetches, in connections or buckets
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


cdef uint32_t IS_STRING = <uint32_t>1 << 31       # flag in a cell
cdef uint32_t STRING_KEY = <uint32_t>1 << 31      # flag in `Flow.connection`, like the next three
cdef uint32_t LABELS_KEY = <uint32_t>1 << 30
cdef uint32_t DORMANT = <uint32_t>1 << 29
cdef uint32_t ENDED = <uint32_t>1 << 28
cdef uint32_t ROW = ((<uint32_t>1) << 28) - 1   # mask of the row number next to these flags
cdef uint32_t BACK = <uint32_t>1 << 31          # flag in `Connection.flows`
cdef int64_t ABSENT = -1                        # optional counter: no report had the part
cdef uint32_t FLOWS = <uint32_t>-1              # in `Family.values`: the row's number of flows
cdef uint32_t NEVER_S = <uint32_t>-1            # deadline of rows that do not expire
cdef uint32_t NO_END = <uint32_t>-1             # end of a scan of all rows
cdef uint64_t SHARE_SEED = 0x9E3779B97F4A7C15   # must never change: shards would overlap
cdef uint32_t MAX_SEQ_AGE = <uint32_t>1 << 30   # see `clamp_seq_age`

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
    SKIP_REQUIRED               # plus one for each requirement of the plan
    MAX_SKIPS = 32

cdef tuple SKIP_NAMES = (
    "", "invalid", "no_uuid", "out_of_range", "text_too_long", "late", "duplicate", "table_full",
    "other_shard", "ended",
)
cdef tuple FINISH_NAMES = ("other", "timeout", "fin", "rst")

cdef enum:
    CLOSING = 1                 # FinishType of a flow's last report; updates have others

# The maximum delay of a report, in addition to the time until its agent's next update: an analyzer
# keeps a batch for up to 5 s; the rest is for transport, and for sockets that have not been read
# yet.
cdef double BATCH_S = 15.0

cdef enum:
    # What an unknown flow's report adds to a row that other flows may have used.
    WORTH_UNREAD                # not known: its type lacks the fields that identify a first report
    WORTH_TOTAL
    WORTH_LAST_UPDATE               # deltas of its last update
    WORTH_LAST_UPDATE_UNREAD        # the same, but its type lacks them

cdef enum:
    # How a report changes a flow whose totals are known.
    NOTHING_NEW
    GREW
    STARTED_OVER

cdef enum:
    KEEP_LATEST
    KEEP_LEAST
    KEEP_MOST

cdef tuple GAUGE_KINDS = ("latest", "least", "most")

cdef str EMPTY = ""
cdef object END = object()      # what an iterator gives at its end
cdef object ESCAPES = re.compile(r"\\(.)", re.DOTALL)
cdef dict UNESCAPED = {r"\\": "\\", r'\"': '"', r"\n": "\n"}


include "table/rows.pxi"
include "table/strings.pxi"
include "table/fields.pxi"
include "table/text_format.pxi"
include "table/timer_wheel.pxi"
include "table/top_k.pxi"
include "table/counter.pxi"


cdef struct Batch:
    # Reports that are being processed: read with the GIL, looked up, applied under the lock.
    Report reports[BATCH]
    uint32_t size
    int64_t *values             # BATCH x the plan's values; used by the reports, like the next two
    int64_t *last_update        # BATCH x the plan's counters
    Cell *cells                 # BATCH x the plan's cells
    # String keys of flows that are removed while the batch is applied, to be released after it: a
    # label of the batch may have been looked up as the same string. A report can remove its own
    # flow, too.
    uint32_t dead_strings[(ROOM_ROWS + 1) * BATCH]
    uint32_t dead_string_count
    int64_t oldest_ms, newest_ms    # range of `Last` in the latest update


cdef struct TableState:
    pthread_mutex_t lock
    # rows
    Arena arena
    Rows strings
    Rows flow_rows
    Rows conversations
    View *views                 # the first one contains the connections
    uint32_t view_count
    TimerWheel wheel            # live flows by deadline
    DormantList dormant         # flows, and counters of removed connections
    DormantList ended           # flows that have sent their closing report
    uint32_t kept_connections   # rows of `dormant` that have a connection's counters
    uint64_t next_seq           # sequence number for the next connection row of any view
    # layout: set when the table is created
    uint64_t seed               # seed of all hashes except those for sharding
    uint32_t counters, values   # numbers per flow
    uint32_t columns, cells     # labels of all views; the same plus the strings that lookups use
    uint32_t looked_up          # the first columns are labels of lookups
    uint32_t lookup_count
    uint32_t requirements
    bint optional[MAX_VALUES]
    int keeps[MAX_VALUES]       # kinds of gauges: KEEP_LATEST, ...
    bint converses              # whether there are conversation rows
    uint64_t share, shares      # index and number of shards; 0 of 1 is everything
    uint32_t links_at           # offset of the links in a flow row, in bytes
    uint32_t keys_at            # index of the lookups' strings there; a conversation has index 0
    Family *families
    uint32_t family_count
    size_t max_lines            # maximum size of a connection's lines, in bytes
    # numbers of the fields of values that can be omitted
    uint32_t value_fields[2 * MAX_VALUES]
    uint32_t last_update_fields[2 * MAX_VALUES]
    uint32_t mark_fields[MARKS]
    # limits
    uint32_t max_flows, max_connections
    double memory_s             # time until a dormant flow is forgotten
    double least_timeout_s      # shortest timeout the first view has had
    double flow_update_s
    bint begun                  # whether there is a horizon
    double horizon_s            # unknown flows that began later were never counted
    # overflow
    bint overflows              # whether flows without room are added up in overflow rows
    bint overflowed             # ... and whether this has happened
    const char *other_text      # label value of overflow rows
    uint32_t other_length
    # current update
    Batch *batch                # while it is applied, otherwise NULL
    double now                  # time of the latest update or expiry
    bint met_unknown            # whether the latest update included an unknown flow
    # counts
    uint64_t connections_created
    uint64_t expired
    uint64_t rejected
    uint64_t overflow_reports
    uint64_t values_left_out[MAX_FIELDS]
    uint64_t skips[MAX_SKIPS]
    uint64_t finishes[4]
    # lookups: set when the table is created
    Lookup lookups[MAX_COLUMNS]
    uint32_t name_indexes[MAX_COLUMNS]  # by column of a lookup: index in the result


include "table/labels.pxi"
include "table/flows.pxi"
include "table/connections.pxi"
include "table/conversations.pxi"
include "table/dormant.pxi"
include "table/overflow.pxi"
include "table/layout.pxi"
include "table/reports.pxi"
include "table/lookup.pxi"
include "table/update.pxi"
include "table/expiry.pxi"
include "table/relabel.pxi"
include "table/render.pxi"
include "table/scan.pxi"


@cython.final
cdef class Table:
    """The flows and connections of one plan.

    :param plan: labels, values and families (`skyfast.flows.plan.Plan`).
    :param types: the structs that `update` accepts (`skyfast.flows.fields.flow_types` of the same
        plan).
    :param slots: read the structs' slots at their offsets if this is verified to work; with False,
        fields are read as attributes. The results are the same.

    The other parameters are those of `set_limits`. Every `now` is a time in seconds that never runs
    backwards; its origin does not matter.
    """

    cdef TableState state
    cdef Batch batch
    cdef Reader *readers                # for the plan's Update, FirstReport, FullReport
    cdef object plan
    cdef bint wants_slots
    cdef list keep                      # owns the objects that `Field` borrows
    cdef list held                      # owns the results of rewrites and lookups for a batch
    cdef list field_names
    cdef bytes other                    # label value of overflow rows
    cdef tuple skip_names
    cdef tuple label_names

    def __cinit__(self, plan, types, *, max_connections, max_flows, timeout_s, memory_s=0,
                  view_timeouts_s=(), slots=True):
        pthread_mutex_init(&self.state.lock, NULL)
        if (not 0 < len(plan.views) <= MAX_VIEWS
                or len(plan.counters) + len(plan.gauges) > MAX_VALUES
                or len(plan.requirements) > MAX_SKIPS - SKIP_REQUIRED):
            raise ValueError("the plan has more than the table can keep")
        number_values(&self.state, plan)
        self.skip_names = SKIP_NAMES + tuple(r.reason for r in plan.requirements)
        self.label_names = tuple(column.name for column in plan.views[0].columns)
        self.state.converses = plan.conversation is not None
        self.state.shares = 1
        if plan.share is not None:
            if not 0 <= plan.share.index < plan.share.count:
                raise ValueError("there is no such share")
            self.state.share = plan.share.index
            self.state.shares = plan.share.count
        self.state.overflows = plan.overflow is not None
        self.other = (plan.overflow or "").encode()
        self.state.other_text = self.other
        self.state.other_length = len(self.other)
        if (len(self.other) > MAX_TEXT
                or needs_escape(self.state.other_text, self.state.other_length)):
            raise ValueError("the text for what finds no room is too long, or not plain")
        self.state.seed = int.from_bytes(os.urandom(8), "little")
        self.plan = plan
        self.held = []
        self.wants_slots = slots
        number_columns(&self.state, plan)
        prepare_lookups(&self.state, plan)
        self.field_names = number_fields(&self.state, plan)
        self.state.least_timeout_s = timeout_s
        self.state.flow_update_s = 60

        batch_allocate(&self.batch, &self.state)
        if not rows_init(&self.state.strings, &self.state.arena, sizeof(String)):
            raise MemoryError
        self.set_flow_types(types)
        prepare_views(&self.state, plan)
        prepare_families(&self.state, plan)
        wheel_allocate(&self.state.wheel, timeout_s)
        self.set_limits(max_connections=max_connections, max_flows=max_flows, timeout_s=timeout_s,
                        memory_s=memory_s, view_timeouts_s=view_timeouts_s)

    def __dealloc__(self):
        state_destroy(&self.state)
        batch_destroy(&self.batch)
        free(self.readers)

    # -- set-up ---------------------------------------------------------------------------------

    def set_limits(self, *, max_connections, max_flows, timeout_s, memory_s=0, view_timeouts_s=()):
        """Set the limits, initially or later. Existing rows are kept.

        :param max_connections: maximum number of rows per view; flows that need another row are
            rejected or, with an overflow row, added up there.
        :param max_flows: maximum number of flow rows. A new live flow can replace a dormant one.
            After the limit is lowered, `expire` forgets surplus dormant flows.
        :param timeout_s: a flow becomes dormant after this long without a report, rounded up to a
            full second; a change applies from the flow's next report.
        :param memory_s: a dormant flow is forgotten after this long, rounded up; 0 means
            immediately.
        :param view_timeouts_s: timeouts of the connections in the second and further views, each at
            least `timeout_s`.
        """
        cdef uint32_t i
        if not 0 < max_connections <= MAX_ROWS or not 0 < max_flows <= MAX_ROWS:
            raise ValueError(f"max_connections and max_flows are 1 to {MAX_ROWS}")
        if not 0 < timeout_s <= 1 << 30:
            raise ValueError("timeout_s is above 0 and at most 2^30")
        if not 0 <= memory_s <= 1 << 30:
            raise ValueError("memory_s is 0 to 2^30")
        if len(view_timeouts_s) != self.state.view_count - 1:
            raise ValueError("there is one timeout for each view but the first")
        if not all(timeout_s <= each <= 1 << 30 for each in view_timeouts_s):
            raise ValueError("a view's timeout is at least timeout_s and at most 2^30")
        self.state.max_connections = max_connections
        self.state.max_flows = max_flows
        self.state.memory_s = memory_s
        self.state.least_timeout_s = min(self.state.least_timeout_s, <double>timeout_s)
        self.state.views[0].timeout_s = timeout_s
        for i in range(1, self.state.view_count):
            self.state.views[i].timeout_s = view_timeouts_s[i - 1]
            if self.state.views[i].wheel.slots == NULL:
                wheel_allocate(&self.state.views[i].wheel, self.state.views[i].timeout_s)

    def begin(self, now):
        """Assume that unknown flows that begin after `now` have never been counted.

        Call this when reports begin to arrive, and when flows arrive that were excluded before.
        Until the first call, no unknown flow's total counts for this reason.
        """
        self.state.horizon_s = max(self.state.horizon_s, <double>now) if self.state.begun else now
        self.state.begun = True

    def set_flow_types(self, types):
        """Accept flows of these types from now on, and no others. They must be of the same plan."""
        cdef Reader *readers = <Reader *>allocate(FLOW_TYPES * sizeof(Reader))
        cdef list keep = []
        try:
            resolve_readers(readers, types, self.plan, self.wants_slots, keep)
        except BaseException:
            free(readers)
            raise
        free(self.readers)
        self.readers = readers
        self.keep = keep

    # -- reports --------------------------------------------------------------------------------

    def update(self, list flows not None, double now, Py_ssize_t start=0):
        """Apply ``flows[start:]`` in order; return the index after the last flow applied.

        :param flows: instances of one of the plan's types, all of the same one.
        :returns: ``len(flows)``, or the index of the first flow that requires its
            ``LastUpdateMetric`` if the flows' type does not have it. Flows from this index on were
            not applied or counted: decode again as ``FullReport``, and continue from this index.
        :raises TypeError: a value is of another type; the flows before it were applied.
        :raises MemoryError: an allocation failed; flows before the current one were applied.
        :raises ValueError: ``start`` is negative.

        Exceptions of a column's rewrite or names propagate. Some flows before the one being
        processed may have been applied; none after it has.

        The rules are those of docs/architecture.md. A known flow adds its deltas. A report that is
        not newer, and in which no counter is higher, is late; if it is newer and any counter is
        lower, the flow has started over. A flow that was dormant adds its deltas to its rows. An
        unknown flow adds its total if this is its first report, if it cannot have been counted
        before, or if it creates a connection that is identified by its labels; otherwise it adds
        the deltas of its last update. Skipped flows are counted in `skipped`, omitted values in
        `values_skipped`.

        Takes the mutex once per 128 flows, and holds the GIL while waiting for it: at most for
        2,048 connections of another thread's page or scan, about 0.5 ms, or while `cardinality`
        enlarges a counter, about 20 ns per value in it.
        """
        cdef TableState *table = &self.state
        cdef Batch *batch = &self.batch
        cdef Py_ssize_t at = start
        cdef int done
        if start < 0:
            raise ValueError("start counts from the beginning")
        begin_update(table, batch, now)
        while at < PyList_GET_SIZE(flows):
            read_reports(table, self.readers, flows, at, batch)
            if batch.size == 0:
                raise TypeError(f"not a flow of this table's plan: {type(flows[at]).__name__}")
            look_up_flows(table, batch)
            try:
                read_unknown(table, self.readers, flows, at, batch, self.held)
            except BaseException:       # raised by a rewrite or names
                self.held.clear()
                raise
            look_up_labels(table, batch)
            pthread_mutex_lock(&table.lock)
            done = apply_batch(table, batch)
            pthread_mutex_unlock(&table.lock)
            if self.held:
                self.held.clear()
            if done < 0:
                raise MemoryError
            at += done
            if <uint32_t>done < batch.size:
                break
        return at

    # -- expiry ---------------------------------------------------------------------------------

    def expire(self, double now, uint32_t max_rows):
        """Make flows dormant at their deadlines, and remove connections without live flows.

        Flows that have been dormant for long enough, and those beyond the limit, are forgotten.

        :param max_rows: maximum number of rows and empty slots to visit, which limits the time:
            about 0.2 µs each.
        :returns: whether there is more to do at this `now`.

        A row is not on any page after its deadline, but stays known until this removes it: a report
        that was delayed until then continues it.
        """
        cdef bint more
        with nogil:
            pthread_mutex_lock(&self.state.lock)
            more = expire_slice(&self.state, <uint32_t>floor(now), max_rows)
            pthread_mutex_unlock(&self.state.lock)
        return more

    # -- names ----------------------------------------------------------------------------------

    def relabel(self, names, keys, Py_ssize_t budget):
        """Move flows to other connections after names have changed. Call this until it returns
        False.

        :param names: the mapping of lookups, which has changed already.
        :param keys: an iterator of the keys whose results have changed, which is advanced.
        :param budget: how many flows to move; no key is taken after this number is exceeded. A key
            counts as one, plus the references to its string: its flows, and connections that have
            it as a label.
        :returns: whether keys may be left; False without a lookup in `names`.
        :raises MemoryError: an allocation failed; some flows may still have their old labels.

        A new connection starts at zero. An existing one continues, and so does a removed one whose
        counters are kept. All flows of a call leave their connections before the first one is
        added to another. If a name is invalid, the flows with this key keep their labels.

        Exceptions of `names` and `keys` propagate; then no flow of this call has moved. Each call
        visits every flow, including dormant ones, which takes about 10 ns each, and 0.5 µs for each
        flow that moves. For an ambiguous key, `names` are called once for each different context.
        """
        cdef TableState *table = &self.state
        cdef Changes changes
        cdef bint more, done
        try:
            changes_init(table, &changes, names)
            if changes.lookup_count == 0:
                return False
            more = take_keys(table, &changes, names, keys, budget)
            if changes.key_count:
                find_moves(table, &changes)
                resolve_contexts(table, &changes, names)
                with nogil:
                    pthread_mutex_lock(&table.lock)
                    done = apply_moves(table, &changes)
                    pthread_mutex_unlock(&table.lock)
                if not done:
                    raise MemoryError
            return more
        finally:
            changes_destroy(table, &changes)

    # -- pages ----------------------------------------------------------------------------------

    def page(self, double now, openmetrics=False):
        """Begin a page: it shows connections that are alive at `now` and were created before this
        call.

        :param openmetrics: whether the families' heads are those of OpenMetrics 1.0, which requires
            suitable names, or of the text format 0.0.4. The samples are the same.

        It may be read from any thread, by one at a time, at any speed.
        """
        cdef Page page = Page.__new__(Page)
        page.table = self
        page.cursor.now_s = <uint32_t>floor(now)
        with nogil:
            pthread_mutex_lock(&self.state.lock)
            page.cursor.page_seq = <uint32_t>self.state.next_seq
            pthread_mutex_unlock(&self.state.lock)
        page.cursor.head = 1 if openmetrics else 0
        return page

    # -- label values ---------------------------------------------------------------------------

    def label_values(self):
        """Return the current number of different values for each label of the first view.

        Takes about a nanosecond per connection and label, without the GIL. Callable from any
        thread. Connections that are created or removed during the call may or may not be counted.
        """
        cdef View *view = &self.state.views[0]
        cdef uint32_t i
        cdef uint32_t strings
        cdef size_t words
        cdef uint64_t *seen
        cdef uint64_t *counts = NULL
        with nogil:
            strings = fresh_rows(&self.state, &self.state.strings)
        words = (strings + (1 << 16)) / 64 + 2
        seen = <uint64_t *>allocate(words * view.columns * sizeof(uint64_t))
        try:
            counts = <uint64_t *>allocate(view.columns * sizeof(uint64_t))
            with nogil:
                count_values(&self.state, strings, words, seen, counts)
            return {name: counts[i] for i, name in enumerate(self.label_names)}
        finally:
            free(seen)
            free(counts)

    def cardinality(self, uint32_t count, str without=None):
        """Return the number and frequency of label values of the first view, from one scan.

        :param count: how many of the most frequent values to return for each label.
        :param without: a label to ignore.
        :returns: the number of connections; for each label, its number of values and the `count`
            most frequent ones as (value, connections), most frequent first, without values removed
            during the call; and the number of connections without the label `without`, or None.

        Takes about 10 ns per connection and label, plus 30 ns per connection if a label is ignored,
        without the GIL. Uses 24 to 48 bytes per value of each label, plus the same per connection
        if a label is ignored. Callable from any thread. Connections that are created or removed
        during the call may or may not be counted.
        """
        cdef Counter counters[MAX_VIEW_COLUMNS + 1]    # the last one: connections without the label
        cdef uint32_t columns = self.state.views[0].columns
        cdef int32_t column = -1
        cdef uint32_t connections = 0
        cdef bint enough
        cdef uint32_t i
        if without is not None:
            column = self.label_names.index(without)
        for i in range(columns + 1):
            counter_init(&counters[i])
        try:
            with nogil:
                enough = count_cells(&self.state, counters, column, &connections)
            if not enough:
                raise MemoryError
            labels = {}
            for i in range(columns):
                labels[self.label_names[i]] = (
                    counters[i].used, commonest(&self.state, &counters[i], count)
                )
            return connections, labels, None if column < 0 else counters[columns].used
        finally:
            for i in range(columns + 1):
                counter_destroy(&counters[i])

    # -- top connections ------------------------------------------------------------------------

    def top(self, uint32_t family, uint32_t count, Snapshot since=None, str containing=""):
        """Return the top connections of the first view by the values of one of its families.

        :param family: its index among the first view's families.
        :param count: maximum number of connections, up to 65,536.
        :param since: rank by the growth of a counter since then, instead of by its value.
        :param containing: only connections with a label that contains this, including the escapes
            of a page.
        :returns: triples of the rank, the label values, and the values of the view's families in
            order, not divided by their decimals: None if there is no such series. Highest rank
            first. The rank of a counter is the sum of both directions, that of a gauge the larger
            one.

        Omits connections without such a value or, with `since`, without growth. With `since`, it
        also omits connections that were removed and created again later with their previous
        counters. Takes about 10 ns per connection, and up to 30 ns per label with `containing`,
        without the GIL. Callable from any thread. Connections that change during the call may be
        seen before or after the change.
        """
        cdef TopK top
        cdef uint32_t i
        cdef char *copies = NULL
        cdef int64_t *values = NULL
        cdef bytes part = containing.encode()
        if count > MAX_RANKED:
            raise ValueError(f"not more than {MAX_RANKED} connections at once")
        top.family = family_of_first(&self.state, family)
        top.is_gauge = self.plan.views[0].families[family].type == "gauge"
        top.since = NULL
        if since is not None:
            if since.table is not self or since.family != family:
                raise ValueError("the snapshot is of something else")
            top.since = &since.kept
        top.part = part
        top.part_length = len(part)
        top.count = 0
        top.room = count
        top.heap = <TopRow *>allocate(count * sizeof(TopRow))
        try:
            copies = <char *>allocate(self.state.views[0].columns * MAX_CELL)
            values = <int64_t *>allocate(2 * self.state.family_count * sizeof(int64_t))
            with nogil:
                find_top(&self.state, &top)
            qsort(top.heap, top.count, sizeof(TopRow), compare_ranks)
            found = []
            for i in range(top.count):
                shown = shown_row(&self.state, &top.heap[i], copies, values)
                if shown is not None:
                    found.append(shown)
            return found
        finally:
            free(top.heap)
            free(copies)
            free(values)

    def snapshot(self, uint32_t family):
        """Store the current values of a counter's family in the first view, for `top`.

        Takes about 10 ns per connection, without the GIL, and 12 bytes per connection while it
        exists.

        :raises ValueError: the family is a gauge, which does not grow.
        :raises MemoryError: an allocation failed.
        """
        cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
        cdef const Family *kept = family_of_first(&self.state, family)
        if self.plan.views[0].families[family].type == "gauge":
            raise ValueError("a gauge does not grow")
        snapshot.table = self
        snapshot.family = family
        with nogil:
            snapshot.kept.rows = fresh_rows(&self.state, &self.state.views[0].rows)
        snapshot.kept.values = <int64_t *>malloc(snapshot.kept.rows * sizeof(int64_t))
        snapshot.kept.hashes = <uint32_t *>malloc(snapshot.kept.rows * sizeof(uint32_t))
        if snapshot.kept.values == NULL or snapshot.kept.hashes == NULL:
            raise MemoryError
        with nogil:
            fill_snapshot(&self.state, kept, &snapshot.kept)
        return snapshot

    # -- counts ---------------------------------------------------------------------------------

    # Only the first may be read from any thread, all others only from the thread that updates.

    @property
    def connections(self):
        """Connection rows of the first view in use. Callable from any thread."""
        cdef uint32_t live
        with nogil:
            pthread_mutex_lock(&self.state.lock)
            live = self.state.views[0].rows.live
            pthread_mutex_unlock(&self.state.lock)
        return live

    @property
    def view_connections(self):
        """The same for each further view."""
        cdef uint32_t i
        return tuple(self.state.views[i].rows.live for i in range(1, self.state.view_count))

    @property
    def flows(self):
        """Live flows, which are part of connections."""
        return live_flows(&self.state)

    @property
    def dormant_flows(self):
        """Flows that are not live, but whose totals are known."""
        return self.state.dormant.count + self.state.ended.count - self.state.kept_connections

    @property
    def dormant_connections(self):
        """Removed connections whose counters are kept in rows of their own."""
        return self.state.kept_connections

    def dormant_uuids(self):
        """Return the UUIDs of the dormant flows, list by list, in the order in which they are
        forgotten.
        """
        cdef uint32_t number
        cdef Flow *flow
        cdef uint64_t key
        uuids = []
        for number in (self.state.ended.head, self.state.dormant.head):
            while number:
                flow = flow_at(&self.state, number)
                if flow.connection & STRING_KEY:
                    uuids.append(key_string(<String *>row_at(&self.state.strings, flow.key_high)))
                elif not flow.connection & LABELS_KEY:
                    key = (<uint64_t>flow.key_high << 32) | flow.hash
                    uuids.append(f"{unmix64(key) ^ self.state.seed:x}")
                number = flow.wheel_next
        return uuids

    def known(self, str uuid):
        """Return the known totals of a flow, and the time of its latest report.

        :returns: None, or a tuple of the plan's counters (-1 if no report had one), the highest
            ``Last`` in Unix milliseconds, and the time of the latest report in seconds of the
            caller's clock, up to a second too late; for a dormant flow, up to a timeout too early.
        """
        cdef FlowKey key
        cdef const char *text
        cdef uint32_t length, i, number
        cdef Flow *flow
        if read_text(<PyObject *>uuid, &text, &length) or length == 0:
            return None
        flow_key(&key, text, length, self.state.seed)
        number = find_flow(&self.state, &key)
        if number == 0:
            return None
        flow = flow_at(&self.state, number)
        reported_s = <double>flow.deadline_s
        if flow.connection & DORMANT:
            reported_s -= floor(self.state.least_timeout_s)
        else:
            reported_s -= floor(self.state.views[0].timeout_s)
        totals = tuple(totals_of(flow)[i] for i in range(self.state.counters))
        return totals, flow.last_ms, reported_s

    @property
    def horizon_s(self):
        """The time of the latest report of any flow that was forgotten.

        Seconds of the caller's clock, None before `begin`. Unknown flows that began later were
        never counted.
        """
        return self.state.horizon_s if self.state.begun else None

    @property
    def flow_update_s(self):
        """The agents' ``flow.update``, in seconds: the maximum delay of a flow's first report."""
        return self.state.flow_update_s

    @flow_update_s.setter
    def flow_update_s(self, double seconds):
        self.state.flow_update_s = seconds

    @property
    def bytes(self):
        """Memory of the rows, indexes and strings, in bytes, whether in use or free."""
        return self.state.arena.bytes

    @property
    def row_bytes(self):
        """Memory of a connection with one flow in the first view, in bytes, without its strings."""
        cdef uint32_t taken = self.state.flow_rows.stride + self.state.views[0].rows.stride
        cdef uint32_t rows = 2
        if self.state.converses:
            taken += self.state.conversations.stride
            rows += 1
        return taken + rows * BUCKETS_PER_ROW * sizeof(uint32_t)

    @property
    def created_total(self):
        """Connections of the first view that were ever created."""
        return self.state.connections_created

    @property
    def expired_total(self):
        """Connections that were removed from the first view."""
        return self.state.expired

    @property
    def rejected_total(self):
        """Reports that required a new connection in the first view when it was full."""
        return self.state.rejected

    @property
    def view_rejected_totals(self):
        """The same for each further view."""
        cdef uint32_t i
        return tuple(self.state.views[i].rejected for i in range(1, self.state.view_count))

    @property
    def overflowed_total(self):
        """Reports that were added up in the overflow row."""
        return self.state.overflow_reports

    @property
    def skipped(self):
        """Skipped flows, by reason."""
        cdef uint32_t i
        return {
            self.skip_names[i]: self.state.skips[i]
            for i in range(1, SKIP_REQUIRED + self.state.requirements)
        }

    @property
    def late_total(self):
        """Reports that were skipped as ``late``."""
        return self.state.skips[SKIP_LATE]

    @property
    def values_skipped(self):
        """Values that were omitted from reports which were otherwise counted, by field."""
        cdef uint32_t i
        return {
            name: self.state.values_left_out[i]
            for i, name in enumerate(self.field_names)
            if name is not None
        }

    @property
    def finished(self):
        """Reports with a ``FinishType``, by its meaning, including reports without new values."""
        cdef uint32_t i
        return {FINISH_NAMES[i]: self.state.finishes[i] for i in range(4)}

    @property
    def times_ms(self):
        """The earliest and the latest ``Last`` in the latest `update`, in Unix milliseconds.

        Reports without ``Last`` are ignored. If all are, the latest is 0 and the earliest is
        higher.
        """
        return self.batch.oldest_ms, self.batch.newest_ms

    @property
    def met_unknown_flow(self):
        """Whether the latest `update` included a flow that the table did not know."""
        return self.state.met_unknown

    @property
    def reads_slots(self):
        """Whether fields are read at their offsets, not as attributes."""
        cdef uint32_t i
        return all(self.readers[i].slots for i in range(FLOW_TYPES))


@cython.final
cdef class Snapshot:
    """The values of one family at some time, by connection: see `Table.snapshot`."""

    cdef Table table
    cdef uint32_t family
    cdef Kept kept

    def __dealloc__(self):
        free(self.kept.values)
        free(self.kept.hashes)

    @property
    def bytes(self):
        """Memory of the snapshot, in bytes."""
        return self.kept.rows * (sizeof(int64_t) + sizeof(uint32_t))


@cython.final
cdef class Page:
    """A page that is being read. Created by `Table.page`."""

    cdef Table table
    cdef Cursor cursor

    def read(self, Py_ssize_t size):
        """Return the next whole lines, about `size` bytes; ``b""`` at the end.

        Renders without the GIL. The lock is released from time to time, so that other threads'
        calls are not blocked.
        """
        cdef Table table = self.table
        cdef Py_ssize_t wanted = max(size, <Py_ssize_t>1)
        cdef PyObject *out = PyBytes_FromStringAndSize(NULL, wanted + table.state.max_lines)
        cdef char *start = PyBytes_AS_STRING(<object>out)
        cdef char *end
        with nogil:
            end = render_lines(&table.state, &self.cursor, start, start + wanted)
        _PyBytes_Resize(&out, end - start)
        lines = <object>out
        Py_DECREF(lines)            # `out` was a separate reference
        return lines
