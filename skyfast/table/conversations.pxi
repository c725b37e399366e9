# Conversations: the capture point whose flows are counted, per conversation. Part of `_table.pyx`,
# which includes it.
#
# These rows exist only if `has_conversations` is set. Update and expiry call this under the table's
# mutex.

cdef inline Conversation *conversation_at(const TableState *table, uint32_t number) noexcept nogil:
    return <Conversation *>row_at(&table.conversations, number)


cdef uint32_t find_conversation(const TableState *table, uint64_t key) noexcept nogil:
    cdef uint32_t number = bucket_of(&table.conversations, <uint32_t>key)[0]
    cdef Conversation *row
    while number:
        row = conversation_at(table, number)
        if (row.hash == <uint32_t>key and row.key_high == <uint32_t>(key >> 32)
                and not row.superseded):
            return number
        number = row.next
    return 0


cdef bint is_taken(const TableState *table, uint32_t number, const Report *report) noexcept nogil:
    # Whether another capture point reports the conversation in row `number` (0: none). False if all
    # flows of the conversation are dormant.
    cdef const Conversation *row
    if number == 0:
        return False
    row = conversation_at(table, number)
    return row.flows != 0 and row.point != report.point


cdef uint32_t add_conversation(TableState *table, const Report *report) noexcept nogil:
    cdef uint32_t number = row_new(&table.conversations)
    cdef Conversation *row
    if number:
        row = conversation_at(table, number)
        row.hash = <uint32_t>report.conversation
        row.key_high = <uint32_t>(report.conversation >> 32)
        row.flows = row.dormant = 0
        row.point = report.point
        row.superseded = False
        index_add(&table.conversations, number)
    return number


cdef void release_conversation(TableState *table, uint32_t number) noexcept nogil:
    # Remove the row if no flow links to it.
    if conversation_at(table, number).flows == 0 and conversation_at(table, number).dormant == 0:
        index_remove(&table.conversations, number)
        row_release(&table.conversations, number)
