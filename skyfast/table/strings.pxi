# Strings: hash functions and interned strings. Each interned string is stored only once. A label
# value is stored with its escapes.
#
# Code that stores a string's number must own a reference to the string, and later release this
# reference with `string_release`. Rendering copies whole blocks of 16 bytes, so the memory of a
# string must be readable up to the end of its last block. `mix64`, `load` and `hash_bytes` must
# never change: shards that run different versions must compute the same hash of a conversation (see
# `SHARD_SEED`).

# ---------------------------------------------------------------------------------------------
# Hashes. They depend on a seed: without it, untrusted hosts could cause collisions on purpose,
# because they can choose addresses.

cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    # The finalizer of splitmix64 (Steele, Lea, Flood 2014). `mix64` is a bijection, so the UUID of
    # a flow can be computed from the key of its row.
    x ^= x >> 30
    x *= <uint64_t>0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef uint64_t unmix64(uint64_t x) noexcept nogil:
    # The inverse function of `mix64`. The factors are the inverses of the factors in `mix64`,
    # modulo 2^64.
    x ^= (x >> 31) ^ (x >> 62)
    x *= <uint64_t>0x319642B2D24D8EC3
    x ^= (x >> 27) ^ (x >> 54)
    x *= <uint64_t>0x96DE1B173F119089
    return x ^ (x >> 30) ^ (x >> 60)


cdef inline uint64_t load(const char *text, uint32_t length) noexcept nogil:
    # The first `length` bytes (at most 8) of a string, as a number. Each memcpy has a constant
    # size, so the compiler replaces the memcpy with a load.
    cdef uint64_t word
    cdef uint32_t low, high
    if length >= 8:
        memcpy(&word, text, 8)
        return word
    if length >= 4:
        memcpy(&low, text, 4)
        memcpy(&high, text + length - 4, 4)
        return low | <uint64_t>high << 8 * (length - 4)
    if length == 0:
        return 0
    return (<uint64_t><uint8_t>text[0]
            | <uint64_t><uint8_t>text[length >> 1] << 8 * (length >> 1)
            | <uint64_t><uint8_t>text[length - 1] << 8 * (length - 1))


cdef inline uint64_t hash_bytes(const char *text, uint32_t length, uint64_t seed) noexcept nogil:
    cdef uint64_t h = seed ^ length
    while length >= 8:
        h = mix64(h ^ load(text, 8))
        text += 8
        length -= 8
    if length:
        h = mix64(h ^ load(text, length))
    return h


cdef inline uint32_t hash_bytes32(const char *text, uint32_t length, uint64_t seed) noexcept nogil:
    cdef uint64_t h = hash_bytes(text, length, seed)
    return <uint32_t>(h ^ (h >> 32))


cdef uint8_t HEX[256]
memset(HEX, 0xFF, 256)
for _digit in range(16):
    HEX[<uint8_t>ord("0123456789abcdef"[_digit])] = _digit


cdef inline bint parse_uuid(const char *text, Py_ssize_t length, uint64_t *number) noexcept nogil:
    # If a UUID has Skydive's format, returns True and sets `number` to its value. The format is 1
    # to 16 lowercase hexadecimal digits without leading zeros.
    cdef uint64_t value = 0
    cdef uint8_t digit, combined = 0
    cdef Py_ssize_t i
    if length < 1 or length > 16 or (text[0] == c'0' and length > 1):
        return False
    for i in range(length):
        digit = HEX[<uint8_t>text[i]]
        combined |= digit
        value = (value << 4) | (digit & 15)
    number[0] = value
    return combined < 16


# ---------------------------------------------------------------------------------------------
# Interned strings

cdef inline const char *string_bytes(const String *string) noexcept nogil:
    if likely(string.length <= INLINE_STRING):
        return string.inline
    return (<char **>string.inline)[0]


cdef str stored_text(const String *string):
    # The text as it is stored: with escapes if it is a label value, without escapes if it is a
    # UUID.
    return string_bytes(string)[:string.length].decode()


