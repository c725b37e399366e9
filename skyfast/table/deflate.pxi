# Deflate: compresses pages in the format of RFC 1951. The renderer knows where the text repeats
# itself, so the compressor does not search for repetitions.
#
# The text of a page consists of *pieces*. A piece has a *source*, which tells where the same bytes
# may have occurred before (see `pieces.pxi`). A slice of text is compressed in three steps:
#
# 1. Under the table's mutex, `render_lines` writes text, and notes about the text. After the mutex
#    is released, `expand_notes` turns the notes into pieces.
# 2. `find_matches` turns the pieces into *sequences*. A sequence has *literals* (bytes that are
#    encoded one by one), then a *match* (a length, and the distance to the same bytes in earlier
#    text). Each piece is compared with the earlier text that its source refers to. If the bytes are
#    equal, the piece becomes a match:
#    * If the previous piece is a match of the same distance, both become one longer match.
#    * If the next piece does not become a match, its first bytes can still extend this match.
# 3. `write_sequences` writes the sequences as bits.
#
# A wrong source does no harm, because only equal bytes become a match. For example, the source of a
# label value is wrong if the number of its string now belongs to another string.
#
# Huffman codes are learnt from these slices:
#
# * the first slice of a page
# * for each family, the first slice with at least MIN_SAMPLE bytes
# * after a slice that takes too many bits per byte (RELEARN_PERCENT), the next slice with at least
#   MIN_SAMPLE bytes
# * a slice that is at least LARGER_SAMPLE times as large as the slice that the current codes were
#   learnt from
#
# New codes begin a new block. All symbols have codes, because later slices can contain any text.
# Huffman codes are always complete, because some decoders reject incomplete codes. A code has at
# most 12 bits, so that four literals can be written at once.
#
# All memory belongs to a page or its `Deflater`. The size of this memory does not depend on the
# size of the table.

cdef enum:
    LITERALS = 286              # number of symbols for literals, the end of a block, and lengths
    DISTANCES = 30              # number of symbols for distances
    END_OF_BLOCK = 256
    FIRST_LENGTH = 257          # symbol of a match of 3 bytes
    MAX_CODE_BITS = 12
    MIN_MATCH = 3
    MAX_MATCH = 258
    HISTORY = 32768             # maximum distance of a match
    MIN_STRING = 8              # a shorter string takes fewer bits as literals than as a match
    NO_CHAR = 0x80              # see `Code.pairs`
    PAIRS = (NO_CHAR << 8) + NO_CHAR + 1
    # An entry in `Code` has a code in its low 24 bits, and the length of the code in its high bits.
    CODE_BITS = 24
    CODE_MASK = (1 << CODE_BITS) - 1
    # Symbol in a list of code lengths: repeats the previous length 3 to 6 times.
    REPEAT = 16
    LENGTH_SYMBOLS = 19         # number of different symbols in a list of code lengths
    MAX_HEADER = 256            # maximum size of the header of a block, in bytes
    STRING_SLOTS = 2048
    # The *sample* of the current codes is the slice that they were learnt from. If a later slice
    # takes more than 120 % of the sample's bits per byte, new codes are learnt.
    RELEARN_PERCENT = 120
    LARGER_SAMPLE = 4           # new codes if a slice is this many times as large as the sample


cdef extern from *:
    """
    #define count_leading_zeros(x) __builtin_clz(x)
    #define count_trailing_zeros(x) __builtin_ctzll(x)
    static const uint8_t LENGTH_ORDER[] =
        {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    """
    uint32_t count_leading_zeros(uint32_t) noexcept nogil
    uint32_t count_trailing_zeros(uint64_t) noexcept nogil
    const uint8_t *LENGTH_ORDER


cdef struct Sequence:
    # Literals, then a match, as in LZ4 and Zstandard.
    uint32_t literals           # number of literals
    uint16_t length             # length of the match; 0 if there is no match
    uint16_t distance           # distance of the match


cdef struct Code:
    uint32_t literals[LITERALS]
    uint32_t distances[DISTANCES]
    uint32_t lengths[MAX_MATCH + 1]     # by match length: its code, followed by its extra bits
    # The joined codes of two ASCII characters. The index has the second character in the high byte,
    # and the first in the low byte. NO_CHAR stands for a missing character.
    uint32_t pairs[PAIRS]
    uint64_t sample_bytes       # size of the sample, in bytes; 0: no codes yet
    uint64_t sample_bits        # compressed size of the sample, in bits


