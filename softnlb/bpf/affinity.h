/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * Extended affinity: the clients that this host remembers, and those that other hosts keep.
 */
#ifndef SOFTNLB_AFFINITY_H
#define SOFTNLB_AFFINITY_H

#include "filter.h"
#include "packet.h"
#include "table.h"

/* What grows takes memory only then.  A client for whom there is no room is not remembered. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CLIENTS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct client);
	__type(value, struct known);
} clients SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, EXCEPTIONS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct client);
	__type(value, __u32); /* the host id */
} exceptions SEC(".maps");

static __always_inline void fill_client(struct client *client, __u32 slot, const struct rule *rule,
					const struct packet *p)
{
	int network = rule->affinity == AFFINITY_NETWORK;

	client->slot = slot;
	client->ipv6 = p->ipv6;
	if (!p->ipv6) {
		client->address[0] = network ? p->source & bpf_htonl(0xffffff00) : p->source;
		return;
	}
	client->address[0] = p->source6[0];
	client->address[1] = p->source6[1];
	if (!network) {
		client->address[2] = p->source6[2];
		client->address[3] = p->source6[3];
	}
}

static __always_inline void remember(const struct client *client, struct known *known,
				     __u32 bucket, __u64 now_ns)
{
	struct known fresh = { .heard_ns = now_ns, .bucket = bucket };

	if (known)
		known->heard_ns = now_ns;
	else if (bpf_map_update_elem(&clients, client, &fresh, BPF_NOEXIST))
		__sync_fetch_and_add(&state.not_remembered, 1);
}

#endif
