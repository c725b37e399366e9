# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table of flows and connections: it applies reports, removes expired rows, and renders pages.

The table uses no clock, no sockets and no logging: callers pass times and reports.

Data structures
    There are two levels of rows. A *flow* row represents one flow, as an agent reports it. The key
    of a flow row is the flow's UUID, and the row stores the flow's latest totals. A *connection*
    row represents one label tuple on the page. When a report arrives, the increases of the flow's
    totals, called *deltas*, are added to the flow's connection rows.

    A *plan* defines which labels and metrics are exported. Each plan has one or more *views*. A
    view is a set of metrics with the same labels, and has its own connection rows. A flow is *live*
    until it expires. Each live flow links to one connection row of each view. If a view other than
    the first was full, the flow links to the *overflow row* of that view. If the plan has no
    overflow rows, the flow has no link to that view. The view determines where the link is stored:

    * For the first view, the link is in the flow row.
    * If all labels of a view are also labels of the first view, the link is in the flow's
      connection row of the first view.
    * For any other view, the link is in the flow row.

    Strings, flows, conversations, results of lookups, and the connections of each view are
    different kinds of rows. Each kind has its own slab allocator and index (`Rows`). An index
    splits one bucket at a time, so no insert has to rehash all rows.

    A timer wheel finds the flows that expire (see ``table/timer_wheel.pxi``). When a connection of
    the first view has no live flows left, it is removed. Connections of the other views can outlive
    their flows, so each of these views has its own timer wheel.

    An expired flow becomes *dormant*: it keeps its row, its key and its totals, but does not belong
    to a connection. When the next report of a dormant flow arrives, only the increase over the
    stored totals is added.

    If a dormant flow has a new report after its connection was removed, the connection is created
    again with its earlier counters. Usually, these counters are restored from the totals of the
    flow. If the totals would not be enough, the counters are saved in a separate dormant row when
    the connection is removed. Saved counters are also restored if a report of an unknown flow has
    the labels of the removed connection.

    Each dormant row is in one of three lists: flows that claim a conversation (see
    ``table/conversations.pxi``), flows that have ended, and all others. Dormant rows are forgotten
    after a limited time. If a new flow needs space, a dormant row is forgotten before that time,
    unless its flow claims a conversation. In each list, the oldest rows are forgotten first.

Costs
    A report of a live flow takes one index search, and reads two cache lines of rows. A report of a
    new or dormant flow takes two searches, plus one search per label string. Some labels come from
    lookups of names: a lookup returns a tuple of strings. If a recent report had the same tuple,
    one search finds all labels of the tuple.

    The time for expiry is proportional to the number of expired rows. In addition, each live flow
    is added to the timer wheel again once per timeout. Rendering a page visits all connections of a
    view once per family of the view.

Memory
    Slabs and index segments are allocated from an arena of large blocks (`Arena`), and kept until
    the table is destroyed. The table keeps no Python objects per flow or connection. Its only
    Python objects are the plan, the names and types of fields, and up to MAX_NAMES results of
    lookups. If an allocation fails, `update` raises MemoryError, and the current report has no
    effect.

Lock
    Each table has one mutex. A thread holds the mutex for one slice of work at a time:

    * a batch of reports
    * some rows that expire or are relabeled
    * up to RENDER_ROWS connections of a page or scan

    Only one thread, *the thread that updates*, may call `update`, `expire` and `Relabeling.step`.
    No other thread changes rows, so the thread that updates may read rows without the mutex. Any
    thread may read pages.

    A thread that holds the mutex must not wait for the GIL, because the thread that has the GIL may
    be waiting for the mutex. Therefore all code that runs under the mutex is plain C. It allocates
    memory with C functions: if allocations are traced, Python's allocators may take the GIL.

Files
    This file contains the class `Table` (the interface for Python), the struct `TableState`, and
    the constants that several files share. The files in ``table/`` implement the methods of `Table`
    as functions on `TableState`. The functions are not methods, because ``include`` is not possible
    in a class body. The files are included, because the C compiler only inlines functions of the
    same compilation unit.

    Structures that do not depend on the table:
        ``rows`` (arena, slabs, index), ``strings`` (hashes, interned strings), ``fields`` (reading
        decoded flows), ``text_format`` (writing lines), ``timer_wheel``, ``counter`` (counting how
        often keys occur) and ``distinct_sample`` (estimating the number of different keys).
    Rows and their contents:
        ``labels``, ``names``, ``flows``, ``connections``, ``start_times``, ``conversations``,
        ``dormant``, ``overflow``, ``histograms``.
    Implementation of the methods of `Table`:
        ``lock``, ``layout`` (locations of values in rows), ``readers`` (locations of values in
        decoded flows), ``reports``, ``lookup`` and ``update`` (the three steps of an update),
        ``expiry``, ``relabel`` and ``moves`` (changed names), ``render``, ``pieces`` and
        ``deflate`` (pages), ``search``, ``top_k``, ``scan`` (label values, top connections,
        snapshots), ``bounds`` (hidden rows) and ``groups``.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

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
    bint PyTuple_CheckExact(PyObject *)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
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
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "sys/mman.h" nogil:
    int madvise(void *, size_t, int)
    int MADV_HUGEPAGE

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **, size_t, size_t)

cdef extern from *:
    """
    /* GCC removes a call to a function that only prefetches, because GCC sees no side effect. The
       empty assembler statement counts as a side effect. */
    #define prefetch(address) do { __builtin_prefetch(address); __asm__ volatile (""); } while (0)
    #define likely(x) __builtin_expect(!!(x), 1)
    #define unlikely(x) __builtin_expect(!!(x), 0)
    """
    void prefetch(const void *) noexcept nogil
    bint likely(bint) noexcept nogil
    bint unlikely(bint) noexcept nogil


MAX_NUMBER = 1 << 62            # largest valid number in a field of a flow; equal to MAX_INTEGER

cdef enum:
    # The *lifecycle* fields show whether a report is the first or the last report of its flow. An
    # invalid lifecycle field counts as missing.
    LIFECYCLE_FINISH            # FinishType
    LIFECYCLE_START             # Start
    LIFECYCLE_UPDATE_START      # LastUpdateMetric.Start
    LIFECYCLE_UPDATE_LAST       # LastUpdateMetric.Last
    LIFECYCLE_FIELDS            # number of lifecycle fields

