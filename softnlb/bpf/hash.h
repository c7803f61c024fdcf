/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * murmur3, 32 bits, of the key that an affinity makes of a client.
 */
#ifndef SOFTNLB_HASH_H
#define SOFTNLB_HASH_H

#include <linux/types.h>

static __always_inline __u32 rotate_left(__u32 word, int bits)
{
	return word << bits | word >> (32 - bits);
}

/* ``word``: four bytes of the key as the machine reads them from memory, lowest first. */
static __always_inline __u32 murmur3_scramble(__u32 word)
{
	return rotate_left(word * 0xcc9e2d51, 15) * 0x1b873593;
}

static __always_inline __u32 murmur3_block(__u32 hash, __u32 word)
{
	return rotate_left(hash ^ murmur3_scramble(word), 13) * 5 + 0xe6546b64;
}

static __always_inline __u32 murmur3_finish(__u32 hash, __u32 key_bytes)
{
	hash ^= key_bytes;
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* The hash modulo 60 by multiplication: the processor's division costs more than the hash. */
static __always_inline __u32 bucket_of(__u32 hash)
{
	return hash - (__u32)((__u64)hash * 0x88888889 >> 37) * 60;
}

#endif
