/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * What the program and the agent share: the table of decisions and the counters.
 *
 * The agent's side of it is softnlb/ebpf_table.py; a test compares the two, field by field, through
 * the type information in the object.
 */
#ifndef SOFTNLB_FILTER_H
#define SOFTNLB_FILTER_H

#include <linux/types.h>

#define BUCKETS 60

/* The user's 32 port rules, then the default rule. */
#define SLOTS_MAX 33

#define CLUSTER_IP_ADDRESSES_MAX 64

#define CLUSTER_IPV6_ADDRESSES_MAX 16
#define PLACES_IPV6 32

/* An address lies at the place that its last bytes name, or in the next free one; place_of(). */
#define PLACES 128

/* The port tables of TCP and UDP: of every address that has a rule of its own, and of the rest. */
#define PORT_TABLES_MAX 66

/* More than 32 rules can need: a page that is not the same as many others holds the end of a
 * range, and the worst is 15 addresses with one rule each beside 16 rules for all addresses; and
 * each table of UDP may have one of its own for port 4500. */
#define PORT_PAGES_MAX 1216

/* In the order of softnlb/filter.py. */
enum reason {
	OWNER,
	SECOND_CHANCE,
	NOT_MINE,
	NO_LEASE,
	DISABLED,
	ORPHAN_RESET,
	STOPPED,
	DRAINING,
	WRONG_INTERFACE,
	NEVER_FORWARD,
	ADDRESS_RESOLUTION,
	ICMP_ERROR,
	EVERY_HOST,
	FRAGMENT,
	MALFORMED,
	REMOTE_CONTROL,
	SYN_COOKIE,
	CONNTRACK,
	HALF_OPEN,
	TIME_WAIT,
	NO_SOCKET,
	TAGGED,
	NOT_CLUSTER,
	AFFINITY,
	EXCEPTION,
	REASONS,
};

enum affinity {
	AFFINITY_NONE,
	AFFINITY_SINGLE,
	AFFINITY_NETWORK,
};

struct rule {
	__u64 current; /* bit b: bucket b is mine */
	__u64 orphan;  /* bit b: nobody serves a connection in bucket b any more */
	__u64 claimed; /* bit b: another's, but the clients that I remember there are mine */
	__u8 affinity;
	__u8 disabled;
	__u8 remembers; /* extended affinity */
	__u8 special;   /* one of the two, so that the owner of a bucket does not decide alone */
	__u8 unused[4];
};

/* A client as the affinity of the rule in this slot sees it. */
struct client {
	__be32 address[4]; /* of IPv4 the first */
	__u8 slot;
	__u8 ipv6;
	__u8 unused[2];
};

struct known {
	__u64 heard_ns; /* boot-time clock */
	__u32 bucket;
	__u32 unused;
};

struct cluster_ip_address {
	__be32 address;
	__u16 tcp_ports; /* numbers of port tables */
	__u16 udp_ports;
};

struct cluster_ipv6_address {
	__be32 address[4];
	struct cluster_ip_address ports; /* its ``address`` is 0 where the place is free */
};

struct table {
	__u64 valid_until_ns; /* boot-time clock */
	__u32 hash_seed;
	__s32 remote_control_port; /* -1: none */
	__u8 started;
	__u8 draining;
	__u8 filter_icmp;
	__u8 default_slot;
	__u8 cluster_mac[6];
	__u8 interface_mac[6]; /* what XDP writes over the cluster MAC */
	struct cluster_ip_address cluster[PLACES]; /* 0.0.0.0: free */
	struct cluster_ipv6_address cluster6[PLACES_IPV6];
	struct rule rules[SLOTS_MAX];
	/* Port -> slot in two loads, however many rules there are: the upper byte of the port leads to
	 * a page, the lower byte to the slot in it.  Tables and addresses share equal pages. */
	__u16 port_pages[PORT_TABLES_MAX][256];
	__u8 page_slots[PORT_PAGES_MAX][256];
};

/* Clients that this host remembers, and that it leaves to others. */
#define CLIENTS_MAX 32768
#define EXCEPTIONS_MAX 65536

/* A table is written while the other is obeyed; ``active`` then changes over in one store. */
struct state {
	__u32 active;
	__u32 translates; /* whether this host translates addresses, so that conntrack is asked */
	__u64 not_remembered; /* clients for whom there was no room */
	struct table tables[2];
};

/* Packets per reason: row 0 those that met no rule, row n + 1 those of slot n. */
struct counters {
	__u64 packets[SLOTS_MAX + 1][REASONS];
};

_Static_assert(sizeof(struct rule) == 32, "rule");
_Static_assert(sizeof(struct client) == 20, "client");
_Static_assert(sizeof(struct known) == 16, "known");
_Static_assert(sizeof(struct cluster_ip_address) == 8, "cluster_ip_address");
_Static_assert(sizeof(struct cluster_ipv6_address) == 24, "cluster_ipv6_address");
_Static_assert(sizeof(struct table) == 32 + 128 * 8 + 32 * 24 + 33 * 32 + 66 * 512 + 1216 * 256, "table");

#endif
