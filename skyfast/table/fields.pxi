# Reading the fields of a flow: where they stand in a decoded flow, and a function for each kind
# of value. Part of `_table.pyx`, which includes it.
#
# Here are Python's objects, so it needs the GIL: none of it may be called under the table's
# mutex, and none of it changes the table. What a flow has wrong is a reason to skip that flow or
# to leave a value out, never an exception, as strangers choose what stands there. What is read is
# borrowed: it lives as long as the flow does.

cdef int64_t MAX_INTEGER = MAX_NUMBER            # on the wire; larger ones skip the flow


cdef struct Field:
    # Where a value stands in a decoded flow. Offsets are those of the types' own slots; the
    # names serve where slots cannot be read. Names and types are owned by the table's `keep`.
    Py_ssize_t outer
    Py_ssize_t inner            # -1: the value is the flow's own field
    PyTypeObject *inner_type
    PyObject *outer_name
    PyObject *inner_name
    bint is_string
    bint whole                  # the value is the flow itself


cdef struct Number:
    # A counter or gauge: one field, or the sum of two.
    Field first
    Field second
    bint read                   # otherwise it is 0
    bint pair
    bint optional               # ABSENT where the flow has no such part


cdef struct Requirement:
    # A flow needs the first part, or with `pair` either part, or with `absent` the first part
    # unless the second is missing too.
    Field parts[2]
    bint pair
    bint absent                 # it is the second's absence that does


cdef struct Column:
    # A label, or what a dynamic one is asked with. The rewrite is owned by the plan.
    Field field
    PyObject *rewrite           # or NULL


cdef struct Reader:
    # The fields of one of the plan's flow types.
    PyTypeObject *type
    bint slots                  # values are read at their offsets, else as attributes
    bint marks                  # it can tell a first report
    bint full                   # ... and what the last update added
    Field uuid
    Field last
    Field finish
    Field start                 # where there are marks
    Field update_start
    Field update_last
    Number last_update[MAX_VALUES]  # where it is full
    Number totals[MAX_VALUES]   # counters, then gauges
    Column columns[MAX_COLUMNS]
    Requirement required[MAX_SKIPS]
    Field conversation[5]       # protocol, and address and port of either end
    Field point


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
    if unlikely(field.whole):
        return flow
    if field.inner < 0:
        return slot(flow, field.outer, field.outer_name, slots)
    owner = part(flow, field, slots)
    if owner == NULL:
        return NULL
    return slot(owner, field.inner, field.inner_name, slots)


cdef inline int read_integer(PyObject *value, int64_t *out) except -1:
    # SKIP_NONE, or why the flow is to be skipped. A missing value is 0. The ingest puts None in the
    # place of a value that it could not decode.
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


cdef enum:
    SECOND_FIELD = 1 << 8       # with a reason: it is the second field of a number that is wrong


cdef inline int read_number(PyObject *flow, const Number *number, bint slots,
                            int64_t *out) except -1:
    cdef PyObject *value = value_of(flow, &number.first, slots)
    cdef int64_t second = 0
    cdef int wrong
    if unlikely(value == NULL and number.optional):
        out[0] = ABSENT
        return SKIP_NONE
    wrong = read_integer(value, out)
    if unlikely(number.pair) and wrong == SKIP_NONE:
        wrong = read_integer(value_of(flow, &number.second, slots), &second)
        if wrong == SKIP_NONE and out[0] > MAX_INTEGER - second:
            wrong = SKIP_OUT_OF_RANGE
        if unlikely(wrong):
            return wrong | SECOND_FIELD
        out[0] += second
    return wrong


cdef void begin_left_out(Report *report) noexcept nogil:
    if not report.leaves_out:
        report.leaves_out = True
        report.leaves_out_marks = 0
        memset(&report.values_left_out, 0, sizeof(LeftOut))
        memset(&report.last_update_left_out, 0, sizeof(LeftOut))


cdef void leave_out(Report *report, LeftOut *left_out, uint32_t value, int wrong) noexcept nogil:
    # `left_out` is of the report.
    begin_left_out(report)
    left_out.fields[1 if wrong & SECOND_FIELD else 0] |= <uint64_t>1 << value


cdef void leave_out_mark(Report *report, uint32_t mark) noexcept nogil:
    begin_left_out(report)
    report.leaves_out_marks |= <uint32_t>1 << mark


cdef inline bint is_left_out(const LeftOut *left_out, uint32_t field) noexcept nogil:
    # `field` is twice the value's number, and one more for its second field.
    return left_out.fields[field & 1] >> (field >> 1) & 1


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
