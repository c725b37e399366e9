# Conversations: several capture points can report the same packets, so only the flows of one point
# are counted.
#
# A conversation is owned by a capture point while at least one flow from this point is live or
# claims the conversation. Some reports of a dormant flow are counted without making the flow live.
# After such a report, the flow claims its conversation for `timeout_s`. Without the claim, another
# capture point could take over the conversation and count the same packets again. Two kinds of
# reports lead to a claim:
#
# * a closing report that repeats a previous report, if skyfast has not received the previous report
# * a report that is added to the overflow row of the first view
#
# Conversation rows exist only if `TableState.has_conversations` is true. This code needs the
# table's mutex.

cdef inline Conversation *conversation_at(const TableState *table, uint32_t number) noexcept nogil:
    return <Conversation *>row_at(&table.conversations, number)


cdef uint32_t find_conversation(const TableState *table, uint64_t key) noexcept nogil:
    cdef uint32_t number = bucket_of(&table.conversations, <uint32_t>key)[0]
    cdef Conversation *row
    while number:
        row = conversation_at(table, number)
        if (row.hash == <uint32_t>key and row.key_high == <uint32_t>(key >> 32)
                and row.claimant != SUPERSEDED):
            return number
        number = row.next
    return 0


cdef bint is_owned_by_other(const TableState *table, uint32_t number,
                            const Report *report) noexcept nogil:
    # Whether the conversation in row `number` (0: no row) is owned by a capture point other than
    # the report's.
    cdef const Conversation *row
    if number == 0:
        return False
    row = conversation_at(table, number)
    return (row.flows != 0 or row.claimant != 0) and row.point != report.point


cdef bint ensure_conversation(TableState *table, const Report *report,
                              uint32_t *number) noexcept nogil:
    # If row `number` (0: no row) does not belong to the report's capture point, sets `number` to a
    # new row for this point. The caller must link a flow to the new row, or remove the new row with
    # `discard_new_conversation`. Returns False if out of memory.
    if not table.has_conversations:
        return True
    if number[0] == 0 or conversation_at(table, number[0]).point != report.point:
        number[0] = add_conversation(table, report)
    return number[0] != 0


cdef void discard_new_conversation(TableState *table, uint32_t number,
                                   uint32_t before) noexcept nogil:
    # Undoes `ensure_conversation`, which may have changed the row from `before` to `number`.
    if number != before:
        release_conversation(table, number)


cdef void link_conversation(TableState *table, uint32_t flow, uint32_t number) noexcept nogil:
    # Links a dormant flow to conversation row `number` instead of its previous conversation row. If
    # `number` is 0, changes nothing.
    cdef uint32_t before
    if number == 0:
        return
    before = links_of(table, flow_at(table, flow))[0]
    links_of(table, flow_at(table, flow))[0] = number
    conversation_at(table, number).dormant += 1
    conversation_at(table, before).dormant -= 1
    release_conversation(table, before)


cdef void mark_superseded(TableState *table, uint32_t number, uint32_t successor) noexcept nogil:
    # Marks row `number` (0: no row) as replaced by row `successor`, unless both are the same row.
    # If the rows differ, the conversation in row `number` must not have an owner.
    if number and number != successor:
        conversation_at(table, number).claimant = SUPERSEDED


cdef uint32_t add_conversation(TableState *table, const Report *report) noexcept nogil:
    cdef uint32_t number = row_new(&table.conversations)
    cdef Conversation *row
    if number:
        row = conversation_at(table, number)
        row.hash = <uint32_t>report.conversation
        row.key_high = <uint32_t>(report.conversation >> 32)
        row.flows = row.dormant = row.claimant = 0
        row.point = report.point
        index_add(&table.conversations, number)
    return number


cdef void release_conversation(TableState *table, uint32_t number) noexcept nogil:
    if conversation_at(table, number).flows == 0 and conversation_at(table, number).dormant == 0:
        index_remove(&table.conversations, number)
        row_release(&table.conversations, number)