cdef struct BitWriter:
    uint64_t bits
    uint32_t count              # number of bits in `bits`, less than 8
    char *out


cdef struct Deflater:
    char *text                  # HISTORY bytes of earlier text, then new text; owned by the page
    char *end                   # end of the compressed part of `text`
    uint64_t position           # position of `end` in the page
    Piece *notes                # the notes of one slice
    Piece *pieces               # the pieces of one slice
    Sequence *sequences         # the sequences of one slice
    char *output
    BitWriter writer
    bint learns                 # whether to learn codes from the next slice that is large enough
    uint32_t fixed_at[MAX_FIXED]        # latest position of each fixed text, modulo 2^32
    # By string number modulo STRING_SLOTS: latest position of such a string, modulo 2^32.
    uint32_t strings_at[STRING_SLOTS]
    uint32_t counts[LITERALS + DISTANCES]
    Code code


# ---------------------------------------------------------------------------------------------
# Matches

cdef inline uint64_t load_word(const char *text) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, text, 8)
    return word


cdef inline uint64_t differences(const char *a, const char *b) noexcept nogil:
    # Returns 0 if the first 16 bytes of both texts are equal, otherwise a nonzero number.
    return (load_word(a) ^ load_word(b)) | (load_word(a + 8) ^ load_word(b + 8))


cdef inline bint same_bytes(const char *a, const char *b, uint32_t length) noexcept nogil:
    # Compares blocks of 16 bytes. To avoid branches on the length, the last 16 bytes are one block,
    # even if they overlap the previous block.
    cdef uint64_t difference
    if length >= 16:
        difference = differences(a + length - 16, b + length - 16)
        while length > 32:
            difference |= differences(a, b) | differences(a + 16, b + 16)
            a += 32
            b += 32
            length -= 32
        if length > 16:
            difference |= differences(a, b)
    elif length >= 8:
        difference = ((load_word(a) ^ load_word(b))
                      | (load_word(a + length - 8) ^ load_word(b + length - 8)))
    else:
        difference = (load_word(a) ^ load_word(b)) & LOW_BYTES[length]
    return difference == 0


cdef inline uint32_t common_bytes(const char *a, const char *b, uint32_t length) noexcept nogil:
    # Returns `length` if both texts are equal. If not, returns the number of equal bytes at their
    # start, but at most 8.
    cdef uint64_t difference = load_word(a) ^ load_word(b)
    if likely(difference):
        return min(length, count_trailing_zeros(difference) >> 3)
    if length <= 8 or same_bytes(a, b, length):
        return length
    return 8


cdef inline Sequence *put_match(Sequence *out, uint32_t literals, uint32_t length,
                                uint32_t distance) noexcept nogil:
    # Splits a match that is longer than MAX_MATCH. `length` must be at least MIN_MATCH.
    cdef uint32_t taken
    while unlikely(length > MAX_MATCH):
        taken = MAX_MATCH if length >= MAX_MATCH + MIN_MATCH else MAX_MATCH - MIN_MATCH
        out[0] = Sequence(literals, <uint16_t>taken, <uint16_t>distance)
        out += 1
        literals = 0
        length -= taken
    out[0] = Sequence(literals, <uint16_t>length, <uint16_t>distance)
    return out + 1


cdef const Sequence *find_matches(Deflater *deflater, const Piece *last,
                                  const char *end) noexcept nogil:
    # Writes the sequences of the text up to `end`, and returns the end of the sequences.
    cdef const Piece *piece = deflater.pieces
    cdef const char *text = deflater.end
    cdef Sequence *out = deflater.sequences
    cdef uint64_t position = deflater.position
    # The sequence that is not written yet: its literals and its match.
    cdef uint32_t literals = 0
    cdef uint32_t length = 0
    cdef uint32_t distance = 0          # 0: no match yet
    cdef uint32_t size, source, candidate, same
    cdef uint32_t *latest
    cdef bint before
    while piece < last and text < end:
        size = <uint32_t>min(<size_t>piece.length, <size_t>(end - text))
        source = piece.source
        piece += 1
        candidate = 0
        same = 0
        if source & IS_STRING:
            latest = &deflater.strings_at[source % STRING_SLOTS]
            candidate = <uint32_t>position - latest[0]
            latest[0] = <uint32_t>position
            if size < MIN_STRING:
                candidate = 0
        elif source & KIND == FIXED:
            latest = &deflater.fixed_at[source % MAX_FIXED]
            candidate = <uint32_t>position - latest[0]
            latest[0] = <uint32_t>position
        elif source & KIND == COPIED:
            candidate = source - COPIED
        elif source == HEAD:
            deflater.learns = True
        if distance and source & KIND < FIXED:
            same = common_bytes(text, text - distance, size)
            if same == size:
                length += size
                text += size
                position += size
                continue
        # `candidate` is a distance. It must be below `position`, because the byte before the
        # earlier text is also compared.
        if (0 < candidate <= HISTORY and candidate < position and size >= MIN_MATCH
                and same_bytes(text, text - candidate, size)):
            if candidate == distance:
                length += size
            else:
                if distance:
                    out = put_match(out, literals, length, distance)
                    literals = 0
                distance = candidate
                before = literals > 0 and (text - 1)[0] == (text - 1 - candidate)[0]
                literals -= before
                length = size + before
        else:
            if distance:
                out = put_match(out, literals, length + same, distance)
                literals = 0
                distance = 0
            literals += size - same
        text += size
        position += size
    if distance:
        out = put_match(out, literals, length, distance)
        literals = 0
    out[0] = Sequence(literals + <uint32_t>(end - text), 0, 0)
    return out + 1


