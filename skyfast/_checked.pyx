# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table with invariant checks, for tests only. This module replaces ``skyfast._table``.

This module includes ``_table.pyx``, and adds or changes the following:

* `check` checks that a whole table is consistent.
* Every allocation is counted, and `fail_allocation` makes a later allocation fail.
* `after_unlock` calls a function whenever the mutex is released.
* `page_slices` returns the pieces of a page (see ``table/pieces.pxi``). `deflate_pieces` compresses
  any text, split into any pieces.
* Free rows are filled with garbage, and AddressSanitizer reports reads of free rows.
* The table grows in small steps, so that every kind of growth occurs with a dozen rows. If the
  environment variable SKYFAST_STEPS is ``usual`` at import, the table grows in its usual steps.

Add checks here for every new structure of the core.
"""

cdef extern from *:
    """
    #define SKYFAST_CHECKED
    #include <pthread.h>
    #include <stdlib.h>
    #include <string.h>
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #else
    #define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
    #define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
    #endif

    static int skyfast_small_steps = 1;
    #define RENDER_ROWS (skyfast_small_steps ? 3 : 2048)
    #define RELABEL_ROWS (skyfast_small_steps ? 3 : 64)
    #define AHEAD (skyfast_small_steps ? 1 : 16)
    #define MAX_NAMES (skyfast_small_steps ? 6 : 1 << 16)
    #define SLAB_SHIFT (skyfast_small_steps ? 2 : 12)
    #define SEGMENT_SHIFT (skyfast_small_steps ? 2 : 12)
    #define MAX_WHEEL_SLOTS (skyfast_small_steps ? 8 : 4096)
    #define SAMPLE_KEYS (skyfast_small_steps ? 4 : 1 << 15)
    #define HUGE_PAGE_BYTES (skyfast_small_steps ? 64 : 2 << 20)
    #define FIRST_BLOCK_BYTES (skyfast_small_steps ? 64 : 4 << 20)
    #define BLOCK_BYTES (skyfast_small_steps ? 64 : 8 << 20)
    #define DEFLATE_SLICE (skyfast_small_steps ? 500 : 64 << 10)
    #define DEFLATE_CHUNK (skyfast_small_steps ? 1500 : 512 << 10)
    #define MIN_SAMPLE (skyfast_small_steps ? 200 : 16 << 10)

    static void row_unused(void *address, size_t size) {
        ASAN_UNPOISON_MEMORY_REGION(address, size);
        memset(address, 0xA5, size);
        ASAN_POISON_MEMORY_REGION(address, size);
    }
    static void row_used(void *address, size_t size) {
        ASAN_UNPOISON_MEMORY_REGION(address, size);
        (void)address, (void)size;
    }

    /* The number of memory blocks in use. */
    static long skyfast_blocks = 0;
    /* The number of allocations before the next requested failure. */
    static long skyfast_before_failure = 0;
    /* The number of requested failures that have not happened yet. */
    static long skyfast_failures = 0;

    static int skyfast_fails(void) {
        if (__atomic_load_n(&skyfast_failures, __ATOMIC_RELAXED) == 0) return 0;
        if (skyfast_before_failure > 0) { skyfast_before_failure--; return 0; }
        skyfast_failures--;
        return 1;
    }
    static void *skyfast_counted(void *block) {
        if (block) __atomic_add_fetch(&skyfast_blocks, 1, __ATOMIC_RELAXED);
        return block;
    }
    static void *skyfast_malloc(size_t size) {
        return skyfast_fails() ? NULL : skyfast_counted(malloc(size));
    }
    static void *skyfast_calloc(size_t count, size_t size) {
        return skyfast_fails() ? NULL : skyfast_counted(calloc(count, size));
    }
    static void *skyfast_realloc(void *block, size_t size) {
        void *moved = skyfast_fails() ? NULL : realloc(block, size);
        return block ? moved : skyfast_counted(moved);
    }
    static int skyfast_posix_memalign(void **block, size_t alignment, size_t size) {
        if (skyfast_fails() || posix_memalign(block, alignment, size)) return 12;
        skyfast_counted(*block);
        return 0;
    }
    static void skyfast_free(void *block) {
        if (block) __atomic_sub_fetch(&skyfast_blocks, 1, __ATOMIC_RELAXED);
        free(block);
    }

    /* A function to call after each release of a table's mutex, or NULL. */
    static void (*skyfast_after_unlock)(void) = NULL;

    static int skyfast_mutex_unlock(pthread_mutex_t *mutex) {
        void (*after_unlock)(void) = __atomic_load_n(&skyfast_after_unlock, __ATOMIC_RELAXED);
        int error = pthread_mutex_unlock(mutex);
        if (after_unlock) after_unlock();
        return error;
    }
    #define pthread_mutex_unlock(mutex) skyfast_mutex_unlock(mutex)
    #define malloc(size) skyfast_malloc(size)
    #define calloc(count, size) skyfast_calloc(count, size)
    #define realloc(block, size) skyfast_realloc(block, size)
    #define posix_memalign(block, alignment, size) skyfast_posix_memalign(block, alignment, size)
    #define free(block) skyfast_free(block)
    """
    int skyfast_small_steps
    long skyfast_blocks
    long skyfast_before_failure
    long skyfast_failures
    void (*skyfast_after_unlock)() noexcept nogil

include "_table.pyx"

skyfast_small_steps = os.environ.get("SKYFAST_STEPS") != "usual"


# ---------------------------------------------------------------------------------------------
# Allocations

def blocks():
    """Return the number of memory blocks in use by all tables."""
    return skyfast_blocks


def fail_allocation(long nth, long times=1):
    """Make `times` allocations in a row fail, after the next ``nth - 1`` allocations."""
    global skyfast_before_failure, skyfast_failures
    if nth < 1 or times < 1:
        raise ValueError("allocations are counted from 1")
    skyfast_before_failure = nth - 1
    skyfast_failures = times


def stop_failing():
    """Cancel the failures that are still requested, and return their number."""
    global skyfast_failures
    cdef long left = skyfast_failures
    skyfast_failures = 0
    return left


# ---------------------------------------------------------------------------------------------
# Interruptions

cdef object interruption = None


cdef void interrupt() noexcept with gil:
    global skyfast_after_unlock
    skyfast_after_unlock = NULL         # prevents recursion if `interruption` releases a mutex
    interruption()
    if interruption is not None:
        skyfast_after_unlock = interrupt


def after_unlock(function):
    """Call `function` whenever the mutex of a table is released; None stops the calls.

    `function` may call methods of tables. A test can use `function` to do what another thread could
    do between two slices of a call.
    """
    global interruption, skyfast_after_unlock
    interruption = function
    if function is None:
        skyfast_after_unlock = NULL
    else:
        skyfast_after_unlock = interrupt


# ---------------------------------------------------------------------------------------------
# Compression

MAX_SLICE = DEFLATE_SLICE


def page_slices(Page page not None):
    """Read a page; return slices of its text, with their pieces, for `deflate_pieces`."""
    cdef TableState *table = &page.table.state
    cdef Cursor *cursor = &page.cursor
    cdef Deflater *deflater
    cdef Piece *last
    cdef char *end
    cdef uint32_t family
    cdef list slices = []
    start_deflater(page)
    deflater = page.deflater
    while cursor.family < table.family_count:
        family = cursor.family
        last = deflater.notes
        end = render_lines(table, cursor, deflater.end, deflater.end + DEFLATE_SLICE, &last)
        last = expand_notes(table, family, cursor.starts, deflater.notes, last, deflater.pieces)
        pieces = [
            (deflater.pieces[i].length, deflater.pieces[i].source)
            for i in range(last - deflater.pieces)
        ]
        slices.append((deflater.end[:end - deflater.end], pieces))
    return slices


def deflate_pieces(slices, long_from=None):
    """Compress slices of text that are split into the given pieces; return the deflate blocks.

    :param slices: a pair for each slice: a text of up to `MAX_SLICE` bytes, and a list of up to
        `MAX_SLICE` / 2 pieces. A piece is a pair of a length and a source.
    :param long_from: the index of a slice that is compressed as if it began at position 2^32 - 1000
        of the page, shortly before 32-bit positions wrap around. The slices before this slice must
        have at least 32 KiB of text in total.
    """
    cdef Deflater *deflater = <Deflater *>allocate(sizeof(Deflater))
    cdef bytearray memory = bytearray(HISTORY + DEFLATE_CHUNK + 64)
    cdef char *start = PyByteArray_AS_STRING(memory) + HISTORY
    cdef Piece *last
    cdef list blocks = []
    try:
        if not deflater_init(deflater, PyByteArray_AS_STRING(memory), 64):
            raise MemoryError
        for number, (text, pieces) in enumerate(slices):
            if number == long_from:
                deflater.position = (<uint64_t>1 << 32) - 1000
            if len(text) > MAX_SLICE or len(pieces) > MAX_SLICE // 2:
                raise ValueError("a slice is too large")
            deflate_begin(deflater)
            memcpy(start, PyBytes_AS_STRING(text), len(text))
            last = deflater.pieces
            for length, source in pieces:
                last.length = length
                last.source = source
                last += 1
            deflate_slice(deflater, last, start + len(text))
            blocks.append(deflater.output[:deflater.writer.out - deflater.output])
        deflate_begin(deflater)
        end_blocks(deflater)
        blocks.append(deflater.output[:deflater.writer.out - deflater.output])
        return b"".join(blocks)
    finally:
        deflater_destroy(deflater)
        free(deflater)


# ---------------------------------------------------------------------------------------------
# Invariants

def set_next_seq(Table table not None, uint64_t next_seq):
    """Set the next sequence number of an empty table, as if it had created `next_seq` rows."""
    if table.state.strings.used or table.state.flow_rows.used:
        raise ValueError("there are rows already")
    table.state.next_seq = next_seq


def pack_and_unpack(int64_t new_flows, int64_t start_ms):
    """Pack a number of new flows and a start time; return both numbers after unpacking."""
    cdef Flow row
    row.last_ms = pack_saved(new_flows, start_ms)
    return saved_new_flows(&row), saved_start(&row)


class BrokenError(AssertionError):
    """The contents of a table are inconsistent."""


cdef int expect(bint holds, str what, numbers=()) except -1:
    if not holds:
        raise BrokenError(f"{what}: {numbers}")
    return 0


def peak_rows(Table table not None):
    """Return the peak number of rows, summed over all kinds of rows except conversations."""
    cdef uint32_t i, rows = table.state.strings.end + table.state.flow_rows.end
    rows += table.state.names.end
    for i in range(table.state.view_count):
        rows += table.state.views[i].rows.end
    return rows


def longest_chains(Table table not None):
    """For three kinds of rows, return the length of the longest chain in the index."""
    return {
        "strings": longest_chain(&table.state.strings),
        "flows": longest_chain(&table.state.flow_rows),
        "connections": longest_chain(&table.state.views[0].rows),
    }


cdef uint32_t longest_chain(const Rows *rows):
    cdef uint32_t bucket, number, length, longest = 0
    for bucket in range(rows.buckets):
        length = 0
        number = bucket_at(rows, bucket)[0]
        while number:
            length += 1
            number = head_at(rows, number).next
        longest = max(longest, length)
    return longest


def check(Table table not None):
    """Check that a table is consistent. Only the thread that updates the table may call this.

    Takes a few microseconds for each row that `peak_rows` counts.

    :raises BrokenError: the table is inconsistent.
    """
    _Check(table).check_all()


cdef size_t padded(size_t size):
    return (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)


cdef class _Check:
    cdef Table table
    cdef set strings, flows, conversations, names   # row numbers in use
    cdef set live, dormant, claims      # row numbers of flow rows
    cdef list rows                      # for each view: the set of row numbers in use
    cdef dict references                # by string number: number of references found so far
    cdef size_t bytes                   # size of the memory found so far, in bytes

    def __cinit__(self, Table table):
        self.table = table
        self.references = {}

    def check_all(self):
        cdef uint32_t i
        cdef TableState *table = &self.table.state
        self.strings = self.members("string", &table.strings)
        self.flows = self.members("flow", &table.flow_rows)
        self.conversations = set()
        if table.has_conversations:
            self.conversations = self.members("conversation", &table.conversations)
        self.names = set()
        if table.lookup_count:
            self.names = self.members("names", &table.names)
        self.rows = [
            self.members(f"view {i}", &table.views[i].rows) for i in range(table.view_count)
        ]
        self.check_dormant()
        self.check_flows()
        for i in range(table.view_count):
            self.check_view(i, &table.views[i])
        self.check_names()
        self.check_strings()
        self.check_wheels()
        expect(self.bytes == table.arena.bytes, "bytes in use", (self.bytes, table.arena.bytes))
        expect(not self.table.batch_objects, "the table still holds values of a batch")

    cdef set members(self, str kind, Rows *rows):
        # Check that each row is either once in the chain of its bucket, or once in the list of free
        # rows. Returns the row numbers in use.
        cdef uint32_t bucket, number
        cdef set used = set()
        cdef set unused = set()
        expect(rows.mask & (rows.mask + 1) == 0, f"mask of {kind} rows", (rows.mask,))
        expect(rows.mask >> 1 < rows.buckets <= rows.mask, f"number of buckets of {kind} rows",
               (rows.buckets, rows.mask))
        expect(rows.buckets <= rows.segment_count * SEGMENT_BUCKETS,
               f"number of segments of {kind} rows")
        expect(rows.end <= rows.slab_count * SLAB_ROWS, f"number of slabs of {kind} rows")
        for bucket in range(rows.buckets):
            number = bucket_at(rows, bucket)[0]
            while number:
                expect(0 < number < rows.end,
                       f"the index of {kind} rows contains an unused number", (number,))
                expect(number not in used,
                       f"the index of {kind} rows contains a row twice", (number,))
                expect(bucket_of(rows, head_at(rows, number).hash) == bucket_at(rows, bucket),
                       f"a {kind} row is in the wrong bucket", (number, bucket))
                used.add(number)
                number = head_at(rows, number).next
        expect(len(used) == rows.used, f"number of {kind} rows in use", (len(used), rows.used))
        number = rows.free_head
        while number:
            expect(0 < number < rows.end,
                   f"the list of free {kind} rows contains an unused number", (number,))
            expect(number not in unused,
                   f"the list of free {kind} rows contains a row twice", (number,))
            expect(number not in used, f"the index of {kind} rows contains a free row", (number,))
            unused.add(number)
            number = head_at(rows, number).next
        expect(len(used) + len(unused) + 1 == rows.end,
               f"{kind} rows are neither indexed nor free",
               (len(used), len(unused), rows.end))
        self.bytes += rows.slab_count * padded(<size_t>SLAB_ROWS * rows.stride)
        self.bytes += rows.segment_count * padded(SEGMENT_BUCKETS * sizeof(uint32_t))
        return used

    cdef int count_reference(self, uint32_t string, str what) except -1:
        expect(string in self.strings, f"a {what} refers to a free string row", (string,))
        self.references[string] = self.references.get(string, 0) + 1
        return 0

    cdef int check_dormant(self) except -1:
        cdef TableState *table = &self.table.state
        cdef set ended = self.check_list("ended", &table.ended)
        cdef set dormant = self.check_list("dormant", &table.dormant)
        cdef set claims = self.check_list("claims", &table.claims)
        cdef uint32_t number, saved = 0
        expect(len(ended | dormant | claims) == len(ended) + len(dormant) + len(claims),
               "a row is in two dormant lists", (ended, dormant, claims))
        for number in ended:
            expect(flow_at(table, number).connection & ENDED != 0,
                   "the list of ended flows contains a flow that has not ended", (number,))
            expect(not flow_at(table, number).connection & LABELS_KEY,
                   "counters of a removed connection are in the list of ended flows")
        for number in dormant:
            expect(not flow_at(table, number).connection & ENDED,
                   "the list of dormant flows contains an ended flow", (number,))
            if flow_at(table, number).connection & LABELS_KEY:
                saved += 1
                self.check_saved(flow_at(table, number))
        for number in claims:
            expect(is_claiming(table, number),
                   "the list of claims contains a flow that claims nothing", (number,))
        expect(saved == table.saved_connections, "number of saved connections",
               (saved, table.saved_connections))
        self.claims = claims
        self.dormant = ended | dormant | claims
        self.live = self.flows - self.dormant
        expect(len(self.live) == live_flows(table), "number of live flows")
        expect(table.batch == NULL and self.table.batch.strings_to_release_count == 0,
               "a batch has not been completed")
        return 0

    cdef set check_list(self, str kind, DormantList *rows):
        # Returns the row numbers in the list.
        cdef uint32_t number = rows.head, previous = 0, since_s = 0
        cdef set numbers = set()
        cdef Flow *flow
        while number:
            expect(number in self.flows, f"the list of {kind} rows contains a free row", (number,))
            expect(number not in numbers,
                   f"the list of {kind} rows contains a row twice", (number,))
            flow = flow_at(&self.table.state, number)
            expect(flow.connection & DORMANT != 0,
                   f"the list of {kind} rows contains a live row", (number,))
            expect(flow.connection & ROW == previous,
                   f"previous row of a {kind} row", (number, previous))
            expect(flow.deadline_s >= since_s,
                   f"the list of {kind} rows is not in order of time", (number,))
            since_s = flow.deadline_s
            numbers.add(number)
            previous = number
            number = flow.wheel_next
        expect(rows.tail == previous, f"last row of the list of {kind} rows", (rows.tail, previous))
        expect(rows.count == len(numbers), f"number of {kind} rows", (rows.count, len(numbers)))
        return numbers

    cdef int check_flows(self) except -1:
        cdef TableState *table = &self.table.state
        cdef uint32_t number, i
        cdef Flow *flow
        cdef const int64_t *totals
        cdef set keys = set()
        cdef dict conversation_flows = {}
        for number in range(1, table.flow_rows.end):
            flow = <Flow *>row_at(&table.flow_rows, number)
            expect((number in self.flows) == (flow.connection != 0),
                   "a flow row is in use without a connection, or the reverse", (number,))
            if number not in self.flows:
                continue
            kind = flow.connection & (STRING_KEY | LABELS_KEY)
            if kind == STRING_KEY:
                self.count_reference(flow.key_high, "flow key")
                expect(<uint32_t>string_key(flow.key_high) == flow.hash, "hash of a string key")
            expect(kind in (0, STRING_KEY) or number in self.dormant,
                   "a row with a removed connection's counters is not dormant")
            keys.add((flow.hash, flow.key_high, kind))
            expect((flow.connection & DORMANT != 0) == (number in self.dormant),
                   "the DORMANT flag does not match the lists", (number,))
            totals = <const int64_t *>(flow + 1)
            for i in range(table.counters):
                expect(totals[i] >= (ABSENT if table.optional[i] else 0), "total of a flow",
                       (number, i, totals[i]))
            if table.events and kind != LABELS_KEY:
                expect(flags_of(table, flow)[0] & ~table.events == 0, "flags of a flow",
                       (number, flags_of(table, flow)[0], table.events))
            if table.has_conversations:
                i = links_of(table, flow)[0]
                expect(i in self.conversations or (i == 0 and number in self.dormant),
                       "a flow links to a free conversation row", (number, i))
                if i:
                    counts = conversation_flows.setdefault(i, [0, 0])
                    counts[number in self.dormant] += 1
            if number in self.dormant:
                continue
            for i in range(table.label_value_count - table.columns):
                self.count_reference(
                    links_of(table, flow)[table.first_lookup_string + i], "lookup's string"
                )
        expect(len(keys) == len(self.flows), "two flows have the same key")
        expect(conversation_flows.keys() == self.conversations, "a conversation has no flows")
        for number, counts in conversation_flows.items():
            expect([conversation_at(table, number).flows,
                    conversation_at(table, number).dormant] == counts,
                   "number of a conversation's flows", (number, counts))
            claimant = conversation_at(table, number).claimant
            expect(claimant in self.claims or claimant in (0, SUPERSEDED),
                   "a conversation is claimed by a flow that claims nothing", (number, claimant))
            expect(claimant != SUPERSEDED or not conversation_at(table, number).flows,
                   "a superseded conversation has live flows", (number,))
        return 0

    cdef int check_saved(self, const Flow *saved) except -1:
        cdef int64_t new_flows = saved_new_flows(saved)
        expect(new_flows >= 0 and pack_saved(new_flows, saved_start(saved)) == saved.last_ms,
               "saved number of new flows, and saved start time", (saved.last_ms,))
        return 0

    cdef int check_view(self, uint32_t view_index, View *view) except -1:
        cdef TableState *table = &self.table.state
        cdef set rows = self.rows[view_index]
        cdef set labels = set()
        cdef dict flows = {}
        cdef dict deadlines_s = {}
        cdef uint32_t number, link, i
        cdef Flow *flow
        cdef Connection *row
        cdef const uint32_t *label_ids
        cdef int64_t value
        for number in self.live:
            flow = <Flow *>row_at(&table.flow_rows, number)
            link = flow.connection & ROW
            expect(link in <set>self.rows[0],
                   "a flow links to a free connection row", (number, link))
            if view_index:
                link = link_of(table, view, flow, connection_at(&table.views[0], link))[0]
                if link == 0:           # the view was full
                    continue
                expect(link in rows,
                       "a flow links to a free row of a view", (view_index, number, link))
            flows[link] = flows.get(link, 0) + 1
            deadlines_s[link] = max(deadlines_s.get(link, 0), flow.deadline_s)
        for number in range(1, view.rows.end):
            row = connection_at(view, number)
            if number not in rows:
                expect(row.deadline_s == 0, "a free row has a deadline", (view_index, number))
                continue
            expect(flows_of(row) == flows.get(number, 0), "number of a row's flows",
                   (view_index, number, row.flows, flows.get(number, 0)))
            expect(row.deadline_s >= deadlines_s.get(number, 1),
                   "the deadline of a row is before a deadline of its flows",
                   (view_index, number, row.deadline_s, deadlines_s.get(number)))
            expect((row.deadline_s == NEVER_S) == (number == view.overflow),
                   "only the overflow row may have no deadline",
                   (view_index, number, view.overflow))
            expect(view_index or flows_of(row) or number == view.overflow,
                   "a connection has no flows", (number,))
            expect(<uint32_t>table.next_seq - row.created_seq < <uint32_t>1 << 31,
                   "a row has a sequence number from the future",
                   (view_index, number, row.created_seq, table.next_seq))
            label_ids = label_ids_of(view, row)
            expect(row.hash == hash_bytes32(<const char *>label_ids, 4 * view.columns, table.seed),
                   "hash of a row's labels", (view_index, number))
            labels.add(tuple(label_ids[i] for i in range(view.columns)))
            for i in range(view.columns):
                if label_ids[i] & IS_STRING:
                    self.count_reference(label_ids[i] & ~IS_STRING, "label")
            for i in range(view.values + view.counts_new_flows):
                value = (<const int64_t *>(<char *>row + view.values_offset))[i]
                expect(value >= (ABSENT if i < view.counters and table.optional[view.sources[i]]
                                 else 0), "value of a row", (view_index, number, i, value))
            self.check_histograms(view, row)
            value = start_of(view, row)[0]
            expect(value >= (0 if flows_of(row) else NO_START), "start time of a row",
                   (view_index, number, value))
        expect(len(labels) == len(rows), "two rows have the same labels", (view_index,))
        expect(view.overflow == 0 or view.overflow in rows,
               "the overflow row is free", (view_index,))
        return 0

    cdef int check_histograms(self, View *view, Connection *row) except -1:
        # Check that the sum of each histogram is possible with the counts of its buckets. A sum
        # that reaches INT64_MAX no longer changes.
        cdef const Histogram *histogram
        cdef const int64_t *counts
        cdef uint32_t i, j
        for i in range(view.histogram_count):
            histogram = &view.histograms[i]
            expect(view.values_offset <= histogram.offset < view.label_ids_offset,
                   "offset of a histogram", (i, histogram.offset))
            counts = counts_of(histogram, row)
            lowest = highest = 0
            for j in range(histogram.bound_count + 1):
                expect(0 <= counts[j] <= MAX_INTEGER, "count of a bucket", (i, j, counts[j]))
                if j:
                    lowest += <object>counts[j] * (<object>histogram.limits[j - 1] + 1)
                highest += <object>counts[j] * <object>(
                    histogram.limits[j] if j < histogram.bound_count else MAX_INTEGER
                )
            expect(min(lowest, INT64_MAX) <= counts[histogram.bound_count + 1] <= highest,
                   "sum of a histogram", (i, counts[histogram.bound_count + 1], lowest, highest))
        return 0

    cdef int check_names(self) except -1:
        cdef TableState *table = &self.table.state
        cdef const Lookup *lookup
        cdef NamesRow *row
        cdef uint32_t number, i
        cdef set results = set()
        expect(table.names.used <= MAX_NAMES, "number of names", (table.names.used,))
        for number in range(1, table.names.end):
            row = names_at(table, number)
            expect((number in self.names) == (row.result != NULL),
                   "a names row is in use without a result, or the reverse", (number,))
            if number not in self.names:
                continue
            expect(row.label_set < table.lookup_count, "label set of a names row",
                   (number, row.label_set))
            lookup = &table.lookups[row.label_set]
            results.add((<size_t>row.result, row.label_set))
            expect(row.hash == names_hash(lookup, row.result), "hash of a names row", (number,))
            expect(row.count == lookup.columns, "number of labels of a names row", (number,))
            for i in range(row.count):
                self.count_reference(row.strings[i], "names row")
                text = label_text(table, row.strings[i])
                expect(text == (<object>row.result)[table.name_indexes[lookup.column + i]],
                       "label of a names row", (number, i, text))
        expect(len(results) == len(self.names), "a result has two rows")
        return 0

    cdef int check_strings(self) except -1:
        cdef TableState *table = &self.table.state
        cdef uint32_t number
        cdef set contents = set()
        cdef String *string
        for number in range(1, table.strings.end):
            string = <String *>row_at(&table.strings, number)
            expect(string.refs == self.references.get(number, 0),
                   "number of references to a string",
                   (number, string.refs, self.references.get(number, 0)))
            if number not in self.strings:
                continue
            expect(string.refs != 0, "a string in use has no references", (number,))
            expect(string.length <= MAX_LABEL_BYTES, "length of a string", (number, string.length))
            expect(string.hash == hash_bytes32(string_bytes(string), string.length, table.seed),
                   "hash of a string", (number,))
            contents.add(string_bytes(string)[:string.length])
            if string.length > INLINE_STRING:
                self.bytes += string.length + 16
        expect(len(contents) == len(self.strings), "a string is stored twice")
        return 0

    cdef int check_wheels(self) except -1:
        cdef TableState *table = &self.table.state
        cdef View *view
        cdef Flow *flow
        cdef Connection *row
        cdef uint32_t i, slot_s, number
        cdef set in_wheel = set()
        for slot_s, number in self.slots(&table.wheel):
            while number:
                expect(number in self.live, "the wheel contains a flow that is not live", (number,))
                expect(number not in in_wheel, "the wheel contains a flow twice", (number,))
                in_wheel.add(number)
                flow = <Flow *>row_at(&table.flow_rows, number)
                expect(slot_s <= max(flow.deadline_s, table.wheel.next_s),
                       "the slot of a flow is after its deadline",
                       (number, slot_s, flow.deadline_s))
                number = flow.wheel_next
        expect(in_wheel == self.live, "live flows are missing in the wheel",
               (self.live - in_wheel,))
        in_wheel = set()
        if table.lookup_count:
            for slot_s, number in self.slots(&table.names_wheel):
                while number:
                    expect(number in self.names, "the wheel contains a free names row", (number,))
                    expect(number not in in_wheel, "the wheel contains names twice", (number,))
                    in_wheel.add(number)
                    expect(slot_s <= max(names_at(table, number).deadline_s,
                                         table.names_wheel.next_s),
                           "the slot of names is after their deadline", (number, slot_s))
                    number = names_at(table, number).wheel_next
        expect(in_wheel == self.names, "names are missing in the wheel", (self.names - in_wheel,))
        for i in range(1, table.view_count):
            view = &table.views[i]
            in_wheel = set()
            for slot_s, number in self.slots(&view.wheel):
                while number:
                    expect(number in <set>self.rows[i],
                           "the wheel contains a free row", (i, number))
                    expect(number not in in_wheel, "the wheel contains a row twice", (i, number))
                    in_wheel.add(number)
                    row = connection_at(view, number)
                    expect(slot_s <= max(row.deadline_s, view.wheel.next_s),
                           "the slot of a row is after its deadline",
                           (i, number, slot_s, row.deadline_s))
                    number = row.links[0]
            # A row that existed before it became the overflow row is in the wheel. A row that was
            # created as the overflow row is not.
            expect(in_wheel | {view.overflow} == <set>self.rows[i] | {view.overflow},
                   "rows are missing in the wheel", (i, <set>self.rows[i] - in_wheel))
        return 0

    cdef list slots(self, TimerWheel *wheel):
        cdef uint32_t slot_s
        return [
            (slot_s, wheel.slots[slot_s & wheel.mask])
            for slot_s in range(wheel.next_s, wheel.next_s + wheel.mask + 1)
        ]