cdef enum:
    MAX_LABEL_BYTES = 2 * MAX_TEXT_BYTES   # maximum size of a label value with escapes, in bytes
    MAX_INTEGER_DIGITS = 20
    MAX_DECIMALS = 18
    # Maximum number of fields in which invalid values are counted (see `Table.values_skipped`).
    MAX_FIELDS = 4 * MAX_VALUES + LIFECYCLE_FIELDS
    INLINE_STRING = 48          # strings of up to this size, in bytes, are stored in their rows
    FLOW_TYPES = 4
    BATCH = 128                 # maximum number of reports per batch
    MAX_EVICTIONS = 2           # maximum number of dormant rows that one report can evict
    # Number of index buckets per row. Two buckets take 8 bytes per row, and keep chains short.
    BUCKETS_PER_ROW = 2
    NAMES_AHEAD = 4             # names are prefetched this number of reports before their use
    CACHE_LINE = 64

# Sizes and steps of growth. _checked.pyx defines smaller numbers, so that in tests, a few rows are
# enough for every kind of growth.
cdef extern from *:
    """
    #ifndef SKYFAST_CHECKED
    enum {
        RENDER_ROWS = 2048,
        RELABEL_ROWS = 64,
        AHEAD = 16,
        MAX_NAMES = 1 << 16,
        SLAB_SHIFT = 12,
        SEGMENT_SHIFT = 12,
        MAX_WHEEL_SLOTS = 4096,
        SAMPLE_KEYS = 1 << 15,
        HUGE_PAGE_BYTES = 2 << 20,
        FIRST_BLOCK_BYTES = 4 << 20,
        BLOCK_BYTES = 8 << 20,
        DEFLATE_SLICE = 64 << 10,
        DEFLATE_CHUNK = 512 << 10,
        MIN_SAMPLE = 16 << 10
    };
    #define row_unused(address, size) ((void)0)
    #define row_used(address, size) ((void)0)
    #endif
    #define SLAB_ROWS (1 << SLAB_SHIFT)
    #define SEGMENT_BUCKETS (1 << SEGMENT_SHIFT)
    """
    enum:
        RENDER_ROWS             # maximum number of rows per slice of a page or scan
        # Maximum number of flow rows that `Relabeling.step` visits per unit of its budget.
        RELABEL_ROWS
        AHEAD                   # loops prefetch rows and buckets this number of steps ahead
        MAX_NAMES               # maximum number of lookup results whose labels stay interned
        SLAB_SHIFT              # binary logarithm of SLAB_ROWS
        SLAB_ROWS               # number of rows per slab
        SEGMENT_SHIFT           # binary logarithm of SEGMENT_BUCKETS
        SEGMENT_BUCKETS         # number of buckets per index segment
        MAX_WHEEL_SLOTS
        SAMPLE_KEYS             # maximum number of keys in a distinct sample; a power of two
        HUGE_PAGE_BYTES
        FIRST_BLOCK_BYTES       # minimum size of an arena's first block
        BLOCK_BYTES             # minimum size of an arena's later blocks
        DEFLATE_SLICE           # approximate size of a slice (see `deflate.pxi`), in bytes of text
        DEFLATE_CHUNK           # maximum of `size` in `Page.deflate`
        # Huffman codes are usually learnt from slices with at least this number of bytes (see
        # `deflate.pxi`).
        MIN_SAMPLE
    void row_unused(void *address, size_t size) noexcept nogil
    void row_used(void *address, size_t size) noexcept nogil


# These constants are defined in C, because Cython's variables are not constants for the C compiler.
cdef extern from *:
    """
    #include <stdint.h>
    static const uint32_t IS_STRING = (uint32_t)1 << 31;
    static const uint32_t STRING_KEY = (uint32_t)1 << 31;
    static const uint32_t LABELS_KEY = (uint32_t)1 << 30;
    static const uint32_t DORMANT = (uint32_t)1 << 29;
    static const uint32_t ENDED = (uint32_t)1 << 28;
    static const uint32_t ROW = ((uint32_t)1 << 28) - 1;
    static const uint32_t RESTORED = (uint32_t)1 << 31;
    static const uint32_t SUPERSEDED = (uint32_t)-1;
    static const int64_t ABSENT = -1;
    static const int64_t NO_START = -1;
    static const uint32_t FLOWS = (uint32_t)-1;
    static const uint32_t NEVER_S = (uint32_t)-1;
    static const uint32_t NO_END = (uint32_t)-1;
    static const uint64_t SHARD_SEED = 0x9E3779B97F4A7C15;
    static const uint64_t PART_SEED = 0xD1B54A32D192ED03;
    static const uint32_t MAX_SEQ_AGE = (uint32_t)1 << 30;
    static const int64_t MAX_INTEGER = (int64_t)1 << 62;
    static const uint64_t EACH_BYTE = 0x0101010101010101;
    static const double MAX_REPORT_DELAY_S = 15.0;
    """
    const uint32_t IS_STRING        # flag of a label ID: the other bits are the number of a string
    const uint32_t STRING_KEY       # flag in `Flow.connection`
    const uint32_t LABELS_KEY       # flag in `Flow.connection`
    const uint32_t DORMANT          # flag in `Flow.connection`
    const uint32_t ENDED            # flag in `Flow.connection`
    const uint32_t ROW              # mask of the row number in `Flow.connection`
    const uint32_t RESTORED         # flag in `Connection.flows`
    const uint32_t SUPERSEDED       # in `Conversation.claimant`: another row has replaced the row
    const int64_t ABSENT            # value of a counter that no report contained
    const int64_t NO_START          # start time of a row before the row's first report
    const uint32_t FLOWS            # in `Family.values`: the series has the number of live flows
    const uint32_t NEVER_S          # deadline of rows that do not expire
    const uint32_t NO_END           # argument of `scan_until`: visit all rows
    # Must never change, because shards that run different versions of skyfast must not overlap.
    const uint64_t SHARD_SEED
    # Must be odd. Must never change, because a connection must stay in the same part of the page.
    const uint64_t PART_SEED
    const uint32_t MAX_SEQ_AGE      # maximum age of a row, in sequence numbers: see `clamp_seq_age`
    const int64_t MAX_INTEGER       # the same as MAX_NUMBER
    const uint64_t EACH_BYTE        # the number 1 in each byte
    # Maximum delay of a report, in addition to the agent's update interval. An analyzer sends
    # reports in batches, and may keep a report for up to 5 s. The remaining 10 s are for the
    # network, and for waiting in a socket.
    const double MAX_REPORT_DELAY_S

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
    # The flow does not meet the plan's first requirement. The reasons for the other requirements
    # have the next numbers.
    SKIP_REQUIRED
    MAX_SKIPS = 32              # maximum number of reasons, including SKIP_NONE