cdef inline uint32_t string_find(
    const Rows *strings, const char *text, uint32_t length, uint32_t hash
) noexcept nogil:
    cdef uint32_t number = bucket_of(strings, hash)[0]
    cdef String *row
    while number:
        row = <String *>row_at(strings, number)
        if (row.hash == hash and row.length == length
                and memcmp(string_bytes(row), text, length) == 0):
            return number
        number = row.next
    return 0


cdef uint32_t string_intern(
    Rows *strings, const char *text, uint32_t length, uint64_t seed
) noexcept nogil:
    # Adds a reference to the string, and returns the string's number, or 0 if out of memory. A
    # label value must already have its escapes.
    cdef uint32_t hash = hash_bytes32(text, length, seed)
    cdef uint32_t number = string_find(strings, text, length, hash)
    cdef char *copy
    cdef String *row
    if number:
        (<String *>row_at(strings, number)).refs += 1
        return number
    number = row_new(strings)
    if not number:
        return 0
    row = <String *>row_at(strings, number)
    row.hash = hash
    row.refs = 1
    row.length = length
    if length <= INLINE_STRING:
        memcpy(row.inline, text, length)
    else:
        copy = <char *>malloc(length + 16)     # rendering reads blocks of 16 bytes
        if copy == NULL:
            row.refs = 0
            row_release(strings, number)
            return 0
        memcpy(copy, text, length)
        (<char **>row.inline)[0] = copy
        strings.arena.bytes += length + 16
    index_add(strings, number)
    return number


cdef void string_release(Rows *strings, uint32_t number) noexcept nogil:
    cdef String *row = <String *>row_at(strings, number)
    row.refs -= 1
    if row.refs:
        return
    index_remove(strings, number)
    if row.length > INLINE_STRING:
        free((<char **>row.inline)[0])
        strings.arena.bytes -= row.length + 16
    row_release(strings, number)


cdef list strings_between(const Rows *strings, uint64_t first, uint64_t end):
    # The stored texts of all strings in the rows from `first` up to but not including `end`.
    cdef uint64_t number
    cdef const String *row
    cdef list texts = []
    for number in range(first, min(end, <uint64_t>strings.end)):
        row = <String *>row_at(strings, <uint32_t>number)
        if row.refs:
            texts.append(stored_text(row))
    return texts


cdef uint32_t escape(const char *text, uint32_t length, char *out) noexcept nogil:
    # Writes a label value with its escapes to `out`, and returns the length of the escaped value.
    # For the escapes, see https://prometheus.io/docs/instrumenting/exposition_formats/.
    cdef char *start = out
    cdef uint32_t i
    cdef char c
    for i in range(length):
        c = text[i]
        if c == c'\\' or c == c'"':
            out[0] = c'\\'
            out[1] = c
            out += 2
        elif c == c'\n':
            out[0] = c'\\'
            out[1] = c'n'
            out += 2
        else:
            out[0] = c
            out += 1
    return <uint32_t>(out - start)


cdef inline bint same_string(const LabelValue *a, const LabelValue *b) noexcept nogil:
    return (a.text != NULL and a.length == b.length
            and memcmp(a.text, b.text, a.length) == 0)


cdef inline uint64_t zero_bytes(uint64_t word) noexcept nogil:
    # Returns a number other than 0 if any byte of the word is 0. If no byte is 0, returns 0.
    return (word - EACH_BYTE) & ~word & (EACH_BYTE << 7)


cdef inline bint needs_escape(const char *text, uint32_t length) noexcept nogil:
    cdef uint64_t word, matches = 0
    cdef uint32_t taken
    while length:
        taken = min(length, <uint32_t>8)
        word = load(text, taken)
        matches |= (zero_bytes(word ^ EACH_BYTE * c'\\') | zero_bytes(word ^ EACH_BYTE * c'"')
                    | zero_bytes(word ^ EACH_BYTE * c'\n'))
        text += taken
        length -= taken
    return matches != 0
