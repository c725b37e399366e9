# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, nonecheck=False, freethreading_compatible=False
"""The table with invariant checks, for tests only. It replaces ``skyfast._table``.

It consists of ``_table.pyx``, with all files that it includes, and three additions:

* `check` visits everything in a table and checks that it is consistent.
* Every allocation is counted, and `fail_allocation` makes a later one fail.
* Rows that are not in use are filled with garbage, and AddressSanitizer reports reads of them. The
  steps of growth are so small that a dozen rows cover all of them, unless SKYFAST_STEPS is
  ``usual`` when this module is imported.

Add checks here for every new structure of the core.
"""

cdef extern from *:
    """
    #define SKYFAST_CHECKED
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
    #define AHEAD (skyfast_small_steps ? 1 : 16)
    #define SLAB_SHIFT (skyfast_small_steps ? 2 : 12)
    #define SEGMENT_SHIFT (skyfast_small_steps ? 2 : 12)
    #define MAX_WHEEL_SLOTS (skyfast_small_steps ? 8 : 4096)
    #define HUGE_PAGE_BYTES (skyfast_small_steps ? 64 : 2 << 20)
    #define FIRST_PIECE_BYTES (skyfast_small_steps ? 64 : 4 << 20)
    #define PIECE_BYTES (skyfast_small_steps ? 64 : 8 << 20)

    static void row_unused(void *address, size_t size) {
        ASAN_UNPOISON_MEMORY_REGION(address, size);
        memset(address, 0xA5, size);
        ASAN_POISON_MEMORY_REGION(address, size);
    }
    static void row_used(void *address, size_t size) {
        ASAN_UNPOISON_MEMORY_REGION(address, size);
        (void)address, (void)size;
    }

    /* Blocks in use by all tables; successful calls before the next failures; failures to come. */
    static long skyfast_blocks = 0;
    static long skyfast_before_failure = 0;
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

include "_table.pyx"

skyfast_small_steps = os.environ.get("SKYFAST_STEPS") != "usual"


# ---------------------------------------------------------------------------------------------
# Allocations

def blocks():
    """Return the number of memory blocks in use by all tables."""
    return skyfast_blocks


def fail_allocation(long nth, long times=1):
    """Make the `nth` allocation from now on fail, counted from 1, and `times` in total."""
    global skyfast_before_failure, skyfast_failures
    if nth < 1 or times < 1:
        raise ValueError("allocations are counted from 1")
    skyfast_before_failure = nth - 1
    skyfast_failures = times


def stop_failing():
    """Stop failing allocations; return how many of the requested failures have not happened."""
    global skyfast_failures
    cdef long left = skyfast_failures
    skyfast_failures = 0
    return left


# ---------------------------------------------------------------------------------------------
# Invariants

def age(Table table not None, uint64_t next_seq):
    """Make a table without rows look as if it had created `next_seq` rows."""
    if table.state.strings.live or table.state.flow_rows.live:
        raise ValueError("there are rows already")
    table.state.next_seq = next_seq


class BrokenError(AssertionError):
    """The contents of a table are inconsistent."""


cdef int expect(bint holds, str what, numbers=()) except -1:
    if not holds:
        raise BrokenError(f"{what}: {numbers}")
    return 0


def rows_ever(Table table not None):
    """Return the peak numbers of rows of all kinds, added up: `check` takes time for each."""
    cdef uint32_t i, rows = table.state.strings.fresh + table.state.flow_rows.fresh
    for i in range(table.state.view_count):
        rows += table.state.views[i].rows.fresh
    return rows


def longest_chains(Table table not None):
    """Return the length of the longest chain in the index, by kind of row."""
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
    """Check that everything in a table is consistent. Only for the thread that updates it.

    Takes some microseconds per row.

    :raises BrokenError: it is not.
    """
    _Check(table).everything()


cdef size_t padded(size_t size):
    return (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)


cdef class _Check:
    cdef Table table
    cdef set strings, flows, conversations
    cdef set live, dormant              # flow rows
    cdef list rows                      # sets of row numbers, by view
    cdef dict references                # number of references found, by string
    cdef size_t bytes                   # memory found

    def __cinit__(self, Table table):
        self.table = table
        self.references = {}

    def everything(self):
        cdef uint32_t i
        cdef TableState *table = &self.table.state
        self.strings = self.members("text", &table.strings)
        self.flows = self.members("flow", &table.flow_rows)
        self.conversations = set()
        if table.converses:
            self.conversations = self.members("conversation", &table.conversations)
        self.rows = [
            self.members(f"row of view {i}", &table.views[i].rows) for i in range(table.view_count)
        ]
        self.check_dormant()
        self.check_flows()
        for i in range(table.view_count):
            self.check_view(i, &table.views[i])
        self.check_texts()
        self.check_wheels()
        expect(self.bytes == table.arena.bytes, "bytes", (self.bytes, table.arena.bytes))
        expect(not self.table.held, "a batch's values are still held")

    cdef set members(self, str kind, Rows *rows):
        # Each row in use is in exactly one chain, the one in which it is looked up; all others are
        # in the list of free rows.
        cdef uint32_t bucket, number
        cdef set found = set()
        cdef set unused = set()
        expect(rows.mask & (rows.mask + 1) == 0, f"{kind}: mask", (rows.mask,))
        expect(rows.mask >> 1 < rows.buckets <= rows.mask, f"{kind}: buckets",
               (rows.buckets, rows.mask))
        expect(rows.buckets <= rows.segment_count * SEGMENT_BUCKETS, f"{kind}: segments")
        expect(rows.fresh <= rows.slab_count * SLAB_ROWS, f"{kind}: slabs")
        for bucket in range(rows.buckets):
            number = bucket_at(rows, bucket)[0]
            while number:
                expect(0 < number < rows.fresh, f"{kind} that never was", (number,))
                expect(number not in found, f"{kind} twice in the index", (number,))
                expect(bucket_of(rows, head_at(rows, number).hash) == bucket_at(rows, bucket),
                       f"{kind} in another bucket than its own", (number, bucket))
                found.add(number)
                number = head_at(rows, number).next
        expect(len(found) == rows.live, f"{kind}: in use", (len(found), rows.live))
        number = rows.free_head
        while number:
            expect(0 < number < rows.fresh, f"free {kind} that never was", (number,))
            expect(number not in unused, f"free {kind} twice in its list", (number,))
            expect(number not in found, f"free {kind} in the index", (number,))
            unused.add(number)
            number = head_at(rows, number).next
        expect(len(found) + len(unused) + 1 == rows.fresh, f"{kind} lost",
               (len(found), len(unused), rows.fresh))
        self.bytes += rows.slab_count * padded(<size_t>SLAB_ROWS * rows.stride)
        self.bytes += rows.segment_count * padded(SEGMENT_BUCKETS * sizeof(uint32_t))
        return found

    cdef int refer(self, uint32_t text, str what) except -1:
        expect(text in self.strings, f"a {what}'s text is free", (text,))
        self.references[text] = self.references.get(text, 0) + 1
        return 0

    cdef int check_dormant(self) except -1:
        cdef TableState *table = &self.table.state
        cdef set ended = self.listed("ended", &table.ended)
        cdef set dormant = self.listed("dormant", &table.dormant)
        cdef uint32_t number, kept = 0
        expect(not ended & dormant, "a row is in both lists", (ended & dormant,))
        for number in ended:
            expect(flow_at(table, number).connection & ENDED != 0, "a row has not ended", (number,))
            expect(not flow_at(table, number).connection & LABELS_KEY, "a connection has ended")
        for number in dormant:
            expect(not flow_at(table, number).connection & ENDED, "a row has ended", (number,))
            kept += flow_at(table, number).connection & LABELS_KEY != 0
        expect(kept == table.kept_connections, "connections that are kept",
               (kept, table.kept_connections))
        self.dormant = ended | dormant
        self.live = self.flows - self.dormant
        expect(len(self.live) == live_flows(table), "live flows")
        expect(table.batch == NULL and self.table.batch.dead_string_count == 0,
               "a batch is open")
        return 0

    cdef set listed(self, str kind, DormantList *rows):
        cdef uint32_t number = rows.head, before = 0, since_s = 0
        cdef set found = set()
        cdef Flow *flow
        while number:
            expect(number in self.flows, f"{kind} row that is free", (number,))
            expect(number not in found, f"{kind} row twice in its list", (number,))
            flow = flow_at(&self.table.state, number)
            expect(flow.connection & DORMANT != 0, f"{kind} row is live", (number,))
            expect(flow.connection & ROW == before, f"{kind} row's link back", (number, before))
            expect(flow.deadline_s >= since_s, f"{kind} row out of order", (number,))
            since_s = flow.deadline_s
            found.add(number)
            before = number
            number = flow.wheel_next
        expect(rows.tail == before, f"{kind}: the last", (rows.tail, before))
        expect(rows.count == len(found), f"{kind}: count", (rows.count, len(found)))
        return found

    cdef int check_flows(self) except -1:
        cdef TableState *table = &self.table.state
        cdef uint32_t number, i
        cdef Flow *flow
        cdef const int64_t *totals
        cdef set keys = set()
        cdef dict talking = {}
        for number in range(1, table.flow_rows.fresh):
            flow = <Flow *>row_at(&table.flow_rows, number)
            expect((number in self.flows) == (flow.connection != 0),
                   "a flow is free and leads to a connection, or neither", (number,))
            if number not in self.flows:
                continue
            kind = flow.connection & (STRING_KEY | LABELS_KEY)
            if kind == STRING_KEY:
                self.refer(flow.key_high, "flow key")
                expect(<uint32_t>string_key(flow.key_high) == flow.hash, "a text key's hash")
            expect(kind in (0, STRING_KEY) or number in self.dormant, "a live row of a connection")
            keys.add((flow.hash, flow.key_high, kind))
            expect((flow.connection & DORMANT != 0) == (number in self.dormant),
                   "a dormant row is in no list", (number,))
            totals = <const int64_t *>(flow + 1)
            for i in range(table.counters):
                expect(totals[i] >= (ABSENT if table.optional[i] else 0), "a flow's total",
                       (number, i, totals[i]))
            if table.converses:
                i = links_of(table, flow)[0]
                expect(i in self.conversations or (i == 0 and number in self.dormant),
                       "a flow's conversation is free", (number, i))
                if i:
                    counts = talking.setdefault(i, [0, 0])
                    counts[number in self.dormant] += 1
            if number in self.dormant:
                continue
            for i in range(table.cells - table.columns):
                self.refer(links_of(table, flow)[table.keys_at + i], "lookup's string")
        expect(len(keys) == len(self.flows), "two flows have the same key")
        expect(talking.keys() == self.conversations, "a conversation without flows")
        for number, counts in talking.items():
            expect([conversation_at(table, number).flows,
                    conversation_at(table, number).dormant] == counts,
                   "flows of a conversation", (number, counts))
            expect(not (conversation_at(table, number).superseded
                        and conversation_at(table, number).flows),
                   "a conversation of two points", (number,))
        return 0

    cdef int check_view(self, uint32_t at, View *view) except -1:
        cdef TableState *table = &self.table.state
        cdef set rows = self.rows[at]
        cdef set labels = set()
        cdef dict flows = {}
        cdef dict deadlines_s = {}
        cdef uint32_t number, link, i
        cdef Flow *flow
        cdef Connection *row
        cdef const uint32_t *cells
        cdef int64_t value
        for number in self.live:
            flow = <Flow *>row_at(&table.flow_rows, number)
            link = flow.connection & ROW
            expect(link in <set>self.rows[0], "a flow's connection is free", (number, link))
            if at:
                link = link_of(table, view, flow, connection_at(&table.views[0], link))[0]
                if link == 0:           # the view was full
                    continue
                expect(link in rows, "a flow's row is free", (at, number, link))
            flows[link] = flows.get(link, 0) + 1
            deadlines_s[link] = max(deadlines_s.get(link, 0), flow.deadline_s)
        for number in range(1, view.rows.fresh):
            row = connection_at(view, number)
            if number not in rows:
                expect(row.deadline_s == 0, "a free row has a deadline", (at, number))
                continue
            expect(flows_of(row) == flows.get(number, 0), "flows of a row",
                   (at, number, row.flows, flows.get(number, 0)))
            expect(row.deadline_s >= deadlines_s.get(number, 1), "a row leaves before its flows",
                   (at, number, row.deadline_s, deadlines_s.get(number)))
            expect((row.deadline_s == NEVER_S) == (number == view.other),
                   "a row that never leaves", (at, number, view.other))
            expect(at or flows_of(row) or number == view.other, "a connection without flows",
                   (number,))
            expect(<uint32_t>table.next_seq - row.created_seq < <uint32_t>1 << 31,
                   "created in the future", (at, number, row.created_seq, table.next_seq))
            cells = cells_of(view, row)
            expect(row.hash == hash_bytes32(<const char *>cells, 4 * view.columns, table.seed),
                   "the hash of a row's labels", (at, number))
            labels.add(tuple(cells[i] for i in range(view.columns)))
            for i in range(view.columns):
                if cells[i] & IS_STRING:
                    self.refer(cells[i] & ~IS_STRING, "label")
            for i in range(view.values):
                value = (<const int64_t *>(<char *>row + view.values_at))[i]
                expect(value >= (ABSENT if i < view.counters and table.optional[view.sources[i]]
                                 else 0), "a row's value", (at, number, i, value))
        expect(len(labels) == len(rows), "two rows have the same labels", (at,))
        expect(view.other == 0 or view.other in rows, "the row of others is free", (at,))
        return 0

    cdef int check_texts(self) except -1:
        cdef TableState *table = &self.table.state
        cdef uint32_t number
        cdef set contents = set()
        cdef String *text
        for number in range(1, table.strings.fresh):
            text = <String *>row_at(&table.strings, number)
            expect(text.refs == self.references.get(number, 0), "references to a text",
                   (number, text.refs, self.references.get(number, 0)))
            if number not in self.strings:
                continue
            expect(text.refs != 0, "a text that nobody has", (number,))
            expect(text.length <= MAX_CELL, "a text's length", (number, text.length))
            expect(text.hash == hash_bytes32(string_bytes(text), text.length, table.seed),
                   "a text's hash", (number,))
            contents.add(string_bytes(text)[:text.length])
            if text.length > INLINE_STRING:
                self.bytes += text.length + 16
        expect(len(contents) == len(self.strings), "a text is kept twice")
        return 0

    cdef int check_wheels(self) except -1:
        cdef TableState *table = &self.table.state
        cdef View *view
        cdef Flow *flow
        cdef Connection *row
        cdef uint32_t i, slot_s, number
        cdef set filed = set()
        for slot_s, number in self.slots(&table.wheel):
            while number:
                expect(number in self.live, "a flow that is not live in the wheel", (number,))
                expect(number not in filed, "a flow twice in the wheel", (number,))
                filed.add(number)
                flow = <Flow *>row_at(&table.flow_rows, number)
                expect(slot_s <= max(flow.deadline_s, table.wheel.next_s),
                       "a flow's turn comes late", (number, slot_s, flow.deadline_s))
                number = flow.wheel_next
        expect(filed == self.live, "flows in no slot", (self.live - filed,))
        for i in range(1, table.view_count):
            view = &table.views[i]
            filed = set()
            for slot_s, number in self.slots(&view.wheel):
                while number:
                    expect(number in <set>self.rows[i], "a free row in the wheel", (i, number))
                    expect(number not in filed, "a row twice in the wheel", (i, number))
                    filed.add(number)
                    row = connection_at(view, number)
                    expect(slot_s <= max(row.deadline_s, view.wheel.next_s),
                           "a row's turn comes late", (i, number, slot_s, row.deadline_s))
                    number = row.links[0]
            # A row that existed before it became the overflow row is in the wheel, too.
            expect(filed | {view.other} == <set>self.rows[i] | {view.other},
                   "rows in no slot", (i, <set>self.rows[i] - filed))
        return 0

    cdef list slots(self, TimerWheel *wheel):
        cdef uint32_t slot_s
        return [
            (slot_s, wheel.slots[slot_s & wheel.mask])
            for slot_s in range(wheel.next_s, wheel.next_s + wheel.mask + 1)
        ]