# ---------------------------------------------------------------------------------------------
# Bits

cdef inline void put_bits(BitWriter *writer, uint64_t bits, uint32_t count) noexcept nogil:
    # Writes `count` bits, at most 56. Always overwrites 8 bytes at `writer.out`.
    writer.bits |= bits << writer.count
    writer.count += count
    memcpy(writer.out, &writer.bits, 8)
    writer.out += writer.count >> 3
    writer.bits >>= writer.count & 0x38
    writer.count &= 7


cdef inline void put_entry(BitWriter *writer, uint32_t entry) noexcept nogil:
    put_bits(writer, entry & CODE_MASK, entry >> CODE_BITS)


cdef inline void put_two(BitWriter *writer, uint32_t first, uint32_t second) noexcept nogil:
    cdef uint32_t count = first >> CODE_BITS
    put_bits(writer, (first & CODE_MASK) | <uint64_t>(second & CODE_MASK) << count,
             count + (second >> CODE_BITS))


cdef inline void put_four(BitWriter *writer, uint32_t first, uint32_t second, uint32_t third,
                          uint32_t fourth) noexcept nogil:
    cdef uint32_t count = first >> CODE_BITS
    cdef uint32_t next_count = third >> CODE_BITS
    cdef uint64_t bits = (first & CODE_MASK) | <uint64_t>(second & CODE_MASK) << count
    cdef uint64_t next_bits = (third & CODE_MASK) | <uint64_t>(fourth & CODE_MASK) << next_count
    count += second >> CODE_BITS
    next_count += fourth >> CODE_BITS
    if likely(count + next_count <= 56):
        put_bits(writer, bits | next_bits << count, count + next_count)
    else:
        put_bits(writer, bits, count)
        put_bits(writer, next_bits, next_count)


cdef inline uint32_t length_symbol(uint32_t length, uint32_t *extra_bits,
                                   uint32_t *extra) noexcept nogil:
    cdef uint32_t offset = length - MIN_MATCH
    cdef uint32_t power
    extra_bits[0] = extra[0] = 0
    if length == MAX_MATCH:
        return FIRST_LENGTH + 28
    if offset < 8:
        return FIRST_LENGTH + offset
    power = 31 - count_leading_zeros(offset)
    extra_bits[0] = power - 2
    extra[0] = offset & ((1 << (power - 2)) - 1)
    return FIRST_LENGTH + 4 * (power - 1) + ((offset >> (power - 2)) & 3)


cdef inline uint32_t distance_symbol(uint32_t distance, uint32_t *extra_bits,
                                     uint32_t *extra) noexcept nogil:
    cdef uint32_t offset = distance - 1
    cdef uint32_t power
    extra_bits[0] = extra[0] = 0
    if unlikely(offset < 2):
        return offset
    power = 31 - count_leading_zeros(offset)
    extra_bits[0] = power - 1
    extra[0] = offset & ((1 << (power - 1)) - 1)
    return 2 * power + ((offset >> (power - 1)) & 1)


