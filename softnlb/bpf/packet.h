/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * Bytes of a frame -> struct packet: what softnlb/packet.py does, and the tests compare the two.
 * Nothing after parsing looks at the frame again but the SYN cookie check.
 */
#ifndef SOFTNLB_PACKET_H
#define SOFTNLB_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FLAG_FIN 0x01
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_ACK 0x10
/* Of these flags the first segment of a connection carries SYN alone. */
#define FLAGS_OPENING (FLAG_SYN | FLAG_ACK | FLAG_RST | FLAG_FIN)

#define VLAN_TAGS_MAX 2
#define VLAN_ID_MASK 0x0fff

/* A chain of as many is not followed to its end, and the packet counts as malformed. */
#define EXTENSIONS_MAX 8
#define IPPROTO_ICMP_V6 58

/* A tunnel of PPTP is agreed upon by TCP, a security association by IKE: their ports. */
#define PPTP_PORT 1723
#define IKE_PORT 500

/* Read anew at every use: a copy that the compiler keeps as a number is no pointer any more. */
#define POINTER(field) ((void *)(long)*(volatile __u32 *)&(field))

enum hook {
	HOOK_TC,
	HOOK_XDP,
};

enum kind {
	KIND_IPV4,
	KIND_IPV6,
	KIND_ARP,
	KIND_OTHER,  /* nothing that could be for a cluster IP address */
	KIND_TAGGED, /* of a VLAN */
	KIND_SHORT,  /* a header that is there cannot be read: no memory to pull it up */
};

struct packet {
	void *ip;        /* headers, still to be checked against the end */
	void *transport;
	__be32 source; /* of IPv4 */
	__be32 destination;
	__be32 source6[4]; /* of IPv6 */
	__be32 destination6[4];
	__u32 acknowledgment;
	__be16 source_port;
	__be16 destination_port;
	__u16 fragment_offset;
	__u8 protocol;
	__u8 flags;
	__u8 icmp_type;
	__u8 malformed;
	__u8 ipv6;
};

struct vlan_header {
	__be16 tci;
	__be16 ethertype;
};

struct arp_ipv4 {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__u8 rest[6];
};

static __always_inline enum kind parse_arp(void *at, void *end, __u32 bytes, struct packet *p)
{
	struct arp_ipv4 *arp = at;

	if (at + sizeof(*arp) > end)
		return bytes >= sizeof(*arp) ? KIND_SHORT : KIND_OTHER;
	if (arp->hardware_type != bpf_htons(1) || arp->protocol_type != bpf_htons(ETH_P_IP) ||
	    arp->hardware_bytes != ETH_ALEN || arp->protocol_bytes != 4)
		return KIND_OTHER;
	__builtin_memcpy(&p->destination, arp->target_ip, 4);
	return KIND_ARP;
}

/* Where a fragment offset is 0.  ``room``: bytes of the transport header and data that the packet
 * has, by its own word and in truth. */
static __always_inline enum kind parse_transport(void *end, __s32 room, struct packet *p)
{
	void *at = p->transport;

	if (p->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = at;
		__u32 header_bytes;

		if (room < (__s32)sizeof(*tcp))
			return KIND_IPV4;
		if (at + sizeof(*tcp) > end)
			return KIND_SHORT;
		header_bytes = tcp->doff * 4;
		p->source_port = tcp->source;
		p->destination_port = tcp->dest;
		p->acknowledgment = bpf_ntohl(tcp->ack_seq);
		p->flags = ((__u8 *)at)[13];
		if (header_bytes < sizeof(*tcp))
			return KIND_IPV4;
	} else if (p->protocol == IPPROTO_UDP) {
		struct udphdr *udp = at;

		if (room < (__s32)sizeof(*udp))
			return KIND_IPV4;
		if (at + sizeof(*udp) > end)
			return KIND_SHORT;
		p->source_port = udp->source;
		p->destination_port = udp->dest;
	} else if (p->protocol == (p->ipv6 ? IPPROTO_ICMP_V6 : IPPROTO_ICMP)) {
		struct icmp_header *icmp = at;

		if (room < (__s32)sizeof(*icmp))
			return KIND_IPV4;
		if (at + sizeof(*icmp) > end)
			return KIND_SHORT;
		p->icmp_type = icmp->type;
	} else if (room < 0) {
		return KIND_IPV4;
	} else if (p->protocol == IPPROTO_GRE) {
		p->source_port = p->destination_port = bpf_htons(PPTP_PORT);
	} else if (p->protocol == IPPROTO_ESP || p->protocol == IPPROTO_AH) {
		p->source_port = p->destination_port = bpf_htons(IKE_PORT);
	}
	p->malformed = 0;
	return KIND_IPV4;
}

