# Distinct samples: in bounded memory, estimate how many different keys have been added.
#
# A sample stores the keys whose first `level` bits are 0 (Gibbons, Tirthapura 2001). If a sample is
# full, its level increases by one, and about half of its keys are removed. Keys are hashes, so each
# key is stored with a probability of 2^-level. At level 0, the number of different keys is exact.
# At higher levels, the number is an estimate with a standard error below 0.8 %.
#
# All samples of one method call share one spare array, which `sample_thin` uses. Keys are added
# without the table's mutex.

cdef struct DistinctSample:
    uint64_t *keys              # hash table of 2 * SAMPLE_KEYS slots; 0 in a free slot
    uint32_t used               # number of stored keys
    uint32_t level              # number of leading bits that are 0 in every stored key


cdef inline uint64_t distinct_keys(const DistinctSample *sample) noexcept nogil:
    return <uint64_t>sample.used << sample.level


cdef inline void sample_key(DistinctSample *sample, uint64_t **spare, uint64_t key) noexcept nogil:
    key = max(key, <uint64_t>1)
    if sample.level and key >> (64 - sample.level):
        return
    sample.used += sample_store(sample.keys, key)
    while unlikely(sample.used > SAMPLE_KEYS):
        sample_thin(sample, spare)


cdef inline bint sample_store(uint64_t *keys, uint64_t key) noexcept nogil:
    # Returns whether the key is new.
    cdef uint32_t slot = key & (2 * SAMPLE_KEYS - 1)
    while keys[slot]:
        if keys[slot] == key:
            return False
        slot = (slot + 1) & (2 * SAMPLE_KEYS - 1)
    keys[slot] = key
    return True


cdef void sample_thin(DistinctSample *sample, uint64_t **spare) noexcept nogil:
    # Increases the level by one. Keys that the new level keeps move to the spare array, which the
    # sample uses from now on. The sample's old array becomes the spare array.
    cdef uint64_t *kept = spare[0]
    cdef uint32_t slot
    sample.level += 1
    sample.used = 0
    memset(kept, 0, 2 * SAMPLE_KEYS * sizeof(uint64_t))
    for slot in range(2 * SAMPLE_KEYS):
        if sample.keys[slot] and sample.keys[slot] >> (64 - sample.level) == 0:
            sample.used += sample_store(kept, sample.keys[slot])
    spare[0] = sample.keys
    sample.keys = kept