cdef void write_sequences(Deflater *deflater, const Sequence *last) noexcept nogil:
    cdef const Code *code = &deflater.code
    cdef const Sequence *sequence = deflater.sequences
    cdef const char *text = deflater.end
    cdef BitWriter writer = deflater.writer     # a copy, which the compiler keeps in registers
    cdef uint64_t word, used
    cdef uint32_t literals, taken, i, first, second, length, distance, extra_bits, extra
    while sequence < last:
        literals = sequence.literals
        while literals:
            taken = min(literals, <uint32_t>8)
            used = LOW_BYTES[taken]
            word = load_word(text)
            if unlikely(word & used & EACH_BYTE << 7):
                for i in range(taken):
                    put_entry(&writer, code.literals[<uint8_t>text[i]])
            else:
                word = (word & used) | (EACH_BYTE << 7 & ~used)
                first = code.pairs[word & 0xFFFF]
                second = code.pairs[word >> 16 & 0xFFFF]
                if taken <= 4:
                    put_two(&writer, first, second)
                else:
                    put_four(&writer, first, second, code.pairs[word >> 32 & 0xFFFF],
                             code.pairs[word >> 48])
            text += taken
            literals -= taken
        if sequence.length:
            length = code.lengths[sequence.length]
            i = distance_symbol(sequence.distance, &extra_bits, &extra)
            distance = code.distances[i]
            word = (distance & CODE_MASK) | extra << (distance >> CODE_BITS)
            put_bits(&writer, (length & CODE_MASK) | word << (length >> CODE_BITS),
                     (length >> CODE_BITS) + (distance >> CODE_BITS) + extra_bits)
            text += sequence.length
        sequence += 1
    deflater.writer = writer


# ---------------------------------------------------------------------------------------------
# Codes

cdef void learn_codes(Deflater *deflater, const Sequence *last) noexcept nogil:
    # Learns codes from the sequences of a slice, and begins a block with these codes.
    cdef Code *code = &deflater.code
    cdef uint8_t lengths[LITERALS + DISTANCES]
    cdef uint32_t i, j, entry, extra_bits, extra
    if code.sample_bytes:
        put_entry(&deflater.writer, code.literals[END_OF_BLOCK])
    count_symbols(deflater, last)
    code_lengths(deflater.counts, LITERALS, lengths)
    code_lengths(deflater.counts + LITERALS, DISTANCES, lengths + LITERALS)
    assign_codes(lengths, LITERALS, code.literals)
    assign_codes(lengths + LITERALS, DISTANCES, code.distances)
    for i in range(MIN_MATCH, MAX_MATCH + 1):
        entry = code.literals[length_symbol(i, &extra_bits, &extra)]
        code.lengths[i] = joined(entry, extra_bits << CODE_BITS | extra)
    for i in range(NO_CHAR):
        for j in range(NO_CHAR):
            code.pairs[i << 8 | j] = joined(code.literals[j], code.literals[i])
        code.pairs[NO_CHAR << 8 | i] = code.literals[i]
    code.pairs[NO_CHAR << 8 | NO_CHAR] = 0
    put_header(&deflater.writer, lengths)


cdef void count_symbols(Deflater *deflater, const Sequence *last) noexcept nogil:
    cdef const Sequence *sequence = deflater.sequences
    cdef const uint8_t *text = <const uint8_t *>deflater.end
    cdef uint32_t i, symbol, extra_bits, extra
    memset(deflater.counts, 0, sizeof(deflater.counts))
    while sequence < last:
        for i in range(sequence.literals):
            deflater.counts[text[i]] += 1
        text += sequence.literals + sequence.length
        if sequence.length:
            symbol = length_symbol(sequence.length, &extra_bits, &extra)
            deflater.counts[symbol] += 1
            symbol = distance_symbol(sequence.distance, &extra_bits, &extra)
            deflater.counts[LITERALS + symbol] += 1
        sequence += 1