cdef tuple SKIP_NAMES = (
    "", "invalid", "no_uuid", "out_of_range", "text_too_long", "late", "duplicate", "table_full",
    "other_shard", "ended",
)
cdef tuple FINISH_NAMES = ("other", "timeout", "fin", "rst")

cdef enum:
    CLOSING = 1                 # FinishType of a closing report; other numbers do not end the flow

cdef enum:
    # What a report of an unknown flow adds to a row (see `Report.initial_delta`). If
    # `adds_whole_total` is true for the row, the report adds its totals instead.
    INITIAL_UNREAD              # not determined: the report's struct lacks the lifecycle fields
    INITIAL_TOTAL               # the totals in the report
    INITIAL_LAST_UPDATE         # the deltas of the flow's last update
    INITIAL_LAST_UPDATE_UNREAD  # the deltas of the last update, which the report's struct lacks

cdef enum:
    # How a report changes the totals of a known flow.
    NOTHING_NEW
    GREW
    STARTED_OVER

cdef enum:
    # Which value of a flow a histogram observes.
    OBSERVE_FIRST               # the first value above 0
    OBSERVE_TOTAL               # the value in the closing report
    OBSERVE_AGE                 # in the closing report: `last_ms` minus the value, which is a time

cdef enum:
    # Flags of a flow, one per event. If a flag is set, histograms do not observe the flow on the
    # flag's event again (see `histograms.pxi`).
    FIRST_OBSERVED = 1          # event: the first value above 0
    CLOSING_OBSERVED = 2        # event: the closing report

cdef enum:
    # Which of the reported values a gauge of a row keeps.
    KEEP_LATEST
    KEEP_LEAST
    KEEP_MOST

cdef tuple GAUGE_KINDS = ("latest", "least", "most")
cdef tuple OBSERVED_KINDS = ("first", "total", "age")

cdef str EMPTY = ""
cdef object END = object()      # marks the end of an iterator
cdef object ESCAPES = re.compile(r"\\(.)", re.DOTALL)
cdef dict UNESCAPED = {r"\\": "\\", r'\"': '"', r"\n": "\n"}


include "table/rows.pxi"
include "table/strings.pxi"
include "table/fields.pxi"
include "table/text_format.pxi"
include "table/timer_wheel.pxi"
include "table/counter.pxi"
include "table/distinct_sample.pxi"


cdef struct FoundNames:
    PyObject *key               # borrowed; NULL if the flow needs no lookup or the key is invalid
    PyObject *result            # borrowed; NULL if the key or its context (see `Lookup`) is invalid
    uint32_t row                # number of the `NamesRow` with the result, or 0 if there is none


cdef struct Batch:
    # Up to BATCH reports, which are read, looked up and applied together.
    Report reports[BATCH]
    uint32_t size               # number of reports
    int64_t *values             # array for `Report.values` of all reports
    int64_t *last_update        # array for `Report.last_update` of all reports
    LabelValue *label_values    # array for `Report.label_values` of all reports
    FoundNames *names           # for each report: one item per lookup of the plan
    uint32_t *missed            # for results that do not have a row yet: indexes in `names`
    uint32_t missed_count
    # For flows that are removed while the batch is applied: numbers of their interned UUIDs. The
    # strings are released after the batch has been applied, because a later report of the batch may
    # use the same interned string for a label. Each report can remove its own flow and up to
    # MAX_EVICTIONS other flows.
    uint32_t strings_to_release[(MAX_EVICTIONS + 1) * BATCH]
    uint32_t strings_to_release_count
    int64_t oldest_ms           # lowest `Last` in the latest `update`, in Unix milliseconds
    int64_t newest_ms           # highest `Last` in the latest `update`, in Unix milliseconds


cdef struct TableState:
    pthread_mutex_t lock
    uint32_t waiting            # number of threads that wait in `lock_with_priority`

    # Rows

    Arena arena
    Rows strings
    Rows flow_rows
    Rows conversations
    View *views                 # the views, with their connection rows
    uint32_t view_count
    Rows names                  # results of lookups, with interned labels
    TimerWheel names_wheel      # the rows of `names` by deadline
    TimerWheel wheel            # live flows by deadline
    DormantList dormant         # all dormant rows that are in neither `ended` nor `claims`
    DormantList ended           # dormant flows that have ended, and are not in `claims`
    DormantList claims          # flows that claim a conversation (see `conversations.pxi`)
    uint32_t saved_connections  # number of rows in `dormant` that have saved counters
    uint64_t next_seq           # sequence number for the next connection row of any view

    # Layout: set when the table is created

    uint64_t seed               # seed of all hashes except those for shards and parts of pages
    uint32_t counters           # number of counters
    uint32_t values             # number of counters and gauges
    uint32_t all_values         # number of counters, gauges and closing gauges
    uint32_t columns            # number of columns
    uint32_t label_value_count  # number of columns, plus number of strings that lookups use
    uint32_t lookup_columns     # number of columns from lookups; these columns come first
    uint32_t lookup_count
    uint32_t requirements       # number of requirements
    bint counts_new_flows       # whether any view or histogram depends on whether a flow is new
    # Flags (FIRST_OBSERVED, ...) of the events on which at least one histogram observes flows.
    uint32_t events
    uint32_t first_value        # in `Report.values`: index of the value that OBSERVE_FIRST observes
    uint32_t flags_link         # index of the flags (FIRST_OBSERVED, ...) among a flow's links
    bint optional[MAX_VALUES]   # by counter: whether reports can lack the counter
    int gauge_kinds[MAX_VALUES]  # by value: KEEP_LATEST, ... (only set for gauges)
    bint has_conversations
    uint64_t shard              # index of the table's shard
    uint64_t shards             # number of shards
    uint32_t links_offset       # offset of the links in a flow row, in bytes
    # Among a flow's links: index of the first string that lookups use.
    uint32_t first_lookup_string
    Family *families
    uint32_t family_count
    # Maximum number of bytes that rendering writes at once: the metadata lines of a family, or the
    # lines of one connection in one family.
    size_t max_lines
    # For the two fields of each counter or gauge: index of the field in `omitted_counts`.
    uint32_t value_fields[2 * MAX_VALUES]
    # For the two fields of each counter's last update: index of the field in `omitted_counts`.
    uint32_t last_update_fields[2 * MAX_VALUES]
    # For each lifecycle field: index of the field in `omitted_counts`.
    uint32_t lifecycle_fields[LIFECYCLE_FIELDS]

    # Limits

    uint32_t max_flows, max_connections
    double memory_s             # time until a dormant flow that has not ended is forgotten
    double min_timeout_s        # the lowest `timeout_s` that has ever been set
    double flow_update_s        # see `Table.flow_update_s`
    bint has_horizon
    double horizon_s            # an unknown flow that began after this time has never been counted

    # Overflow

    bint has_overflow_rows
    bint overflowed             # whether any report has been added to an overflow row
    const char *overflow_text   # label value of overflow rows
    uint32_t overflow_length    # size of the label value of overflow rows, in bytes

    # The current or latest call of `update`

    Batch *batch                # the batch that is being applied, or NULL
    double now                  # time of the latest `update` or `expire`
    int64_t wall_ms             # system time of the latest `update` or `step`, Unix ms; 0: unknown
    bint met_unknown            # see `Table.met_unknown_flow`

    # Counts

    uint64_t connections_created
    uint64_t expired
    uint64_t rejected
    uint64_t overflow_reports
    uint64_t omitted_counts[MAX_FIELDS]
    uint64_t skips[MAX_SKIPS]
    uint64_t finishes[4]

    # Lookups: set when the table is created

    Lookup lookups[MAX_COLUMNS]
    uint32_t name_indexes[MAX_COLUMNS]  # by column from a lookup: index of the label in the result
    # By index in `Report.label_values`, for strings that lookups use: whether the string is also
    # the value of a column, and the index of this column. The string is copied from the column.
    bint key_is_column[MAX_COLUMNS]
    uint32_t key_columns[MAX_COLUMNS]


