// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Which packets a host of the cluster keeps, decided in the kernel: softnlb/filter.py in C.
 *
 * That file is the definition, with the reasons for every step; here are the same steps in the same
 * order.  The tests run every packet through both.
 *
 * Two duties of the decision lie in the nft rules of the link (modes/nft.py), whichever data plane
 * is used: packets for a cluster IP address through another interface, where this program is not,
 * and frames flooded to the cluster MAC for somebody else, which only the routing table knows.  The
 * packet type is this program's duty: without it a frame to the cluster MAC is of type OTHERHOST or
 * MULTICAST and the stack takes none, so that nothing is kept when somebody removes the program.
 */
#include "filter.h"
#include "hash.h"
#include "packet.h"
#include "sockets.h"

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

struct state state;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} packets SEC(".maps");

static __always_inline const struct table *obeyed(void)
{
	return &state.tables[*(volatile __u32 *)&state.active & 1];
}

enum verdict {
	KEEP,
	DROP,
	UNTOUCHED,
};

#define NO_SLOT (-1)

struct decision {
	enum verdict verdict;
	enum reason reason;
	__s32 slot;
};

static __always_inline void conclude(struct decision *d, enum verdict verdict, enum reason reason)
{
	d->verdict = verdict;
	d->reason = reason;
}

