/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * What this host's stack knows of a connection: its sockets, its SYN cookies, its conntrack.
 */
#ifndef SOFTNLB_SOCKETS_H
#define SOFTNLB_SOCKETS_H

#include "packet.h"

/* Fields of the running kernel's structures; where they lie is found out when the program loads. */
struct tcp_request_sock {
	__u32 snt_isn;
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 snd_una;
	__u32 snd_nxt;
} __attribute__((preserve_access_index));

struct inet_timewait_sock {
	unsigned char tw_substate;
} __attribute__((preserve_access_index));

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
} __attribute__((preserve_access_index));

struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	unsigned long status;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

struct conntrack_options {
	__s32 netns_id;
	__s32 error;
	__u8 protocol;
	__u8 direction;
	__u8 reserved[2];
};

/* nf_conntrack_common.h and nf_conntrack_tcp.h, which no user header shows in full. */
#define STATUS_NAT (1 << 4 | 1 << 5)
#define CT_TIME_WAIT 7
#define CT_CLOSE 8

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *, struct bpf_sock_tuple *, __u32,
					 struct conntrack_options *, __u32) __ksym __weak;
extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *, struct bpf_sock_tuple *, __u32,
					 struct conntrack_options *, __u32) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *) __ksym __weak;

/* Fills the tuple; returns how much of it counts, in bytes.  The rest is 0: the verifier wants all
 * of what might be read to have a value. */
static __always_inline __u32 fill_tuple(struct bpf_sock_tuple *tuple, const struct packet *p)
{
	if (p->ipv6) {
		__builtin_memcpy(tuple->ipv6.saddr, p->source6, 16);
		__builtin_memcpy(tuple->ipv6.daddr, p->destination6, 16);
		tuple->ipv6.sport = p->source_port;
		tuple->ipv6.dport = p->destination_port;
		return sizeof(tuple->ipv6);
	}
	tuple->ipv4.saddr = p->source;
	tuple->ipv4.daddr = p->destination;
	tuple->ipv4.sport = p->source_port;
	tuple->ipv4.dport = p->destination_port;
	return sizeof(tuple->ipv4);
}

static __always_inline int udp_connected(void *ctx, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	__u32 bytes = fill_tuple(&tuple, p);
	struct bpf_sock *sk;
	int connected;

	sk = bpf_sk_lookup_udp(ctx, &tuple, bytes, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	connected = sk->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(sk);
	return connected;
}

/* Whether the segment answers the SYN-ACK that this host sent, of a connection in SYN_RECV. */
static __always_inline int acknowledges_syn_ack(struct bpf_sock *sk, const struct packet *p)
{
	struct tcp_request_sock *request = bpf_skc_to_tcp_request_sock(sk);
	struct tcp_sock *tcp;

	if (request)
		return p->acknowledgment == request->snt_isn + 1;
	/* Fast Open and simultaneous open have a whole socket by now, which may have sent data. */
	tcp = bpf_skc_to_tcp_sock(sk);
	return tcp && p->acknowledgment - tcp->snd_una <= tcp->snd_nxt - tcp->snd_una;
}

/* The state; the FIN_WAIT2 of a closed socket has the shape of a TIME_WAIT. */
static __always_inline __u32 state_of(struct bpf_sock *sk)
{
	struct tcp_timewait_sock *shape;
	__u32 state = sk->state;

	if (state != BPF_TCP_TIME_WAIT)
		return state;
	shape = bpf_skc_to_tcp_timewait_sock(sk);
	return shape ? shape->tw_sk.tw_substate : state;
}

/* Whether the segment carries a SYN cookie that this host has sent. */
static __always_inline int carries_syn_cookie(struct bpf_sock *listener, const struct packet *p,
					      void *end)
{
	struct iphdr *ip = p->ip;
	struct tcphdr *tcp = p->transport;

	if ((p->flags & FLAGS_OPENING) != FLAG_ACK)
		return 0;
	if (!tcp || (void *)(tcp + 1) > end)
		return 0;
	if (p->ipv6) {
		struct ipv6hdr *ipv6 = p->ip;

		return (void *)(ipv6 + 1) <= end &&
		       !bpf_tcp_check_syncookie(listener, ipv6, sizeof(*ipv6), tcp, sizeof(*tcp));
	}
	if ((void *)(ip + 1) > end)
		return 0;
	return !bpf_tcp_check_syncookie(listener, ip, sizeof(*ip), tcp, sizeof(*tcp));
}

/* Whether connection tracking has seen this host accept the connection, and its ports or addresses
 * are translated (containers), so that no socket can be found.  Of connections that have ended only
 * the ends are kept, as of sockets in TIME_WAIT: a new one on the same ports may be another
 * host's. */
static __always_inline int conntracked(void *ctx, const struct packet *p, enum hook hook)
{
	struct conntrack_options options = { .netns_id = -1, .protocol = IPPROTO_TCP };
	struct bpf_sock_tuple tuple = {};
	__u32 bytes = fill_tuple(&tuple, p);
	struct nf_conn *found;
	int known;

	if (!bpf_ct_release)
		return 0;
	if (hook == HOOK_TC) {
		if (!bpf_skb_ct_lookup)
			return 0;
		found = bpf_skb_ct_lookup(ctx, &tuple, bytes, &options, sizeof(options));
	} else {
		if (!bpf_xdp_ct_lookup)
			return 0;
		found = bpf_xdp_ct_lookup(ctx, &tuple, bytes, &options, sizeof(options));
	}
	if (!found)
		return 0;
	known = found->status & STATUS_NAT &&
		(p->flags & (FLAG_FIN | FLAG_RST) || found->proto.tcp.state < CT_TIME_WAIT ||
		 found->proto.tcp.state > CT_CLOSE);
	bpf_ct_release(found);
	return known;
}

#endif