/* ``bytes``: from the IP header to the end of the frame, padding and what is not at hand included.
 * ``skb``: where there is one, for segments merged to more than a total length can say. */
static __always_inline enum kind parse_ipv4(void *at, void *end, __u32 bytes,
					    struct __sk_buff *skb, struct packet *p)
{
	struct iphdr *ip = at;
	__u32 header_bytes, total_bytes, in_frame;
	enum kind kind;
	__s32 room;

	if (at + sizeof(*ip) > end)
		return bytes >= sizeof(*ip) ? KIND_SHORT : KIND_OTHER;
	if (ip->version != 4)
		return KIND_OTHER;
	header_bytes = ip->ihl * 4;
	total_bytes = bpf_ntohs(ip->tot_len);
	if (!total_bytes && skb && skb->gso_segs > 1)
		total_bytes = bytes;
	p->ip = at;
	p->source = ip->saddr;
	p->destination = ip->daddr;
	p->protocol = ip->protocol;
	p->fragment_offset = bpf_ntohs(ip->frag_off) & 0x1fff;
	p->malformed = 1;
	if (header_bytes < sizeof(*ip) || total_bytes < header_bytes || p->fragment_offset)
		return KIND_IPV4;
	p->transport = at + header_bytes;
	in_frame = bytes < total_bytes ? bytes : total_bytes;
	room = (__s32)in_frame - (__s32)header_bytes;
	kind = parse_transport(end, room, p);
	/* The data offset may point past the frame, as it may be cut short, but not past the packet. */
	if (kind == KIND_IPV4 && p->protocol == IPPROTO_TCP && !p->malformed) {
		struct tcphdr *tcp = p->transport;

		if ((void *)(tcp + 1) > end || header_bytes + tcp->doff * 4 > total_bytes)
			p->malformed = 1;
	}
	return kind;
}

struct extension {
	__u8 next;
	__u8 length;     /* of most in units of 8 bytes, less the first */
	__be16 fragment; /* of a fragment header: offset and more */
};

/* By protocol number, units of 0 where it is no extension header (RFC 8200 section 4): length in
 * bytes = 8 + units x ``length``.  Looked up, because every branch here doubles the verifier's
 * work. */
static const volatile __u8 extension_units[256] = {
	[IPPROTO_HOPOPTS] = 8, [IPPROTO_ROUTING] = 8, [IPPROTO_DSTOPTS] = 8, [IPPROTO_AH] = 4,
	[IPPROTO_FRAGMENT] = 1,
};
static const volatile __u8 length_mask[256] = {
	[IPPROTO_HOPOPTS] = 255, [IPPROTO_ROUTING] = 255, [IPPROTO_DSTOPTS] = 255,
	[IPPROTO_AH] = 255,
};
static const volatile __u16 fragment_mask[256] = { [IPPROTO_FRAGMENT] = 0x1fff };

#define SKIPPED_MASK 0x3fff
#define OFFSET_MASK 0x7f

struct extensions {
	__u32 skipped; /* bytes */
	__u16 fragment_offset;
	__u8 protocol;
	__u8 whole; /* none is cut off */
};

/* Step over the extension headers.  ``offset``: of the first one in the frame; ``in_frame``: bytes
 * of the packet from there on; ``kind``: what the IPv6 header calls it. */