static __always_inline __u32 slot_of(const struct table *table, const struct cluster_ip_address *ip,
				     const struct packet *p)
{
	__u32 port = bpf_ntohs(p->destination_port);
	__u32 ports, page;

	if (p->protocol == IPPROTO_TCP)
		ports = ip->tcp_ports;
	else if (p->protocol == IPPROTO_UDP)
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

static __always_inline __u32 bucket_of_client(const struct table *table, const struct rule *rule,
					      const struct packet *p)
{
	__u32 hash = table->hash_seed;

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

static __always_inline void decide_owner(const struct table *table, const struct rule *rule,
					 const struct packet *p, struct decision *d)
{
	if (!(rule->current >> bucket_of_client(table, rule, p) & 1))
		conclude(d, DROP, NOT_MINE);
	else if (table->draining)
		conclude(d, DROP, DRAINING);
	else if (lease_is_over(table))
		conclude(d, DROP, NO_LEASE);
	else
		conclude(d, KEEP, OWNER);
}

/* Steps 9b to 9d and 9f; 0 when the sockets of this host say nothing about the segment. */
static __always_inline int decide_by_socket(void *ctx, void *end, const struct packet *p,
					    struct decision *d, int *cookie)
{
	struct bpf_sock_tuple tuple;
	struct bpf_sock *sk;
	int decided = 1;
	__u32 state;

	fill_tuple(&tuple, p);
	sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	state = state_of(sk);
	if (state == BPF_TCP_LISTEN) {
		decided = 0;
		*cookie = carries_syn_cookie(sk, p, end);
	} else if (state == BPF_TCP_NEW_SYN_RECV || state == BPF_TCP_SYN_RECV) {
		if (p->flags & FLAG_RST || acknowledges_syn_ack(sk, p))
			conclude(d, KEEP, SECOND_CHANCE);
		else
			conclude(d, DROP, HALF_OPEN);
	} else if (state == BPF_TCP_TIME_WAIT) {
		conclude(d, p->flags & FLAG_FIN ? KEEP : DROP, TIME_WAIT);
	} else if (state == BPF_TCP_CLOSE) {
		decided = 0;
	} else {
		conclude(d, KEEP, SECOND_CHANCE);
	}
	bpf_sk_release(sk);
	return decided;
}

/* Steps 9b to 9h: the segment of a connection of this host, of another one, of nobody. */
static __always_inline void decide_segment(void *ctx, void *end, enum hook hook,
					   const struct table *table, const struct rule *rule,
					   const struct packet *p, struct decision *d)
{
	int cookie = 0;
	__u32 bucket;

	if (decide_by_socket(ctx, end, p, d, &cookie))
		return;
	if (state.translates && conntracked(ctx, p, hook)) {
		conclude(d, KEEP, CONNTRACK);
		return;
	}
	if (cookie) {
		conclude(d, KEEP, SYN_COOKIE);
		return;
	}
	bucket = bucket_of_client(table, rule, p);
	if (rule->orphan >> bucket & 1) {
		/* What was proven of the bucket holds only while nobody else may take it. */
		if (lease_is_over(table))
			conclude(d, DROP, NO_LEASE);
		else
			conclude(d, KEEP, ORPHAN_RESET);
		return;
	}
	conclude(d, DROP, rule->current >> bucket & 1 ? NO_SOCKET : NOT_MINE);
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

static __always_inline void decide(void *ctx, void *end, enum hook hook, enum kind kind,
				   const struct table *table, const struct packet *p,
				   struct decision *d)
{
	const struct cluster_ip_address *ip;
	const struct rule *rule;
	__u32 slot;

	d->slot = NO_SLOT;
	if (kind == KIND_TAGGED)
		return conclude(d, UNTOUCHED, TAGGED);
	if (kind == KIND_OTHER)
		return conclude(d, UNTOUCHED, NOT_CLUSTER);
	ip = find_cluster_ip(table, p->destination);
	if (!ip)
		return conclude(d, UNTOUCHED, NOT_CLUSTER);
	if (!table->started)
		return conclude(d, DROP, STOPPED);
	if (kind == KIND_ARP)
		return conclude(d, KEEP, ADDRESS_RESOLUTION);

	/* Neither has an ICMP type, so that steps 4 and 6 may change places. */
	if (p->fragment_offset)
		return conclude(d, KEEP, FRAGMENT);
	if (p->malformed)
		return conclude(d, DROP, MALFORMED);
	if (p->protocol == IPPROTO_ICMP) {
		__u8 type = p->icmp_type;

		if (type == 3 || type == 11 || type == 12)
			return conclude(d, KEEP, ICMP_ERROR);
		if ((type == 0 || type == 8) && !table->filter_icmp)
			return conclude(d, KEEP, EVERY_HOST);
	}
	if (p->protocol == IPPROTO_UDP &&
	    bpf_ntohs(p->destination_port) == table->remote_control_port)
		return conclude(d, KEEP, REMOTE_CONTROL);

	slot = slot_of(table, ip, p);
	if (slot >= SLOTS_MAX)
		return conclude(d, DROP, MALFORMED);
	d->slot = slot;
	rule = &table->rules[slot];
	if (rule->disabled)
		return conclude(d, DROP, DISABLED);
	if (p->protocol == IPPROTO_TCP && (p->flags & FLAGS_OPENING) != FLAG_SYN)
		return decide_segment(ctx, end, hook, table, rule, p, d);
	if (p->protocol == IPPROTO_UDP && udp_connected(ctx, p))
		return conclude(d, KEEP, SECOND_CHANCE);
	decide_owner(table, rule, p, d);
}

static __always_inline void count(const struct decision *d)
{
	struct counters *counters;
	__u32 row = d->slot + 1, reason = d->reason, zero = 0;

	counters = bpf_map_lookup_elem(&packets, &zero);
	if (counters && row <= SLOTS_MAX && reason < REASONS)
		counters->packets[row][reason]++;
}

static __always_inline int to_cluster_mac(const struct table *table, void *data, void *end)
{
	__u16 *destination = data;
	const __u16 *mac = (const __u16 *)table->cluster_mac;

	if (data + ETH_ALEN > end)
		return 0;
	return destination[0] == mac[0] && destination[1] == mac[1] && destination[2] == mac[2];
}

#define HEADERS_BYTES_MAX (ETH_HLEN + VLAN_TAGS_MAX * 4 + 60 + 20)

/* Read anew at every use: a copy that the compiler keeps as a number is no pointer any more. */
#define POINTER(field) ((void *)(long)*(volatile __u32 *)&(field))

/* The headers may lie in pages behind the part of the frame that can be read. */
static __always_inline void pull_headers(struct __sk_buff *skb)
{
	void *data = POINTER(skb->data), *end = POINTER(skb->data_end);
	__u32 bytes = skb->len < HEADERS_BYTES_MAX ? skb->len : HEADERS_BYTES_MAX;

	/* Nearly every frame: IPv4 without tag and options. */
	if (data + ETH_HLEN + 20 + 20 <= end && *(__u8 *)(data + ETH_HLEN) == 0x45)
		return;
	if (data + bytes > end)
		bpf_skb_pull_data(skb, bytes);
}

SEC("tc")
int softnlb_tc(struct __sk_buff *skb)
{
	const struct table *table = obeyed();
	void *data, *end;
	struct decision d;
	struct packet p;
	enum kind kind;

	pull_headers(skb);
	data = POINTER(skb->data);
	end = POINTER(skb->data_end);
	kind = parse_frame(data, end, skb->len, skb, &p);
	/* The driver or the stack has taken the tag out of the frame. */
	if (skb->vlan_tci & VLAN_ID_MASK)
		kind = KIND_TAGGED;
	decide(skb, end, HOOK_TC, kind, table, &p, &d);
	count(&d);
	if (d.verdict == DROP)
		return TC_ACT_SHOT;
	if (d.verdict != KEEP || skb->pkt_type == PACKET_HOST)
		return TC_ACT_UNSPEC;
	data = POINTER(skb->data);
	end = POINTER(skb->data_end);
	if (to_cluster_mac(table, data, end))
		bpf_skb_change_type(skb, PACKET_HOST);
	/* Other programs and filters may still have an opinion. */
	return TC_ACT_UNSPEC;
}

SEC("xdp")
int softnlb_xdp(struct xdp_md *ctx)
{
	const struct table *table = obeyed();
	void *data = POINTER(ctx->data), *end = POINTER(ctx->data_end);
	struct decision d;
	struct packet p;
	enum kind kind;

	kind = parse_frame(data, end, end - data, 0, &p);
	decide(ctx, end, HOOK_XDP, kind, table, &p, &d);
	count(&d);
	if (d.verdict == DROP)
		return XDP_DROP;
	/* There is no packet type yet: the MAC address that will make it HOST. */
	if (d.verdict != KEEP)
		return XDP_PASS;
	data = POINTER(ctx->data);
	end = POINTER(ctx->data_end);
	if (to_cluster_mac(table, data, end))
		__builtin_memcpy(data, table->interface_mac, ETH_ALEN);
	return XDP_PASS;
}

/* What programs cost beside these: `softnlb bench`. */
SEC("tc")
int softnlb_tc_none(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

SEC("xdp")
int softnlb_xdp_none(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char license_of_this[] SEC("license") = "Dual MIT/GPL";
