# Applying reports. Part of `_table.pyx`, which includes it.

cdef enum:
    # Outcomes of `apply_unknown` beside the reasons to skip.
    APPLY_STOP = MAX_SKIPS
    APPLY_NO_MEMORY


cdef inline uint64_t string_key(uint32_t text) noexcept nogil:
    # The key of a flow whose UUID is an interned text: its number above, a hash of that below.
    return (<uint64_t>text << 32) | <uint32_t>mix64(text)


cdef void look_up_flows(TableState *table, uint32_t size) noexcept:
    # Passes, so that the memory of one flow is on its way while others are looked at.
    cdef uint32_t i, j, number
    cdef Flow *flow
    cdef Connection *connection
    cdef Report *report
    cdef const Rows *rows = &table.views[0].rows
    for i in range(size):
        report = &table.reports[i]
        if report.skip == SKIP_NONE and report.key_text == NULL:
            number = bucket_of(&table.flow_rows, <uint32_t>report.key)[0]
            if number:
                prefetch(row_at(&table.flow_rows, number))
                prefetch(row_at(&table.flow_rows, number) + table.flow_rows.stride - 1)
    for i in range(size):
        report = &table.reports[i]
        if report.skip == SKIP_NONE:
            report.flow = find_flow(table, report)
            if report.flow:
                number = (<Flow *>row_at(&table.flow_rows, report.flow)).connection
                report.dormant = number & DORMANT != 0
                if likely(not report.dormant):
                    prefetch(row_at(rows, number & ROW))
                    prefetch(row_at(rows, number & ROW) + CACHE_LINE)
    if table.view_count > 1:
        for i in range(size):
            report = &table.reports[i]
            if report.skip == SKIP_NONE and report.flow and not report.dormant:
                flow = <Flow *>row_at(&table.flow_rows, report.flow)
                connection = connection_at(&table.views[0], flow.connection & ROW)
                for j in range(1, table.view_count):
                    number = link_of(table, &table.views[j], flow, connection)[0]
                    if number:
                        prefetch(row_at(&table.views[j].rows, number))


cdef uint32_t find_flow(TableState *table, Report *report) noexcept nogil:
    # The row of the report's flow, or 0.
    cdef uint64_t key = report.key
    cdef uint32_t kind = 0
    cdef uint32_t number
    if unlikely(report.key_text != NULL):
        number = string_find(
            &table.strings, report.key_text, report.key_length,
            hash_bytes32(report.key_text, report.key_length, table.seed),
        )
        if number == 0:
            return 0
        key = string_key(number)
        kind = STRING_KEY
    return flow_find(&table.flow_rows, key, kind)


cdef void look_up_labels(TableState *table, uint32_t size) noexcept:
    # Look up the strings and connections of flows that are not live, in passes as in `_find`.
    # What is found stays valid for the batch: no text leaves the table in between.
    cdef uint32_t i, j, number
    cdef Cell *cells
    cdef const Cell *previous = NULL
    cdef const Rows *rows = &table.views[0].rows
    for i in range(size):
        if needs_rows(&table.reports[i]):
            cells = table.batch_cells + <size_t>i * table.cells
            for j in range(table.cells):
                if cells[j].text != NULL and not cells[j].repeats:
                    number = bucket_of(&table.strings, cells[j].hash)[0]
                    if number:
                        prefetch(row_at(&table.strings, number))
    for i in range(size):
        if needs_rows(&table.reports[i]):
            cells = table.batch_cells + <size_t>i * table.cells
            look_up_strings(table, &table.reports[i], cells, previous)
            previous = cells
    for i in range(size):
        if needs_rows(&table.reports[i]) and table.reports[i].connection_hash:
            number = bucket_of(rows, table.reports[i].connection_hash)[0]
            if number:
                prefetch(row_at(rows, number))


cdef inline bint needs_rows(const Report *report) noexcept nogil:
    return (report.skip == SKIP_NONE and (report.flow == 0 or report.dormant)
            and report.skip_new == SKIP_NONE)


