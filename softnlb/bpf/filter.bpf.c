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
#include "affinity.h"
#include "filter.h"
#include "packet.h"
#include "sockets.h"
#include "table.h"

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} packets SEC(".maps");

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

/* A decision in a register, which is all that a function of its own can return. */
static __always_inline __u64 pack(const struct decision *d)
{
	return (__u64)(d->slot + 1) << 16 | d->reason << 8 | d->verdict;
}

static __always_inline void unpack(struct decision *d, __u64 packed)
{
	d->slot = (__s32)(packed >> 16) - 1;
	d->reason = packed >> 8 & 0xff;
	d->verdict = packed & 0xff;
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

/* Step OWNER under extended affinity: who remembers the client comes before who owns it. */
static __noinline __u64 by_affinity(const struct table *table, __u32 slot, const struct packet *p)
{
	struct decision d = { .slot = slot };
	struct client client = {};
	const struct rule *rule;
	struct known *known;
	__u32 bucket, mine;
	__u64 now_ns;

	if (slot >= SLOTS_MAX)
		return 0;
	rule = &table->rules[slot];
	bucket = bucket_of_client(table, rule, p);
	mine = rule->current >> bucket & 1;
	if (!mine && !(rule->claimed >> bucket & 1)) {
		conclude(&d, DROP, NOT_MINE);
		return pack(&d);
	}
	fill_client(&client, slot, rule, p);
	if (bpf_map_lookup_elem(&exceptions, &client)) {
		conclude(&d, DROP, EXCEPTION);
		return pack(&d);
	}
	known = bpf_map_lookup_elem(&clients, &client);
	now_ns = bpf_ktime_get_boot_ns();
	if (!mine && !known) {
		conclude(&d, DROP, NOT_MINE);
	} else if (mine && table->draining && !known) {
		conclude(&d, DROP, DRAINING);
	} else if (now_ns >= *(volatile __u64 *)&table->valid_until_ns) {
		conclude(&d, DROP, NO_LEASE);
	} else if (mine && !table->draining) {
		remember(&client, known, bucket, now_ns);
		conclude(&d, KEEP, OWNER);
	} else {
		known->heard_ns = now_ns;
		conclude(&d, KEEP, AFFINITY);
	}
	return pack(&d);
}

/* Steps 9b to 9d and 9f; 0 when the sockets of this host say nothing about the segment. */
static __always_inline int decide_by_socket(void *ctx, void *end, const struct packet *p,
					    struct decision *d, int *cookie)
{
	struct bpf_sock_tuple tuple = {};
	__u32 bytes = fill_tuple(&tuple, p), state;
	struct bpf_sock *sk;
	int decided = 1;

	sk = bpf_skc_lookup_tcp(ctx, &tuple, bytes, BPF_F_CURRENT_NETNS, 0);
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

/* What the sockets of this host have a say in: segments of TCP and datagrams of UDP. */
static __always_inline __u64 ask_sockets(void *ctx, void *end, enum hook hook,
					 const struct table *table, __u32 slot,
					const struct packet *p)
{
	struct decision d;

	if (slot >= SLOTS_MAX)
		slot = 0;
	d.slot = slot;
	if (p->protocol == IPPROTO_TCP)
		decide_segment(ctx, end, hook, table, &table->rules[slot], p, &d);
	else if (udp_connected(ctx, p))
		conclude(&d, KEEP, SECOND_CHANCE);
	else if (table->rules[slot].remembers)
		return by_affinity(table, slot, p);
	else
		decide_owner(table, &table->rules[slot], p, &d);
	return pack(&d);
}

/* Functions of their own, so that the rest needs few registers. */
static __noinline __u64 by_sockets_tc(struct __sk_buff *skb, const struct table *table, __u32 slot,
				      const struct packet *p)
{
	return ask_sockets(skb, POINTER(skb->data_end), HOOK_TC, table, slot, p);
}

static __noinline __u64 by_sockets_xdp(struct xdp_md *ctx, const struct table *table, __u32 slot,
				       const struct packet *p)
{
	return ask_sockets(ctx, POINTER(ctx->data_end), HOOK_XDP, table, slot, p);
}

static __always_inline __u64 by_sockets(void *ctx, enum hook hook, const struct table *table,
					__u32 slot, const struct packet *p)
{
	return hook == HOOK_TC ? by_sockets_tc(ctx, table, slot, p)
			       : by_sockets_xdp(ctx, table, slot, p);
}

static __always_inline int is_icmp_error(const struct packet *p)
{
	__u8 type = p->icmp_type;

	if (p->ipv6)
		return p->protocol == IPPROTO_ICMP_V6 && type >= 1 && type <= 4;
	return p->protocol == IPPROTO_ICMP && (type == 3 || type == 11 || type == 12);
}

static __always_inline int is_echo(const struct packet *p)
{
	__u8 type = p->icmp_type;

	if (p->ipv6)
		return p->protocol == IPPROTO_ICMP_V6 && (type == 128 || type == 129);
	return p->protocol == IPPROTO_ICMP && (type == 0 || type == 8);
}

/* Multicast listener discovery, router and neighbour discovery. */
static __always_inline int resolves_addresses(const struct packet *p)
{
	__u8 type = p->icmp_type;

	return p->protocol == IPPROTO_ICMP_V6 && !p->malformed &&
	       ((type >= 130 && type <= 137) || type == 143);
}

static __always_inline void decide(void *ctx, enum hook hook, enum kind kind,
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
	ip = find_cluster_ip(table, p, kind);
	if (!ip)
		return conclude(d, UNTOUCHED, NOT_CLUSTER);
	if (kind == KIND_IPV6 && resolves_addresses(p))
		return conclude(d, KEEP, ADDRESS_RESOLUTION);
	if (!table->started)
		return conclude(d, DROP, STOPPED);
	if (kind == KIND_ARP)
		return conclude(d, KEEP, ADDRESS_RESOLUTION);

	/* Neither has an ICMP type, so that steps 4 and 6 may change places. */
	if (p->fragment_offset)
		return conclude(d, KEEP, FRAGMENT);
	if (p->malformed)
		return conclude(d, DROP, MALFORMED);
	if (is_icmp_error(p))
		return conclude(d, KEEP, ICMP_ERROR);
	if (is_echo(p) && !table->filter_icmp)
		return conclude(d, KEEP, EVERY_HOST);
	if (p->protocol == IPPROTO_UDP &&
	    bpf_ntohs(p->destination_port) == table->remote_control_port)
		return conclude(d, KEEP, REMOTE_CONTROL);

	slot = slot_of_any(table, ip, p->protocol, p->destination_port);
	if (slot >= SLOTS_MAX)
		return conclude(d, DROP, MALFORMED);
	d->slot = slot;
	rule = &table->rules[slot];
	if (rule->disabled)
		return conclude(d, DROP, DISABLED);
	if (!opens(p) && (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP))
		return unpack(d, by_sockets(ctx, hook, table, slot, p));
	if (rule->remembers)
		return unpack(d, by_affinity(table, slot, p));
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

/* IPv6 with a few extension headers is the longest. */
#define HEADERS_BYTES_MAX (ETH_HLEN + VLAN_TAGS_MAX * 4 + 40 + 80 + 20)

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

/* The driver or the stack has taken the tag out of the frame. */
static __always_inline int tagged(struct __sk_buff *skb)
{
	return skb->vlan_tci & VLAN_ID_MASK;
}

static __noinline __u64 decide_any_tc(struct __sk_buff *skb, const struct table *table)
{
	void *data, *end;
	struct decision d;
	struct packet p;
	enum kind kind;

	pull_headers(skb);
	data = POINTER(skb->data);
	end = POINTER(skb->data_end);
	kind = parse_frame(skb, HOOK_TC, data, end, skb->len, &p);
	if (tagged(skb))
		kind = KIND_TAGGED;
	decide(skb, HOOK_TC, kind, table, &p, &d);
	return pack(&d);
}

static __noinline __u64 decide_any_xdp(struct xdp_md *ctx, const struct table *table)
{
	void *data = POINTER(ctx->data), *end = POINTER(ctx->data_end);
	struct decision d;
	struct packet p;
	enum kind kind;

	kind = parse_frame(ctx, HOOK_XDP, data, end, end - data, &p);
	decide(ctx, HOOK_XDP, kind, table, &p, &d);
	return pack(&d);
}

/* The slot of a plain packet where nothing stands in the way of its rule, else NO_SLOT.
 * ``opening``: the owner of the bucket shall decide alone. */
static __always_inline __s32 slot_of_plain(const struct table *table, const struct packet *p,
					   int opening)
{
	const struct cluster_ip_address *ip = first_place(table, p);
	__u32 slot;

	if (!ip->address || !lies_there(table, p) || !table->started)
		return NO_SLOT;
	slot = slot_of(table, ip, p);
	if (slot >= SLOTS_MAX)
		return NO_SLOT;
	if (opening ? table->rules[slot].special : table->rules[slot].disabled)
		return NO_SLOT;
	return slot;
}

/* Most packets are segments and datagrams in the plainest form, for this cluster or not at all: the
 * same steps as in decide(), but nothing that these do not need.  0: decide() has to. */
static __always_inline int decide_parsed(void *ctx, enum hook hook, const struct table *table,
					 const struct packet *p, __u64 *decision)
{
	struct decision d = { .verdict = UNTOUCHED, .reason = NOT_CLUSTER, .slot = NO_SLOT };

	if (!first_place(table, p)->address) {
		*decision = pack(&d);
		return 1;
	}
	if (p->protocol == IPPROTO_UDP &&
	    bpf_ntohs(p->destination_port) == table->remote_control_port)
		return 0;
	d.slot = slot_of_plain(table, p, 0);
	if (d.slot == NO_SLOT)
		return 0;
	if (!opens(p)) {
		*decision = by_sockets(ctx, hook, table, d.slot, p);
	} else if (table->rules[d.slot].remembers) {
		*decision = by_affinity(table, d.slot, p);
	} else {
		decide_owner(table, &table->rules[d.slot], p, &d);
		*decision = pack(&d);
	}
	return 1;
}

static __always_inline int decide_plain(void *ctx, void *data, void *end, enum hook hook,
					const struct table *table, __u64 *decision)
{
	struct packet p;

	/* Twice the same code: of one for both families every packet would pay the choices. */
	if (parse_plain_tcp(data, end, 1, &p) || parse_plain_udp(data, end, 1, &p))
		return decide_parsed(ctx, hook, table, &p, decision);
	if (parse_plain_tcp(data, end, 0, &p) || parse_plain_udp(data, end, 0, &p))
		return decide_parsed(ctx, hook, table, &p, decision);
	return 0;
}

/* The packet that a host sees most of what is not for it, and that a flood consists of: the client
 * of another host opens a connection.  0: the rest has to decide. */
static __always_inline int decide_opening(void *data, void *end, const struct table *table,
					  struct decision *d)
{
	struct packet p;

	if (!parse_plain_tcp(data, end, 0, &p) || !opens(&p))
		return 0;
	d->slot = slot_of_plain(table, &p, 1);
	if (d->slot == NO_SLOT)
		return 0;
	decide_owner(table, &table->rules[d->slot], &p, d);
	return 1;
}

static __noinline __u64 decide_rest_tc(struct __sk_buff *skb, const struct table *table)
{
	void *data = POINTER(skb->data), *end = POINTER(skb->data_end);
	__u64 decision;

	if (!tagged(skb) && decide_plain(skb, data, end, HOOK_TC, table, &decision))
		return decision;
	return decide_any_tc(skb, table);
}

static __noinline __u64 decide_rest_xdp(struct xdp_md *ctx, const struct table *table)
{
	void *data = POINTER(ctx->data), *end = POINTER(ctx->data_end);
	__u64 decision;

	if (decide_plain(ctx, data, end, HOOK_XDP, table, &decision))
		return decision;
	return decide_any_xdp(ctx, table);
}

SEC("tc")
int softnlb_tc(struct __sk_buff *skb)
{
	const struct table *table = obeyed();
	void *data = POINTER(skb->data), *end = POINTER(skb->data_end);
	struct decision d;

	if (tagged(skb) || !decide_opening(data, end, table, &d))
		unpack(&d, decide_rest_tc(skb, table));
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

	if (!decide_opening(data, end, table, &d))
		unpack(&d, decide_rest_xdp(ctx, table));
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
