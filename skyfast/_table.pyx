# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table: flows, connections, expiry, rendering. No clock, no socket, no log inside.

Data structures
    Two levels. A *flow* row is one report stream of an agent, known by its UUID, with its last
    known totals. A *connection* row is one label tuple of the page; its values are sums of the
    deltas of its flows. Label values are numbers: an interned string (bit 31 set) or a small
    integer. There is one set of connection rows for each of the plan's views. A flow leads to its
    row of the first view. That row leads to those of the views whose labels are among its own, for
    they are the same for all of its flows; the rows of all other views are led to by the flow
    itself. All kinds of rows (strings, flows, connections, conversations) live in slabs under one
    allocator with one index (`Rows`): linear hashing, which splits one bucket at a time, so that no
    insert ever pays for a million rows. The shapes are in ``_table.pxd``.

    A timer wheel has one slot a second. A flow stands in the slot of the deadline it had when it
    was filed; a report only writes a later deadline into the row. When the slot's turn comes, the
    flow is filed again or becomes dormant, and a connection of the first view leaves with its last
    flow. The other views have wheels for their connections, which stay longer than any flow of
    theirs.

    A *dormant* flow keeps its row, its key and its totals, and leads nowhere: its next report adds
    the difference to what is known. Dormant rows are in one of two lists, in the order in which
    they became dormant; the links of the lists are the fields that lead a live flow to its
    connection and through the wheel, so a live row is no larger for it. The first of a list is the
    first to be forgotten, when its time is over or another flow needs the room. A connection that
    leaves with other counters than its last flow's totals keeps them in such a row as well, whose
    key is a hash of its labels. See ``table/dormant.pxi``.

Costs
    A report of a known flow: one look-up, two cache lines of rows. A new flow, and one that was
    dormant: two look-ups and one for each string of its labels. Expiry: what expires, and one
    re-filing a flow and time-out. Becoming dormant and being forgotten: the neighbours in a list.
    A page: one pass over the connections a family.

Memory
    Slabs and index segments come from an arena of large pieces (`Arena`), strings longer than 48
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
    `Table` is here: what Python calls, the state that it has, and the constants that several files
    share. What its methods do is in ``table/``, one file a concern, as free functions on
    `TableState`. Cython includes them, because the C compiler needs all of it in one unit, to
    inline the small ones; ``include`` cannot stand in a class, so the state is a struct.

    Structures that do not know the table:
        ``rows`` (arena, slabs, index), ``strings`` (hashes, interned strings), ``fields`` (what a
        decoded flow has), ``text_format`` (what a line is made of), ``timer_wheel``, ``top_k``,
        ``counter``.
    Kinds of rows:
        ``labels``, ``flows``, ``connections``, ``conversations``, ``dormant``, ``overflow``.
    What the methods of `Table` do:
        ``layout`` (from a plan to offsets), ``reports``, ``lookup`` and ``update`` (the three steps
        of an update), ``expiry``, ``relabel``, ``render`` (pages), ``scan`` (what label values
        there are, which connections have most).
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
    MAX_FIELDS = 4 * MAX_VALUES + MARKS     # whose values can be left out
    INLINE_STRING = 48
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


cdef uint32_t IS_STRING = <uint32_t>1 << 31       # in a cell
cdef uint32_t STRING_KEY = <uint32_t>1 << 31      # in a flow's `connection`, as the next three
cdef uint32_t LABELS_KEY = <uint32_t>1 << 30
cdef uint32_t DORMANT = <uint32_t>1 << 29
cdef uint32_t ENDED = <uint32_t>1 << 28
cdef uint32_t ROW = ((<uint32_t>1) << 28) - 1   # the number that is left beside them
cdef uint32_t BACK = <uint32_t>1 << 31          # in a connection's `flows`
cdef int64_t ABSENT = -1                        # of an optional counter: no report had the part
cdef uint32_t FLOWS = <uint32_t>-1              # of a family: the row's number of flows
cdef uint32_t NEVER_S = <uint32_t>-1            # a deadline
cdef uint32_t NO_END = <uint32_t>-1             # of a scan: all rows
cdef uint64_t SHARE_SEED = 0x9E3779B97F4A7C15   # never another: shares would overlap meanwhile
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
    WORTH_LAST_UPDATE               # what its latest update added
    WORTH_LAST_UPDATE_UNREAD        # likewise; its type does not have them

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
include "table/top_k.pxi"
include "table/counter.pxi"


