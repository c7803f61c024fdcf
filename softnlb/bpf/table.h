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

/* Of an address in network order the sum of its last two bytes: neighbours do not collide. */
static __always_inline __u32 place_of(__be32 address)
{
	const __u8 *bytes = (const __u8 *)&address;

	return bytes[2] + bytes[3];
}

static __always_inline const struct cluster_ip_address *find_cluster_ip(const struct table *table,
									__be32 address)
{
	__u32 first = place_of(address), i;

	for (i = 0; i <= CLUSTER_IP_ADDRESSES_MAX; i++) {
		const struct cluster_ip_address *ip = &table->cluster[(first + i) % PLACES];

		if (!ip->address)
			return 0;
		if (ip->address == address)
			return ip;
	}
	return 0;
}

static __always_inline const struct cluster_ip_address *
find_cluster_ipv6(const struct table *table, const __be32 *address)
{
	__u32 first = place_of(address[3]), i;

	for (i = 0; i <= CLUSTER_IPV6_ADDRESSES_MAX; i++) {
		const struct cluster_ipv6_address *ip = &table->cluster6[(first + i) % PLACES_IPV6];

		if (!ip->ports.address)
			return 0;
		if (ip->address[3] == address[3] && ip->address[2] == address[2] &&
		    ip->address[1] == address[1] && ip->address[0] == address[0])
			return &ip->ports;
	}
	return 0;
}

/* Where it lies unless another address was there first. */
static __always_inline const struct cluster_ip_address *
first_place(const struct table *table, const struct packet *p)
{
	return &table->cluster[place_of(p->destination) % PLACES];
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