cdef void code_lengths(const uint32_t *counts, uint32_t symbols, uint8_t *lengths) noexcept nogil:
    # Huffman's algorithm with two queues: one of symbols, and one of trees. Then, codes that are
    # too long are shortened to MAX_CODE_BITS bits, and some shorter codes become longer instead.
    cdef uint64_t weights[2 * LITERALS]     # the symbols by frequency, then the trees
    cdef uint16_t parents[2 * LITERALS]
    cdef uint8_t depths[2 * LITERALS]
    cdef uint16_t ordered[LITERALS]
    cdef uint32_t at_depth[MAX_CODE_BITS + 1]
    cdef uint32_t i, _side, child, bits
    cdef uint32_t leaf = 0, tree = symbols      # rarest leaf and rarest tree without a parent
    cdef uint32_t trees = symbols, total = 0
    for i in range(symbols):
        weights[i] = (<uint64_t>counts[i] * 16 + 1) << 16 | i
    qsort(weights, symbols, sizeof(uint64_t), compare_weights)
    for i in range(symbols):
        ordered[i] = <uint16_t>(weights[i] & 0xFFFF)
        weights[i] >>= 16
    while trees < 2 * symbols - 1:
        weights[trees] = 0
        for _side in range(2):
            if leaf < symbols and (tree == trees or weights[leaf] <= weights[tree]):
                child = leaf
                leaf += 1
            else:
                child = tree
                tree += 1
            parents[child] = <uint16_t>trees
            weights[trees] += weights[child]
        trees += 1
    memset(at_depth, 0, sizeof(at_depth))
    depths[trees - 1] = 0
    for i in range(trees - 1, 0, -1):
        depths[i - 1] = depths[parents[i - 1]] + 1
        if i <= symbols:
            at_depth[min(<uint32_t>depths[i - 1], <uint32_t>MAX_CODE_BITS)] += 1
    for bits in range(1, MAX_CODE_BITS + 1):
        total += at_depth[bits] << (MAX_CODE_BITS - bits)
    while total > 1 << MAX_CODE_BITS:
        at_depth[MAX_CODE_BITS] -= 1
        bits = MAX_CODE_BITS - 1
        while at_depth[bits] == 0:
            bits -= 1
        at_depth[bits] -= 1
        at_depth[bits + 1] += 2
        total -= 1
    bits = MAX_CODE_BITS
    for i in range(symbols):            # the rarest symbols have the longest codes
        while at_depth[bits] == 0:
            bits -= 1
        at_depth[bits] -= 1
        lengths[ordered[i]] = <uint8_t>bits


cdef int compare_weights(const void *a, const void *b) noexcept nogil:
    cdef int64_t difference = (<const int64_t *>a)[0] - (<const int64_t *>b)[0]
    return (difference > 0) - (difference < 0)


cdef void assign_codes(const uint8_t *lengths, uint32_t symbols, uint32_t *entries) noexcept nogil:
    # Sets `entries` to the canonical codes with these lengths (RFC 1951, section 3.2.2). The first
    # bit of a code is the lowest bit of its entry.
    cdef uint32_t code = 0
    cdef uint32_t length, symbol, bit, reversed_
    for length in range(1, MAX_CODE_BITS + 1):
        for symbol in range(symbols):
            if lengths[symbol] != length:
                continue
            reversed_ = 0
            for bit in range(length):
                reversed_ |= (code >> bit & 1) << (length - 1 - bit)
            entries[symbol] = length << CODE_BITS | reversed_
            code += 1
        code <<= 1


cdef inline uint32_t joined(uint32_t first, uint32_t second) noexcept nogil:
    # One entry with the code of `first`, followed by the code of `second`.
    cdef uint32_t count = first >> CODE_BITS
    return ((first & CODE_MASK) | (second & CODE_MASK) << count
            | (count + (second >> CODE_BITS)) << CODE_BITS)


cdef void put_header(BitWriter *writer, const uint8_t *lengths) noexcept nogil:
    # Begins a block with a list of the lengths of its codes (RFC 1951, section 3.2.7). The lengths
    # in this list are themselves compressed, always with the same code: 3 bits for the symbols 11,
    # 12 and REPEAT, and 4 bits for the symbols 1 to 10.
    cdef uint8_t sizes[LENGTH_SYMBOLS]
    cdef uint32_t entries[LENGTH_SYMBOLS]
    cdef uint32_t i, repeats
    memset(sizes, 0, sizeof(sizes))
    memset(sizes + 1, 4, 10)
    sizes[11] = sizes[12] = sizes[REPEAT] = 3
    assign_codes(sizes, LENGTH_SYMBOLS, entries)
    put_bits(writer, 2 << 1, 3)         # not the last block, and with its own codes
    put_bits(writer, LITERALS - 257, 5)
    put_bits(writer, DISTANCES - 1, 5)
    put_bits(writer, LENGTH_SYMBOLS - 4, 4)
    for i in range(LENGTH_SYMBOLS):
        put_bits(writer, sizes[LENGTH_ORDER[i]], 3)
    i = 0
    while i < LITERALS + DISTANCES:
        put_entry(writer, entries[lengths[i]])
        i += 1
        repeats = 0
        while (repeats < 6 and i + repeats < LITERALS + DISTANCES
               and lengths[i + repeats] == lengths[i - 1]):
            repeats += 1
        if repeats >= 3:
            put_entry(writer, entries[REPEAT])
            put_bits(writer, repeats - 3, 2)
            i += repeats