cdef struct Batch:
    # Reports on their way into the table: read with the GIL, looked up, applied under the lock.
    Report reports[BATCH]
    uint32_t size
    int64_t *values             # BATCH x the plan's values; as the next two, the reports'
    int64_t *last_update        # BATCH x its counters
    Cell *cells                 # BATCH x its cells
    # Keys of flows that are removed while the batch is applied: their numbers may have been found
    # for a label of the batch. A report can remove its own flow, too.
    uint32_t dead_strings[(ROOM_ROWS + 1) * BATCH]
    uint32_t dead_string_count
    int64_t oldest_ms, newest_ms    # of `Last` in the reports of the latest update


cdef struct TableState:
    pthread_mutex_t lock
    # rows
    Arena arena
    Rows strings
    Rows flow_rows
    Rows conversations
    View *views                 # of which the first is that of the connections
    uint32_t view_count
    TimerWheel wheel            # of live flows
    DormantList dormant         # and the counters of connections that have left
    DormantList ended           # flows whose closing report came
    uint32_t kept_connections   # rows of `dormant` that have a connection's counters
    uint64_t next_seq           # of the connection rows of all views
    # layout: set when the table is made
    uint64_t seed               # of all hashes but that of shares
    uint32_t counters, values   # of a flow
    uint32_t columns, cells     # labels of any view; and what dynamic ones are made of
    uint32_t requirements
    bint optional[MAX_VALUES]
    int keeps[MAX_VALUES]       # of gauges
    bint converses              # there are conversation rows
    uint64_t share, shares      # which of how many shares is kept: 0 of 1 is everything
    uint32_t links_at           # of a flow row: bytes from its beginning
    uint32_t keys_at            # among its links; the conversation is the first if there are any
    Family *families
    uint32_t family_count
    size_t max_lines            # bytes that one connection's lines can take
    # the fields that values which are left out come from
    uint32_t value_fields[2 * MAX_VALUES]
    uint32_t last_update_fields[2 * MAX_VALUES]
    uint32_t mark_fields[MARKS]
    # limits
    uint32_t max_flows, max_connections
    double memory_s             # how long a flow is dormant until it is forgotten
    double least_timeout_s      # of the first view, ever
    double flow_update_s
    bint begun                  # there is a horizon
    double horizon_s            # unknown flows that began later were never counted
    # overflow
    bint overflows              # what finds no room is added up in `other` rows
    bint overflowed             # ... and some was
    const char *other_text      # of their labels
    uint32_t other_length
    # the update at hand
    Batch *batch                # while it is applied, else NULL
    double now                  # of the latest update
    bint met_unknown            # the latest update met a flow that was not known
    # counts
    uint64_t connections_created
    uint64_t expired
    uint64_t rejected
    uint64_t overflow_reports
    uint64_t values_left_out[MAX_FIELDS]
    uint64_t skips[MAX_SKIPS]
    uint64_t finishes[4]


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
    :param types: the structs that `update` takes (`skyfast.flows.fields.flow_types` of the same
        plan).
    :param slots: read the structs' slots at their offsets, where that can be shown to work;
        with False the fields are read as attributes. Results are the same.

    The other parameters are those of `set_limits`. `now` is everywhere a time in seconds that never
    runs backwards; its origin does not matter.
    """

    cdef TableState state
    cdef Batch batch
    cdef Reader *readers                # of the plan's Update, FirstReport, FullReport
    cdef object plan
    cdef bint wants_slots
    cdef list keep                      # owns what `Field` borrows
    cdef list held                      # owns what rewrites returned for the batch at hand
    cdef list dynamic                   # (rewrite, slot, column) of each dynamic column
    cdef list field_names
    cdef bytes other                    # the text of the labels of `other` rows
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
        self.dynamic = dynamic_columns(plan)
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
        if len(view_timeouts_s) != self.state.view_count - 1:
            raise ValueError("there is one time-out for each view but the first")
        if not all(timeout_s <= each <= 1 << 30 for each in view_timeouts_s):
            raise ValueError("a view's time-out is at least timeout_s and at most 2^30")
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
        """Assume that unknown flows that begin after `now` were never counted.

        To be called when reports begin to arrive, and when flows arrive that were excluded before.
        Until the first call, no unknown flow's total counts for that reason.
        """
        self.state.horizon_s = max(self.state.horizon_s, <double>now) if self.state.begun else now
        self.state.begun = True

    def set_flow_types(self, types):
        """Take flows of these types from now on, those of the same plan, and of no others."""
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
        """Apply ``flows[start:]`` in their order; return how far it came.

        :param flows: values of one of the plan's types, all of the same one.
        :returns: ``len(flows)``; or the index of the first flow that can only be judged by its
            ``LastUpdateMetric``, where the flows are of a type without it. Nothing from there
            on was applied or counted: decode again as ``FullReport``, and go on from that index.
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

        Takes the mutex once for each 128 flows, and holds the GIL while it waits for it: at most
        for 2,048 connections of another thread's page or scan, some 0.5 ms, or for the moment in
        which `cardinality` enlarges a counter, some 20 ns for each value in it.
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
            except BaseException:       # a rewrite's
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

        Flows that have been dormant for long enough are forgotten, and those beyond the limit.

        :param max_rows: rows (and empty slots) looked at, at most: a bound on the time it takes,
            about 0.2 µs each.
        :returns: whether there is more to do at this `now`.

        A row past its deadline is not on any page any more, but stays known until this takes
        it: a report that was waiting meanwhile continues it.
        """
        cdef bint more
        with nogil:
            pthread_mutex_lock(&self.state.lock)
            more = expire_slice(&self.state, <uint32_t>floor(now), max_rows)
            pthread_mutex_unlock(&self.state.lock)
        return more

    # -- dynamic labels -------------------------------------------------------------------------

    def relabel(self, list renamed not None):
        """Move flows to other connections after a rewrite's answers have changed.

        :param renamed: pairs of a dynamic column's rewrite and the keys of which it makes another
            label than before.
        :raises MemoryError: then some flows may have their old labels still.

        A connection that is new begins at zero; one that was there goes on, also where it has left
        and its counters are kept. Every flow is looked at, dormant ones too, which takes some 10 ns
        each, and 0.5 µs for those that go over.
        """
        cdef Changes changes
        cdef bint done
        memset(&changes, 0, sizeof(Changes))
        try:
            for rewrite, keys in renamed:
                for column_rewrite, slot, column in self.dynamic:
                    if column_rewrite is rewrite:
                        for key in keys:
                            add_change(&self.state, &changes, rewrite, key, slot, column)
            if changes.count == 0:
                return
            qsort(changes.items, changes.count, sizeof(Change), compare_changes)
            with nogil:
                pthread_mutex_lock(&self.state.lock)
                done = apply_changes(&self.state, &changes)
                pthread_mutex_unlock(&self.state.lock)
            if not done:
                raise MemoryError
        finally:
            pthread_mutex_lock(&self.state.lock)
            release_changes(&self.state, &changes)
            pthread_mutex_unlock(&self.state.lock)

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
            pthread_mutex_lock(&self.state.lock)
            page.cursor.page_seq = <uint32_t>self.state.next_seq
            pthread_mutex_unlock(&self.state.lock)
        page.cursor.head = 1 if openmetrics else 0
        return page

    # -- what the labels have for values --------------------------------------------------------

    def label_values(self):
        """Return how many different values each label of the first view has now.

        Takes about a nanosecond a connection and label, without the GIL; may be called from any
        thread. Connections that come or go meanwhile may be counted or not.
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
        cdef Counter counters[MAX_VIEW_COLUMNS + 1]    # the last is of the connections without
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
        """Keep what connections of the first view have now of a counter's family, for `top`.

        Takes some 10 ns a connection without the GIL, and 12 bytes for as long as it is kept.

        :raises ValueError: for a gauge, which does not grow.
        :raises MemoryError: there is no room for it.
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

    # All but the first are for the thread that updates.

    @property
    def connections(self):
        """Connection rows of the first view in use. Any thread may ask."""
        cdef uint32_t live
        with nogil:
            pthread_mutex_lock(&self.state.lock)
            live = self.state.views[0].rows.live
            pthread_mutex_unlock(&self.state.lock)
        return live

    @property
    def view_connections(self):
        """The same of each further view."""
        cdef uint32_t i
        return tuple(self.state.views[i].rows.live for i in range(1, self.state.view_count))

    @property
    def flows(self):
        """Flows that connections consist of: the live ones."""
        return live_flows(&self.state)

    @property
    def dormant_flows(self):
        """Flows that are not live, but whose totals are known."""
        return self.state.dormant.count + self.state.ended.count - self.state.kept_connections

    @property
    def dormant_connections(self):
        """Connections that have left, whose counters are kept in rows of their own."""
        return self.state.kept_connections

    def dormant_uuids(self):
        """Return the UUIDs of the dormant flows, the first to be forgotten of each list first."""
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
        """Return what is known of a flow: its totals, and the time of its latest report.

        :returns: None, or a tuple of the plan's counters (-1 where no report had one), the latest
            ``Last`` in Unix milliseconds and the time of the latest report in seconds of the
            caller's clock, up to a second later; of a dormant flow, up to a time-out earlier.
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
        """The agents' ``flow.update``, in seconds: how late a flow's first report can be."""
        return self.state.flow_update_s

    @flow_update_s.setter
    def flow_update_s(self, double seconds):
        self.state.flow_update_s = seconds

    @property
    def bytes(self):
        """Memory that the rows, indexes and strings hold, in bytes, whether in use or free."""
        return self.state.arena.bytes

    @property
    def row_bytes(self):
        """Memory that a connection of one flow takes in the first view, its strings left out."""
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
        """Connections of the first view that left."""
        return self.state.expired

    @property
    def rejected_total(self):
        """Reports that found no room for the connection they would have created."""
        return self.state.rejected

    @property
    def view_rejected_totals(self):
        """The same of each further view."""
        cdef uint32_t i
        return tuple(self.state.views[i].rejected for i in range(1, self.state.view_count))

    @property
    def overflowed_total(self):
        """Reports that were added up in the connection of what finds no room."""
        return self.state.overflow_reports

    @property
    def skipped(self):
        """Flows that changed nothing, by reason."""
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
        """Values that were left out of reports which counted otherwise, by field."""
        cdef uint32_t i
        return {
            name: self.state.values_left_out[i]
            for i, name in enumerate(self.field_names)
            if name is not None
        }

    @property
    def finished(self):
        """Reports whose ``FinishType`` was set, by its meaning, whether they were news or not."""
        cdef uint32_t i
        return {FINISH_NAMES[i]: self.state.finishes[i] for i in range(4)}

    @property
    def times_ms(self):
        """The earliest and the latest ``Last`` in the latest `update`, in Unix milliseconds.

        Reports that have none are left out; without any, the latest is 0 and before the earliest.
        """
        return self.batch.oldest_ms, self.batch.newest_ms

    @property
    def met_unknown_flow(self):
        """Whether the latest `update` met a flow that the table did not know."""
        return self.state.met_unknown

    @property
    def reads_slots(self):
        """Whether fields are read at their offsets, or as attributes."""
        cdef uint32_t i
        return all(self.readers[i].slots for i in range(FLOW_TYPES))


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
        cdef PyObject *out = PyBytes_FromStringAndSize(NULL, wanted + table.state.max_lines)
        cdef char *start = PyBytes_AS_STRING(<object>out)
        cdef char *end
        with nogil:
            end = render_lines(&table.state, &self.cursor, start, start + wanted)
        _PyBytes_Resize(&out, end - start)
        lines = <object>out
        Py_DECREF(lines)            # `out` was a reference of its own
        return lines
