# Search: finds label values that contain a text (ignoring case), or that are in a given set.
#
# A search exists only during one call of `Table.top` or `Table.top_groups`. Its memory is allocated
# before the first row is visited. Label values are compared as they appear on a page, with escapes.
#
# `Search.misses` stores the label IDs of values that do not match, so that each value is compared
# only once per column. During the search, a new string can get the label ID of a removed string. If
# that label ID is in `misses`, rows with the new string are not found. This does no harm, because a
# scan may omit rows that were created during the scan. The label IDs of values that match are not
# stored: if one of them were reused, a row that does not match could be shown.

cdef enum:
    MAX_VARIANTS = 4            # maximum number of case variants of a character
    MAX_CHARACTER = 4           # maximum size of a character in UTF-8, in bytes
    SMALL_INTEGERS = 1 << 16    # integers below this limit, such as ports, have a bit in `misses`

cdef struct Character:
    uint32_t variants
    uint32_t lengths[MAX_VARIANTS]
    char bytes[MAX_VARIANTS][MAX_CHARACTER]


cdef struct SearchedValue:
    uint32_t hash               # the hash that an interned string with this value has
    uint32_t length             # length of the value in bytes; 0 in a free slot
    const char *text


cdef struct ValueSet:
    # A hash table with open addressing, at most half full.
    SearchedValue *slots
    uint32_t mask               # number of slots - 1; undefined if `slots` is NULL


cdef struct Search:
    Character *characters
    uint32_t size               # number of characters; 0: every row matches
    bint first_bytes[256]       # for each byte: whether a match can begin with this byte
    const View *view
    ValueSet *value_sets        # for each column: values that match even without the text
    uint64_t *misses            # for each column: a bit set of label IDs that do not match
    size_t words                # number of words in the bit set of one column


cdef list case_variants(str character):
    # The character itself and its variants that differ only in case.
    cdef list variants = [character]
    for one in (character, character.upper(), character.lower(), character.title()):
        for variant in (one, one.upper(), one.lower()):
            if len(variant) == 1 and variant not in variants:
                variants.append(variant)
    return variants[:MAX_VARIANTS]


cdef int search_init(Search *search, TableState *table, const View *view, str text,
                     dict value_sets) except -1:
    # `value_sets` maps a column to a bytes object with several label values: in UTF-8, with
    # escapes, and with a newline after each value. The search borrows these objects. The caller
    # must call `search_destroy`, even after an exception.
    cdef Character *character
    cdef bytes encoded, values
    cdef const char *start
    cdef size_t length
    cdef uint32_t column, i, j
    memset(search, 0, sizeof(Search))
    search.view = view
    if not text:
        return 0
    search.characters = <Character *>allocate(len(text) * sizeof(Character))
    for i, one in enumerate(text):
        character = &search.characters[i]
        for j, variant in enumerate(case_variants(one)):
            encoded = variant.encode()
            character.lengths[j] = len(encoded)
            memcpy(character.bytes[j], PyBytes_AS_STRING(encoded), len(encoded))
            character.variants = j + 1
            if i == 0:
                search.first_bytes[<uint8_t>character.bytes[j][0]] = True
    search.size = len(text)
    with nogil:
        search.words = (SMALL_INTEGERS + rows_end(table, &table.strings)) / 64 + 1
    search.misses = <uint64_t *>allocate(search.words * view.columns * sizeof(uint64_t))
    if not value_sets:
        return 0
    search.value_sets = <ValueSet *>allocate(view.columns * sizeof(ValueSet))
    for column, values in value_sets.items():
        value_set_allocate(&search.value_sets[column], values.count(b"\n"))
        start = values
        length = len(values)
        with nogil:
            value_set_fill(&search.value_sets[column], start, length, table.seed)
    return 0


cdef void search_destroy(Search *search) noexcept:
    cdef uint32_t i
    if search.value_sets != NULL:
        for i in range(search.view.columns):
            free(search.value_sets[i].slots)
    free(search.value_sets)
    free(search.misses)
    free(search.characters)


cdef int value_set_allocate(ValueSet *values, size_t count) except -1:
    cdef size_t slots = 4
    while slots < 2 * count:
        slots *= 2
    values.slots = <SearchedValue *>allocate(slots * sizeof(SearchedValue))
    values.mask = slots - 1
    return 0


cdef void value_set_fill(ValueSet *values, const char *text, size_t size,
                         uint64_t seed) noexcept nogil:
    cdef const char *end = text + size
    cdef const char *stop
    cdef uint32_t length, hash
    while text < end:
        stop = <const char *>memchr(text, c'\n', end - text)
        length = stop - text
        if 0 < length <= MAX_LABEL_BYTES:
            hash = hash_bytes32(text, length, seed)
            value_set_slot(values, text, length, hash)[0] = SearchedValue(hash, length, text)
        text = stop + 1


cdef inline SearchedValue *value_set_slot(const ValueSet *values, const char *text, uint32_t length,
                                          uint32_t hash) noexcept nogil:
    # The slot with this value, or if there is none, the free slot for it.
    cdef uint32_t i = hash & values.mask
    cdef SearchedValue *slot = &values.slots[i]
    while slot.length and not (slot.hash == hash and slot.length == length
                               and memcmp(slot.text, text, length) == 0):
        i = (i + 1) & values.mask
        slot = &values.slots[i]
    return slot


cdef inline bint value_set_contains(const ValueSet *values, const String *string) noexcept nogil:
    if values.slots == NULL:
        return False
    return value_set_slot(values, string_bytes(string), string.length, string.hash).length != 0


cdef inline bint text_matches(const Search *search, const char *text,
                              uint32_t length) noexcept nogil:
    cdef uint32_t i
    for i in range(length):
        if search.first_bytes[<uint8_t>text[i]] and matches_at(search, text + i, length - i):
            return True
    return False


cdef bint matches_at(const Search *search, const char *text, uint32_t length) noexcept nogil:
    cdef uint32_t i, taken
    for i in range(search.size):
        taken = character_at(&search.characters[i], text, length)
        if taken == 0:
            return False
        text += taken
        length -= taken
    return True


cdef inline uint32_t character_at(const Character *character, const char *text,
                                  uint32_t length) noexcept nogil:
    # If the text begins with a variant of the character, returns the length of this variant in
    # bytes. Otherwise returns 0.
    cdef uint32_t i
    for i in range(character.variants):
        if (character.lengths[i] <= length
                and memcmp(text, character.bytes[i], character.lengths[i]) == 0):
            return character.lengths[i]
    return 0