static __always_inline int skip_extensions(void *data, void *end, __u32 offset, __u32 in_frame,
					   __u32 kind, struct extensions *found)
{
	void *at = data + (offset & OFFSET_MASK);
	__u32 skipped = 0;
	int i;

	for (i = 0; i < EXTENSIONS_MAX; i++) {
		struct extension *header = at + skipped;

		if (!extension_units[kind & 0xff]) {
			found->whole = 1;
			break;
		}
		if (skipped + 8 > in_frame || (void *)(header + 1) > end)
			break;
		found->fragment_offset = bpf_ntohs(header->fragment) >> 3 &
					 fragment_mask[kind & 0xff];
		skipped += 8 + (header->length & length_mask[kind & 0xff]) *
				       extension_units[kind & 0xff];
		skipped &= SKIPPED_MASK;
		kind = header->next;
		if (found->fragment_offset) {
			found->whole = 1;
			break;
		}
	}
	found->protocol = kind;
	found->skipped = skipped;
	return 0;
}

/* Global functions, which the verifier looks at once: inlined, everything behind the loop would be
 * looked at for each number of headers, a third of a second at each load. */
__noinline int skip_extensions_tc(struct __sk_buff *skb, __u32 offset, __u32 in_frame, __u32 kind,
				  struct extensions *found)
{
	return found ? skip_extensions(POINTER(skb->data), POINTER(skb->data_end), offset,
				       in_frame, kind, found)
		     : 0;
}

__noinline int skip_extensions_xdp(struct xdp_md *ctx, __u32 offset, __u32 in_frame, __u32 kind,
				   struct extensions *found)
{
	return found ? skip_extensions(POINTER(ctx->data), POINTER(ctx->data_end), offset,
				       in_frame, kind, found)
		     : 0;
}

/* ``bytes`` as for IPv4; ``offset``: of ``at`` in the frame. */
static __always_inline enum kind parse_ipv6(void *ctx, enum hook hook, void *at, void *end,
					    __u32 offset, __u32 bytes, struct packet *p)
{
	struct __sk_buff *skb = hook == HOOK_TC ? ctx : 0;
	struct extensions found = {};
	struct ipv6hdr *ip = at;
	__u32 total_bytes, in_frame, skipped;
	__s32 room;
	enum kind kind;

	if (at + sizeof(*ip) > end)
		return bytes >= sizeof(*ip) ? KIND_SHORT : KIND_OTHER;
	if (ip->version != 6)
		return KIND_OTHER;
	total_bytes = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (!ip->payload_len && skb && skb->gso_segs > 1)
		total_bytes = bytes;
	p->ip = at;
	p->ipv6 = 1;
	__builtin_memcpy(p->source6, &ip->saddr, 16);
	__builtin_memcpy(p->destination6, &ip->daddr, 16);
	p->protocol = ip->nexthdr;
	p->malformed = 1;
	in_frame = bytes < total_bytes ? bytes : total_bytes;
	offset += sizeof(*ip);
	if (hook == HOOK_TC)
		skip_extensions_tc(ctx, offset, in_frame - sizeof(*ip), p->protocol, &found);
	else
		skip_extensions_xdp(ctx, offset, in_frame - sizeof(*ip), p->protocol, &found);
	p->protocol = found.protocol;
	p->fragment_offset = found.fragment_offset;
	if (!found.whole || found.fragment_offset)
		return KIND_IPV6;
	skipped = found.skipped & SKIPPED_MASK;
	p->transport = at + sizeof(*ip) + skipped;
	room = (__s32)in_frame - (__s32)sizeof(*ip) - (__s32)skipped;
	kind = parse_transport(end, room, p);
	if (kind == KIND_IPV4 && p->protocol == IPPROTO_TCP && !p->malformed) {
		struct tcphdr *tcp = p->transport;

		if ((void *)(tcp + 1) > end ||
		    sizeof(*ip) + skipped + tcp->doff * 4 > total_bytes)
			p->malformed = 1;
	}
	return KIND_IPV6;
}