include "table/lock.pxi"
include "table/labels.pxi"
include "table/names.pxi"
include "table/flows.pxi"
include "table/connections.pxi"
include "table/start_times.pxi"
include "table/pieces.pxi"
include "table/conversations.pxi"
include "table/dormant.pxi"
include "table/overflow.pxi"
include "table/histograms.pxi"
include "table/layout.pxi"
include "table/readers.pxi"
include "table/reports.pxi"
include "table/lookup.pxi"
include "table/update.pxi"
include "table/expiry.pxi"
include "table/relabel.pxi"
include "table/moves.pxi"
include "table/deflate.pxi"
include "table/render.pxi"
include "table/search.pxi"
include "table/top_k.pxi"
include "table/scan.pxi"
include "table/bounds.pxi"
include "table/groups.pxi"


@cython.final
cdef class Table:
    """The flows and connections of one plan.

    :param plan: the plan (`skyfast.flows.plan.Plan`).
    :param types: the types of flows that `update` accepts (`skyfast.flows.fields.flow_types` of the
        same plan).
    :param slots: whether to read the fields of flows at the offsets of their slots. If false, or if
        a check shows that the offsets are wrong, fields are read as attributes. Both ways have the
        same results.

    The other parameters are those of `set_limits`. Every parameter `now` is the time of a monotonic
    clock in seconds. The clock's origin does not matter.

    Any thread may call `page`, `label_values`, `cardinality`, `hidden`, `forecast`, `top`,
    `top_groups` and `snapshot`. All of these methods except `page` visit all rows of one or more
    views, without the GIL. If a connection is created, changed or removed during the call, the
    result may contain the state before or after this event.
    """

    cdef TableState state
    cdef Batch batch
    cdef Reader *readers
    cdef object plan
    cdef bint wants_slots
    cdef list reader_objects            # owns the objects that `Field` borrows
    cdef list batch_objects             # for a batch: owns results of rewrites and lookups
    cdef list field_names               # by index in `omitted_counts`; None: an unused index
    cdef bytes overflow_label           # owns `TableState.overflow_text`
    cdef tuple skip_names               # names of the reasons to skip a flow
    cdef tuple label_names              # labels of the first view
    cdef tuple view_labels              # labels of each view
    cdef tuple family_names             # names of the families of all views

    def __cinit__(self, plan, types, *, max_connections, max_flows, timeout_s, memory_s=0,
                  view_timeouts_s=(), bounds=(), slots=True):
        pthread_mutex_init(&self.state.lock, NULL)
        self.plan = plan
        self.wants_slots = slots
        self.batch_objects = []
        self.overflow_label = (plan.overflow or "").encode()
        self.skip_names = SKIP_NAMES + tuple(r.reason for r in plan.requirements)
        self.field_names = state_init(&self.state, plan, self.overflow_label)
        self.view_labels = tuple(
            tuple(column.name for column in view.columns) for view in plan.views
        )
        self.label_names = self.view_labels[0]
        self.family_names = tuple(family.name for view in plan.views for family in view.families)
        batch_allocate(&self.batch, &self.state)
        self.set_flow_types(types)
        self.set_limits(max_connections=max_connections, max_flows=max_flows, timeout_s=timeout_s,
                        memory_s=memory_s, view_timeouts_s=view_timeouts_s, bounds=bounds)

    def __dealloc__(self):
        release_all_results(&self.state)
        state_destroy(&self.state)
        batch_destroy(&self.batch)
        free(self.readers)

    # -- set-up ---------------------------------------------------------------------------------

    def set_limits(self, *, max_connections, max_flows, timeout_s, memory_s=0, view_timeouts_s=(),
                   bounds=()):
        """Set the limits. The limits can be changed at any time; existing rows stay.

        :param max_connections: maximum number of connections per view. If a view is full, and the
            plan has overflow rows, reports that require a new connection are added to the view's
            overflow row. Without overflow rows, the view rejects these reports.
        :param max_flows: maximum number of flow rows. At this limit, a new flow replaces a dormant
            flow. If no dormant flow can be replaced, reports of new flows are added to overflow
            rows, or rejected if the plan has no overflow rows. After the limit is lowered, `expire`
            forgets surplus dormant flows.
        :param timeout_s: a flow becomes dormant if it has no report for this time, rounded up to a
            full second. A changed timeout applies to a flow from the flow's next report on, but
            never shortens the current deadline of the flow.
        :param memory_s: a flow is forgotten after it has been dormant for this time, rounded up to
            a full second; 0 means immediately. If the flow has ended, `timeout_s` applies instead.
        :param view_timeouts_s: for each view except the first, the timeout of its connections. Each
            timeout must be at least `timeout_s`.
        :param bounds: a pair of `min_bytes` and `min_packets` for each view. Pages show a
            connection once it has at least `min_bytes` bytes or at least `min_packets` packets,
            summed over both directions. A bound of 0 is ignored. If both bounds are 0, or if
            `bounds` is empty, all connections are shown. Overflow rows are always shown. A page
            uses the bounds that are set when the page begins.
        """
        set_limits(&self.state, max_connections, max_flows, timeout_s, memory_s, view_timeouts_s,
                   bounds)

    def raise_horizon(self, now):
        """Assume that unknown flows that begin after `now` have never been counted.

        Call this method when the first reports arrive, and when a changed filter accepts more
        flows.
        """
        raise_horizon(&self.state, now)

    def set_flow_types(self, types):
        """Replace the types of flows that `update` accepts.

        :param types: types that were made for the plan of this table.
        """
        cdef Reader *readers = <Reader *>allocate(FLOW_TYPES * sizeof(Reader))
        cdef list owned = []
        try:
            resolve_readers(readers, types, self.plan, self.wants_slots, owned)
        except BaseException:
            free(readers)
            raise
        free(self.readers)
        self.readers = readers
        self.reader_objects = owned

    # -- reports --------------------------------------------------------------------------------

    def update(self, list flows not None, double now, Py_ssize_t start=0, *, int64_t wall_ms=0):
        """Apply ``flows[start:]`` in order; return the index after the last flow applied.

        :param flows: instances of the types that were passed to `set_flow_types`.
        :param wall_ms: the system time in Unix milliseconds. No new row gets a later start time,
            because the clocks of agents may be ahead. 0: start times are not limited.
        :returns: ``len(flows)``, or the index of the first flow whose type lacks fields that the
            table needs for the flow. This flow and all later flows were neither applied nor
            counted: decode them as ``FullReport``, and continue from the index.
        :raises TypeError: an item is not an instance of any of the types; the flows before this
            item were applied.
        :raises MemoryError: an allocation failed for a flow; the flows before this flow were
            applied.
        :raises ValueError: ``start`` is negative.

        If a rewrite or lookup of a flow raises an exception, `update` passes the exception on, and
        applies neither the flow nor any later flow. Earlier flows may have been applied.

        docs/architecture.md describes what a report adds to connections. Skipped flows are counted
        in `skipped`, and omitted values in `values_skipped`.

        Takes the mutex once per 128 flows, or twice if lookups had new results. Holds the GIL while
        waiting for the mutex. Usually, the wait takes at most 0.5 ms: the time in which another
        thread renders or scans 2,048 connections. If the other thread is growing the hash table of
        `Page.distinct_values`, the wait takes about 20 ns per value in the hash table.
        """
        if start < 0:
            raise ValueError("start must not be negative")
        self.state.wall_ms = max(wall_ms, <int64_t>0)
        return update_flows(&self.state, &self.batch, self.readers, flows, start, now,
                            self.batch_objects)

    # -- expiry ---------------------------------------------------------------------------------

    def expire(self, double now, uint32_t max_rows):
        """Make flows dormant at their deadlines, and remove expired connections.

        Also forgets flows that have been dormant for too long (see `set_limits`). If there are more
        than `max_flows` flow rows, also forgets surplus dormant flows.

        :param max_rows: maximum number of visits to rows, and to empty slots of timer wheels. Each
            visit takes about 0.2 µs.
        :returns: whether there may be more to do at `now`.

        Pages do not show a row after its deadline, even if the row has not been removed yet. Until
        the row is removed, a delayed report can renew it.
        """
        cdef bint more
        with nogil:
            more = expire_slice(&self.state, <uint32_t>floor(now), max_rows)
        release_results(&self.state)
        return more

    # -- names ----------------------------------------------------------------------------------

    def relabel(self, names, keys):
        """After names have changed, begin to move flows to the connections with the new labels.

        :param names: the mapping that lookups use. After each change of the mapping, call this
            method again.
        :param keys: an iterable of the keys whose results have changed.
        :returns: an object whose method `step` moves flows.
        """
        cdef Relabeling relabeling = Relabeling.__new__(Relabeling)
        relabeling.table = self
        relabeling.names = names
        relabeling.keys = iter(keys)
        relabeling.pass_keys = []
        return relabeling

    def strings(self, uint32_t first, uint32_t count):
        """Return the interned strings with the numbers from `first` to ``first + count - 1``.

        The interned strings are label values, strings that lookups use, and UUIDs that are not
        64-bit numbers. Each interned string has a number, which stays the same while the table uses
        the string. The lowest number is 1.

        :returns: a pair of the strings and a number. The number is the value of `first` for the
            next call, or 0 if there are no more strings. All strings except UUIDs have the escapes
            of label values.
        """
        cdef uint64_t begin = max(first, <uint32_t>1)
        cdef uint64_t end = begin + count
        texts = strings_between(&self.state.strings, begin, end)
        return texts, (end if end < self.state.strings.end else 0)

    # -- pages ----------------------------------------------------------------------------------

    def page(self, double now, uint32_t openmetrics=0, *, created=False, uint32_t part=0,
             uint32_t parts=1, names=None):
        """Begin a page of the connections that exist at this call and have not expired at `now`.

        :param openmetrics: the format: 0 for the text format 0.0.4, 1 for OpenMetrics 1.0, 2 for
            OpenMetrics 2.0. The formats differ in metadata lines, start times and histograms; all
            other samples are the same. If a family uses a name that is reserved for another family,
            a page in OpenMetrics 1.0 is invalid.
        :param created: whether a page in OpenMetrics 1.0 has start times. If so, each sample of a
            counter, and each histogram, is followed by a sample ``_created`` with the start time.
            Pages in OpenMetrics 2.0 always have start times. A connection has no start time if its
            first report has no valid start time.
        :param part: show only the connections of this part, counted from 0. For the same `parts`, a
            connection is always in the same part: in all its families, on all pages, and in all
            processes.
        :param parts: the number of parts, at most `MAX_PARTS`.
        :param names: show only the families with these names; None shows all families. The page has
            the ``HELP`` and ``TYPE`` lines of a shown family even if no connection has a value.
        :raises ValueError: there is no such part or format.
        :raises MemoryError: an allocation failed.

        Any thread may read the page, but only one thread at a time. If there are several parts,
        finding the connections of one part takes about 25 ns per connection, in each view. If a
        view has bounds, the connections to show are selected when rendering reaches the view. The
        selection takes about 5 ns per connection. While the page exists, 4 bytes per selected
        connection are in use.
        """
        cdef uint32_t i
        cdef bint has_bounds = False
        cdef Page page = Page.__new__(Page)
        if not part < parts <= <uint32_t>MAX_PARTS:
            raise ValueError(f"part must be less than parts, and parts at most {MAX_PARTS}")
        if openmetrics > 2:
            raise ValueError("openmetrics must be 0, 1 or 2")
        page.table = self
        with nogil:
            page.cursor = begin_page(&self.state, <uint32_t>floor(now))
        page.cursor.head_index = openmetrics
        if openmetrics == 2:
            page.cursor.starts = START_INLINE
        elif openmetrics and created:
            page.cursor.starts = START_AS_SAMPLE
        page.cursor.part = part
        page.cursor.parts = parts
        for i in range(self.state.view_count):
            has_bounds |= bounds_are_set(&page.cursor.bounds[i])
        if parts > 1 or has_bounds:
            with nogil:
                page.cursor.row_list_capacity = max_view_rows(&self.state)
            page.cursor.row_list = <uint32_t *>malloc(
                (page.cursor.row_list_capacity + 1) * sizeof(uint32_t)
            )
            if page.cursor.row_list == NULL:
                raise MemoryError
        if names is not None:
            page.shown_families = bytes(name in names for name in self.family_names)
            page.cursor.shown_families = PyBytes_AS_STRING(page.shown_families)
        return page

    # -- label values ---------------------------------------------------------------------------

    def label_values(self):
        """Return the number of different values of each label of the first view.

        Takes about 1 ns per connection and label.
        """
        return count_label_values(&self.state, self.label_names)

    def cardinality(self, uint32_t count, str without=None, uint32_t view=0):
        """In one scan, count the values of each label of a view, and how often each value occurs.

        :param count: how many of the most frequent values to return for each label.
        :param without: the label for the fourth item of the result.
        :param view: the index of the view.
        :returns: a tuple of four items:

            * the number of connections in the view
            * for each label, a tuple of three items: the number of its values, its most frequent
              values, and the number of connections that would remain without the label
            * whether the numbers of connections that would remain are all exact. Numbers above
              32,768 are estimates with a standard error below 0.8 %.
            * the exact number of connections that would remain without the label that `without`
              names, or None if `without` is None

            The most frequent values are a list of at most `count` pairs (value, number of
            connections), in descending order of the number. Values that are removed during the call
            are left out.

        Takes about 20 ns per connection and label. Uses 512 KiB per label, and 24 to 48 bytes per
        label value. If `without` is set, the call takes 30 ns more per connection, and uses 24 to
        48 bytes more per connection.
        """
        if view >= self.state.view_count:
            raise IndexError("there is no such view")
        names = self.view_labels[view]
        cdef int32_t column = -1 if without is None else names.index(without)
        return label_frequencies(&self.state, names, view, count, column)

    # -- hidden connections ---------------------------------------------------------------------

    def hidden(self, double now):
        """For each view, return the number of hidden connections and the sum of their bytes.

        :returns: a list with an item for each view: a pair (number of connections, bytes), or None
            if the view has no bounds.

        Takes about 5 ns per connection of the views with bounds.
        """
        return hidden_rows(&self.state, <uint32_t>floor(now))

    def forecast(self, double now, uint32_t view, bounds):
        """Return how much a page at `now` would show of a view, for each given pair of bounds.

        :param view: the index of the view.
        :param bounds: pairs of `min_bytes` and `min_packets`, as in `set_limits`.
        :returns: a list with a tuple for each pair: the number of connections that the page would
            show, the number of their series, and the sum of their bytes (0 if the view does not
            count bytes).
        :raises ValueError: a pair is invalid, or has a bound for an amount (bytes or packets) that
            the view does not count.
        :raises MemoryError: an allocation failed.

        Takes about 10 ns per connection, plus 2 ns per connection and pair.
        """
        if view >= self.state.view_count:
            raise IndexError("the table has no such view")
        return forecast_view(&self.state, view, <uint32_t>floor(now), list(bounds))

    # -- top connections ------------------------------------------------------------------------

    def top(self, uint32_t family, uint32_t count, Snapshot since=None, str containing="",
            also=()):
        """Return the top connections of a view, ranked by one family of the view.

        :param family: the index of the family among the families of all views. The family must not
            be a histogram.
        :param count: maximum number of connections to return, up to 65,536.
        :param since: an earlier snapshot of the family. The family must be a counter. If `since` is
            set, connections are ranked by their growth since the snapshot, instead of by their
            value.
        :param containing: return only connections with a label value that contains this string.
            Label values are compared as they appear on a page, with escapes. Case is ignored,
            except for characters whose upper or lower case is longer than one character.
        :param also: pairs of a label and further values of this label. A connection with one of
            these values is returned even if no label value contains `containing`. The values are in
            UTF-8 with escapes, and a newline follows each value.
        :returns: a list with one tuple for each connection, in descending order of the rank:

            * the rank: for a counter, the sum of both directions; for a gauge, the higher value of
              the two directions
            * the label values
            * the values of the view's families in order, without histograms. The value of a missing
              series is None. The value of an existing series is an integer without its decimal
              point: for a family with 3 decimals, 1.5 is returned as 1500.
            * whether pages show the connection

        The result omits these connections:

        * connections that have no value in the family
        * if `since` is set, connections without growth
        * if `since` is set, connections that were restored from saved counters after the snapshot,
          because their growth is unknown

        Takes about 10 ns per connection. If `containing` is set, the call takes up to 40 ns more
        per connection and label.
        """
        cdef const SnapshotValues *contents = checked_snapshot(self, family, count, since)
        names = self.view_labels[self.state.families[family].view]
        value_sets = {names.index(label): values for label, values in also}
        return top_rows(&self.state, family, count, contents, containing, value_sets)

    def top_groups(self, uint32_t family, uint32_t count, labels, Snapshot since=None,
                   str containing="", also=(), uint32_t max_groups=MAX_RANKED):
        """Group connections with the same values of `labels`, and return the top groups.

        :param labels: one or more labels of the family's view.
        :param max_groups: the maximum number of groups, up to 65,536. If there are more groups, the
            half with the lowest ranks is added to "the others" and removed. If the scan finds more
            connections of a removed group, they form a new group, whose values are too low.
        :returns: a tuple of four items:

            * a list of the top groups. A group is a tuple of its rank, its label values in the
              order of `labels`, its values as in `top`, and its number of connections.
            * "the others", which are the connections that are in no top group: a tuple of their
              number, their rank (None if no connection has a rank), and their values as in `top`
            * the number of groups at the end of the scan
            * whether connections were added to "the others" during the scan, because there were too
              many groups or too many bytes of label values

        The other parameters are those of `top`. Counters and numbers of flows are summed. For a
        gauge that keeps the lowest value of its flows, a group has the lowest value of its
        connections. For any other gauge, a group has the highest value of its connections.

        Takes 100 to 200 ns per connection, or 1 µs if most connections are the only connection of
        their group. Uses 64 bytes per group, and 8 bytes per group and series. Label values use at
        most 256 bytes per group on average.
        """
        cdef const SnapshotValues *contents = checked_snapshot(self, family, count, since)
        names = self.view_labels[self.state.families[family].view]
        columns = tuple(names.index(label) for label in labels)
        if not 0 < len(columns) <= MAX_VIEW_COLUMNS:
            raise ValueError(f"there must be 1 to {MAX_VIEW_COLUMNS} labels")
        if not 0 < max_groups <= MAX_RANKED:
            raise ValueError(f"max_groups must be 1 to {MAX_RANKED}")
        value_sets = {names.index(label): values for label, values in also}
        return top_groups(&self.state, family, count, columns, contents, containing, value_sets,
                          max_groups)

    def snapshot(self, uint32_t family):
        """Copy the current values of a counter. Pass the copy to `top` as `since`.

        Takes about 10 ns per connection. A snapshot uses 12 bytes per connection.

        :raises ValueError: the family is not a counter.
        :raises MemoryError: an allocation failed.
        """
        cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
        if not ranked_family(&self.state, family).is_counter:
            raise ValueError("a snapshot requires a counter, not a gauge")
        snapshot.table = self
        snapshot.family = family
        take_snapshot(&self.state, family, &snapshot.contents)
        return snapshot

    # -- counts ---------------------------------------------------------------------------------

    # Any thread may read `connections` and `view_connections`. Only the thread that updates may
    # read the other counts.

    @property
    def connections(self):
        """The number of connections in the first view."""
        cdef uint32_t used
        with nogil:
            used = used_rows(&self.state, 0)
        return used

    @property
    def view_connections(self):
        """The number of connections in each view except the first."""
        cdef uint32_t i, used
        cdef list counts = []
        for i in range(1, self.state.view_count):
            with nogil:
                used = used_rows(&self.state, i)
            counts.append(used)
        return tuple(counts)

    @property
    def flows(self):
        """The number of live flows."""
        return live_flows(&self.state)

    @property
    def dormant_flows(self):
        """The number of dormant flows: they are not live, but the table knows their totals."""
        return dormant_rows(&self.state) - self.state.saved_connections

    @property
    def dormant_connections(self):
        """The number of removed connections whose counters are saved in separate dormant rows."""
        return self.state.saved_connections

    def dormant_uuids(self):
        """Return the UUIDs of dormant flows.

        Flows that claim a conversation come first, then flows that have ended, then all others. In
        each of the three groups, the oldest flows come first.
        """
        return [
            *list_uuids(&self.state, self.state.claims.head),
            *list_uuids(&self.state, self.state.ended.head),
            *list_uuids(&self.state, self.state.dormant.head),
        ]

    def known_totals(self, str uuid):
        """Return the known totals of a flow, and the time of its latest report.

        :returns: None if the flow is unknown, otherwise a tuple of three items:

            * a tuple with the total of each counter of the plan, or -1 if no report contained the
              counter
            * the highest ``Last``, in Unix milliseconds
            * an estimate of when the latest report arrived, in seconds of the caller's clock. The
              estimate is usually at most two seconds too late. For a dormant flow, it can also be
              up to `timeout_s` too early.
        """
        cdef const char *text
        cdef uint32_t length
        if read_text(<PyObject *>uuid, &text, &length) or length == 0:
            return None
        return known_totals(&self.state, text, length)

    @property
    def horizon_s(self):
        """The horizon: an unknown flow that began after this time has never been counted.

        The time is in seconds of the caller's clock, or None before the first `raise_horizon`. If a
        report of an unknown flow is added to overflow rows, the horizon rises to the current time.
        If the table forgets a flow that has not ended, the horizon rises to the time of the flow's
        last report.
        """
        return self.state.horizon_s if self.state.has_horizon else None

    @property
    def flow_update_s(self):
        """The agents' ``flow.update``: the interval between two reports of a flow, in seconds."""
        return self.state.flow_update_s

    @flow_update_s.setter
    def flow_update_s(self, double seconds):
        self.state.flow_update_s = seconds

    @property
    def bytes(self):
        """The memory of the rows (including free rows), indexes and strings, in bytes."""
        return self.state.arena.bytes

    @property
    def row_bytes(self):
        """The memory of a connection with one flow, in bytes.

        Strings, and rows of any view except the first, are not included.
        """
        return row_bytes(&self.state)

    @property
    def created_total(self):
        """The number of connections that were created in the first view."""
        return self.state.connections_created

    @property
    def expired_total(self):
        """The number of connections that were removed from the first view."""
        return self.state.expired

    @property
    def rejected_total(self):
        """The number of reports that required a new connection while the first view was full."""
        return self.state.rejected

    @property
    def view_rejected_totals(self):
        """A tuple of numbers like `rejected_total`, one for each view except the first."""
        cdef uint32_t i
        return tuple(self.state.views[i].rejected for i in range(1, self.state.view_count))

    @property
    def overflowed_total(self):
        """The number of reports that were added to the overflow row of the first view."""
        return self.state.overflow_reports

    @property
    def skipped(self):
        """Maps each reason for skipping a flow to the number of flows skipped for this reason."""
        cdef uint32_t i
        return {
            self.skip_names[i]: self.state.skips[i]
            for i in range(1, SKIP_REQUIRED + self.state.requirements)
        }

    @property
    def late_total(self):
        """The number of reports that were skipped as ``late``."""
        return self.state.skips[SKIP_LATE]

    @property
    def values_skipped(self):
        """Maps each field to the number of its values that were omitted from counted reports."""
        cdef uint32_t i
        return {
            name: self.state.omitted_counts[i]
            for i, name in enumerate(self.field_names)
            if name is not None
        }

    @property
    def finished(self):
        """Maps each meaning of ``FinishType`` to the number of reports, including late ones."""
        cdef uint32_t i
        return {FINISH_NAMES[i]: self.state.finishes[i] for i in range(4)}

    @property
    def times_ms(self):
        """The earliest and the latest ``Last`` in the latest `update`, in Unix milliseconds.

        If no report has a ``Last``, the latest time is 0, and the earliest time is 2^63 - 1.
        """
        return self.batch.oldest_ms, self.batch.newest_ms

    @property
    def met_unknown_flow(self):
        """Whether the latest `update` included a flow that the table did not know."""
        return self.state.met_unknown

    @property
    def reads_slots(self):
        """Whether fields are read at the offsets of their slots, instead of as attributes."""
        cdef uint32_t i
        return all(self.readers[i].slots for i in range(FLOW_TYPES))