cdef void look_up_strings(TableState *table, Report *report, Cell *cells,
                          const Cell *previous) noexcept nogil:
    # The numbers of the strings; where all are known, the hash of the connection too.
    cdef uint32_t i
    cdef bint all_found = True
    report.connection_hash = 0
    for i in range(table.cells):
        if cells[i].text == NULL:
            all_found &= cells[i].number < <int64_t>IS_STRING
            table.row_cells[i] = <uint32_t>cells[i].number
            continue
        if cells[i].repeats:
            cells[i].found = previous[i].found
        elif not cells[i].escapes:  # the others are looked up when they have got them
            cells[i].found = string_find(
                &table.strings, cells[i].text, cells[i].length, cells[i].hash
            )
        all_found &= cells[i].found != 0
        table.row_cells[i] = cells[i].found | IS_STRING
    if all_found:
        report.connection_hash = gather(table, &table.views[0])
        prefetch(bucket_of(&table.views[0].rows, report.connection_hash))


cdef int apply_batch(TableState *table, uint32_t size) noexcept nogil:
    # How many reports of the batch were dealt with, or -1 when memory ran out.
    cdef uint32_t i
    cdef int done = <int>size
    cdef Report *report
    cdef int64_t *values
    table.in_batch = True
    for i in range(size):
        report = &table.reports[i]
        values = table.batch_values + <size_t>i * table.values
        if likely(report.skip == SKIP_NONE):
            if likely(report.flow != 0 and not report.dormant):
                report.skip = apply_known(table, report, values)
            else:
                report.skip = apply_unless_live(
                    table, report, values, table.batch_cells + <size_t>i * table.cells,
                    table.batch_last_update + <size_t>i * table.counters,
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
                    table.finishes[report.finish & 3] += 1
                if report.leaves_out:
                    count_left_out(table, report)
        if unlikely(report.skip != SKIP_NONE):
            table.skips[report.skip] += 1
    table.in_batch = False
    for i in range(table.dead_string_count):
        string_release(&table.strings, table.dead_strings[i])
    table.dead_string_count = 0
    return done


cdef int apply_unless_live(TableState *table, Report *report, const int64_t *values, const Cell *cells,
                           const int64_t *last_update) noexcept nogil:
    # A report of a flow that was not live when the batch was read. Earlier reports of the batch
    # may have made it live, or may have taken its room.
    report.flow = find_flow(table, report)
    report.uses_marks = report.uses_last_update = False
    if report.flow:
        if not flow_at(table, report.flow).connection & DORMANT:
            return apply_known(table, report, values)
        return wake(table, report, values, cells, last_update)
    if unlikely(report.skip_new != SKIP_NONE):
        return report.skip_new
    table.met_unknown = True
    return apply_unknown(table, report, values, cells, last_update)


cdef void count_left_out(TableState *table, const Report *report) noexcept nogil:
    # Each field once, whatever it is used for.
    cdef bint seen[MAX_FIELDS]
    cdef uint32_t i
    memset(seen, 0, sizeof(seen))
    for i in range(2 * table.values):
        if is_left_out(&report.values_left_out, i):
            seen[table.value_fields[i]] = True
    for i in range(MARKS):
        if report.leaves_out_marks >> i & 1 and (i == MARK_FINISH or report.uses_marks):
            seen[table.mark_fields[i]] = True
    if report.uses_last_update:
        for i in range(2 * table.counters):
            if is_left_out(&report.last_update_left_out, i):
                seen[table.last_update_fields[i]] = True
    for i in range(MAX_FIELDS):
        table.values_left_out[i] += seen[i]


cdef inline int find_deltas(TableState *table, const Flow *flow, const Report *report,
                            const int64_t *values) noexcept nogil:
    # What a report says of a flow, and `deltas` if that is anything.
    cdef const int64_t *totals = <const int64_t *>(flow + 1)
    cdef int64_t *deltas = table.deltas
    cdef int64_t total
    cdef bint newer = report.last_ms > flow.last_ms
    cdef bint higher = False
    cdef bint lower = False
    cdef uint32_t i
    for i in range(table.counters):
        # ABSENT is never higher, and as an unsigned number never lower.
        total = max(totals[i], <int64_t>0)
        higher |= values[i] > total
        lower |= <uint64_t>values[i] < <uint64_t>total
    if unlikely(not newer and not higher):
        return NOTHING_NEW
    if unlikely(newer and lower):
        for i in range(table.counters):
            deltas[i] = values[i]
        return STARTED_OVER
    for i in range(table.counters):
        deltas[i] = min(values[i], <int64_t>0)
        if values[i] > totals[i]:
            deltas[i] = values[i] - max(totals[i], <int64_t>0)
    return GREW


cdef inline void update_totals(TableState *table, Flow *flow, const Report *report, const int64_t *values,
                               int change) noexcept nogil:
    cdef int64_t *totals = <int64_t *>(flow + 1)
    cdef uint32_t i
    for i in range(table.counters):
        if values[i] > totals[i] or change == STARTED_OVER:
            totals[i] = values[i]
    flow.last_ms = max(flow.last_ms, report.last_ms)


cdef int apply_known(TableState *table, const Report *report, const int64_t *values) noexcept nogil:
    cdef Flow *flow = flow_at(table, report.flow)
    cdef Connection *connection = connection_at(&table.views[0], flow.connection & ROW)
    cdef int change = find_deltas(table, flow, report, values)
    cdef uint32_t i, number
    if unlikely(report.finish == CLOSING):
        flow.connection |= ENDED
    elif unlikely(flow.connection & ENDED) and report.last_ms > flow.last_ms:
        flow.connection &= ~ENDED
    if unlikely(change == NOTHING_NEW):
        return SKIP_LATE
    update_totals(table, flow, report, values, change)
    flow.deadline_s = max(flow.deadline_s, table.views[0].deadline_s)
    add_deltas(table, &table.views[0], connection, table.deltas, values)
    for i in range(1, table.view_count):
        number = link_of(table, &table.views[i], flow, connection)[0]
        if number:
            add_deltas(table, &table.views[i], connection_at(&table.views[i], number), table.deltas, values)
    return SKIP_NONE


cdef int apply_unknown(TableState *table, Report *report, const int64_t *values, const Cell *cells,
                       const int64_t *last_update) noexcept nogil:
    cdef View *first = &table.views[0]
    cdef uint32_t number, kept, conversation = 0
    cdef int wrong
    cdef bint creates, full
    if table.converses:
        conversation = find_conversation(table, report.conversation)
        if is_taken(table, conversation, report):
            return SKIP_DUPLICATE
    if report.finish == CLOSING:
        if report.worth == WORTH_UNREAD:
            return APPLY_STOP
        report.uses_marks = True
    if was_never_counted(table, report):
        report.worth = WORTH_TOTAL
    elif report.repeats:
        return SKIP_ENDED
    if not intern_labels(table, cells):
        return APPLY_NO_MEMORY
    number = find_row(table, first, gather(table, first))
    creates = number == 0
    kept = find_kept(table, table.view_cells) if creates else 0
    full = creates and not report.repeats and is_full(table, first)
    if full or live_flows(table) >= table.max_flows:
        wrong = apply_overflow(table, report, values, last_update)
        table.rejected += full and wrong == SKIP_TABLE_FULL
    elif report.repeats:
        wrong = add_ended_flow(table, report, number, kept, values)
    elif (report.worth == WORTH_UNREAD or report.worth == WORTH_LAST_UPDATE_UNREAD) and (
        table.view_count > 1 or not counts_whole(table, first, creates and not kept)
    ):
        wrong = APPLY_STOP
    else:
        if unlikely(report.leaves_out) and needs_worth(table, number, kept):
            report.uses_marks = True
            report.uses_last_update = report.worth == WORTH_LAST_UPDATE
        wrong = add_flow(table, report, number, kept, conversation, values, last_update)
    release_interned(table)
    return wrong


cdef inline bint counts_whole(TableState *table, const View *view, bint creates) noexcept nogil:
    # Whether all of a flow's total is new to the row that it creates, or not, in any report: no
    # other flow can have been in that row.
    return creates and view.identifies_connection and not table.overflowed


cdef inline bint was_never_counted(TableState *table, const Report *report) noexcept nogil:
    # Whether an unknown flow began after the latest report of all flows that were known once.
    # Only durations of the agent's clock are used. Nothing is known about duplicates.
    return (table.begun and report.age_ms >= 0 and not table.converses
            and (table.now - report.age_ms / 1000.0 - table.flow_update_s - BATCH_S
                 > table.horizon_s))


cdef bint needs_worth(TableState *table, uint32_t number, uint32_t kept) noexcept nogil:
    # Whether the flow whose row of the first view is `number`, or is to be made, comes to a row
    # in any view where its total is not new for that reason alone. `kept` has the counters of
    # that row of the first view, or is 0.
    cdef View *view
    cdef uint32_t i
    for i in range(table.view_count):
        view = &table.views[i]
        if i and not view.linked_from_flow and has_links(table, number):
            if connection_at(&table.views[0], number).links[view.link]:
                return True
            continue
        if find_row(table, view, gather(table, view)):
            return True
        if is_full(table, view):
            if table.overflows:
                return True
        elif not counts_whole(table, view, i or not kept):
            return True
    return False


cdef bint intern_labels(TableState *table, const Cell *cells) noexcept nogil:
    # `row_cells` for these label values, until `_release_interned`; False without memory. What
    # was found stays where it is meanwhile; what was not has a reference for that time.
    cdef char digits[32]
    cdef const char *text
    cdef uint32_t i, length, number
    table.interned_count = 0
    for i in range(table.cells):
        if likely(cells[i].found != 0):
            table.row_cells[i] = cells[i].found | IS_STRING
            continue
        text = cells[i].text
        length = cells[i].length
        if text == NULL:
            if cells[i].number < <int64_t>IS_STRING:
                table.row_cells[i] = <uint32_t>cells[i].number
                continue
            text = digits           # an integer that does not fit is kept as a text
            length = <uint32_t>(put_number(digits, cells[i].number) - digits)
        elif unlikely(cells[i].escapes):
            length = escape(text, length, table.escaped)
            text = table.escaped
        number = string_intern(&table.strings, text, length, table.seed)
        if number == 0:
            release_interned(table)
            return False
        table.row_cells[i] = number | IS_STRING
        table.interned[table.interned_count] = number
        table.interned_count += 1
    return True


cdef void release_interned(TableState *table) noexcept nogil:
    cdef uint32_t i
    for i in range(table.interned_count):
        string_release(&table.strings, table.interned[i])


cdef int add_flow(TableState *table, const Report *report, uint32_t number, uint32_t kept,
                  uint32_t conversation, const int64_t *values,
                  const int64_t *last_update) noexcept nogil:
    # A new flow row, and what it needs of the other kinds; all of it or nothing. `number` is
    # its row in the first view, or 0, and `kept` has that row's counters, or is 0.
    cdef uint32_t row = new_flow(table, report, values)
    if row == 0:
        return APPLY_NO_MEMORY
    if not find_places(table, report, number, &conversation):
        remove_flow(table, row)
        return APPLY_NO_MEMORY
    make_live(table, row, report, conversation, kept, values, last_update)
    make_room(table)
    return SKIP_NONE


cdef uint32_t new_flow(TableState *table, const Report *report, const int64_t *values) noexcept nogil:
    # The row of an unknown flow, which is neither live nor in a list yet; 0 without memory.
    cdef uint64_t key = report.key
    cdef uint32_t text = 0
    cdef uint32_t row
    if report.key_text != NULL:
        text = string_intern(&table.strings, report.key_text, report.key_length, table.seed)
        if text == 0:
            return 0
        key = string_key(text)
    row = flow_new(&table.flow_rows, key, STRING_KEY if text else 0)
    if row == 0:
        if text:
            string_release(&table.strings, text)
        return 0
    flow_at(table, row).last_ms = report.last_ms
    if table.converses:
        links_of(table, flow_at(table, row))[0] = 0
    memcpy(flow_at(table, row) + 1, values, table.counters * sizeof(int64_t))
    return row


cdef void remove_flow(TableState *table, uint32_t number) noexcept nogil:
    # Take a row that is neither live nor in a list out of the table.
    cdef Flow *flow = flow_at(table, number)
    if table.converses and links_of(table, flow)[0]:
        conversation_at(table, links_of(table, flow)[0]).dormant -= 1
        release_conversation(table, links_of(table, flow)[0])
    index_remove(&table.flow_rows, number)
    if flow.connection & STRING_KEY:
        if table.in_batch:
            # The number may have been found for a label of the batch.
            table.dead_strings[table.dead_string_count] = flow.key_high
            table.dead_string_count += 1
        else:
            string_release(&table.strings, flow.key_high)
    flow.connection = 0
    row_release(&table.flow_rows, number)


cdef bint find_places(TableState *table, const Report *report, uint32_t number,
                      uint32_t *conversation) noexcept nogil:
    # `targets` and the conversation of a flow that becomes live, found or made; all of them, or
    # False without memory.
    cdef uint32_t before = conversation[0]
    cdef bint makes_conversation = table.converses and (
        before == 0 or conversation_at(table, before).point != report.point
    )
    cdef uint32_t at
    if makes_conversation:
        conversation[0] = add_conversation(table, report)
        if conversation[0] == 0:
            return False
    at = find_targets(table, number)
    if at == table.view_count:
        if makes_conversation and before:
            conversation_at(table, before).superseded = True
        return True
    while at:
        at -= 1
        if table.created[at]:
            remove_row(table, &table.views[at], table.targets[at])
    if makes_conversation:
        release_conversation(table, conversation[0])
    return False


cdef uint32_t find_targets(TableState *table, uint32_t number) noexcept nogil:
    # The rows that the flow at hand is to lead to, `number` being that of the first view.
    # Returns how many views have theirs: all, unless memory ran out.
    cdef View *view
    cdef uint32_t i
    for i in range(table.view_count):
        view = &table.views[i]
        if i == 0:
            table.created[0] = number == 0
            table.targets[0] = number if number else add_row(table, view, gather(table, view))
        elif not view.linked_from_flow and has_links(table, number):
            table.created[i] = False
            table.targets[i] = connection_at(&table.views[0], number).links[view.link]
            continue
        else:
            table.targets[i] = find_or_add_row(table, view, &table.created[i])
        if table.targets[i] == 0 and (i == 0 or table.created[i] or table.overflows):
            return i
    return table.view_count


cdef void make_live(TableState *table, uint32_t row, const Report *report, uint32_t conversation,
                    uint32_t kept, const int64_t *values,
                    const int64_t *last_update) noexcept nogil:
    # Make a flow live, in the rows of `targets`. Without `last_update`, it is one that was dormant:
    # then it adds `deltas`.
    cdef Flow *flow = flow_at(table, row)
    cdef Connection *connection = connection_at(&table.views[0], table.targets[0])
    cdef Connection *target
    cdef const int64_t *deltas
    cdef View *view
    cdef uint32_t *links = links_of(table, flow)
    cdef uint32_t i
    flow.connection = flow.connection & STRING_KEY | table.targets[0]
    if report.finish == CLOSING:
        flow.connection |= ENDED
    flow.deadline_s = table.views[0].deadline_s
    wheel_file(&table.wheel, flow.deadline_s, row, &flow.wheel_next)
    if conversation:
        conversation_at(table, conversation).flows += 1
        if links[0]:
            conversation_at(table, links[0]).dormant -= 1
            release_conversation(table, links[0])
        links[0] = conversation
    for i in range(table.columns, table.cells):
        links[table.keys_at + i - table.columns] = table.row_cells[i] & ~IS_STRING
    retain_cells(table, table.row_cells + table.columns, table.cells - table.columns)
    for i in range(table.view_count):
        view = &table.views[i]
        if i:
            link_of(table, view, flow, connection)[0] = table.targets[i]
            if table.targets[i] == 0:
                continue
        target = connection_at(view, table.targets[i])
        if i and table.created[i]:
            file_row(view, table.targets[i], view.deadline_s)
        target.flows += 1
        if last_update == NULL:
            deltas = table.deltas
        elif (report.worth == WORTH_TOTAL
                or counts_whole(table, view, table.created[i] and (i or not kept))):
            deltas = values
        else:
            deltas = last_update
        if i == 0 and table.created[0]:
            if kept:
                restore_kept(table, kept, target)
            elif last_update == NULL and view.identifies_connection:
                target.flows |= BACK
                add_counters(view, target, <const int64_t *>(flow + 1))
        add_deltas(table, view, target, deltas, values)
    table.connections_created += table.created[0]
