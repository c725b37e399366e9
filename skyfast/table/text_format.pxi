# Writing lines: strings, numbers and label values, one after another.
#
# Rendering spends most of its time in these functions, mostly under the table's mutex. To be fast,
# these functions are plain C and inline, and do not check whether there is space left. Callers must
# provide `TableState.max_lines` bytes. This includes space for blocks that are copied beyond the
# end of a line. Numbers are written exactly, without an exponent.

cdef const char *DIGITS = (
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
    "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
    "8081828384858687888990919293949596979899"
)


cdef uint64_t TENS[MAX_DECIMALS + 1]
for _power in range(MAX_DECIMALS + 1):
    TENS[_power] = 10 ** _power


cdef inline char *put(char *out, const char *text, uint32_t length) noexcept nogil:
    # Copies whole blocks of 16 bytes, so that most strings need no loop. Up to the end of the last
    # block, `text` must be readable and `out` must be writable.
    cdef uint32_t i = 16
    memcpy(out, text, 16)
    while i < length:
        memcpy(out + i, text + i, 16)
        i += 16
    return out + length


cdef inline char *put_number(char *out, uint64_t number) noexcept nogil:
    cdef char scratch[2 * MAX_INTEGER_DIGITS]
    cdef char *end = scratch + MAX_INTEGER_DIGITS
    cdef char *start = end
    cdef uint64_t rest
    while number >= 100:
        rest = number / 100
        start -= 2
        memcpy(start, DIGITS + 2 * (number - rest * 100), 2)
        number = rest
    if number >= 10:
        start -= 2
        memcpy(start, DIGITS + 2 * number, 2)
    else:
        start -= 1
        start[0] = <char>(c'0' + number)
    memcpy(out, start, MAX_INTEGER_DIGITS)   # constant size: also copies bytes after the digits
    return out + (end - start)


cdef inline char *put_value(char *out, uint64_t value, uint32_t decimals) noexcept nogil:
    # Writes `value` / 10^`decimals` exactly, then a newline.
    cdef uint64_t scale
    cdef uint64_t rest
    if unlikely(decimals):
        scale = TENS[decimals]
        rest = value % scale
        value = value / scale
        out = put_number(out, value)
        if rest:
            out[0] = c'.'
            out += 1
            while rest:
                scale = scale / 10
                out[0] = <char>(c'0' + rest / scale)
                out += 1
                rest %= scale
    else:
        out = put_number(out, value)
    out[0] = c'\n'
    return out + 1


cdef inline char *put_label_value(char *out, uint32_t label_id, const Rows *strings) noexcept nogil:
    cdef String *string
    if label_id & IS_STRING:
        string = <String *>row_at(strings, label_id & ~IS_STRING)
        return put(out, string_bytes(string), string.length)
    return put_number(out, label_id)