@cython.final
cdef class Snapshot:
    """A copy of the values of one counter, by connection. Created by `Table.snapshot`."""

    cdef Table table
    cdef uint32_t family
    cdef SnapshotValues contents

    def __dealloc__(self):
        free(self.contents.values)
        free(self.contents.hashes)

    @property
    def bytes(self):
        """The memory of the snapshot, in bytes."""
        return self.contents.rows * (sizeof(int64_t) + sizeof(uint32_t))


cdef const SnapshotValues *checked_snapshot(Table table, uint32_t family, uint32_t count,
                                            Snapshot since) except? NULL:
    # Returns the values of the snapshot, or NULL if `since` is None.
    if count > MAX_RANKED:
        raise ValueError(f"count must be at most {MAX_RANKED}")
    ranked_family(&table.state, family)
    if since is None:
        return NULL
    if since.table is not table or since.family != family:
        raise ValueError("the snapshot is of another table or family")
    return &since.contents


@cython.final
cdef class Relabeling:
    """Moves flows whose names have changed. Created by `Table.relabel`."""

    cdef Table table
    cdef object names
    cdef object keys                    # iterator over the keys that have not been fetched yet
    cdef list pass_keys                 # keys of the current pass (see `relabel.pxi`)
    cdef RowRange rows                  # flow rows that the current pass has not visited yet

    def step(self, Py_ssize_t budget, *, int64_t wall_ms=0):
        """Move some flows to the connections with the new labels.

        :param budget: the maximum number of flows to move, and the maximum number of keys to fetch;
            0 counts as 1. The step visits up to 64 flow rows per unit of the budget. A visit takes
            about 10 ns, and a move about 0.5 µs.
        :param wall_ms: the system time in Unix milliseconds, or 0 if unknown. New connections have
            this start time.
        :returns: whether there may be more to do; False if no lookup uses the names.
        :raises MemoryError: an allocation failed; some flows may still have their old labels.

        If no connection has the new labels of a flow, a connection is created. Its counters start
        at zero, unless the table has saved counters of a removed connection with these labels. If
        the names of a key are invalid, the flows with this key keep their labels.

        Between two steps, names may change, and all methods of the table may be called. Until the
        last step, some flows have their new labels, and others still have their old labels. Each
        step uses the current names. If a key is ambiguous, its names depend on the flow's
        *context*: the other address of the flow, and its capture point. Each step calls
        `names.resolve` once for each different context of such a key.

        The code of `names` and `keys` must not call the table. If this code raises an exception,
        the step has moved no flow, and the next step tries again. Only the thread that updates may
        call this method.
        """
        self.table.state.wall_ms = max(wall_ms, <int64_t>0)
        return relabel_slice(
            &self.table.state, self.names, self.keys, self.pass_keys, &self.rows, budget
        )

    def visited(self):
        """Return the UUIDs of the live flows that the latest step visited."""
        return live_uuids(&self.table.state, self.rows.latest, self.rows.next)