/* ``frame_bytes``: of the whole frame, of which only a part may lie before ``end``. */
static __always_inline enum kind parse_frame(void *ctx, enum hook hook, void *data, void *end,
					     __u32 frame_bytes, struct packet *p)
{
	struct __sk_buff *skb = hook == HOOK_TC ? ctx : 0;
	struct ethhdr *ethernet = data;
	void *at = data + sizeof(*ethernet);
	__be16 ethertype;
	int i;

	__builtin_memset(p, 0, sizeof(*p));
	if (at > end)
		return KIND_OTHER;
	ethertype = ethernet->h_proto;
	/* VLAN 0 is a priority and no VLAN. */
	for (i = 0; i < VLAN_TAGS_MAX; i++) {
		struct vlan_header *vlan = at;

		if (ethertype != bpf_htons(ETH_P_8021Q) && ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(vlan + 1) > end)
			return KIND_OTHER;
		if (vlan->tci & bpf_htons(VLAN_ID_MASK))
			return KIND_TAGGED;
		ethertype = vlan->ethertype;
		at += sizeof(*vlan);
	}
	frame_bytes -= at - data;
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(at, end, frame_bytes, skb, p);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(ctx, hook, at, end, at - data, frame_bytes, p);
	if (ethertype == bpf_htons(ETH_P_ARP))
		return parse_arp(at, end, frame_bytes, p);
	return KIND_OTHER;
}

/* Whether an IP header comes in the plainest form there is, headers at hand, no tag, no options, no
 * extension header, no fragment, and carries this protocol in a header of 20 bytes at most. */
static __always_inline int is_plain(void *data, void *end, int ipv6, __u8 protocol)
{
	if (ipv6)
		return data + ETH_HLEN + 40 + 20 <= end &&
		       *(__be16 *)(data + 12) == bpf_htons(ETH_P_IPV6) &&
		       (*(__u8 *)(data + 14) & 0xf0) == 0x60 && *(__u8 *)(data + 20) == protocol;
	return data + ETH_HLEN + 20 + 20 <= end &&
	       (*(__u32 *)(data + 12) & bpf_htonl(0xffffff00)) ==
		       bpf_htonl(ETH_P_IP << 16 | 0x4500) &&
	       (*(__u32 *)(data + 20) & bpf_htonl(0x1fff00ff)) == bpf_htonl(protocol);
}

/* Bytes behind the IP header of a plain frame, by its own word. */
static __always_inline __s32 plain_bytes(void *data, int ipv6)
{
	return ipv6 ? bpf_ntohs(*(__be16 *)(data + 18)) : bpf_ntohs(*(__be16 *)(data + 16)) - 20;
}

/* The fields of a plain frame. */
static __always_inline void read_plain(void *data, int ipv6, struct packet *p)
{
	void *transport = data + ETH_HLEN + (ipv6 ? 40 : 20);

	p->ip = data + ETH_HLEN;
	p->transport = transport;
	if (ipv6) {
		__builtin_memcpy(p->source6, data + 22, 16);
		__builtin_memcpy(p->destination6, data + 38, 16);
	} else {
		p->source = *(__be32 *)(data + 26);
		p->destination = *(__be32 *)(data + 30);
	}
	p->source_port = *(__be16 *)transport;
	p->destination_port = *(__be16 *)(transport + 2);
	p->fragment_offset = 0;
	p->icmp_type = 0;
	p->malformed = 0;
	p->ipv6 = ipv6;
}

/* Plain TCP, and then ``p`` is what parse_frame() would make of the frame. */
static __always_inline int parse_plain_tcp(void *data, void *end, int ipv6, struct packet *p)
{
	void *transport = data + ETH_HLEN + (ipv6 ? 40 : 20);
	__u16 offset_flags;

	if (!is_plain(data, end, ipv6, IPPROTO_TCP))
		return 0;
	offset_flags = bpf_ntohs(*(__be16 *)(transport + 12));
	if (offset_flags < 5 << 12 || plain_bytes(data, ipv6) < (offset_flags >> 12) * 4)
		return 0;
	read_plain(data, ipv6, p);
	p->protocol = IPPROTO_TCP;
	p->flags = offset_flags;
	p->acknowledgment = bpf_ntohl(*(__be32 *)(transport + 8));
	return 1;
}

/* The same for UDP. */
static __always_inline int parse_plain_udp(void *data, void *end, int ipv6, struct packet *p)
{
	if (!is_plain(data, end, ipv6, IPPROTO_UDP) || plain_bytes(data, ipv6) < 8)
		return 0;
	read_plain(data, ipv6, p);
	p->protocol = IPPROTO_UDP;
	p->flags = 0;
	p->acknowledgment = 0;
	return 1;
}

/* Whether it is the first segment of a connection. */
static __always_inline int opens(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && (p->flags & FLAGS_OPENING) == FLAG_SYN;
}

#endif