# ---------------------------------------------------------------------------------------------
# Slices and chunks

cdef bint deflater_init(Deflater *deflater, char *text, size_t max_lines) noexcept nogil:
    # Returns False if out of memory. Even then, the caller must call `deflater_destroy`.
    #
    # The arrays have space for one piece per two bytes of a slice. This is enough: label values and
    # numbers can be shorter, but they alternate with longer fixed texts.
    cdef size_t pieces = (DEFLATE_SLICE + max_lines) / 2 + 16
    cdef size_t headers = (DEFLATE_CHUNK + max_lines) / MIN_SAMPLE + 2
    memset(deflater, 0, sizeof(Deflater))
    deflater.text = text
    deflater.end = text + HISTORY
    deflater.notes = <Piece *>malloc(pieces * sizeof(Piece))
    deflater.pieces = <Piece *>malloc(pieces * sizeof(Piece))
    deflater.sequences = <Sequence *>malloc(2 * pieces * sizeof(Sequence))
    deflater.output = <char *>malloc(2 * (DEFLATE_CHUNK + max_lines) + headers * MAX_HEADER)
    return (deflater.notes != NULL and deflater.pieces != NULL and deflater.sequences != NULL
            and deflater.output != NULL)


cdef void deflater_destroy(Deflater *deflater) noexcept nogil:
    free(deflater.notes)
    free(deflater.pieces)
    free(deflater.sequences)
    free(deflater.output)


cdef size_t deflate_lines(TableState *table, Cursor *cursor, Deflater *deflater,
                          size_t size) noexcept nogil:
    # Implements `Page.deflate`. Returns the number of uncompressed bytes, or 0 at the end of the
    # page. The compressed bytes are in `deflater.output`, up to `deflater.writer.out`.
    cdef char *start = deflater.text + HISTORY
    cdef char *limit = start + min(size, <size_t>DEFLATE_CHUNK)
    cdef char *end
    cdef Piece *last
    cdef uint32_t family
    deflate_begin(deflater)
    while deflater.end < limit and cursor.family < table.family_count:
        family = cursor.family
        last = deflater.notes
        end = render_lines(table, cursor, deflater.end, min(limit, deflater.end + DEFLATE_SLICE),
                           &last)
        last = expand_notes(table, family, cursor.starts, deflater.notes, last, deflater.pieces)
        deflate_slice(deflater, last, end)
    if deflater.end == start:
        end_blocks(deflater)
    return deflater.end - start


cdef void deflate_begin(Deflater *deflater) noexcept nogil:
    memmove(deflater.text, deflater.end - HISTORY, HISTORY)
    deflater.end = deflater.text + HISTORY
    deflater.writer.out = deflater.output


cdef void deflate_slice(Deflater *deflater, const Piece *last, char *end) noexcept nogil:
    cdef Code *code = &deflater.code
    cdef uint64_t size = end - deflater.end
    cdef uint64_t bits
    cdef const char *written
    cdef const Sequence *last_sequence
    if size == 0:
        return
    last_sequence = find_matches(deflater, last, end)
    if (code.sample_bytes == 0 or size >= LARGER_SAMPLE * code.sample_bytes
            or (deflater.learns and size >= MIN_SAMPLE)):
        learn_codes(deflater, last_sequence)
        code.sample_bytes = size
        code.sample_bits = 0
        deflater.learns = False
    written = deflater.writer.out
    write_sequences(deflater, last_sequence)
    bits = 8 * (deflater.writer.out - written)
    if code.sample_bits == 0:
        code.sample_bits = bits
    elif 100 * bits * code.sample_bytes > RELEARN_PERCENT * code.sample_bits * size:
        deflater.learns = True
    deflater.end = end
    deflater.position += size


cdef void end_blocks(Deflater *deflater) noexcept nogil:
    # Ends the current block. Then writes an empty uncompressed block, because such a block always
    # ends at a byte boundary.
    if deflater.code.sample_bytes:
        put_entry(&deflater.writer, deflater.code.literals[END_OF_BLOCK])
        deflater.code.sample_bytes = 0
    put_bits(&deflater.writer, 0, 3)
    put_bits(&deflater.writer, 0, -deflater.writer.count & 7)
    put_bits(&deflater.writer, 0xFFFF0000, 32)