@cython.final
cdef class Page:
    """A page that is being read. Created by `Table.page`."""

    cdef Table table
    cdef Cursor cursor
    cdef bytes shown_families           # owns the flags of `Cursor.shown_families`
    cdef Deflater *deflater             # NULL before the first call of `deflate`
    cdef bytearray text                 # owns the memory for the text of `deflater`

    def __dealloc__(self):
        free(self.cursor.row_list)
        if self.deflater != NULL:
            deflater_destroy(self.deflater)
            free(self.deflater)

    def read(self, Py_ssize_t size):
        """Return the next whole lines, about `size` bytes; ``b""`` at the end of the page.

        Rendering runs without the GIL, and releases the mutex after each slice of rows.
        """
        cdef Table table = self.table
        cdef Py_ssize_t wanted = max(size, <Py_ssize_t>1)
        cdef PyObject *out = PyBytes_FromStringAndSize(NULL, wanted + table.state.max_lines)
        cdef char *start = PyBytes_AS_STRING(<object>out)
        cdef char *end
        with nogil:
            end = render_lines(&table.state, &self.cursor, start, start + wanted, NULL)
        _PyBytes_Resize(&out, end - start)
        lines = <object>out
        Py_DECREF(lines)            # `lines` has its own reference
        return lines

    def deflate(self, Py_ssize_t size):
        """Like `read`, return the next lines. In addition, return them compressed with deflate.

        The compressed bytes of all calls together form a stream (RFC 1951) that lacks only its last
        block. A call after the last line of the page returns no lines. The compressed bytes of that
        call end at a byte boundary, so that the caller can append further blocks.

        :param size: the approximate size of the lines to return, in bytes; the maximum is 512 KiB.
        :returns: a pair: the lines, which the next call overwrites, and the compressed bytes.
        :raises MemoryError: an allocation failed.

        A page must be read either with this method or with `read`, not with both. To render and
        compress a page takes 60 % of the time that the library isal needs to only compress it, at
        level 1. Compression uses about 2 MiB per page.
        """
        cdef Table table = self.table
        cdef size_t length
        if self.deflater == NULL:
            start_deflater(self)
        with nogil:
            length = deflate_lines(&table.state, &self.cursor, self.deflater,
                                   max(size, <Py_ssize_t>1))
        lines = memoryview(self.text)[HISTORY:HISTORY + length]
        return lines, self.deflater.output[:self.deflater.writer.out - self.deflater.output]

    def distinct_values(self, str label not None):
        """Return the different values of a label in all views and parts, in no particular order.

        If this method is called before `read`, all values on the page are in the returned list. If
        rows have expired, or expire before `read`, some values in the list are not on the page.

        Takes 10 to 40 ns per row without the GIL, and then 1 µs per value with the GIL.

        :raises ValueError: no view has the label.
        :raises MemoryError: an allocation failed.
        """
        columns = [
            (number, i)
            for number, view in enumerate(self.table.plan.views)
            for i, column in enumerate(view.columns)
            if column.name == label
        ]
        if not columns:
            raise ValueError(f"no view has the label {label}")
        return values_on_page(&self.table.state, columns, &self.cursor)


cdef int start_deflater(Page page) except -1:
    cdef size_t max_lines = page.table.state.max_lines
    cdef Deflater *deflater = <Deflater *>allocate(sizeof(Deflater))
    try:
        page.text = bytearray(HISTORY + DEFLATE_CHUNK + max_lines)
        if not deflater_init(deflater, PyByteArray_AS_STRING(page.text), max_lines):
            raise MemoryError
    except BaseException:
        deflater_destroy(deflater)
        free(deflater)
        raise
    page.deflater = deflater
    return 0
