/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * The table in force, and how a packet is looked up in it.
 */
#ifndef SOFTNLB_TABLE_H
#define SOFTNLB_TABLE_H

#include "filter.h"
#include "hash.h"
#include "packet.h"

struct state state;

static __always_inline const struct table *obeyed(void)
{
	const struct table *table = &state.tables[*(volatile __u32 *)&state.active & 1];

	/* One register for it, instead of its address anew at every use. */
	barrier_var(table);
	return table;
}

struct address6 {
	__be32 words[4];
};

/* Of an address in network order the sum of its last two bytes: neighbours do not collide. */
static __always_inline __u32 place_of(__be32 address)
{
	const __u8 *bytes = (const __u8 *)&address;

	return bytes[2] + bytes[3];
}

/* Global functions, which the verifier looks at once: inlined, everything behind a search would be
 * looked at for each of its ends. */
#define NO_PLACE 0xffff

__noinline __u32 place_of_cluster_ip(const struct table *table, __be32 address)
{
	__u32 first = place_of(address), i;

	if (!table)
		return NO_PLACE;
	for (i = 0; i <= CLUSTER_IP_ADDRESSES_MAX; i++) {
		const struct cluster_ip_address *ip = &table->cluster[(first + i) % PLACES];

		if (!ip->address)
			break;
		if (ip->address == address)
			return (first + i) % PLACES;
	}
	return NO_PLACE;
}

__noinline __u32 place_of_cluster_ipv6(const struct table *table, const struct address6 *address)
{
	__u32 first, i;

	if (!table || !address)
		return NO_PLACE;
	first = place_of(address->words[3]);
	for (i = 0; i <= CLUSTER_IPV6_ADDRESSES_MAX; i++) {
		const struct cluster_ipv6_address *ip = &table->cluster6[(first + i) % PLACES_IPV6];

		if (!ip->ports.address)
			break;
		if (ip->address[3] == address->words[3] && ip->address[2] == address->words[2] &&
		    ip->address[1] == address->words[1] && ip->address[0] == address->words[0])
			return (first + i) % PLACES_IPV6;
	}
	return NO_PLACE;
}

static __always_inline const struct cluster_ip_address *
find_cluster_ip(const struct table *table, const struct packet *p, enum kind kind)
{
	struct address6 address;
	__u32 place;

	if (kind != KIND_IPV6) {
		place = place_of_cluster_ip(table, p->destination);
		return place < PLACES ? &table->cluster[place] : 0;
	}
	__builtin_memcpy(&address, p->destination6, sizeof(address));
	place = place_of_cluster_ipv6(table, &address);
	return place < PLACES_IPV6 ? &table->cluster6[place].ports : 0;
}

/* Where it lies unless another address was there first. */
static __always_inline const struct cluster_ip_address *
first_place(const struct table *table, const struct packet *p)
{
	if (p->ipv6)
		return &table->cluster6[place_of(p->destination6[3]) % PLACES_IPV6].ports;
	return &table->cluster[place_of(p->destination) % PLACES];
}

static __always_inline int lies_there(const struct table *table, const struct packet *p)
{
	const struct cluster_ipv6_address *ip;

	if (!p->ipv6)
		return first_place(table, p)->address == p->destination;
	ip = &table->cluster6[place_of(p->destination6[3]) % PLACES_IPV6];
	return ip->address[3] == p->destination6[3] && ip->address[2] == p->destination6[2] &&
	       ip->address[1] == p->destination6[1] && ip->address[0] == p->destination6[0];
}

static __always_inline __u32 slot_of(const struct table *table, const struct cluster_ip_address *ip,
				     const struct packet *p)
{
	__u32 port = bpf_ntohs(p->destination_port);
	__u32 ports, page;

	/* GRE goes with PPTP, ESP and AH go with IKE. */
	if (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_GRE)
		ports = ip->tcp_ports;
	else if (p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_ESP ||
		 p->protocol == IPPROTO_AH)
		ports = ip->udp_ports;
	else
		return table->default_slot;
	if (ports >= PORT_TABLES_MAX)
		return table->default_slot;
	page = table->port_pages[ports][port >> 8];
	if (page >= PORT_PAGES_MAX)
		return table->default_slot;
	return table->page_slots[page][port & 0xff];
}

__noinline __u32 slot_of_any(const struct table *table, const struct cluster_ip_address *ip,
			     __u32 protocol, __u32 port)
{
	struct packet p = { .protocol = protocol, .destination_port = port };

	return table && ip ? slot_of(table, ip, &p) : SLOTS_MAX;
}

static __always_inline __u32 bucket_of_ipv6_client(__u32 hash, const struct rule *rule,
						   const struct packet *p)
{
	int network = rule->affinity == AFFINITY_NETWORK;

	hash = murmur3_block(hash, p->source6[0]);
	hash = murmur3_block(hash, p->source6[1]);
	hash = murmur3_block(hash, network ? 0 : p->source6[2]);
	hash = murmur3_block(hash, network ? 0 : p->source6[3]);
	if (rule->affinity != AFFINITY_NONE)
		return bucket_of(murmur3_finish(hash, 16));
	return bucket_of(murmur3_finish(hash ^ murmur3_scramble(p->source_port), 18));
}

static __always_inline __u32 bucket_of_client(const struct table *table, const struct rule *rule,
					      const struct packet *p)
{
	__u32 hash = table->hash_seed;

	if (p->ipv6)
		return bucket_of_ipv6_client(hash, rule, p);
	if (rule->affinity == AFFINITY_NETWORK)
		return bucket_of(murmur3_finish(
			murmur3_block(hash, p->source & bpf_htonl(0xffffff00)), 4));
	hash = murmur3_block(hash, p->source);
	if (rule->affinity == AFFINITY_SINGLE)
		return bucket_of(murmur3_finish(hash, 4));
	return bucket_of(murmur3_finish(hash ^ murmur3_scramble(p->source_port), 6));
}

static __always_inline int lease_is_over(const struct table *table)
{
	return bpf_ktime_get_boot_ns() >= *(volatile __u64 *)&table->valid_until_ns;
}

#endif
